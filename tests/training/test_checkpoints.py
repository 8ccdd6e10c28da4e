"""Checkpoints of a run: what is stored comes back, on any mesh; whatever goes wrong leaves the last good one."""

import dataclasses
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from omni_jax.errors import CheckpointError, ConfigError, NumericsError
from omni_jax.interop.restore import load_checkpoint_info, restore_leaves
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.checkpoints import Checkpoints
from omni_jax.training.run_config import DataConfig, RunConfig, changed, check_same, to_json
from omni_jax.training.run_stages import DpoStage, ThinkerStage
from tests.processes import on_devices

SHAPE = (64, 64)


def state_of(number: int) -> dict:
    """Values that hardly compress, of several types, with paths as the trainer has them."""
    rng = np.random.default_rng(number)
    return {
        "params": {"thinker/mlp/kernel": jnp.asarray(rng.normal(size=SHAPE), jnp.float32)},
        "frozen": {"vision/kernel": jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16)},
        "step": jnp.int32(number),
        "key": jax.random.PRNGKey(number),
        "typed": jax.random.key(number),
    }


def shapes_and_places(state: dict) -> tuple[dict, dict]:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return shapes, jax.tree.map(lambda x: x.sharding, state)


def equal(one: dict, other: dict) -> bool:
    def bits(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return np.asarray(x).tobytes(), x.shape, x.dtype

    return jax.tree.all(jax.tree.map(lambda a, b: bits(a) == bits(b), one, other))


def test_state_and_what_belongs_to_it_come_back_bit_for_bit(tmp_path):
    state = state_of(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.save(3, state, {"loader": {"step": 3}, "config": {"rows": 8}})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        about = checkpoints.about(3)
        assert about["loader"] == {"step": 3} and about["config"] == {"rows": 8}
        assert about["versions"]["jax"] == jax.__version__
        assert equal(checkpoints.restore(3, *shapes_and_places(state)), state)


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {})
        assert not checkpoints.save(3, state_of(3), {})  # there already
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 3]


def test_a_state_with_nan_is_never_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        bad = state_of(2)
        bad["params"]["thinker/mlp/kernel"] = bad["params"]["thinker/mlp/kernel"].at[3, 3].set(jnp.nan)
        with pytest.raises(NumericsError, match="after step 2; this state is not saved.*of step 1 is good"):
            checkpoints.save(2, bad, {})
        assert checkpoints.steps() == [1]


def test_what_a_crash_has_left_half_written_does_not_count(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, state_of(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@contextmanager
def files_at_most(size: int):
    """The system refuses larger ones, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_training_outlives_saves_that_fail_and_the_last_good_one_stays(tmp_path):
    said = []
    with Checkpoints(tmp_path, keep=1, tolerated=2, say=said.append) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        checkpoints.settle()
        with files_at_most(1000):
            for step in (2, 3):
                checkpoints.save(step, state_of(step), {})
                checkpoints.settle()
        assert checkpoints.failures == 2 and checkpoints.steps() == [1]
        assert said[0].startswith("Warning: The checkpoint of step 2 could not be written")
        assert "The checkpoint of step 1 is whole." in said[1] and "it ends if 1 more fail" in said[1]
        assert [path.name for path in tmp_path.iterdir()] == ["1"]  # its remains do not take the room
        checkpoints.save(4, state_of(4), {})  # there is room again
        checkpoints.settle()
        assert checkpoints.steps() == [4]
        with files_at_most(1000), pytest.raises(CheckpointError, match="of step 7 .*The checkpoint of step 4 is whole"):
            for step in (5, 6, 7):
                checkpoints.save(step, state_of(step), {})
                checkpoints.settle()
    with Checkpoints(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(4, *shapes_and_places(state_of(4))), state_of(4))


def test_the_end_of_a_run_is_not_told_before_its_state_is_stored(tmp_path):
    with Checkpoints(tmp_path, tolerated=2, say=lambda text: None) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        checkpoints.confirm(1)
        with files_at_most(1000):
            checkpoints.save(2, state_of(2), {})
            with pytest.raises(CheckpointError, match="The last checkpoint could not be written.*from step 1"):
                checkpoints.confirm(2)
        checkpoints._manager.save = _full
        assert not checkpoints.save(3, state_of(3), {})  # refused at once, not while it is written
        with pytest.raises(CheckpointError, match="The last checkpoint could not be written"):
            checkpoints.confirm(3)


def _full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_harms_nothing_that_is_on_it(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        told = "the disk is full. The checkpoint of step 1 is whole. Make room"
        with pytest.raises(CheckpointError, match=told), Checkpoints(disk / "run", tolerated=0) as checkpoints:
            checkpoints.save(1, state_of(1), {})
            checkpoints.settle()
            (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 50_000))
            checkpoints.save(2, state_of(2), {})
            checkpoints.settle()
        (disk / "other").unlink()
        with Checkpoints(disk / "run") as checkpoints:
            assert checkpoints.latest() == 1
            assert equal(checkpoints.restore(1, *shapes_and_places(state_of(1))), state_of(1))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_last_save_must_not_fail(tmp_path):
    told = pytest.raises(CheckpointError, match="The last checkpoint could not be written")
    with files_at_most(1000), told, Checkpoints(tmp_path, tolerated=5, say=[].append) as checkpoints:
        checkpoints.save(1, state_of(1), {})


def test_an_error_of_training_is_not_hidden_by_one_of_the_last_save(tmp_path):
    with (
        files_at_most(1000),
        pytest.raises(ZeroDivisionError),
        Checkpoints(tmp_path, tolerated=5, say=[].append) as checkpoints,
    ):
        checkpoints.save(1, state_of(1), {})
        raise ZeroDivisionError


def test_a_state_of_another_form_is_refused_naming_both(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        checkpoints.settle()
        other = state_of(1)
        other["params"] = {"thinker/mlp/kernel": jnp.zeros((32, 64)), "thinker/new/kernel": jnp.zeros(3)}
        other["frozen"] = {}
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(1, *shapes_and_places(other))
    text = str(error.value)
    assert "thinker/mlp/kernel: float32 [64, 64] is stored, this run has float32 [32, 64]" in text
    assert "thinker/new/kernel: nothing is stored, this run has float32 [3]" in text
    assert "vision/kernel: bfloat16 [8, 8] is stored, this run has none" in text


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        checkpoints.settle()
        for file in (tmp_path / "1" / "state").rglob("*"):
            if file.is_file() and file.parent.name == "d":
                file.write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="/1 cannot be read: .*Remove this folder"):
            checkpoints.restore(1, *shapes_and_places(state_of(1)))


MOVED = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from omni_jax.sharding.mesh import make_mesh
from omni_jax.training.checkpoints import Checkpoints

mesh = make_mesh(fsdp=2, tensor=4)
places = {"a": NamedSharding(mesh, PartitionSpec("tensor", "fsdp")), "b": NamedSharding(mesh, PartitionSpec())}
shapes = {"a": jax.ShapeDtypeStruct((16, 8), np.float32), "b": jax.ShapeDtypeStruct((), np.int32)}
with Checkpoints(sys.argv[1]) as checkpoints:
    state = checkpoints.restore(1, shapes, places)
    assert len(jax.devices()) == 8 and state["a"].addressable_shards[0].data.shape == (4, 4)
    state = jax.tree.map(lambda x: x + 1, state)
    checkpoints.save(2, state, {})
"""


def test_eight_devices_go_on_from_one_and_one_from_eight(tmp_path):
    place = NamedSharding(make_mesh(jax.devices()[:1]), PartitionSpec())
    state = {"a": jax.device_put(jnp.arange(128.0).reshape(16, 8), place), "b": jax.device_put(jnp.int32(1), place)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    environment = os.environ | on_devices(8)
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", MOVED, str(tmp_path)], env=environment, check=True, timeout=300)
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(2, *shapes_and_places(state))
    assert equal(back, jax.tree.map(lambda x: x + 1, state))


HALVES = """
import sys
import jax, numpy as np
from omni_jax.config_json import read_config
from omni_jax.interop.restore import restore_params
from omni_jax.models.logical_axes import logical_axes
from omni_jax.sharding.hosts import start
from omni_jax.sharding.mesh import make_mesh
from omni_jax.sharding.rules import TRAINING, shardings
from omni_jax.training.checkpoints_model import save_model

source, destination = sys.argv[1:]
assert start()[1] == 2
config, mesh = read_config(source), make_mesh(fsdp=2)
placed = shardings(*logical_axes(config, ("talker",)), mesh, TRAINING)
params = restore_params(source, config, shardings=placed, components=("talker",), dtype=np.float32)
save_model(destination, params, config, source=source, mesh=mesh, about={"config": "x"})
save_model(destination, params, config, source=source, mesh=mesh, about={"config": "again"})
"""


def test_two_hosts_write_one_model_folder(tmp_path, tiny_checkpoint):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", HALVES, str(tiny_checkpoint[1]), str(tmp_path / "model")]
    common = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    common |= {"OMNI_JAX_COORDINATOR": f"127.0.0.1:{port}", "OMNI_JAX_PROCESSES": "2"}
    both = [subprocess.Popen(command, env=common | {"OMNI_JAX_PROCESS": str(number)}) for number in (0, 1)]
    try:
        assert [each.wait(timeout=300) for each in both] == [0, 0]
    finally:
        for each in both:
            each.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == {"config": "again"}
    before, after = (
        restore_leaves(info, list(info.shapes))
        for info in map(load_checkpoint_info, (tiny_checkpoint[1], tmp_path / "model"))
    )
    assert before.keys() == after.keys()
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)


BEFORE = {
    "data": {"rows": 8, "workers": 4},
    "optimizer": {"total_steps": 10},
    "rates": {"^a": 0.1},
    "mesh": {"fsdp": 2},
}


def test_a_changed_configuration_names_the_keys_and_the_option_that_accepts_them():
    now = BEFORE | {"data": {"rows": 4, "workers": 9}, "optimizer": {"total_steps": 20}, "mesh": {}}
    assert changed(BEFORE, now) == {
        "data.rows": (8, 4),
        "data.workers": (4, 9),
        "mesh": ({"fsdp": 2}, {}),
        "optimizer.total_steps": (10, 20),
    }
    with pytest.raises(ConfigError) as error:
        check_same(BEFORE, now)
    text = str(error.value)
    assert "data.rows: was 8, is 4" in text and "optimizer.total_steps: was 10, is 20" in text
    assert "--allow-change data.rows --allow-change optimizer.total_steps" in text
    assert "workers" not in text and "mesh" not in text  # they change no numbers
    with pytest.raises(ConfigError, match="total_steps"):
        check_same(BEFORE, now, allowed=("data.rows",))
    check_same(BEFORE, now, allowed=("data", "optimizer.total_steps"))


def test_a_run_from_before_there_was_a_choice_of_rules_goes_on_by_adamw_only():
    now = to_json(RunConfig(ThinkerStage(), "a", "b", DataConfig()))
    before = json.loads(json.dumps(now))
    for name in ("rule", "momentum"):
        del before["optimizer"][name]
    check_same(before, now)
    with pytest.raises(ConfigError, match='optimizer.rule = "adamw", and what it holds is of no use for "muon"'):
        check_same(before, now | {"optimizer": now["optimizer"] | {"rule": "muon"}}, allowed=("optimizer.rule",))


def test_no_setting_hides_the_name_of_its_kind():
    @dataclasses.dataclass
    class Hiding:
        kind: str = "muon"

    with pytest.raises(AssertionError, match="Hiding"):
        to_json(Hiding())


def test_a_factor_of_the_learning_rate_that_changed_is_one_key():
    with pytest.raises(ConfigError, match=r'rates: was {"\^a": 0.1}, is {"\^a": 0.2}'):
        check_same(BEFORE, BEFORE | {"rates": {"^a": 0.2}})


@pytest.mark.parametrize(
    "stage, options", [(ThinkerStage(), {"dtype": "bfloat16"}), (DpoStage(), {"dtype": "float32"})]
)
def test_rounded_products_are_refused_where_they_are_of_no_use_or_falsify(stage, options):
    with pytest.raises(ConfigError, match="round_products"):
        RunConfig(stage, "a", "b", DataConfig(), round_products=True, **options)
