"""Training data from files to packed rows, without a device: samples per second and core, by kind of sample.

    OMP_NUM_THREADS=1 python benchmarks/training_data.py --workers 2 --json

The media are made here and encoded as real files: pictures of 640 x 480 (JPEG), clips of 5 s (FLAC, 16 kHz), films of
2 s with sound (H.264 and AAC, 320 x 240, 25 frames per second, of which the model sees 2). Features are those of the
published models; the tokenizer is a small one.

    one core     decoding, features, chat template and packing in this process, by its processor time over all threads
    the loader   the mixture in rows of 2,048 tokens, through `Loader` with worker processes, by the clock; and how many
                 batches were not ready for a step that takes --step-seconds
    the plan     one million sizes, packed into rows of 8,192 tokens, by processor time
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from input_pipeline.example_context import ExampleContext, speech_codes
from input_pipeline.loader import Loader
from input_pipeline.pack_rows import pack_row
from input_pipeline.plan import Plan
from input_pipeline.sources import JsonlSource
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.training_batch import RowShape
from omni_jax.config import ProcessorConfig
from omni_jax.interop.random_tokenizer import write_tokenizer
from omni_jax.presets import preset

CONFIG = preset("tiny")
SHAPE = RowShape(tokens=2048, audio_blocks=16, patches=8192, speech=2048)
WORDS = "the quick brown fox jumps over a lazy dog and sees what the others have seen before "


def write_media(folder: Path, count: int, seed: int = 0) -> None:
    """`count` pictures, clips and films."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:480, 0:640]
    for i in range(count):
        waves = np.stack([np.sin(x / draw.uniform(5, 40)) * np.cos(y / draw.uniform(5, 40)) for _ in range(3)], -1)
        pixels = np.clip(128 + 90 * waves + draw.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
        sound = 0.3 * np.sin(np.arange(5 * 16000) * draw.uniform(0.02, 0.3)) + draw.normal(0, 0.02, 5 * 16000)
        soundfile.write(folder / f"{i}.flac", sound, 16000)
        _write_film(folder / f"{i}.mp4", pixels[::2, ::2], sound[: 2 * 16000].astype(np.float32))


def _write_film(path: Path, picture: np.ndarray, sound: np.ndarray) -> None:
    """The picture moves to the left; 2 s."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        pictures.height, pictures.width, pictures.pix_fmt = *picture.shape[:2], "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for i in range(50):
            moved = np.ascontiguousarray(np.roll(picture, -3 * i, axis=1))
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def conversations(kind: str, count: int) -> list[dict[str, Any]]:
    """Messages of one kind of sample."""
    key, suffix = {"picture": ("images", "jpg"), "clip": ("audios", "flac")}.get(kind, ("videos", "mp4"))
    lines = []
    for i in range(count):
        answer: Any = WORDS * 3
        question = WORDS * 4
        line: dict[str, Any] = {}
        if kind == "speech":
            codes = [(7 * i + j) % 8 for j in range(250)]  # 5 s
            answer = [{"type": "text", "text": answer}, {"type": "speech", "voice": "Chelsie", "codes": codes}]
        elif kind != "text":
            question = f"<{key[:-1]}>{question}"
            line[key] = [f"{i}.{suffix}"]
        lines.append(line | {"messages": [_turn("user", question), _turn("assistant", answer)]})
    return lines


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


KINDS = {"text": "text of 500 letters", "speech": "text, answer of 5 s in codes", "picture": "picture of 640 x 480",
         "clip": "clip of 5 s", "film": "film of 2 s with sound"}  # fmt: skip


def one_core(source: JsonlSource, repeats: int) -> dict[str, float]:
    """Milliseconds of processor time for each sample, and samples per second; the least of some repeats."""
    examples = [source.example(i) for i in range(len(source))]  # files are in memory from now on
    read, pack = [], []
    for _ in range(repeats):
        started = time.process_time()
        for i in range(len(source)):
            source.example(i)
        read.append(time.process_time() - started)
        started = time.process_time()
        for example in examples:
            pack_row([example], SHAPE, CONFIG)
        pack.append(time.process_time() - started)
    count = len(source)
    return {
        "samples_per_second_per_core": count / (min(read) + min(pack)),
        "decode_milliseconds": 1e3 * min(read) / count,
        "pack_milliseconds": 1e3 * min(pack) / count,
    }


def through_loader(sources: Sequence[JsonlSource], workers: int, steps: int, step_seconds: float) -> dict[str, float]:
    """Samples per second at full speed, and the batches that a loop of steady steps had to wait for."""
    found: dict[str, float] = {}
    for pace in (0.0, step_seconds):
        with Loader(sources, SHAPE, CONFIG, rows=2, workers=workers) as loader:
            next(loader)  # workers have started
            started = time.perf_counter()
            for _ in range(steps):
                next(loader)
                time.sleep(pace)
            seconds = time.perf_counter() - started
            totals = loader.totals
        if pace:
            found |= {"step_seconds": pace, "waits": totals.waits - 1, "steps": steps}
        else:
            found["samples_per_second"] = totals.examples * steps / (steps + 1) / seconds
    return found


def planning(count: int = 1_000_000) -> dict[str, float]:
    """Seconds of processor time for a plan of `count` examples of all kinds, and the share of tokens used."""
    draw = np.random.default_rng(0)
    sizes = np.zeros((count, 5), np.int32)
    sizes[:, 0] = np.clip(draw.lognormal(np.log(700), 0.7, count), 64, 8192)
    sizes[:, 1] = draw.integers(1, 16, count) * (draw.random(count) < 0.5)
    sizes[:, 2] = draw.integers(1, 40, count) * 64 * (draw.random(count) < 0.5)
    started = time.process_time()
    fill = Plan([sizes], None, RowShape(8192, 64, 8192), 0, epochs=1).fill()
    return {"seconds": time.process_time() - started, "rows": fill.rows, "tokens_used": fill.share["tokens"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=24, help="files of each kind (default: 24)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the fastest counts (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the loader (default: 2)")
    parser.add_argument("--steps", type=int, default=20, help="batches of the loader (default: 20)")
    parser.add_argument("--step-seconds", type=float, default=1.0, help="a step of the pretended device (default: 1)")
    parser.add_argument("--json", action="store_true", help="end standard output with one JSON object")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    log = sys.stderr if args.json else sys.stdout
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder)
        write_media(folder, args.samples)
        context = ExampleContext(
            Tokenizer.load(folder), CONFIG, ProcessorConfig(), voices={"Chelsie": 1110}, num_codes=speech_codes(CONFIG),
            use_audio_in_video=True,
        )  # fmt: skip
        sources = []
        print(f"{'sample':30} {'per second and core':>20} {'decoding':>12} {'packing':>10}", file=log)
        for kind, words in KINDS.items():
            file = folder / f"{kind}.jsonl"
            file.write_text("\n".join(json.dumps(line) for line in conversations(kind, args.samples)))
            sources.append(JsonlSource(file, context, SHAPE))
            found = one_core(sources[-1], args.repeats)
            rows.append({"name": words} | found)
            each, decode, pack = found.values()
            print(f"{words:30} {each:20.1f} {decode:9.1f} ms {pack:7.1f} ms", file=log, flush=True)
        found = through_loader(sources, args.workers, args.steps, args.step_seconds)
        rows.append({"name": f"loader, all kinds alike, {args.workers} workers", "workers": args.workers} | found)
        print(
            f"loader, {args.workers} workers, all kinds alike: {found['samples_per_second']:.1f} samples a second; "
            f"with steps of {args.step_seconds:g} s, {found['waits']} of {args.steps} batches were waited for",
            file=log,
        )
    found = planning()
    rows.append({"name": "plan of 1,000,000 examples"} | found)
    print(f"plan of 1,000,000 examples: {found['seconds']:.1f} s, {found['tokens_used']:.1%} of tokens used", file=log)
    if args.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
