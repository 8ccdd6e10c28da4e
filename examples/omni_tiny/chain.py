"""The steps by which Omni-tiny is made, in their order: what each reads, what it runs, and what is there afterwards.

All paths are in the folder of the data, where every command runs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from examples.omni_tiny.files import COMPLETE
from examples.omni_tiny.leave_out import KINDS, lines_of, lines_without
from examples.omni_tiny.voices import TALKER
from omni_jax.training.run_config import load_config

CONFIGS = Path(__file__).parent / "configs"
VOICES = tuple(TALKER)
_CODES = tuple(f"codes_{voice}" for voice in VOICES)
MODEL = "model"
# the stages that hear people and are made again without one; phones, after sft, hears them, too
LEFT_OUT = ("pretrain2", "listening", "sft")
GENTLER = 0.5  # than the usual rates, when a model is trained further
SHORTER = 0.5  # of the usual steps, when a person is left out


@dataclass(frozen=True)
class Step:
    """One step.

    after: the steps whose results it reads. module: what `python -m` runs, with `options`.
    result: the file or folder that is there once it has ended, and not before.
    place: what to remove to make it anew. config: the file of a run of training. of: a digest of what it reads that no
    step has made.
    """

    name: str
    after: tuple[str, ...]
    module: str
    options: tuple[str, ...]
    result: str
    place: str
    config: Path | None = None
    of: str = ""

    @property
    def fingerprint(self) -> str:
        """Of what it is told to do. Where things are on this machine does not count: options with absolute paths."""
        words = [word for word, value in zip(self.options, (*self.options[1:], "")) if not _is_place(word, value)]
        text = json.dumps([self.module, words, *filter(None, [self.of])])
        config = "" if self.config is None else self.config.read_text(encoding="utf-8")
        return hashlib.sha256((text + config).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Given:
    """An Omni-tiny that is trained further: its absolute path, and the digest of its parameters."""

    path: str
    digest: str

    @property
    def seed(self) -> int:
        """Other batches and noise than those that it has learnt from."""
        return int(self.digest[:7], 16)


def steps(*, scale: float = 1.0, data: tuple[str, ...] = (), model: Given | None = None) -> list[Step]:
    """All steps.

    Args:
        scale: lengths of all runs are multiplied by this.
        data: more options of make_data.
        model: None to begin with nothing. With a model that is given, what only leads up to one is left out: tokenizer,
            start, sounding, language, lips, talker_first, eyes and pretrain1. `senses` only renews its ears.
    """
    # make_data goes on where it was
    made = Step("data", (), _own("make_data"), ("--to", ".", *data), COMPLETE, COMPLETE)
    return [made, *(_from_nothing(scale) if model is None else _further(scale, model)), *_preferred(scale)]


def _from_nothing(scale: float) -> list[Step]:
    """From data to a Thinker, a Talker and the sound's way."""
    return [
        _made("tokenizer", ("data",), "tokenizer", "--data", ".", "--to", "tokenizer"),
        _made("start", ("tokenizer",), "start", "--data", ".", "--tokenizer", "tokenizer", "--to", "start"),
        _run("speech_tokenizer", ("start",), scale),
        *_all_codes("runs/speech_tokenizer/model", "speech_tokenizer"),
        _made("sounding", ("start", "codes_voiced"), "sounds", "--base", "start", "--data", "coded_voiced.jsonl",
              "--to", "sounding"),
        _run("token2wav", ("sounding", "codes_voiced"), scale),
        _run("vocoder", ("start",), scale),
        _run("language", ("start",), scale),
        _made("lips", ("language", "sounding"), "join", "--base", "runs/language/model", "--take", "talker=sounding",
              "--to", "lips"),
        _run("talker_first", ("lips", *_CODES), scale),
        _run("eyes", ("start",), scale),
        _made("senses", ("language", "speech_tokenizer", "eyes"), "join", "--base", "runs/language/model",
              "--take", "speech_tokenizer=runs/speech_tokenizer/model", "vision_encoder=runs/eyes/model",
              "--ears", "runs/speech_tokenizer/model", "--to", "senses"),
        _run("pretrain1_adapters", ("senses",), scale),
        _run("pretrain1_encoders", ("pretrain1_adapters",), scale),
        _run("pretrain2", ("pretrain1_encoders",), scale),
        _run("listening", ("pretrain2",), scale),
        _run("sft", ("listening",), scale),
        _run("sight", ("sft",), scale),
        _run("glances", ("sight",), scale),
        _run("phones", ("glances",), scale),
        _made("tongue", ("phones", "talker_first"), "join", "--base", "runs/phones/model", "--take",
              "talker=runs/talker_first/model", "--to", "tongue"),
        _run("talker_icl", ("tongue", *_CODES), scale),
    ]  # fmt: skip


def _further(scale: float, model: Given) -> list[Step]:
    """The same from `model`, whose parts are there: more of each stage that can go on, at half of its rate."""

    def more(name: str, *after: str, checkpoint: str = model.path) -> Step:
        rate = load_config(CONFIGS / f"{name}.py").optimizer.learning_rate * GENTLER
        changes = {"checkpoint": checkpoint, "seed": str(model.seed), "data.seed": str(model.seed)}
        # it may be in bfloat16; from one stage to the next nothing is rounded
        changes |= {"model-dtype": "float32", "optimizer.learning-rate": f"{rate:g}"}
        return replace(_run(name, after, scale, changes=changes), of=model.digest)

    before, tokenizer = _codes("before", "voiced", model.path, ("data",)), f"runs/speech_tokenizer/{MODEL}"
    return [
        replace(before, of=model.digest),
        more("speech_tokenizer", "data"),
        *_all_codes(tokenizer, "speech_tokenizer"),
        replace(
            _made("recoded", ("codes_before", "codes_voiced"), "recode", "--base", model.path, "--before",
                  "coded_before.jsonl", "--after", "coded_voiced.jsonl", "--to", "recoded"),
            of=model.digest,
        ),
        more("token2wav", "recoded", "codes_voiced", checkpoint="recoded"),
        more("vocoder", "data"),
        # what the tokenizer has learnt to hear since
        replace(
            _made("senses", ("speech_tokenizer",), "join", "--base", model.path, "--ears", tokenizer,
                  "--dtype", "float32", "--to", "senses"),
            of=model.digest,
        ),
        more("pretrain2", "senses", checkpoint="senses"),
        more("listening", "pretrain2", checkpoint=f"runs/pretrain2/{MODEL}"),
        more("sft", "listening", checkpoint=f"runs/listening/{MODEL}"),
        more("sight", "sft", checkpoint=f"runs/sft/{MODEL}"),
        more("glances", "sight", checkpoint=f"runs/sight/{MODEL}"),
        more("phones", "glances", checkpoint=f"runs/glances/{MODEL}"),
        _made("tongue", ("phones", "recoded", "speech_tokenizer"), "join", "--base", f"runs/phones/{MODEL}", "--take",
              "talker=recoded", f"speech_tokenizer={tokenizer}", "--to", "tongue"),
        more("talker_icl", "tongue", *_CODES, checkpoint="tongue"),
    ]  # fmt: skip


def _preferred(scale: float) -> list[Step]:
    """What makes one model of them, and its preferences and voices."""
    taken = "speaker_encoder=runs/token2wav/model", "dit=runs/token2wav/model"
    taken += "bigvgan=runs/vocoder/model", "discriminator=runs/vocoder/model"  # judges, should it be trained further
    spoken, last = "runs/talker_icl/model", "runs/talker_speaker/model"
    return [
        _made("speaking", ("talker_icl", "token2wav", "vocoder"), "join", "--base", spoken, "--take", *taken,
              "--to", "speaking"),
        Step("prefer", ("speaking",), "omni_jax.cli.main", (
            "prefer", "--checkpoint", "speaking", "--prompts", "hard_prompts.jsonl", "--to", "preferences.jsonl",
            "--samples", "4", "--solver", "euler", "--steps", "6", "--max-codes", "400", "--max-new-tokens", "48",
            # of hard texts most answers have words wrong, and half of the texts no answer that passes usual bounds
            "--max-wer", "0.75", "--margin", "0.08", "--pairs-per-prompt", "3",
        ), "preferences.jsonl", "preferences.jsonl"),
        _run("talker_dpo", ("speaking", "prefer"), scale),
        _run("talker_speaker", ("talker_dpo", *_CODES), scale),
        _made("omni-tiny", ("talker_speaker",), "join", "--base", last, "--dtype", "bfloat16", "--to", "omni-tiny"),
    ]  # fmt: skip


def left_out(who: str, *, scale: float = 1.0, model: Given | None = None) -> list[Step]:
    """Steps to a Thinker that has never heard `who`, beside the chain: those stages again that hear people.

    Without `model` they begin with runs/pretrain1_encoders, which has heard synthetic speech only. They are half as
    long as usual, so the result says what a person costs who is unknown and less training, too.

    Args:
        scale: as of `steps`.
        model: a model that is given. Its Thinker has heard everybody; its speech tokenizer, whose lower layers become
            the ears, no person. So with these ears a Thinker learns from nothing to write spoken digits, by
            configs/hearing.py at its full length.
    """
    lines = f"lines_without_{who}"
    target = lines_without(KINDS[-1], who)
    found = [Step(lines, ("data",), _own("leave_out"), ("--data", ".", "--who", who), target, target)]
    if model is not None:
        start = _made(
            "random_ears", ("data",), "start", "--data", ".", "--tokenizer", model.path, "--to", "random_ears"
        )
        ears = _made("ears", ("random_ears",), "join", "--base", "random_ears", "--ears", model.path, "--to", "ears")
        found += [replace(step, of=model.digest) for step in (start, ears)]
        return [*found, _without(who, "hearing", (lines, "ears"), "ears", scale)]
    after = "pretrain1_encoders"
    for stage in LEFT_OUT:
        found.append(_without(who, stage, (lines, after), f"runs/{after}/{MODEL}", scale * SHORTER))
        after = found[-1].name
    return found


def _without(who: str, stage: str, after: tuple[str, ...], checkpoint: str, scale: float) -> Step:
    """A run of `stage` with the lines of the others in the place of those of `who`."""
    name, sources = f"{stage}_without_{who}", load_config(CONFIGS / f"{stage}.py").data.sources
    others = {lines_of(kind, who): lines_without(kind, who) for kind in KINDS}
    changes = {f"data.sources.{i}.path": others[each.path] for i, each in enumerate(sources) if each.path in others}
    changes |= {"checkpoint": checkpoint, "output": f"runs/{name}"}
    return _run(name, after, scale, stage, changes)


def _is_place(word: str, following: str) -> bool:
    return Path(word).is_absolute() or (word.startswith("--") and Path(following).is_absolute())


def _own(name: str) -> str:
    return f"{__package__}.{name}"


def _made(name: str, after: tuple[str, ...], script: str, *options: str) -> Step:
    """A script of this example that writes the folder of its name."""
    return Step(name, after, _own(script), options, name, name)


def _all_codes(tokenizer: str, *after: str) -> list[Step]:
    """Codes of the recordings and of each voice's conversations, by the speech tokenizer of a checkpoint."""
    return [_codes("voiced", "voiced", tokenizer, after), *(_codes(v, f"spoken_{v}", tokenizer, after) for v in VOICES)]


def _codes(name: str, lines: str, tokenizer: str, after: tuple[str, ...]) -> Step:
    target = f"coded_{name}.jsonl"
    options = "speech-codes", "--checkpoint", tokenizer, "--data", f"{lines}.jsonl", "--to", target
    return Step(f"codes_{name}", tuple(dict.fromkeys(("data", *after))), "omni_jax.cli.main", options, target, target)


def _run(
    name: str, after: tuple[str, ...], scale: float, stage: str | None = None, changes: Mapping[str, str] | None = None
) -> Step:
    """A run of training, of the configuration of that name, or of `stage` with `changes`."""
    file = CONFIGS / f"{stage or name}.py"
    options = ["train", "--config", str(file)]
    if scale != 1:
        optimizer = load_config(file).optimizer
        total = max(round(optimizer.total_steps * scale), 2)
        warmup = min(round(optimizer.warmup_steps * scale), total - 1)
        options += ["--optimizer.total-steps", str(total), "--optimizer.warmup-steps", str(warmup)]
    options += [word for key, value in (changes or {}).items() for word in (f"--{key}", value)]
    return Step(name, after, "omni_jax.cli.main", tuple(options), f"runs/{name}/{MODEL}", f"runs/{name}", file)
