"""The stages of configs/, each at tiny size through the real run, on media decoded from disk: what their tests share.

    python -m tests.training.stages_thinker FOLDER

FOLDER has `checkpoints/` and `data/` (see `lay_out`) and gets one file in `data/` for each source that a configuration
names, `runs/`, and `results.json`. A stage begins with the model that its configuration names: that of the one before.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from input_pipeline.training_batch import RowShape
from tests.input_pipeline.media_files import numbered_frame, picture, tone, write_film, write_image

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE = RowShape(tokens=256, audio_blocks=3, patches=64)

Line = dict[str, Any]


def lay_out(folder: Path, imported: Path) -> None:
    """The checkpoints that the first configurations name, and `data/` with small media.

    The copy's films may have small frames: published, each takes at least 128 tokens.
    """
    tiny = folder / "checkpoints" / "assembled"
    tiny.mkdir(parents=True)
    for file in imported.iterdir():
        (tiny / file.name).symlink_to(file)
    processor = json.loads((imported / "preprocessor_config.json").read_text())
    processor |= {"video_min_pixels": 4 * 28 * 28, "video_max_pixels": 4 * 28 * 28}
    (tiny / "preprocessor_config.json").unlink()
    (tiny / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "checkpoints" / "qwen2.5-omni-7b").symlink_to(tiny)

    data = folder / "data"
    data.mkdir()
    for seed, name in enumerate(("cat", "house")):
        write_image(data / f"{name}.png", picture(56, 56, seed=seed))
    for name, hertz in (("drum", 110.0), ("bird", 2200.0)):
        soundfile.write(data / f"{name}.wav", tone(0.7, 16000, hertz=hertz), 16000)
    frames = [numbered_frame(i, 56, 56) for i in range(20)]
    for name, hertz in (("calm", 200.0), ("loud", 1500.0)):  # the same pictures: only the sound tells them apart
        write_film(data / f"{name}.mp4", frames, fps=10, sound=tone(2.0, 16000, hertz=hertz), sound_rate=16000)


def asked(file: str | None, question: str, **options: Any) -> list[Line]:
    """A user's turn about a file of `data/`, the form that both JSON lines and `Sampler.prepare` take."""
    kinds = {".png": "image", ".wav": "audio", ".mp4": "video"}
    media = [] if file is None else [{"type": (kind := kinds[Path(file).suffix]), kind: file, **options}]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def line(prompt: Sequence[Line], answer: str, **speech: Any) -> Line:
    """A conversation with its answer, said aloud where codes are given."""
    spoken = [{"type": "speech", **speech}] if speech else []
    return {"messages": [*prompt, {"role": "assistant", "content": [{"type": "text", "text": answer}, *spoken]}]}


def write_lines(file: Path, lines: Sequence[Line]) -> None:
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))


def shrunk(name: str, *, steps: int, learning_rate: float, rows: int = 2, shape: RowShape = SHAPE, **changes: Any):
    """configs/NAME.py, but for its size, its number of steps and how fast it learns."""
    from omni_jax.training.run_config import load_config

    config = load_config(CONFIGS / f"{name}.py")
    optimizer = replace(config.optimizer, learning_rate=learning_rate, warmup_steps=3, total_steps=steps)
    # by weight, one of a handful of samples would not come for many steps
    sources = tuple(replace(source, weight=None) for source in config.data.sources)
    data = replace(config.data, sources=sources, shape=shape, rows=rows, epochs=None, workers=changes.pop("workers", 0))
    common = dict(dtype="float32", log_every=1, save_every=0, sample_every=0, mesh={})
    return replace(config, optimizer=optimizer, data=data, **{**common, **changes})


def train(config: Any) -> list[Line]:
    """Rows of the metrics of a finished run."""
    from omni_jax.config_json import read_config
    from omni_jax.sampling.voices import load_speakers
    from omni_jax.training.metrics import read_rows
    from omni_jax.training.run import run

    model = read_config(config.checkpoint)
    voices = {name: each.token_id for name, each in load_speakers(config.checkpoint, model).items()}
    summary = run(config, config.stage.open_data(config, voices))
    assert (summary.step, summary.reason) == (config.optimizer.total_steps, "done")
    return [row for row in read_rows(config.output) if "loss" in row]


def few_sizes() -> None:
    """Fewer sizes than in use that requests are padded to."""
    from input_pipeline import packing, vision_pieces
    from omni_jax.sampling import generate, speech

    sizes = replace(
        packing.BUCKETS, batch=(8,), cache=(256,), audio_blocks=(6,), patches=(128,), windows=(16,), frames=(16,)
    )
    for module in (packing, vision_pieces, generate, speech):
        module.BUCKETS = sizes


def sampler_of(output: str) -> Any:
    from omni_jax.sampling.load import load_sampler

    return load_sampler(Path(output) / "model", chunk=64)


def prepared(sampler: Any, prompt: Sequence[Line]) -> Any:
    """A request of a prompt whose files lie in `data/`."""
    from input_pipeline.messages import one_form

    return sampler.prepare(one_form({"messages": prompt}, Path("data"))["messages"], use_audio_in_video=True)


def answers(output: str, lines: Sequence[Line]) -> list[str]:
    """Greedy answers of a trained model to the prompts of `lines`."""
    from omni_jax.sampling.options import SamplingOptions

    sampler = sampler_of(output)
    requests = [prepared(sampler, each["messages"][:-1]) for each in lines]
    return [each.text for each in sampler.generate(requests, SamplingOptions(max_new_tokens=16))]


def codes(output: str, lines: Sequence[Line]) -> list[tuple[list[int], str | None]]:
    """Greedy speech of a trained model for the prompts and answers of `lines`, and why it ended."""
    from omni_jax.sampling.options import SamplingOptions
    from omni_jax.sampling.speech import Speech
    from omni_jax.sampling.speech_options import AS_PUBLISHED

    sampler = sampler_of(output)
    speech = Speech.from_checkpoint(Path(output) / "model", sampler)
    requests, replies, options = [], [], []
    for each in lines:
        text, spoken = each["messages"][-1]["content"]
        requests.append(prepared(sampler, each["messages"][:-1]))
        replies.append([*sampler.tokenizer.encode(text["text"]), sampler.tokenizer.token_id("<|im_end|>")])
        options.append(replace(AS_PUBLISHED, voice=spoken["voice"], codes=SamplingOptions(max_new_tokens=40)))
    made, reasons = [[] for _ in lines], [None] * len(lines)
    for event in speech.stream_codes(requests, replies, options):
        made[event.row] += event.codes
        reasons[event.row] = event.finish_reason or reasons[event.row]
    return list(zip(made, reasons))


def run_in_child(module: str, folder: Path, *kind: str, **environment: str) -> Mapping[str, Any]:
    """What `python -m MODULE [KIND] FOLDER` leaves in results.json."""
    variables = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, "-m", module, *kind, str(folder)]
    done = subprocess.run(command, env=variables | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def parameters(model: Path | str) -> dict[str, bytes]:
    """The bytes of every parameter of a checkpoint folder."""
    from omni_jax.interop.restore import load_checkpoint_info, restore_leaves

    info = load_checkpoint_info(model)
    return {path: leaf.tobytes() for path, leaf in restore_leaves(info, list(info.shapes)).items()}
