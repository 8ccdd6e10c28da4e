"""The weight table of a whole model: the tables of its components, one after another."""

from collections.abc import Collection

from omni_jax.config import OmniConfig
from omni_jax.errors import CheckpointError
from omni_jax.interop import table_talker, table_thinker
from omni_jax.interop.weight_table import Table, check_table

THINKER_COMPONENTS = ("audio_encoder", "vision_encoder", "thinker")
TALKER_COMPONENTS = ("talker",)
TOKEN2WAV_COMPONENTS = ("speaker_encoder", "dit", "bigvgan")
COMPONENTS = (*THINKER_COMPONENTS, *TALKER_COMPONENTS, *TOKEN2WAV_COMPONENTS)
# Trained here, and in no published checkpoint: they have no table.
OWN_COMPONENTS = ("speech_tokenizer", "discriminator")


def table(config: OmniConfig) -> Table:
    """Every parameter of the model that `config` describes; without Talker or Token2Wav where it has none."""
    result = table_thinker.table(config.thinker_config)
    if config.talker_config is not None:
        result += table_talker.table(config.talker_config)
    if config.token2wav_config is not None:
        from omni_jax.interop import table_token2wav

        result += table_token2wav.table(config.token2wav_config)
    check_table(result)
    return result


def check_components(names: Collection[str]) -> None:
    """Raises CheckpointError if a name is not one of COMPONENTS or OWN_COMPONENTS."""
    known = (*COMPONENTS, *OWN_COMPONENTS)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise CheckpointError(f"There is no component {', '.join(unknown)}. Components: {', '.join(known)}.")
