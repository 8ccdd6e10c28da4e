"""One sampler and one PyTorch reference for all sampling tests, with media encoded to files and decoded again."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import packing, vision_pieces
from omni_jax.interop import reference
from omni_jax.sampling import generate, live, speech
from omni_jax.sampling.load import load_sampler
from tests.input_pipeline.media_files import picture, tone, write_audio, write_film, write_image

SIZES_IN_USE = packing.BUCKETS
# Fewer sizes than in use, so that tests share what they compile.
FEW = dataclasses.replace(
    packing.BUCKETS,
    batch=(1, 4, 32),
    cache=(1024, 2048, 32768),
    audio_blocks=(1, 6, 24, 6144),
    patches=(256, 640, 2048, 196608),
    windows=(8, 64, 16384),
    frames=(4, 8192),
)


@pytest.fixture(scope="module", autouse=True)
def few_sizes():
    with pytest.MonkeyPatch.context() as patch:
        for module in (packing, vision_pieces, generate, live):
            patch.setattr(module, "BUCKETS", FEW)
        # a live session's Talker has a cache larger than the Thinker's: the other Talkers share its size
        patch.setattr(speech, "BUCKETS", dataclasses.replace(FEW, cache=FEW.cache[1:]))
        yield


@pytest.fixture
def sizes_in_use(monkeypatch):
    """The sizes that requests are padded to outside of these tests."""
    for module in (packing, vision_pieces, generate, speech, live):
        monkeypatch.setattr(module, "BUCKETS", SIZES_IN_USE)


@pytest.fixture(scope="session")
def sampler(tiny_checkpoint):
    return load_sampler(tiny_checkpoint[1], chunk=64)


@pytest.fixture(scope="session")
def pytorch_thinker(tiny_checkpoint):
    return reference.load_thinker(tiny_checkpoint[0])


@pytest.fixture(scope="session")
def pad_id(sampler):
    return sampler.tokenizer.token_id("<|endoftext|>")


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> dict[str, Path]:
    """Files by name."""
    folder = tmp_path_factory.mktemp("media")

    def sound(name: str, seconds: float) -> Path:
        swept = np.sin(np.arange(round(seconds * 16000)) ** 2 * 2e-6) * 0.4
        return write_audio(folder / name, swept.astype(np.float32), 16000)

    frames = [picture(120, 160, seed=index) for index in range(15)]  # 3 s at 5 frames a second
    return {
        "wide": write_image(folder / "wide.png", picture(90, 220)),
        "tall": write_image(folder / "tall.jpg", picture(200, 100, seed=1)),
        "short": sound("short.wav", 0.7),
        "block": sound("block.flac", 2.0),
        "long": sound("long.wav", 31.0),
        "silent": write_film(folder / "silent.mp4", frames[:10], fps=5),
        "talking": write_film(folder / "talking.mkv", frames, fps=5, sound=tone(3.0, 48000), sound_rate=48000),
    }


@pytest.fixture(scope="session")
def conversation(media):
    """Messages of the prompts that parity is proved on, by name."""

    def text(words):
        return {"type": "text", "text": words}

    def image(name):
        return {"type": "image", "image": media[name]}

    def audio(name):
        return {"type": "audio", "audio": media[name]}

    def video(name, **options):
        return {"type": "video", "video": media[name], **options}

    def ask(*content):
        return [{"role": "user", "content": list(content)}]

    heard = {"use_audio": True}
    return {
        "text": ask(text("Hello, how are you today?")),
        "image": ask(image("wide"), text("What is it?")),
        "two images": ask(image("wide"), text("and"), image("tall"), text("Which is larger?")),
        "audio shorter than a block": ask(audio("short")),
        "audio of one block": ask(audio("block"), text("What do you hear?")),
        "audio of 31 s": ask(audio("long"), text("Describe it.")),
        "silent film": ask(video("silent"), text("What happens?")),
        "film with sound": ask(text("Look and listen."), video("talking", **heard), text("What happens?")),
        "all together": ask(image("tall"), audio("short"), video("talking", **heard), text("Compare them.")),
        "several turns": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": [image("wide"), text("What is it?")]},
            {"role": "assistant", "content": "A pattern of colours."},
            {"role": "user", "content": [audio("block"), text("And this?")]},
        ],
    }
