"""What the demo shows: scenes.json, the media beside it, and when an answer is right.

    {"scenes": [{"name": "same-number", "title": "Is it the number in the picture?",
                 "media": [{"kind": "image", "file": "four.png", "about": "a handwritten four"}, ...],
                 "question": "Is it the same number?",
                 "truth": "I see four and I hear six, so no.", "decisive": "no", "among": ["yes", "no"],
                 "voice": "heart", "credits": ["..."]}]}

"question" is what is typed, empty where it is spoken. "about" says what a medium shows or who says what in it. "voice"
is taken where the checkpoint has one of that name. An answer is right if those of its words that are `among` the given
ones are the decisive ones, no more and no fewer; without "among" all its words are compared.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_jax.config_json import read_json_object
from omni_jax.errors import DataError

FILE = "scenes.json"
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".flac": "audio/flac",
    ".wav": "audio/wav",
    ".mp4": "video/mp4",
}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Medium:
    """One file. kind: "image", "audio" or "video", as in messages."""

    kind: str
    file: Path
    about: str

    @property
    def mime(self) -> str:
        return TYPES[self.file.suffix]

    @property
    def item(self) -> dict[str, Any]:
        """The item of a message; films always bring their sound."""
        sound = {"use_audio": True} if self.kind == "video" else {}
        return {"type": self.kind, self.kind: str(self.file)} | sound


@dataclass(frozen=True)
class Scene:
    """A question with its media, and the truth about it."""

    name: str
    title: str
    media: tuple[Medium, ...]
    question: str
    truth: str
    decisive: str
    among: tuple[str, ...] = ()
    voice: str | None = None
    credits: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        typed = [{"type": "text", "text": self.question}] if self.question else []
        return [{"role": "user", "content": [*(medium.item for medium in self.media), *typed]}]

    def is_right(self, answer: str) -> bool:
        """Whether an answer has the decisive words, and no others of their kind."""
        heard = [word for word in words(answer) if not self.among or word in self.among]
        return heard == words(self.decisive)


def words(text: str) -> list[str]:
    """Small letters, no punctuation, digits as words: "Number 47." -> [number, four, seven]"""
    spelled = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", text.lower().replace("’", "'"))
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", spelled)


def read_scenes(folder: Path) -> list[Scene]:
    """The scenes of a folder, all media in place.

    Raises:
        ConfigError, DataError: the file is missing or no such file; a medium is missing; the key is named.
    """
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"{file} is missing. Give a folder with {FILE} and its media.", "missing media")
    given = read_json_object(file).get("scenes")
    if not isinstance(given, list) or not given:
        raise DataError(f'{file}: "scenes" must be a list of one scene or more.')
    scenes = [_scene(each, folder, f"{file}, scene {number}") for number, each in enumerate(given, start=1)]
    names = [scene.name for scene in scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file}: the name {twice[0]!r} is given twice. Files are named by it.")
    return scenes


def _scene(given: Any, folder: Path, where: str) -> Scene:
    if not isinstance(given, Mapping):
        raise DataError(f"{where} must be an object.")

    def text(key: str, *, empty: bool = False) -> str:
        value = given.get(key)
        if not isinstance(value, str) or not (value or empty):
            raise DataError(f'{where}: "{key}" must be a text{"" if empty else ", not empty"}.')
        return value

    def texts(key: str) -> tuple[str, ...]:
        value = given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise DataError(f'{where}: "{key}" must be a list of texts.')
        return tuple(value)

    name = text("name")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise DataError(f'{where}: "name" must be of a-z, 0-9 and -, not {name!r}.')
    media, question = _media(given.get("media", []), folder, where), text("question", empty=True)
    if not media and not question:
        raise DataError(f'{where} asks nothing: give "media", or a "question".')
    scene = Scene(
        name=name,
        title=text("title"),
        media=media,
        question=question,
        truth=text("truth"),
        decisive=text("decisive"),
        among=texts("among"),
        voice=text("voice") if given.get("voice") is not None else None,
        credits=texts("credits"),
    )
    if not scene.is_right(scene.truth):
        raise DataError(f'{where}: the truth itself would not be right. Correct "truth", "decisive" or "among".')
    return scene


def _media(given: Any, folder: Path, where: str) -> tuple[Medium, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise DataError(f'{where}: "media" must be a list.')
    found = []
    for each in given:
        kind, name, about = (each.get(key) if isinstance(each, Mapping) else None for key in ("kind", "file", "about"))
        if kind not in ("image", "audio", "video") or not isinstance(name, str) or not isinstance(about, str):
            raise DataError(
                f'{where}: a medium needs "kind" (image, audio or video), "file" and "about", not {each!r}.'
            )
        file = folder / name
        if file.suffix not in TYPES or not TYPES[file.suffix].startswith(kind):
            raise DataError(f"{where}: {name} is no {kind} that browsers show. Take one of: {', '.join(TYPES)}.")
        if not file.is_file():
            raise DataError(f"{where}: {file} is missing.", "missing media")
        found.append(Medium(kind, file, about))
    return tuple(found)
