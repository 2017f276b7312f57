"""RL learners: what all of them keep, bandits with a known optimum, log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_backbones import (
    DEPTH,
    ROWS,
    batch_of,
    draw,
    first,
    learner_of,
    moved,
    numpy_forward,
    sac_draw,
)

from gentle_jax import distributions, networks, registry
from gentle_jax.testing import backbones
from gentle_jax.testing.trees import check_unshared
from gentle_jax.types import Cond, Transition

BACKBONES = (*registry.BACKBONES, "behaviour_sac")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_z_per_row_is_the_z_of_its_task(name):
    learner, tasks = learner_of(name), 4
    batches, cond = batch_of(learner.rl.num_batches)
    cond = Cond(*(z[:, :tasks] for z in cond))
    # Adam's first steps have the size of the rate whatever the gradient: rounding would show
    rates = {"lr": 1e-4, "policy_lr": 1e-4}
    start, _, _ = learner.update(learner.init(), batches, cond, index=1, **rates)
    update = lambda *inputs: learner.update(*inputs, index=2, **rates)
    backbones.check_z_of_rows(update, start, batches, cond, rtol=1e-7, atol=1e-6)
    found, dz, _ = update(start, batches, cond)
    assert moved(found, start) and moved(dz, jnp.zeros_like(dz))


@pytest.mark.parametrize("name", BACKBONES)
def test_targets_start_as_copies_that_share_no_buffer(name):
    state = learner_of(name).init()
    pairs = {
        "brac_sac": [("value", "target_value")],
        "td3_bc": [("critics", "target_critics"), ("policy", "target_policy")],
    }
    for trained, target in pairs.get(name, [("critics", "target_critics")]):
        assert not moved(getattr(state, trained).params, getattr(state, target))
    check_unshared(name, state)  # donation needs it


@pytest.mark.parametrize("name", ["brac_sac", "td3_bc"])
def test_initial_policy_has_a_spread_of_about_one(name):
    # heads of +-1e-3 and log std clipped at 0: u ~ N(~0, ~1)
    rl, state = learner_of(name).rl, learner_of(name).init()
    keys = jax.random.split(jax.random.key(0), 4000)
    obs, z = jnp.zeros((4000, 1)), jnp.zeros((4000, 1))
    action = jax.jit(jax.vmap(rl.act, (None, 0, 0, 0)))(state, obs, z, keys)
    assert np.abs(action).max() < 1.0
    assert abs(float(jnp.arctanh(action).std()) - 1.0) < 0.05
    assert abs(float(rl.mode(state, obs[0], z[0])[0])) < 0.05


PROBES = {
    # weights under which the learner's own regulariser does not hide the optimum; at a rate of 1e-2
    # SAC's first large steps may saturate its tanh
    "brac_sac": {
        "reward_scale": 50.0,
        "alpha_init": 0.0,
        "alpha_max": 0.0,
        "lr": 3e-3,
        "policy_lr": 3e-3,
    },
    "plain": {"reward_scale": 50.0, "lr": 3e-3, "policy_lr": 3e-3},
    "td3_bc": {"reward_scale": 5.0, "bc_weight": 25.0},
    "behaviour_sac": {"reward_scale": 20.0},
    "sac": {"reward_scale": 20.0, "lr": 3e-3, "policy_lr": 3e-3},
    "iql": {"reward_scale": 5.0, "lr": 3e-3, "policy_lr": 3e-3},
}


@pytest.mark.parametrize("name", list(PROBES))
def test_bandit_with_a_known_optimum_that_depends_on_z(name):
    # one step, terminal, r = -(a - z / 2)^2, data uniform in [-1, 1]: the best action is z / 2
    learner, random = learner_of(name), np.random.default_rng(0)
    state = learner.init(**{k: v for k, v in PROBES[name].items() if k == "alpha_init"})
    count = learner.rl.num_batches
    for step in range(600):
        # the same z in every batch of an update, as joint_step gives them
        z = random.choice([-1.0, 1.0], (1, ROWS, 1)).astype(np.float32)
        action = random.uniform(-1, 1, (count, ROWS, 1)).astype(np.float32)
        obs = np.zeros((count, ROWS, 1), np.float32)
        reward = -((action - z / 2) ** 2)[..., 0]
        batches = Transition(obs, action, reward, reward, obs, np.ones((count, ROWS), np.float32))
        cond = Cond(*[np.repeat(z, count, axis=0)] * 2)
        batches, cond = jax.tree.map(jnp.asarray, (batches, cond))
        state, _, metrics = learner.update(state, batches, cond, key=step, index=step,
                                           **PROBES[name])  # fmt: skip
    assert np.isfinite(metrics["q_loss"])
    for z in (-1.0, 1.0):
        mode = float(learner.rl.mode(state, jnp.zeros(1), jnp.array([z]))[0])
        assert abs(mode - z / 2) < 0.15, (name, z, mode)


@pytest.mark.parametrize("shape", [(16, 16), (5, 12), (12, 5), (7, 1)])
def test_orthogonal_init_is_orthonormal_and_uniform_in_sign(shape):
    draw = jax.jit(jax.vmap(lambda key: networks.orthogonal(jax.random.normal(key, shape))))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 400)), np.float64)
    wide = drawn if shape[0] <= shape[1] else drawn.swapaxes(1, 2)
    gram = wide @ wide.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(min(shape)), gram.shape), atol=1e-5)
    # every entry of a uniform one has mean 0 and variance 1 / max(shape); 5 standard errors
    bound = 5 / np.sqrt(400 * max(shape))
    assert np.abs(drawn.mean(0)).max() < bound


@pytest.mark.parametrize("name", BACKBONES)
def test_init_calls_no_lapack(name):
    """Two batched LAPACK calls of one program can wait for each other for ever on a CPU."""
    learner = learner_of(name)
    many = jax.jit(jax.vmap(learner.rl.init, (None, 0)))
    text = many.lower(learner.hp, jax.random.split(jax.random.key(0), 3)).as_text()
    assert "custom_call" not in text or "lapack" not in text


# --- log-probabilities of a tanh-Gaussian

MEANS = {  # mean: (exact, the released 1 - a^2 + 1e-6 under the logarithm, in 64 bits)
    (8.0, -9.0): (32.186415, 27.222801),
    (0.3, -1.2): (1.738559, 1.738553),
}


@pytest.mark.parametrize("mean", list(MEANS))
def test_log_probabilities_exact_and_as_released(monkeypatch, mean):
    noise = jnp.array([0.7, -1.1])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    heads = jnp.array(mean), jnp.array([-0.5, -2.0]), jax.random.key(0)
    exact, released = MEANS[mean]
    action, log_p = distributions.sample_exact(*heads)
    np.testing.assert_allclose(log_p, exact, rtol=1e-6)
    same_action, log_p = distributions.sample(*heads)
    # near an end of the range 1 - a^2 has few of its 32 bits left: 27.443146 on most machines
    np.testing.assert_allclose(log_p, released, atol=0.4 if mean[0] > 1 else 3e-6)
    np.testing.assert_array_equal(action, same_action)


def test_the_exact_log_probability_is_finite_anywhere():
    mean, log_std = jnp.array([[-90.0], [0.0], [90.0]]), jnp.zeros((3, 1))
    log_p = lambda mean: distributions.sample_exact(mean, log_std, jax.random.key(0))[1].sum()
    value, slope = jax.value_and_grad(log_p)(mean)
    # d/du of -2 (log 2 - u - softplus(-2u)) is 2 tanh(u)
    np.testing.assert_allclose(slope[::2, 0], [-2.0, 2.0], rtol=1e-5)
    assert np.isfinite(value)


def test_behaviour_sac_takes_the_exact_log_probability_and_brac_sac_the_released_one():
    """At means of about 8 the two differ by more than one."""
    batches, cond = batch_of(1)
    batch, z = first(batches, cond.now)
    _, k_policy = jax.random.split(jax.random.key(0))

    def entropy(name, layer):
        state = learner_of(name).init()
        params = state.policy.params
        shifted = params[layer] | {"bias": params[layer]["bias"].at[0].add(8.0)}
        policy = params | {layer: shifted}
        state = state.replace(policy=state.policy.replace(params=policy))
        _, _, metrics = learner_of(name).update(state, batches, cond)
        return float(metrics["entropy"]), (policy, batch.obs, z, k_policy)

    found, inputs = entropy("behaviour_sac", f"Dense_{DEPTH}")
    expected = -sac_draw(*inputs, xp=np, forward=numpy_forward)[1].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    found, inputs = entropy("plain", f"Dense_{DEPTH}")
    released = -draw(*inputs)[1].mean()
    np.testing.assert_allclose(found, released, atol=0.15)  # see above
    action, log_p, mean, log_std = draw(*inputs)
    before = mean + jnp.exp(log_std) * jax.random.normal(k_policy, mean.shape)
    exact = log_p + jnp.log(1 - action**2 + 1e-6)[:, 0] + 2 * jnp.log(jnp.cosh(before))[:, 0]
    assert abs(found + exact.mean()) > 1.0
