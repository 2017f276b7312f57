"""CORRO: its losses, negatives, and the attention as a running softmax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from scipy.special import logsumexp, softmax

from gentle_jax import compose, losses
from gentle_jax import data as data_lib
from gentle_jax.algorithms.corro import attention, generator
from gentle_jax.algorithms.corro.settings import Config
from gentle_jax.types import MetaBatch, Spec, Transition

SPEC, Z, ROWS = Spec(3, 2, 4, 50, 5), 4, 12
SMALL = Config(width=8, cvae_width=8, code_dim=2, num_negatives=5)
HP = {"kl_weight": 0.2, "reward_std": 0.5, "temperature": 0.1}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows_of(*shape, seed=0):
    draw = iter(range(10 * seed, 10 * seed + 10))
    one = lambda *more: jnp.asarray(normal(*shape, *more, seed=next(draw)))
    return Transition(one(3), one(2), one(), one(), one(3), one())


def columns(rows):
    """Context rows with s', by NumPy."""
    parts = [rows.obs, rows.action, rows.context_reward[..., None], rows.next_obs]
    return np.concatenate(parts, -1).astype(float)


def louder(params, scales):
    """Parameters whose parts are multiplied by `scales`: codes and outputs of order 1."""
    times = lambda scale: lambda x: scale * x
    return {name: jax.tree.map(times(scale), params[name]) for name, scale in scales.items()}


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


# --- InfoNCE and KL


def test_info_nce_by_hand():
    # q.k = 1, q.n = 0 and -1: -log(e / (e + 1 + 1/e)) = log(1 + 1/e + 1/e^2)
    query, positive = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]])
    negatives = jnp.array([[[0.0, 1.0], [-1.0, 0.0]]])
    e = np.exp(1.0)
    value = losses.info_nce(query, positive, negatives, 1.0)
    np.testing.assert_allclose(value, np.log(1 + 1 / e + 1 / e**2), rtol=1e-6)
    # one negative equal to the positive: log 2 at any temperature
    value = losses.info_nce(query, positive, positive[:, None], 0.1)
    np.testing.assert_allclose(value, np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_info_nce_is_scipys_logsumexp(temperature):
    query, positive = unit(normal(6, 4)), unit(normal(6, 4, seed=1))
    negatives = unit(normal(6, 16, 4, seed=2))
    wanted = []
    for q, k, n in zip(query.astype(float), positive, negatives, strict=True):
        logits = np.array([q @ k, *(n @ q)]) / temperature
        wanted.append(logsumexp(logits) - logits[0])
    value = losses.info_nce(*map(jnp.asarray, (query, positive, negatives)), temperature)
    np.testing.assert_allclose(value, np.mean(wanted), rtol=1e-4)


def test_info_nce_pulls_the_positive_and_pushes_the_negatives():
    query, positive = jnp.asarray(normal(1, 3)), jnp.asarray(normal(1, 3, seed=1))
    negatives = jnp.asarray(normal(1, 2, 3, seed=2))
    grads = jax.grad(losses.info_nce, (1, 2))(query, positive, negatives, 0.5)
    assert (grads[0] @ query[0] < 0).all() and (grads[1][0] @ query[0] > 0).all()
    # the order of negatives does not matter, and a rotation of all codes neither
    value = losses.info_nce(query, positive, negatives, 0.5)
    turn = np.linalg.qr(normal(3, 3, seed=3))[0]
    for other in (
        losses.info_nce(query, positive, negatives[:, ::-1], 0.5),
        losses.info_nce(query @ turn, positive @ turn, negatives @ turn, 0.5),
    ):
        np.testing.assert_allclose(other, value, rtol=1e-5)


def test_kl_by_hand_and_by_quadrature():
    # N(1, 1), N(2, 1): (1 + 4) / 2; N(0, 4): (4 - 1 - log 4) / 2
    mean = jnp.array([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    log_variance = jnp.array([[0.0, 0.0], [0.0, 0.0], [np.log(4.0), 0.0]])
    wanted = [0.0, 2.5, (3 - np.log(4.0)) / 2]
    np.testing.assert_allclose(losses.standard_kl(mean, log_variance), wanted, rtol=1e-6, atol=1e-7)
    x = np.linspace(-20.0, 20.0, 40_001)
    log_p = lambda m, v: -0.5 * (np.log(2 * np.pi * v) + (x - m) ** 2 / v)
    p = log_p(0.7, 0.3)
    wanted = (np.exp(p) * (p - log_p(0.0, 1.0))).sum() * (x[1] - x[0])
    value = losses.standard_kl(jnp.array([0.7]), jnp.log(jnp.array([0.3])))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


# --- the CVAE and the negatives


@pytest.fixture(scope="module")
def cvae():
    """(CVAE, its parameters with codes and outputs of order 1)."""
    made = generator.make(SMALL, SPEC)
    return made, louder(made.init(jax.random.key(0)), {"encoder": 30.0, "decoder": 100.0})


def decoded(params, obs, action, codes):
    """(s', r) by NumPy."""
    out = ref.mlp(params["decoder"], np.concatenate([obs, action, codes], -1), 1)
    return out[..., :3], out[..., 3]


def seen_of(context, params=None, data=None):
    batch = MetaBatch(context, context, jnp.zeros(len(context.reward), jnp.int32))
    encode = lambda *args: None
    return compose.Seen(None, None, batch, None, encode, params or {}, {}, {}, data, 0)


def test_the_cvaes_loss_is_its_equation(cvae):
    made, params = cvae
    rows, key = rows_of(6, 1), jax.random.key(3)
    x = columns(rows)
    mean, log_variance = np.split(ref.mlp(params["encoder"], x, 1), 2, -1)
    codes = mean + np.exp(log_variance / 2) * np.asarray(jax.random.normal(key, mean.shape))
    next_obs, reward = decoded(params, rows.obs, rows.action, codes)
    kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1).mean()
    errors_of = ((next_obs - rows.next_obs) ** 2).mean() + (
        (reward - rows.context_reward) ** 2
    ).mean()
    value = generator.term(made).loss(params, {}, HP, seen_of(rows), key)
    assert kl > 0.1
    np.testing.assert_allclose(value, 0.2 * kl + errors_of, rtol=1e-4)


def negatives_of(kind, cvae, seed=0, data=None):
    made, params = cvae
    config, queries = dataclasses.replace(SMALL, negatives=kind), rows_of(6, seed=1)
    seen = seen_of(jax.tree.map(lambda x: x[:, None], queries), {"cvae": params}, data)
    key = jax.random.key(seed)
    return queries, generator.negatives(config, SPEC, made, HP, seen, queries, key)


@pytest.mark.parametrize("kind", ["generative", "reward"])
def test_negatives_keep_the_querys_state_and_action(cvae, kind):
    queries, rows = negatives_of(kind, cvae)
    assert rows.reward.shape == (6, 5) and rows.next_obs.shape == (6, 5, 3)
    for name in ("obs", "action") + (("next_obs",) if kind == "reward" else ()):
        kept, query = getattr(rows, name), getattr(queries, name)
        np.testing.assert_array_equal(kept, np.repeat(query[:, None], 5, 1))


def test_generated_negatives_are_decoded_from_standard_normal_codes(cvae):
    queries, rows = negatives_of("generative", cvae, seed=4)
    codes = np.asarray(jax.random.normal(jax.random.key(4), (6, 5, 2)))
    each = lambda x: np.repeat(np.asarray(x)[:, None], 5, 1)
    next_obs, reward = decoded(cvae[1], each(queries.obs), each(queries.action), codes)
    np.testing.assert_allclose(rows.next_obs, next_obs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows.context_reward, reward, rtol=1e-4, atol=1e-4)
    assert np.std(reward, 1).min() > 1e-3  # a query's negatives differ


def test_randomised_rewards_have_the_noise_that_was_asked_for(cvae):
    draws = [negatives_of("reward", cvae, seed) for seed in range(100)]
    noise = np.stack([r.context_reward - q.context_reward[:, None] for q, r in draws])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 0.5) < 0.03


def test_random_rows_come_from_all_training_tasks_and_no_other(cvae):
    task = jnp.broadcast_to(jnp.arange(6.0)[:, None], (6, 50))  # the last two are test tasks
    leaves = Transition(*(task[..., None],) * 2, task, task, task[..., None], task)
    start = jnp.tile(jnp.array([0, 50], jnp.int32), (6, 1))
    data = data_lib.Dataset(leaves, start, 1, 1)
    drawn = [negatives_of("none", cvae, seed, data)[1] for seed in range(10)]
    assert drawn[0].reward.shape == (6, 5) and drawn[0].obs.shape == (6, 5, 1)
    assert set(np.concatenate([d.reward.ravel() for d in drawn])) == {0.0, 1.0, 2.0, 3.0}


# --- attention


@pytest.fixture(scope="module")
def encoder():
    """(Encoder with jitted parts, loud parameters)."""
    made = attention.attention_encoder(SPEC, Z, 8, 2)
    params = louder(made.init(jax.random.key(0)), {"encoder": 20.0, "attention": 1000.0})
    return made._replace(extend=jax.jit(made.extend), encode=jax.jit(made.encode)), params


def z_of(encoder, rows, mask=None, params=None):
    made, loud = encoder
    params = loud if params is None else params
    mask = jnp.ones(len(rows.reward)) if mask is None else jnp.asarray(mask, jnp.float32)
    belief = made.extend(params, made.prior(params), rows, mask)
    return made.sample(params, belief, jax.random.key(0))


def attended(params, rows):
    """(codes, z) by NumPy, one row after the other."""
    codes = unit(ref.mlp(params["encoder"], columns(rows), 2))
    return codes, softmax(ref.mlp(params["attention"], codes, 0)[:, 0]) @ codes


def test_z_is_the_softmax_weighted_sum_of_codes_of_length_one(encoder):
    rows = rows_of(ROWS)
    codes, z = attended(encoder[1], rows)
    np.testing.assert_allclose(z_of(encoder, rows), z, atol=1e-5)
    both = jax.tree.map(lambda x: x[None], rows)
    row_codes, of_set = encoder[0].encode(encoder[1], both, jnp.zeros(1, int), jax.random.key(0))
    np.testing.assert_allclose(row_codes[0], codes, atol=1e-5)
    np.testing.assert_allclose(of_set[0], z, atol=1e-5)
    assert np.linalg.norm(z) < 1.0 and np.abs(z - codes.mean(0)).max() > 0.01


def test_order_and_pieces_do_not_matter(encoder):
    made, params = encoder
    rows = rows_of(ROWS)
    whole = z_of(encoder, rows)
    order = np.random.default_rng(1).permutation(ROWS)
    shuffled = jax.tree.map(lambda x: x[order], rows)
    np.testing.assert_allclose(z_of(encoder, shuffled), whole, atol=1e-6)
    for rows_now in (rows, shuffled):
        belief = made.prior(params)
        for half in (slice(0, 6), slice(6, ROWS)):
            piece = jax.tree.map(lambda x, half=half: x[half], rows_now)
            belief = made.extend(params, belief, piece, jnp.ones(6))
        np.testing.assert_allclose(made.sample(params, belief, None), whole, atol=1e-6)


def test_padding_changes_nothing_even_if_it_is_nan_and_no_rows_leave_the_prior(encoder):
    made, params = encoder
    rows, real = rows_of(ROWS), np.arange(ROWS) < 5
    short = attended(params, jax.tree.map(lambda x: x[:5], rows))[1]
    for filler in (0.0, 1e30, jnp.nan):
        fill = lambda x, filler=filler: jnp.where(real.reshape(-1, *(1,) * (x.ndim - 1)), x, filler)
        np.testing.assert_allclose(z_of(encoder, jax.tree.map(fill, rows), real), short, atol=1e-5)
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), rows)
    belief = made.extend(params, made.prior(params), rows, jnp.ones(ROWS))
    for before in (made.prior(params), belief):
        after = made.extend(params, before, nothing, jnp.zeros(ROWS))
        jax.tree.map(np.testing.assert_array_equal, after, before)
    assert (made.sample(params, made.prior(params), None) == 0.0).all()


@pytest.mark.parametrize("scale,bias", [(1e6, 0.0), (1e30, 0.0), (0.0, -1e9), (10.0, -1e4)])
def test_scores_of_any_size_are_stable(encoder, scale, bias):
    made, params = encoder
    rows = rows_of(ROWS)
    direction = normal(Z, 1, seed=5)
    layer = {"kernel": jnp.asarray(scale * direction), "bias": jnp.full(1, bias)}
    loud = params | {"attention": {"Dense_0": layer}}
    codes = attended(params, rows)[0]
    z = softmax(scale * (codes @ direction)[:, 0]) @ codes  # a bias cancels
    belief = made.prior(loud)
    for half in (slice(0, 6), slice(6, ROWS)):
        piece = jax.tree.map(lambda x, half=half: x[half], rows)
        belief = made.extend(loud, belief, piece, jnp.ones(6))
    # scores of order 1e4 have steps of 1e-3
    np.testing.assert_allclose(made.sample(loud, belief, None), z, atol=3e-3)
    both = jax.tree.map(lambda x: x[None], rows)
    of_set = made.encode(loud, both, jnp.zeros(1, int), jax.random.key(0))[1]
    np.testing.assert_allclose(of_set[0], z, atol=3e-3)


def test_s_prime_and_the_sparse_reward_are_seen_and_the_end_flag_is_not(encoder):
    rows = rows_of(ROWS)
    z = z_of(encoder, rows)
    for name in ("obs", "action", "context_reward", "next_obs"):
        changed = rows._replace(**{name: 1.5 * getattr(rows, name)})
        assert np.abs(z_of(encoder, changed) - z).max() > 1e-3
    for name in ("reward", "terminal"):
        changed = rows._replace(**{name: getattr(rows, name) + 1.0})
        np.testing.assert_array_equal(z_of(encoder, changed), z)
