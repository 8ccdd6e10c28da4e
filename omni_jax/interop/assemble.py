"""The beginning of pre-training: one checkpoint from a language model, a vision encoder and an audio encoder.

Each part comes from its own published folder (paper, section 3: Qwen2.5, Qwen2.5-VL, Whisper-large-v3); what has no
source is drawn at random. The result is what an import of a published Qwen2.5-Omni would be: the same files, which
everything else reads without knowing the difference. As there, one parameter at a time is in memory.
"""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_jax.config import OmniConfig
from omni_jax.config_json import read_config
from omni_jax.errors import CheckpointError
from omni_jax.interop.assemble_config import choose_preset, published_form, read_source, whole_config
from omni_jax.interop.assemble_parts import plan_part
from omni_jax.interop.assemble_random import random_leaves
from omni_jax.interop.assemble_tokenizer import find_tokenizer, omni_tokenizer
from omni_jax.interop.import_checkpoint import DTYPES, PARAMS, RECORD, Plan, Progress, plan_import
from omni_jax.interop.orbax_stream import StreamedLeaf, write_params
from omni_jax.interop.random_checkpoint import preprocessor_json
from omni_jax.interop.table_parts import PARTS
from omni_jax.interop.tables import TOKEN2WAV_COMPONENTS, table
from omni_jax.interop.weight_table import Table
from omni_jax.interop.write_aside import write_aside
from omni_jax.sampling.voices import FILE as VOICES
from omni_jax.sampling.voices import load_speakers


@dataclass(frozen=True)
class Assembled:
    """What an assembly is made of.

    Args:
        parameters: component -> number of its parameters.
        sources: component -> the folder that it came from.
        random: paths of the parameters that were drawn.
        unfit: adapters that were drawn because their published width is not the language model's -> that width.
    """

    parameters: Mapping[str, int]
    sources: Mapping[str, Path]
    random: tuple[str, ...]
    unfit: Mapping[str, int]

    def origin(self, component: str) -> str:
        """Where a component came from, in words."""
        if component not in self.sources:
            return "random"
        text = f"from {self.sources[component]}"
        new = dict.fromkeys(path.split("/")[1] for path in self.random if path.startswith(f"{component}/"))
        for name in new:
            width = self.unfit.get(f"{component}/{name}")
            text += f"; {name} random" + (f" (the published one gives a width of {width})" if width else "")
        return text


def assemble_checkpoint(
    destination: str | Path,
    *,
    language: str | Path | None = None,
    vision: str | Path | None = None,
    audio: str | Path | None = None,
    speech_from: str | Path | None = None,
    talker: bool = True,
    preset: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Assembled:
    """Writes a new checkpoint folder from published parts.

    Args:
        destination: the folder to write.
        language, vision, audio: published folders of a Qwen2.5, a Qwen2.5-VL and a Whisper (config.json, safetensors).
            The tokenizer is that of the language model, or of the first other folder that holds one.
        speech_from: a published Qwen2.5-Omni, whose Token2Wav and voices are taken.
        talker: False leaves Talker and Token2Wav out.
        preset: gives what the parts do not: the Talker, and the sizes of parts without a source. None chooses the
            published model as wide as the language model, and the 7B one where there is none.
        seed: of what is drawn. Equal seeds give equal parameters.
        dtype: "float32" or "bfloat16" for every parameter; None keeps each as published, and draws in float32.
        overwrite: replace a non-empty `destination`.
        progress: called as progress(bytes written, bytes in total).

    Raises:
        CheckpointError: no source; a folder of another kind of model; files missing or truncated; tensors missing,
            left over or misshapen (all are listed, and nothing is written); a tokenizer or a voice that does not fit;
            NaN or infinite values; an unwritable destination. `destination` is then as it was before.
        ConfigError: no such preset; a config.json that lacks a key or asks for unsupported mathematics.
    """
    destination = Path(destination)
    given = dict(zip(PARTS, (language, vision, audio)))
    folders = {part: Path(folder) for part, folder in given.items() if folder is not None}
    voice = None if speech_from is None else Path(speech_from)
    every = [*folders.values(), *([] if voice is None else [voice])]
    _check_request(destination, every, wants_voice=voice is not None, talker=talker, seed=seed, dtype=dtype)

    base = choose_preset(preset, folders)
    sources = [read_source(part, folder, base) for part, folder in folders.items()]
    speech = None if voice is None else read_config(voice)
    config = whole_config(base, sources, None if speech is None else speech.token2wav_config)
    tokenizer = omni_tokenizer(find_tokenizer(every), config)
    width = config.thinker_config.text_config.hidden_size
    plans = {source.folder: plan_part(source, width=width, dtype=dtype) for source in sources}
    if speech is not None:
        plans[voice] = plan_import(voice, speech, dtype=dtype, components=TOKEN2WAV_COMPONENTS)
        load_speakers(voice, config)

    entries = table(config if talker else OmniConfig(config.thinker_config))
    leaves = {leaf.path: leaf for plan in plans.values() for leaf in plan.leaves}
    random = tuple(entry.path for entry in entries if entry.path not in leaves)
    drawn = random_leaves(config, random, seed=seed, dtype=DTYPES[dtype or "float32"])
    leaves |= {leaf.path: leaf for leaf in drawn}
    assembled = Assembled(
        sizes_of(entries),
        {component: folder for folder, plan in plans.items() for component in plan.components},
        random,
        {source.part.adapter.rstrip("/"): source.width for source in sources if not source.fits(width)},
    )
    dtypes = _published_dtypes(entries, plans.values(), leaves)
    files = {
        "config.json": published_form(config, dtype=_main_dtype(dtypes), talker=talker, ends=tokenizer.ends),
        "generation_config.json": tokenizer.generation,
        "preprocessor_config.json": _preprocessor_of(config),
        RECORD: record_of(assembled, dtypes, seed),
        **tokenizer.json,
    }

    total = sum(leaf.nbytes for leaf in leaves.values())
    with write_aside(destination, needs_bytes=total, overwrite=overwrite) as folder:
        write_params(folder / PARAMS, [leaves[entry.path] for entry in entries], _adding_up(progress, total))
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in tokenizer.copied:
            shutil.copyfile(path, folder / path.name)
        if voice is not None:
            shutil.copyfile(voice / VOICES, folder / VOICES)
        else:
            _write_no_voices(folder / VOICES)
    return assembled


def _check_request(
    destination: Path, folders: list[Path], *, wants_voice: bool, talker: bool, seed: int, dtype: str | None
) -> None:
    if not folders:
        raise CheckpointError("Nothing to assemble. Give a language model, a vision encoder or an audio encoder.")
    if wants_voice and not talker:
        raise CheckpointError("Voices were given, but no Talker is wanted. Leave one of the two out.")
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if not 0 <= seed < 2**32:
        raise CheckpointError(f"seed {seed} is out of range. Give one from 0 to {2**32 - 1}.")
    for folder in folders:
        if folder.resolve().is_relative_to(destination.resolve()):
            raise CheckpointError(f"{destination} holds {folder}, which is being read. Write to another folder.")


def sizes_of(entries: Table) -> dict[str, int]:
    """Component -> number of its parameters."""
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.component] = sizes.get(entry.component, 0) + entry.size
    return sizes


def _published_dtypes(entries: Table, plans: Iterable[Plan], leaves: Mapping[str, StreamedLeaf]) -> dict[str, str]:
    """Name in a published Qwen2.5-Omni -> dtype in which the part was published, or ours was drawn."""
    tensors = {
        entry.path: [plan.tensors[name] for name in entry.torch_names] for plan in plans for entry in plan.entries
    }
    dtypes = {}
    for entry in entries:
        sources = tensors.get(entry.path) or [leaves[entry.path]] * len(entry.torch_names)
        dtypes |= {name: source.dtype.name for name, source in zip(entry.torch_names, sources)}
    return dtypes


def _main_dtype(dtypes: Mapping[str, str]) -> str:
    return dtypes["thinker.model.embed_tokens.weight"]


def record_of(assembled: Assembled, dtypes: Mapping[str, str], seed: int) -> dict[str, Any]:
    """The file RECORD of a checkpoint. `dtypes`: of each parameter, by its name in a published Qwen2.5-Omni."""
    return {
        "format": 1,
        "components": list(assembled.parameters),
        "prefixed": True,
        "parameters": sum(assembled.parameters.values()),
        "source_dtypes": dtypes,
        "assembled_from": {component: str(folder) for component, folder in assembled.sources.items()},
        "random": assembled.random,
        "seed": seed,
    }


def _preprocessor_of(config: OmniConfig) -> dict[str, Any]:
    vision = config.thinker_config.vision_config
    return preprocessor_json() | {
        "feature_size": config.thinker_config.audio_config.num_mel_bins,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }


def _write_no_voices(file: Path) -> None:
    """An empty dictionary as PyTorch stores it: transformers loads no model without this file, not even a mute one."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{file.stem}/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr(f"{file.stem}/version", "3\n")


def _adding_up(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return on_bytes
