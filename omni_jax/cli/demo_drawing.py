"""Drawings of the demo's page: when each stage worked and when text and sound came (SVG), and the mel of sound (PNG).

Colours are classes of the page's style, so that they fit its light and its dark look.
"""

import html
from collections.abc import Iterator

import numpy as np

from omni_jax.cli.demo_play import Played
from omni_jax.cli.report import mel_picture, png_bytes
from omni_jax.cli.sound_file import SAMPLE_RATE

# What is done once, in its order, and what the device does again and again.
_ONCE = {
    "read": "read the media",
    "encode_audio": "audio encoder",
    "encode_vision": "vision encoder",
    "prefill": "read the prompt",
}
_AGAIN = {"text": "text tokens", "codes": "speech codes", "dit": "mel (DiT)", "bigvgan": "sound (BigVGAN)"}
_WIDTH, _LEFT, _ROW, _AXIS = 960, 150, 22, 24  # units of the drawing


def mel_png(waveform: np.ndarray) -> bytes:
    """Log mel of 24 kHz sound as a PNG, low frequencies at the bottom; dark is silent."""
    return png_bytes(mel_picture(waveform))


def timeline(played: Played) -> str:
    """A row for each stage, then text and sound as they were handed out, then the sound as it could be played."""
    rows = list(_rows(played))
    last = max(end for _, bars in rows for _, end, *_ in bars)
    scale = (_WIDTH - _LEFT - 10) / last
    height = len(rows) * _ROW + _AXIS
    parts = [_axis(last, scale, len(rows) * _ROW)]
    for number, (label, bars) in enumerate(rows):
        parts.append(f'<text x="0" y="{number * _ROW + 15}">{label}</text>')
        for start, end, kind, tip in bars:
            parts.append(
                f'<rect class="{kind}" x="{_LEFT + start * scale:.1f}" y="{number * _ROW + 3}" height="{_ROW - 6}" '
                f'width="{max((end - start) * scale, 2.5):.1f}"><title>{html.escape(tip)}</title></rect>'
            )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(told(played))}">'
        f"{''.join(parts)}</svg>"
    )


def told(played: Played) -> str:
    """The timeline in words."""
    pieces = [("first text", played.first_text), ("first sound", played.first_sound), ("end", played.seconds["answer"])]
    return "Seconds from the question: " + ", ".join(f"{name} {time:.2f}" for name, time in pieces if time is not None)


Bar = tuple[float, float, str, str]  # from, to, class, tip


def _rows(played: Played) -> Iterator[tuple[str, list[Bar]]]:
    start = 0.0
    for stage, label in _ONCE.items():
        if stage in played.seconds:
            end = start + played.seconds[stage]
            yield label, [(start, end, "once", f"{label}: {end - start:.3f} s")]
            start = end
    for stage, label in _AGAIN.items():
        spans = [span for span in played.timeline if span.stage == stage]
        if spans:
            yield label, [(s.start, s.end, stage, f"{s.amount}, {s.start:.3f} to {s.end:.3f} s") for s in spans]
    texts = [(c.seconds, c.seconds, "text", f"{c.seconds:.3f} s: {c.text}") for c in played.chunks if c.text]
    sounds = [
        (c.seconds, c.seconds, "bigvgan", f"{c.seconds:.3f} s: {c.samples / SAMPLE_RATE:.3f} s of sound")
        for c in played.chunks
        if c.samples
    ]
    if texts:
        yield "text comes", texts
    if sounds:
        yield "sound comes", sounds
        begin, length = played.smooth_from, played.sound_seconds
        yield "could be heard", [(begin, begin + length, "heard", f"without a pause, from {begin:.3f} s on")]


def _axis(last: float, scale: float, bottom: int) -> str:
    """Lines at whole steps, ten at most."""
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if last / step <= 10 or step == 1000)
    parts = []
    for number in range(int(last / step) + 1):
        x = _LEFT + number * step * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number * step:g} s</text>'
        )
    return "".join(parts)
