"""Which checkpoint and which code a figure is of."""

import hashlib
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_WHOLE = 1 << 20  # smaller files are read, of larger ones name and size count


def checkpoint_identity(folder: Path) -> dict[str, str]:
    """Path, and a SHA-256 over names and sizes of all files and the content of small ones.

    Files of parameters have names that were drawn when they were written, so another checkpoint has others.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        if size <= _WHOLE:
            digest.update(path.read_bytes())
    return {"path": str(folder), "sha256": digest.hexdigest()}


def code_identity() -> str:
    """ "omni-jax 0.1.0, commit 1a2b3c", the commit where the code is a clone of the repository."""
    try:
        name = f"omni-jax {version('omni-jax')}"
    except PackageNotFoundError:
        name = "omni-jax"
    folder = Path(__file__).resolve().parent
    git = dict(cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    try:
        # not of whatever repository an environment happens to lie in
        subprocess.run(["git", "ls-files", "--error-unmatch", Path(__file__).name], **git)
        found = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], **git)
    except (OSError, subprocess.SubprocessError):
        return name
    return f"{name}, commit {found.stdout.strip()}"
