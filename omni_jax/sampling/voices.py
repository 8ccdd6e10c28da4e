"""The voices of a checkpoint: its `spk_dict.pt`, read without PyTorch.

    {"Chelsie": {"bos_token": 151872, "cond": float [1, 192], "ref_mel": float [1, 400, 80]}, "Ethan": ...}

The file is a zip that PyTorch wrote: a pickle that describes tensors, and one raw file for each tensor's values. A
pickle can name any function to be called, so ours may name three kinds of thing only: tensors, the storages of floating
point numbers that they view, and ordered dictionaries.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float

from input_pipeline.voice_mel import voice_mel
from omni_jax.config import OmniConfig
from omni_jax.errors import CheckpointError, PromptError

FILE = "spk_dict.pt"
DEFAULT_VOICE = "Chelsie"
_LARGEST_PICKLE = 1 << 20  # bytes; two voices take 425
_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, eq=False)
class Speaker:
    """One voice.

    token_id: row of the Thinker's embedding that tells the Talker who speaks.
    vector: float32 [S], the speaker vector of the DiT.
    ref_mel: float32 [R, M], natural-log mel of a reference recording, 100 frames a second.
    """

    name: str
    token_id: int
    vector: np.ndarray
    ref_mel: np.ndarray


def load_speakers(folder: str | Path, config: OmniConfig) -> dict[str, Speaker]:
    """The voices of a checkpoint folder, by name, in the file's order.

    Raises:
        CheckpointError: the model has no Talker; the file is missing, damaged, holds more than tensors of floating
            point numbers and integers, or does not fit the configuration.
    """
    folder = Path(folder)
    if not config.speaks:
        raise CheckpointError(f"{folder} holds a model that cannot speak (no Talker), so it has no voices.")
    file = folder / FILE
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: it holds the voices. Copy it from the published checkpoint.")
    content = read_torch_file(file)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file} holds no voices. Copy it again from the published checkpoint.")
    return {str(name): _speaker(file, str(name), entry, config) for name, entry in content.items()}


def choose_speaker(speakers: Mapping[str, Speaker], name: str | None = None) -> Speaker:
    """The voice called `name`; without a name "Chelsie", or the first where there is none of that name.

    Raises:
        PromptError: no such voice; the text lists the voices.
    """
    if name is None:
        name = DEFAULT_VOICE if DEFAULT_VOICE in speakers else next(iter(speakers))
    if name not in speakers:
        raise PromptError(f"There is no voice {name!r}. Voices of this checkpoint: {', '.join(speakers)}.")
    return speakers[name]


def voice_from_recording(
    base: Speaker, waveform: Float[np.ndarray, " W"], vector: np.ndarray | None = None, *, name: str = "The recording"
) -> Speaker:
    """A voice that the DiT hears in a recording: zero-shot, as far as the published weights allow.

    The recording gives the reference mel. It does not give `cond`: the network that computes it is not published (a
    CAM++ x-vector by all signs), so it stays that of `base` unless the caller has one. Nor does it give a start token:
    how the Talker speaks (accent, pace, melody) stays that of `base`, since its rows were trained for each voice.

    Args:
        waveform: mono, 16 kHz; the first 4 s are used.
        vector: float32 [192], or as wide as that of `base`.

    Raises:
        MediaError: too short, silent or damaged.
        PromptError: a vector of another width, or not finite.
    """
    if vector is not None:
        vector = np.asarray(vector, np.float32).reshape(-1)
        if vector.shape != base.vector.shape or not np.isfinite(vector).all():
            width = len(base.vector)
            raise PromptError(f"The speaker vector must be {width} finite numbers, not {list(vector.shape)}.")
    mel = voice_mel(waveform, base.ref_mel.shape[-1], name=name)
    return Speaker(f"{base.name} as in {name}", base.token_id, base.vector if vector is None else vector, mel)


def _speaker(file: Path, name: str, entry: Any, config: OmniConfig) -> Speaker:
    dit, rows = config.token2wav_config.dit_config, config.thinker_config.text_config.vocab_size

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise CheckpointError(
                f"{file}: voice {name!r} {what}. Use the {FILE} that belongs to this checkpoint's config.json."
            )

    need(
        isinstance(entry, Mapping) and {"bos_token", "cond", "ref_mel"} <= set(entry), "lacks bos_token, cond, ref_mel"
    )
    token, vector, mel = entry["bos_token"], entry["cond"], entry["ref_mel"]
    if isinstance(token, np.ndarray) and token.size == 1:
        token = int(token.item())
    need(isinstance(token, int) and 0 <= token < rows, f"has bos_token {token!r}, not a row id below {rows}")
    for key, value in (("cond", vector), ("ref_mel", mel)):
        need(isinstance(value, np.ndarray) and bool(np.isfinite(value).all()), f"has a {key} without finite values")
    width, bins = dit.enc_emb_dim, dit.mel_dim
    need(vector.shape in ((1, width), (width,)), f"has a cond of shape {list(vector.shape)}, not [1, {width}]")
    need(
        mel.ndim in (2, 3) and mel.shape[-1] == bins and mel.shape[:-2] in ((), (1,)),
        f"has a ref_mel of shape {list(mel.shape)}, not [1, frames, {bins}]",
    )
    return Speaker(name, token, vector.reshape(width), mel.reshape(-1, bins))


def read_torch_file(file: str | Path) -> Any:
    """What `torch.save` wrote: dictionaries, lists, numbers, strings, and floating point tensors as float32 arrays.

    Raises:
        CheckpointError: not a zip of that kind, damaged, or with anything else in it.
    """
    file = Path(file)
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive)
    except CheckpointError as error:
        raise CheckpointError(f"{file} {error}") from None
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{file} is not a zip as PyTorch 1.6 and later write it (or is cut short). Copy it again from the "
            "published checkpoint, or load it with PyTorch and save it anew."
        ) from None
    except Exception as error:  # a damaged pickle can fail in many ways
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}). Copy it again from the published checkpoint."
        ) from error


def _read_archive(archive: zipfile.ZipFile) -> Any:
    descriptions = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(descriptions) != 1:
        raise CheckpointError("is a zip, but not one that PyTorch wrote (no data.pkl).")
    root = descriptions[0].removesuffix("data.pkl")
    if archive.getinfo(descriptions[0]).file_size > _LARGEST_PICKLE:
        raise CheckpointError(f"describes its tensors in more than {_LARGEST_PICKLE} bytes; this is no list of voices.")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
    with archive.open(descriptions[0]) as stream:
        return _TensorUnpickler(stream, archive, root, "<" if order == b"little" else ">").load()


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors into numpy arrays and refuses to look up anything else."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str, order: str):
        super().__init__(stream, encoding="utf-8")
        self._archive, self._root, self._order = archive, root, order

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise CheckpointError(
            f"asks for {module}.{name}; only dictionaries, numbers and floating point tensors are read. "
            "Do not trust this file, or save it anew with those only."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or not isinstance(key, str):
            raise CheckpointError("describes a storage of an unknown kind.")
        info = self._archive.getinfo(f"{self._root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * storage.dtype.itemsize:
            raise CheckpointError(f"holds {info.file_size} bytes for the {count} values of its tensor {key}.")
        # bfloat16 has no byte order of its own in numpy: swap by the bytes
        values = np.frombuffer(self._archive.read(info), storage.dtype)
        return values if self._order == "<" else values.view(f"u{storage.dtype.itemsize}").byteswap().view(values.dtype)


def _view(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """A float32 copy of a strided view, once it is known to lie within its storage."""
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or any(not isinstance(n, int) or n < 0 for n in sizes):
        raise CheckpointError("describes a tensor with a bad storage, offset, shape or stride.")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
        raise CheckpointError(f"describes a tensor {list(shape)} that is larger than its {storage.size} values.")
    size = storage.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, [step * size for step in strides])
    return np.ascontiguousarray(view, dtype=np.float32)
