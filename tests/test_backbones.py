"""RL learners: one update against a re-derivation, the order of its parts, and probes.

The re-derivations draw their actions with the keys that an update documents by its order of splits;
everything else (forward passes, targets, losses, Adam's first step) is written again here.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import networks, registry
from gentle_jax.types import Spec, Transition

SPEC, ROWS, WIDTH, DEPTH = Spec(1, 1, 2, 64, 1), 64, 16, 2
LR = 1e-2
BACKBONES = ("brac_sac", "td3_bc", "sac")


class Learner:
    """A small backbone, its jitted update, and hp as a plain dict."""

    def __init__(self, name, **settings):
        module = registry.load("backbone", name)
        config = module.Config(width=WIDTH, depth=DEPTH, **settings)
        self.rl = module.make(config, 1, SPEC)
        self.jitted = jax.jit(self.rl.update)
        self.jitted_init = jax.jit(self.rl.init)
        values = dataclasses.asdict(config)
        self.hp = {k: v for k, v in values.items() if isinstance(v, float)}
        self.hp |= {"lr": LR, "policy_lr": LR}

    def init(self, **hp):
        return self.jitted_init(self.hp | hp, jax.random.key(3))

    def update(self, state, batches, z, key=0, index=0, **hp):
        hp = {k: jnp.float32(v) for k, v in (self.hp | hp).items()}
        return self.jitted(state, hp, batches, z, jax.random.key(key), jnp.int32(index))


@pytest.fixture(scope="module")
def learners():
    """name -> Learner; "plain" is brac_sac without BRAC."""
    made = {name: Learner(name) for name in BACKBONES}
    return made | {"plain": Learner("brac_sac", use_brac=False)}


def batch_of(count, seed=0):
    """(K independent batches [K, N, ...], z [N, 1])."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.array(random.normal(size=(count, ROWS) + shape), jnp.float32)
    action = jnp.array(random.uniform(-1, 1, (count, ROWS, 1)), jnp.float32)
    terminal = jnp.array(random.integers(0, 2, (count, ROWS)), jnp.float32)
    batches = Transition(normal(1), action, normal(), normal(), normal(1), terminal)
    return batches, jnp.array(random.uniform(-1, 1, (ROWS, 1)), jnp.float32)


def first(batches):
    return jax.tree.map(lambda x: x[0], batches)


def forward(params, *inputs):
    """The networks' forward pass, apart from gentle_jax.networks: ReLU layers, then heads."""
    x = jnp.concatenate(inputs, -1)
    layers = [params[f"Dense_{i}"] for i in range(len(params))]
    for layer in layers[:DEPTH]:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0.0)
    return jnp.concatenate([x @ head["kernel"] + head["bias"] for head in layers[DEPTH:]], -1)


def member(critics, index):
    return jax.tree.map(lambda x: x[index], critics)


def both(critics, *inputs):
    """[2, N] values of two stacked critics."""
    return jnp.stack([forward(member(critics, i), *inputs)[:, 0] for i in range(2)])


def draw(params, obs, z, key):
    """(action, log-probability, mean, log std) of sec. 2.1, std at most 1."""
    out = forward(params, obs, z)
    mean, log_std = out[:, :1], jnp.clip(out[:, 1:], -20.0, 0.0)
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    normal = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    return action, (normal - jnp.log(1 - action**2 + 1e-6))[:, 0], mean, log_std


def adam_first_step(params, grads, lr=LR):
    """Adam's first step has unit bias-corrected moments: p - lr g / (|g| + eps)."""
    return jax.tree.map(lambda p, g: p - lr * g / (jnp.abs(g) + 1e-8), params, grads)


def gradient(loss, *args, argnums=0):
    """jax.grad, compiled once instead of op by op: the time of these tests is compilation."""
    return jax.jit(jax.grad(loss, argnums))(*args)


def assert_close(a, b, atol=2e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def moved(a, b):
    return any(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def squared(values, target):
    """Sum of two critics' mean squared errors, by loops over the critics."""
    return sum(np.mean((np.asarray(v) - np.asarray(target)) ** 2) for v in values)


# --- TD3+BC (gentle_suite.md sec. 2)


def td3_target(state, batch, z, noise=0.0):
    mean = ref.mlp(state.target_policy, np.concatenate([batch.next_obs, z], -1), DEPTH)[:, :1]
    action = np.clip(np.tanh(mean) + noise, -1, 1)
    inputs = np.concatenate([batch.next_obs, action, z], -1)
    values = [ref.mlp(member(state.target_critics, i), inputs, DEPTH)[:, 0] for i in range(2)]
    keep = 0.9 * (1 - np.asarray(batch.terminal))
    return 5.0 * np.asarray(batch.reward) + keep * np.minimum(*values)


@pytest.fixture(scope="module")
def td3_state(learners):
    """A TD3+BC state whose targets differ from its networks, and whose values are not tiny."""
    state = learners["td3_bc"].init()
    louder = lambda tree, scale: jax.tree.map(lambda x: scale * x, tree)
    return state.replace(
        critics=louder(state.critics, 1.5),
        target_critics=louder(state.critics, 2.0),
        target_policy=louder(state.policy, 3.0),
    )


def test_td3_bc_critic_target(learners, td3_state):
    # y = 5 r + (1 - d) gamma min Q_target(s', tanh mean_target(s')), no bootstrap on terminal rows
    batches, z = batch_of(1)
    batch = first(batches)
    _, _, metrics = learners["td3_bc"].update(td3_state, batches, z, policy_noise=0.0, discount=0.9)
    target = td3_target(td3_state, batch, z)
    values = both(td3_state.critics, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)


def test_td3_bc_target_noise_is_clipped(learners, td3_state):
    # noise of scale 1e6 is +-0.5 after clipping; all rows alike, so the mean target of a batch of
    # one row repeated lies between the two possible ones, and each row is one of them
    batches, z = batch_of(1)
    batches = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), batches)
    batches = batches._replace(terminal=jnp.zeros((1, ROWS)))
    z = jnp.broadcast_to(z[:1], z.shape)
    batch = first(batches)
    settings = {"discount": 0.9, "noise_clip": 0.5}
    _, _, metrics = learners["td3_bc"].update(td3_state, batches, z, policy_noise=1e6, **settings)
    values = both(td3_state.critics, batch.obs, batch.action, z)
    low, high = (squared(values, td3_target(td3_state, batch, z, s)) for s in (-0.5, 0.5))
    share = (float(metrics["q_loss"]) - low) / (high - low)  # of the rows whose noise was +
    assert 0 < share < 1
    np.testing.assert_allclose(share * ROWS, round(share * ROWS), atol=0.05)
    # at a clip of 0 there is no noise left
    _, _, metrics = learners["td3_bc"].update(
        td3_state, batches, z, policy_noise=1e6, discount=0.9, noise_clip=0.0
    )
    expected = squared(values, td3_target(td3_state, batch, z))
    np.testing.assert_allclose(metrics["q_loss"], expected, rtol=1e-4)


def test_td3_bc_one_update_by_hand(learners, td3_state):
    batches, z = batch_of(1)
    batch = first(batches)
    new, dz, metrics = learners["td3_bc"].update(
        td3_state, batches, z, policy_noise=0.0, discount=0.9
    )
    target = jnp.array(td3_target(td3_state, batch, z))

    def critic_loss(critics, z):
        return ((both(critics, batch.obs, batch.action, z) - target) ** 2).mean(1).sum()

    grads, z_grad = gradient(critic_loss, td3_state.critics, z, argnums=(0, 1))
    assert_close(new.critics, adam_first_step(td3_state.critics, grads))
    assert_close(dz, z_grad)
    _, k_actor = jax.random.split(jax.random.key(0))

    def actor_loss(policy):
        action, *_ = draw(policy, batch.obs, z, k_actor)
        value = both(new.critics, batch.obs, action, z).min(0)  # critics after their step
        scale = 2.5 / jax.lax.stop_gradient(jnp.abs(value).mean())
        return -scale * value.mean() + ((action - batch.action) ** 2).mean()

    grads = gradient(actor_loss, td3_state.policy)
    assert_close(new.policy, adam_first_step(td3_state.policy, grads))
    action, *_ = draw(td3_state.policy, batch.obs, z, k_actor)
    # the actor runs on every second step, so the metric counts it twice to average right
    cloning = ((action - batch.action) ** 2).mean()
    np.testing.assert_allclose(metrics["bc_loss"], 2 * cloning, rtol=1e-4)


def test_td3_bc_acts_only_on_even_steps_and_targets_move_with_the_actor(learners, td3_state):
    batches, z = batch_of(1)
    even, _, _ = learners["td3_bc"].update(td3_state, batches, z, index=4)
    odd, _, metrics = learners["td3_bc"].update(td3_state, batches, z, index=5)
    assert moved(even.critics, td3_state.critics) and moved(odd.critics, td3_state.critics)
    assert moved(even.policy, td3_state.policy)
    for name in ("policy", "target_policy", "target_critics", "policy_moments"):
        assert not moved(getattr(odd, name), getattr(td3_state, name)), name
    assert float(metrics["bc_loss"]) == 0.0  # nothing undefined on the steps without an actor
    mix = lambda old, new: jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, old, new)
    assert_close(even.target_policy, mix(td3_state.target_policy, even.policy), 1e-6)
    assert_close(even.target_critics, mix(td3_state.target_critics, even.critics), 1e-6)


def test_td3_bc_target_mode_is_the_target_policys(learners, td3_state):
    rl, obs, z = learners["td3_bc"].rl, jnp.array([0.3]), jnp.array([-0.2])
    for function, params in (
        (rl.mode, td3_state.policy),
        (rl.target_mode, td3_state.target_policy),
    ):
        expected = np.tanh(ref.mlp(params, np.array([0.3, -0.2]), DEPTH)[:1])
        np.testing.assert_allclose(function(td3_state, obs, z), expected, atol=1e-6)


# --- SAC with V and BRAC (ctmrl_suite.md sec. 2)


@pytest.fixture(scope="module")
def brac_state(learners):
    """A state whose target V differs from V, with values that are not tiny."""
    state = learners["brac_sac"].init(alpha_init=2.0)
    louder = lambda tree, scale: jax.tree.map(lambda x: scale * x, tree)
    return state.replace(
        critics=louder(state.critics, 1.5),
        target_value=louder(state.value, 3.0),
        dual=louder(state.dual, 2.0),
        policy=louder(state.policy, 2.0),
    )


@pytest.fixture(scope="module")
def brac_step(learners, brac_state):
    """(old state, batches, z, new state, dz, metrics) of one update with BRAC."""
    batches, z = batch_of(3)
    return (brac_state, batches, z) + learners["brac_sac"].update(
        brac_state, batches, z, discount=0.9
    )


def test_brac_sac_q_target_uses_the_target_value(brac_step):
    old, batches, z, new, dz, metrics = brac_step
    batch = first(batches)
    next_value = ref.mlp(old.target_value, np.concatenate([batch.next_obs, z], -1), DEPTH)[:, 0]
    target = 5.0 * np.asarray(batch.reward) + 0.9 * (1 - np.asarray(batch.terminal)) * next_value
    values = both(old.critics, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)

    def loss(critics, z):
        return ((both(critics, batch.obs, batch.action, z) - target) ** 2).mean(1).sum()

    grads, z_grad = gradient(loss, old.critics, z, argnums=(0, 1))
    assert_close(new.critics, adam_first_step(old.critics, grads))
    assert_close(dz, z_grad)


def test_brac_sac_value_follows_the_updated_critics(brac_step):
    # V target = min Q(s, a) - log pi with Q after its step and the policy before its own
    old, batches, z, new, _, metrics = brac_step
    batch = first(batches)
    _, k_policy = jax.random.split(jax.random.key(0))
    action, log_p, *_ = draw(old.policy, batch.obs, z, k_policy)
    value = lambda params: forward(params, batch.obs, z)[:, 0]
    targets = [both(c, batch.obs, action, z).min(0) - log_p for c in (new.critics, old.critics)]
    after, before = (((value(old.value) - t) ** 2).mean() for t in targets)
    np.testing.assert_allclose(metrics["v_loss"], after, rtol=1e-4)
    assert abs(float(before - after)) > 1e-3  # the test can tell the two orders apart
    grads = gradient(lambda p: ((value(p) - targets[0]) ** 2).mean(), old.value)
    assert_close(new.value, adam_first_step(old.value, grads))
    np.testing.assert_allclose(metrics["entropy"], -log_p.mean(), rtol=1e-4)


def test_brac_sac_target_value_moves_every_step(brac_step):
    old, _, _, new, _, _ = brac_step
    mix = jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, old.target_value, new.value)
    assert_close(new.target_value, mix, 1e-6)


def dual_kl(dual, batch, action, z):
    at = lambda a: forward(dual, batch.obs, a, z)[:, 0]
    soft = jax.nn.softplus
    return (1 + jnp.log(soft(at(action)) + 1e-8) - soft(at(batch.action))).mean()


def test_brac_sac_policy_loss_and_the_weight_of_the_divergence(brac_step):
    old, batches, z, new, _, metrics = brac_step
    batch = first(batches)
    _, k_policy = jax.random.split(jax.random.key(0))

    def loss(policy):
        action, log_p, mean, log_std = draw(policy, batch.obs, z, k_policy)
        value = both(new.critics, batch.obs, action, z).min(0)
        penalty = 2.0 * dual_kl(new.dual, batch, action, z)  # alpha before its step, dual after
        size = 1e-3 * ((mean**2).mean() + (log_std**2).mean())
        return (log_p - value).mean() + penalty + size

    assert_close(new.policy, adam_first_step(old.policy, gradient(loss, old.policy)))
    action, *_ = draw(old.policy, batch.obs, z, k_policy)
    gap = dual_kl(new.dual, batch, action, z)
    np.testing.assert_allclose(metrics["divergence"], gap, rtol=1e-4)
    # alpha <- alpha + 1.0 * (mean D - 0.05)
    np.testing.assert_allclose(new.alpha, 2.0 + gap - 0.05, rtol=1e-4)


def test_brac_sac_dual_critic_steps_on_fresh_batches(learners, brac_step):
    old, batches, z, new, _, _ = brac_step
    k_dual, _ = jax.random.split(jax.random.key(0))
    dual, m, v = old.dual, None, None
    for step, key in enumerate(jax.random.split(k_dual, 3)):
        batch = jax.tree.map(lambda x, step=step: x[step], batches)
        k_action, k_mix = jax.random.split(key)
        action, *_ = draw(old.policy, batch.obs, z, k_action)
        mixed = action + jax.random.uniform(k_mix, (ROWS, 1)) * (batch.action - action)

        def loss(dual, batch=batch, action=action, mixed=mixed):
            size = jnp.sqrt(1e-8 + forward(dual, batch.obs, mixed, z)[:, 0] ** 2)
            penalty = (jnp.maximum(size - 1, 0) ** 2).mean()
            return -dual_kl(dual, batch, action, z) + 5.0 * penalty

        grads = gradient(loss, dual)
        zeros = jax.tree.map(jnp.zeros_like, grads)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m or zeros, grads)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v or zeros, grads)
        first_moment = jax.tree.map(lambda a, n=step + 1: a / (1 - 0.9**n), m)
        second_moment = jax.tree.map(lambda b, n=step + 1: b / (1 - 0.999**n), v)
        move = lambda p, a, b: p - 1e-4 * a / (jnp.sqrt(b) + 1e-8)
        dual = jax.tree.map(move, dual, first_moment, second_moment)
    assert_close(new.dual, dual, 2e-5)
    assert moved(new.dual, old.dual)
    # only the dual critic reads the further batches
    other = jax.tree.map(lambda x: x.at[1:].set(0.5), batches)
    again, _, _ = learners["brac_sac"].update(old, other, z, discount=0.9)
    assert moved(again.dual, new.dual)
    assert not moved(again.critics, new.critics)


def test_brac_sac_stored_weight_winds_up_but_the_used_one_is_clipped(learners, brac_state):
    batches, z = batch_of(3)
    update = learners["brac_sac"].update
    # the stored value is never clipped: an untrained dual has D = -0.06, so alpha falls below 0
    calm = brac_state.replace(dual=jax.tree.map(jnp.zeros_like, brac_state.dual))
    low = calm.replace(alpha=jnp.float32(-3.0))
    new, _, _ = update(low, batches, z, dual_lr=0.0)
    np.testing.assert_allclose(new.alpha, -3.0 - 0.0597 - 0.05, atol=1e-3)
    # the used value is clip(alpha, 0, alpha_max): below 0 it acts as 0, above the top as the top
    zero, _, _ = update(brac_state.replace(alpha=jnp.float32(0.0)), batches, z)
    negative, _, _ = update(brac_state.replace(alpha=jnp.float32(-9.0)), batches, z)
    assert_close(zero.policy, negative.policy, 1e-7)
    top, _, _ = update(brac_state.replace(alpha=jnp.float32(4.0)), batches, z, alpha_max=4.0)
    beyond, _, _ = update(brac_state.replace(alpha=jnp.float32(400.0)), batches, z, alpha_max=4.0)
    assert_close(top.policy, beyond.policy, 1e-7)
    np.testing.assert_allclose(beyond.alpha - top.alpha, 396.0, rtol=1e-4)


def test_brac_sac_without_brac_leaves_the_dual_untouched(learners, brac_state):
    plain = learners["plain"]
    batches, z = batch_of(1)
    assert plain.rl.num_batches == 1
    new, _, metrics = plain.update(brac_state, batches, z)
    for name in ("dual", "dual_moments", "alpha"):
        assert not moved(getattr(new, name), getattr(brac_state, name)), name
    assert float(metrics["divergence"]) == 0.0
    # the penalty is gone from the policy's loss: the dual weight changes nothing
    other, _, _ = plain.update(brac_state.replace(alpha=jnp.float32(99.0)), batches, z)
    assert not moved(new.policy, other.policy)
    assert moved(new.policy, brac_state.policy)


# --- behaviour SAC (ctmrl_suite.md sec. 14)


def sac_draw(params, obs, z, key):
    """Log std is a tanh squashed into [-5, 2]."""
    out = forward(params, obs, z)
    mean, log_std = out[:, :1], -5.0 + 3.5 * (jnp.tanh(out[:, 1:]) + 1.0)
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    normal = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    return action, (normal - jnp.log(1 - action**2 + 1e-6))[:, 0]


def test_sac_one_update_by_hand(learners):
    state = learners["sac"].init()
    state = state.replace(target_critics=jax.tree.map(lambda x: 2 * x, state.critics))
    batches, z = batch_of(1)
    batch = first(batches)
    new, _, metrics = learners["sac"].update(state, batches, z)
    k_critic, k_policy = jax.random.split(jax.random.key(0))
    temperature = jnp.exp(state.log_temperature)
    np.testing.assert_allclose(temperature, 0.1, rtol=1e-5)
    action, log_p = sac_draw(state.policy, batch.next_obs, z, k_critic)
    value = both(state.target_critics, batch.next_obs, action, z).min(0) - 0.1 * log_p
    target = batch.reward + 0.99 * (1 - batch.terminal) * value
    values = both(state.critics, batch.obs, batch.action, z)
    np.testing.assert_allclose(metrics["q_loss"], squared(values, target), rtol=1e-4)

    def policy_loss(policy):
        action, log_p = sac_draw(policy, batch.obs, z, k_policy)
        return (0.1 * log_p - both(new.critics, batch.obs, action, z).min(0)).mean()

    grads = gradient(policy_loss, state.policy)
    assert_close(new.policy, adam_first_step(state.policy, grads))
    # the temperature falls where the entropy exceeds its target -A
    _, log_p = sac_draw(state.policy, batch.obs, z, k_policy)
    slope = float((-log_p - (-1.0)).mean())
    expected = float(state.log_temperature) - LR * np.sign(slope)
    np.testing.assert_allclose(new.log_temperature, expected, rtol=1e-4)


def test_sac_targets_move_on_every_second_step(learners):
    state = learners["sac"].init()
    batches, z = batch_of(1)
    even, _, _ = learners["sac"].update(state, batches, z, index=2)
    odd, _, _ = learners["sac"].update(state, batches, z, index=3)
    mix = jax.tree.map(lambda o, n: 0.995 * o + 0.005 * n, state.target_critics, even.critics)
    assert_close(even.target_critics, mix, 1e-6)
    assert not moved(odd.target_critics, state.target_critics)
    assert moved(odd.policy, state.policy) and moved(odd.critics, state.critics)


# --- all


@pytest.mark.parametrize("name", BACKBONES)
def test_targets_start_as_copies_that_share_no_buffer(learners, name):
    state = learners[name].init()
    pairs = {
        "brac_sac": [("value", "target_value")],
        "td3_bc": [("critics", "target_critics"), ("policy", "target_policy")],
        "sac": [("critics", "target_critics")],
    }
    for trained, target in pairs[name]:
        assert not moved(getattr(state, trained), getattr(state, target))
        for a, b in zip(
            jax.tree.leaves(getattr(state, trained)),
            jax.tree.leaves(getattr(state, target)),
            strict=True,
        ):
            assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # donation needs it


@pytest.mark.parametrize("name", ["brac_sac", "td3_bc"])
def test_initial_policy_has_a_spread_of_about_one(learners, name):
    # heads of +-1e-3 and log std clipped at 0: u ~ N(~0, ~1)
    rl, state = learners[name].rl, learners[name].init()
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
    "sac": {"reward_scale": 20.0},
}


@pytest.mark.parametrize("name", list(PROBES))
def test_bandit_with_a_known_optimum_that_depends_on_z(learners, name):
    # one step, terminal, r = -(a - z / 2)^2, data uniform in [-1, 1]: the best action is z / 2
    learner, random = learners[name], np.random.default_rng(0)
    state = learner.init(**{k: v for k, v in PROBES[name].items() if k == "alpha_init"})
    count = learner.rl.num_batches
    for step in range(600):
        # the same z in every batch of an update, as joint_step gives them
        z = random.choice([-1.0, 1.0], (ROWS, 1)).astype(np.float32)
        action = random.uniform(-1, 1, (count, ROWS, 1)).astype(np.float32)
        obs = np.zeros((count, ROWS, 1), np.float32)
        reward = -((action - z[None] / 2) ** 2)[..., 0]
        batches = Transition(obs, action, reward, reward, obs, np.ones((count, ROWS), np.float32))
        state, _, metrics = learner.update(state, batches, z, key=step, index=step, **PROBES[name])
    assert np.isfinite(metrics["q_loss"])
    for z in (-1.0, 1.0):
        mode = float(learner.rl.mode(state, jnp.zeros(1), jnp.array([z]))[0])
        assert abs(mode - z / 2) < 0.15, (name, z, mode)


@pytest.mark.parametrize("shape", [(16, 16), (5, 12), (12, 5), (7, 1)])
def test_orthogonal_init_is_orthonormal_and_uniform_in_sign(shape):
    draw = jax.jit(jax.vmap(lambda key: networks._orthogonal(jax.random.normal(key, shape))))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 400)), np.float64)
    wide = drawn if shape[0] <= shape[1] else drawn.swapaxes(1, 2)
    gram = wide @ wide.swapaxes(1, 2)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(min(shape)), gram.shape), atol=1e-5)
    # every entry of a uniform one has mean 0 and variance 1 / max(shape); 5 standard errors
    bound = 5 / np.sqrt(400 * max(shape))
    assert np.abs(drawn.mean(0)).max() < bound


@pytest.mark.parametrize("name", BACKBONES)
def test_init_calls_no_lapack(learners, name):
    """Two batched LAPACK calls of one program can wait for each other for ever on a CPU."""
    learner = learners[name]
    many = jax.jit(jax.vmap(learner.rl.init, (None, 0)))
    text = many.lower(learner.hp, jax.random.split(jax.random.key(0), 3)).as_text()
    assert "custom_call" not in text or "lapack" not in text
