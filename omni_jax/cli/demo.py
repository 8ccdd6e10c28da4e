"""`omni-jax demo`: real media files through the whole model, stage by stage."""

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.conversation import Answer, Answerer
from omni_jax.sampling.options import SamplingOptions

RANDOM = "The weights are random: the answers mean nothing; what you see is the machinery."


@dataclass(frozen=True)
class DemoArgs:
    """Send a picture, a recording and a film with sound through the model, and show what each stage took.

    The files are made on the spot. Without a checkpoint a small random one is made with the PyTorch model and imported.

    example:
      omni-jax demo
    """

    checkpoint: Annotated[Path | None, arg(metavar="DIR")] = None
    """An imported checkpoint to use instead of a random one."""
    folder: Annotated[Path, arg(metavar="DIR")] = Path(".demo")
    """Where the files and the random checkpoint are kept for the next time."""
    max_new_tokens: int = 48
    """Longest answer."""
    json: bool = False
    """End standard output with one JSON object: random_weights, rows, seconds."""


@dataclass(frozen=True)
class Scene:
    """One thing to show: a medium and a question about it."""

    kind: str
    file: str
    question: str
    use_audio: bool = False

    def messages(self, media: Path) -> list[dict[str, Any]]:
        medium = {"type": self.kind, self.kind: str(media / self.file)}
        if self.use_audio:
            medium["use_audio"] = True
        return [{"role": "user", "content": [medium, {"type": "text", "text": self.question}]}]


SCENES = (
    Scene("image", "picture.png", "What is in the picture?"),
    Scene("audio", "recording.flac", "What do you hear?"),
    Scene("video", "film.mp4", "What happens in the film, and what do you hear?", use_audio=True),
)


@dataclass(frozen=True)
class Shown:
    """What a scene gave. `first` includes compiling the programs, or loading them from the cache; `again` does not."""

    scene: Scene
    first: float
    again: Answer


def run(args: DemoArgs) -> int:
    options = replace(SamplingOptions(), max_new_tokens=args.max_new_tokens)
    out, seconds = console.Output(args.json), {}
    steps = _Steps(out, seconds)
    checkpoint = args.checkpoint or _random_checkpoint(args.folder, steps)
    answerer = Answerer(checkpoint)
    media = args.folder / "media"
    steps("make the media", lambda: _make_media(media))
    steps("load the checkpoint", lambda: answerer.sampler)

    shown = []
    for scene in SCENES:
        first = steps(f"{scene.file}, first time", lambda scene=scene: _timed(answerer, scene, media, options))
        shown.append(Shown(scene, first, answerer.answer(scene.messages(media), options)))
    out.write("\nA second time, with all programs ready:\n")
    out.write(table(shown))
    for each in shown:
        out.write(f"\n{each.scene.file}\n  > {each.scene.question}\n  {_printable(each.again.text)}")
    if args.checkpoint is None:
        out.write(f"\n{RANDOM}")
    rows = [{"name": s.scene.file, "prompt_tokens": s.again.prompt_tokens} | s.again.as_json() for s in shown]
    out.result({"random_weights": args.checkpoint is None, "rows": rows, "seconds": seconds})
    return console.OK


def table(shown: list[Shown]) -> str:
    """A column for each scene, a row for each stage."""

    def row(label: str, cell: Callable[[Answer], str]) -> list[str]:
        return [label, *(cell(each.again) for each in shown)]

    def stage(*names: str) -> Callable[[Answer], str]:
        def cell(answer: Answer) -> str:
            times = [answer.seconds[name] for name in names if name in answer.seconds]
            return _time(sum(times)) if times else "-"

        return cell

    rows = [
        ["", *(each.scene.file for each in shown)],
        row("decode the file", stage("decode_media")),
        row("features", stage("features")),
        row("audio encoder", stage("encode_audio")),
        row("vision encoder", stage("encode_vision")),
        row("prompt", lambda answer: f"{answer.prompt_tokens} tokens"),
        row("prefill", stage("prefill")),
        row("answer", lambda answer: f"{len(answer.token_ids)} tokens"),
        row("decode", stage("decode")),
        row("speed of decoding", lambda answer: f"{len(answer.token_ids) / answer.seconds['decode']:.0f} tokens/s"),
        ["first time, compiling", *(_time(each.first) for each in shown)],
    ]
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    lines = [
        line[0].ljust(widths[0]) + "".join("   " + cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
        for line in rows
    ]
    return "\n".join("  " + line.rstrip() for line in lines)


class _Steps:
    """Runs the steps before the table, and tells each with its time."""

    def __init__(self, out: console.Output, seconds: dict[str, float]):
        self._out, self._seconds = out, seconds

    def __call__(self, name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        with console.Progress(name):
            result = action()
        self._seconds[name] = time.perf_counter() - started
        self._out.write(f"  {name:<40} {_time(self._seconds[name]):>8}")
        return result


def _random_checkpoint(folder: Path, steps: _Steps) -> Path:
    """The random checkpoint in `folder`, made and imported unless it is there already."""
    published, imported = folder / "published", folder / "checkpoint"
    if (imported / "import.json").is_file():
        return imported
    # transformers doubts token ids that the published configuration really has
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from omni_jax.interop.random_checkpoint import make_random_checkpoint

    if not (published / "spk_dict.pt").is_file():  # the file that is written last
        steps("make a random checkpoint (PyTorch)", lambda: _fresh(published, make_random_checkpoint))
    console.setup_jax()
    from omni_jax.interop.import_checkpoint import import_checkpoint

    steps("import it", lambda: import_checkpoint(published, imported, overwrite=True))
    return imported


def _fresh(folder: Path, make: Callable[[Path], Any]) -> None:
    """Makes `folder` anew where an earlier run was interrupted."""
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)


def _make_media(folder: Path) -> None:
    from omni_jax.demo_media import write_film, write_picture, write_recording

    folder.mkdir(parents=True, exist_ok=True)
    for scene, write in zip(SCENES, (write_picture, write_recording, write_film)):
        write(folder / scene.file)


def _timed(answerer: Answerer, scene: Scene, media: Path, options: SamplingOptions) -> float:
    started = time.perf_counter()
    answerer.answer(scene.messages(media), options)
    return time.perf_counter() - started


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _printable(text: str) -> str:
    """One line without the control characters that random weights like to write."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "�" for c in text)).strip()
