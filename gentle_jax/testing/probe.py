"""A small algorithm that protocols are tested with: z is the mean of a context's row codes.

It is not trained. It has what some protocols ask of an algorithm, made up.
"""

import dataclasses

import jax.numpy as jnp

from gentle_jax import compose, encoders, learner, objectives
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec

OFFERS = ("predict_reward", "uncertainty")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    width: int = 8
    lr: float = 1e-3


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    encoder = encoders.mean_encoder(spec, train.latent_dim, config.width, 1, False)
    rep = compose.representation(
        encoder, {"metric": objectives.focal()}, train,
        predict_reward=lambda state, z, rows: rows.reward + z.sum(),
        uncertainty=lambda state, z, rows: jnp.abs(rows.reward + z.sum()),
    )  # fmt: skip
    return learner.joint(rep, rl, train, spec)
