"""The demo's page: questions and answers to see and hear, in one file that refers to nothing outside of itself."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omni_jax.cli.demo_drawing import mel_png, timeline, told
from omni_jax.cli.demo_play import Comparison, Played
from omni_jax.cli.demo_scenes import Medium, Scene
from omni_jax.cli.report import data_url, wav_bytes

Shown = tuple[Played, Comparison, str]  # and what the comparison has shown, in words

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --ground: #fff; --panel: #f4f5f7; --line: #d5d9e0; --soft: #5a6270;
  --right: #14713a; --wrong: #b3261e; --text: #3b6fb6; --codes: #2a8a4a; --dit: #d1495b; --bigvgan: #93378f;
  --heard: #9aa1ad; --once: #b07d1a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --ground: #14171c; --panel: #1e222a; --line: #3a404b;
  --soft: #a2aab8; --right: #6fd694; --wrong: #ff8f85; --text: #7fb0f0; --codes: #6cc88a; --dit: #f08a98;
  --bigvgan: #d88ad4; --heard: #7b8494; --once: #e0b45c } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--ground) }
article { background: var(--panel); border-radius: .6rem; padding: 1rem 1.25rem; margin: 1.5rem 0 }
h1 { margin: 0 } h2 { margin: 0 0 .75rem; font-size: 1.15rem } h3 { margin: 1rem 0 .3rem; font-size: .95rem }
p { margin: .3rem 0 } a { color: var(--text) } small, figcaption, .soft { color: var(--soft); font-size: .875rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0 0 .5rem } figure img, video { width: 10.5rem; image-rendering: pixelated; border-radius: .3rem }
img.mel { width: 100%; height: 7rem; image-rendering: pixelated; border-radius: .3rem } audio { width: 100% }
blockquote { margin: .2rem 0; font-size: 1.15rem; overflow-wrap: anywhere }
.right { color: var(--right); font-weight: 600 } .wrong { color: var(--wrong); font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } caption { text-align: left }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); font-weight: normal }
thead th { color: var(--soft); font-size: .875rem } .wide { overflow-x: auto }
svg { width: 100%; min-width: 36rem; font-size: 13px } svg text { fill: var(--soft) } svg line { stroke: var(--line) }
rect.once { fill: var(--once) } rect.text { fill: var(--text) } rect.codes { fill: var(--codes) }
rect.dit { fill: var(--dit) } rect.bigvgan { fill: var(--bigvgan) } rect.heard { fill: var(--heard) }
"""


@dataclass(frozen=True)
class Setting:
    """model: what answered, and how. seconds: of the demo's parts."""

    model: str
    seconds: Mapping[str, float]


def page(shown: Sequence[Shown], setting: Setting) -> str:
    """The whole page."""
    credits = [text for played, _, _ in shown for text in played.scene.credits]
    listed = "".join(f"<li>{html.escape(text)}</li>" for text in credits)
    sources = f'<h2>Where the media come from</h2><ul class="soft">{listed}</ul>' if credits else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>OmniJAX demo</title><style>{_STYLE}</style></head>\n<body><header><h1>OmniJAX</h1>\n"
        f"{_summary(shown, setting)}</header>\n<main>{''.join(_article(*each) for each in shown)}</main>\n"
        f"<footer>{sources}</footer></body></html>\n"
    )


def _summary(shown: Sequence[Shown], setting: Setting) -> str:
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in setting.seconds.items())
    rows = "".join(
        f'<tr><th scope="row"><a href="#{p.scene.name}">{html.escape(p.scene.title)}</a></th><td>{_verdict(p)}</td>'
        f"<td>{_time(p.first_text)}</td><td>{_time(p.first_sound)}</td><td>{_time(p.sound_seconds or None)}</td>"
        f"<td>{'-' if p.real_time_factor is None else f'{p.real_time_factor:.2f}'}</td>"
        f"<td>{'yes' if comparison.same else 'no'}</td></tr>"
        for p, comparison, _ in shown
    )
    names = ("scene", "answer", "first text", "first sound", "speech", "real-time factor", "streamed = offline")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<p class="soft">{html.escape(setting.model)}. {html.escape(parts)}.</p><div class="wide"><table><caption>'
        "Times in seconds from the question. Real-time factor: seconds of computing a second of speech; below 1 is "
        "faster than it is heard. Streamed = offline: the text made alone, then its codes, by other programs, are the "
        "same tokens and codes; and their sound, made of the same windows (on a CPU by the same programs, so it shows "
        "that the stream has put them together rightly), is the same."
        f"</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _article(played: Played, comparison: Comparison, difference: str) -> str:
    scene = played.scene
    return (
        f'\n<article id="{scene.name}"><h2>{html.escape(scene.title)}</h2>\n<div class="pair">'
        f"<section><h3>Question</h3>{_question(scene)}</section>\n"
        f"<section><h3>Answer: {_verdict(played)}</h3><blockquote>{html.escape(played.text) or '&nbsp;'}</blockquote>"
        f'<p class="soft">The truth: {html.escape(scene.truth)}</p>{_speech(played)}</section></div>\n'
        f'<h3>What happened when</h3><div class="wide">{timeline(played)}</div>\n'
        f"<p>{html.escape(told(played))}.</p>"
        f'<p class="soft">Compared with the offline answer: {html.escape(difference)}.</p></article>'
    )


def _question(scene: Scene) -> str:
    typed = f"<blockquote>{html.escape(scene.question)}</blockquote>" if scene.question else ""
    return "".join(_medium(medium) for medium in scene.media) + typed


def _medium(medium: Medium) -> str:
    url, about = data_url(medium.mime, medium.file.read_bytes()), html.escape(medium.about)
    players = {
        "image": f'<img src="{url}" alt="{about}">',
        "audio": f'<audio controls preload="metadata" aria-label="{about}" src="{url}"></audio>',
        "video": f'<video controls preload="metadata" aria-label="{about}" src="{url}"></video>',
    }
    return f"<figure>{players[medium.kind]}<figcaption>{about}</figcaption></figure>"


def _speech(played: Played) -> str:
    """The answer to hear, and its mel."""
    if not len(played.waveform):
        return f'<p class="soft">Nothing was spoken: {html.escape(played.speech_reason)}.</p>'
    wav, mel = data_url("audio/wav", wav_bytes(played.waveform)), data_url("image/png", mel_png(played.waveform))
    about = f"The spoken answer, {played.sound_seconds:.2f} seconds, voice {played.voice}"
    return (
        f'<figure><audio controls aria-label="{html.escape(about)}" src="{wav}"></audio>'
        f'<img class="mel" src="{mel}" alt="Mel spectrogram of the spoken answer, low frequencies at the bottom">'
        f"<figcaption>{html.escape(about)}. Begun after {played.smooth_from:.2f} s it is heard without a pause."
        "</figcaption></figure>"
    )


def _verdict(played: Played) -> str:
    return '<span class="right">right</span>' if played.right else '<span class="wrong">wrong</span>'


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
