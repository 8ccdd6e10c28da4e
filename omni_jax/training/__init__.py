"""Objectives, optimiser and the training step."""
