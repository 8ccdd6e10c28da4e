"""Folders appear whole or not at all: written aside under another name, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omni_jax.errors import CheckpointError


@contextmanager
def write_aside(
    destination: Path, *, needs_bytes: int = 0, overwrite: bool = False, keep: Path | None = None
) -> Iterator[Path]:
    """Yields `<destination>.partial-<pid>`; renames it to `destination` on success, removes it on any failure.

    `keep`: a folder that overwriting must not remove, because it is what is being read.

    Raises:
        CheckpointError: `destination` is a file, or a non-empty folder and `overwrite` is false or it holds `keep`;
            its parent cannot be written; the disk has less than `needs_bytes` free or runs full while writing.
    """
    try:
        if destination.exists() and not destination.is_dir():
            raise CheckpointError(f"{destination} is a file. Give the name of a new folder.")
        used = destination.is_dir() and any(destination.iterdir())
    except OSError as error:
        raise _unwritable(destination, error) from error
    if used and not overwrite:
        raise CheckpointError(f"{destination} exists and is not empty. Choose another folder, or ask to overwrite it.")
    if used and keep is not None and _inside(keep, destination):
        raise CheckpointError(f"{destination} holds {keep}, which is being read. Choose another folder to write to.")
    if used and not (destination / "config.json").is_file():
        raise CheckpointError(
            f"{destination} holds other things than a checkpoint (no config.json). Only checkpoints are overwritten: "
            "choose another folder, or empty this one."
        )

    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    replaced = destination.with_name(f"{destination.name}.replaced-{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise _unwritable(destination, error) from error
    try:
        free = shutil.disk_usage(partial).free
        if free < needs_bytes:
            raise CheckpointError(
                f"{destination}: {needs_bytes / 1e9:.2f} GB are needed, the disk has {free / 1e9:.2f} GB free. "
                "Make room, or choose another disk."
            )
        yield partial
        os.sync()  # the name must not survive a power cut that the contents do not
        if destination.exists():
            destination.rename(replaced)
        partial.rename(destination)
    except CheckpointError:
        raise
    except Exception as error:
        reason = _storage_failure(error)
        if reason is None:
            raise
        raise CheckpointError(f"{destination} could not be written: {reason} Nothing was left behind.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        shutil.rmtree(replaced, ignore_errors=True)


def _unwritable(destination: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{str(destination)[:200]} cannot be written: {error.strerror or error}. Choose a folder that you may write to."
    )


def _inside(folder: Path, outer: Path) -> bool:
    """Whether `folder` is `outer` or lies below it."""
    return folder.resolve().is_relative_to(outer.resolve())


def _storage_failure(error: BaseException) -> str | None:
    """What went wrong on the disk, or None if the error is not one of storage.

    TensorStore reports the system's errors as ValueError with the error number in the text.
    """
    text = str(error)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in text:
        return "the disk is full. Make room, or choose another disk."
    if (isinstance(error, OSError) and error.errno == errno.EDQUOT) or "quota exceeded" in text.lower():
        return "the disk quota is used up. Make room, or choose another disk."
    if isinstance(error, OSError):
        return f"{error.strerror or error}."
    if isinstance(error, ValueError) and ("os_error_code" in text or "OS error" in text):
        return f"{text.splitlines()[0]}."
    return None
