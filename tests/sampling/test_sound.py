"""Sound by blocks: streamed equals offline, whatever the arrival, the neighbours and the place of the end."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.config import BigVGANConfig, Token2WavConfig
from omni_jax.errors import ConfigError, OmniError
from omni_jax.models import bigvgan
from omni_jax.models.bigvgan import WindowPlan, receptive_field_frames
from omni_jax.models.flow import FlowOptions
from omni_jax.sampling import token2wav as programs
from omni_jax.sampling.sound import WINDOWS_PER_CALL, SoundStreams
from omni_jax.sampling.sound_programs import vocode_windows
from omni_jax.sampling.token2wav import Token2Wav, vocode
from omni_jax.sampling.voices import Speaker
from tests.models.token2wav_reference import DIT, our_params, published_model

# 240 samples a frame in few layers, which compile soon.
VOCODER = BigVGANConfig(
    mel_dim=DIT.mel_dim,
    upsample_initial_channel=16,
    upsample_rates=(15, 16),
    upsample_kernel_sizes=(25, 26),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
)
# As far a reach as the published one, whose widest residual blocks these are.
FAR_VOCODER = BigVGANConfig(
    mel_dim=8, upsample_initial_channel=64, resblock_kernel_sizes=(11,), resblock_dilation_sizes=((1, 3, 5),)
)
QUICK = FlowOptions("euler", 3)
BLOCK, CODE = 12, 480  # codes of a block, samples of a code


def vocoder_params(config):
    """Weights of which every one is away from its neutral value, for a waveform well inside the clamp."""
    shapes = jax.eval_shape(lambda key: nn.unbox(bigvgan.init_params(key, config)), jax.random.key(0))
    rng = np.random.default_rng(0)

    def leaf(shape):
        fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 10
        return jnp.asarray(rng.normal(size=shape.shape) * 0.9 / fan_in**0.5, jnp.float32)

    return jax.tree.map(leaf, shapes)


@pytest.fixture(scope="module")
def model():
    params = our_params(published_model(DIT), DIT) | {"bigvgan": vocoder_params(VOCODER)}
    return Token2Wav(params, Token2WavConfig(DIT, VOCODER))


@pytest.fixture(scope="module")
def speakers():
    rng = np.random.default_rng(1)

    def speaker(name):
        return Speaker(
            name,
            0,
            rng.normal(size=DIT.enc_emb_dim).astype(np.float32),
            rng.normal(-4, 2, (30, DIT.mel_dim)).astype("f4"),
        )

    return [speaker("one"), speaker("two")]


def some_codes(count, seed=0):
    return np.random.default_rng(seed).integers(0, DIT.num_embeds + 1, count).tolist()


def pieces(codes, sizes):
    """`codes` cut into pieces of the given sizes, over and over."""
    start, turn = 0, 0
    while start < len(codes):
        yield codes[start : start + sizes[turn % len(sizes)]]
        start, turn = start + sizes[turn % len(sizes)], turn + 1


def in_rows(sounds, rows):
    """Waveform of each row; every sound begins where the one before it ended, and the last says so."""
    parts = [[sound for sound in sounds if sound.row == row] for row in range(rows)]
    for own in parts:
        assert [sound.start for sound in own] == np.cumsum([0] + [sound.count for sound in own])[:-1].tolist()
        assert [sound.last for sound in own] == [False] * (len(own) - 1) + [True]
    return [np.concatenate([sound.wait() for sound in own]) for own in parts]


def streamed(streams, rows, sizes):
    """Waveforms of rows of codes that come in turn, a piece each, with a dispatch after every piece."""
    sounds = []
    waiting = {row: list(pieces(codes, sizes)) or [[]] for row, codes in enumerate(rows)}
    while waiting:
        for row in list(waiting):
            piece = waiting[row].pop(0)
            streams.push(row, piece, last=not waiting[row])
            sounds += streams.dispatch()
            if not waiting[row]:
                del waiting[row]
    return in_rows(sounds, len(rows))


ARRIVALS = {"one at a time": [1], "by block": [12], "in threes": [3], "unevenly": [5, 40, 1, 0, 17], "at once": [1000]}


@pytest.mark.parametrize("sizes", ARRIVALS.values(), ids=ARRIVALS)
def test_streamed_equals_offline(model, speakers, sizes):
    codes = some_codes(65)
    offline = model.block(codes, speakers[0], seed=7, options=QUICK)
    assert 0.01 < offline.std() < 0.7
    (stream,) = streamed(SoundStreams(model, speakers[:1], [7], QUICK), [codes], sizes)
    np.testing.assert_array_equal(stream, offline)


@pytest.mark.parametrize("sizes", ARRIVALS.values(), ids=ARRIVALS)
def test_a_row_in_a_batch_is_what_it_is_alone(model, speakers, sizes):
    rows, voices, seeds = [some_codes(40, 1), [], some_codes(65, 2), some_codes(5, 3)], [0, 1, 1, 0], [3, 4, 5, 5]
    voices = [speakers[i] for i in voices]
    alone = [model.block(codes, voice, seed=seed, options=QUICK) for codes, voice, seed in zip(rows, voices, seeds)]
    one_by_one = streamed(SoundStreams(model, voices, seeds, QUICK, batched=False), rows, sizes)
    together = streamed(SoundStreams(model, voices, seeds, QUICK, batched=True), rows, sizes)
    for row, codes in enumerate(rows):
        assert alone[row].shape == (CODE * len(codes),)
        np.testing.assert_array_equal(one_by_one[row], alone[row])
        np.testing.assert_allclose(together[row], alone[row], atol=1e-5)


@pytest.mark.parametrize("place", range(1, BLOCK + 1))
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_end_may_lie_anywhere_in_a_block(model, speakers, blocks, place):
    codes = some_codes(BLOCK * blocks + place, seed=place)
    offline = model.block(codes, speakers[1], options=QUICK)
    assert offline.shape == (CODE * len(codes),)
    (stream,) = streamed(SoundStreams(model, speakers[1:], [0], QUICK), [codes], [1])
    np.testing.assert_array_equal(stream, offline)
    np.testing.assert_allclose(model.block(codes, speakers[1], options=QUICK, batched=True), offline, atol=1e-5)
    assert np.abs(offline[-CODE:]).max() > 1e-3  # the last code is heard


def test_the_end_may_come_after_the_last_code(model, speakers):
    codes = some_codes(3 * BLOCK)
    streams = SoundStreams(model, speakers[:1], [0], QUICK)
    streams.push(0, codes)
    sounds = streams.dispatch()
    assert not any(sound.last for sound in sounds)
    assert streams.dispatch() == []
    streams.push(0, [], last=True)
    sounds += streams.dispatch()
    assert streams.dispatch() == []
    (stream,) = in_rows(sounds, 1)
    np.testing.assert_array_equal(stream, model.block(codes, speakers[0], options=QUICK))


def test_the_first_sound_comes_with_the_twenty_fourth_code(model, speakers):
    streams, heard = SoundStreams(model, speakers[:1], [0], QUICK), {}
    for number, code in enumerate(some_codes(60), start=1):
        streams.push(0, [code])
        for sound in streams.dispatch():
            heard[number] = (sound.start, sound.count)
    # 40 ms with the first block and its look-ahead, then a block's 240 ms with each
    assert heard == {24: (0, 960), 36: (960, 5760), 48: (6720, 5760), 60: (12480, 5760)}


def test_an_utterance_without_codes_ends_at_once(model, speakers):
    assert model.block([], speakers[0]).shape == (0,)
    streams = SoundStreams(model, speakers[:1], [0], QUICK)
    assert streams.dispatch() == []
    streams.push(0, [], last=True)
    (sound,) = streams.dispatch()
    assert (sound.count, sound.last, sound.mel) == (0, True, None)
    assert sound.wait().shape == (0,)
    assert streams.dispatch() == []


def mel_of(model, codes, speaker, seed=0, options=QUICK):
    """[blocks, 24, M], and how many frames are real."""
    streams = SoundStreams(model, [speaker], [seed], options)
    streams.push(0, codes, last=True)
    sounds = streams.dispatch()
    return np.stack([sound.mel for sound in sounds]), sum(sound.mel_frames for sound in sounds)


def test_a_block_of_mel_depends_on_two_blocks_back_and_one_ahead(model, speakers):
    codes = np.asarray(some_codes(7 * BLOCK))
    before, frames = mel_of(model, codes, speakers[0])
    assert frames == 7 * 24
    codes[3 * BLOCK : 4 * BLOCK] = (codes[3 * BLOCK : 4 * BLOCK] + 1) % DIT.num_embeds
    moved = np.abs(mel_of(model, codes, speakers[0])[0] - before).max(axis=(1, 2))
    assert (moved > 0).tolist() == [False, False, True, True, True, True, False]  # the others are equal to the bit


def test_seed_voice_and_place_are_heard(model, speakers):
    codes = some_codes(2 * BLOCK) * 3
    mel = mel_of(model, codes, speakers[0])[0]
    assert np.abs(mel_of(model, codes, speakers[0], seed=1)[0] - mel).max() > 0.1
    assert np.abs(mel_of(model, codes, speakers[1])[0] - mel).max() > 0.1
    assert np.abs(mel[2] - mel[4]).max() > 0.1  # the same codes around, other noise


def test_frames_after_the_end_are_zero_and_unreal(model, speakers):
    mel, frames = mel_of(model, some_codes(BLOCK + 5), speakers[0])
    assert frames == 2 * (BLOCK + 5)
    assert mel[1, :10].any(axis=-1).all()
    assert not mel[1, 10:].any()


def test_the_only_block_of_a_short_utterance_is_its_full_decoding(model, speakers):
    """With nothing outside the window, both decoders solve the same flow."""
    for count in (5, BLOCK):
        block, full = (
            decode(some_codes(count), speakers[0], seed=3, options=QUICK) for decode in (model.block, model.full)
        )
        assert block.shape == full.shape
        np.testing.assert_allclose(block, full, atol=1e-4)


def test_each_row_may_have_its_own_options(model, speakers):
    options = [QUICK, FlowOptions("euler", 3, guidance_scale=0.0), QUICK]
    rows = [some_codes(30, seed) for seed in range(3)]
    streams = SoundStreams(model, [speakers[0]] * 3, [1, 2, 3], options)
    for row, codes in enumerate(rows):
        streams.push(row, codes, last=True)
    together = in_rows(streams.dispatch(), 3)
    for row, codes in enumerate(rows):
        alone = model.block(codes, speakers[0], seed=row + 1, options=options[row])
        np.testing.assert_allclose(together[row], alone, atol=1e-5)
    assert np.abs(together[1] - model.block(rows[1], speakers[0], seed=2, options=QUICK)).max() > 1e-3


def test_neighbours_change_nothing(model, speakers):
    def first_row(neighbour):
        streams = SoundStreams(model, [speakers[0]] * 2, [0, 1], QUICK, batched=True)
        streams.push(0, some_codes(30), last=True)
        streams.push(1, neighbour, last=True)
        return in_rows(streams.dispatch(), 2)[0]

    np.testing.assert_array_equal(first_row(some_codes(30, 8)), first_row(some_codes(30, 9)))


def test_windows_go_in_calls_of_few_sizes(model, speakers):
    streams = SoundStreams(model, speakers, [0, 1], QUICK, batched=True)
    for row, count in enumerate((6, 5)):  # two first blocks, and nine others
        streams.push(row, some_codes(count * BLOCK), last=True)
    streams.dispatch()
    assert (streams.work.mel_windows, streams.work.vocoder_windows) == (11, 11)
    assert streams.work.calls == 2 * len([2, 8, 1])


def test_programs_do_not_grow_in_number(model, speakers):
    def run(seed):
        speaker = dataclasses.replace(speakers[0], vector=speakers[0].vector + seed)
        rows = [some_codes(11 + 29 * seed, seed), some_codes(90, seed)]
        for batched in (False, True):
            streamed(SoundStreams(model, [speaker, speakers[1]], [seed, 99], QUICK, batched=batched), rows, [40])

    def compiled():
        return {program.__name__: program._cache_size() for program in programs.PROGRAMS}

    streams = SoundStreams(model, speakers[:1], [0], QUICK, batched=True)
    streams.push(0, some_codes(BLOCK * (1 + sum(WINDOWS_PER_CALL))), last=True)  # block 0 has programs of its own
    in_rows(streams.dispatch(), 1)
    before = compiled()
    for seed in range(4):
        run(seed)
    assert compiled() == before


def test_a_speaker_is_looked_at_once(model, speakers):
    assert model.voice(speakers[0]) is model.voice(speakers[0])
    assert model.modulation(QUICK) is model.modulation(FlowOptions("euler", 3))


def test_work_and_memory_are_flat_over_five_minutes(model, speakers):
    """Counted after every 8 blocks of an answer of 15,000 codes."""
    streams = SoundStreams(model, speakers[:1], [0], QUICK, batched=True)
    codes, samples, work, held = some_codes(15_000), 0, [], []
    for start in range(0, len(codes), 8 * BLOCK):
        done = dataclasses.replace(streams.work)
        streams.push(0, codes[start : start + 8 * BLOCK], last=start + 8 * BLOCK >= len(codes))
        samples += sum(sound.count for sound in streams.dispatch())
        now = streams.work
        work.append(
            (now.mel_windows - done.mel_windows, now.vocoder_windows - done.vocoder_windows, now.calls - done.calls)
        )
        held.append(streams.held_bytes)
    assert samples == 300 * 24_000
    assert work[0] == (7, 7, 2 * len([1, 4, 2])) and work[-1] == (3, 3, 2 * len([2, 1]))  # the look-ahead comes last
    assert set(work[1:-1]) == {(8, 8, 2)}
    assert set(held[:-1]) == {4 * 3 * BLOCK + 4 * 3 * 24 * DIT.mel_dim}  # codes and mel of three blocks
    assert held[-1] == 0


@pytest.mark.parametrize("context, sounds_after", [(20, 24), (34, 36)])
def test_the_plan_of_windows_covers_every_frame_once(context, sounds_after):
    plan = WindowPlan(24, context)
    for frames in range(2, 24 * 8 + 1, 2):
        last, at = (frames - 1) // 24, 0
        for index in range(last + 1):
            end = frames if index == last else None
            first, stop = plan.span(index, end)
            start, known = plan.start(index), min((index + 1) * 24, frames)
            assert first == at and stop - first <= plan.spoken
            assert start == 0 or first - start >= context
            assert known - start <= plan.blocks * 24
            assert stop == frames if index == last else known - stop >= context or stop == first
            at = stop
        assert at == frames
    assert [plan.span(index)[1] > 0 for index in range(2)] == [sounds_after == 24, True]


def test_a_negative_context_is_refused():
    with pytest.raises(ConfigError, match="not -1"):
        WindowPlan(24, -1)


def spoken_by_windows(mel, config, params, context):
    """A vocoder's windows, one after the other, over a known mel [T, M]."""
    plan, out = WindowPlan(24, context), []
    padded = jnp.pad(mel, ((0, plan.blocks * 24), (0, 0)))
    last = (len(mel) - 1) // 24
    for index in range(last + 1):
        start, (first, stop) = plan.start(index), plan.span(index, len(mel) if index == last else None)
        blocks = tuple(padded[start + 24 * i : start + 24 * (i + 1)] for i in range(plan.blocks))
        length = min(24 * (index + 1), len(mel)) - start
        wave = vocode_windows(
            params, (blocks,), np.int32([length]), np.int32([first - start]), config=config, frames=plan.spoken
        )
        out.append(wave[0, : 240 * (stop - first)])
    return np.concatenate(out)


def whole_and_windows(config, params, context, frames, padded):
    mel = jnp.asarray(np.random.default_rng(0).normal(-4, 3, (frames, config.mel_dim)), jnp.float32)
    filled = jnp.pad(mel, ((0, padded - frames), (0, 0)))
    whole = np.asarray(vocode(params, filled[None], np.int32([frames]), config=config)[0, : frames * 240])
    assert 0.02 < whole.std() < 0.6  # audible, and not against the clamp
    return whole, spoken_by_windows(mel, config, params, context)


def test_the_vocoder_by_windows_is_the_whole_at_the_default_context():
    assert receptive_field_frames(FAR_VOCODER) == 34
    params = vocoder_params(FAR_VOCODER)
    params["conv_out"]["kernel"] *= 0.02  # such weights are loud
    whole, windows = whole_and_windows(FAR_VOCODER, params, programs.VOCODER_CONTEXT, 116, 116)
    np.testing.assert_allclose(windows, whole, atol=1e-5)


@pytest.mark.parametrize("frames", [2, 24, 26, 44, 48, 70, 96])
def test_the_vocoder_by_windows_is_the_whole_wherever_it_ends(model, frames):
    """A context beyond its reach leaves nothing but rounding, which also shows that the crops are right."""
    assert receptive_field_frames(VOCODER) <= programs.VOCODER_CONTEXT
    whole, windows = whole_and_windows(VOCODER, model.bigvgan, programs.VOCODER_CONTEXT, frames, 96)
    np.testing.assert_allclose(windows, whole, atol=2e-6)


def test_too_little_context_is_heard(model):
    whole, windows = whole_and_windows(VOCODER, model.bigvgan, 1, 96, 96)
    assert np.abs(windows - whole).max() > 1e-3


def test_a_crop_may_reach_beyond_its_window(model):
    block, frames = jnp.zeros((24, DIT.mel_dim)), model.plan.spoken

    def crop(offset):
        lengths, offsets = np.int32([72]), np.int32([offset])
        return vocode_windows(model.bigvgan, ((block,) * 3,), lengths, offsets, config=VOCODER, frames=frames)[0]

    np.testing.assert_array_equal(crop(60)[: 12 * 240], crop(28)[32 * 240 :])
    assert not crop(60)[12 * 240 :].any()


def test_codes_that_the_dit_does_not_know_are_refused_and_not_taken(model, speakers):
    streams = SoundStreams(model, speakers[:1], [0], QUICK)
    streams.push(0, some_codes(10))
    for bad, message in (
        ([1, 2, 41], r"code 41 at index \(2,\)"),
        ([-1], r"code -1 at index \(0,\)"),
        ([0.5], "integers"),
    ):
        with pytest.raises(OmniError, match=message):
            streams.push(0, bad, last=True)
    streams.push(0, some_codes(24)[10:], last=True)
    (stream,) = in_rows(streams.dispatch(), 1)
    np.testing.assert_array_equal(stream, model.block(some_codes(24), speakers[0], options=QUICK))
    with pytest.raises(OmniError, match=r"index \(1,\)"):
        model.block([3, 41], speakers[0])


def test_a_row_that_has_ended_takes_no_more(model, speakers):
    streams = SoundStreams(model, speakers, [0, 1], QUICK)
    streams.push(0, [1], last=True)
    with pytest.raises(ValueError, match="Row 0 has had its last codes"):
        streams.push(0, [2])
    streams.push(1, [2])


def test_rows_must_match_in_number(model, speakers):
    with pytest.raises(ValueError, match="2 speakers, 1 seeds and 2 options"):
        SoundStreams(model, speakers, [0], QUICK)


def test_seconds_are_told_by_stage(model, speakers):
    seconds = {}
    model.block(some_codes(30), speakers[0], options=QUICK, seconds=seconds)
    assert set(seconds) == {"dit", "bigvgan"} and min(seconds.values()) > 0


def test_a_mel_that_is_not_finite_stays_in_its_row(model, speakers):
    """Rows of a call share nothing, not even a not-a-number."""
    broken = dataclasses.replace(speakers[1], vector=np.full_like(speakers[1].vector, np.nan))
    streams = SoundStreams(model, [broken, speakers[0]], [0, 0], QUICK, batched=True)
    for row in range(2):
        streams.push(row, some_codes(30), last=True)
    sounds = in_rows(streams.dispatch(), 2)
    assert not np.isfinite(sounds[0]).all()
    np.testing.assert_allclose(sounds[1], model.block(some_codes(30), speakers[0], options=QUICK), atol=1e-5)
    jax.block_until_ready(sounds[1])
