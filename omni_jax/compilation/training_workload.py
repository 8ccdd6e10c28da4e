"""Full-parameter training of the Thinker on packed text: one step of AdamW."""

import math

import jax.numpy as jnp

from input_pipeline.training_batch import RowShape
from omni_jax.compilation.workloads import Options, Program, Workload
from omni_jax.errors import ConfigError
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import TRAINING
from omni_jax.training.batches import abstract_batch
from omni_jax.training.optimizer import OptimizerConfig
from omni_jax.training.step import Trainer
from omni_jax.training.thinker_task import ThinkerTask

DEFAULT_LENGTH = 8192  # tokens of a sequence in the second stage of pre-training (paper, section 3)
TOKENS_A_DEVICE = 8192  # a longer sequence is split over a context axis


def train(options: Options) -> Workload:
    """The step, its state and its batch.

    Options: `context` is the length of the sequences, `batch` their number over all devices (default: one for each
    group of devices that shares a sequence).

    Raises:
        ConfigError: a batch that does not divide.
        ShardingError: the mesh does not fit the devices or the model.
    """
    if options.weights is not None:
        raise ConfigError(f"--weights {options.weights} is for answering; training keeps its weights in float32.")
    length, count = options.context or DEFAULT_LENGTH, len(options.devices)
    sizes = options.mesh
    if sizes is None:
        context = math.gcd(count, 2 ** math.ceil(math.log2(max(length / TOKENS_A_DEVICE, 1))))
        sizes = {"fsdp": count // context, "context": context}
    mesh = make_mesh(options.devices, **sizes)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = rows if options.batch is None else options.batch
    if batch % rows:
        raise ConfigError(f"A batch of {batch} does not divide over data x fsdp = {rows}. Choose a multiple of {rows}.")
    dtype = jnp.dtype(options.dtype)
    task = ThinkerTask(options.config, audio=False, vision=False, dtype=dtype, remat="full")
    trainer = Trainer(options.config, task, OptimizerConfig(), mesh, dtype=dtype)
    shapes = abstract_batch(RowShape(tokens=length), batch, config=options.config)
    state, placed = trainer.abstract(shapes)
    resident = {
        "parameters": state.params,
        "optimiser": state.optimizer_state,
        "batch": placed,
    }
    return Workload(
        (Program("train_step", trainer.jitted, (state, placed)),),
        resident,
        mesh=mesh,
        rules=TRAINING,
        unit="token",
        units=batch * length,
        notes=(f"{batch} sequences of {length} tokens, each layer made again in the backward pass",),
        remedies=(
            "more chips: parameters, gradients and optimiser are split over all of them",
            "a context axis (--mesh fsdp=N,context=M), which splits each sequence's activations",
            "shorter sequences (--context)",
        ),
    )
