"""The stages of configs/ that learn from recordings, in a process of its own; see `stages.py`.

Codes are those of a decoder that makes tones, in lines and voices of `omni-jax speech-pairs`; text is read from a
simple voice.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from omni_jax.config import BigVGANConfig, DiscriminatorConfig
from omni_jax.presets import speech_tokenizer_preset
from tests.speech_data import linked_checkpoint, read_lines
from tests.training.spoken_sounds import TONES, sound_of_codes, voice
from tests.training.stages import Line, shrunk, train, write_lines

STAGES = ("speech_tokenizer_inversion", "speech_tokenizer_scratch", "token2wav", "vocoder")
JUDGES = DiscriminatorConfig(
    periods=(2, 3), period_channels=(4, 8), resolutions=((512, 120, 480),), resolution_channels=4
)
# The tiny checkpoint's has all the stages of the published one, which take a minute to compile.
VOCODER = BigVGANConfig(
    upsample_initial_channel=64,
    upsample_rates=(15, 16),
    upsample_kernel_sizes=(31, 32),
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
)
PAIRS, CODES = 3, 24  # clips, enough to be told apart, and codes of each
SPOKEN = ((1.0, "oh"), (0.7, "ja!"))


def lay_out(folder: Path, imported: Path, pairs: Path) -> None:
    """A checkpoint for each route, and `data/` as the configurations name it.

    The tokenizer from scratch begins with the audio encoder, and is as large.
    """
    for route, layers in (("inversion", 3), ("scratch", 2)):
        tokenizer = replace(speech_tokenizer_preset("tiny", route), encoder_layers=layers)
        sizes = {"speech_tokenizer_config": plain(tokenizer), "discriminator_config": plain(JUDGES)}
        token2wav = json.loads((imported / "config.json").read_text())["token2wav_config"]
        token2wav["dit_config"]["dropout"] = 0.0  # clips are to be learnt by heart
        linked_checkpoint(imported, folder / "checkpoints" / route, token2wav_config=token2wav, **sizes)
    (folder / "checkpoints" / "qwen2.5-omni-7b").symlink_to("inversion")
    with_vocoder(imported, folder / "checkpoints" / "vocoder")
    data = folder / "data"
    data.mkdir()
    for name in ("sound", "voices"):
        (data / name).symlink_to(pairs / name)
    made = read_lines(pairs / "clips.jsonl")[:PAIRS]
    for number, line in enumerate(made):
        # what the random Token2Wav makes sounds much the same whatever the codes: there would be nothing to learn
        codes = np.random.default_rng(number).integers(0, TONES, CODES)
        soundfile.write(data / f"tones{number}.wav", sound_of_codes(codes, 24000), 24000)
        line |= {"audio": f"tones{number}.wav", "codes": codes.tolist()}
    for name in ("made_speech", "voiced_codes"):
        write_lines(data / f"{name}.jsonl", made)
    lines: list[Line] = []
    for number, (seconds, text) in enumerate(SPOKEN):
        soundfile.write(data / f"{number}.wav", voice(seconds, 24000, seed=number), 24000)
        lines.append({"audio": f"{number}.wav", "text": text})
    for name in ("transcribed", "recordings"):
        write_lines(data / f"{name}.jsonl", lines)


def with_vocoder(source: Path, target: Path) -> None:
    """The checkpoint with a smaller vocoder that has learnt nothing."""
    import jax
    from flax.core import meta

    from omni_jax.config_json import read_config
    from omni_jax.models import bigvgan
    from omni_jax.sharding.mesh import make_mesh
    from omni_jax.training.checkpoints_model import save_model

    model = read_config(source)
    token2wav = replace(model.token2wav_config, bigvgan_config=VOCODER)
    model = replace(model, token2wav_config=token2wav, discriminator_config=JUDGES)
    params = {"bigvgan": meta.unbox(jax.jit(bigvgan.init_params, static_argnums=1)(jax.random.key(0), VOCODER))}
    save_model(target, params, model, source=source, mesh=make_mesh(fsdp=1), about={})
    file = target / "config.json"
    content = json.loads(file.read_text())
    content["token2wav_config"]["bigvgan_config"] |= plain(VOCODER)
    file.write_text(json.dumps(content | {"discriminator_config": plain(JUDGES)}))


def plain(config: Any) -> dict[str, Any]:
    """As config.json has it."""
    return {key: value for key, value in json.loads(json.dumps(asdict(config))).items() if key != "source"}


def stages(pairs: int = PAIRS) -> dict[str, Any]:
    tokenizer = dict(learning_rate=4e-3, remat="none")
    inversion = shrunk("speech_tokenizer_inversion", steps=80, rows=pairs, **tokenizer)
    # a random encoder has not learnt to hear: from it, codes are learnt more slowly
    inversion = replace(inversion, stage=replace(inversion.stage, from_audio_encoder=False))
    scratch = shrunk("speech_tokenizer_scratch", steps=80, learning_rate=2e-3, remat="none")
    # text pulls hardest at the start: a sudden one would pull all sound into a few codes
    scratch = replace(scratch, optimizer=replace(scratch.optimizer, warmup_steps=30))
    vocoder = shrunk("vocoder", steps=60, learning_rate=4e-3)
    vocoder = replace(vocoder, checkpoint="checkpoints/vocoder", stage=replace(vocoder.stage, segment=12))
    configs = {
        "speech_tokenizer_inversion": inversion,
        "speech_tokenizer_scratch": replace(scratch, checkpoint="checkpoints/scratch"),
        "token2wav": shrunk("token2wav", steps=70, learning_rate=6e-3, rows=pairs, remat="none"),
        "vocoder": vocoder,
    }
    short = {"token2wav": 0.5, "vocoder": 1.0}
    return {
        name: replace(config, data=replace(config.data, clip_seconds=short.get(name, 2.0), augment=False))
        for name, config in configs.items()
    }


def encoded(output: str, data: str, target: str) -> dict[str, Any]:
    """What `omni-jax speech-codes` makes of the recordings with the model of a run, and what the codes should be."""
    from omni_jax.cli.main import main as omni

    model = ["--checkpoint", f"{output}/model"]
    assert omni(["speech-codes", *model, "--data", data, "--to", target]) == 0
    wanted = [line.get("codes") for line in read_lines(Path(data))]
    return {"codes": [line["codes"] for line in read_lines(Path(target))], "wanted": wanted}


def restored(folder: str, *components: str) -> tuple[Any, Mapping[str, Any]]:
    """Configuration of Token2Wav, and parameters."""
    from omni_jax.config_json import read_config
    from omni_jax.interop.restore import restore_params

    config = read_config(folder)
    return config.token2wav_config, restore_params(folder, config, dtype=np.float32, components=components)


def mel_distances(folder: str, data: str) -> float:
    """How far the mel that the flow makes of the codes of all clips is from that of their sound."""
    import jax

    from input_pipeline.clip_files import load_sound, voice_of
    from input_pipeline.speech_batch import stacked, voiced_row
    from omni_jax.models import dit
    from omni_jax.models.flow import FlowOptions

    config, params = restored(folder, "speaker_encoder", "dit")
    config, rows = config.dit_config, []
    for line in read_lines(Path(data)):
        codes, sound = np.asarray(line["codes"]), load_sound(line, Path("data"), 24_000)
        rows.append(voiced_row(codes, sound, *voice_of(line, Path("data"), config.enc_emb_dim), length=25))
    batch, options = stacked(rows), FlowOptions("euler", 8, guidance_scale=0.0)

    @jax.jit
    def sample(params, codes, speaker, ref_mel, lengths, key):
        return dit.sample_full(params, config, codes, speaker, ref_mel, key=key, lengths=lengths, options=options)

    made = sample(params, batch.codes, batch.speaker, batch.ref_mel, batch.lengths, jax.random.key(0))
    real = np.arange(made.shape[1]) < batch.lengths[:, None]
    return float(np.abs(np.asarray(made) - batch.mel)[real].mean())


def vocoded(folder: str, data: str) -> list[float]:
    """Of each recording: how far the mel of what the vocoder makes of its mel is from that."""
    import jax

    from input_pipeline.clip_files import load_sound
    from input_pipeline.speech_mel import speech_mel
    from omni_jax.models.bigvgan import BigVGAN

    config, params = restored(folder, "bigvgan")
    speak, distances = jax.jit(lambda params, mel: BigVGAN(config.bigvgan_config).apply({"params": params}, mel)), []
    for line in read_lines(Path(data)):
        mel = speech_mel(load_sound(line, Path("data"), 24_000))[:60]
        distances.append(float(np.abs(speech_mel(np.asarray(speak(params["bigvgan"], mel[None])[0])) - mel).mean()))
    return distances


def main(folder: str, *names: str) -> None:
    import time

    os.chdir(folder)
    results = {}
    for name, config in stages().items():
        if names and name not in names:
            continue
        started = time.process_time()
        results[name] = {"rows": train(config)}
        data, models = config.data.sources[0].path, (config.checkpoint, f"{config.output}/model")
        trained = time.process_time()
        if name.startswith("speech_tokenizer"):
            results[name] |= encoded(config.output, data, f"data/{name}.jsonl")
        else:
            distances = mel_distances if name == "token2wav" else vocoded
            results[name]["before"], results[name]["after"] = (distances(model, data) for model in models)
        print(name, trained - started, time.process_time() - trained, file=sys.stderr)
        Path("results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
