"""The workload of a spoken answer: encoders, Thinker, Talker and the decoders of sound, all in memory at once."""

import math
from typing import Any

import jax.numpy as jnp

from input_pipeline.packing import BUCKETS, bucket
from omni_jax.compilation.abstract import array, cache_spec, everywhere, outputs, parameters, placed
from omni_jax.compilation.film import ANSWER_CODES, ANSWER_TOKENS
from omni_jax.compilation.sampling_workloads import CHUNK, Thinking, notes, thinking, warper_shapes
from omni_jax.compilation.workloads import Options, Program, Workload
from omni_jax.errors import ConfigError
from omni_jax.models.bigvgan import WindowPlan
from omni_jax.models.dit import DEFAULT_OPTIONS
from omni_jax.models.dit_block import block_codes, context_blocks
from omni_jax.sampling import sound_programs
from omni_jax.sampling import speech_programs as sp
from omni_jax.sampling.load import TEXT_COMPONENTS
from omni_jax.sampling.sound import WINDOWS_PER_CALL
from omni_jax.sampling.speech import SPEECH_COMPONENTS
from omni_jax.sampling.token2wav import VOCODER_CONTEXT
from omni_jax.sharding.rules import SAMPLING, replicated

_REFERENCE_FRAMES = 400  # of a voice, as published


def speech(options: Options) -> Workload:
    """A film's prompt into both caches, then 128 tokens and 600 codes (12 s of sound) a row.

    Left out are programs that run once and hold little: embedding, media placement, first token and first code, voices.

    Raises:
        ConfigError: the model has no Talker.
    """
    config = options.config
    if not config.speaks:
        raise ConfigError("This model has no Talker, so it has no workload `speech`.")
    here = thinking(options, (*TEXT_COMPONENTS, SPEECH_COMPONENTS[0]))
    sound = parameters(config, SPEECH_COMPONENTS[1:], here.mesh, jnp.float32, split=False)
    kind = jnp.dtype(options.dtype)
    static = dict(config=config.talker_config, dtype=kind, unrolled=False)
    length = bucket(min(here.length + ANSWER_CODES + 2, BUCKETS.cache[-1]), BUCKETS.cache, "cache slots")
    new = static | dict(batch=options.rows, length=length)
    cache = placed(outputs(sp.new_cache, mesh=None, **new), cache_spec(here.mesh), here.mesh)
    talking, reply = _speaking(here, cache, static)

    chunks = -(-here.prompt_tokens // CHUNK)
    block = block_codes(config.token2wav_config.dit_config)
    both, codes = -(-ANSWER_TOKENS // block), -(-ANSWER_CODES // block)
    embeddings, ids, positions, start, lengths = here.chunk()
    rows = options.rows
    talker = here.params["talker"]
    configs = dict(thinker_config=config.thinker_config.text_config, talker_config=config.talker_config)
    loops = dict(dtype=kind, unrolled=False, block=block)
    steps = here.ints()
    programs = (
        *here.encoders(),
        Program(
            "think",
            sp.think,
            (here.params["thinker"], here.state, embeddings, ids, positions, start, lengths, here.flags(rows, CHUNK)),
            here.static,
            times=chunks,
        ),
        Program("hear", sp.hear, (talker, cache, embeddings, ids, positions, start), static, times=chunks),
        Program(
            "converse",
            sp.converse,
            (here.params["thinker"], talker, here.decoding(), talking, reply, steps),
            configs | loops,
            times=both,
            loop=block,
        ),
        Program(
            "talk",
            sp.talk,
            (talker, talking, reply, steps),
            dict(config=config.talker_config) | loops,
            times=codes - both,
            loop=block,
        ),
        *_sound(here, sound, codes),
    )
    resident = {"parameters": {**here.params, **sound}, "cache": (here.state, cache)}
    return Workload(
        programs, resident, here.mesh, SAMPLING, "second of sound", rows * ANSWER_CODES / 50,
        (*notes(here), f"answer: {ANSWER_TOKENS} tokens, {ANSWER_CODES} codes (12 s) a row; sound decoders in float32"),
    )  # fmt: skip


def _speaking(here: Thinking, cache: Any, static: dict[str, Any]) -> tuple[sp.TalkerState, sp.Reply]:
    """The Talker's state after the first code, and the text track beside it."""
    config, rows = static["config"], here.options.rows
    hidden = array((rows, config.hidden_size), static["dtype"], replicated(here.mesh))
    one, vector = here.ints(rows), here.wide()
    warper = everywhere(warper_shapes(rows), here.mesh)
    stops, suppressed = here.ints(2), here.flags(config.vocab_size)
    args = (here.params["talker"], hidden, one, one, warper, one, one, here.flags(rows), stops, suppressed)
    state, *_ = outputs(sp.first_code, *args, mesh=here.mesh, **static)
    reply = sp.Reply(here.wide(rows, 1), one, here.flags(rows), vector, vector)
    return everywhere(state, here.mesh).replace(cache=cache), reply


def _sound(here: Thinking, params: dict[str, Any], blocks: int) -> tuple[Program, Program]:
    """Windows of the DiT and of the vocoder: those of all rows share a call, up to eight."""
    config, rows = here.options.config.token2wav_config, here.options.rows
    dit, place = config.dit_config, replicated(here.mesh)
    windows = next(size for size in WINDOWS_PER_CALL if size <= rows)
    times = blocks * math.ceil(rows / windows)
    names = ("speaker_encoder", "dit")
    weights = {name: params[name] for name in names}
    vector = array((1, dit.enc_emb_dim), jnp.float32, place)
    reference = array((1, _REFERENCE_FRAMES, dit.mel_dim), jnp.float32, place)
    voice = everywhere(outputs(sound_programs.make_voice, weights, vector, reference, mesh=None, config=dit), here.mesh)
    flow = dict(config=dit, options=DEFAULT_OPTIONS)
    modulation = everywhere(outputs(sound_programs.solver_modulation, weights, mesh=None, **flow), here.mesh)
    back, ahead = context_blocks(dit)
    codes = here.ints(windows, (back + 1 + ahead) * block_codes(dit))
    each = here.ints(windows)
    plan = WindowPlan(dit.block_size, VOCODER_CONTEXT)
    mel = array((dit.block_size, dit.mel_dim), jnp.float32, place)
    vocoder = dict(config=config.bigvgan_config, frames=plan.spoken)
    return (
        Program(
            "mel_windows",
            sound_programs.mel_windows,
            (weights, modulation, codes, each, each, (voice,) * windows, each),
            flow | {"back": back},
            times=times,
            split=False,
        ),
        Program(
            "vocode_windows",
            sound_programs.vocode_windows,
            (params["bigvgan"], ((mel,) * plan.blocks,) * windows, each, each),
            vocoder,
            times=times,
            split=False,
        ),
    )
