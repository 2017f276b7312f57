"""The tanh-Gaussian policy distribution, all functions over the last axis."""

import jax
import jax.numpy as jnp

LOG_2PI = 1.8378770664093453


def split_heads(heads, low, high):
    """Splits policy outputs [..., 2A] into mean [..., A] and log_std clipped to [low, high]."""
    mean, log_std = jnp.split(heads, 2, axis=-1)
    return mean, jnp.clip(log_std, low, high)


def sample(mean, log_std, key):
    """Returns (action [..., A] in (-1, 1), log-probability [...]) of one reparameterised draw.

    log pi = sum log N(u) - log(1 - a^2 + 1e-6), ctmrl_suite.md sec. 2.1.
    """
    noise = jax.random.normal(key, mean.shape)
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    log_normal = -0.5 * (noise**2 + LOG_2PI) - log_std
    return action, (log_normal - jnp.log(1.0 - action**2 + 1e-6)).sum(-1)


def mode(mean):
    """Returns the deterministic action tanh(mean)."""
    return jnp.tanh(mean)
