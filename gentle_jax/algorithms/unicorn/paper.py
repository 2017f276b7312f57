"""UNICORN on CSRO's code base: FOCAL's encoder, and a decoder of standardised transitions."""

import jax.numpy as jnp

from gentle_jax import encoders, losses, networks
from gentle_jax.algorithms.unicorn.parts import Form
from gentle_jax.algorithms.unicorn.settings import Config
from gentle_jax.compose import Term
from gentle_jax.config import TrainConfig
from gentle_jax.types import Spec

STD_FLOOR = 1e-6  # added to standard deviations


def make(config: Config, train: TrainConfig, spec: Spec) -> Form:
    """Returns the Form."""
    encoder = encoders.mean_encoder(
        spec, train.latent_dim, config.width, config.depth, config.use_next_obs
    )
    decoder = networks.mlp(
        spec.obs_dim + spec.action_dim + train.latent_dim,
        config.decoder_width, config.decoder_depth, spec.obs_dim + 1,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip
    known = spec.statistics
    obs_std, reward_std = known.obs_std + STD_FLOOR, known.reward_std + STD_FLOOR

    def target(rows):
        change = (rows.next_obs - rows.obs) / obs_std
        reward = (rows.reward - known.reward_mean) / reward_std
        return jnp.concatenate([change, reward[..., None]], -1)

    def loss(params, own, hp, seen, key):
        rows = seen.batch.rl
        guess = decoder.apply(params, rows.obs, rows.action, seen.z)
        return hp["prediction_weight"] * losses.mse(guess, target(rows))

    def reward(params, z, rows):
        guess = decoder.apply(params, rows.obs, rows.action, z[None])[..., -1]
        return known.reward_mean + reward_std * guess

    prediction = Term(loss, lambda key, data: (decoder.init(key), {}))
    return Form(encoder, prediction, reward, train, ordered_context=False)
