"""`omni-jax import` and `omni-jax export`."""

import json

from safetensors.numpy import load_file

from omni_jax.cli.main import main


def tensors(folder):
    return {name: value for shard in folder.glob("*.safetensors") for name, value in load_file(shard).items()}


def test_there_and_back(tiny_checkpoint, tmp_path, capsys):
    published, ours, back = tiny_checkpoint[0], tmp_path / "ours", tmp_path / "back"
    before = tensors(published)
    size = sum(value.nbytes for value in before.values())

    assert main(["import", "--from", str(published), "--to", str(ours), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["tensors"], result["bytes"]) == (len(before), size)
    assert sum(result["parameters"].values()) == sum(value.size for value in before.values())
    assert f"Imported {len(before)} tensors" in captured.err

    assert main(["export", "--from", str(ours), "--to", str(back)]) == 0
    assert f"Exported {len(before)} tensors, {size / 1e6:.1f} MB" in capsys.readouterr().out
    after = tensors(back)
    assert after.keys() == before.keys()
    assert all(after[name].dtype == value.dtype and (after[name] == value).all() for name, value in before.items())


def test_another_dtype_and_overwriting(tiny_checkpoint, tmp_path, capsys):
    target = tmp_path / "ours"
    argv = ["import", "--from", str(tiny_checkpoint[0]), "--to", str(target), "--json"]
    assert main(argv) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main([*argv, "--dtype", "bfloat16", "--overwrite"]) == 0
    half = json.loads(capsys.readouterr().out)
    assert 2 * half["bytes"] == whole["bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]
