"""One file per component of the paper."""
