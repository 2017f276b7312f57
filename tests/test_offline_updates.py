"""One update of the offline SAC and of IQL against their equations, written again in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_backbones import (
    HALF_LOG_2PI,
    adam_first_step,
    amplified,
    assert_close,
    batch_of,
    both,
    first,
    forward,
    gradient,
    learner_of,
    louder,
    moved,
    numpy_forward,
    squared,
)

NUMPY = {"xp": np, "forward": numpy_forward}


def mixed(old, new):
    """Targets after a Polyak step with tau 0.005."""
    return jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, old, new)


def critic_loss(batch, target):
    """Loss of (critics, z): both squared errors."""
    return lambda critics, z: sum(
        ((value - target) ** 2).mean() for value in both(critics, batch.obs, batch.action, z)
    )


# --- SAC with a fixed entropy weight


def draw(params, obs, z, key, xp=jnp, forward=forward):
    """(action, exact log-probability): log std within [-20, 2], 1 - tanh(u)^2 = cosh(u)^-2."""
    out = forward(params, obs, z)
    mean, log_std = out[:, :1], xp.clip(out[:, 1:], -20.0, 2.0)
    noise = xp.asarray(jax.random.normal(key, mean.shape))
    before = mean + xp.exp(log_std) * noise
    log_p = -0.5 * noise**2 - log_std - HALF_LOG_2PI + 2 * xp.log(xp.cosh(before))
    return xp.tanh(before), log_p[:, 0]


@pytest.fixture(scope="module")
def sac():
    """(old state, batch, z, z_next, new state, dz, metrics) of one update, at an odd step."""
    learner = learner_of("sac")
    state = learner.init()
    state = state.replace(
        critics=amplified(state.critics, 1.5), target_critics=louder(state.critics.params, 6.0)
    )
    batches, cond = batch_of(1)
    settings = {"discount": 0.9, "reward_scale": 2.0}
    return (
        state,
        *first(batches, *cond),
        *learner.update(state, batches, cond, index=1, **settings),
    )


def test_sac_critics_aim_at_the_soft_value_of_the_target_critics(sac):
    old, batch, z, z_next, new, dz, metrics = sac
    k_target, _ = jax.random.split(jax.random.key(0))

    def target_at(z_next):
        action, log_p = draw(old.policy.params, batch.next_obs, z_next, k_target, **NUMPY)
        inputs = batch.next_obs, action, z_next
        value = both(old.target_critics, *inputs, forward=numpy_forward).min(0) - 0.2 * log_p
        return 2.0 * np.asarray(batch.reward) + 0.9 * (1 - np.asarray(batch.terminal)) * value

    target = target_at(z_next)
    values = both(old.critics.params, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)
    assert not np.isclose(metrics["q_loss"], squared(values, target_at(z)), rtol=1e-3)
    loss = critic_loss(batch, jnp.float32(target))
    grads, z_grad = gradient(loss, old.critics.params, z, argnums=(0, 1))
    assert_close(new.critics.params, adam_first_step(old.critics.params, grads))
    assert_close(dz, z_grad)
    assert_close(new.target_critics, mixed(old.target_critics, new.critics.params), 1e-6)


def test_sac_policy_uses_the_updated_critics_and_actions_of_its_own(sac):
    old, batch, z, _, new, _, metrics = sac
    _, k_policy = jax.random.split(jax.random.key(0))

    def loss(policy):
        action, log_p = draw(policy, batch.obs, z, k_policy)
        return (0.2 * log_p - both(new.critics.params, batch.obs, action, z).min(0)).mean()

    policy = old.policy.params
    assert_close(new.policy.params, adam_first_step(policy, gradient(loss, policy)))
    _, log_p = draw(policy, batch.obs, z, k_policy, **NUMPY)
    np.testing.assert_allclose(metrics["entropy"], -log_p.mean(), rtol=1e-4)


def test_sac_weighs_the_entropy_as_it_is_told():
    learner = learner_of("sac")
    batches, cond = batch_of(1)
    states = [
        learner.update(learner.init(), batches, cond, entropy_weight=w)[0] for w in (0.0, 5.0)
    ]
    assert moved(states[0].critics, states[1].critics) and moved(*(s.policy for s in states))


# --- IQL


@pytest.fixture(scope="module")
def iql():
    """(old state, batch, z, z_next, new state, dz, metrics) of one update; values are not tiny."""
    learner = learner_of("iql")
    state = learner.init()
    policy = state.policy.params | {"log_std": jnp.full(1, -0.7)}
    state = state.replace(
        policy=state.policy.replace(params=policy),
        critics=amplified(state.critics, 1.5),
        target_critics=louder(state.critics.params, 60.0),
        value=amplified(state.value, 20.0),
    )
    batches, cond = batch_of(1)
    settings = {"discount": 0.9, "reward_scale": 2.0, "max_weight": 1.5}
    return (state, *first(batches, *cond), *learner.update(state, batches, cond, **settings))


def value_of(params, obs, z):
    return numpy_forward(params, obs, z)[:, 0]


def data_values(old, batch, z):
    """The lesser of the target critics at the data's actions."""
    inputs = batch.obs, batch.action, z
    return np.asarray(both(old.target_critics, *inputs, forward=numpy_forward)).min(0)


def test_iql_value_aims_at_an_expectile_of_the_target_critics(iql):
    old, batch, z, _, new, _, metrics = iql
    q = data_values(old, batch, z)
    total = 0.0
    for error in q - value_of(old.value.params, batch.obs, z):
        total += abs(0.7 - (error < 0)) * error**2 / len(q)
    np.testing.assert_allclose(metrics["v_loss"], total, rtol=1e-4)

    def loss(value):
        error = jnp.float32(q) - forward(value, batch.obs, z)[:, 0]
        return (jnp.where(error < 0, 0.3, 0.7) * error**2).mean()

    value = old.value.params
    assert_close(new.value.params, adam_first_step(value, gradient(loss, value)))


def test_iql_policy_is_a_likelihood_weighted_by_clipped_advantages(iql):
    old, batch, z, _, new, _, metrics = iql
    advantage = data_values(old, batch, z) - value_of(new.value.params, batch.obs, z)
    weight = np.minimum(np.exp(3.0 * advantage), 1.5)
    assert (weight == 1.5).any() and (weight < 1.4).any()
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=2e-5)
    with_old_value = data_values(old, batch, z) - value_of(old.value.params, batch.obs, z)
    other = np.minimum(np.exp(3.0 * with_old_value), 1.5).mean()
    assert not np.isclose(metrics["weight"], other, rtol=6e-5)  # V after its step

    def log_p(policy):
        mean = jnp.tanh(forward(policy["mean"], batch.obs, z))
        error = (batch.action - mean) / jnp.exp(policy["log_std"])
        return (-0.5 * error**2 - policy["log_std"] - HALF_LOG_2PI)[:, 0]

    policy = old.policy.params
    grads = gradient(lambda policy: -(weight * log_p(policy)).mean(), policy)
    assert np.abs(grads["log_std"]).min() > 1e-3
    assert_close(new.policy.params, adam_first_step(policy, grads))
    np.testing.assert_allclose(metrics["log_likelihood"], log_p(policy).mean(), rtol=1e-4)


def test_iql_critics_aim_at_the_updated_value_of_the_next_state(iql):
    old, batch, z, z_next, new, dz, metrics = iql
    keep = 0.9 * (1 - np.asarray(batch.terminal))
    target_at = lambda params, z: 2.0 * batch.reward + keep * value_of(params, batch.next_obs, z)
    target = target_at(new.value.params, z_next)
    values = both(old.critics.params, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)
    for params, z_used in ((old.value.params, z_next), (new.value.params, z)):
        other = squared(values, target_at(params, z_used))
        assert not np.isclose(metrics["q_loss"], other, rtol=1e-4)
    loss = critic_loss(batch, jnp.float32(target))
    grads, z_grad = gradient(loss, old.critics.params, z, argnums=(0, 1))
    assert_close(new.critics.params, adam_first_step(old.critics.params, grads))
    assert_close(dz, z_grad)
    assert_close(new.target_critics, mixed(old.target_critics, new.critics.params), 1e-6)


def test_iql_values_never_see_an_action_that_is_not_in_the_data(iql):
    old, *_ = iql
    batches, cond = batch_of(1)
    update = learner_of("iql").update
    one, _, _ = update(old, batches, cond)
    other, _, _ = update(old.replace(policy=amplified(old.policy, 3.0)), batches, cond, key=9)
    for name in ("critics", "value", "target_critics"):
        assert not moved(getattr(one, name), getattr(other, name)), name
    assert moved(one.policy, other.policy)


def test_iql_weights_do_not_overflow_and_actions_stay_within_one(iql):
    old, *_ = iql
    batches, cond = batch_of(1)
    new, _, metrics = learner_of("iql").update(old, batches, cond, beta=1e6)
    assert 0 < float(metrics["weight"]) <= 100.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    rl = learner_of("iql").rl
    wide = old.replace(
        policy=old.policy.replace(params=old.policy.params | {"log_std": jnp.ones(1)})
    )
    keys = jax.random.split(jax.random.key(0), 200)
    act = jax.jit(jax.vmap(lambda k: rl.act(wide, jnp.zeros(1), jnp.zeros(1), k)))
    drawn = np.asarray(act(keys))
    assert np.abs(drawn).max() == 1.0 and np.std(drawn) > 0.5
    expected = np.tanh(numpy_forward(old.policy.params["mean"], np.zeros(1), np.zeros(1)))
    np.testing.assert_allclose(rl.mode(old, jnp.zeros(1), jnp.zeros(1)), expected, atol=1e-6)
