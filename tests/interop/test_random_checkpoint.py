"""Random checkpoints load in PyTorch, answer in their own words, and are the same every time."""

import builtins
import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5OmniForConditionalGeneration

from omni_jax.config_json import config_from_dict, read_config, read_processor_config
from omni_jax.errors import CheckpointError
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.random_checkpoint import (
    SIZES,
    SPEAKERS,
    make_random_checkpoint,
    published_dict,
    random_config,
)
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import torch_shapes

QUESTION = [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What is it?"}]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "tiny"
    assert make_random_checkpoint(folder, "tiny") == read_config(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return Qwen2_5OmniForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def prompt(folder):
    """Ids of a question about a sound, its placeholder repeated for 2 s of sound."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|audio_bos|>"
    )
    ids = tokenizer(text.replace("<|AUDIO|>", 50 * "<|AUDIO|>"), return_tensors="pt").input_ids
    assert (ids == 1003).sum() == 50
    return ids


def test_the_folder_has_the_published_form(folder):
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "preprocessor_config.json", "spk_dict.pt", st.INDEX}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.json"}
    found = {name: tensor.shape for name, tensor in st.read_folder(folder).items()}
    assert found == torch_shapes(table(read_config(folder)))
    assert read_processor_config(folder).num_mel_bins == 128
    speakers = torch.load(folder / "spk_dict.pt", weights_only=True)
    assert {name: speaker["bos_token"] for name, speaker in speakers.items()} == SPEAKERS
    assert all(s["cond"].shape == (1, 192) and s["ref_mel"].shape == (1, 400, 80) for s in speakers.values())


def test_token_ids_of_configuration_and_tokenizer_agree(folder):
    config = read_config(folder)
    thinker, talker = config.thinker_config, config.talker_config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = {
        "<|AUDIO|>": thinker.audio_token_id,
        "<|IMAGE|>": thinker.image_token_id,
        "<|VIDEO|>": thinker.video_token_id,
        "<|audio_bos|>": thinker.audio_start_token_id,
        "<|audio_eos|>": thinker.audio_end_token_id,
        "<|vision_bos|>": thinker.vision_start_token_id,
        "<|vision_eos|>": thinker.vision_end_token_id,
        "<|im_end|>": json.loads((folder / "generation_config.json").read_text())["eos_token_id"],
    }
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in named} == named
    beyond = (talker.tts_text_start_token_id, talker.tts_text_end_token_id, *SPEAKERS.values())
    assert all(len(tokenizer) <= token < thinker.text_config.vocab_size for token in beyond)
    codes = (talker.tts_codec_start_token_id, talker.tts_codec_end_token_id, talker.tts_codec_mask_token_id)
    assert all(config.token2wav_config.dit_config.num_embeds < code < talker.vocab_size for code in codes)


@pytest.mark.parametrize("text", ["Hello, world!", "naïve Ünïcode 你好 🎵\n\t x = 1", "ab" * 30])
def test_the_tokenizer_keeps_every_text(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text).input_ids
    assert max(ids) < 1000 and tokenizer.decode(ids) == text


def test_transformers_reads_the_sections_of_the_rotary_embedding(model):
    config = read_config(model.name_or_path)
    for ours, theirs in (
        (config.thinker_config.text_config, model.config.thinker_config.text_config),
        (config.talker_config, model.config.talker_config),
    ):
        assert tuple(theirs.rope_parameters["mrope_section"]) == ours.mrope_section
        assert theirs.rope_parameters["rope_theta"] == ours.rope_theta
    dit = model.config.token2wav_config.dit_config
    assert list(dit.look_backward_layers) == [0, 2] and dit.hidden_size == 64


def test_answers_are_varied_and_decided(model, prompt):
    mel = torch.randn(1, 128, 200, generator=torch.Generator().manual_seed(1))
    inputs = {"feature_attention_mask": torch.ones(1, 200, dtype=torch.long)}
    answers, gaps = [], []
    for features in (mel, mel.flip(2)):
        out = model.thinker.generate(
            prompt,
            input_features=features,
            **inputs,
            max_new_tokens=16,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        answers.append(out.sequences[0, prompt.shape[1] :].tolist())
        best = torch.stack([score[0].topk(2).values for score in out.scores])
        gaps += (best[:, 0] - best[:, 1]).tolist()
    assert np.mean(gaps) > 0.4  # against differences of 1e-4 between implementations
    assert len(set(answers[0])) > 10
    assert answers[0] != answers[1], "the sound must matter"
    assert max(answers[0]) <= 1002


def test_pictures_matter_to_the_embeddings(model):
    grid = torch.tensor([[1, 4, 4]])
    embeddings = [
        model.thinker.get_image_features(
            torch.randn(16, 1176, generator=torch.Generator().manual_seed(seed)), grid
        ).pooler_output
        for seed in (0, 1)
    ]
    first, second = (torch.cat(list(e)) if isinstance(e, (tuple, list)) else e for e in embeddings)
    assert 0.3 < first.std() < 3
    assert (first - second).std() > 0.3


def test_speech_is_audible_and_unclipped(model, folder):
    voice = torch.load(folder / "spk_dict.pt", weights_only=True)["Chelsie"]
    torch.manual_seed(0)
    codes = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        waveform = model.token2wav(codes, conditioning=voice["cond"], reference_mel=voice["ref_mel"], num_steps=2)
    assert waveform.numel() == 12 * 480
    assert 0.05 < waveform.std() < 0.5 and (waveform.abs() >= 1).float().mean() < 0.05


def test_the_same_seed_gives_the_same_folder(folder, tmp_path):
    make_random_checkpoint(tmp_path / "again", "tiny")
    make_random_checkpoint(tmp_path / "other", "tiny", seed=1, talker=False)
    for path in folder.iterdir():
        if path.name != "spk_dict.pt":
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    name = "thinker.lm_head.weight"
    one, other = (st.read_folder(path)[name].read() for path in (folder, tmp_path / "other"))
    assert not np.array_equal(one, other)


def test_a_checkpoint_without_a_voice(tmp_path):
    config = make_random_checkpoint(tmp_path / "mute", "tiny", talker=False, dtype="bfloat16")
    assert not config.speaks and config == read_config(tmp_path / "mute")
    tensors = st.read_folder(tmp_path / "mute")
    assert {name.split(".")[0] for name in tensors} == {"thinker"}
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    assert not Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "mute").has_talker


@pytest.mark.parametrize(
    "size, low, high",
    [("tiny", 1e6, 3e6), ("small", 10e6, 30e6), ("bench", 100e6, 300e6), ("speech", 800e6, 1300e6)],
)
def test_sizes(size, low, high):
    config = random_config(size)
    assert config_from_dict(published_dict(config)) == config
    assert low < sum(entry.size for entry in table(config)) < high
    assert size in SIZES


def test_requests_that_cannot_be_met(folder, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="not empty"):
        make_random_checkpoint(folder)
    with pytest.raises(CheckpointError, match="tiny, small, bench, speech"):
        make_random_checkpoint(tmp_path / "x", "huge")

    def no_torch(name, *args, **options):
        if name == "torch":
            raise ImportError("No module named 'torch'", name="torch")
        return real(name, *args, **options)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(CheckpointError, match="parity"):
        make_random_checkpoint(tmp_path / "x")
