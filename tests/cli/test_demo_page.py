"""The page of `omni-jax demo`: whole in itself, well-formed, and true to what was played."""

import base64
import io
import re
import wave
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from omni_jax.cli.demo import SCENES, difference, pace, spoken
from omni_jax.cli.demo_drawing import mel_png, timeline
from omni_jax.cli.demo_page import Setting, page
from omni_jax.cli.demo_play import Chunk, Comparison, Played
from omni_jax.cli.demo_scenes import Scene, read_scenes
from omni_jax.sampling.speech_options import Span
from tests.input_pipeline.media_files import tone

_VOID = {"meta", "img", "br", "line", "rect"}


def played(scene: Scene, *, text: str, seconds: float = 0.5) -> Played:
    """An answer whose first 40 ms of sound come at 0.3 s, the rest at 0.6 s: 0.26 s later than it would be heard."""
    chunks = [Chunk(0.2, text=text)]
    if seconds:
        chunks += [Chunk(0.3, samples=960), Chunk(0.6, samples=round(24_000 * seconds) - 960)]
    return Played(
        scene,
        "heart",
        text=text,
        token_ids=[1, 2],
        codes=[3] * round(50 * seconds),
        speech_reason="stop" if seconds else "silent",
        waveform=tone(seconds, 24_000).astype(np.float32),
        chunks=chunks,
        seconds={"read": 0.01, "prefill": 0.1, "answer": 0.7},
        timeline=[Span("text", 0.11, 0.2, 2), Span("dit", 0.2, 0.25, 24), Span("bigvgan", 0.25, 0.3, 960)],
    )


@pytest.fixture(scope="module")
def answers():
    scenes = read_scenes(SCENES)
    found = [played(scene, text=scene.truth) for scene in scenes[:-2]]
    return [*found, played(scenes[-2], text="<b>&amp;"), played(scenes[-1], text="", seconds=0)]


@pytest.fixture(scope="module")
def content(answers):
    same = Comparison(True, True, 0.0)
    return page([(each, same, difference(each, same)) for each in answers], Setting("1 M parameters", {"all": 3.0}))


class Strict(HTMLParser):
    """Fails on anything that is not closed in its order, and collects attributes and words."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def parsed(content):
    parser = Strict()
    parser.feed(content)
    parser.close()
    assert not parser.open
    return parser


def test_it_refers_to_nothing_outside(parsed, content):
    addresses = [attrs[name] for _, attrs in parsed.tags for name in ("src", "href", "data", "poster") if name in attrs]
    identifiers = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    for address in addresses:
        assert address.startswith("data:") or address.removeprefix("#") in identifiers
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags} and "url(" not in content


def test_every_address_decodes(parsed, answers):
    kinds = []
    for tag, attrs in parsed.tags:
        if "src" not in attrs:
            continue
        kind, data = re.fullmatch(r"data:([a-z]+/[a-z0-9]+);base64,(.+)", attrs["src"]).groups()
        content = base64.b64decode(data, validate=True)
        kinds.append(kind)
        if kind == "image/png":
            Image.open(io.BytesIO(content)).verify()
        elif kind == "audio/wav":
            with wave.open(io.BytesIO(content)) as sound:
                assert (sound.getframerate(), sound.getnframes()) == (24_000, 12_000)
        else:
            assert content[:4] == b"fLaC" or content[4:8] == b"ftyp"
        assert tag in ("img", "audio", "video")
    assert kinds.count("audio/wav") == len([each for each in answers if len(each.waveform)])
    assert {"image/png", "audio/flac", "video/mp4"} <= set(kinds)


def test_everything_has_a_name_for_those_who_do_not_see_it(parsed):
    for tag, attrs in parsed.tags:
        if tag == "img":
            assert attrs["alt"]
        if tag in ("audio", "video", "svg"):
            assert attrs["aria-label"]
        if tag in ("audio", "video"):
            assert "controls" in attrs and "autoplay" not in attrs
    assert ("html", {"lang": "en"}) in parsed.tags


def test_words_of_the_model_are_not_markup(parsed, content):
    assert "<b>&amp;" in parsed.words and "<b>" not in content


def test_truth_stands_beside_the_answer(parsed, answers):
    words = "".join(parsed.words)
    for each in answers:
        assert f"The truth: {each.scene.truth}" in words and each.scene.title in words
    assert parsed.words.count("right") == 2 * 4 and parsed.words.count("wrong") == 2 * 2  # above, and at the scene
    assert "Nothing was spoken: silent." in words


def test_figures_of_an_answer(answers):
    one, silent = answers[0], answers[-1]
    assert (one.first_text, one.first_sound, one.real_time_factor) == (0.2, 0.3, pytest.approx(1.4))
    assert one.smooth_from == pytest.approx(0.6 - 0.04)  # the second piece is wanted 40 ms after the first
    assert "first sound after 0.30 s, 1.40 s of computing a second of sound" in spoken(one)
    assert silent.real_time_factor is silent.first_sound is silent.smooth_from is None
    assert spoken(silent) == "none (silent)"
    assert pace([one, silent]) == "First sound after 0.30 to 0.30 s; 1.40 to 1.40 s of computing a second of sound."
    assert pace([silent]) == "Nothing was spoken."


def test_the_timeline_is_a_drawing(answers):
    for each in answers:
        drawing = ElementTree.fromstring(timeline(each))
        labels = [node.text for node in drawing.iter("text")]
        assert "read the prompt" in labels and "mel (DiT)" in labels
        assert ("could be heard" in labels) == bool(len(each.waveform))
        width = float(drawing.attrib["viewBox"].split()[2])
        for bar in drawing.iter("rect"):
            assert 0 < float(bar.attrib["width"]) <= width and float(bar.attrib["x"]) < width
            assert bar.find("title").text


def test_mel_is_a_picture_of_80_bands():
    picture = Image.open(io.BytesIO(mel_png(tone(0.5, 24_000).astype(np.float32))))
    assert picture.size == (51, 80)


@pytest.mark.parametrize(
    "comparison, same, words",
    [
        (
            Comparison(True, True, 0.0),
            True,
            "the same 2 tokens, the same 25 codes, 12000 samples, largest difference 0",
        ),
        (Comparison(True, True, 5e-6), True, "largest difference 5e-06"),
        (Comparison(True, True, 2e-4), False, "largest difference 0.0002"),
        (Comparison(True, False, 0.0), False, "the same 2 tokens, other CODES"),
        (Comparison(False, True, float("inf")), False, "other TOKENS"),
    ],
)
def test_what_streamed_and_offline_have_in_common(answers, comparison, same, words):
    assert comparison.same == same
    assert words in difference(answers[0], comparison)
