"""The Talker equals that of transformers; its cache, its unrolled form and its two tracks do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from omni_jax.config_json import read_config
from omni_jax.interop.restore import restore_params
from omni_jax.interop.tables import table
from omni_jax.interop.weight_table import flatten, jax_shapes
from omni_jax.layers.decoder import unroll_params
from omni_jax.models.talker import Talker, talker_cache

BATCH, LENGTH = 2, 20


@pytest.fixture(scope="module")
def config(tiny_checkpoint):
    return read_config(tiny_checkpoint[1])


@pytest.fixture(scope="module")
def params(tiny_checkpoint, config):
    return restore_params(tiny_checkpoint[1], config, components=("talker",))["talker"]


@pytest.fixture(scope="module")
def inputs(config):
    """Both tracks and positions as of a prompt with pictures: three unequal rows of ids, then text."""
    rng, talker = np.random.default_rng(0), config.talker_config
    codes = rng.integers(0, talker.vocab_size, (BATCH, LENGTH))
    codes[:, :7] = -1
    steps = rng.integers(0, 4, (3, BATCH, LENGTH))
    return {
        "text": rng.normal(size=(BATCH, LENGTH, talker.embedding_size)).astype(np.float32),
        "codes": codes.astype(np.int32),
        "position_ids": np.cumsum(steps, axis=-1).astype(np.int32),
    }


@pytest.fixture(scope="module")
def whole(config, params, inputs):
    """Our hidden states and logits of whole sequences."""
    talker = Talker(config.talker_config)

    @jax.jit
    def run(text, codes, position_ids):
        out = talker.apply({"params": params}, text, codes, position_ids, method="decode")
        return out.hidden_states, talker.apply({"params": params}, out.hidden_states, method="logits")

    return run(**inputs)


def test_hidden_states_and_logits_equal_those_of_transformers(tiny_checkpoint, inputs, whole):
    model = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(
        tiny_checkpoint[0], dtype=torch.float32, local_files_only=True
    ).talker.eval()
    codes = torch.from_numpy(inputs["codes"]).long()
    with torch.no_grad():
        rows = model.get_input_embeddings()(codes.clamp(min=0)) * (codes >= 0)[..., None]
        x = model.thinker_to_talker_proj(torch.from_numpy(inputs["text"]) + rows)
        positions = torch.from_numpy(inputs["position_ids"]).long()
        hidden = model.model(inputs_embeds=x, position_ids=positions).last_hidden_state
        logits = model.codec_head(hidden)
    np.testing.assert_allclose(whole[0], hidden.numpy(), rtol=0, atol=1e-4 * hidden.abs().max().item())
    np.testing.assert_allclose(whole[1], logits.numpy(), rtol=0, atol=1e-4 * logits.abs().max().item())


@pytest.mark.parametrize("unrolled", [False, True])
def test_chunks_over_a_cache_equal_the_whole(config, params, inputs, whole, unrolled):
    talker = Talker(config.talker_config, unrolled=unrolled)
    own = {"params": unroll_params(params) if unrolled else params}
    cache = talker_cache(config.talker_config, batch=BATCH, length=32, unrolled=unrolled)
    decode = jax.jit(lambda *arguments: talker.apply(own, *arguments, method="decode"))
    parts = []
    for here in (slice(0, 9), slice(9, 18), slice(18, 19), slice(19, 20)):
        chunk = (inputs["text"][:, here], inputs["codes"][:, here], inputs["position_ids"][:, :, here])
        out = decode(*chunk, cache, jnp.full(BATCH, here.start, jnp.int32))
        cache = out.cache
        parts.append(out.hidden_states)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole[0], atol=2e-5)
    logits = talker.apply(own, jnp.asarray(whole[0]), method="logits")
    np.testing.assert_allclose(logits, whole[1], atol=1e-4)


def test_a_place_without_a_code_hears_the_text_alone(config, params, inputs):
    talker, text = Talker(config.talker_config), jnp.asarray(inputs["text"])
    combine = jax.jit(lambda codes: talker.apply({"params": params}, text, codes, method="combine"))
    np.testing.assert_array_equal(combine(np.full((BATCH, LENGTH), -1, np.int32)), text)
    spoken = combine(np.full((BATCH, LENGTH), 3, np.int32))
    np.testing.assert_allclose(spoken - text, np.broadcast_to(params["embed"]["embedding"][3], text.shape), atol=1e-5)


def test_the_parameters_are_those_of_the_weight_table(config):
    zeros = jnp.zeros((1, 2), jnp.int32)
    text = jnp.zeros((1, 2, config.talker_config.embedding_size))
    boxed = jax.eval_shape(
        Talker(config.talker_config).init, jax.random.key(0), text, zeros, jnp.zeros((3, 1, 2), jnp.int32)
    )["params"]
    ours = {
        f"talker/{path}": leaf.shape
        for path, leaf in flatten(jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda x: hasattr(x, "names")))
    }
    assert ours == {path: shape for path, shape in jax_shapes(table(config)).items() if path.startswith("talker/")}
