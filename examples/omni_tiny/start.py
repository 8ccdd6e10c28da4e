"""The checkpoint that Omni-tiny's training begins with: random parameters, its tokenizer, and four voices.

    python -m examples.omni_tiny.start --data .omni_tiny --tokenizer .omni_tiny/tokenizer --to .omni_tiny/start

Like a folder of `omni-jax assemble` with no source at all: every part is drawn by its module's own initialiser, but for
the last biases of sound (outset.py). The speech tokenizer is there from the beginning, for it has one of them.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
from tyro.conf import arg

from examples.omni_tiny.outset import output_biases
from examples.omni_tiny.program import run_main
from input_pipeline.media import load_audio
from input_pipeline.voice_mel import RATE, voice_mel
from omni_jax.config import DiscriminatorConfig, OmniConfig, ProcessorConfig
from omni_jax.config_json import config_to_dict, read_json_object, write_processor_config
from omni_jax.interop.assemble import Assembled, record_of, sizes_of
from omni_jax.interop.assemble_config import published_form
from omni_jax.interop.assemble_random import random_leaves
from omni_jax.interop.import_checkpoint import PARAMS, RECORD
from omni_jax.interop.orbax_stream import StreamedLeaf, write_params
from omni_jax.interop.random_checkpoint import preprocessor_json
from omni_jax.interop.random_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import flatten
from omni_jax.interop.write_aside import write_aside
from omni_jax.models.speech_tokenizer import init_params
from omni_jax.presets import preset, speech_tokenizer_preset
from omni_jax.sampling.voices import FILE as VOICES
from omni_jax.sampling.voices_file import write_voices

FIRST_VOICE = 1110  # row of the embedding, beyond all tokens and the Talker's marks
SMALLEST = 4 * 28 * 28  # pixels of a picture or frame: 56x56
# Judges as small as the vocoder is, or they would take most of a step: those of BigVGAN have 80 times its parameters.
JUDGES = DiscriminatorConfig(
    periods=(2, 3, 5),
    period_channels=(16, 32, 64, 128),
    resolutions=((1024, 240, 960), (512, 120, 480)),
    resolution_channels=8,
)


@dataclass(frozen=True)
class Args:
    """Write the checkpoint that training begins with.

    example:
      python -m examples.omni_tiny.start --data .omni_tiny --tokenizer .omni_tiny/tokenizer --to .omni_tiny/start
    """

    data: Annotated[Path, arg(metavar="DIR")]
    """The folder that make_data has filled; of it voices.json and some recordings are read."""
    tokenizer: Annotated[Path, arg(metavar="DIR")]
    """The folder that examples.omni_tiny.tokenizer wrote."""
    to: Annotated[Path, arg(metavar="DIR")]
    """The folder to write."""
    seed: int = 0
    """Of the parameters."""


def main(args: Args) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        OmniError: a recording or a file of the tokenizer is missing; the folder cannot be written.
    """
    config = preset("omni-tiny")
    entries, dtype = table(config), np.dtype(np.float32)
    leaves = {leaf.path: leaf for leaf in random_leaves(config, [e.path for e in entries], seed=args.seed, dtype=dtype)}
    leaves |= {path: leaf_of(path, value) for path, value in random_tokenizer(args.seed).items()}
    for path, value in output_biases(args.data).items():
        assert leaves[path].shape == value.shape
        leaves[path] = leaf_of(path, value)
    voices = read_voices(args.data)
    with write_aside(args.to, needs_bytes=sum(leaf.nbytes for leaf in leaves.values())) as folder:
        write_params(folder / PARAMS, leaves.values())
        for name, content in described(config, seed=args.seed).items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_processor_config(processor(), folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
            shutil.copyfile(args.tokenizer / name, folder / name)
        write_voices(folder / VOICES, voices)
    sizes: dict[str, float] = {}
    for leaf in leaves.values():
        part = leaf.path.split("/", 1)[0]
        sizes[part] = sizes.get(part, 0) + leaf.nbytes / 4e6
    told = ", ".join(f"{part} {size:.1f}" for part, size in sizes.items())
    print(f"{sum(sizes.values()):.1f} M parameters ({told}), voices {', '.join(voices)}, in {args.to}")


def random_tokenizer(seed: int) -> dict[str, np.ndarray]:
    """Parameters of a speech tokenizer, by path."""
    draw = jax.jit(init_params, static_argnums=1)
    drawn = nn.unbox(draw(jax.random.key(seed), speech_tokenizer_preset("omni-tiny", "scratch")))
    return {path: np.asarray(value) for path, value in flatten({"speech_tokenizer": drawn})}


def leaf_of(path: str, value: np.ndarray) -> StreamedLeaf:
    """A parameter that exists."""
    return StreamedLeaf(path, value.shape, value.dtype, False, lambda: iter([value]))


def described(config: OmniConfig, *, seed: int) -> dict[str, dict[str, Any]]:
    """The files that tell of the model."""

    def token(name: str) -> int:
        return FIRST_SPECIAL_ID + SPECIAL_TOKENS.index(name)

    begin, end, pad = token("<|im_start|>"), token("<|im_end|>"), token("<|endoftext|>")
    ends = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad}
    entries = table(config)
    # what no published model has; their sizes are a part of ours
    own = OmniConfig(
        config.thinker_config,
        speech_tokenizer_config=speech_tokenizer_preset("omni-tiny", "scratch"),
        discriminator_config=JUDGES,
    )
    added = {name: config_to_dict(own)[name] for name in ("speech_tokenizer_config", "discriminator_config")}
    assembled = Assembled(sizes_of(entries), {}, tuple(entry.path for entry in entries), {})
    dtypes = {name: "float32" for entry in entries for name in entry.torch_names}
    return {
        "config.json": published_form(config, dtype="float32", talker=True, ends=ends) | added,
        "generation_config.json": {"eos_token_id": [end, pad], "pad_token_id": pad},
        RECORD: record_of(assembled, dtypes, seed),
    }


def processor() -> ProcessorConfig:
    """As published, but that small pictures and frames stay small."""
    published = ProcessorConfig(source=preprocessor_json())
    return replace(published, image_min_pixels=SMALLEST, video_min_pixels=SMALLEST)


def read_voices(data: Path) -> dict[str, dict[str, Any]]:
    """What spk_dict.pt says of each voice of voices.json.

    Raises:
        OmniError: a file is missing or damaged.
    """
    found = {}
    for number, (name, facts) in enumerate(read_json_object(data / "voices.json").items()):
        sound = load_audio(str(data / facts["reference"]), sampling_rate=RATE)
        found[name] = {
            "bos_token": FIRST_VOICE + number,
            "cond": np.asarray(facts["speaker"], np.float32)[None],
            "ref_mel": voice_mel(sound, name=facts["reference"])[None],
        }
    return found


if __name__ == "__main__":
    run_main(main, Args)
