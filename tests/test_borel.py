"""BOReL: its recurrent unit and the bound, against NumPy with plain loops (`toys_borel`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from toys_borel import (
    HP,
    LATENT,
    SMALL,
    bound_by_hand,
    gru_by_hand,
    parameters,
    random_rows,
    same,
    small,
)

from gentle_jax import sweep
from gentle_jax.algorithms.borel import layers
from gentle_jax.algorithms.borel import vae as vae_lib

# --- the recurrent unit


def test_the_reset_gate_applies_after_the_hidden_product_and_its_bias():
    """By hand: both gates 1/2, candidate tanh(.5 + .5 (2 h + 1)) = tanh(1.5) at h = .5."""
    zero = {"kernel": jnp.zeros((1, 3)), "bias": jnp.zeros(3)}
    hidden = {"kernel": jnp.array([[0.0, 0.0, 2.0]]), "bias": jnp.array([0.0, 0.0, 1.0])}
    inputs = jnp.array([0.0, 0.0, 0.5])
    params = {"input": zero, "hidden": hidden}
    after = layers.gru_step(params, jnp.array([0.5]), inputs, "float32")
    np.testing.assert_allclose(after, [0.5 * 0.9051483 + 0.5 * 0.5], rtol=1e-6)


def test_the_unit_is_that_of_loops():
    random = np.random.default_rng(0)
    params = layers.init_gru(3, 4, jax.random.key(0))
    params = jax.tree.map(lambda x: x + jnp.asarray(random.normal(size=x.shape), "f"), params)
    x, hidden = random.normal(size=(6, 3)).astype("f"), np.zeros(4)
    state = jnp.zeros(4)
    for row in x:
        hidden = gru_by_hand(params, hidden, row.astype(float))
        inputs = layers.dense(params["input"], jnp.asarray(row), "float32")
        state = layers.gru_step(params, state, inputs, "float32")
        np.testing.assert_allclose(state, hidden, rtol=1e-4, atol=1e-6)


def test_stacked_kernels_begin_orthonormal_and_biases_at_zero():
    params = layers.init_gru(4, 5, jax.random.key(3))
    for name, size in (("input", 4), ("hidden", 5)):
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.shape == (size, 15)
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(size), atol=1e-5)
        assert (params[name]["bias"] == 0).all()


def test_dense_layers_begin_within_one_over_the_root_of_their_inputs():
    drawn = layers.init_dense({"a": (16, 40), "b": (4, 3)}, jax.random.key(0), 2.0)
    kernel, bias = drawn["a"]["kernel"], drawn["a"]["bias"]
    assert kernel.shape == (16, 40) and drawn["b"]["kernel"].shape == (4, 3)
    assert 0.48 < np.abs(kernel).max() <= 0.5 and 0.2 < np.abs(bias).max() <= 0.25
    np.testing.assert_allclose(np.mean(kernel**2), 0.25 / 3, rtol=0.15)


# --- the bound


def test_divergences_of_a_chain_by_hand():
    """N(0, 1) -> N(1, 1): 1/2. N(1, 1) -> N(1, 4): (4 - ln 4 - 1) / 2 = 0.806853."""
    mean, log_variance = jnp.array([[[1.0], [1.0]]]), jnp.array([[[0.0], [np.log(4.0)]]])
    kl = vae_lib.kl_of_chain(mean, log_variance)
    np.testing.assert_allclose(kl, [[0.5, 0.8068528]], rtol=1e-6)


def test_divergences_are_those_of_integrals():
    random = np.random.default_rng(1)
    mean, log_variance = random.normal(size=(2, 1, 3, LATENT)).astype("f")
    kl = vae_lib.kl_of_chain(jnp.asarray(mean), jnp.asarray(log_variance))
    before = stats.norm(np.zeros(LATENT), np.ones(LATENT))
    for t in range(3):
        total = 0.0
        for i in range(LATENT):
            p = stats.norm(mean[0, t, i], np.exp(0.5 * log_variance[0, t, i]))
            q = stats.norm(before.mean()[i], before.std()[i])
            integrand = lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x))
            low, high = p.ppf(1e-12), p.ppf(1 - 1e-12)
            total += integrate.quad(integrand, low, high)[0]
        np.testing.assert_allclose(kl[0, t], total, rtol=1e-4)
        before = stats.norm(mean[0, t], np.exp(0.5 * log_variance[0, t]))


def test_gradients_go_through_both_sides_of_a_divergence():
    """Means 1 and 3: KL = 1/2 + 2; its slope is 1 - 2 in the first and 2 in the second one."""
    mean, zero = jnp.array([[[1.0], [3.0]]]), jnp.zeros((1, 2, 1))
    slope = jax.grad(lambda mean: vae_lib.kl_of_chain(mean, zero).sum())(mean)
    np.testing.assert_allclose(slope[0, :, 0], [-1.0, 2.0], rtol=1e-6)


def test_the_bound_by_hand():
    """Every network says its bias: guesses of 1, beliefs N(0, 4) after every row.

    Rewards 0 and 3: (1 + 4) / 2 at each of three posteriors, 7.5. Only the first divergence is not
    0: 0.8068528 for each of two numbers.
    """
    vae = small(decode_state=False)
    params = jax.tree.map(jnp.zeros_like, parameters(vae))
    params["reward"]["out"]["bias"] = jnp.ones(1)
    params["encoder"]["log_variance"]["bias"] = jnp.full(LATENT, np.log(4.0), jnp.float32)
    rows = random_rows(1, 2)._replace(context_reward=jnp.array([[0.0, 3.0]]))
    noise = jax.random.normal(jax.random.key(0), (1, 3, LATENT))
    bound = jax.jit(lambda params: vae_lib.bound(vae, params, HP, rows, jnp.ones((1, 2)), noise))
    loss, metrics = bound(params)
    np.testing.assert_allclose(metrics["decoder_loss"], 7.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl"], 2 * 0.8068528, rtol=1e-6)
    np.testing.assert_allclose(loss, 7.5 + 0.05 * 2 * 0.8068528, rtol=1e-6)


MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 1, 1]], np.float32)


def value_and_slopes(vae, params, rows, mask, noise):
    """(loss, gradients) of the bound, compiled."""
    loss = lambda params: vae_lib.bound(vae, params, HP, rows, jnp.asarray(mask), noise)[0]
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def case():
    """(Vae, parameters, rows [3, 5], noise, (loss, gradients)) of ragged sequences."""
    vae = small()
    params, rows = parameters(vae), random_rows(3, 5)
    noise = jax.random.normal(jax.random.key(1), (3, 6, LATENT))
    return vae, params, rows, noise, value_and_slopes(vae, params, rows, MASK, noise)


def test_the_bound_is_that_of_loops(case):
    vae, params, rows, noise, (loss, _) = case
    wanted = bound_by_hand(params, rows, MASK, np.asarray(noise), **HP)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    without = {name: part for name, part in params.items() if name != "state"}
    vae = small(decode_state=False)
    loss = jax.jit(lambda p: vae_lib.bound(vae, p, HP, rows, jnp.asarray(MASK), noise)[0])(without)
    np.testing.assert_allclose(loss, bound_by_hand(without, rows, MASK, noise, **HP), rtol=1e-4)


def test_gradients_reach_every_parameter(case):
    *_, (_, slopes) = case
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.abs(slope).max() > 1e-5, jax.tree_util.keystr(path)


def test_padding_changes_nothing(case):
    vae, params, rows, noise, wanted = case
    # other values in masked rows, and two more slots behind
    real = lambda x: MASK.reshape(3, 5, *(1,) * (x.ndim - 2)) > 0
    other = jax.tree.map(lambda x: jnp.where(real(x), x, 9.0), rows)
    wider = lambda x: jnp.concatenate([x, jnp.full_like(x[:, :2], 7.0)], 1)
    longer = jax.tree.map(wider, other)
    mask = np.pad(MASK, [(0, 0), (0, 2)])
    more = jnp.concatenate([noise, noise[:, :2]], 1)
    same(value_and_slopes(vae, params, longer, mask, more), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [1, 4, 6])
def test_posteriors_in_chunks_give_what_all_at_once_give(case, number):
    _, params, rows, noise, wanted = case
    vae = small(posteriors_at_once=number)
    same(value_and_slopes(vae, params, rows, MASK, noise), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [0, 6, 7])
def test_as_many_posteriors_as_there_are_is_all_of_them(case, number):
    _, params, rows, noise, wanted = case
    same(value_and_slopes(small(posteriors=number), params, rows, MASK, noise), wanted)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_drawn_posteriors_stand_for_all_on_average(case, number):
    _, params, rows, noise, (wanted, slopes) = case
    vae = small(posteriors=number)
    begins = (jnp.arange(12) + 0.5) / 12  # every belief of six equally often
    loss = lambda p, u: vae_lib.bound(vae, p, HP, rows, jnp.asarray(MASK), noise, u)[0]
    found = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(params, begins)
    assert np.ptp(found[0]) > 1e-4  # other posteriors, other losses
    mean = jax.tree.map(lambda x: x.mean(0), found)
    same(mean, (wanted, slopes), rtol=1e-4, atol=1e-5)


def scratch(length, number):
    """Bytes of scratch memory that the gradient takes of 4 sequences of some length."""
    vae = small(posteriors_at_once=number, decode_state=False)
    params = jax.eval_shape(lambda key: vae_lib.init(vae, key), jax.random.key(0))
    rows, mask = random_rows(4, length), jnp.ones((4, length))
    noise = jnp.zeros((4, length + 1, LATENT))
    slope = jax.grad(lambda params: vae_lib.bound(vae, params, HP, rows, mask, noise)[0])
    return sweep.compile_program(slope, (params,)).temp_bytes


def test_memory_grows_with_the_length_of_sequences_not_with_its_square():
    short, long, at_once = scratch(128, 8), scratch(512, 8), scratch(512, 1000)
    assert long < 6 * short  # four times as long
    pairs = 4 * 512 * 513 * SMALL.decoder_width * 4  # bytes of one layer
    assert at_once > pairs > 4 * long
