"""`omni-jax speech-pairs`: sound whose codes are known, made by the Talker and Token2Wav of a checkpoint."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.clip_lines import LeftOut, groups, write_lines
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import DataError, OmniError, PromptError

if TYPE_CHECKING:
    import numpy as np

    from omni_jax.sampling.speech_options import SpeechOptions

CLIPS, MADE = "clips.jsonl", "made.jsonl"
_SHORTEST = 10  # codes: shorter clips have hardly a sound
_PIECES = 5, 25  # codes that stay together when codes are shuffled: about a syllable
_A_FOLDER = 1000  # sound files


@dataclass(frozen=True)
class SpeechPairsArgs:
    """Make pairs of speech codes and sound for the stages speech_tokenizer_inversion, token2wav and vocoder.

    Each text is spoken in each voice, --samples times, with other codes and other noise each time. A share of the codes
    is shuffled and made to sound once more, so that they are heard in orders that no text gives.

    The folder gets sound/*.wav (24 kHz), voices/*.npy and clips.jsonl, which training reads. Stopped or killed, the
    same command goes on; the same options and --seed give the same pairs.

    example:
      omni-jax speech-pairs --checkpoint omni-7b --texts texts.txt --to data/made --voices Chelsie Ethan --samples 4
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder that omni-jax import or train wrote."""
    texts: Annotated[Path, arg(metavar="FILE.txt|FILE.jsonl")]
    """A text a line; or conversations as for training, whose last message, the assistant's, is said."""
    destination: Annotated[Path, arg(name="to", metavar="DIR")]
    """The folder of the pairs."""
    voices: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Who speaks; omni-jax voices lists the names. None named are all."""
    samples: int = 1
    """Clips of each text in each voice."""
    shuffled_codes: Annotated[float, arg(metavar="SHARE")] = 0.25
    """Share of the clips whose codes are also shuffled into a further clip."""
    seed: int = 0
    """Another number gives other codes and other noise."""
    temperature: float = 0.9
    """Of the draw of codes."""
    max_codes: int = 1000
    """Longest clip; 50 codes are a second. Training leaves out what is longer than its data.clip_seconds."""
    batch: int = 16
    """Clips that are drawn at a time."""
    solver: Literal["rk4", "euler"] = "rk4"
    """Of the flow from codes to mel: rk4 as published, or euler, a quarter of the work at the same --steps."""
    steps: int = 10
    """Time points of the solver, both ends counted."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the Talker. None is float32 on a CPU, bfloat16 elsewhere. Sound is always made in float32."""
    json: bool = False
    """End standard output with one JSON object: clips, sound_seconds, codes, distinct ones, what was left out."""


def run(args: SpeechPairsArgs) -> int:
    _check(args)
    imported_checkpoint(args.checkpoint)
    from input_pipeline.example_context import speech_codes
    from omni_jax.cli.conversation import Answerer
    from omni_jax.cli.prefer_file import AnswerFile
    from omni_jax.interop.checkpoint_digest import checkpoint_digest
    from omni_jax.sampling.voices import choose_speaker, load_speakers
    from omni_jax.training.speech_quality import CodeCounts

    spoken = _options(args)
    started, answerer = time.perf_counter(), Answerer(args.checkpoint, dtype=args.dtype, speak=True)
    speakers = load_speakers(args.checkpoint, answerer.config)
    speakers = {name: choose_speaker(speakers, name) for name in args.voices or speakers}
    texts = _Texts(args.texts)
    _make_folders(args.destination)
    kept = ("samples", "shuffled_codes", "seed", "temperature", "max_codes", "solver", "steps", "dtype")
    settings = {name: getattr(args, name) for name in kept} | {"texts": texts.digest, "voices": list(speakers)}
    made = AnswerFile(
        args.destination / MADE, settings | {"checkpoint": checkpoint_digest(args.checkpoint), "batch": args.batch}
    )
    codes = speech_codes(answerer.config)
    _write_voices(args.destination, speakers)
    _make(args, spoken, answerer, texts, list(speakers), codes, made)

    counts, left, clips = CodeCounts(codes), LeftOut(), 0

    def lines() -> Iterator[dict[str, Any]]:  # one by one: there may be more than fit into memory
        nonlocal clips
        for row in made.rows():
            if "reason" in row:
                left.add(row["reason"])
            for clip in row["clips"]:
                counts.add(clip["codes"])
                clips += 1
                yield clip

    write_lines(args.destination / CLIPS, lines())
    use, out = counts.report(), console.Output(args.json)
    report = {"clips": clips, "sound_seconds": use["codes"] / 50, **use, **left.as_json()}
    report["to"] = str(args.destination / CLIPS)
    out.write(
        f"{clips} clips of {report['sound_seconds']:.1f} s in all, {use['distinct']} of {codes} codes, "
        f"perplexity {use['perplexity']:.1f}, in {report['to']}"
    )
    left.tell(out)
    out.result(report | {"seconds": time.perf_counter() - started})
    return console.OK if clips else console.FAILED


def _check(args: SpeechPairsArgs) -> None:
    for name, low in (("samples", 1), ("max_codes", _SHORTEST), ("batch", 1), ("steps", 2), ("seed", 0)):
        if getattr(args, name) < low:
            raise PromptError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range. Give {low} or more.")
    if not 0 <= args.shuffled_codes <= 1:
        raise PromptError(f"--shuffled-codes {args.shuffled_codes:g} is out of range. Give a share of 0 to 1.")
    if len(set(args.voices)) < len(args.voices):
        raise PromptError(f"--voices {' '.join(args.voices)}: a voice is named twice. Use --samples for more clips.")
    if not args.texts.is_file():
        raise DataError(f"{args.texts}: no such file. Check the path.")
    if args.destination.exists() and not args.destination.is_dir():
        raise DataError(f"{args.destination} is a file. Give the name of a folder.")


def _options(args: SpeechPairsArgs) -> "SpeechOptions":
    """Of all clips, but for voice and seed. Raises PromptError for one that is out of range."""
    from omni_jax.models.flow import FlowOptions
    from omni_jax.sampling.speech_options import CODE_SAMPLING, SpeechOptions

    sampling = replace(CODE_SAMPLING, max_new_tokens=args.max_codes, temperature=args.temperature)
    return SpeechOptions(codes=sampling, flow=FlowOptions(args.solver, args.steps))


def _make_folders(folder: Path) -> None:
    try:
        (folder / "voices").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}. Choose another --to.") from error


class _Texts:
    """What is to be said: lines of a text file, or last answers of conversations."""

    def __init__(self, file: Path):
        from input_pipeline.jsonl import JsonLines

        self._lines = JsonLines(file)
        self._plain, self.digest = file.suffix != ".jsonl", self._lines.digest

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> tuple[list[dict[str, Any]], str]:
        """The messages before the answer, and the answer.

        Raises:
            DataError: malformed, or there is no answer of words.
        """
        if self._plain:
            return _asked(self._lines.text(index))
        conversation = self._lines.read(index)
        if "text" in conversation:
            return _asked(conversation["text"])
        *before, last = conversation["messages"]
        if last["role"] != "assistant" or not before:
            raise DataError("the last message is not an assistant's answer. Write what is to be said.")
        content = last["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(item.get("text") or "" for item in items).strip()
        if not text:
            raise DataError("the assistant's turn has no words.")
        return before, text

    def where(self, index: int) -> str:
        return self._lines.where(index)


def _asked(text: str) -> tuple[list[dict[str, Any]], str]:
    return [{"role": "user", "content": [{"type": "text", "text": f"Read this aloud: {text}"}]}], text.strip()


def _write_voices(folder: Path, speakers: Mapping[str, Any]) -> None:
    """The vector and the reference mel of each voice, as training with Token2Wav reads them."""
    import numpy as np

    for name, speaker in speakers.items():
        for kind, values in (("", speaker.vector), (".mel", speaker.ref_mel)):
            target = folder / "voices" / f"{name}{kind}.npy"
            half = target.with_name(f".{target.name}")
            try:
                with open(half, "wb") as stream:
                    np.save(stream, np.asarray(values, np.float32))
                half.replace(target)
            except OSError as error:
                raise DataError(f"{target}: cannot be written: {error.strerror}. Choose another --to.") from error


@dataclass(frozen=True)
class _Clip:
    """The `sample`-th clip of a text in one voice; `number` among all, texts first."""

    number: int
    text: int
    voice: str
    sample: int

    def seed(self, seed: int, use: int) -> int:
        """Of what is drawn for it, whoever does it and whenever."""
        import numpy as np

        return int(np.random.SeedSequence((seed, self.number, use)).generate_state(1)[0] >> 1)

    def file(self, kind: str) -> str:
        return f"sound/{self.number // _A_FOLDER:04d}/{self.number:07d}{kind}.wav"


def _make(
    args: SpeechPairsArgs,
    spoken: "SpeechOptions",
    answerer: Any,
    texts: _Texts,
    voices: Sequence[str],
    codes: int,
    made: Any,
) -> None:
    """Adds what is missing; loads the model only if anything is."""
    each = len(voices) * args.samples
    count = len(texts) * each
    # the same clips are always drawn together: not even rounding depends on where a run was stopped
    todo = [group for group in groups(range(count), args.batch) if not made.done.issuperset(group)]
    if not todo:
        return
    with console.Progress("making speech", unit=" clips") as bar:
        for group in todo:
            bar("making speech", group[0], count)
            clips = [_Clip(n, n // each, voices[n % each // args.samples], n % args.samples) for n in group]
            rows = _group(args, spoken, answerer, texts, clips, codes)
            made.add([row for row in rows if row["index"] not in made.done])


def _group(
    args: SpeechPairsArgs,
    spoken: "SpeechOptions",
    answerer: Any,
    texts: _Texts,
    clips: Sequence[_Clip],
    num_codes: int,
) -> list[dict[str, Any]]:
    """A row for each clip: lines of what was made, sound in files, or why nothing was."""
    import numpy as np

    read, rows = {}, []
    for index in dict.fromkeys(clip.text for clip in clips):
        try:
            before, text = texts.read(index)
            end = answerer.tokenizer.token_id("<|im_end|>")
            read[index] = answerer.prepare(before), [*answerer.tokenizer.encode(text), end], text
        except OmniError as error:
            read[index] = f"{texts.where(index)}: {error}"
    ready = [clip for clip in clips if not isinstance(read[clip.text], str)]

    def options(clip: _Clip, use: int) -> "SpeechOptions":
        return replace(spoken, voice=clip.voice, codes=replace(spoken.codes, seed=clip.seed(args.seed, use)))

    drawn: list[list[int]] = [[] for _ in ready]
    if ready:
        requests, replies = ([read[clip.text][part] for clip in ready] for part in (0, 1))
        for event in answerer.speech.stream_codes(requests, replies, [options(clip, 0) for clip in ready]):
            drawn[event.row] += event.codes
    found = {clip.number: _sounding(own, num_codes) for clip, own in zip(ready, drawn)}
    for clip in clips:
        codes, row = found.get(clip.number), {"index": clip.number, "clips": []}
        rows.append(row)
        if codes is None:
            row["reason"] = read[clip.text]
            continue
        if len(codes) < _SHORTEST:
            row["reason"] = f"{texts.where(clip.text)}, {clip.voice}: only {len(codes)} codes were drawn."
            continue
        about = {"text": read[clip.text][2], "voice": clip.voice}
        row["clips"].append(_render(args.destination, answerer.speech, clip.file(""), codes, options(clip, 0), about))
        chance = np.random.default_rng(clip.seed(args.seed, 1))
        if chance.random() < args.shuffled_codes:
            mixed, about = shuffled(codes, chance), {"voice": clip.voice, "shuffled": True}
            place = clip.file("-shuffled")
            row["clips"].append(_render(args.destination, answerer.speech, place, mixed, options(clip, 2), about))
    return rows


def _sounding(codes: Sequence[int], num_codes: int) -> list[int]:
    """Codes up to the first that is none of a tokenizer's."""
    stop = next((place for place, code in enumerate(codes) if not 0 <= code < num_codes), len(codes))
    return list(codes[:stop])


def shuffled(codes: Sequence[int], rng: "np.random.Generator") -> list[int]:
    """The same codes, in pieces of about a syllable, in another order."""
    pieces, start = [], 0
    while start < len(codes):
        stop = start + int(rng.integers(_PIECES[0], _PIECES[1] + 1))
        pieces.append(codes[start:stop])
        start = stop
    return [code for place in rng.permutation(len(pieces)) for code in pieces[place]]


def _render(
    folder: Path, speech: Any, name: str, codes: list[int], options: Any, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the sound of codes; the line that tells of it."""
    from omni_jax.cli.sound_file import SoundFile

    (waveform,) = speech.synthesise([codes], options)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with SoundFile(path) as file:
        file.write(waveform)
    voice = {"speaker": f"voices/{options.voice}.npy", "reference": f"voices/{options.voice}.mel.npy"}
    return {"audio": name, "codes": codes, **about, **voice, "noise": options.codes.seed}
