"""OmniJAX: Qwen2.5-Omni in JAX and Flax, for TPU first."""
