"""A published PyTorch checkpoint becomes one Orbax checkpoint, streamed: a slice of one tensor in memory at a time.

destination/
  params/                    ordinary Orbax PyTree checkpoint: {component: {...}}
  import.json                what was imported: components, source dtype of every tensor
  extra_tensors.safetensors  tensors that we recompute, kept for export
  config.json, tokenizer.json, ..., spk_dict.pt    byte for byte
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.orbax_stream import StreamedLeaf, write_params
from omni_jax.interop.tables import (
    COMPONENTS,
    TALKER_COMPONENTS,
    THINKER_COMPONENTS,
    TOKEN2WAV_COMPONENTS,
    check_components,
    table,
)
from omni_jax.interop.weight_table import Entry, Table
from omni_jax.interop.write_aside import write_aside

PARAMS, RECORD, EXTRA = "params", "import.json", "extra_tensors.safetensors"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# Files that belong to a checkpoint and are carried along unread.
CARRIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
    "spk_dict.pt",
    "LICENSE*",
    "README.md",
)
# Tables of rotary frequencies that some releases store; the models compute them exactly.
_RECOMPUTED = (".rotary_embed.inv_freq", ".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq")
# First part of a published name -> our components.
GROUPS = {"thinker": THINKER_COMPONENTS, "talker": TALKER_COMPONENTS, "token2wav": TOKEN2WAV_COMPONENTS}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """One tensor that does not fit."""

    kind: str
    name: str
    detail: str


def summarise(problems: list[Problem]) -> list[str]:
    """One line per problem; those that differ only in the numbers in their names share one.

    missing    thinker.model.layers.{i}.mlp.up_proj.weight [128, 64] (i = 0, 1, 2)
    """
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{i}", problem.name)
        groups.setdefault((problem.kind, pattern, problem.detail), []).append(problem)
    lines = []
    for (kind, pattern, detail), group in groups.items():
        if len(group) == 1:
            lines.append(f"{kind:<10} {group[0].name} {detail}")
        else:
            numbers = [".".join(re.findall(r"(?<=\.)\d+(?=\.)", problem.name)) for problem in group]
            lines.append(f"{kind:<10} {pattern} {detail} (i = {', '.join(numbers)})")
    return lines


@dataclass(frozen=True)
class Plan:
    """What an import will write: checked against the headers, nothing read yet."""

    entries: Table
    tensors: dict[str, st.Tensor]
    extra: dict[str, st.Tensor]
    prefixed: bool
    dtype: np.dtype | None

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(name for name in COMPONENTS if any(entry.component == name for entry in self.entries))

    @property
    def leaves(self) -> list[StreamedLeaf]:
        return [self._leaf(entry) for entry in self.entries]

    def _leaf(self, entry: Entry) -> StreamedLeaf:
        sources = [self.tensors[name] for name in entry.torch_names]
        dtype = self.dtype or _common_dtype(sources)

        def slices() -> Iterator[np.ndarray]:
            for source in sources:
                values = source.read()
                if not all_finite(values):
                    raise CheckpointError(
                        f"{source.file}: tensor {source.name} holds NaN or infinite values. Fetch the file again, "
                        "or choose another checkpoint."
                    )
                values = values.astype(dtype, copy=False)
                if self.dtype is not None and not all_finite(values):
                    raise CheckpointError(f"{source.file}: tensor {source.name} has values beyond {dtype}'s range.")
                yield entry.transform.to_jax(values)

        return StreamedLeaf(entry.path, entry.jax_shape, dtype, entry.layers is not None, slices)


def import_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    components: Collection[str] | None = None,
    config: OmniConfig | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Imports the published folder `source` into the new folder `destination`.

    Args:
        source: folder with config.json and safetensors. Thinker-only checkpoints are taken too, with or without the
            prefix "thinker." in their names.
        dtype: "float32" or "bfloat16" to store every parameter so; None keeps each as published.
        components: which of COMPONENTS to import; None for all that the checkpoint holds.
        config: instead of `source`'s config.json.
        overwrite: replace a non-empty `destination`.
        progress: called as progress(bytes written, bytes in total).

    Returns:
        Number of parameters per component.

    Raises:
        CheckpointError: files missing or truncated; tensors missing, left over or of another shape than the
            configuration's (all are listed, and nothing is written); NaN or infinite values; an unwritable
            destination; a full disk. `destination` is then as it was before.
    """
    source, destination = Path(source), Path(destination)
    plan = plan_import(source, config or read_config(source), dtype=dtype, components=components)
    leaves = plan.leaves
    total, done = sum(leaf.nbytes for leaf in leaves), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    carried = sorted({path for pattern in CARRIED for path in source.glob(pattern) if path.is_file()})
    needs = total + sum(path.stat().st_size for path in carried)
    with write_aside(destination, needs_bytes=needs, overwrite=overwrite, keep=source) as folder:
        write_params(folder / PARAMS, leaves, on_bytes)
        _write_record(folder, plan)
        for path in carried:
            shutil.copyfile(path, folder / path.name)
    return {name: sum(entry.size for entry in plan.entries if entry.component == name) for name in plan.components}


def plan_import(
    source: Path, config: OmniConfig, *, dtype: str | None = None, components: Collection[str] | None = None
) -> Plan:
    """Checks every tensor of `source` against the weight table of `config`, reading headers only.

    Raises:
        CheckpointError: listing everything that is missing, left over, misshapen or not floating point.
    """
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    check_components(components or ())

    found = st.read_folder(source)
    prefixed = any(_group(name) in GROUPS for name in found)
    if not prefixed:  # as `Qwen2_5OmniThinkerForConditionalGeneration` saves itself
        found = {f"thinker.{name}": tensor for name, tensor in found.items()}
    speech = any(_group(name) != "thinker" for name in found)
    present = components or (COMPONENTS if speech else THINKER_COMPONENTS)
    expected = table(config)
    chosen = [entry for entry in expected if entry.component in present]

    absent = set(components or ()) - {entry.component for entry in expected}
    problems = [Problem("missing", name, "the configuration has no such component") for name in sorted(absent)]
    problems += differences(chosen, found)
    known = {name for entry in expected for name in entry.torch_names}
    extra = {}
    for name, tensor in found.items():
        if name in known or not set(GROUPS.get(_group(name), present)) & set(present):
            continue
        if name.endswith(_RECOMPUTED):
            extra[name] = tensor
        else:
            problems.append(Problem("extra", name, f"{list(tensor.shape)}"))
    if problems:
        raise CheckpointError(
            f"{source} does not fit its configuration ({len(problems)} differences):\n  "
            + "\n  ".join(summarise(problems))
            + "\nUse the config.json that belongs to these weights, or fetch the weights again."
        )
    return Plan(chosen, found, extra, prefixed, DTYPES[dtype] if dtype else None)


def _group(name: str) -> str:
    return name.split(".", 1)[0]


def differences(entries: Table, found: dict[str, st.Tensor]) -> list[Problem]:
    """Where a checkpoint's tensors are not those that `entries` ask for: missing, misshapen, or of a strange dtype."""
    problems = []
    for entry in entries:
        for name in entry.torch_names:
            if name not in found:
                problems.append(Problem("missing", name, f"{list(entry.shape)}"))
                continue
            tensor = found[name]
            if tensor.shape != entry.shape:
                detail = f"is {list(tensor.shape)}, expected {list(entry.shape)}"
                problems.append(Problem("misshapen", name, detail))
            if tensor.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
                detail = f"is stored as {tensor.dtype.name}; quantised weights are not supported"
                problems.append(Problem("not float", name, detail))
    return problems


def _common_dtype(tensors: list[st.Tensor]) -> np.dtype:
    """The smallest type that holds the values of all stacked tensors without loss."""
    result = tensors[0].dtype
    for tensor in tensors[1:]:
        result = np.dtype(jnp.promote_types(result, tensor.dtype))
    return result


def _write_record(folder: Path, plan: Plan) -> None:
    names = [name for entry in plan.entries for name in entry.torch_names]
    record = {
        "format": 1,
        "components": plan.components,
        "prefixed": plan.prefixed,
        "parameters": sum(entry.size for entry in plan.entries),
        "source_dtypes": {name: plan.tensors[name].dtype.name for name in names},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if plan.extra:
        planned = [st.Planned(name, tensor.dtype, tensor.shape) for name, tensor in plan.extra.items()]
        st.write_file(folder / EXTRA, planned, (tensor.read() for tensor in plan.extra.values()))


def all_finite(values: np.ndarray, block: int = 2**22) -> bool:
    """Whether no value is NaN or infinite. Works block by block, so that it needs no second copy."""
    flat = values.reshape(-1)
    if values.dtype == ml_dtypes.bfloat16:  # an all-ones exponent, several times faster than through ml_dtypes
        bits = flat.view(np.uint16)
        return not any(((bits[i : i + block] & 0x7F80) == 0x7F80).any() for i in range(0, bits.size, block))
    return all(np.isfinite(flat[i : i + block]).all() for i in range(0, flat.size, block))
