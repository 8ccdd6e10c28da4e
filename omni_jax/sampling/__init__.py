"""Prefill, decode and streaming on the device."""
