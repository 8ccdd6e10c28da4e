"""Names of the mesh axes, and sizes as people write them. Imports no JAX, so that the command line is quick."""

from omni_jax.errors import ConfigError

# data: batch. fsdp: batch, and parameters split to save memory. tensor: heads and feed-forward. context: sequence.
AXES = ("data", "fsdp", "tensor", "context")


def parse_mesh(text: str) -> dict[str, int]:
    """ "fsdp=4,tensor=2" -> {"fsdp": 4, "tensor": 2}.

    Raises:
        ConfigError: not of that form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if not axis or not size.isdecimal() or int(size) < 1 or axis in sizes:
            raise ConfigError(f"--mesh {text!r} is not of the form fsdp=4,tensor=2: see {part.strip()!r}.")
        if axis not in AXES:
            raise ConfigError(f"--mesh {text!r}: there is no axis {axis!r}. Axes: {', '.join(AXES)}.")
        sizes[axis] = int(size)
    return sizes
