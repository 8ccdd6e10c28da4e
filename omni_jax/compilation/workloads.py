"""What can be compiled: a table of workloads, and what a workload is made of.

To add one, write a function `build(options: Options) -> Workload` and add a line to `WORKLOADS`:

    def build(options):                                                      # e.g. training_workload.py
        state, batch = ...       # nested jax.ShapeDtypeStruct with shardings over options.mesh(…)
        step = Program("train_step", jitted_step, (state, batch), times=1)   # jax.jit(..., donate_argnums=0)
        resident = {"parameters": state.params, "optimiser": state.opt_state, "batch": batch}
        return Workload((step,), resident, mesh=mesh, rules=TRAINING, unit="token", units=batch_tokens)

Arrays that lie in memory all the time are `resident`, by kind; a program's arguments are recognised as resident by
identity, so hand the same objects to both. A program is traced under the workload's mesh and rules. The compiler then
tells each program's temporary memory; the peak is what is resident plus the most that one program needs beside it.

This module imports no JAX, so that the command line can list its table.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_jax.errors import ConfigError

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from omni_jax.config import OmniConfig

# name -> module:function; a function's module is imported when its workload is asked for
WORKLOADS = {
    "prefill": "omni_jax.compilation.sampling_workloads:prefill",
    "decode": "omni_jax.compilation.sampling_workloads:decode",
    "speech": "omni_jax.compilation.speech_workload:speech",
    "train": "omni_jax.compilation.training_workload:train",
    "stage": "omni_jax.compilation.stage_workload:stage",
}
# stages of training, by the name of their file in configs/; "pretrain1" is the larger half of that stage
STAGES = (
    "pretrain1_adapters",
    "pretrain1_encoders",
    "pretrain2",
    "pretrain3",
    "sft",
    "talker_icl",
    "talker_dpo",
    "talker_speaker",
    "speech_tokenizer_inversion",
    "speech_tokenizer_scratch",
    "token2wav",
    "vocoder",
)


@dataclass(frozen=True)
class Options:
    """What a user may choose about a workload.

    Attributes:
        config: the model.
        devices: what the programs are compiled for, from a topology description.
        context: cache slots of each row; None for those that a film of 60 s with sound needs.
        batch: rows, or sequences of a training step; None for the workload's own choice.
        dtype: "bfloat16" or "float32", of parameters, caches and compute; None for a training run's own.
        weights: "int8" to store large matrices so, of workloads that answer; None for `dtype`.
        mesh: sizes of mesh axes, e.g. {"fsdp": 4}; None for the workload's own choice.
        extra: options of one workload only, as text.
    """

    config: "OmniConfig"
    devices: "list[jax.Device]"
    context: int | None = None
    batch: int | None = None
    dtype: str | None = "bfloat16"
    weights: str | None = None
    mesh: Mapping[str, int] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The batch of a workload that answers: one request unless more are asked for."""
        return 1 if self.batch is None else self.batch


@dataclass(frozen=True, eq=False)
class Program:
    """One compiled function of a workload.

    Attributes:
        function: made by `jax.jit`, or a `omni_jax.sharding.scope.Program`. Donation is its own affair.
        args, kwargs: arrays as `jax.ShapeDtypeStruct` with shardings; static arguments as they are.
        times: how often the workload runs it.
        loop: iterations of loops whose length data decides.
        split: the devices share the work; False where each does all of it.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    times: float = 1
    loop: int = 1
    split: bool = True


@dataclass(frozen=True, eq=False)
class Workload:
    """Programs, and what lies in memory while they run.

    Attributes:
        resident: by kind ("parameters", "cache", "optimiser", "batch", …), nested `jax.ShapeDtypeStruct`.
        rules: logical axis -> mesh axes, as of `omni_jax/sharding/rules.py`.
        unit, units: what one run of the whole workload makes, e.g. 32 of "token".
        notes: lines for people, e.g. what the default context comes from.
        remedies: what would need less memory, for a workload that does not fit.
        model_flops: operations that the model itself needs on all devices, nothing done twice; of training steps.
    """

    programs: tuple[Program, ...]
    resident: Mapping[str, Any]
    mesh: "Mesh"
    rules: Mapping[str, Any]
    unit: str
    units: float
    notes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    model_flops: float | None = None


def builder(name: str) -> Callable[[Options], Workload]:
    """The function that builds the named workload.

    Raises:
        ConfigError: no such workload.
    """
    check_workload(name)
    module, function = WORKLOADS[name].split(":")
    return getattr(importlib.import_module(module), function)


def check_workload(name: str) -> None:
    """Raises ConfigError if there is no workload of that name."""
    if name not in WORKLOADS:
        known = (*(each for each in WORKLOADS if each != "stage"), *STAGES)
        raise ConfigError(f"There is no workload {name!r}. Workloads: {', '.join(known)}.")


def stage_file(name: str) -> Path | None:
    """The configuration of a stage of training, here or beside this package; None for a name that is no stage.

    Raises:
        ConfigError: the file is not there.
    """
    name = "pretrain1_encoders" if name == "pretrain1" else name
    if name not in STAGES:
        return None
    places = Path("configs"), Path(__file__).parents[2] / "configs"
    for folder in places:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise ConfigError(f"configs/{name}.py is not here. Give the file with --config.")
