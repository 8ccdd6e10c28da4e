"""Omni-tiny leaves in the published form: transformers loads it, and answers text, sound and pictures as we do.

transformers renders the prompt, computes features and generates by itself; only its processor is put together by hand,
which needs torchvision otherwise. With random parameters of the checkpoint that training begins with, and with the
trained one where it is shipped.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from examples.omni_tiny import chain, chats, files, start, tokenizer, train_all
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.speech import write_sound
from examples.omni_tiny.training import Training
from input_pipeline.media import load_audio, load_image
from omni_jax.cli.main import main
from omni_jax.interop import random_checkpoint
from omni_jax.interop.import_checkpoint import import_checkpoint
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import flatten
from omni_jax.models.speech_tokenizer import init_params
from omni_jax.presets import preset, speech_tokenizer_preset
from omni_jax.sampling.generate import Sampler
from omni_jax.sampling.options import SamplingOptions
from tests.input_pipeline.media_files import picture, tone, write_image

SHIPPED = train_all.ROOT / "omni_jax" / "assets" / "omni_tiny"
SQUARES = SHIPPED.parent / "demo" / "typed-question.png"
TOKENS = 24
LABELS = np.tile(np.arange(10), 120).astype(np.uint8)


@pytest.fixture(scope="module", params=["random", "shipped"])
def checkpoint(request, tmp_path_factory):
    """A folder of ours."""
    if request.param == "shipped":
        if not SHIPPED.is_dir():
            pytest.skip("no trained checkpoint is shipped")
        return SHIPPED
    folder = tmp_path_factory.mktemp("omni_tiny")
    for name, lines in Training(0, Amounts().scaled(0.001), LABELS).lines().items():
        files.write_lines(folder / f"{name}.jsonl", lines)
    write_sound(folder / "a.flac", tone(4.5, 24_000), 24_000)
    for name in ("transcribed", "recordings"):
        files.write_lines(folder / f"{name}.jsonl", [{"audio": "a.flac", "text": "a"}])
    told = {name: {"speaker": np.arange(192.0).tolist(), "reference": "a.flac"} for name in chain.VOICES}
    (folder / "voices.json").write_text(json.dumps(told))
    tokenizer.main(tokenizer.Args(folder, folder / "tokenizer"))
    with pytest.MonkeyPatch.context() as patch:  # the initialisers take a minute to compile, and media hardly matter
        patch.setattr(start, "random_leaves", lively_leaves)
        patch.setattr(start, "random_tokenizer", empty_tokenizer)
        start.main(start.Args(folder, folder / "tokenizer", folder / "start"))
    return folder / "start"


def lively_leaves(config, paths, *, seed, dtype):
    """Random parameters by which answers depend on media, and the best token is far ahead of the next."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(entry) -> np.ndarray:
        tensors = [random_checkpoint._random(torch, name, entry.shape, config, generator) for name in entry.torch_names]
        found = [entry.transform.to_jax(tensor.numpy()) for tensor in tensors]
        return (found[0] if entry.layers is None else np.stack(found)).astype(dtype)

    return [start.leaf_of(entry.path, drawn(entry)) for entry in table(config) if entry.path in paths]


def empty_tokenizer(seed):
    config = speech_tokenizer_preset("omni-tiny", "scratch")
    shapes = nn.unbox(jax.eval_shape(lambda key: init_params(key, config), jax.random.key(seed)))
    found = flatten({"speech_tokenizer": shapes})
    return {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in found}


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "theirs"
    assert main(["export", "--from", str(checkpoint), "--to", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """Media of the kinds that the model is trained on: pictures of 56 and 112 pixels, a second or two of sound."""
    folder = tmp_path_factory.mktemp("media")
    square = str(write_image(folder / "square.png", picture(56, 56)))
    row = str(write_image(folder / "row.png", picture(56, 112, seed=1)))
    for name, seconds, hertz in (("short", 0.7, 300.0), ("long", 2.6, 500.0)):
        write_sound(folder / f"{name}.flac", tone(seconds, 16_000, hertz=hertz), 16_000)
    short, long = (str(folder / f"{name}.flac") for name in ("short", "long"))
    asked = chats.user(chats.shown(long), chats.words(chats.ASR_PROMPT))
    return {
        "text": [chats.user(chats.words("Please say: The red dog has four apples."))],
        "sound": [{"role": "system", "content": chats.ASR_SYSTEM}, asked],
        "picture": [chats.user(chats.shown(square), chats.words("What number is this?"))],
        "a picture of squares": [chats.user(chats.shown(str(SQUARES)), chats.words("How many shapes do you see?"))],
        "another picture": [chats.user(chats.shown(row), chats.words("What number is this?"))],
        "several turns": [
            chats.user(chats.shown(row), chats.words("What do you see?")),
            chats.assistant("The number is four seven."),
            chats.user(chats.shown(square), chats.shown(short)),
        ],
    }


@dataclass
class Theirs:
    """The published processor's work, with the published classes."""

    folder: Path

    def __post_init__(self):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.pictures = Qwen2VLImageProcessorPil.from_pretrained(self.folder)
        self.sounds = transformers.WhisperFeatureExtractor.from_pretrained(self.folder)
        self.template = json.loads((self.folder / "chat_template.json").read_text())["chat_template"]

    def inputs(self, conversation) -> dict[str, torch.Tensor]:
        text = self.tokenizer.apply_chat_template(
            conversation, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        items = [item for each in conversation if isinstance(each["content"], list) for item in each["content"]]
        images = [load_image(item["image"]) for item in items if item["type"] == "image"]
        sounds = [load_audio(item["audio"], sampling_rate=16_000) for item in items if item["type"] == "audio"]
        found = {}
        if images:
            found |= self.pictures(images=images, return_tensors="pt")
            for grid in found["image_grid_thw"]:
                text = text.replace("<|IMAGE|>", "\ue000" * (int(grid.prod()) // self.pictures.merge_size**2), 1)
        if sounds:
            heard = self.sounds(
                sounds, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
            )
            found |= {"input_features": heard["input_features"], "feature_attention_mask": heard["attention_mask"]}
            for frames in heard["attention_mask"].sum(-1).tolist():
                text = text.replace("<|AUDIO|>", "\ue001" * ((((frames - 1) // 2 + 1) - 2) // 2 + 1), 1)
        text = text.replace("\ue000", "<|IMAGE|>").replace("\ue001", "<|AUDIO|>")
        return found | self.tokenizer(text, return_tensors="pt")


@pytest.fixture(scope="module")
def theirs(exported):
    return Theirs(exported)


@pytest.fixture(scope="module")
def model(exported):
    return transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(exported).eval()


def test_greedy_text_is_the_same(checkpoint, conversations, theirs, model):
    sampler, answers = Sampler.from_checkpoint(checkpoint), {}
    requests = {name: sampler.prepare(each) for name, each in conversations.items()}
    ours = sampler.generate(list(requests.values()), SamplingOptions(max_new_tokens=TOKENS))
    for (name, request), answer in zip(requests.items(), ours, strict=True):
        inputs = theirs.inputs(conversations[name])
        ids = inputs["input_ids"]
        assert ids[0].tolist() == request.token_ids.tolist(), name
        model.thinker.rope_deltas = None  # kept from the last call
        with torch.inference_mode():
            found = model.generate(
                **inputs,
                speaker="heart",
                generation_mode="text",
                thinker_max_new_tokens=TOKENS,
                thinker_do_sample=False,
            )
        assert found[0, ids.shape[1] :].tolist() == answer.token_ids, name
        text = theirs.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == answer.text and text, name
        answers[name] = text
    # media matter; noise is nothing that a trained model could tell apart
    told = [answers[name] for name in ("text", "sound", "picture", "a picture of squares")]
    told = told if checkpoint == SHIPPED else list(answers.values())
    assert len(set(told)) == len(told)


def test_all_parameters_and_voices_arrive(exported, model):
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    assert list(model.speaker_map) == list(chain.VOICES)
    assert model.has_talker and model.dtype == torch.float32


def test_pictures_stay_as_small_as_in_training(theirs):
    """The image processor reads min_pixels; video_min_pixels is ours, and its films need size=... in a call."""
    assert theirs.pictures.size["shortest_edge"] == start.SMALLEST
    assert theirs.pictures(images=[picture(56, 56)], return_tensors="np")["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert json.loads((theirs.folder / "preprocessor_config.json").read_text())["video_min_pixels"] == start.SMALLEST


def test_what_is_ours_in_the_configuration_is_no_hindrance(exported, tmp_path):
    told = json.loads((exported / "config.json").read_text())
    assert {"speech_tokenizer_config", "discriminator_config"} <= set(told)
    config = transformers.AutoConfig.from_pretrained(exported)
    assert type(config) is transformers.Qwen2_5OmniConfig
    assert config.talker_config.vocab_size == preset("omni-tiny").talker_config.vocab_size
    counts = import_checkpoint(exported, tmp_path / "back")  # and we take it back
    assert set(counts) == {entry.component for entry in table(preset("omni-tiny"))}
