"""A program that speaks with SVOX Pico: JSON lines in, for each a line of base64 of 16-bit samples at 16 kHz out.

Pico reads memory before it has written it, so in a process of others its sound depends on what they have left there.
Alone, with `MALLOC_PERTURB_=255`, it finds zeros (glibc), and the same words always sound the same.
"""

import base64
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np


def speak(voice: str, text: str, speed: float, pitch: float) -> np.ndarray:
    """float32 [W] at 16 kHz. Raises OSError where the program has ended."""
    process = _process()
    process.stdin.write(json.dumps({"voice": voice, "text": text, "speed": speed, "pitch": pitch}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise OSError(f"pico ended at {text!r}")
    return np.frombuffer(base64.b64decode(line), np.int16) / np.float32(32768)


@cache
def _process() -> subprocess.Popen:
    environment = os.environ | {"MALLOC_PERTURB_": "255"}
    command = [sys.executable, "-P", str(Path(__file__).resolve())]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def main() -> None:
    import py_nanotts

    voice = py_nanotts.NanoTTS()
    for line in sys.stdin:
        print(base64.b64encode(voice.speak(**json.loads(line))).decode(), flush=True)


if __name__ == "__main__":
    main()
