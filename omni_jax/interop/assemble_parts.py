"""Which tensors of a published part become which of our parameters, checked before anything is written."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from omni_jax.errors import CheckpointError
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.assemble_config import Source
from omni_jax.interop.import_checkpoint import DTYPES, Plan, Problem, differences, summarise
from omni_jax.interop.table_parts import POSITIONS
from omni_jax.models.audio_encoder import sinusoids


def plan_part(source: Source, *, width: int, dtype: str | None) -> Plan:
    """The import of one part; without its adapter where that does not have the language model's `width`.

    Raises:
        CheckpointError: listing every tensor that is missing, left over, misshapen or not floating point; positions
            that are not Whisper's sines.
    """
    part, found = source.part, st.read_folder(source.folder)
    prefix = part.prefix(found)
    entries = [replace(entry, torch=prefix + entry.torch) for entry in part.table(source.config, source.keys)]
    known = {name for entry in entries for name in entry.torch_names}
    problems = list(dict.fromkeys(differences(entries, found)))  # three of ours may share one of theirs
    problems += [
        Problem("extra", name, f"{list(tensor.shape)}")
        for name, tensor in found.items()
        if name.startswith(prefix) and name not in known and not name.endswith(part.computed)
    ]
    if problems:
        raise CheckpointError(
            f"{source.folder} does not fit its configuration ({len(problems)} differences):\n  "
            + "\n  ".join(summarise(problems))
            + "\nUse the config.json that belongs to these weights, or fetch the weights again."
        )
    if prefix + POSITIONS in found:
        _check_positions(found[prefix + POSITIONS])
    if not source.fits(width):
        entries = [entry for entry in entries if not entry.path.startswith(part.adapter)]
    return Plan(entries, found, {}, True, DTYPES[dtype] if dtype else None)


def _check_positions(tensor: st.Tensor) -> None:
    """Whisper stores its table of positions. Our encoder computes it, so one that was trained could not be kept."""
    values = tensor.read().astype(np.float32)
    largest = np.abs(values - np.asarray(sinusoids(*values.shape))).max()
    # float32 knows angles of up to 1500 rad to 1e-4, and each dtype rounds the sines to its own precision
    if not largest <= 1e-3 + float(jnp.finfo(tensor.dtype).eps):
        raise CheckpointError(
            f"{tensor.file}: {tensor.name} differs by up to {largest:.3g} from the sines that the audio encoder uses. "
            "Positions that were trained are not supported: give a Whisper as it is published."
        )
