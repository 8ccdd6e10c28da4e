"""`omni-jax speech-report`: how good the codes of a speech tokenizer are."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from omni_jax.cli import console
from omni_jax.cli.clip_lines import LeftOut, groups
from omni_jax.cli.folders import imported_checkpoint
from omni_jax.errors import DataError, OmniError, PromptError

_GROUP = 32  # recordings in memory


@dataclass(frozen=True)
class SpeechReportArgs:
    """Report how good the codes of a speech tokenizer are, on recordings.

    - How many of the codes are in use, and their perplexity.
    - Where the recordings have codes: how many of them are found again.
    - What is made of the codes by Token2Wav, in the voice of the line ("speaker" and "reference", see
      omni_jax/training/run_clips.py) or in --voice: the distance of its mel and of its mel cepstra (dB) from the
      original, and how many codes come back when it is encoded again.
    - With --scorer, where the recordings have a text: word error rates of the original and of what is made of it.

    The exit status is 1 when no recording can be used.

    example:
      omni-jax speech-report --checkpoint runs/speech_tokenizer_inversion/model --data held_out.jsonl --json
    """

    checkpoint: Annotated[Path, arg(metavar="DIR")]
    """A folder with a speech tokenizer, that omni-jax train wrote."""
    data: Annotated[Path, arg(metavar="FILE")]
    """One recording in JSON a line: "audio", perhaps "codes", "text", "speaker" and "reference"."""
    resynthesis: bool = True
    """Make sound of the codes again. It takes most of the time."""
    voice: str | None = None
    """Of the recordings whose lines have no "speaker". None is the line's "voice", else the checkpoint's default."""
    scorer: Annotated[str | None, arg(metavar="thinker|MODULE:FUNCTION")] = None
    """Who listens, for word error rates: thinker is this checkpoint, else a function (waveform float32, sampling rate)
    -> text. None for nobody."""
    language: Literal["en", "zh"] | None = None
    """Of the texts. None is zh where a text has a Chinese character, else en."""
    solver: Literal["rk4", "euler"] = "rk4"
    """Of the flow from codes to mel: rk4 as published, or euler, a quarter of the work at the same --steps."""
    steps: int = 10
    """Time points of the solver, both ends counted."""
    seed: int = 0
    """Of the flow's noise."""
    most: Annotated[int | None, arg(metavar="INT")] = None
    """Look at the first of the recordings only."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of computation. None is float32 on a CPU, bfloat16 elsewhere."""
    json: bool = False
    """End standard output with one JSON object of all figures."""


@dataclass
class Mean:
    total: float = 0.0
    weight: float = 0.0

    def add(self, total: float, weight: float = 1.0) -> None:
        self.total, self.weight = self.total + total, self.weight + weight

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None


@dataclass(frozen=True, eq=False)
class Clip:
    """A recording, decoded. `blocks` is its mel, cut for the tokenizer."""

    name: str
    line: dict[str, Any]
    blocks: Any
    seconds: float


@dataclass
class Figures:
    """Sums over recordings. Means of distances are over frames, of codes over codes, of word errors over recordings."""

    clips: int = 0
    sound_seconds: float = 0.0
    means: dict[str, Mean] = field(default_factory=dict)

    def add(self, name: str, total: float, weight: float = 1.0) -> None:
        self.means.setdefault(name, Mean()).add(total, weight)

    def value(self, name: str) -> float | None:
        return self.means[name].value if name in self.means else None


def run(args: SpeechReportArgs) -> int:
    for name, low in (("steps", 2), ("most", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise PromptError(f"--{name} {value} is out of range. Give {low} or more.")
    if args.scorer is not None and not args.resynthesis:
        raise PromptError("--scorer compares the original with what is made of it: leave --no-resynthesis out.")
    imported_checkpoint(args.checkpoint)
    if not args.data.is_file():
        raise DataError(f"{args.data}: no such file. Check the path.")
    from input_pipeline.jsonl import JsonLines
    from omni_jax.sampling.speech_codes import SpeechCoder, tokenizer_config
    from omni_jax.training.speech_quality import CodeCounts, same_codes

    started, lines = time.perf_counter(), JsonLines(args.data)
    counts = CodeCounts(tokenizer_config(args.checkpoint).num_codes)
    score = _scorer(args)
    console.setup_jax()
    speaking = _Speaking(args) if args.resynthesis else None
    coder = SpeechCoder.from_checkpoint(args.checkpoint, dtype=args.dtype)
    figures, left = Figures(), LeftOut()
    indices = range(len(lines) if args.most is None else min(args.most, len(lines)))
    with console.Progress("listening", unit=" recordings") as bar:
        for number, group in enumerate(groups(indices, _GROUP)):
            bar("listening", number * _GROUP, len(indices))
            clips = list(_clips(lines, group, coder, left))
            for clip, codes in zip(clips, coder.encode_blocks([clip.blocks for clip in clips]), strict=True):
                try:
                    given = _given(clip.line, codes)
                    if speaking is not None:
                        speaking.compare(clip, codes, coder, figures, score, lines.path.parent)
                except (OmniError, OSError, ValueError) as error:
                    left.add(f"{clip.name}: {error}")
                    continue
                figures.clips += 1
                figures.sound_seconds += clip.seconds
                counts.add(codes)
                if given is not None:
                    figures.add("accuracy", *same_codes(codes, given))
    report = {"clips": figures.clips, "sound_seconds": figures.sound_seconds, **counts.report()}
    report["accuracy"] = figures.value("accuracy")
    names = ("mel_l1", "cepstral_db", "cycle_accuracy", "wer_original", "wer")
    report["resynthesis"] = {name: figures.value(name) for name in names} if args.resynthesis else None
    report |= left.as_json()
    out = console.Output(args.json)
    _tell(out, report)
    left.tell(out)
    out.result(report | {"seconds": time.perf_counter() - started})
    return console.OK if figures.clips else console.FAILED


def _scorer(args: SpeechReportArgs) -> Callable | None:
    """The recogniser; whatever is wrong with it shows before the work."""
    if args.scorer is None:
        return None
    from omni_jax.cli.prefer_scorers import own_scorer, thinker_scorer
    from omni_jax.training.transcripts import word_error_rate

    word_error_rate("a", "a", "en")  # its libraries are wanted later
    if args.scorer != "thinker":
        return own_scorer(args.scorer)
    from omni_jax.cli.conversation import Answerer

    return thinker_scorer(Answerer(args.checkpoint, dtype=args.dtype).sampler)


def _clips(lines: Any, group: range, coder: Any, left: LeftOut) -> Iterator[Clip]:
    from input_pipeline.media_audio import load_audio
    from omni_jax.sampling.speech_codes import RATE

    for index in group:
        try:
            line = lines.value(index)
            if not isinstance(line, dict) or not isinstance(line.get("audio"), str):
                raise DataError('a recording is an object with "audio", the path of a sound file.')
            sound = load_audio(str(lines.path.parent / line["audio"]), sampling_rate=RATE)
            yield Clip(lines.where(index), line, coder.cut(sound, line["audio"]), len(sound) / RATE)
        except (OmniError, OSError) as error:
            left.add(f"{lines.where(index)}: {error}")


def _given(line: dict[str, Any], codes: Any) -> Any:
    """The codes of the line, if it has any.

    Raises:
        DataError: they are none, or not of the sound's length.
    """
    if "codes" not in line:
        return None
    from omni_jax.training.run_clips import codes_of

    given = codes_of(line)
    if abs(len(given) - len(codes)) > 1:
        raise DataError(f"has {len(given)} codes, but sound for {len(codes)}. Give the codes of this recording.")
    return given


class _Speaking:
    """Token2Wav and the voices, and what comes of them."""

    def __init__(self, args: SpeechReportArgs):
        import jax.numpy as jnp

        from omni_jax.config_json import read_config
        from omni_jax.errors import CheckpointError
        from omni_jax.interop.restore import restore_params
        from omni_jax.models.flow import FlowOptions
        from omni_jax.sampling.token2wav import Token2Wav
        from omni_jax.sampling.voices import choose_speaker, load_speakers

        config = read_config(args.checkpoint)
        self.args, self.options = args, FlowOptions(args.solver, args.steps)
        self.voices = load_speakers(args.checkpoint, config)
        choose_speaker(self.voices, args.voice)
        self.config, sizes = config.token2wav_config.dit_config, config.speech_tokenizer_config
        if sizes.num_codes > self.config.num_embeds + 1:
            raise CheckpointError(
                f"The speech tokenizer has {sizes.num_codes} codes, Token2Wav {self.config.num_embeds + 1}: it cannot "
                "make sound of them. Give --no-resynthesis."
            )
        names = "speaker_encoder", "dit", "bigvgan"
        params = restore_params(args.checkpoint, config, dtype=jnp.float32, components=names)
        self.token2wav = Token2Wav(params, config.token2wav_config)
        self._own: dict[Any, Any] = {}

    def compare(
        self, clip: Clip, codes: Any, coder: Any, figures: Figures, score: Callable | None, folder: Path
    ) -> None:
        """Adds the figures of one recording; none of them if it cannot be used."""
        from input_pipeline.media_audio import load_audio
        from input_pipeline.speech_mel import speech_mel
        from omni_jax.sampling.speech_codes import RATE
        from omni_jax.training.speech_quality import cepstral_distance, mel_distance, same_codes

        real = load_audio(str(folder / clip.line["audio"]), sampling_rate=24_000)
        made = self.token2wav.block(codes, self._speaker(clip.line, folder), seed=self.args.seed, options=self.options)
        mels = speech_mel(made, name="What was made"), speech_mel(real, name=clip.line["audio"])
        again = coder.encode([load_audio((made, 24_000), sampling_rate=RATE)])[0]
        errors = {} if score is None else self._word_errors(clip, score, real, made)
        frames = min(map(len, mels))
        figures.add("mel_l1", mel_distance(*mels) * frames, frames)
        figures.add("cepstral_db", cepstral_distance(*mels) * frames, frames)
        figures.add("cycle_accuracy", *same_codes(again, codes))
        for name, value in errors.items():
            figures.add(name, value)

    def _speaker(self, line: dict[str, Any], folder: Path) -> Any:
        from omni_jax.sampling.voices import Speaker, choose_speaker
        from omni_jax.training.run_clips import voice_of

        if "speaker" not in line or "reference" not in line:
            return choose_speaker(self.voices, self.args.voice or line.get("voice"))
        key = str(line["speaker"]), str(line["reference"])
        if key not in self._own:
            mel, vector = voice_of(line, folder, self.config.enc_emb_dim)
            self._own = {key: Speaker(key[1], 0, vector, mel)}  # neighbours share a voice, and there may be many
        return self._own[key]

    def _word_errors(self, clip: Clip, score: Callable, real: Any, made: Any) -> dict[str, float]:
        from omni_jax.training.transcripts import language_of, normal_words, word_error_rate

        text = clip.line.get("text")
        if not isinstance(text, str):
            return {}
        language = self.args.language or language_of(text)
        if not normal_words(text, language):
            return {}
        heard = score([real, made], [language, language])
        rates = [word_error_rate(text, each.text, language) for each in heard]
        return dict(zip(("wer_original", "wer"), rates))


def _tell(out: console.Output, report: dict[str, Any]) -> None:
    out.write(f"{report['clips']} recordings, {report['sound_seconds']:.1f} s")
    out.write(
        f"codes: {report['codes']}, {report['distinct']} of {report['num_codes']} distinct, "
        f"perplexity {report['perplexity']:.1f}"
    )
    if report["accuracy"] is not None:
        out.write(f"accuracy: {report['accuracy']:.4f}")
    words = {"mel_l1": "mel, mean absolute distance", "cepstral_db": "mel cepstra, distance in dB"}
    words |= {"cycle_accuracy": "codes that come back", "wer_original": "word error rate, original"}
    words |= {"wer": "word error rate, made again"}
    for name, value in (report["resynthesis"] or {}).items():
        if value is not None:
            out.write(f"{words[name]}: {value:.4f}")
