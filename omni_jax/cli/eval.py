"""`omni-jax eval`: scores of a checkpoint on test lines, by the rules of the published figures."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import DataError, PromptError

_MOST_ROWS = 32  # the largest batch that sampling compiles
_LIBRARIES = ("jiwer", "sacrebleu", "whisper_normalizer", "rapidfuzz", "zhconv")


@dataclass(frozen=True)
class EvalArgs:
    """Ask a checkpoint the lines of test files, and score its answers.

    A suite is a list of tasks: asr, speech_translation, audio_understanding, voicebench, spoken_instructions, image_qa,
    grounding, video_qa, omni, speech_generation, text, tiny, or a Python file with TASKS (docs/evaluation.md). Each
    task reads a file of JSON lines in --data. All lines and media are looked at before the model is loaded.

    Answers and their scores are kept in --to, a file a task; a stopped run goes on there. Figures come with a 95 %
    interval (bootstrap over lines), with what the scorer gives on true recordings where there are some (floor), and
    with the prompt, the decoding and the checkpoint.

    Whoever listens to speech is brought by the user: functions (waveform float32, sampling rate) -> text, vector or
    number. Each is tried on half a second of noise before the model is loaded. What needs one that is not given is not
    measured, and the report says so.

    The exit status is 1 when a goal is not met.

    example:
      omni-jax eval --suite asr --checkpoint omni-3b --data librispeech --batch 16 --json
      omni-jax eval --suite tiny --checkpoint tiny --data .omni_tiny --recognizer examples.omni_tiny.ears:hear
    """

    suite: Annotated[str, arg(metavar="NAME|FILE.py")]
    """Which tasks."""
    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import or train wrote."""
    data: Annotated[Path, arg(metavar="DIR")]
    """The folder of the test files."""
    destination: Annotated[Path | None, arg(name="to", metavar="DIR")] = None
    """The folder of the results. None is eval-SUITE-CHECKPOINT here."""
    tasks: Annotated[UseAppendAction[tuple[str, ...]], arg(name="task", metavar="NAME")] = ()
    """Only this task; may be given several times. None is all whose files are there."""
    limit: int | None = None
    """Only the first lines of each task."""
    batch: int = 8
    """Lines that are asked at a time."""
    recognizer: Annotated[str | None, arg(metavar="MODULE:FUNCTION")] = None
    """Hears speech: -> text, or a list of (word, start, end) in seconds."""
    speaker_scorer: Annotated[str | None, arg(metavar="MODULE:FUNCTION")] = None
    """Tells speakers apart: -> a vector."""
    mos_scorer: Annotated[str | None, arg(metavar="MODULE:FUNCTION")] = None
    """How natural speech is: -> a number."""
    compare: Annotated[Path | None, arg(metavar="DIR")] = None
    """Results of an earlier run of another checkpoint, all else the same: differences, with their intervals."""
    keep: Annotated[Path | None, arg(metavar="DIR")] = None
    """Keep spoken answers as wav files, DIR/TASK/FILE-LINE.wav."""
    use_audio_in_video: bool = False
    """Hear the sound tracks of films where neither task nor line says."""
    solver: Literal["rk4", "euler"] = "rk4"
    """Of the flow from codes to mel: rk4 as published, or euler, a quarter of the work at the same --steps."""
    steps: int = 10
    """Time points of the solver, both ends counted."""
    max_codes: int = 2048
    """Longest speech; 50 codes are a second."""
    speech_temperature: float = 0.9
    """Of the draw of codes; 0 is greedy."""
    seed: int = 0
    """Of the draw of codes, and of the sound; each line has one of its own, made of this and its number."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and computation. None is float32 on a CPU, bfloat16 elsewhere."""
    weights: Literal["int8"] | None = None
    """int8 stores the large matrices so: half the memory of bfloat16, at a small cost in accuracy."""
    mesh: Annotated[str | None, arg(metavar="AXIS=SIZE,...")] = None
    """Split the model over several devices, e.g. tensor=4. None is one device."""
    overwrite: bool = False
    """Ask anew what is there already."""
    json: bool = False
    """End standard output with one JSON object: pass, rows, checkpoint, code, seconds."""


def run(args: EvalArgs) -> int:
    started = time.perf_counter()
    _check(args)
    imported_checkpoint(args.checkpoint)
    from omni_jax.evaluation.identity import checkpoint_identity, code_identity
    from omni_jax.evaluation.normal import library
    from omni_jax.evaluation.report import decoding, not_measured, passed, report_rows
    from omni_jax.evaluation.scorers import NAMES, Scorers
    from omni_jax.evaluation.suites import load_suite

    for name in _LIBRARIES:  # wanted later, after much work
        library(name)
    suite = load_suite(args.suite)
    scorers = Scorers.load({name: getattr(args, name) for name in NAMES})
    data, left_out = _read(args, suite)
    checkpoint = checkpoint_identity(args.checkpoint)
    target = args.destination or Path(f"eval-{suite.name}-{args.checkpoint.resolve().name}")
    outcomes = _asked(args, suite, data, scorers, checkpoint, target)
    measured = {row["name"]: row for row in report_rows(outcomes)}
    rows = []
    for task in _chosen(args, suite):
        rows += not_measured(task, left_out[task.name]) if task.name in left_out else []
        spoken = {"decoding": decoding(task) | {"speech": _speech(args)}} if task.speak else {}
        rows += [measured[m.name] | spoken for m in task.measures if m.name in measured]
    rows = [row | {"checkpoint": checkpoint["sha256"][:16]} for row in rows]
    out, verdict = console.Output(args.json), passed(rows)
    code = code_identity()
    _tell(out, rows, checkpoint, f"{code}; answers in {target}")
    about = {"suite": suite.name, "checkpoint": checkpoint, "code": code, "to": str(target)}
    scoring = {name: getattr(args, name) for name in NAMES}
    seconds = time.perf_counter() - started
    out.result(
        {"pass": verdict, "rows": rows, **about, "speech": _speech(args), "scorers": scoring, "seconds": seconds}
    )
    return console.FAILED if verdict is False else console.OK


def _check(args: EvalArgs) -> None:
    """Raises PromptError for options out of range, DataError for folders that are not there."""
    for name in ("limit", "batch", "max_codes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise PromptError(f"--{name.replace('_', '-')} {value} is out of range. Give 1 or more.")
    if args.batch > _MOST_ROWS:
        raise PromptError(f"--batch {args.batch} is out of range. Give at most {_MOST_ROWS}.")
    if not args.speech_temperature >= 0:
        raise PromptError(f"--speech-temperature {args.speech_temperature:g} is out of range. Give 0 or more.")
    for name in ("data", "compare"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            raise DataError(f"--{name} {folder} is no folder. Check the path.")


def _chosen(args: EvalArgs, suite: Any) -> list[Any]:
    """Raises PromptError for a task that the suite has not."""
    names = [task.name for task in suite.tasks]
    unknown = next((name for name in args.tasks if name not in names), None)
    if unknown is not None:
        raise PromptError(f"The suite {suite.name} has no task {unknown!r}. Tasks: {', '.join(names)}.")
    return [task for task in suite.tasks if not args.tasks or task.name in args.tasks]


def _read(args: EvalArgs, suite: Any) -> tuple[list[Any], dict[str, str]]:
    """Lines of the tasks, and why some tasks are not asked.

    Raises:
        DataError: bad lines, a file of a task that was asked for by name, or no file at all.
    """
    from omni_jax.config_json import read_config
    from omni_jax.evaluation.data import read_task

    config, found, left_out = read_config(args.checkpoint), [], {}
    tasks = _chosen(args, suite)
    for task in tasks:
        if not (args.data / task.file).is_file() and not args.tasks:
            left_out[task.name] = f"{task.file} is not in {args.data}"
        elif task.speak is not None and not config.speaks:
            left_out[task.name] = "the checkpoint cannot speak"
        else:
            found.append(read_task(task, args.data, args.limit))
    if not found:
        reasons = "\n".join(f"  {name}: {why}" for name, why in left_out.items())
        raise DataError(f"No task of the suite {suite.name} can be asked:\n{reasons}")
    _check_voices(args, config, [each for each in found if each.task.speak is not None])
    return found, left_out


def _check_voices(args: EvalArgs, config: Any, spoken: list[Any]) -> None:
    """Raises DataError for a line whose voice the checkpoint has not."""
    if not spoken:
        return
    from omni_jax.sampling.voices import choose_speaker, load_speakers

    speakers = load_speakers(args.checkpoint, config)
    for data in spoken:
        for item in data.items:
            try:
                choose_speaker(speakers, data.task.voice(item.line))
            except PromptError as error:
                raise DataError(f"{item.where}: {error}") from error


def _speech(args: EvalArgs) -> dict[str, Any]:
    names = ("solver", "steps", "max_codes", "speech_temperature", "seed")
    return {name: getattr(args, name) for name in names}


def _asked(args: EvalArgs, suite: Any, data: list[Any], scorers: Any, checkpoint: dict, target: Path) -> list[Any]:
    """Outcomes of all tasks; the model is loaded only if a line is not answered yet."""
    from omni_jax.evaluation.judge import Judge
    from omni_jax.evaluation.report import Outcome, decoding
    from omni_jax.evaluation.results import ResultsFile
    from omni_jax.evaluation.scorers import NAMES

    made, before = [], {}
    for each in data:
        task, path = each.task, target / f"{each.task.name}.jsonl"
        settings = {"task": task.name, "file": task.file, "data": each.digest, "suite": suite.digest}
        settings |= {"checkpoint": checkpoint["sha256"], "decoding": decoding(task), "ablate": task.ablate}
        settings |= {name: getattr(args, name) for name in ("dtype", "weights", "use_audio_in_video")}
        settings |= {name: getattr(args, name) for name in NAMES} | (_speech(args) if task.speak else {})
        made.append((path, settings))
        if args.compare is not None and (args.compare / path.name).is_file():
            before[task.name] = _earlier(args.compare / path.name, settings)
    # first what is there already, as nothing is begun, or removed, before the scorers have been tried
    kept = [None if args.overwrite or not path.exists() else ResultsFile(path, settings) for path, settings in made]
    judges = [Judge(each, scorers) for each in data]
    todo = [[item for item in each.items if not file or item.index not in file.rows] for each, file in zip(data, kept)]
    scorers.try_out({name for judge, items in zip(judges, todo) if items for name in judge.asked})
    if args.overwrite:
        for path, _ in made:
            path.unlink(missing_ok=True)
    files = [file or ResultsFile(path, settings) for file, (path, settings) in zip(kept, made)]
    if any(todo):
        _ask(args, judges, files, todo)
    outcomes = []
    for each, file in zip(data, files):
        rows = {item.index: file.rows[item.index] for item in each.items}
        outcomes.append(Outcome(each, rows, before.get(each.task.name)))
    return outcomes


def _earlier(path: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Rows of an earlier run. Raises DataError where anything but the checkpoint is another."""
    from omni_jax.evaluation.results import differences, read_results

    old, rows = read_results(path)
    what = differences(old, settings, but=("checkpoint",))
    if what:
        raise DataError(
            f"{path} has another {what}.\nOnly the checkpoint may differ. Give the same options as then, or run the "
            "earlier checkpoint again with those of now."
        )
    return rows


def _ask(args: EvalArgs, judges: list[Any], files: list[Any], todo: list[list[Any]]) -> None:
    """Asks what is left, batch by batch, and adds answers and scores to the files."""
    from omni_jax.cli.conversation import Answerer
    from omni_jax.evaluation.answers import Asker
    from omni_jax.models.flow import FlowOptions
    from omni_jax.sampling.speech_options import CODE_SAMPLING, SpeechOptions

    codes = replace(CODE_SAMPLING, max_new_tokens=args.max_codes, temperature=args.speech_temperature, seed=args.seed)
    speech = SpeechOptions(codes=codes, flow=FlowOptions(args.solver, args.steps))
    model = Answerer(
        args.checkpoint,
        dtype=args.dtype,
        weights=args.weights,
        mesh=args.mesh,
        use_audio_in_video=args.use_audio_in_video,
        speak=any(items and judge.data.task.speak is not None for judge, items in zip(judges, todo)),
    )
    model.load()
    with console.Progress("asking", unit=" lines") as bar:
        for judge, file, items in zip(judges, files, todo):
            each, asker = judge.data, Asker(model, judge.data, args.batch, speech)
            done, total = len(each.items) - len(items), len(each.items)
            bar(each.task.name, done, total)
            for answers in asker.answers(items):
                file.add([_result(args, judge, answer) for answer in answers])
                done += len(answers)
                bar(each.task.name, done, total)


def _result(args: EvalArgs, judge: Any, answer: Any) -> dict[str, Any]:
    """A line of results."""
    item = answer.item
    scores, heard = judge.score(item, answer.text, answer.seen, answer.waveform)
    row = {"index": item.index, "line": item.where, "text": answer.text, "finish_reason": answer.finish_reason}
    row |= {"prompt_tokens": answer.prompt_tokens, "reference": item.line.get("reference", item.line.get("answer"))}
    if answer.waveform is not None:
        row |= {"heard": heard, "codes": answer.codes, "speech_reason": answer.speech_reason}
        row["audio"] = _kept(args, judge.data.task.name, answer) if args.keep is not None else None
    return row | {"scores": scores, "floor": judge.floor(item, answer.seen)}


def _kept(args: EvalArgs, task: str, answer: Any) -> str:
    from omni_jax.cli.sound_file import SoundFile

    folder = args.keep / task
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}. Choose another --keep.") from error
    name, _, number = answer.item.where.rpartition(":")
    path = folder / f"{Path(name).stem}-{number}.wav"
    with SoundFile(path) as file:
        file.write(answer.waveform)
    return str(path)


def _tell(out: console.Output, rows: list[dict[str, Any]], checkpoint: dict[str, str], ending: str) -> None:
    """A table; then prompts and decoding, so that each figure can be had again."""

    def figure(value: Any) -> str:
        return "-" if value is None else f"{value:.4g}"

    marks = {"at least": ">=", "at most": "<=", "chance": "chance", "worse than": "below", "better than before": "was"}
    width = max(len(row["name"]) for row in rows)
    out.write(
        f"{'':{width}}  {'value':>7}  {'95 % interval':>15}  {'goal':>13}  {'floor':>7}  {'baseline':>8}  {'lines':>5}"
    )
    for row in rows:
        low_high = " - ".join(map(figure, row["interval"])) if row["interval"] else "-"
        goal = f"{marks[row['rule']]} {figure(row['goal'])}" if row["rule"] else "-"
        told = {True: "met", False: "NOT MET", None: row["why"] or ""}[row["pass"]]
        cells = f"{figure(row['value']):>7}  {low_high:>15}  {goal:>13}  {figure(row['floor']):>7}"
        cells += f"  {figure(row['baseline']):>8}  {row['count']:>5}"
        out.write(f"{row['name']:{width}}  {cells}  {told}".rstrip())
        if "difference" in row:
            sides = " - ".join(map(figure, row["difference_interval"]))
            out.write(f"{'':{width}}  {figure(row['before'])} before, difference {figure(row['difference'])} ({sides})")
    asked: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("prompt") is not None:
            decoding = ", ".join(f"{name} {value}" for name, value in row["decoding"].items() if value is not None)
            asked.setdefault((row["prompt"], decoding), []).append(row["name"])
    for (prompt, decoding), names in asked.items():
        out.write(
            f"\n{', '.join(names)}: first prompt\n  " + prompt.replace("\n", "\n  ") + f"\n  decoding: {decoding}"
        )
    out.write(f"\ncheckpoint {checkpoint['path']}, SHA-256 {checkpoint['sha256'][:16]}; {ending}")
