"""Hand-written kernels for accelerators, each beside the jax.numpy reference that defines it."""
