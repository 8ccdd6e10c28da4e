"""Do our numbers equal PyTorch's? One table, a row for each component (see `parity_rows` for what passes).

`random_parity` builds a random PyTorch model, imports it and compares everything up to generated tokens.
`checkpoint_parity` compares a published folder, with the weights of one decoder layer in memory at a time.
Both walk the same way; a component joins by adding its function to `CHECKS`.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.packing import OmniInputs, pack_batch
from input_pipeline.request import Request
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config import OmniConfig, ProcessorConfig
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.interop import reference, reference_speech, reference_trace
from omni_jax.interop.import_checkpoint import import_checkpoint, plan_import
from omni_jax.interop.parity_cases import MediaFiles, conversations, make_media, prepare_cases
from omni_jax.interop.parity_encoders import audio_encoder_rows, vision_encoder_rows
from omni_jax.interop.parity_inputs import input_rows
from omni_jax.interop.parity_rows import Report, Row
from omni_jax.interop.parity_speech import spoken_rows
from omni_jax.interop.parity_talker import talker_rows
from omni_jax.interop.parity_thinker import greedy_rows, thinker_rows
from omni_jax.interop.parity_token2wav import token2wav_rows
from omni_jax.interop.parity_weights import MemoryWeights, PublishedWeights, Weights
from omni_jax.interop.random_checkpoint import make_random_checkpoint
from omni_jax.interop.reference_speech import SpeechReference
from omni_jax.interop.restore import restore_params
from omni_jax.sampling.generate import Sampler
from omni_jax.sampling.voices import Speaker, load_speakers

Progress = Callable[[str], None]


class Reference:
    """The PyTorch Thinker, and what it computed for each prompt; every prompt is run once.

    `speech`: the speaking half, None for a model without one.
    """

    def __init__(self, model: Any, requests: dict[str, Request], config: OmniConfig, speech: SpeechReference | None):
        self.model, self._requests, self._config, self.speech = model, requests, config, speech

    @cached_property
    def traces(self) -> list[reference_trace.Trace]:
        every = (reference.thinker_inputs([each], self._config, pad_id=0) for each in self._requests.values())
        return [reference_trace.trace(self.model, inputs) for inputs in every]

    def joined(self, name: str) -> np.ndarray:
        """Rows of tensor `name`, of all prompts one after the other."""
        parts = [trace[name] for trace in self.traces if name in trace]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


@dataclass
class Subject:
    """Both sides of a comparison, and the prompts they are compared on.

    `in_memory`: all of our weights are, so that whole models can run and generate. `speaks`: it has a Talker, whose
    `voices` are those of the checkpoint. `encoded`: outputs of our encoders by component, left by their checks for the
    Thinker's.
    """

    config: OmniConfig
    processor: ProcessorConfig
    tokenizer: Tokenizer
    media: MediaFiles
    requests: dict[str, Request]
    weights: Weights
    reference: Reference
    voices: dict[str, Speaker]
    progress: Progress = lambda stage: None
    encoded: dict[str, jax.Array] = field(default_factory=dict, init=False)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.weights, MemoryWeights)

    @property
    def speaks(self) -> bool:
        return self.reference.speech is not None

    @cached_property
    def sampler(self) -> Sampler:
        """Over all weights; the longest prompt takes two chunks."""
        params, own = self.weights.params, (self.config, self.tokenizer, self.processor)
        return Sampler(params, *own, dtype=jnp.float32, chunk=512)

    @cached_property
    def inputs(self) -> OmniInputs:
        return pack_batch(list(self.requests.values()), self.config, chunk=32)


Check = Callable[[Subject], Iterator[Row]]

# In data flow order: a check may use what those before it left in the subject.
CHECKS: tuple[Check, ...] = (
    input_rows,
    audio_encoder_rows,
    vision_encoder_rows,
    thinker_rows,
    greedy_rows,
    talker_rows,
    token2wav_rows,
    spoken_rows,
)


def run_checks(subject: Subject, checks: Sequence[Check] = CHECKS) -> list[Row]:
    """The rows of all `checks`, computed in float32 at the highest matrix product precision."""
    rows = []
    with jax.default_matmul_precision("highest"):
        for check in checks:
            for row in check(subject):
                subject.progress(row.name)
                rows.append(row)
    return rows


def random_parity(size: str = "tiny", *, seed: int = 0, progress: Progress = lambda stage: None) -> Report:
    """Compares on a random PyTorch model of `size` ("tiny" or "small"), taken over by the real importer.

    Raises:
        CheckpointError: the `parity` extra is not installed, or no such size.
    """
    with tempfile.TemporaryDirectory(prefix="omni-jax-parity-") as folder:
        subject = random_subject(Path(folder), size, seed=seed, progress=progress)
        return Report(tuple(run_checks(subject)))


def checkpoint_parity(folder: str | Path, *, seed: int = 0, progress: Progress = lambda stage: None) -> Report:
    """Compares on a published folder, on one prompt that mixes text, pictures, a recording and a film with sound.

    Raises:
        CheckpointError, ConfigError: files missing or damaged, or tensors that do not fit the configuration.
    """
    with tempfile.TemporaryDirectory(prefix="omni-jax-parity-") as media:
        subject = checkpoint_subject(Path(folder), Path(media), seed=seed, progress=progress)
        rows = run_checks(subject)
    tokens = sum(len(request.token_ids) for request in subject.requests.values())
    note = (
        f"One prompt of {tokens} tokens, layer by layer. 'alone': each layer on PyTorch's inputs; 'end to end': on our "
        "own, so errors add up. Of the answer, the first token is compared."
    )
    return Report(tuple(rows), (note,))


def random_subject(folder: Path, size: str, *, seed: int = 0, progress: Progress = lambda stage: None) -> Subject:
    """A random checkpoint, written to and imported within the empty `folder`."""
    reference.quiet()
    progress("random checkpoint")
    make_random_checkpoint(folder / "published", size, seed=seed)
    progress("import")
    import_checkpoint(folder / "published", folder / "imported")
    config = read_config(folder / "imported")
    weights = MemoryWeights(restore_params(folder / "imported", config, dtype=jnp.float32))
    whole = reference_speech.load_model(folder / "published")
    sound = whole.token2wav
    speech = SpeechReference(
        whole.talker, lambda: sound.code2wav_dit_model, lambda: sound.code2wav_bigvgan_model, whole
    )
    return _subject(folder / "imported", folder, config, weights, whole.thinker, speech, None, seed, progress)


def checkpoint_subject(folder: Path, media: Path, *, seed: int = 0, progress: Progress = lambda stage: None) -> Subject:
    """The published `folder`, both sides reading weights as they need them. `media`: an empty folder to write to."""
    progress("headers")
    config = read_config(folder)
    plan = plan_import(folder, config)
    model = reference_trace.lazy_thinker(folder, plan.tensors, on_load=progress)
    speech = None
    if "talker" in plan.components:
        talker = reference_trace.lazy_talker(folder, plan.tensors, on_load=progress)
        load_dit = partial(reference_speech.load_dit, folder, plan.tensors)
        speech = SpeechReference(talker, load_dit, partial(reference_speech.load_bigvgan, folder, plan.tensors))
    weights = PublishedWeights(plan.entries, plan.tensors)
    return _subject(folder, media, config, weights, model, speech, ("mixture",), seed, progress)


def _subject(folder, media_folder, config, weights, model, speech, names, seed, progress) -> Subject:
    tokenizer = Tokenizer.load(folder)
    has_processor = (folder / "preprocessor_config.json").is_file()
    processor = read_processor_config(folder) if has_processor else ProcessorConfig()
    (media_folder / "media").mkdir()
    media = make_media(media_folder / "media", seed=seed)
    messages = conversations(media)
    chosen = {name: messages[name] for name in names or messages}
    requests = prepare_cases(chosen, tokenizer, config, processor)
    compared = Reference(model, requests, config, speech)
    voices = {} if speech is None else load_speakers(folder, config)
    return Subject(config, processor, tokenizer, media, requests, weights, compared, voices, progress)
