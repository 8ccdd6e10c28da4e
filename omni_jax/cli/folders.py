"""Early checks of checkpoint folders, before anything heavy is imported."""

from pathlib import Path

from omni_jax.errors import CheckpointError


def imported_checkpoint(folder: Path) -> Path:
    """`folder`, if it holds an imported (or trained) checkpoint.

    Raises:
        CheckpointError: it does not; for a published folder the message has the command that imports it.
    """
    _existing(folder)
    if not (folder / "params" / "_METADATA").is_file():
        if any(folder.glob("*.safetensors")):
            target = folder.resolve().name + "-jax"
            raise CheckpointError(
                f"{folder} is a published checkpoint. Import it first:\n"
                f"omni-jax import --from {folder} --to {target}\nand then give --checkpoint {target}"
            )
        raise CheckpointError(
            f"{folder} holds no checkpoint (params/_METADATA is missing). Give a folder that omni-jax import, assemble "
            "or train wrote."
        )
    return folder


def published_checkpoint(folder: Path) -> Path:
    """`folder`, if it looks like a published checkpoint.

    Raises:
        CheckpointError: it is missing, or was imported already.
    """
    _existing(folder)
    if (folder / "params" / "_METADATA").is_file():
        raise CheckpointError(f"{folder} is an imported checkpoint already. Give the published folder of safetensors.")
    return folder


def _existing(folder: Path) -> None:
    try:
        exists = folder.exists()
    except OSError as error:  # a name that is too long, or a folder above it that may not be entered
        name = str(folder)[:200]
        raise CheckpointError(f"{name} cannot be used as a folder: {error.strerror}. Check the path.") from error
    if not exists:
        raise CheckpointError(f"{folder} does not exist. Check the path of the checkpoint folder.")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. Give the folder of the checkpoint.")
