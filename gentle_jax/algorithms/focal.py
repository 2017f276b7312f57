"""FOCAL: task vectors from distance metric learning (ICLR'21; docs/methods/focal.md).

    z     = mean over the context of tanh(f(s, a, r))
    loss  = focal_weight * losses.focal(z)      repels tasks, attracts two contexts of one task

Only this loss reaches the encoder; both fidelities are the same. Contexts of one task meet in a
batch only where tasks are drawn with replacement (`train.task_draw=replace`).
"""

import dataclasses

from gentle_jax import compose, encoders, learner, objectives
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec

SETTINGS = encoders.SETTINGS
PRESETS = encoders.PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """Floats are leaves of `hp`: they can be swept."""

    width: int = 200
    depth: int = 3
    use_next_obs: bool = False
    focal_weight: float = 10.0
    lr: float = 3e-4


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    shape = (config.width, config.depth, config.use_next_obs)
    encoder = encoders.mean_encoder(spec, train.latent_dim, *shape)
    rep = compose.representation(encoder, {"focal": objectives.focal()}, train)
    return learner.joint(rep, rl, train, spec, shown=("focal_loss", "q_loss"))
