"""Writes `spk_dict.pt` without PyTorch: the zip and the pickle that `torch.save` makes of dictionaries of tensors."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ROOT = "spk_dict"


def write_voices(file: str | Path, voices: Mapping[str, Mapping[str, Any]]) -> None:
    """A file that `torch.load(weights_only=True)` and `voices.read_torch_file` read.

    Args:
        voices: name -> {"bos_token": int, "cond": float [1, S], "ref_mel": float [1, R, M]}; arrays become float32.
    """
    arrays: list[np.ndarray] = []
    description = pickle.PROTO + b"\x02" + _dictionary(voices, arrays) + pickle.STOP
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # PyTorch maps the values: no compression
        archive.writestr(f"{_ROOT}/data.pkl", description)
        archive.writestr(f"{_ROOT}/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"{_ROOT}/data/{key}", array.astype("<f4").tobytes())
        archive.writestr(f"{_ROOT}/version", "3\n")


def _dictionary(values: Mapping[str, Any], arrays: list[np.ndarray]) -> bytes:
    items = b"".join(_text(key) + _value(value, arrays) for key, value in values.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def _value(value: Any, arrays: list[np.ndarray]) -> bytes:
    if isinstance(value, Mapping):
        return _dictionary(value, arrays)
    if isinstance(value, int):
        return _int(value)
    array = np.ascontiguousarray(value, np.float32)
    arrays.append(array)
    # the storage's description is what PyTorch calls a persistent id
    kind = _text("storage") + _name("torch", "FloatStorage")
    storage = _tuple(kind + _text(str(len(arrays) - 1)) + _text("cpu") + _int(array.size)) + pickle.BINPERSID
    strides = [step // array.itemsize for step in array.strides]
    sizes = _tuple(b"".join(map(_int, array.shape))) + _tuple(b"".join(map(_int, strides)))
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    view = _tuple(storage + _int(0) + sizes + pickle.NEWFALSE + hooks)
    return _name("torch._utils", "_rebuild_tensor_v2") + view + pickle.REDUCE


def _tuple(items: bytes) -> bytes:
    return pickle.MARK + items + pickle.TUPLE


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _int(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)
