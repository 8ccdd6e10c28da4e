"""The data of a run: the sources that its configuration names, behind one loader."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.example_context import ExampleContext, speech_codes
from input_pipeline.loader import Loader
from input_pipeline.records import RecordSource
from input_pipeline.sources import JsonlSource, Source, TfdsSource
from input_pipeline.tokenizer import Tokenizer
from omni_jax.config_json import read_config, read_processor_config
from omni_jax.errors import ConfigError, DataError
from omni_jax.training.run_config import RunConfig, SourceConfig, TfdsConfig, source_name

Progress = Callable[[str, int, int], None]
log = logging.getLogger(__name__)
_NAMED = 5  # samples that a message lists


class Conversations:
    """Opens sources of conversations for the Thinker and the Talker; an `OpenData` of `run.py`.

    Args:
        voices: embedding row of each voice, for models that speak.
        progress: called with stage, done, total while samples are measured for the first time.
        check: called with each source, to refuse what does not suit the run.
    """

    def __init__(
        self,
        config: RunConfig,
        voices: Mapping[str, int],
        *,
        progress: Progress | None = None,
        check: Callable[[Source], None] = lambda source: None,
    ):
        model = read_config(config.checkpoint)
        self._config, self._model, self._progress, self._check = config, model, progress, check
        self._context = ExampleContext(
            Tokenizer.load(config.checkpoint),
            model,
            read_processor_config(config.checkpoint),
            voices=voices,
            num_codes=speech_codes(model),
            use_audio_in_video=config.data.use_audio_in_video,
            default_system=config.data.system or None,
            train_on=config.data.train_on,
            with_speech=config.data.shape.speech > 0,
        )

    def __call__(self, sources: tuple[SourceConfig | TfdsConfig, ...], rows: Any, *, held_out: bool = False) -> Loader:
        """See `OpenData`.

        Raises:
            ConfigError: no sources, or weights of some only.
            DataError: a source that is missing or unusable. CapacityError: an example that no row holds.
        """
        data = self._config.data
        if not sources:
            raise ConfigError("There is nothing to train on. Name data.sources in the configuration.")
        weights = [source.weight for source in sources]
        if None in weights and any(weight is not None for weight in weights):
            raise ConfigError(f"data.sources: weights {weights}. Give one for each source, or for none.")
        opened = [self._open(source) for source in sources]
        for source in opened:
            _check_rejected(source, data.corrupt_share)
            self._check(source)
        return Loader(
            opened,
            data.shape,
            self._model,
            rows=rows.total,
            own=rows.own,
            accumulate=rows.batches,
            weights=None if None in weights else weights,
            seed=data.seed,
            epochs=1 if held_out else data.epochs,
            workers=0 if held_out else data.workers,
            max_corrupt_share=data.corrupt_share,
        )

    def _open(self, source: SourceConfig | TfdsConfig) -> Source:
        shape, name = self._config.data.shape, source_name(source)
        options = dict(name=name, workers=self._config.data.workers, progress=self._progress)
        if isinstance(source, TfdsConfig):
            args = source.dataset, source.split, source.to_conversation, self._context, shape
            return TfdsSource(*args, data_dir=source.data_dir, **options)
        if Path(source.path).is_dir():
            return RecordSource(source.path, self._context, shape, name=name)
        return JsonlSource(source.path, self._context, shape, **options)


def _check_rejected(source: Source, share: float) -> None:
    """Tells what a source leaves out, which was found when it was measured.

    Raises:
        DataError: more than `share` of it is broken; samples that are too long are not.
    """
    rejected = source.rejected
    if not rejected:
        return
    kinds = Counter(each.kind for each in rejected)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    log.warning("%s: %d of %d samples are left out (%s).", source.name, len(rejected), source.total, told)
    for each in rejected[:_NAMED]:
        log.warning("  %s: %s", each.name, each.reason)
    broken = [each for each in rejected if each.kind not in ("too long", "empty mask")]
    if len(broken) > share * source.total:
        raise DataError(
            f"{source.name}: {len(broken)} of {source.total} samples cannot be used, more than data.corrupt_share = "
            f"{share:g}. The first: {broken[0].name}: {broken[0].reason}\nMend them, or allow a larger share.",
            broken[0].kind,
        )
