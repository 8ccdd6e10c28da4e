"""Pairs know whose log-probabilities they carry, and a run from another checkpoint refuses them."""

import logging
import shutil

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from omni_jax.errors import ConfigError
from omni_jax.training.reference_policy import SameReference, checkpoint_digest, policy_of


def checkpoint(folder, value=0.0, **options):
    handler = ocp.PyTreeCheckpointHandler(**options)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = {"talker": {"kernel": jnp.full((64, 64), value), "bias": jnp.zeros(4)}}
        checkpointer.save(folder / "params", args=ocp.args.PyTreeSave(tree))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [checkpoint(tmp_path_factory.mktemp("policy") / name, value) for name, value in (("one", 0.0), ("two", 0.5))]


class Pairs:
    """As many pairs as there are policies, beside what is no pair."""

    name = "pairs"

    def __init__(self, *policies):
        self._policies = policies

    def __len__(self):
        return len(self._policies)

    def conversation(self, index):
        item = {"type": "speech", "chosen": [1], "rejected": [2], "reference": [-1.0, -2.0]}
        if self._policies[index] is not None:
            item["reference_by"] = self._policies[index]
        answer = [{"type": "text", "text": "Yes."}, {"type": "speech", "codes": [1]}, item]
        return {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("ocdbt", [True, False])  # as trained folders are, and imported ones
def test_a_digest_is_that_of_copies_and_of_no_other_values(tmp_path, ocdbt):
    one, two = (checkpoint(tmp_path / name, value, use_ocdbt=ocdbt) for name, value in (("one", 1.0), ("two", 1.01)))
    copy = shutil.copytree(one, tmp_path / "copy")
    assert checkpoint_digest(one) == checkpoint_digest(copy) == checkpoint_digest(one / "params")
    assert checkpoint_digest(one) != checkpoint_digest(two)


def test_the_policy_that_the_run_starts_from_is_taken(folders, caplog):
    same = policy_of(folders[0], "float32")
    with caplog.at_level(logging.WARNING):
        SameReference(str(folders[0]), "float32")(Pairs(same, same, same))
    assert not caplog.records


@pytest.mark.parametrize("place", [0, 70, 99])
def test_pairs_of_another_policy_are_refused_unless_they_are_meant(folders, place):
    own, other = (policy_of(folder, "float32") for folder in folders)
    pairs = Pairs(*[own] * place, *[other] * (100 - place))
    with pytest.raises(ConfigError) as caught:
        SameReference(str(folders[0]), "float32")(pairs)
    told = str(caught.value)
    assert str(folders[1]) in told and other["digest"][:8] in told and own["digest"][:8] in told
    assert f"--reference-only FILE --checkpoint {folders[0]}" in told and "stage.other_reference" in told
    SameReference(str(folders[0]), "float32", accept=True)(pairs)


def test_what_is_not_known_and_another_dtype_are_told(folders, caplog):
    with caplog.at_level(logging.WARNING):
        SameReference(str(folders[0]), "bfloat16")(Pairs(None, policy_of(folders[0], "float32")))
    told = [record.getMessage() for record in caplog.records]
    assert "do not say which checkpoint is their reference" in told[0]
    assert "computed in float32, and this run computes in bfloat16" in told[1] and "--dtype bfloat16" in told[1]
