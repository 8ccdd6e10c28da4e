"""All that a run is made of, in one dataclass that configs/*.py fill in and the command line may override."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from input_pipeline.chat import DEFAULT_SYSTEM_TEXT
from input_pipeline.training_batch import RowShape
from omni_jax.errors import ConfigError
from omni_jax.sharding.axes import parse_mesh
from omni_jax.training.lora import LoraConfig
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.run_stages import DpoStage, Stage
from omni_jax.training.step import Guard

# What does not decide which numbers come out, or by rounding only: a resumed run may have other values of these.
MAY_CHANGE = (
    "output",
    "data.workers",
    "data.corrupt_share",
    "mesh",
    "remat",
    "round_products",
    "log_every",
    "save_every",
    "keep",
    "tolerated_saves",
    "held_out",
    "held_out_batches",
    "eval_every",
    "prompts",
    "sample_every",
    "sample_tokens",
    "model_dtype",
    "stage.other_reference",
)

# Settings that old runs could not have, and what those did.
_SINCE = {"optimizer.rule": "adamw", "optimizer.momentum": 0.95}
# What a checkpoint holds has another form.
_NEVER = ("optimizer.rule",)

_Mesh = Annotated[
    dict[str, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="AXIS=SIZE,...",
        instance_from_str=lambda given: parse_mesh(given[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda mesh: [",".join(f"{axis}={size}" for axis, size in mesh.items())],
    ),
]


@dataclass(frozen=True)
class SourceConfig:
    """Examples of one kind.

    path: a JSON lines file of conversations, or a folder of shards from `omni-jax prepare`.
    weight: its share of the examples; None in all sources lets them end their epochs together.
    name: for losses by source; by default the file's or folder's.
    """

    path: str
    weight: float | None = None
    name: str = ""


@dataclass(frozen=True)
class TfdsConfig:
    """A TensorFlow dataset in the array_record form, by name or folder.

    to_conversation: a module's function that turns one of its records into a conversation.
    """

    dataset: str
    split: str
    to_conversation: tyro.conf.Fixed[Callable[[dict[str, Any]], Mapping[str, Any]]]
    weight: float | None = None
    name: str = ""
    data_dir: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    shape: room in one row. rows: of a batch, over all hosts; a step takes `accumulate` such batches.
    epochs: of the whole mixture; None for as many as the steps take.
    workers: processes of each host that decode and compute features.
    corrupt_share: the run ends when more than this share of the samples that were read could not be.
    use_audio_in_video: hear the sound tracks of films. system: turn of conversations that have none; None for no turn.
    train_on: learn all answers of a conversation, or the last.
    clip_seconds, augment: for stages of sound alone, whose sources list recordings (see `run_clips.py`): longer ones
        are left out; what is heard is changed by noise, rooms and other voices where that leaves the target true.
    """

    sources: tuple[SourceConfig | TfdsConfig, ...] = ()
    shape: RowShape = field(default_factory=lambda: RowShape(tokens=8192))
    rows: int = 8
    epochs: int | None = None
    workers: int = 4
    seed: int = 0
    corrupt_share: float = 0.01
    use_audio_in_video: bool = False
    system: str | None = DEFAULT_SYSTEM_TEXT
    train_on: Literal["all", "last"] = "all"
    clip_seconds: float = 20.0
    augment: bool = False


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    stage: what is learnt, see `run_stages.py`.
    checkpoint: a folder of `omni-jax import`, or the `model` folder of an earlier run, to start from.
    output: gets checkpoints/, metrics.jsonl, tensorboard/, and at the end model/, a folder like `checkpoint`. Several
        hosts must share it.
    optimizer: `total_steps` is the length of the run.
    freeze: regular expressions; parameters in whose path one is found stay as they are.
    rates: regular expression -> factor of the learning rate.
    accumulate: batches whose gradients are added up for one step.
    dtype: of compute; master copies of what is trained are float32.
    round_products: of a float32 run on a single CPU with AMX, which takes less time so: linear maps round their factors
        to bfloat16 and sum in float32, and attention is computed in bfloat16. Layers stand one after another instead of
        in a loop, so it is for few layers. Other devices take no notice.
    remat: what layers keep for the backward pass: none (all), dots, full (their input).
    mesh: sizes of the mesh axes data, fsdp, tensor, context; by default all devices on fsdp.
    guard: which steps are skipped, and how many in a row end the run.
    log_every, save_every, eval_every, sample_every: steps; 0 for never.
    keep: checkpoints that stay. tolerated_saves: saves that may fail in a row.
    held_out: like `data.sources`; their loss is reported, on `held_out_batches` batches.
    prompts: questions in text that are answered now and then, in at most `sample_tokens` tokens.
    model_dtype: of model/; None stores each parameter as `checkpoint` does.
    """

    stage: Stage
    checkpoint: str
    output: str
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    freeze: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    lora: LoraConfig | None = None
    guard: Guard = field(default_factory=Guard)
    accumulate: int = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    round_products: bool = False
    remat: Literal["none", "dots", "full"] = "full"
    mesh: _Mesh = field(default_factory=dict)
    seed: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 3
    tolerated_saves: int = 2
    held_out: tuple[SourceConfig | TfdsConfig, ...] = ()
    held_out_batches: int = 16
    eval_every: int = 0
    prompts: tuple[str, ...] = ()
    sample_every: int = 0
    sample_tokens: int = 64
    model_dtype: Literal["bfloat16", "float32"] | None = None

    def __post_init__(self):
        for name in ("accumulate", "keep", "held_out_batches", "sample_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1.")
        for name in ("log_every", "save_every", "eval_every", "sample_every", "tolerated_saves"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 0.")
        if self.data.rows < 1 or self.data.workers < 0:
            raise ConfigError(f"data.rows = {self.data.rows} must be at least 1, data.workers at least 0.")
        if self.data.clip_seconds <= 0 or not 0 <= self.data.corrupt_share <= 1:
            raise ConfigError(
                f"data.clip_seconds = {self.data.clip_seconds:g} must be above 0, data.corrupt_share = "
                f"{self.data.corrupt_share:g} from 0 to 1."
            )
        if self.eval_every and not self.held_out:
            raise ConfigError("eval_every is given, but no held_out data. Name some, or leave eval_every out.")
        if self.round_products and (self.dtype != "float32" or isinstance(self.stage, DpoStage)):
            raise ConfigError(
                "round_products is for runs with dtype float32, and not for DpoStage, whose reference is not rounded. "
                "Leave it out."
            )
        if self.sample_every and not self.prompts:
            raise ConfigError("sample_every is given, but no prompts. Name some, or leave sample_every out.")


def source_name(source: SourceConfig | TfdsConfig) -> str:
    """What reports call a source."""
    return source.name or (Path(source.path).stem if isinstance(source, SourceConfig) else Path(source.dataset).name)


def load_config(file: str | Path) -> RunConfig:
    """The `config` of a Python file.

    Raises:
        ConfigError: no such file, an error in it, or no `config` in it.
    """
    file = Path(file)
    if not file.is_file():
        raise ConfigError(
            f"{file} does not exist. Give a Python file that says config = RunConfig(...), as in configs/."
        )
    spec = importlib.util.spec_from_file_location(f"_run_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{file} does not say config = RunConfig(...). See configs/ for examples.")
    return config


def to_json(config: Any) -> Any:
    """As plain JSON values; a dataclass that stands where others could is told by "kind"."""
    if dataclasses.is_dataclass(config):
        values = {each.name: to_json(getattr(config, each.name)) for each in dataclasses.fields(config)}
        assert "kind" not in values, f"a field of {type(config).__name__} would hide its own name"
        return {"kind": type(config).__name__, **values} if not isinstance(config, RunConfig) else values
    if isinstance(config, Mapping):
        return {str(name): to_json(value) for name, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_json(value) for value in config]
    if callable(config):
        return f"{config.__module__}.{config.__qualname__}"
    return config


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"rows": 8}} -> {"data.rows": 8}; lists stay whole."""
    out = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and name not in ("rates", "mesh"):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that differ between two configurations in JSON, with both values (None where there is none)."""
    a, b = flat(before), flat(json.loads(json.dumps(now)))
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], *, allowed: Collection[str] = ()) -> None:
    """That a run may go on with `now` where it was made with `before`.

    Args:
        allowed: keys, or their beginnings, that may differ besides `MAY_CHANGE`.

    Raises:
        ConfigError: others differ; all are named.
    """

    def covered(key: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in (*MAY_CHANGE, *allowed))

    since = {key: value for key, value in _SINCE.items() if key in flat(now)}
    differences = changed(since | flat(before), now)
    for key in _NEVER:
        if key in differences:
            was, given = map(_short, differences[key])
            raise ConfigError(
                f"The checkpoint was made with {key} = {was}, and what it holds is of no use for {given}. Undo the "
                "change, or give another --output to start anew."
            )
    wrong = {key: values for key, values in differences.items() if not covered(key)}
    if wrong:
        lines = [f"{key}: was {_short(was)}, is {_short(now)}" for key, (was, now) in wrong.items()]
        options = " ".join(f"--allow-change {key}" for key in wrong)
        raise ConfigError(
            "The checkpoint was made with another configuration:\n  "
            + "\n  ".join(lines)
            + f"\nUndo the change, give another --output to start anew, or accept it with {options}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
