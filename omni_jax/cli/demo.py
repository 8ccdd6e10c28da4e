"""`omni-jax demo`: a small model hears, sees and speaks, on what it has never learnt."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import CheckpointError, ConfigError, DataError, PromptError

if TYPE_CHECKING:
    from omni_jax.cli.demo_play import Comparison, Played, Player
    from omni_jax.cli.demo_scenes import Scene

Result = TypeVar("Result")
ASSETS = Path(__file__).parents[1] / "assets"
MODEL, SCENES = ASSETS / "omni_tiny", ASSETS / "demo"
PAGE = "demo.html"


@dataclass(frozen=True)
class DemoArgs:
    """Play some scenes: spoken and typed questions about pictures, a film and sound, answered in text and speech.

    The model is the small one that comes with the program, the media are none that it has learnt from. Each answer is
    streamed, set beside the truth, timed, and compared with the one that is made offline. Spoken answers are written
    as wav, and all of it as a page to open in a browser, demo.html.

    The exit status is 1 when a streamed answer is not the offline one. Not so for a --checkpoint of more than 1 G
    parameters on a GPU or TPU: it computes in bfloat16, whose rounding may make them differ, which is told only.

    example:
      omni-jax demo
    """

    checkpoint: Annotated[Path | None, arg(metavar="DIR")] = None
    """An imported checkpoint that speaks, instead of the one that comes with the program."""
    scenes: Annotated[Path | None, arg(metavar="DIR")] = None
    """Other scenes: a folder with scenes.json and its media, see omni_jax/cli/demo_scenes.py."""
    folder: Annotated[Path, arg(metavar="DIR")] = Path(".demo")
    """Where the spoken answers and the page go."""
    max_new_tokens: int = 40
    """Longest answer."""
    max_codes: int = 380
    """Longest speech; 50 codes are a second."""
    solver: Literal["rk4", "euler"] = "euler"
    """Of the flow from codes to mel. rk4, as published, takes seven times as long at its 10 --steps."""
    steps: int = 6
    """Time points of the solver, both ends counted."""
    speech_temperature: float = 0.5
    """Of the draw of codes; 0 is greedy. The small model says more right words than at the published 0.9."""
    seed: int = 0
    """Of the draw of codes, and of the sound. Text is greedy."""
    json: bool = False
    """End standard output with one JSON object: pass, right, rows, page, seconds."""


def run(args: DemoArgs) -> int:
    started = time.perf_counter()
    scenes, target, checkpoint = _scenes(args), _target(args), _checkpoint(args)
    console.compile_quickly()
    console.setup_jax()
    from omni_jax.cli.demo_page import Setting, page
    from omni_jax.cli.demo_play import Player, exact_products
    from omni_jax.models.flow import FlowOptions
    from omni_jax.sampling.options import SamplingOptions
    from omni_jax.sampling.speech_options import CODE_SAMPLING, SpeechOptions

    codes = replace(CODE_SAMPLING, temperature=args.speech_temperature, max_new_tokens=args.max_codes, seed=args.seed)
    speech = SpeechOptions(codes=codes, flow=FlowOptions(args.solver, args.steps))
    text = SamplingOptions(max_new_tokens=args.max_new_tokens)
    out, seconds = console.Output(args.json), {}
    player = _step("load", seconds, lambda bar: _loaded(lambda: Player(checkpoint, text, speech), args))
    out.write(f"{player.about}, from {_shown(checkpoint)}, loaded in {seconds['load']:.1f} s")
    with exact_products(player.exact):
        shown, files, compared = _play(player, scenes, target, seconds, out)

    right, same = sum(played.right for played in shown), all(each.same for each in compared)
    passed = same or not player.exact
    if not same and not player.exact:
        out.write("bfloat16 rounds differently in the two ways, so answers may differ: no failure.")
    seconds["all"] = time.perf_counter() - started
    setting = Setting(f"{player.about}, {args.solver} with {args.steps} time points", seconds)
    together = [(*each, difference(*each)) for each in zip(shown, compared)]
    place = _write(target / PAGE, page(together, setting))
    out.write(f"\n{right} of {len(shown)} answers right. {pace(shown)}")
    out.write(f"The demo took {seconds['all']:.1f} s. Open {place} to see and hear it.")
    rows = [row(*each) for each in zip(shown, compared, files)]
    out.result({"pass": passed, "right": right, "rows": rows, "page": str(place), "seconds": seconds})
    return console.OK if passed else console.FAILED


def _play(
    player: "Player", scenes: "Sequence[Scene]", target: Path, seconds: dict[str, float], out: console.Output
) -> "tuple[list[Played], list[Path | None], list[Comparison]]":
    """Plays and tells all scenes: what was shown, files of sound, and how each differs from the offline answer."""
    offline = _step("compile", seconds, lambda bar: player.warm_up(scenes, bar))
    out.write(f"programs compiled or found in the cache, offline text and codes: {seconds['compile']:.1f} s")

    shown, files, playing = [], [], time.perf_counter()
    for number, scene in enumerate(scenes, start=1):
        out.write(f"\n{number}/{len(scenes)} {scene.title}\n  asked    {asked(scene)}\n  answer   ", end="")
        played = player.play(scene, lambda piece: out.write(piece, end=""))
        shown.append(played)
        files.append(_sound_file(target / f"{number}-{scene.name}.wav", played))
        out.write(f"\n  truth    {scene.truth}  {'RIGHT' if played.right else 'WRONG'}")
        out.write(f"  speech   {spoken(played)}{'' if files[-1] is None else f', in {files[-1]}'}")

    seconds["play"] = time.perf_counter() - playing
    out.write("\nStreamed and offline (text alone, then its codes, then their sound):")
    compared = _step("compare", seconds, lambda bar: player.compare(shown, offline))
    for played, comparison in zip(shown, compared):
        out.write(f"  {played.scene.name:<16} {difference(played, comparison)}")
    return shown, files, compared


def asked(scene: "Scene") -> str:
    """The media in brackets, then what is typed."""
    return " ".join([*(f"[{medium.about}]" for medium in scene.media), *filter(None, [scene.question])])


def spoken(played: "Played") -> str:
    """How long the answer is heard, and how long it took."""
    if not len(played.waveform):
        return f"none ({played.speech_reason})"
    cut = {"length": ", cut off at its limit", "loop": ", ended because it went round in circles"}
    return (
        f"{played.sound_seconds:.2f} s{cut.get(played.speech_reason, '')}; "
        f"first sound after {played.first_sound:.2f} s, "
        f"{played.real_time_factor:.2f} s of computing a second of sound"
    )


def pace(shown: "Sequence[Played]") -> str:
    """The slowest and the fastest of the spoken answers."""
    heard = [played for played in shown if len(played.waveform)]
    if not heard:
        return "Nothing was spoken."
    firsts, factors = [p.first_sound for p in heard], [p.real_time_factor for p in heard]
    return (
        f"First sound after {min(firsts):.2f} to {max(firsts):.2f} s; "
        f"{min(factors):.2f} to {max(factors):.2f} s of computing a second of sound."
    )


def difference(played: "Played", comparison: "Comparison") -> str:
    """What the comparison of a streamed answer with the offline one has shown."""

    def kind(same: bool, count: int, what: str) -> str:
        return f"the same {count} {what}" if same else f"other {what.upper()}"

    tokens = kind(comparison.tokens, len(played.token_ids), "tokens")
    codes = kind(comparison.codes, len(played.codes), "codes")
    samples = f"{len(played.waveform)} samples, largest difference {comparison.largest:.2g}"
    return f"{tokens}, {codes}, {samples}"


def row(played: "Played", comparison: "Comparison", file: Path | None) -> dict[str, Any]:
    """A scene's figures for --json; times in seconds from the question."""
    return {
        "name": played.scene.name,
        "question": asked(played.scene),
        "text": played.text,
        "truth": played.scene.truth,
        "right": played.right,
        "voice": played.voice,
        "tokens": played.token_ids,
        "codes": len(played.codes),
        "speech_reason": played.speech_reason,
        "audio_path": None if file is None else str(file),
        "sound_seconds": played.sound_seconds,
        "first_text": played.first_text,
        "first_sound": played.first_sound,
        "smooth_from": played.smooth_from,
        "real_time_factor": played.real_time_factor,
        "offline": {
            "same": comparison.same,
            "tokens": comparison.tokens,
            "codes": comparison.codes,
            "largest_difference": comparison.largest if comparison.largest != float("inf") else None,
        },
        "seconds": played.seconds,
    }


def _step(name: str, seconds: dict[str, float], action: Callable[[Callable], Result]) -> Result:
    """Runs a part that nothing is printed of meanwhile, and notes its time."""
    started = time.perf_counter()
    with console.Progress(name) as bar:
        result = action(bar)
    seconds[name] = time.perf_counter() - started
    return result


def _scenes(args: DemoArgs) -> "Sequence[Scene]":
    from omni_jax.cli.demo_scenes import FILE, read_scenes

    if args.scenes is None and not (SCENES / FILE).is_file():
        raise DataError(f"{SCENES / FILE}, which belongs to the program, is missing. Install it again.")
    return read_scenes(SCENES if args.scenes is None else args.scenes)


def _checkpoint(args: DemoArgs) -> Path:
    """The folder to load; a look at it, before anything heavy is imported."""
    if args.checkpoint is not None:
        return imported_checkpoint(args.checkpoint)
    return _loaded(lambda: imported_checkpoint(MODEL), args)


def _loaded(load: Callable[[], Result], args: DemoArgs) -> Result:
    """Adds what mends the model that comes with the program; it was not imported by whoever reads this."""
    try:
        return load()
    except (CheckpointError, ConfigError) as error:
        if args.checkpoint is not None:
            raise
        raise CheckpointError(
            f"The small model that comes with the program is damaged:\n{error}\n"
            f"Fetch its folder again: git checkout -- {MODEL}, or install the program again."
        ) from error


def _target(args: DemoArgs) -> Path:
    """The folder for the results, made if need be.

    Raises:
        PromptError: it cannot be written.
    """
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        probe = args.folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PromptError(f"{args.folder} cannot be written: {error.strerror}. Give another --folder.") from error
    return args.folder


def _sound_file(path: Path, played: "Played") -> Path | None:
    """`path`, with the answer's sound in it; None where there is none."""
    from omni_jax.cli.sound_file import SoundFile

    if not len(played.waveform):
        path.unlink(missing_ok=True)  # of an earlier run
        return None
    with SoundFile(path) as file:
        file.write(played.waveform)
    return path


def _write(path: Path, content: str) -> Path:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise PromptError(f"{path} could not be written: {error.strerror}. Give another --folder.") from error
    return path


def _shown(checkpoint: Path) -> str:
    return "the program itself" if checkpoint == MODEL else str(checkpoint)
