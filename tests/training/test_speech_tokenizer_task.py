"""Both routes to speech codes can be learnt from sound in wav files, and count what they say they count."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.speech_batch import (
    coded_row,
    empty_coded_row,
    empty_transcribed_row,
    mel_blocks,
    stacked,
    transcribed_row,
    utf8_labels,
)
from omni_jax.config import ProcessorConfig
from omni_jax.errors import ConfigError, DataError
from omni_jax.models import speech_tokenizer as tokenizer
from omni_jax.presets import speech_tokenizer_preset
from omni_jax.training.speech_tokenizer_task import InversionTask, ScratchTask, greedy_text, text_loss
from tests.training.fitting import fit
from tests.training.spoken_sounds import TONES, recorded, sound_of_codes, voice

PROCESSOR = ProcessorConfig()
INVERSION, SCRATCH = (speech_tokenizer_preset("tiny", route) for route in ("inversion", "scratch"))


def fresh(config):
    return {"speech_tokenizer": nn.unbox(jax.jit(tokenizer.init_params, static_argnums=1)(jax.random.key(0), config))}


def toned_clips(folder, count, seed):
    """Wav files of a decoder whose codes are tones, of one block and less, with the codes."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(count):
        codes = rng.integers(0, TONES, 100 if i % 2 == 0 else 73)
        sound = recorded(folder, f"{seed}_{i}", sound_of_codes(codes, seed=i), 16000)
        clips.append(coded_row(sound, codes, 1, PROCESSOR))
    return stacked(clips)


def test_a_decoder_is_inverted_on_the_clips_it_learnt_from_and_on_new_ones(tmp_path):
    task = InversionTask(INVERSION, remat="none")
    train, new = (toned_clips(tmp_path, 8, seed) for seed in (0, 1))
    params, means = fit(task.loss, fresh(INVERSION), train, steps=120, learning_rate=3e-3)
    assert means["accuracy"] == 1 and means["total"] < 0.1
    tokenize = jax.jit(lambda params, mel, frames: tokenizer.codes(params, INVERSION, mel, frames))
    for batch, right in ((train, 1.0), (new, 0.98)):
        codes = np.asarray(tokenize(params["speech_tokenizer"], batch.mel, batch.frames))
        assert ((codes >= 0) == (batch.codes >= 0)).all()
        assert np.mean(codes[codes >= 0] == batch.codes[codes >= 0]) >= right


def test_text_is_recognised_from_the_codes_and_the_mel_restored(tmp_path):
    texts = ([3, 3, 7, 1, 30, 12, 12], [9, 2, 4, 4, 8])  # equal neighbours need a blank between them
    sounds = [recorded(tmp_path, str(i), voice(s, 16000, seed=i), 16000) for i, s in enumerate((2.0, 1.3))]
    batch = stacked([transcribed_row(sound, sound, text, 1, 8, PROCESSOR) for sound, text in zip(sounds, texts)])
    task = ScratchTask(SCRATCH, remat="none")
    params, means = fit(task.loss, fresh(SCRATCH), batch, steps=300, learning_rate=4e-3, warmup=50)
    assert means["mel"] < 0.7  # of a mel that lies 1.2 from its own mean, as the next test says
    model = tokenizer.SpeechTokenizer(SCRATCH)
    variables = {"params": params["speech_tokenizer"]}
    out = jax.jit(lambda mel, frames: model.apply(variables, mel, frames, training=True))(batch.mel, batch.frames)
    assert greedy_text(out) == [list(text) for text in texts]
    real = np.asarray(out.codes) >= 0
    assert len(np.unique(np.asarray(out.codes)[real])) > 8
    frames = np.repeat(real, 2, axis=1)
    mean = batch.target_mel[frames].mean(axis=0)
    assert means["mel"] < 0.7 * np.abs(batch.target_mel[frames] - mean).mean()


def shaped(codes, vocabulary=5, seed=0):
    """A recognition of rows with these codes, with random logits."""
    codes = jnp.asarray(codes)
    logits = jax.random.normal(jax.random.key(seed), (*codes.shape, vocabulary))
    return tokenizer.Tokenized(codes, text_logits=logits)


def test_the_text_loss_is_the_sum_over_all_ways_to_say_it():
    """Two labels in three positions: every path by hand."""
    out = shaped([[0, 0, 0, -1]])
    logs = np.asarray(jax.nn.log_softmax(out.text_logits[0]), np.float64)
    paths = [(1, 2, 2), (1, 1, 2), (0, 1, 2), (1, 0, 2), (1, 2, 0)]
    expected = -np.log(sum(np.exp(sum(logs[t, label] for t, label in enumerate(path))) for path in paths))
    loss, alignable = text_loss(out, jnp.array([[1, 2, 0]]))
    assert alignable[0] == 1
    np.testing.assert_allclose(loss[0], expected / 2, rtol=1e-5)


def test_text_that_has_no_time_does_not_count():
    out = shaped([[0, 0, -1], [0, 0, -1], [0, 0, 0]])
    loss, alignable = text_loss(out, jnp.array([[1, 2], [1, 1], [1, 1]]))
    np.testing.assert_array_equal(alignable, [1, 0, 1])
    assert loss[1] == 0 and (loss[jnp.array([0, 2])] > 0).all()


def test_equal_neighbours_of_the_likeliest_path_are_one_label():
    path = jnp.array([[0, 3, 3, 0, 3, 1, 1]])
    out = tokenizer.Tokenized(jnp.zeros(path.shape, jnp.int32), text_logits=5.0 * jax.nn.one_hot(path, 5))
    assert greedy_text(out) == [[3, 3, 1]]
    silent = out.replace(codes=out.codes.at[:, 4:].set(-1))
    assert greedy_text(silent) == [[3]]


def test_padding_rows_and_places_without_a_code_change_nothing(tmp_path):
    task = InversionTask(INVERSION, remat="none")
    params, loss = fresh(INVERSION), jax.jit(task.loss)
    batch = toned_clips(tmp_path, 3, 0)
    none = np.zeros_like(batch.frames)
    none[:2] = batch.frames[:2]
    padded = loss(params, dataclasses.replace(batch, frames=none)).total
    few = batch.codes.copy()
    few[2] = -1
    unlabelled = loss(params, dataclasses.replace(batch, codes=few)).total
    np.testing.assert_allclose([padded.loss, padded.weight], [unlabelled.loss, 173], rtol=1e-5)


@pytest.mark.parametrize("route", ["inversion", "scratch"])
def test_rows_of_padding_change_neither_the_loss_nor_its_gradient(route):
    if route == "inversion":
        task, none = InversionTask(INVERSION, remat="none"), empty_coded_row(1, PROCESSOR)
        (row,) = (coded_row(sound_of_codes(codes), codes, 1, PROCESSOR) for codes in [np.arange(73) % TONES])
    else:
        task, none = ScratchTask(SCRATCH, remat="none"), empty_transcribed_row(1, 8, PROCESSOR)
        sound = voice(1.3, 16000)
        row = transcribed_row(sound, sound, [3, 3, 7], 1, 8, PROCESSOR)
    params = fresh(task.config)
    slopes = jax.jit(jax.grad(lambda params, batch: task.loss(params, batch).total.mean))
    losses = jax.jit(task.loss)
    alone, beside = losses(params, stacked([row, row])), losses(params, stacked([row, none]))
    assert beside.total.weight * 2 == alone.total.weight
    np.testing.assert_allclose(beside.total.mean, alone.total.mean, rtol=1e-5)
    for ours, other in zip(*(jax.tree.leaves(slopes(params, stacked([row, each]))) for each in (none, row))):
        np.testing.assert_allclose(ours, other, atol=1e-3 * np.abs(other).max() + 1e-7)
    nothing = stacked([none, none])
    assert losses(params, nothing).total.mean == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(slopes(params, nothing)))


def test_a_task_of_the_other_route_is_refused():
    with pytest.raises(ConfigError, match="route scratch, not inversion"):
        InversionTask(SCRATCH)


def test_levels_that_do_not_make_the_codes_are_refused():
    with pytest.raises(ConfigError, match=r"levels = \[8, 8\] make 64 codes, num_codes is 8192"):
        ScratchTask(dataclasses.replace(SCRATCH, levels=(8, 8)))
    with pytest.raises(ConfigError, match="two levels at least"):
        ScratchTask(dataclasses.replace(SCRATCH, levels=(8192, 1)))


def test_sound_that_does_not_fit_its_codes_or_row_is_refused():
    sound = voice(1.0, 16000)
    with pytest.raises(DataError, match="50.0 codes long, but 40 codes"):
        coded_row(sound, np.zeros(40, int), 1, PROCESSOR)
    with pytest.raises(DataError, match="300 mel frames, over the 200"):
        mel_blocks(voice(3.0, 16000), 1, PROCESSOR)
    with pytest.raises(DataError, match="all be above 0"):
        transcribed_row(sound, sound, [1, 0], 1, 8, PROCESSOR)


def test_a_text_of_any_script_has_labels():
    assert utf8_labels("aé") == [98, 196, 170]
    assert max(utf8_labels("嗨🎵")) < speech_tokenizer_preset("large", "scratch").text_vocab_size


def test_the_loss_of_the_labels_is_optax_s():
    """Guards the meaning of its paddings: 1 is padding."""
    out = shaped([[0, 0, 0, 0, -1]])
    loss, _ = text_loss(out, jnp.array([[1, 2, 0]]))
    short = optax.ctc_loss(out.text_logits[:, :4], jnp.zeros((1, 4)), jnp.array([[1, 2]]), jnp.zeros((1, 2)))
    np.testing.assert_allclose(loss * 2, short, rtol=1e-5)
