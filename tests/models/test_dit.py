"""The DiT equals the published one; block attention, lengths, positions and guidance do what they say."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from omni_jax.config import DiTConfig
from omni_jax.errors import CapacityError, OmniError
from omni_jax.interop import table_token2wav
from omni_jax.interop.weight_table import flatten, jax_shapes, torch_shapes
from omni_jax.layers.block_attention import block_attention
from omni_jax.models import dit
from omni_jax.models.flow import FlowOptions
from tests.models.token2wav_reference import DIT, meta_state, our_params, published_model

BATCH, CODES = 2, 31  # 62 mel frames: two whole blocks of 24 and a piece


@pytest.fixture(scope="module")
def model():
    return published_model(DIT)


@pytest.fixture(scope="module")
def params(model):
    return our_params(model, DIT)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {
        "codes": rng.integers(0, DIT.num_embeds + 1, (BATCH, CODES)),
        "speaker": rng.normal(size=(BATCH, DIT.enc_emb_dim)).astype(np.float32),
        "ref_mel": rng.normal(-4, 2, (BATCH, 20, DIT.mel_dim)).astype(np.float32),
        "x": rng.normal(size=(BATCH, 2 * CODES, DIT.mel_dim)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def conditioning(params, inputs):
    voice = dit.make_voice(params, DIT, jnp.asarray(inputs["speaker"]), jnp.asarray(inputs["ref_mel"]))
    return dit.condition(params, DIT, jnp.asarray(inputs["codes"]), voice)


def published_branches(model, inputs, t):
    """Velocity of the conditional and of the null branch."""
    x, speaker = torch.tensor(inputs["x"]), torch.tensor(inputs["speaker"])
    with torch.no_grad():
        both = model(
            hidden_states=x,
            condition_vector=torch.tensor(inputs["ref_mel"]),
            speaker_embedding=speaker[:, None].expand(-1, x.shape[1], -1),
            quantized_code=torch.tensor(inputs["codes"]),
            time_step=torch.tensor(t),
        )
    return [branch.numpy() for branch in both.chunk(2)]


@pytest.fixture(scope="module")
def velocity(params):
    """`dit.velocity` of the small model, compiled once for each kind of call."""
    compiled = jax.jit(
        lambda *arrays, **options: dit.velocity(params, DIT, *arrays, **options), static_argnames="dtype"
    )
    return lambda x, t, conditioning, **options: compiled(jnp.asarray(x), jnp.asarray(t), conditioning, **options)


def assert_close(ours, want, relative=1e-4):
    np.testing.assert_allclose(ours, want, rtol=0, atol=relative * np.abs(want).max())


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0])  # conditional branch alone, guided, null branch alone
def test_one_evaluation_matches(model, velocity, inputs, conditioning, scale):
    conditional, null = published_branches(model, inputs, 0.3)
    x = jnp.asarray(inputs["x"])
    ours = velocity(x, jnp.float32(0.3), conditioning, guidance_scale=scale)
    assert_close(ours, conditional + scale * (conditional - null))


def test_without_a_null_branch_the_velocity_is_the_conditional_one(model, velocity, inputs, conditioning):
    x = jnp.asarray(inputs["x"])
    ours = velocity(x, jnp.float32(0.7), conditioning.replace(null=None))
    assert_close(ours, published_branches(model, inputs, 0.7)[0])


def test_each_row_may_have_its_own_time(velocity, inputs, conditioning):
    x = jnp.asarray(inputs["x"])
    mixed = velocity(x, jnp.array([0.2, 0.9]), conditioning)
    for row, t in enumerate([0.2, 0.9]):
        assert_close(mixed[row], velocity(x, jnp.float32(t), conditioning)[row], 1e-5)


def test_the_trace_ends_in_what_the_network_computes(params, inputs, conditioning):
    modulation = dit.modulate(params, DIT, jnp.array([0.3]))
    x, time = jnp.asarray(inputs["x"]), 2 * CODES
    arguments = (x, modulation, conditioning, jnp.ones((BATCH, time), bool), jnp.arange(time)[None])
    variables = {"params": params["dit"]}
    velocity, hidden_states = dit.DiT(DIT, trace=True).apply(variables, *arguments)
    assert hidden_states.shape == (DIT.num_hidden_layers, BATCH, 2, time, DIT.hidden_size)
    assert_close(velocity, dit.DiT(DIT).apply(variables, *arguments), 1e-6)
    assert np.abs(hidden_states[0] - hidden_states[-1]).max() > 0.1


def test_the_full_solver_matches_with_the_same_noise(model, params, inputs):
    speaker, ref_mel, codes = (torch.tensor(inputs[name]) for name in ("speaker", "ref_mel", "codes"))
    torch.manual_seed(1)
    noise = torch.randn(BATCH, 2 * CODES, DIT.mel_dim)
    torch.manual_seed(1)
    want = model.sample(speaker, ref_mel, codes, num_steps=10, guidance_scale=0.5).transpose(1, 2).numpy()

    sample = jax.jit(lambda *a, noise: dit.sample_full(params, DIT, *a, noise=noise))
    arrays = (jnp.asarray(inputs[name]) for name in ("codes", "speaker", "ref_mel"))
    assert_close(sample(*arrays, noise=jnp.asarray(noise.numpy())), want)


def test_without_guidance_one_euler_step_is_the_conditional_velocity(params, velocity, inputs, conditioning):
    arrays = (jnp.asarray(inputs[name]) for name in ("codes", "speaker", "ref_mel"))
    options = FlowOptions(solver="euler", num_steps=2, guidance_scale=0.0)
    mel = dit.sample_full(params, DIT, *arrays, noise=jnp.asarray(inputs["x"]), options=options)
    slope = velocity(inputs["x"], jnp.float32(0.0), conditioning.replace(null=None))
    assert_close(mel, inputs["x"] + slope, 1e-5)


def test_a_row_in_a_batch_is_what_it_is_alone(params, inputs):
    codes, speaker, ref_mel, noise = (jnp.asarray(inputs[name]) for name in ("codes", "speaker", "ref_mel", "x"))
    lengths = [2 * 13, 2 * 31]

    @jax.jit
    def sample(codes, speaker, ref_mel, noise, lengths=None):
        options = FlowOptions(num_steps=3)
        return dit.sample_full(params, DIT, codes, speaker, ref_mel, noise=noise, lengths=lengths, options=options)

    together = sample(codes, speaker, ref_mel, noise, jnp.array(lengths))
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = sample(codes[one, : length // 2], speaker[one], ref_mel[one], noise[one, :length])
        assert_close(together[row, :length], alone[0], 1e-5)
        assert not together[row, length:].any()


def test_only_differences_of_positions_matter(velocity, inputs, conditioning):
    x, t = jnp.asarray(inputs["x"]), jnp.float32(0.5)
    shifted = jnp.arange(2 * CODES)[None] + 240
    here = velocity(x, t, conditioning)
    assert_close(velocity(x, t, conditioning, positions=shifted), here, 1e-4)
    stretched = 3 * jnp.arange(2 * CODES)[None]
    assert np.abs(velocity(x, t, conditioning, positions=stretched) - here).max() > 1e-2


def test_one_evaluation_sees_two_blocks_back_and_one_ahead(params, velocity, inputs):
    blocks, changed = 7, 3
    codes = jnp.zeros((1, 12 * blocks), jnp.int32)
    voice = dit.make_voice(params, DIT, jnp.asarray(inputs["speaker"][:1]), jnp.asarray(inputs["ref_mel"][:1]))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 24 * blocks, DIT.mel_dim)), jnp.float32)

    def evaluate(codes):
        conditioning = dit.condition(params, DIT, codes, voice)
        return velocity(x, jnp.float32(0.5), conditioning).reshape(blocks, -1)

    difference = evaluate(codes) - evaluate(codes.at[:, 12 * changed : 12 * changed + 12].set(7))
    touched = np.flatnonzero(np.abs(difference).max(axis=1) > 0)
    np.testing.assert_array_equal(touched, [2, 3, 4, 5])  # output block b sees blocks b-2 … b+1


@pytest.mark.parametrize(("look_back", "look_ahead"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_block_attention_is_attention_under_a_block_mask(look_back, look_ahead):
    rng = np.random.default_rng(0)
    size, time, real = 4, 20, 14
    query, key, value = (jnp.asarray(rng.normal(size=(1, time, 2, 8)), jnp.float32) for _ in range(3))
    block = np.arange(time) // size
    apart = block[None] - block[:, None]
    seen = (apart >= -look_back) & (apart <= look_ahead) & (np.arange(time) < real)
    scores = jnp.where(seen, jnp.einsum("bqnh,bknh->bnqk", query, key) / 8**0.5, -jnp.inf)
    want = jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(scores), value)
    ours = block_attention(
        query,
        key,
        value,
        jnp.arange(time)[None] < real,
        block_size=size,
        look_back=look_back,
        look_ahead=look_ahead,
    )
    np.testing.assert_allclose(ours[:, :real], want[:, :real], atol=1e-5)
    assert np.isfinite(ours).all()


def test_bfloat16_products_stay_near_float32(velocity, inputs, conditioning):
    x, t = jnp.asarray(inputs["x"]), jnp.float32(0.5)
    low = velocity(x, t, conditioning, dtype=jnp.bfloat16)
    assert low.dtype == jnp.float32
    assert_close(low, velocity(x, t, conditioning), 0.1)


def test_training_can_differentiate_with_and_without_recomputing_layers(params, inputs, conditioning):
    modulation = dit.modulate(params, DIT, jnp.array([0.3]))
    valid, positions = jnp.ones((BATCH, 2 * CODES), bool), jnp.arange(2 * CODES)[None]

    x = jnp.asarray(inputs["x"])

    def loss(variables, remat):
        model = dit.DiT(DIT, remat=remat)
        return jnp.square(model.apply(variables, x, modulation, conditioning, valid, positions)).mean()

    variables = {"params": params["dit"]}
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, remat = (gradient(variables, flag)["params"]["layers"] for flag in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, remat)
    assert (np.abs(plain["attention"]["query"]["kernel"]).max(axis=(1, 2, 3)) > 0).all()  # every layer learns


def test_dropout_is_drawn_from_the_key_and_only_in_training(params, inputs, conditioning):
    modulation = dit.modulate(params, DIT, jnp.array([0.3]))
    valid, positions = jnp.ones((BATCH, 2 * CODES), bool), jnp.arange(2 * CODES)[None]
    x, variables = jnp.asarray(inputs["x"]), {"params": params["dit"]}

    def run(seed, rate=0.1, **options):
        model, rngs = dit.DiT(dataclasses.replace(DIT, dropout=rate), **options), {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply(variables, x, modulation, conditioning, valid, positions, rngs=rngs))

    usual = run(0)
    np.testing.assert_array_equal(run(1), usual)
    first, second = run(0, training=True), run(1, training=True)
    assert np.abs(first - usual).max() > 1e-3 < np.abs(first - second).max()
    np.testing.assert_array_equal(run(0, training=True), first)
    np.testing.assert_allclose(run(0, training=True, remat=True), first, atol=1e-5)
    np.testing.assert_allclose(run(0, rate=0.0, training=True), usual, atol=1e-6)


def test_new_parameters_let_the_codes_be_heard_and_the_layers_begin_as_the_identity():
    config = dataclasses.replace(DIT, emb_dim=512, num_embeds=400, mel_dim=80, enc_dim=128, enc_emb_dim=192)
    params = nn.unbox(jax.jit(dit.init_params, static_argnums=1)(jax.random.key(0), config))["dit"]
    assert np.std(params["codes"]["embedding"]) == pytest.approx(1, rel=0.05)
    # each input by its share of the 912: 512 / 912 / 3 of codes, 80 / 912 / 3 of noise
    model = dit.DiT(config)
    voice = dit.Voice(jnp.zeros((1, config.hidden_size)), jnp.zeros(config.hidden_size))
    codes = jnp.arange(400)[None]
    heard = model.apply({"params": params}, codes, voice, False, method=dit.DiT.condition).conditional
    kernel = params["input"]["kernel"]
    noise = jax.random.normal(jax.random.key(1), (400, 80)) @ kernel[:80]
    assert np.var(heard) == pytest.approx(512 / 912 / 3, rel=0.2)
    assert np.var(noise) == pytest.approx(80 / 912 / 3, rel=0.2)
    for kernel in (params["modulation"]["kernel"], params["final_modulation"]["kernel"], params["output"]["kernel"]):
        assert (np.asarray(kernel) == 0).all()
    layers = params["layers"]
    for name, fan_in in (("query", 32), ("out", 32)):
        assert np.std(layers["attention"][name]["kernel"]) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
    assert np.std(layers["mlp"]["down"]["kernel"]) == pytest.approx((3 * 64) ** -0.5, rel=0.1)


def test_codes_outside_the_table_are_refused_on_the_host():
    dit.check_codes(np.array([[0, DIT.num_embeds]]), DIT)
    with pytest.raises(OmniError, match=r"Speech code 41 at index \(0, 1\) is outside 0 … 40"):
        dit.check_codes(np.array([[3, 41]]), DIT)
    with pytest.raises(OmniError, match="-1"):
        dit.check_codes(np.array([-1]), DIT)
    with pytest.raises(OmniError, match="integers"):
        dit.check_codes(np.array([1.0]), DIT)


def test_an_utterance_beyond_the_position_range_is_refused(params, inputs):
    codes = jnp.zeros((1, DIT.max_position_embeddings // 2 + 1), jnp.int32)
    speaker, ref_mel = jnp.asarray(inputs["speaker"][:1]), jnp.asarray(inputs["ref_mel"][:1])
    with pytest.raises(CapacityError, match="32770 mel frames"):
        dit.sample_full(params, DIT, codes, speaker, ref_mel, key=jax.random.key(0))


@pytest.mark.parametrize("config", [DIT, DiTConfig()], ids=["small", "published"])
def test_the_table_covers_every_tensor_and_no_other(config):
    table = table_token2wav.dit(config)
    published = {name: shape for name, shape in meta_state(config).items() if ".spk_encoder." not in name}
    assert torch_shapes(table) == published

    tree = jax.eval_shape(lambda key: dit.init_params(key, config), jax.random.key(0))
    tree = jax.tree.map(lambda box: box.value.shape, tree, is_leaf=lambda leaf: hasattr(leaf, "names"))
    table += table_token2wav.speaker_encoder(config)
    assert dict(flatten(tree)) == jax_shapes(table)


def test_the_published_size():
    table = table_token2wav.dit(DiTConfig())
    assert (len(torch_shapes(table)), sum(entry.size for entry in table)) == (319, 331_878_480)


def test_stacked_parameters_name_the_axis_of_layers():
    layers = jax.eval_shape(lambda key: dit.init_params(key, DIT), jax.random.key(0))["dit"]["layers"]
    assert layers["attention"]["query"]["kernel"].names == ("layers", "embed", "heads", "head_dim")
    assert layers["mlp"]["down"]["bias"].names == ("layers", "embed")
