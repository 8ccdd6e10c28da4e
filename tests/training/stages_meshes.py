"""Instruction tuning on one device, on eight in three meshes, and on two processes; see `stages.py`.

alone  one device; saves after half of the steps
eight  three meshes, what does not divide, and the run of one device taken up from its half on another mesh
pair   one of two processes with a device each
"""

import json
import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from input_pipeline.training_batch import RowShape
from omni_jax.errors import ShardingError
from omni_jax.training.run_config import SourceConfig
from tests.training.stages import shrunk, train, write_lines
from tests.training.stages_thinker import FILMS, PICTURES, SOUNDS, WORDS, heard

STEPS = 4
MESHES = {
    "data": {"data": 8},
    "fsdp and tensor": {"fsdp": 4, "tensor": 2},
    "fsdp and context": {"fsdp": 4, "context": 2},
}


def config(name: str, mesh: dict[str, int], **changes: Any) -> Any:
    run = shrunk(
        "sft",
        steps=STEPS,
        learning_rate=1e-3,
        rows=8,
        shape=RowShape(tokens=128, audio_blocks=2, patches=64),
        mesh=mesh,
        **changes,
    )
    data = replace(run.data, sources=(SourceConfig("data/mesh_conversations"),))
    # the true gradient of a key's bias is zero: an epsilon above its rounding error keeps Adam from blowing it up
    optimizer = replace(run.optimizer, warmup_steps=1, epsilon=1e-5)
    return replace(run, data=data, optimizer=optimizer, output=f"runs/{name}")


def losses(run: Any, *, with_model: bool = False) -> list[float]:
    """Of each step. The model's folder, which takes longer than the steps, is written for one mesh only."""
    with nullcontext() if with_model else mock.patch("omni_jax.training.run.save_model"):
        return [row["loss"] for row in train(run)]


def on_eight() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, mesh in MESHES.items():
        # its tensor axis does not divide the DiT, which is carried along
        found[name] = losses(config(name, mesh), with_model=name == "fsdp and tensor")
    shutil.copytree("runs/alone", "runs/taken up")
    shutil.rmtree(f"runs/taken up/checkpoints/{STEPS}")
    found["taken up"] = losses(config("taken up", MESHES["fsdp and tensor"]))
    wrong = {"rows": ({"data": 8}, 6), "parameter": ({"tensor": 8}, 8), "devices": ({"fsdp": 3}, 9)}
    for name, (mesh, rows) in wrong.items():
        run = config(name, mesh)
        try:
            train(replace(run, data=replace(run.data, rows=rows)))
        except ShardingError as error:
            found[f"wrong {name}"] = str(error), Path(run.output, "checkpoints").exists()
    return found


def main(kind: str, folder: str) -> None:
    from omni_jax.sharding import hosts

    process, _ = hosts.start()
    os.chdir(folder)
    if kind == "alone":
        write_lines(Path("data/mesh_conversations"), heard([*PICTURES, *SOUNDS, *FILMS, *WORDS]))
    saves = {"save_every": STEPS // 2} if kind == "alone" else {}
    results = on_eight() if kind == "eight" else {kind: losses(config(kind, {}, **saves))}
    if process == 0:
        Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
