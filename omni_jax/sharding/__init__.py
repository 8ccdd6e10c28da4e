"""Mesh construction and logical-axis rules."""
