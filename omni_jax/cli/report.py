"""One self-contained page about an answer: text, sound, mel, codes, and what each stage did when."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omni_jax.cli.sound_file import SAMPLE_RATE, open_wav, pcm

if TYPE_CHECKING:
    from omni_jax.cli.conversation import Answer

_STAGES = {"text": "text tokens", "codes": "speech codes", "dit": "DiT", "bigvgan": "BigVGAN"}
_COLOURS = {"text": "#4477aa", "codes": "#228833", "dit": "#ee6677", "bigvgan": "#aa3377"}
_WIDTH, _ROW, _LEFT = 960, 26, 110  # pixels
_CODES = 8192

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>OmniJAX answer</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: {width}px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h2 {{ font-size: 1.05rem; margin: 2rem 0 .4rem }}
img, svg, audio {{ width: 100% }}  img {{ image-rendering: pixelated }}
blockquote {{ margin: 0; padding: .6rem 1rem; background: #f3f3f3; white-space: pre-wrap; overflow-wrap: anywhere }}
svg.codes {{ background: #f3f3f3 }}  circle {{ r: 1.6px }}
table {{ border-collapse: collapse }}  td {{ padding: .1rem 1rem .1rem 0; font-variant-numeric: tabular-nums }}
code {{ font-size: .8rem; overflow-wrap: anywhere }}  small {{ color: #666 }}
</style>
<h1>OmniJAX</h1>
{body}
</html>
"""


def write_report(path: Path, messages: Sequence[Mapping[str, Any]], answer: "Answer") -> None:
    """Writes the page; it appears under its name when it is whole."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(page(messages, answer), encoding="utf-8")
    aside.replace(path)


def page(messages: Sequence[Mapping[str, Any]], answer: "Answer") -> str:
    """The whole page. It refers to nothing outside of itself."""
    parts = [_section("Question", f"<blockquote>{html.escape(_asked(messages))}</blockquote>")]
    parts.append(_section("Answer", f"<blockquote>{html.escape(answer.text)}</blockquote>"))
    if answer.waveform is not None and len(answer.waveform):
        seconds = len(answer.waveform) / SAMPLE_RATE
        sound = data_url("audio/wav", wav_bytes(answer.waveform))
        parts.append(_section(f"Speech, {seconds:.2f} s", f'<audio controls src="{sound}"></audio>'))
        picture = data_url("image/png", png_bytes(mel_picture(answer.waveform)))
        parts.append(_section("Mel spectrogram of the sound", f'<img alt="mel spectrogram" src="{picture}">'))
        parts.append(_section(f"{len(answer.codes)} codes, 50 a second", _codes(answer.codes)))
    elif answer.speech_reason is not None:
        parts.append(_section("Speech", f"<p>None: {html.escape(answer.speech_reason)}.</p>"))
    if answer.timeline:
        parts.append(_section("What each stage did when", _timeline(answer)))
    parts.append(_section("Seconds", _table(answer.seconds)))
    return _PAGE.format(width=_WIDTH, body="\n".join(parts))


def mel_picture(waveform: np.ndarray) -> np.ndarray:
    """uint8 [80, frames, 3]: log mel of 24 kHz sound, low frequencies at the bottom; dark is silent."""
    import librosa

    mel = librosa.feature.melspectrogram(y=waveform, sr=SAMPLE_RATE, n_fft=1024, hop_length=240, n_mels=80)
    level = np.clip(librosa.power_to_db(mel, ref=np.max, top_db=80) / 80 + 1, 0, 1)[::-1]
    stops = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(level, places, stops[:, c]) for c in range(3)], axis=-1).astype(np.uint8)


def _asked(messages: Sequence[Mapping[str, Any]]) -> str:
    content = messages[-1]["content"]
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "\n".join(str(item[item["type"]]) if item["type"] == "text" else f"[{item['type']}]" for item in items)


def _section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def _codes(codes: Sequence[int]) -> str:
    """A dot for each code, and the numbers to copy."""
    step = _WIDTH / max(len(codes), 1)
    places = [((i + 0.5) * step, 100 - 100 * code / _CODES) for i, code in enumerate(codes)]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in places)
    numbers = " ".join(map(str, codes))
    return (
        f'<svg class="codes" viewBox="0 0 {_WIDTH} 100" fill="#228833">{dots}</svg>'
        f"<details><summary>numbers</summary><code>{numbers}</code></details>"
    )


def _timeline(answer: "Answer") -> str:
    """A row for each stage and one for the sound itself, played as soon as it is there."""
    spans, first = answer.timeline, answer.seconds.get("first_sound")
    played = (0 if answer.waveform is None else len(answer.waveform) / SAMPLE_RATE) + (first or 0)
    total = max([span.end for span in spans] + [played])
    scale = (_WIDTH - _LEFT) / total

    def bar(row: int, start: float, end: float, colour: str, tip: str) -> str:
        return (
            f'<rect x="{_LEFT + start * scale:.1f}" y="{row * _ROW + 4}" height="{_ROW - 8}" '
            f'width="{max((end - start) * scale, 1):.1f}" fill="{colour}"><title>{html.escape(tip)}</title></rect>'
        )

    shown = [f'<text x="0" y="{row * _ROW + 18}">{label}</text>' for row, label in enumerate(_STAGES.values())]
    for span in spans:
        tip = f"{span.start:.3f} s to {span.end:.3f} s, {span.amount}"
        shown.append(bar(list(_STAGES).index(span.stage), span.start, span.end, _COLOURS[span.stage], tip))
    rows = len(_STAGES)
    note = f"{total:.2f} s in all."
    if first is not None:
        shown.append(f'<text x="0" y="{rows * _ROW + 18}">playing</text>')
        shown.append(bar(rows, first, played, "#bbbbbb", f"from {first:.3f} s"))
        x = _LEFT + first * scale
        shown.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{(rows + 1) * _ROW}" stroke="#222"/>')
        note = f"First sound after {first:.3f} s; {note}"
    height = (rows + 1) * _ROW
    return f'<svg viewBox="0 0 {_WIDTH} {height}" font-size="13">{"".join(shown)}</svg><p>{note}</p>'


def _table(seconds: Mapping[str, float]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:.3f}</td></tr>" for name, value in seconds.items())
    return f"<table>{rows}</table>"


def data_url(kind: str, content: bytes) -> str:
    """The content as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def wav_bytes(waveform: np.ndarray) -> bytes:
    """A wav file of 24 kHz sound."""
    out = io.BytesIO()
    with open_wav(out) as stream:
        stream.writeframes(pcm(waveform))
    return out.getvalue()


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W] or [H, W, 3]."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
