"""One update of each RL learner against its mathematics written again, and the order of its parts.

z of the next observations is another one than that of the observations, and every batch has its
own, so that each re-derivation tells them apart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_backbones import (
    LR,
    ROWS,
    adam_first_step,
    amplified,
    assert_close,
    batch_of,
    both,
    draw,
    dual_kl,
    first,
    forward,
    gradient,
    learner_of,
    louder,
    moved,
    numpy_forward,
    sac_draw,
    squared,
)

# --- TD3+BC (docs/methods/backbones.md)


def td3_target(state, batch, z_next, noise=0.0):
    """The critics' target in NumPy."""
    mean = numpy_forward(state.target_policy, batch.next_obs, z_next)[:, :1]
    action = np.clip(np.tanh(mean) + noise, -1, 1)
    inputs = batch.next_obs, action, z_next
    values = both(state.target_critics, *inputs, forward=numpy_forward)
    keep = 0.9 * (1 - np.asarray(batch.terminal))
    return 5.0 * np.asarray(batch.reward) + keep * np.minimum(*values)


@pytest.fixture(scope="module")
def td3_state():
    """A TD3+BC state whose targets differ from its networks, and whose values are not tiny."""
    state = learner_of("td3_bc").init()
    return state.replace(
        critics=amplified(state.critics, 1.5),
        target_critics=louder(state.critics.params, 30.0),
        target_policy=louder(state.policy.params, 3.0),
    )


def test_td3_bc_target_noise_is_clipped(td3_state):
    # noise of scale 1e6 is +-0.5 after clipping; all rows alike, so the mean target of a batch of
    # one row repeated lies between the two possible ones, and each row is one of them
    alike = lambda x: jnp.broadcast_to(x[:, :1], x.shape)
    batches, cond = jax.tree.map(alike, batch_of(1))
    batches = batches._replace(terminal=jnp.zeros((1, ROWS)))
    batch, z, z_next = first(batches, *cond)
    settings = {"discount": 0.9, "noise_clip": 0.5}
    update = learner_of("td3_bc").update
    _, _, metrics = update(td3_state, batches, cond, policy_noise=1e6, **settings)
    values = both(td3_state.critics.params, batch.obs, batch.action, z)
    low, high = (squared(values, td3_target(td3_state, batch, z_next, s)) for s in (-0.5, 0.5))
    share = (float(metrics["q_loss"]) - low) / (high - low)  # of the rows whose noise was +
    assert 0 < share < 1
    np.testing.assert_allclose(share * ROWS, round(share * ROWS), atol=0.05)
    # at a clip of 0 there is no noise left
    settings["noise_clip"] = 0.0
    _, _, metrics = update(td3_state, batches, cond, policy_noise=1e6, **settings)
    expected = squared(values, td3_target(td3_state, batch, z_next))
    np.testing.assert_allclose(metrics["q_loss"], expected, rtol=1e-4)


def test_td3_bc_one_update_by_hand(td3_state):
    # y = 5 r + (1 - d) gamma min Q_target(s', tanh mean_target(s')), no bootstrap on terminal rows
    batches, cond = batch_of(1)
    batch, z, z_next = first(batches, *cond)
    new, dz, metrics = learner_of("td3_bc").update(
        td3_state, batches, cond, policy_noise=0.0, discount=0.9
    )
    target = td3_target(td3_state, batch, z_next)
    values = both(td3_state.critics.params, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)
    at_now = squared(values, td3_target(td3_state, batch, z))
    assert not np.isclose(metrics["q_loss"], at_now, rtol=1e-3)

    def critic_loss(critics, z):
        error = both(critics, batch.obs, batch.action, z) - jnp.float32(target)
        return (error**2).mean(1).sum()

    grads, z_grad = gradient(critic_loss, td3_state.critics.params, z, argnums=(0, 1))
    assert_close(new.critics.params, adam_first_step(td3_state.critics.params, grads))
    assert_close(dz, z_grad)
    _, k_actor = jax.random.split(jax.random.key(0))

    def actor_loss(policy):
        action, *_ = draw(policy, batch.obs, z, k_actor)
        value = both(new.critics.params, batch.obs, action, z).min(0)  # critics after their step
        scale = 2.5 / jax.lax.stop_gradient(jnp.abs(value).mean())
        return -scale * value.mean() + ((action - batch.action) ** 2).mean()

    policy = td3_state.policy.params
    assert_close(new.policy.params, adam_first_step(policy, gradient(actor_loss, policy)))
    action, *_ = draw(policy, batch.obs, z, k_actor)
    # the actor runs on every second step, so the metric counts it twice to average right
    cloning = ((action - batch.action) ** 2).mean()
    np.testing.assert_allclose(metrics["bc_loss"], 2 * cloning, rtol=1e-4)


def test_td3_bc_acts_only_on_even_steps_and_targets_move_with_the_actor(td3_state):
    batches, cond = batch_of(1)
    even, _, _ = learner_of("td3_bc").update(td3_state, batches, cond, index=4)
    odd, _, metrics = learner_of("td3_bc").update(td3_state, batches, cond, index=5)
    assert moved(even.critics, td3_state.critics) and moved(odd.critics, td3_state.critics)
    assert moved(even.policy, td3_state.policy)
    for name in ("policy", "target_policy", "target_critics"):
        assert not moved(getattr(odd, name), getattr(td3_state, name)), name
    assert float(metrics["bc_loss"]) == 0.0  # nothing undefined on the steps without an actor
    mix = lambda old, new: jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, old, new)
    assert_close(even.target_policy, mix(td3_state.target_policy, even.policy.params), 1e-6)
    assert_close(even.target_critics, mix(td3_state.target_critics, even.critics.params), 1e-6)


def test_td3_bc_target_mode_is_the_target_policys(td3_state):
    rl, obs, z = learner_of("td3_bc").rl, jnp.array([0.3]), jnp.array([-0.2])
    for function, params in (
        (rl.mode, td3_state.policy.params),
        (rl.target_mode, td3_state.target_policy),
    ):
        expected = np.tanh(numpy_forward(params, [0.3, -0.2])[:1])
        np.testing.assert_allclose(function(td3_state, obs, z), expected, atol=1e-6)


# --- SAC with V and BRAC


@pytest.fixture(scope="module")
def brac_state():
    """A state whose target V differs from V, with values that are not tiny."""
    state = learner_of("brac_sac").init(alpha_init=2.0)
    return state.replace(
        critics=amplified(state.critics, 1.5),
        target_value=louder(state.value.params, 12.0),
        dual=amplified(state.dual, 2.0),
        policy=amplified(state.policy, 2.0),
    )


@pytest.fixture(scope="module")
def brac_step(brac_state):
    """(old state, batches, Cond, new state, dz, metrics) of one update with BRAC."""
    batches, cond = batch_of(3)
    return (brac_state, batches, cond) + learner_of("brac_sac").update(
        brac_state, batches, cond, discount=0.9
    )


def test_brac_sac_q_target_uses_the_target_value(brac_step):
    old, batches, cond, new, dz, metrics = brac_step
    batch, z, z_next = first(batches, *cond)

    def target_at(z_next):
        value = numpy_forward(old.target_value, batch.next_obs, z_next)[:, 0]
        return 5.0 * np.asarray(batch.reward) + 0.9 * (1 - np.asarray(batch.terminal)) * value

    target = target_at(z_next)
    values = both(old.critics.params, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)
    assert not np.isclose(metrics["q_loss"], squared(values, target_at(z)), rtol=1e-3)

    def loss(critics, z):
        error = both(critics, batch.obs, batch.action, z) - jnp.float32(target)
        return (error**2).mean(1).sum()

    grads, z_grad = gradient(loss, old.critics.params, z, argnums=(0, 1))
    assert_close(new.critics.params, adam_first_step(old.critics.params, grads))
    assert_close(dz, z_grad)


def test_brac_sac_value_follows_the_updated_critics(brac_step):
    # V target = min Q(s, a) - log pi with Q after its step and the policy before its own
    old, batches, cond, new, _, metrics = brac_step
    batch, z = first(batches, cond.now)
    _, k_policy = jax.random.split(jax.random.key(0))
    action, log_p, *_ = draw(old.policy.params, batch.obs, z, k_policy)
    value = lambda params: forward(params, batch.obs, z)[:, 0]
    targets = [
        both(state.critics.params, batch.obs, action, z).min(0) - log_p for state in (new, old)
    ]
    after, before = (((value(old.value.params) - t) ** 2).mean() for t in targets)
    np.testing.assert_allclose(metrics["v_loss"], after, rtol=1e-4)
    assert abs(float(before - after)) > 1e-3  # the test can tell the two orders apart
    grads = gradient(lambda p: ((value(p) - targets[0]) ** 2).mean(), old.value.params)
    assert_close(new.value.params, adam_first_step(old.value.params, grads))
    np.testing.assert_allclose(metrics["entropy"], -log_p.mean(), rtol=1e-4)


def test_brac_sac_target_value_moves_every_step(brac_step):
    old, _, _, new, _, _ = brac_step
    mix = jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, old.target_value, new.value.params)
    assert_close(new.target_value, mix, 1e-6)


def test_brac_sac_policy_loss_and_the_weight_of_the_divergence(brac_step):
    old, batches, cond, new, _, metrics = brac_step
    batch, z = first(batches, cond.now)
    _, k_policy = jax.random.split(jax.random.key(0))

    def loss(policy):
        action, log_p, mean, log_std = draw(policy, batch.obs, z, k_policy)
        value = both(new.critics.params, batch.obs, action, z).min(0)
        # alpha before its step, dual after
        penalty = 2.0 * dual_kl(new.dual.params, batch, action, z)
        size = 1e-3 * ((mean**2).mean() + (log_std**2).mean())
        return (log_p - value).mean() + penalty + size

    policy = old.policy.params
    assert_close(new.policy.params, adam_first_step(policy, gradient(loss, policy)))
    action, *_ = draw(policy, batch.obs, z, k_policy)
    gap = dual_kl(new.dual.params, batch, action, z)
    np.testing.assert_allclose(metrics["divergence"], gap, rtol=1e-4)
    # alpha <- alpha + 1.0 * (mean D - 0.05)
    np.testing.assert_allclose(new.alpha, 2.0 + gap - 0.05, rtol=1e-4)


@jax.jit
def dual_gradient(dual, policy, batch, z, k_action, k_mix):
    action, *_ = draw(policy, batch.obs, z, k_action)
    mixed = action + jax.random.uniform(k_mix, (ROWS, 1)) * (batch.action - action)

    def loss(dual):
        size = jnp.sqrt(1e-8 + forward(dual, batch.obs, mixed, z)[:, 0] ** 2)
        penalty = (jnp.maximum(size - 1, 0) ** 2).mean()
        return -dual_kl(dual, batch, action, z) + 5.0 * penalty

    return jax.grad(loss)(dual)


def test_brac_sac_dual_critic_steps_on_fresh_batches(brac_step):
    # the first of them with the actions of the policy step
    old, batches, cond, new, _, _ = brac_step
    k_dual, k_policy = jax.random.split(jax.random.key(0))
    dual = old.dual.params
    m = v = jax.tree.map(jnp.zeros_like, dual)
    for step, key in enumerate(jax.random.split(k_dual, 3)):
        batch, z = jax.tree.map(lambda x, step=step: x[step], (batches, cond.now))
        k_action, k_mix = jax.random.split(key)
        chosen = k_action if step else k_policy
        grads = dual_gradient(dual, old.policy.params, batch, z, chosen, k_mix)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, grads)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v, grads)
        first_moment = jax.tree.map(lambda a, n=step + 1: a / (1 - 0.9**n), m)
        second_moment = jax.tree.map(lambda b, n=step + 1: b / (1 - 0.999**n), v)
        move = lambda p, a, b: p - 1e-4 * a / (jnp.sqrt(b) + 1e-8)
        dual = jax.tree.map(move, dual, first_moment, second_moment)
    assert_close(new.dual.params, dual, 2e-5)
    assert moved(new.dual, old.dual)
    # Adam's first steps hardly tell gradients apart, its moments do
    assert_close(new.dual.moments.mu, m, 1e-5)
    batch, z = first(batches, cond.now)
    keys = jax.random.split(jax.random.split(k_dual, 3)[0])
    other = dual_gradient(old.dual.params, old.policy.params, batch, z, *keys)
    mine = dual_gradient(old.dual.params, old.policy.params, batch, z, k_policy, keys[1])
    gaps = jax.tree.map(lambda a, b: 0.081 * np.abs(a - b).max(), mine, other)
    assert max(jax.tree.leaves(gaps)) > 1e-3  # a sample of its own would show
    # only the dual critic reads the further batches
    other = jax.tree.map(lambda x: x.at[1:].set(0.5), batches)
    again, _, _ = learner_of("brac_sac").update(old, other, cond, discount=0.9)
    assert moved(again.dual, new.dual)
    assert not moved(again.critics, new.critics)


def test_brac_sac_stored_weight_winds_up_but_the_used_one_is_clipped(brac_state):
    batches, cond = batch_of(3)
    update = learner_of("brac_sac").update
    # the stored value is never clipped: an untrained dual has D = -0.06, so alpha falls below 0
    calm = brac_state.replace(dual=amplified(brac_state.dual, 0.0))
    low = calm.replace(alpha=jnp.float32(-3.0))
    new, _, _ = update(low, batches, cond, dual_lr=0.0)
    np.testing.assert_allclose(new.alpha, -3.0 - 0.0597 - 0.05, atol=1e-3)
    # the used value is clip(alpha, 0, alpha_max): below 0 it acts as 0, above the top as the top
    zero, _, _ = update(brac_state.replace(alpha=jnp.float32(0.0)), batches, cond)
    negative, _, _ = update(brac_state.replace(alpha=jnp.float32(-9.0)), batches, cond)
    assert_close(zero.policy.params, negative.policy.params, 1e-7)
    top, _, _ = update(brac_state.replace(alpha=jnp.float32(4.0)), batches, cond, alpha_max=4.0)
    beyond = brac_state.replace(alpha=jnp.float32(400.0))
    beyond, _, _ = update(beyond, batches, cond, alpha_max=4.0)
    assert_close(top.policy.params, beyond.policy.params, 1e-7)
    np.testing.assert_allclose(beyond.alpha - top.alpha, 396.0, rtol=1e-4)


def test_brac_sac_without_brac_leaves_the_dual_untouched(brac_state):
    plain = learner_of("plain")
    batches, cond = batch_of(1)
    assert plain.rl.num_batches == 1
    new, _, metrics = plain.update(brac_state, batches, cond)
    for name in ("dual", "alpha"):
        assert not moved(getattr(new, name), getattr(brac_state, name)), name
    assert float(metrics["divergence"]) == 0.0
    # the penalty is gone from the policy's loss: the dual weight changes nothing
    other, _, _ = plain.update(brac_state.replace(alpha=jnp.float32(99.0)), batches, cond)
    assert not moved(new.policy, other.policy)
    assert moved(new.policy, brac_state.policy)


# --- behaviour SAC


def test_behaviour_sac_one_update_by_hand():
    state = learner_of("behaviour_sac").init()
    state = state.replace(target_critics=louder(state.critics.params, 6.0))
    batches, cond = batch_of(1)
    batch, z, z_next = first(batches, *cond)
    new, dz, metrics = learner_of("behaviour_sac").update(state, batches, cond, discount=0.9)
    k_critic, k_policy = jax.random.split(jax.random.key(0))
    np.testing.assert_allclose(jnp.exp(state.log_temperature.params), 0.1, rtol=1e-5)
    policy = state.policy.params

    def target_at(z_next):
        numpy = {"xp": np, "forward": numpy_forward}
        action, log_p = sac_draw(policy, batch.next_obs, z_next, k_critic, **numpy)
        inputs = batch.next_obs, action, z_next
        value = both(state.target_critics, *inputs, forward=numpy_forward).min(0) - 0.1 * log_p
        return np.asarray(batch.reward) + 0.9 * (1 - np.asarray(batch.terminal)) * value

    target = target_at(z_next)
    values = both(state.critics.params, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)
    assert not np.isclose(metrics["q_loss"], squared(values, target_at(z)), rtol=1e-3)

    def critic_loss(z):
        error = both(state.critics.params, batch.obs, batch.action, z) - target
        return (error**2).mean(1).sum()

    assert_close(dz, gradient(critic_loss, z), 1e-5)

    def policy_loss(policy):
        action, log_p = sac_draw(policy, batch.obs, z, k_policy)
        return (0.1 * log_p - both(new.critics.params, batch.obs, action, z).min(0)).mean()

    assert_close(new.policy.params, adam_first_step(policy, gradient(policy_loss, policy)))
    # the temperature falls where the entropy exceeds its target -A
    _, log_p = sac_draw(policy, batch.obs, z, k_policy)
    slope = float((-log_p - (-1.0)).mean())
    expected = float(state.log_temperature.params) - LR * np.sign(slope)
    np.testing.assert_allclose(new.log_temperature.params, expected, rtol=1e-4)


def test_behaviour_sac_targets_move_on_every_second_step():
    state = learner_of("behaviour_sac").init()
    batches, cond = batch_of(1)
    even, _, _ = learner_of("behaviour_sac").update(state, batches, cond, index=2)
    odd, _, _ = learner_of("behaviour_sac").update(state, batches, cond, index=3)
    critics = even.critics.params
    mix = jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, state.target_critics, critics)
    assert_close(even.target_critics, mix, 1e-6)
    assert not moved(odd.target_critics, state.target_critics)
    assert moved(odd.policy, state.policy) and moved(odd.critics, state.critics)
