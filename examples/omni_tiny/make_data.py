"""Makes all data of Omni-tiny, from packages by name and one seed.

    python -m examples.omni_tiny.make_data --to .omni_tiny --fsdd free-spoken-digit-dataset

Stopped at any time, the same command goes on. See README.md for what is needed and what comes of it.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import arg

from examples.omni_tiny import packages, voices
from examples.omni_tiny.amounts import Amounts
from examples.omni_tiny.files import COMPLETE, folder_facts, remove_partial, whole, write_lines
from examples.omni_tiny.held_out import HeldOut
from examples.omni_tiny.media import Medium
from examples.omni_tiny.program import run_main
from examples.omni_tiny.training import Training
from examples.omni_tiny.work import Places, make

Group = Literal["talker", "questions", "digits", "hearing", "human", "pictures", "films", "tests", "lines"]


@dataclass(frozen=True)
class Args:
    """Make the data of Omni-tiny: sound, pictures, films, and the JSON lines of each stage and each test.

    example:
      python -m examples.omni_tiny.make_data --to .omni_tiny --scale 0.1
    """

    to: Annotated[Path, arg(metavar="DIR")] = Path(".omni_tiny")
    """The folder to fill."""
    only: tuple[Group, ...] = ()
    """Groups to make; none for all. Films need the digits and human, lines need nothing."""
    scale: float = 1.0
    """Training amounts are multiplied by this. Other amounts are other data, so give another folder."""
    processes: int = 2
    """How many work at a time."""
    seed: int = 0
    fsdd: Annotated[Path | None, arg(metavar="DIR")] = None
    """The Free Spoken Digit Dataset. None is DIR/packages/fsdd."""
    tools: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where packages of npm are, or are fetched to. None is DIR/packages."""
    speaker_width: int = 192
    """Numbers of a voice's vector: enc_emb_dim of the model."""
    amounts: Amounts = field(default_factory=Amounts)


def main(args: Args) -> None:
    """Makes the groups that are asked for, and writes manifest.json.

    Raises:
        OmniError: a package is missing or another version.
    """
    tools = args.tools or args.to / "packages"
    args.to.mkdir(parents=True, exist_ok=True)
    remove_partial(args.to)
    complete = args.to / COMPLETE
    if complete.exists() and json.loads(complete.read_text()) != _settings(args):
        complete.unlink()  # what it tells of will not be all there is
    wanted = [name for name in Group.__args__ if not args.only or name in args.only]
    _, labels = packages.handwriting(tools)
    training = Training(args.seed, args.amounts.scaled(args.scale), labels)
    tests = HeldOut(args.seed, labels, prompts=packages.has_prompts()) if args.amounts.tests else None
    if "tests" in wanted and tests and not tests.prompts:
        print(
            f"Asterisk's prompts are not installed: tests without them. (apt-get install {packages.APT})",
            file=sys.stderr,
        )
    groups = training.groups() | ({"tests": list(tests.media())} if tests else {})
    groups = {name: groups[name] for name in wanted if name in groups}
    places = Places(args.to, tools, _prepared(groups, args, tools))
    for name, media in groups.items():
        _make_group(name, media, places, args)
    if "lines" in wanted:
        _write_lines(training, tests, args)
    if wanted == list(Group.__args__):
        with whole(complete) as partial:
            partial.write_text(json.dumps(_settings(args)) + "\n", encoding="utf-8")


def _prepared(groups: dict[str, list[Medium]], args: Args, tools: Path) -> Path | None:
    """Checks and unpacks what the groups need, before anything is made. Returns the folder of human digits."""
    recipes = [medium.recipe for media in groups.values() for medium in media]
    engines = {voices.engine(recipe["voice"]) for recipe in recipes if "voice" in recipe}
    packages.check_voices(sorted(engines))
    if "kokoro" in engines:
        packages.kokoro_model(tools)
        packages.kokoro_voices(tools)
    if any("human" in recipe for recipe in recipes):
        return packages.check_human(args.fsdd or args.to / "packages" / "fsdd")
    return None


def _make_group(name: str, media: list[Medium], places: Places, args: Args) -> None:
    start = time.perf_counter()
    paths = {medium.path for medium in media}
    done = sum((places.data / path).exists() for path in paths)
    with tqdm(total=len(paths), initial=done, desc=name, unit=" files", mininterval=1, disable=None) as bar:
        spent = make(media, places, args.processes, bar.update)
    facts = folder_facts(places.data, paths) | {"seconds": round(time.perf_counter() - start, 1)}
    facts["made"] = {
        kind: {"files": count, "processor_seconds": round(seconds, 2)} for kind, (count, seconds) in spent.items()
    }
    _note(args, name, facts)


def _write_lines(training: Training, tests: HeldOut | None, args: Args) -> None:
    start, counts = time.perf_counter(), {}
    for name, lines in training.lines().items():
        counts[f"{name}.jsonl"] = write_lines(args.to / f"{name}.jsonl", lines)
    sets = tests.sets() if tests else {}
    for name, lines in sets.items():
        counts[f"test_{name}.jsonl"] = write_lines(args.to / f"test_{name}.jsonl", lines)
    held_out = [{"audio": line["recording"], "text": line["reference"]} for line in sets.get("speaks", ())]
    counts["held_out_recordings.jsonl"] = write_lines(args.to / "held_out_recordings.jsonl", held_out)
    names = [*counts, *_write_voices(training, args)]
    facts = folder_facts(args.to, names) | {"lines": counts, "seconds": round(time.perf_counter() - start, 1)}
    _note(args, "lines", facts)


def _write_voices(training: Training, args: Args) -> list[str]:
    """voices.json and a vector each: fixed, of no meaning, at right angles to one another, of numbers about 1."""
    rng = np.random.default_rng([args.seed, 4])
    rows, _ = np.linalg.qr(rng.normal(size=(args.speaker_width, len(voices.TALKER))))
    content, names = {}, []
    for voice, row in zip(voices.TALKER, rows.T, strict=True):
        vector = (row * np.sqrt(args.speaker_width)).astype(np.float32)
        names.append(f"voices/{voice}.npy")
        with whole(args.to / names[-1]) as partial, open(partial, "wb") as file:
            np.save(file, vector)
        reference = training.references(voice)[0]
        content[voice] = {
            "speaker": vector.tolist(),
            "reference": reference.path,
            "reference_text": reference.facts["text"],
            "made_by": voices.TALKER[voice],
        }
    with whole(args.to / "voices.json") as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [*names, "voices.json"]


def _settings(args: Args) -> dict[str, Any]:
    """What decides which data there are."""
    return {"seed": args.seed, "scale": args.scale, "amounts": vars(args.amounts)}


def _note(args: Args, group: str, facts: dict) -> None:
    """Adds a group to manifest.json."""
    path = args.to / "manifest.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    before = content.get(group, {})
    if facts.get("made") == {} and before.get("sha256") == facts["sha256"]:
        facts = before  # all was there: the first run has told what it took
    content[group] = facts | _settings(args)
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    made = facts.get("made", {}).items()
    rates = ", ".join(f"{kind} {each['files'] / max(each['processor_seconds'], 0.01):.1f}/s" for kind, each in made)
    print(f"{group}: {facts['files']} files, {facts['bytes'] / 1e6:.1f} MB, {facts['seconds']:.0f} s  {rates}")


if __name__ == "__main__":
    run_main(main, Args)
