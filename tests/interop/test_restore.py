"""An import is an ordinary Orbax checkpoint, made and restored in bounded memory."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from omni_jax.config_json import read_config
from omni_jax.interop import safetensors_shards as st
from omni_jax.interop.export_checkpoint import export_checkpoint
from omni_jax.interop.import_checkpoint import import_checkpoint
from omni_jax.interop.orbax_stream import chunk_shape
from omni_jax.interop.random_checkpoint import make_random_checkpoint
from omni_jax.interop.restore import restore_params
from omni_jax.interop.tables import COMPONENTS
from omni_jax.interop.weight_table import flatten

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "tiny"
    make_random_checkpoint(folder, "tiny", dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "tiny"
    import_checkpoint(published, folder)
    return folder


def test_any_orbax_checkpointer_restores_the_import(imported):
    tree = ocp.StandardCheckpointer().restore((imported / "params").resolve())
    assert set(tree) == set(COMPONENTS)
    expected = dict(flatten(restore_params(imported, read_config(imported))))
    for path, value in flatten(tree):
        assert value.dtype == expected[path].dtype
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[path]))


def test_eight_devices_read_their_own_parts(imported):
    run(
        f"""
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 8)
        import orbax.checkpoint as ocp
        from jax.sharding import NamedSharding, PartitionSpec as P
        from omni_jax.config_json import read_config
        from omni_jax.errors import ShardingError
        from omni_jax.interop.restore import restore_params
        from omni_jax.interop.weight_table import flatten
        folder = {str(imported)!r}
        mesh = jax.make_mesh((2, 4), ("data", "model"))
        rules = lambda path, shape: P(None, "data", "model") if path.endswith("up/kernel") and len(shape) == 3 else P()
        params = restore_params(folder, read_config(folder), mesh=mesh, rules=rules, dtype="float32")
        kernel = params["thinker"]["layers"]["mlp"]["up"]["kernel"]
        assert {{s.data.shape for s in kernel.addressable_shards}} == {{(3, 32, 32)}}
        single = dict(flatten(restore_params(folder, read_config(folder), dtype="float32")))
        for path, value in flatten(params):
            np.testing.assert_array_equal(np.asarray(value), np.asarray(single[path]))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        again = ocp.StandardCheckpointer().restore(folder + "/params", abstract)
        assert again["thinker"]["layers"]["mlp"]["up"]["kernel"].sharding == kernel.sharding
        try:
            restore_params(folder, read_config(folder), mesh=mesh, rules=lambda path, shape: P("model"))
        except ShardingError as error:
            assert "does not divide" in str(error)
        else:
            raise AssertionError("a parameter that does not divide was restored")
        shardings = jax.tree.map(lambda x: x.sharding, params)
        third = restore_params(folder, read_config(folder), shardings=shardings, components=["thinker"])
        assert third["thinker"]["layers"]["mlp"]["up"]["kernel"].sharding == kernel.sharding
        """
    )


def test_a_checkpoint_that_orbax_itself_wrote_is_exported(imported, published, tmp_path):
    params = restore_params(imported, read_config(imported))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "trained" / "params", params)
    shutil.copy(published / "config.json", tmp_path / "trained")
    export_checkpoint(tmp_path / "trained", tmp_path / "theirs")
    assert contents(tmp_path / "theirs") == contents(published)


def test_stored_chunks_are_small_and_hold_one_layer():
    for shape, stacked in [((28, 3584, 18944), True), ((152064, 3584), False), ((28, 128), True), ((7,), False)]:
        chunk = chunk_shape(shape, 4, stacked=stacked)
        assert np.prod(chunk) * 4 <= 32 * 2**20 and len(chunk) == len(shape)
        assert not stacked or chunk[0] == 1


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """1.2 GB through the importer: at most the largest parameter (300 MB) and 1.5 GiB over the base, in fact less."""
    peak = run(
        f"""
        import resource
        from pathlib import Path
        import numpy as np
        from omni_jax.interop import import_checkpoint as I
        from omni_jax.interop import safetensors_shards as st
        from omni_jax.interop import weight_table as W
        root = Path({str(tmp_path)!r})
        root.joinpath("source").mkdir()
        rows = [W.Entry(f"thinker.part{{n}}.{{{{i}}}}.weight", f"thinker/part{{n}}/kernel", W.linear, (2048, 2560), 28)
                for n in range(4)]
        I.table = lambda config: rows
        dtype = st.DTYPES["BF16"]
        planned = [st.Planned(name, dtype, row.shape) for row in rows for name in row.torch_names]
        header = st.header(planned)
        with open(root / "source" / st.SINGLE, "wb") as stream:  # zeros that take no room on the disk
            stream.write(header)
            stream.truncate(len(header) + sum(tensor.nbytes for tensor in planned))
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        import orbax.checkpoint, jax
        base = peak()
        I.import_checkpoint(root / "source", root / "ours", config=object())
        print(sum(t.nbytes for t in planned), rows[0].size * 2, peak() - base)
        """
    )
    total, largest, used = map(int, peak.split())
    assert total > 1_100_000_000 and largest == 28 * 2048 * 2560 * 2
    assert used < largest + 1.5 * 2**30
    assert used < 2 * largest
    shutil.rmtree(tmp_path)


def run(code: str) -> str:
    """Runs code in a fresh process and returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def contents(folder: Path) -> dict[str, tuple]:
    return {
        name: (tensor.dtype, tensor.shape, tensor.read().tobytes()) for name, tensor in st.read_folder(folder).items()
    }
