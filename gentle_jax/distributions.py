"""Policy distributions, the tanh-Gaussian above all; functions over the last axis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax.types import RandomKey

LOG_2PI = 1.8378770664093453
LOG_2 = 0.6931471805599453


Actions = Float[Array, "*rows A"]
Draw = tuple[Actions, Float[Array, "*rows"]]  # action in (-1, 1), log-probability


def split_heads(
    heads: Float[Array, "*rows two_A"], low: float, high: float
) -> tuple[Actions, Actions]:
    """Splits policy outputs into mean and log_std clipped to [low, high]."""
    mean, log_std = jnp.split(heads, 2, axis=-1)
    return mean, jnp.clip(log_std, low, high)


def sample(mean: Actions, log_std: Actions, key: RandomKey) -> Draw:
    """Returns one reparameterised draw, with the released log-probability.

    log pi = sum log N(u) - log(1 - a^2 + 1e-6) (docs/methods/backbones.md, "Policy distribution").
    """
    action, _, log_normal = _draw(mean, log_std, key)
    return action, (log_normal - jnp.log(1.0 - action**2 + 1e-6)).sum(-1)


def sample_exact(mean: Actions, log_std: Actions, key: RandomKey) -> Draw:
    """Returns what `sample` does, with the exact Jacobian of tanh: both SACs.

    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), finite for any u.
    """
    action, before, log_normal = _draw(mean, log_std, key)
    jacobian = 2.0 * (LOG_2 - before - jax.nn.softplus(-2.0 * before))
    return action, (log_normal - jacobian).sum(-1)


def _draw(mean, log_std, key):
    """Returns (action, u before tanh, log N(u)) per dimension."""
    noise = jax.random.normal(key, mean.shape)
    before = mean + jnp.exp(log_std) * noise
    return jnp.tanh(before), before, -0.5 * (noise**2 + LOG_2PI) - log_std


def mode(mean: Actions) -> Actions:
    """Returns the deterministic action tanh(mean)."""
    return jnp.tanh(mean)


def log_normal(x: Actions, mean: Actions, log_std: Actions) -> Actions:
    """Returns log N(x; mean, std^2) of each dimension."""
    return -0.5 * (((x - mean) * jnp.exp(-log_std)) ** 2 + LOG_2PI) - log_std
