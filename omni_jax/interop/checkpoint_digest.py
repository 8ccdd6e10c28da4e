"""Which checkpoint is this? Told without reading all of it."""

import hashlib
from pathlib import Path

from omni_jax.interop.restore import load_checkpoint_info

_BYTES = 4096  # of each file, at both of its ends


def checkpoint_digest(folder: str | Path) -> str:
    """Tells a checkpoint from others without reading all of it: names, sizes, and both ends of its parameters' files.

    A copy of a folder has the same. One that was written anew has another, though its values may be equal.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    params, digest = load_checkpoint_info(folder).params, hashlib.sha256()
    for file in sorted(path for path in params.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(params)} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_BYTES))
            stream.seek(max(size - _BYTES, 0))
            digest.update(stream.read(_BYTES))
    return digest.hexdigest()[:32]
