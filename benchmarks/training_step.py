"""A step of instruction tuning, ours against PyTorch: same weights, same tokens, float32 on the CPU, in one process.

    python benchmarks/training_step.py --json

Both sides do all of it: forward, backward, clipping of the gradient's norm, AdamW on every parameter of the Thinker and
(where there is a picture) the vision encoder. The reference is `transformers`' model with SDPA attention and
`torch.optim.AdamW`, in its fused form if it is the faster one; neither side makes layers again in the backward pass.
Rows of unlike length are packed by us and padded by the reference, as its Trainer does. Runs alternate; each figure is
the minimum. The random "bench" model has 283 M parameters.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import numpy as np
import torch
from cases import Case, Sides, measure
from vs_transformers import checkpoint

from input_pipeline.pack_rows import pack_row, stack_rows
from input_pipeline.patches import Patches
from input_pipeline.request import assemble
from input_pipeline.training_batch import Example, OmniBatch, RowShape
from omni_jax.config_json import read_config
from omni_jax.interop import reference
from omni_jax.interop.restore import restore_params
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.step import Trainer
from omni_jax.training.thinker_task import ThinkerTask

OPTIMIZER = OptimizerConfig(learning_rate=1e-5, warmup_steps=0, total_steps=10**6)
LENGTHS = (60, 420, 130, 210, 90, 330, 50, 260, 180, 70, 150, 98)  # tokens of conversations; 2,048 in all


def conversations(config, lengths: tuple[int, ...], picture: tuple[int, int] | None = None) -> list[Example]:
    """Random tokens, of which the last two thirds are answers; with a picture of (rows, columns) patches each."""
    rng, thinker, out = np.random.default_rng(0), config.thinker_config, []
    for number, length in enumerate(lengths):
        ids, images = rng.integers(0, 900, length).tolist(), []
        if picture is not None:
            rows, columns = picture
            pixels = rng.normal(size=(rows * columns, thinker.vision_config.patch_dim)).astype(np.float32)
            images = [Patches(pixels, (1, rows, columns))]
            ids[4:4] = [thinker.vision_start_token_id, thinker.image_token_id, thinker.vision_end_token_id]
        request = assemble(ids, config, images=images)
        weights = (np.arange(len(request.token_ids)) >= len(request.token_ids) - 2 * length // 3).astype(np.float32)
        out.append(
            Example(
                f"conversation {number}",
                request.token_ids,
                request.position_ids,
                weights,
                request.audio,
                request.vision,
                request.audio_row,
                request.vision_row,
            )
        )
    return out


class Ours:
    """The jitted step and its state."""

    def __init__(self, folder: Path, components: tuple[str, ...], batch: OmniBatch):
        config = read_config(folder)
        task = ThinkerTask(config, audio=False, vision="vision_encoder" in components, remat="none")
        self.trainer = Trainer(config, task, OPTIMIZER, make_mesh(jax.devices()[:1]))
        self.state = self.trainer.start(restore_params(folder, config, components=components))
        self.batch = self.trainer.put(batch)

    def __call__(self) -> None:
        self.state, metrics = self.trainer(self.state, self.batch)
        self.loss = float(metrics["loss"])


class Theirs:
    """The same step in PyTorch: padded to the longest row."""

    def __init__(self, folder: Path, examples: list[Example], vision: bool):
        self.model = reference.load_thinker(folder).train()
        for parameter in self.model.audio_tower.parameters():
            parameter.requires_grad_(False)
        if not vision:
            for parameter in self.model.visual.parameters():
                parameter.requires_grad_(False)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        longest = max(len(example.token_ids) for example in examples)
        shape = len(examples), longest
        ids, mask, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
        for row, example in enumerate(examples):
            length = len(example.token_ids)
            ids[row, :length], mask[row, :length] = example.token_ids, 1
            labels[row, :length] = np.where(example.weights > 0, example.token_ids, -100)
        self.inputs = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }
        if vision:
            items = [item for example in examples for item in example.vision]
            self.inputs["pixel_values"] = torch.from_numpy(np.concatenate([item.pixels for item in items]))
            self.inputs["image_grid_thw"] = torch.tensor([item.grid for item in items])

    def __call__(self) -> None:
        with torch.enable_grad():
            loss = self.model(**self.inputs, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.loss = float(loss.detach())


def sides(folder: Path, lengths: tuple[int, ...], rows: int, picture: tuple[int, int] | None = None) -> Sides:
    """Both steps on the same conversations, once the losses of their first steps are seen to agree."""
    config = read_config(folder / "imported")
    examples = conversations(config, lengths, picture)
    tokens = -(-sum(len(example.token_ids) for example in examples) // rows)
    patches = 0 if picture is None else len(examples) // rows * picture[0] * picture[1]
    shape = RowShape(tokens=tokens, patches=patches)
    batch = stack_rows([pack_row(part, shape, config) for part in in_rows(examples, rows, tokens)])
    components = ("vision_encoder",) * (picture is not None) + ("thinker",)
    ours, theirs = Ours(folder / "imported", components, batch), Theirs(folder / "published", examples, bool(picture))
    ours()
    theirs()
    if abs(ours.loss - theirs.loss) > 1e-3 * theirs.loss:
        raise SystemExit(f"The two sides do not do the same: losses {ours.loss} and {theirs.loss}.")
    total = sum(len(example.token_ids) for example in examples)
    return Sides(ours, theirs, details=lambda: {"tokens": total})


def in_rows(examples: list[Example], rows: int, tokens: int) -> list[list[Example]]:
    """Into rows of at most `tokens`, the longest first."""
    out, room = [[] for _ in range(rows)], [tokens] * rows
    for example in sorted(examples, key=lambda each: -len(each.token_ids)):
        row = next(row for row in range(rows) if room[row] >= len(example.token_ids))
        out[row].append(example)
        room[row] -= len(example.token_ids)
    return out


class Checkpoint:
    def __init__(self, make: Callable[[], Path]):
        self._make = make

    @cached_property
    def folder(self) -> Path:
        return self._make()


def cases(model: Checkpoint) -> Iterator[Case]:
    yield Case("4 rows of 256 tokens", lambda: sides(model.folder, (256,) * 4, rows=4))
    yield Case("12 conversations of 50 to 420 tokens", lambda: sides(model.folder, LENGTHS, rows=1))
    yield Case("4 pictures of 224 x 224", lambda: sides(model.folder, (120,) * 4, rows=1, picture=(16, 16)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object as the last line of standard output")
    parser.add_argument("--size", default="bench", help="tiny, small or bench")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--only", default="", help="measure only the cases whose name holds this")
    parser.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "omni_jax_bench"), help="for the weights")
    options = parser.parse_args()
    rows = []
    with contextlib.redirect_stdout(sys.stderr):
        torch.set_num_threads(options.threads)
        for case in cases(Checkpoint(partial(checkpoint, Path(options.folder), options.size))):
            if options.only not in case.name:
                continue
            row = measure(case, options.runs)
            row |= {
                f"{side}_tokens_per_second": row["tokens"] / row[f"{side}_seconds"] for side in ("ours", "reference")
            }
            rows.append(row)
            line = (
                "{name:38s} ours {ours_tokens_per_second:7.0f} tokens/s   reference {reference_tokens_per_second:7.0f}"
            )
            print((line + "   ratio {ratio:.2f}").format(**row), flush=True)
    if options.json:
        print(json.dumps({"rows": rows, "devices": str(jax.devices()), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
