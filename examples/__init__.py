"""Worked examples; the library depends on none of them."""
