"""`omni-jax prefer`: pairs of spoken answers, a better and a worse one, to train the Talker by preference."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import DataError, PromptError

_MOST_ROWS = 32  # the largest batch that sampling compiles


@dataclass(frozen=True)
class PreferArgs:
    """Make pairs of spoken answers for the stage talker_dpo (paper, section 4.3).

    Each text is spoken several times. The answers are ranked by word errors of a transcript and by pauses that do not
    go with the punctuation; what never ends, loops, or has an odd length can only be a rejected one. The best and the
    worst make a pair if their scores differ by --margin. Each pair has its log-probabilities under this checkpoint,
    the reference policy.

    All answers are kept in NAME.answers.jsonl beside the pairs. A stopped run goes on there; with --overwrite and
    another --margin, --max-wer, --pairs-per-prompt or --pause-weight, pairs are chosen from it anew without drawing.

    The exit status is 1 when there is no pair.

    example:
      omni-jax prefer --prompts texts.jsonl --checkpoint omni-3b --to pairs.jsonl
      omni-jax prefer --reference-only pairs.jsonl --checkpoint talker-2 --to pairs-2.jsonl
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import or train wrote. It speaks, and it is the reference policy."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """One conversation in JSON a line, as for training. The last answer's text is what is said; where a user has the
    last word, the model writes the answer first (greedily). A line may say who speaks: "voice": "Ethan"."""
    destination: Annotated[Path | None, arg(name="to", metavar="FILE.jsonl")] = None
    """The file of pairs to write. With --reference-only None is the file itself."""
    reference_only: Annotated[Path | None, arg(metavar="FILE")] = None
    """Pairs that are there already: compute only their log-probabilities, under --checkpoint."""
    voice: str | None = None
    """Who speaks where a line of the prompts names nobody; omni-jax voices lists the names. None is the checkpoint's
    default."""
    samples: int = 6
    """Answers to each text."""
    temperature: float = 0.9
    """Of the draw of codes."""
    seed: int = 0
    """Another number gives other answers."""
    pairs_per_prompt: int = 2
    """Most pairs of each text: the best with the worst, the second best with the second worst, ..."""
    margin: float = 0.1
    """Least difference of scores of a pair. One word of ten that is wrong is 0.1; each digit counts as a word."""
    pause_weight: float = 1.0
    """The score is the word error rate + this * the share of gaps between words with a wrong pause."""
    max_wer: float = 0.5
    """No answer with more word errors is chosen. Each digit counts as a word."""
    scorer: Annotated[str, arg(metavar="thinker|MODULE:FUNCTION")] = "thinker"
    """Who listens. thinker: this checkpoint. Else a function (waveform float32, sampling rate) -> text, or a list of
    (word, start, end) in seconds, from whose times pauses are known better."""
    language: Literal["en", "zh"] | None = None
    """Of the texts, for transcripts and their comparison. None is zh where a text has a Chinese character, else en."""
    max_codes: int = 2048
    """Longest speech; 50 codes are a second. What reaches it has no end."""
    max_new_tokens: int = 512
    """Longest answer that the model writes."""
    max_tokens: int = 4096
    """Longer conversations are left out. Media count in full."""
    batch: int = _MOST_ROWS
    """Answers that are drawn at a time."""
    solver: Literal["rk4", "euler"] = "rk4"
    """Of the flow from codes to mel: rk4 as published, or euler, a quarter of the work at the same --steps."""
    steps: int = 10
    """Time points of the solver, both ends counted."""
    system: str | None = None
    """System turn of conversations that have none. None for the published one, an empty text for no turn."""
    use_audio_in_video: bool = False
    """Hear the sound tracks of films, as data.use_audio_in_video in training."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and computation. None is float32 on a CPU, bfloat16 elsewhere. Take that of the training run, which is
    bfloat16 unless its file says otherwise: it warns where the log-probabilities were computed in another."""
    overwrite: bool = False
    """Replace the pairs if they exist. Answers are kept where they were drawn with the same options."""
    json: bool = False
    """End standard output with one JSON object: counts, mean errors, seconds."""


def run(args: PreferArgs) -> int:
    target = _checked(args)
    imported_checkpoint(args.checkpoint)
    if args.reference_only is not None:
        return _reference_only(args, args.reference_only, target)
    from omni_jax.training.transcripts import word_error_rate

    word_error_rate("a", "a", "en")  # its libraries are wanted later, after much work
    return _prefer(args, target)


def _checked(args: PreferArgs) -> Path:
    """The file to write.

    Raises:
        PromptError: options that are out of range or contradict each other.
        DataError: a file that is there already, or cannot be written.
    """
    for name in ("samples", "pairs_per_prompt", "max_codes", "max_new_tokens", "max_tokens", "batch"):
        low = 2 if name == "samples" else 1
        if getattr(args, name) < low:
            raise PromptError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range. Give {low} or more.")
    if args.batch > _MOST_ROWS:
        raise PromptError(f"--batch {args.batch} is out of range. Give at most {_MOST_ROWS}.")
    if not args.temperature > 0:
        raise PromptError(f"--temperature {args.temperature:g} gives the same answer each time. Give more than 0.")
    if not min(args.margin, args.pause_weight, args.max_wer) >= 0:
        raise PromptError("--margin, --pause-weight and --max-wer must not be negative.")
    if (args.prompts is None) == (args.reference_only is None):
        raise PromptError("Give either --prompts, or --reference-only for pairs that are there already.")
    target = args.destination or args.reference_only
    if target is None:
        raise PromptError("Say where the pairs shall be written: --to pairs.jsonl")
    source = args.prompts or args.reference_only
    if not source.is_file():
        raise DataError(f"{source}: no such file. Check the path.")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise DataError(f"{target} cannot be written: its folder is missing, or it is one itself. Choose another file.")
    if args.prompts is not None and target.exists() and target.samefile(args.prompts):
        raise DataError(f"{target} holds the prompts. Give the pairs another name.")
    if target.exists() and args.destination is not None and not args.overwrite:
        raise DataError(f"{target} exists. Give another name, or --overwrite to replace it.")
    return target


def _context(args: PreferArgs) -> Any:
    from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
    from input_pipeline.example_context import ExampleContext, speech_codes
    from input_pipeline.tokenizer import Tokenizer
    from omni_jax.config_json import read_config, read_processor_config
    from omni_jax.sampling.voices import load_speakers

    config = read_config(args.checkpoint)
    speakers = load_speakers(args.checkpoint, config)
    return ExampleContext(
        Tokenizer.load(args.checkpoint),
        config,
        read_processor_config(args.checkpoint),
        voices={name: speaker.token_id for name, speaker in speakers.items()},
        num_codes=speech_codes(config),
        use_audio_in_video=args.use_audio_in_video,
        default_system=DEFAULT_SYSTEM_TEXT if args.system is None else args.system or None,
    )


def _prefer(args: PreferArgs, target: Path) -> int:
    from omni_jax.cli.prefer_answers import WORD_ERRORS, Prompts
    from omni_jax.cli.prefer_file import AnswerFile
    from omni_jax.interop.checkpoint_digest import checkpoint_digest
    from omni_jax.sampling.voices import choose_speaker, load_speakers

    started, context = time.perf_counter(), _context(args)
    voice = choose_speaker(load_speakers(args.checkpoint, context.config), args.voice).name
    prompts = Prompts(args.prompts, context, voice, args.language, args.max_tokens)
    kept = ("samples", "temperature", "seed", "scorer", "language", "max_codes", "max_new_tokens", "max_tokens")
    kept += ("solver", "steps", "system", "use_audio_in_video", "dtype")
    settings = {name: getattr(args, name) for name in kept}
    settings |= {"voice": voice, "prompts": prompts.digest, "checkpoint": checkpoint_digest(args.checkpoint)}
    settings["word_errors"] = WORD_ERRORS
    answers = AnswerFile(target.with_name(f"{target.stem}.answers.jsonl"), settings)
    _draw(args, context, voice, prompts, answers)
    pairs = target.with_name(f".{target.name}.pairs")
    try:
        report = _choose(args, answers, pairs)
        if report["pairs"]:
            with console.Progress("reference policy") as bar:
                _references(args, context, pairs, target, bar)
    except OSError as error:
        raise DataError(f"{pairs}: cannot be written: {error.strerror}. Choose another --to.") from error
    finally:
        pairs.unlink(missing_ok=True)
    report |= {"to": str(target) if report["pairs"] else None, "answers_file": str(answers.path)}
    out = console.Output(args.json)
    _tell(out, report)
    out.result(report | {"seconds": time.perf_counter() - started})
    return console.OK if report["pairs"] else console.FAILED


def _draw(args: PreferArgs, context: Any, voice: str, prompts: Any, answers: Any) -> None:
    """Adds what is missing to the file of answers; loads the model only if anything is."""
    todo = [index for index in range(len(prompts)) if index not in answers.done]
    if not todo:
        return
    drawer, step = _drawer(args, context, voice), max(args.batch // args.samples, 1)
    with console.Progress("drawing answers", unit=" texts") as bar:
        for start in range(0, len(todo), step):
            group = todo[start : start + step]
            bar("drawing answers", len(prompts) - len(todo) + start, len(prompts))
            rows, ready = _read(prompts, group, drawer.replies)
            for prompt, samples in zip(ready, drawer.answers(ready)):
                said = {"index": prompt.index, "name": prompt.name, "voice": prompt.voice, "messages": prompt.messages}
                rows.append(said | {"answers": [sample.as_json() for sample in samples]})
            answers.add(rows)


def _read(prompts: Any, group: list[int], replies: Callable) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows of the texts that cannot be used, and the others, with answers written where there were none."""
    dropped, ready, mute = [], [], []

    def attempt(index: int, messages: Any = None) -> Any:
        try:
            return prompts.prompt(index, prompts.read(index) if messages is None else messages)
        except DataError as error:
            dropped.append({"index": index, "name": prompts.name(index), "kind": error.kind, "reason": str(error)})

    for prompt in filter(None, map(attempt, group)):
        (ready if prompt.answered else mute).append(prompt)
    for prompt, text in zip(mute, replies(mute)):
        answered = attempt(prompt.index, [*prompt.messages[:-1], {"role": "assistant", "content": text}])
        ready += [] if answered is None else [answered]
    return dropped, sorted(ready, key=lambda prompt: prompt.index)


def _drawer(args: PreferArgs, context: Any, voice: str) -> Any:
    """The model, on the device."""
    from omni_jax.cli.conversation import Answerer
    from omni_jax.cli.prefer_answers import Drawer
    from omni_jax.cli.prefer_scorers import own_scorer, thinker_scorer
    from omni_jax.models.flow import FlowOptions
    from omni_jax.sampling.options import SamplingOptions
    from omni_jax.sampling.speech_options import CODE_SAMPLING, SpeechOptions

    own = None if args.scorer == "thinker" else own_scorer(args.scorer)
    codes = replace(CODE_SAMPLING, max_new_tokens=args.max_codes, temperature=args.temperature)
    options = SpeechOptions(codes=codes, flow=FlowOptions(args.solver, args.steps))
    answerer = Answerer(args.checkpoint, dtype=args.dtype, speak=True, voice=voice)
    return Drawer(
        speech=answerer.speech,
        scorer=own or thinker_scorer(answerer.sampler),
        samples=args.samples,
        batch=args.batch,
        seed=args.seed,
        options=options,
        text_options=SamplingOptions(max_new_tokens=args.max_new_tokens),
        num_codes=context.num_codes,
    )


def _choose(args: PreferArgs, answers: Any, file: Path) -> dict[str, Any]:
    """Writes the pairs, without references; returns the report."""
    import json

    from omni_jax.cli.prefer_file import pair_line
    from omni_jax.training.preferences import SpokenSample, Tally, choose_pairs

    tally, reasons = Tally(), []
    with open(file, "w", encoding="utf-8") as stream:
        for row in answers.rows():
            if "kind" in row:
                tally.leave_out(row["kind"])
                reasons.append(row["reason"])
                continue
            samples = [SpokenSample.from_json(each) for each in row["answers"]]
            options = dict(margin=args.margin, pause_weight=args.pause_weight, max_wer=args.max_wer)
            choice = choose_pairs(samples, most=args.pairs_per_prompt, **options)
            tally.add(samples, choice)
            for pair in choice.pairs:
                stream.write(json.dumps(pair_line(row, *pair), ensure_ascii=False) + "\n")
    return tally.as_json() | {"reasons": reasons[:20]}


def _references(args: PreferArgs, context: Any, source: Path, target: Path, bar: Callable) -> int:
    import jax

    from omni_jax.training.reference import write_references

    console.setup_jax()
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return write_references(source, target, args.checkpoint, context, dtype=dtype, progress=bar)


def _reference_only(args: PreferArgs, source: Path, target: Path) -> int:
    started, out = time.perf_counter(), console.Output(args.json)
    with console.Progress("reference policy") as bar:
        pairs = _references(args, _context(args), source, target, bar)
    out.write(f"Log-probabilities of {pairs} pairs under {args.checkpoint} in {target}")
    out.result({"pairs": pairs, "to": str(target), "seconds": time.perf_counter() - started})
    return console.OK


def _tell(out: console.Output, report: dict[str, Any]) -> None:
    def counts(values: dict[str, int]) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(values.items())) or "none"

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    place = f" in {report['to']}" if report["to"] else ""
    out.write(f"{report['pairs']} pairs of {report['answers']} answers to {report['prompts']} texts{place}")
    out.write(f"answers stopped by a guard: {counts(report['guarded'])}")
    out.write(f"pairs dropped: {counts(report['dropped_pairs'])}")
    for kind, name in (("wer", "word error rate"), ("pause", "pause error")):
        own = report[kind]
        sides = ", ".join(f"{side} {figure(own[side])}" for side in ("chosen", "rejected", "all"))
        out.write(f"{name}, mean: {sides}")
    if report["dropped_prompts"]:
        out.write(f"texts left out: {counts(report['dropped_prompts'])}")
        for reason in report["reasons"][:5]:
            out.write(f"  {reason}")
    if not report["pairs"]:
        out.write("No pair was found. Draw more --samples, or lower --margin.")
