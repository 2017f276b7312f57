"""UNICORN as its authors' code does it: a noisy encoder of one episode, Gaussian decoders."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import encoders, losses, networks
from gentle_jax.algorithms.unicorn.parts import Form
from gentle_jax.algorithms.unicorn.settings import Config
from gentle_jax.compose import Encoder, Term
from gentle_jax.config import TrainConfig
from gentle_jax.types import Spec

VARIANCES = (0.1, 10.0)  # the encoder's is clipped to them
LOG_VARIANCES = (-10.0, 0.5)  # of predictions: where their learned bounds begin
BOUND_WEIGHT = 0.01  # draws the bounds together
# z at test time is a mean over N(0, 1) by the trapezoidal rule: off by 1e-3 at most
_NODES = np.linspace(-5.0, 5.0, 25, dtype=np.float32)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


def make(config: Config, train: TrainConfig, spec: Spec) -> Form:
    """Returns the Form. A context is one episode, whatever `train.context_size` is."""
    change, reward = (_decoder(config, train.latent_dim, spec, n) for n in (spec.obs_dim, 1))

    def init(key, data):
        k_change, k_reward = jax.random.split(key)
        return {"change": change.init(k_change), "reward": reward.init(k_reward)}, {}

    def loss(params, own, hp, seen, key):
        rows = seen.batch.context
        told = change.loss(params["change"], seen.z, rows, rows.next_obs - rows.obs)
        told += reward.loss(params["reward"], seen.z, rows, rows.reward[..., None])
        return hp["prediction_weight"] * told

    def predicted_reward(params, z, rows):
        return reward.heads(params["reward"], z[None], rows)[0][..., 0]

    episode = dataclasses.replace(
        train, context_draw="episodes", context_size=spec.horizon, context_levels=1
    )
    encoder = noisy_encoder(config, train.latent_dim, spec)
    return Form(encoder, Term(loss, init), predicted_reward, episode, ordered_context=True)


def noisy_encoder(config: Config, latent_dim: int, spec: Spec) -> Encoder:
    """Returns the Encoder z = mean_t tanh(f(x_t) + sigma * noise_t), sigma free of the row.

    A belief has the mean of each code over its noise. (tanh of f alone is larger, and no z of
    training.)
    """
    network = networks.mlp(
        encoders.row_size(spec, config.use_next_obs), config.width, config.depth, latent_dim,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def init(key):
        return {"encoder": {"net": network.init(key), "log_variance": jnp.zeros(latent_dim)}}

    def normal(params, transitions):
        row = encoders.context_row(transitions, config.use_next_obs)
        std = jnp.sqrt(jnp.clip(jnp.exp(params["encoder"]["log_variance"]), *VARIANCES))
        return network.apply(params["encoder"]["net"], row), std

    def mean_codes(params, transitions):
        mean, std = normal(params, transitions)
        return jnp.tanh(mean[..., None] + std[:, None] * _NODES) @ _WEIGHTS

    def draw_codes(params, transitions, key):
        mean, std = normal(params, transitions)
        return jnp.tanh(mean + std * jax.random.normal(key, mean.shape))

    return encoders.set_encoder(latent_dim, init, mean_codes, draw_codes)


class _Decoder(NamedTuple):
    """A normal distribution of what a row leads to, given (s, a, z)."""

    init: Callable
    heads: Callable  # (params, z [G, Z], rows) -> (mean, log variance)
    loss: Callable  # (params, z, rows, target) -> scalar


def _decoder(config, latent_dim, spec, size):
    """Returns the _Decoder of `size` numbers."""
    network = networks.mlp(
        latent_dim + spec.obs_dim + spec.action_dim,
        config.decoder_width, config.decoder_depth, (size, size),
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def init(key):
        low, high = (jnp.full(size, bound, jnp.float32) for bound in LOG_VARIANCES)
        return {"net": network.init(key), "low": low, "high": high}

    def heads(params, z, rows):
        out = network.apply(params["net"], z, rows.obs, rows.action)
        mean, raw = jnp.split(out, 2, axis=-1)
        below = params["high"] - jax.nn.softplus(params["high"] - raw)
        return mean, params["low"] + jax.nn.softplus(below - params["low"])

    def loss(params, z, rows, target):
        width = (params["high"] - params["low"]).sum()
        return losses.gaussian_nll(target, *heads(params, z, rows)) + BOUND_WEIGHT * width

    return _Decoder(init, heads, loss)
