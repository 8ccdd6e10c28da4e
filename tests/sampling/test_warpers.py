"""Processed logits equal those of transformers' warpers, in its order."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omni_jax.errors import PromptError
from omni_jax.presets import preset
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech_options import CODE_SAMPLING
from omni_jax.sampling.warpers import WarperOptions, draw, warp

VOCAB = 64


def options(rows: int, **values) -> WarperOptions:
    defaults = dict(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=0)
    kinds = dict(temperature=np.float32, top_k=np.int32, top_p=np.float32, repetition_penalty=np.float32, seed=np.int32)
    return WarperOptions(
        **{name: jnp.full(rows, values.get(name, default), kinds[name]) for name, default in defaults.items()}
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(1, VOCAB),
    top_p=st.floats(0.05, 1.0),
    penalty=st.floats(0.5, 2.0),
)
def test_processed_logits_equal_the_reference(seed, temperature, top_k, top_p, penalty):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, VOCAB)).astype(np.float32) * 3
    history = rng.integers(0, VOCAB, (3, 10))
    suppressed = np.zeros(VOCAB, bool)
    suppressed[5] = True
    seen = np.zeros((3, VOCAB), bool)
    seen[np.arange(3)[:, None], history] = True

    steps = [RepetitionPenaltyLogitsProcessor(penalty), SuppressTokensLogitsProcessor([5])]
    steps += [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k)]
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = LogitsProcessorList(steps)(torch.from_numpy(history), torch.from_numpy(logits.copy())).numpy()

    chosen = options(3, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    ours = np.asarray(warp(jnp.asarray(logits), jnp.asarray(seen), chosen, jnp.asarray(suppressed)))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


TALKER = preset("tiny").talker_config


@pytest.fixture(scope="module")
def talker_processors():
    """What the published generation loop itself puts together for the Talker's published settings."""
    settings = transformers.GenerationConfig(
        do_sample=True,
        num_beams=1,
        temperature=0.9,
        top_k=40,
        top_p=0.8,
        repetition_penalty=1.05,
        suppress_tokens=[TALKER.tts_codec_start_token_id],
    )
    loop = transformers.GenerationMixin()
    loop.config = transformers.PreTrainedConfig()
    return loop._get_logits_processor(settings, input_ids_seq_length=1, device="cpu")


def codec_logits(kind: str, rng: np.random.Generator) -> np.ndarray:
    """float32 [1, codes] of one kind."""
    logits = rng.normal(size=(1, TALKER.vocab_size)).astype(np.float32) * 3
    if kind == "equal values":
        return np.round(logits)
    if kind == "all equal":
        return np.full_like(logits, logits[0, 0])
    if kind == "huge":
        return logits * np.float32(1e35)
    if kind == "some impossible":
        return np.where(rng.random(logits.shape) < 0.7, -np.inf, logits)
    if kind == "one certain":
        logits[0, rng.integers(TALKER.vocab_size)] = 3e38
    return logits


@pytest.mark.parametrize("kind", ["drawn", "equal values", "all equal", "huge", "some impossible", "one certain"])
def test_codes_are_processed_as_the_published_loop_does(kind, talker_processors):
    """The Talker's settings, after the ids that stand for its prompt and codes of its own; 20 cases of each kind.

    Where equal values lie on the border of top-p, the reference keeps those that its sort happens to put last. Ours
    keeps them all.
    """
    assert [type(one) for one in talker_processors] == [
        RepetitionPenaltyLogitsProcessor,
        SuppressTokensLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    ]
    suppressed = np.arange(TALKER.vocab_size) == TALKER.tts_codec_start_token_id
    prompt = [*[TALKER.tts_codec_mask_token_id] * 7, TALKER.tts_codec_pad_token_id, TALKER.tts_codec_start_token_id]
    chosen = options(
        1,
        temperature=CODE_SAMPLING.temperature,
        top_k=CODE_SAMPLING.top_k,
        top_p=CODE_SAMPLING.top_p,
        repetition_penalty=CODE_SAMPLING.repetition_penalty,
    )
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits = codec_logits(kind, rng)
        history = np.concatenate([prompt, rng.integers(0, 128, rng.integers(0, 30))])[None]
        seen = np.zeros(logits.shape, bool)
        seen[0, history[0]] = True
        theirs = talker_processors(torch.from_numpy(history), torch.from_numpy(logits.copy())).numpy()
        ours = np.asarray(warp(jnp.asarray(logits), jnp.asarray(seen), chosen, jnp.asarray(suppressed)))
        kept, differs = np.isfinite(theirs), np.isfinite(ours) != np.isfinite(theirs)
        np.testing.assert_allclose(ours[kept], theirs[kept], rtol=1e-6)
        np.testing.assert_allclose(ours[differs], theirs[kept].min(), rtol=1e-6)  # the border, -inf would fail
        assert kept.sum() >= 1 and not ours[suppressed[None]] > -np.inf
        if kind not in ("equal values", "all equal"):
            assert not differs.any()


def test_ids_of_the_prompt_are_penalised_and_the_start_is_never_drawn(talker_processors):
    """The id that ends speech stands in the prompt, so it is less likely from the first code on."""
    rows = TALKER.tts_codec_pad_token_id, TALKER.tts_codec_start_token_id, TALKER.tts_codec_end_token_id
    logits = np.full((1, TALKER.vocab_size), -5, np.float32)
    logits[0, list(rows)] = 2.1, 9.0, 2.1
    seen = np.zeros(logits.shape, bool)
    seen[0, list(rows[:2])] = True
    suppressed = np.arange(TALKER.vocab_size) == TALKER.tts_codec_start_token_id
    chosen = options(1, temperature=0.9, top_k=40, top_p=1.0, repetition_penalty=1.05)
    ours = np.asarray(warp(jnp.asarray(logits), jnp.asarray(seen), chosen, jnp.asarray(suppressed)))[0]
    np.testing.assert_allclose(ours[[rows[0], rows[2]]], [2.0 / 0.9, 2.1 / 0.9], rtol=1e-6)
    assert ours[rows[1]] == -np.inf


def test_a_greedy_row_beside_a_sampled_one_is_untouched():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, VOCAB)), jnp.float32)
    mixed = options(2, top_k=3).replace(temperature=jnp.asarray([0.0, 1.0]))
    warped = warp(logits, jnp.zeros((2, VOCAB), bool), mixed)
    np.testing.assert_array_equal(warped[0], logits[0])
    assert np.isfinite(warped[1]).sum() == 3
    assert draw(warped, mixed, jnp.zeros(2, jnp.int32))[0] == jnp.argmax(logits[0])


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.2]]))
    rows = 4000
    chosen = options(rows, temperature=1.0).replace(seed=jnp.arange(rows, dtype=jnp.int32))
    tokens = draw(jnp.tile(logits, (rows, 1)), chosen, jnp.zeros(rows, jnp.int32))
    np.testing.assert_allclose(np.bincount(tokens, minlength=3) / rows, [0.5, 0.3, 0.2], atol=0.03)


def test_a_draw_depends_on_seed_and_step_alone():
    logits = jnp.zeros((4, VOCAB))
    chosen = options(4, temperature=1.0).replace(seed=jnp.asarray([1, 2, 1, 1]))
    tokens = draw(logits, chosen, jnp.asarray([0, 0, 0, 1]))
    assert tokens[0] == tokens[2]
    assert len({int(tokens[0]), int(tokens[1]), int(tokens[3])}) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_an_option_out_of_range_is_named(wrong):
    with pytest.raises(PromptError, match=next(iter(wrong))):
        SamplingOptions(**wrong)
