"""Small backbones, and the mathematics of their updates written again apart from gentle_jax.

Actions are drawn with the keys that an update documents by its order of splits; everything else
(forward passes, targets, losses, Adam's first step) is here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference_numpy as ref

from gentle_jax import behaviour_sac, registry
from gentle_jax.types import Cond, Spec, Transition

SPEC, ROWS, WIDTH, DEPTH = Spec(1, 1, 2, 64, 1), 64, 16, 2
LR = 1e-2
HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)


class Learner:
    """A small backbone, its jitted update, and hp as a plain dict."""

    def __init__(self, name, **settings):
        module = behaviour_sac if name == "behaviour_sac" else registry.load("backbone", name)
        config = module.Config(width=WIDTH, depth=DEPTH, **settings)
        self.rl = module.make(config, 1, SPEC)
        self.jitted = jax.jit(self.rl.update)
        self.jitted_init = jax.jit(self.rl.init)
        values = dataclasses.asdict(config)
        self.hp = {k: v for k, v in values.items() if isinstance(v, float)}
        self.hp |= {"lr": LR, "policy_lr": LR}

    def init(self, **hp):
        return self.jitted_init(self.hp | hp, jax.random.key(3))

    def update(self, state, batches, cond, key=0, index=0, **hp):
        hp = {k: jnp.float32(v) for k, v in (self.hp | hp).items()}
        return self.jitted(state, hp, batches, cond, jax.random.key(key), jnp.int32(index))


@functools.cache
def learner_of(name):
    """The Learner of a backbone, shared by modules; "plain" is brac_sac without BRAC.

    "behaviour_sac" is the behaviour agents' learner, which is in no table.
    """
    return Learner("brac_sac", use_brac=False) if name == "plain" else Learner(name)


def batch_of(count, seed=0):
    """(K independent batches [K, N, ...], Cond of a z per row): no two z are alike."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.array(random.normal(size=(count, ROWS) + shape), jnp.float32)
    uniform = lambda: jnp.array(random.uniform(-1, 1, (count, ROWS, 1)), jnp.float32)
    terminal = jnp.array(random.integers(0, 2, (count, ROWS)), jnp.float32)
    batches = Transition(normal(1), uniform(), normal(), normal(), normal(1), terminal)
    return batches, Cond(uniform(), uniform())


def first(*trees):
    """The first batch of each tree."""
    return jax.tree.map(lambda x: x[0], trees)


def louder(tree, scale):
    return jax.tree.map(lambda x: scale * x, tree)


def amplified(trained, scale):
    """A Trained of scaled parameters."""
    return trained.replace(params=louder(trained.params, scale))


def forward(params, *inputs):
    """The networks' forward pass, apart from gentle_jax.networks: ReLU layers, then heads."""
    x = jnp.concatenate(inputs, -1)
    layers = [params[f"Dense_{i}"] for i in range(len(params))]
    for layer in layers[:DEPTH]:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0.0)
    return jnp.concatenate([x @ head["kernel"] + head["bias"] for head in layers[DEPTH:]], -1)


def numpy_forward(params, *inputs):
    """The same in NumPy with 64 bits."""
    return ref.mlp(params, np.concatenate(inputs, -1).astype(float), DEPTH)


def member(critics, index):
    return jax.tree.map(lambda x: x[index], critics)


def both(critics, *inputs, forward=forward):
    """[2, N] values of the parameters of two stacked critics."""
    return jnp.stack([forward(member(critics, i), *inputs)[:, 0] for i in range(2)])


def draw(params, obs, z, key):
    """(action, released log-probability, mean, log std), std at most 1."""
    out = forward(params, obs, z)
    mean, log_std = out[:, :1], jnp.clip(out[:, 1:], -20.0, 0.0)
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    normal = -0.5 * noise**2 - log_std - HALF_LOG_2PI
    return action, (normal - jnp.log(1 - action**2 + 1e-6))[:, 0], mean, log_std


def sac_draw(params, obs, z, key, xp=jnp, forward=forward):
    """(action, exact log-probability); log std is a tanh squashed into [-5, 2].

    1 - tanh(u)^2 = cosh(u)^-2. Args: xp and forward, NumPy and its forward pass for 64 bits.
    """
    out = forward(params, obs, z)
    mean, log_std = out[:, :1], -5.0 + 3.5 * (xp.tanh(out[:, 1:]) + 1.0)
    noise = xp.asarray(jax.random.normal(key, mean.shape))
    before = mean + xp.exp(log_std) * noise
    log_p = -0.5 * noise**2 - log_std - HALF_LOG_2PI + 2 * xp.log(xp.cosh(before))
    return xp.tanh(before), log_p[:, 0]


def dual_kl(dual, batch, action, z):
    """BRAC's divergence, mean over rows."""
    at = lambda a: forward(dual, batch.obs, a, z)[:, 0]
    soft = jax.nn.softplus
    return (1 + jnp.log(soft(at(action)) + 1e-8) - soft(at(batch.action))).mean()


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
