"""The house keeps its shape: imports point one way (cli, compilation, sampling, models, layers, kernels)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A room may import from the rooms named here (and from itself).
ALLOWED = {
    "omni_jax.errors": set(),
    "omni_jax.config": {"omni_jax.errors"},
    "omni_jax.config_json": {"omni_jax.config", "omni_jax.errors"},
    "omni_jax.presets": {"omni_jax.config", "omni_jax.errors"},
    "omni_jax.kernels": {"omni_jax.errors"},
    "omni_jax.layers": {"omni_jax.kernels", "omni_jax.config", "omni_jax.errors"},
    "omni_jax.models": {"omni_jax.layers", "omni_jax.config", "omni_jax.errors"},
    "omni_jax.sharding": {"omni_jax.config", "omni_jax.errors"},
    "input_pipeline": {"omni_jax.config", "omni_jax.errors"},
}
BASE = {"omni_jax.config", "omni_jax.config_json", "omni_jax.errors", "omni_jax.presets", "input_pipeline"}
ALLOWED["omni_jax.interop"] = BASE | {"omni_jax.models", "omni_jax.layers", "omni_jax.sharding", "omni_jax.sampling"}
ALLOWED["omni_jax.sampling"] = BASE | {"omni_jax.models", "omni_jax.layers", "omni_jax.sharding", "omni_jax.interop"}
ALLOWED["omni_jax.training"] = BASE | {"omni_jax.models", "omni_jax.layers", "omni_jax.sharding", "omni_jax.interop"}
# asks what sampling runs, and measures pauses and words as training does
ALLOWED["omni_jax.evaluation"] = BASE | {"omni_jax.sampling", "omni_jax.training"}
# looks at what the others make, and nobody but the command line looks at it
ALLOWED["omni_jax.compilation"] = ALLOWED["omni_jax.sampling"] | {
    "omni_jax.sampling",
    "omni_jax.training",
    "omni_jax.kernels",
}
FILES = sorted(file for room in ("omni_jax", "input_pipeline") for file in (ROOT / room).rglob("*.py"))


def room_of(module: str) -> str | None:
    """The longest room that `module` lies in."""
    rooms = [room for room in [*ALLOWED, "omni_jax.cli"] if module == room or module.startswith(f"{room}.")]
    return max(rooms, key=len, default=None)


def imports_of(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    room = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    if room is None or room == "omni_jax.cli":
        return
    wrong = [name for name in imports_of(file) if room_of(name) not in {None, room} | ALLOWED[room]]
    assert not wrong, f"{room} must not import {wrong}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_interop_room_knows_pytorch(file):
    if "interop" in file.parts:
        return
    assert not [name for name in imports_of(file) if name.split(".")[0] in ("torch", "transformers")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_holds_one_idea(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500
