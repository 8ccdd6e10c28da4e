"""Omni-tiny: a small model that hears, sees and speaks, and all that its training takes (see README.md)."""
