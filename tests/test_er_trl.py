"""ER-TRL: its losses, whom they train, its settings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from scipy import stats

from gentle_jax import assembly, cholesky, data, errors, losses
from gentle_jax.types import MetaBatch

NOISE, ROUNDS, LR = 3, 2, 0.05


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(a, b, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=1e-6)


# --- entropy


def test_log_det_by_hand():
    # pivots of ((4, 2), (2, 3)): 4 and 3 - 2 * 2 / 4 = 2
    close(cholesky.log_det(jnp.array([[4.0, 2.0], [2.0, 3.0]])), math.log(8))
    close(cholesky.log_det(jnp.array([[[0.5]], [[2.0]]])), [math.log(0.5), math.log(2)])


@pytest.mark.parametrize("size", [1, 2, 8])
def test_log_det_and_its_gradient_match_numpy(size):
    root = normal(3, size, size + 2, seed=size)
    matrix = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(size)
    both = jax.jit(jax.vmap(jax.value_and_grad(cholesky.log_det)))
    value, grad = both(jnp.array(matrix, jnp.float32))
    close(value, np.linalg.slogdet(matrix)[1], rtol=1e-4)
    inverse = np.linalg.inv(matrix)  # of log det, for symmetric changes
    symmetric = (grad + grad.transpose(0, 2, 1)) / 2
    np.testing.assert_allclose(symmetric, inverse, rtol=1e-2, atol=1e-3 * np.abs(inverse).max())


def test_no_kernel_of_lapack_is_called():
    program = jax.jit(jax.grad(lambda a: losses.gaussian_entropy(a).sum()))
    assert "custom_call" not in program.lower(jnp.zeros((2, 5, 3))).as_text()


def test_entropy_by_hand():
    # actions -1 and 1 have the variance 2 (divided by B - 1 = 1): 0.5 log(2 pi e 2.00001)
    value = losses.gaussian_entropy(jnp.array([[[-1.0], [1.0]]]))
    close(value, [0.5 * math.log(2 * math.pi * math.e * 2.00001)])
    # one action for all rows: the floor alone, in each of two dimensions
    value = losses.gaussian_entropy(jnp.full((1, 4, 2), 0.3))
    close(value, [math.log(2 * math.pi * math.e * 1e-5)], rtol=1e-4)


@pytest.mark.parametrize("size", [2, 6, 8])
def test_entropy_is_that_of_scipy_and_of_loops(size):
    actions = np.tanh(normal(3, 40, size) @ normal(size, size, seed=1))
    found = losses.gaussian_entropy(jnp.array(actions, jnp.float32))
    for one, value in zip(actions, found, strict=True):
        covariance = np.cov(one, rowvar=False) + 1e-5 * np.eye(size)
        close(value, stats.multivariate_normal(one.mean(0), covariance).entropy(), rtol=1e-3)
        close(value, ref.gaussian_entropy(one), rtol=1e-3)


def test_entropy_knows_neither_order_nor_place_and_grows_with_scale():
    actions = jnp.array(0.3 * normal(2, 30, 3), jnp.float32)
    value = losses.gaussian_entropy(actions)
    close(losses.gaussian_entropy(actions[:, ::-1] + 0.5), value, rtol=1e-4)
    # twice the size adds log 2 a dimension; the floor is small beside variances of 0.1
    close(losses.gaussian_entropy(2 * actions) - value, np.full(2, 3 * math.log(2)), rtol=1e-3)
    other = losses.gaussian_entropy(actions.at[1].set(0.0))  # tasks are apart
    assert other[0] == value[0] and other[1] < value[1]


def test_entropy_of_few_rows_is_finite_with_its_gradient():
    both = jax.jit(jax.value_and_grad(lambda a: losses.gaussian_entropy(a).sum()))
    value, grad = both(jnp.array(normal(1, 2, 6), jnp.float32))
    assert np.isfinite(value) and np.isfinite(grad).all()


# --- the GAN's losses


def test_cross_entropies_by_hand():
    # a logit of 0 is an even chance: log 2 for each label
    zero = jnp.zeros((2, 3))
    close(losses.discrimination(zero, zero), 2 * math.log(2))
    close(losses.deception(zero), math.log(2))
    # logits log 3: D = 3/4 for real rows, and 3/4 for generated ones
    three = jnp.full(4, math.log(3))
    close(losses.discrimination(three, three), -math.log(0.75) - math.log(0.25))
    close(losses.deception(three), -math.log(0.75))


def test_cross_entropies_do_not_overflow():
    large = jnp.array([200.0, -200.0])
    close(losses.discrimination(large, large), 200.0)
    close(losses.deception(large), 100.0)


# --- the update


@pytest.fixture(scope="module")
def made(tiny):
    """(Tiny, its jitted update, a louder state, a batch of three tasks)."""
    made = tiny("er_trl", **{"er_trl.gan_lr": LR})
    loud = lambda x: 20 * x if x.dtype == jnp.float32 else x
    state = jax.tree.map(loud, made.state().rep)
    table, ids = jax.tree.map(jnp.asarray, made.train), jnp.arange(3)
    context, rows = (data.context_rows(table, ids, n, jax.random.key(n)) for n in (6, 8))
    return made, jax.jit(made.algorithm.rep.update), state, MetaBatch(rows, context, ids)


def updated(made, batch=None, **settings):
    made, update, state, whole = made
    hp = {name: np.float32(values[0]) for name, values in made.hp["algo"].items()}
    hp |= {name: np.float32(value) for name, value in settings.items()}
    args = (batch or whole, jnp.zeros((3, 3)), None, jax.random.key(2), jnp.int32(0))
    return update(state, hp, *args)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def by_hand(state, batch, key):
    """The discriminator's and generator's losses of the first round, and H of these networks."""
    rows = jax.tree.map(lambda x: np.asarray(x, float), batch.rl)
    context = batch.context
    columns = [context.obs, context.action, context.reward[..., None]]
    codes = ref.mlp(state.params["encoder"], np.concatenate(columns, -1), 1)
    z = np.repeat(np.tanh(codes).mean(1)[:, None], rows.obs.shape[1], 1)
    noise = np.asarray(jax.random.normal(key, (*rows.obs.shape[:-1], NOISE)))
    generator, judge = (state.own["entropy"][n].params for n in ("generator", "discriminator"))
    actions = np.tanh(ref.mlp(generator, np.concatenate([rows.obs, z, noise], -1), 1))
    seen = [np.concatenate([a, rows.obs, z], -1) for a in (rows.action, actions)]
    logits = [ref.mlp(judge, x, 1) for x in seen]
    chance = [1 / (1 + np.exp(-x)) for x in logits]
    told = -np.log(chance[0]).mean() - np.log(1 - chance[1]).mean()
    return told, -np.log(chance[1]).mean(), [ref.gaussian_entropy(a) for a in actions]


def test_the_losses_are_those_of_numpy(made):
    """With rates of 0 nothing moves, so every round has the networks of the start."""
    state, batch = made[2], made[3]
    _, metrics = updated(made, gan_lr=0.0, entropy_weight=3.0)
    keys = jax.random.split(jax.random.key(2), (2, 3))[1]  # of the second term's three hooks
    last = jax.random.split(keys[0], ROUNDS)[-1]
    told, deceived, _ = by_hand(state, batch, last)
    close(metrics["discriminator_loss"], told, rtol=1e-3)
    close(metrics["generator_loss"], deceived, rtol=1e-3)
    entropies = by_hand(state, batch, keys[1])[2]
    close(metrics["entropy_loss"], -3.0 * np.mean(entropies), rtol=1e-3)
    assert metrics.keys() == {
        "discriminator_loss", "generator_loss", "entropy_loss", "focal_loss",
    }  # fmt: skip


def test_the_entropy_moves_the_encoder_through_a_generator_that_it_leaves_alone(made):
    _, _, state, _ = made
    with_it, _ = updated(made, focal_weight=0.0)
    without, _ = updated(made, focal_weight=0.0, entropy_weight=0.0)
    assert same(with_it.own, without.own) and not same(with_it.own, state.own)
    assert same(without.params, state.params) and not same(with_it.params, state.params)
    assert with_it.params.keys() == {"encoder"}
    # a GAN that rests sends the gradient, too
    resting, _ = updated(made, focal_weight=0.0, gan_lr=0.0)
    params = lambda s: {name: net.params for name, net in s.own["entropy"].items()}
    assert same(params(resting), params(state)) and not same(resting.params, state.params)


def test_a_step_raises_the_entropy(made):
    tiny, update, _, batch = made
    settings = {"focal_weight": 0.0, "gan_lr": 0.0}
    after, first = updated(made, lr=1e-3, **settings)
    _, second = updated((tiny, update, after, batch), **settings)
    assert float(second["entropy_loss"]) < float(first["entropy_loss"])


def test_the_gan_learns_from_the_actions_of_the_context_rows_only(made):
    batch = made[3]
    other = batch._replace(rl=batch.rl._replace(reward=batch.rl.reward + 1.0))
    assert same(updated(made, other)[0], updated(made)[0])
    louder = batch._replace(rl=batch.rl._replace(action=0.5 * batch.rl.action))
    assert not same(updated(made, louder)[0].own, updated(made)[0].own)


def test_the_gan_takes_its_rounds_and_learns_what_is_done(tiny):
    """One action in every task: after some steps the generator makes it."""
    made = tiny("er_trl", **{"er_trl.rounds": 5, "er_trl.gan_lr": 5e-3})
    state, ids = made.state().rep, jnp.arange(3)
    rows = data.context_rows(jax.tree.map(jnp.asarray, made.train), ids, 32, jax.random.key(0))
    rows = rows._replace(action=jnp.full_like(rows.action, 0.6))
    batch, hp = MetaBatch(rows, rows, ids), jax.tree.map(lambda x: x[0], made.hp["algo"])

    @jax.jit
    def train(state, key):
        one = lambda state, k: made.algorithm.rep.update(state, hp, batch, None, None, k, 0)
        return jax.lax.scan(one, state, jax.random.split(key, 150))

    state, metrics = train(state, jax.random.key(1))
    for net in state.own["entropy"].values():
        assert int(net.moments.count) == 5 * 150
    # no discriminator can tell one action from itself: an even chance of both labels
    close(metrics["discriminator_loss"][-20:].mean(), 2 * math.log(2), rtol=0.1)


# --- settings


def test_published_weights():
    config = lambda env, suite: assembly.make_config("er_trl", preset="paper", env=env, suite=suite)
    weights = {"cheetah_vel": 2.5, "ant_goal": 5.0, "hopper_params": 5.0, "walker_params": 5.0}
    weights |= {"point_robot": 2.5}
    assert {env: config(env, "ctmrl").algo.entropy_weight for env in weights} == weights
    algo = config("ant_dir", "gentle").algo
    assert (algo.entropy_weight, algo.width, algo.focal_weight) == (5.0, 256, 10.0)
    assert (algo.rounds, algo.gan_lr, algo.noise_dim) == (5, 2e-4, 20)
    assert config("point_robot", "gentle").run.protocols[0] == "random_then_policy"


def test_a_covariance_needs_two_rows(tiny):
    with pytest.raises(errors.UserError, match=r"train\.batch_size is 1: expected at least 2"):
        tiny("er_trl", **{"train.batch_size": 1})
