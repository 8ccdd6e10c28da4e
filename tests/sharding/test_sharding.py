"""Parameters split over a mesh give the answers of one device; what does not divide is refused by name."""

import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec as P

from omni_jax.errors import ShardingError
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import flatten, jax_shapes
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset
from omni_jax.sampling.load import TEXT_COMPONENTS
from omni_jax.sampling.speech import SPEECH_COMPONENTS
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import SAMPLING, partition_spec, shardings
from tests.processes import on_devices

COMPONENTS = (*TEXT_COMPONENTS, *SPEECH_COMPONENTS)


@pytest.mark.parametrize("name", ["tiny", "qwen2.5-omni-3b", "qwen2.5-omni-7b"])
def test_modules_have_the_parameters_of_the_weight_tables(name):
    config = preset(name)
    names, shapes = logical_axes(config, COMPONENTS)
    ours = {path: leaf.shape for path, leaf in flatten(shapes)}
    published = {path: shape for path, shape in jax_shapes(table(config)).items() if path.split("/")[0] in names}
    assert ours == published
    assert {path: len(axes) for path, axes in flatten(names)} == {path: len(shape) for path, shape in ours.items()}


def test_a_mesh_axis_splits_one_axis_of_a_parameter():
    assert partition_spec(("layers", "embed", "heads", "head_dim"), SAMPLING) == P(None, "fsdp", "tensor", None)
    assert partition_spec(("heads", "mlp"), SAMPLING) == P("tensor", None)


def test_a_mesh_of_the_wrong_size_is_refused():
    with pytest.raises(ShardingError, match="needs 1024 devices"):
        make_mesh(tensor=1024)
    with pytest.raises(ShardingError, match="no mesh axis rows"):
        make_mesh(rows=1)


# One process for all that needs eight devices: it starts JAX once, and its checks share what they compile.
ON_8_DEVICES = """
import json, sys
import numpy as np
from omni_jax.errors import ShardingError
from omni_jax.models.flow import FlowOptions
from omni_jax.models.logical_axes import logical_axes
from omni_jax.presets import preset
from omni_jax.sampling.load import load_sampler
from omni_jax.sampling.options import SamplingOptions
from omni_jax.sampling.speech import Speech
from omni_jax.sampling.speech_options import SpeechOptions
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import SAMPLING, shardings

checkpoint = sys.argv[1]
options = SamplingOptions(max_new_tokens=10)


def what_does_not_divide():
    try:
        shardings(*logical_axes(preset("qwen2.5-omni-7b"), ["thinker"]), make_mesh(tensor=8), SAMPLING)
    except ShardingError as error:
        refused = str(error)
    shardings(*logical_axes(preset("qwen2.5-omni-7b"), ["thinker"]), make_mesh(fsdp=8), SAMPLING)
    placed = shardings(*logical_axes(preset("qwen2.5-omni-3b"), ["thinker"]), make_mesh(tensor=8), SAMPLING)
    return {"refused": refused, "key": list(placed["thinker"]["layers"]["attention"]["key"]["kernel"].spec)}


def split(kernel):
    kernel = getattr(kernel, "qvalue", kernel)
    return kernel.addressable_shards[0].data.size * 8 == kernel.size


def answers(weights):
    picture = np.random.default_rng(0).integers(0, 255, (80, 120, 3)).astype(np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    found = []
    for mesh in (None, make_mesh(fsdp=4, tensor=2)):
        sampler = load_sampler(checkpoint, mesh=mesh, chunk=64, weights=weights)
        request = sampler.prepare([{"role": "user", "content": content}])
        found.append(sampler.generate([request], options)[0].token_ids)
    up = sampler.params["thinker"]["layers"]["mlp"]["up"]["kernel"]
    return {"one": found[0], "mesh": found[1], "split": split(up)}


def speech():
    spoken = SpeechOptions(codes=SamplingOptions(max_new_tokens=30), flow=FlowOptions("euler", 2))
    found = []
    for mesh in (None, make_mesh(fsdp=4, tensor=2)):
        sampler = load_sampler(checkpoint, mesh=mesh, chunk=64)
        model = Speech.from_checkpoint(checkpoint, sampler)
        request = sampler.prepare([{"role": "user", "content": [{"type": "text", "text": "Hello."}]}])
        found.append(model.generate([request], options, spoken)[0])
    one, many = found
    return {
        "one": one.codes,
        "mesh": many.codes,
        "apart": float(np.abs(one.waveform - many.waveform).max()),
        "split": split(model.params["layers"]["mlp"]["up"]["kernel"]),
    }


print(json.dumps({
    "division": what_does_not_divide(), "float32": answers(None), "int8": answers("int8"), "speech": speech()
}))
"""


@pytest.fixture(scope="module")
def on_8_devices(tiny_checkpoint) -> dict:
    environment = os.environ | on_devices(8)
    command = [sys.executable, "-c", ON_8_DEVICES, str(tiny_checkpoint[1])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_does_not_divide_is_named_with_the_sizes_that_fit(on_8_devices):
    refused = on_8_devices["division"]["refused"]
    assert "thinker/layers/attention/query/kernel: axis heads of size 28 does not divide over tensor = 8" in refused
    assert "(fits: 1, 2, 4, 7)" in refused
    assert "kv_heads" not in refused  # few heads stay whole
    assert on_8_devices["division"]["key"] == [None, "fsdp", None, None]


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_answers_of_a_mesh_equal_those_of_one_device(on_8_devices, weights):
    found = on_8_devices[weights]
    assert found["split"]
    assert len(found["one"]) == 10
    assert found["mesh"] == found["one"]


def test_speech_of_a_mesh_equals_that_of_one_device(on_8_devices):
    found = on_8_devices["speech"]
    assert found["split"]
    assert len(found["one"]) == 30
    assert found["mesh"] == found["one"]
    assert found["apart"] < 1e-4


def test_one_device_needs_no_split():
    names, shapes = logical_axes(preset("tiny"), ["thinker"])
    placed = shardings(names, shapes, make_mesh(jax.devices()[:1]), SAMPLING)
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(placed))
