"""ER-TRL: FOCAL's metric, and the entropy of the behaviour policy given z (AAAI'25).

    G, D   a conditional GAN of the behaviour policy, a = G(s, z, noise): `rounds` steps first
    H_i    = entropy of a normal with the covariance of G's actions in the states of task i
    loss   = focal_weight * losses.focal(z) - entropy_weight * mean_i H_i

H reaches the encoder through G and z; G takes no step by it. Source: docs/methods/er_trl.md. Both
fidelities are the same.
"""

import dataclasses

from gentle_jax import compose, encoders, errors, learner, objectives
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec

WEIGHTS = dict.fromkeys(("ant_goal", "ant_dir", "hopper_params", "walker_params"), 5.0)
SETTINGS = {
    (suite, env): sizes | {"algo.entropy_weight": WEIGHTS.get(env, 2.5)}
    for (suite, env), sizes in encoders.SETTINGS.items()
}
PROTOCOL = "random_then_policy"
PRESETS = encoders.PRESETS | {
    "quick": {  # docs/methods/er_trl.md
        "algo.discriminator_width": 64, "algo.gan_lr": 2e-3, "algo.entropy_weight": 0.5,
    },
    "smoke": {"algo.discriminator_width": 16},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Floats are leaves of `hp`: they can be swept."""

    width: int = 200  # encoder and generator
    depth: int = 3
    use_next_obs: bool = False
    discriminator_width: int = 256
    discriminator_depth: int = 2
    noise_dim: int = 20
    rounds: int = 5  # of the GAN in every step
    focal_weight: float = 10.0
    entropy_weight: float = 2.5
    gan_lr: float = 2e-4
    lr: float = 3e-4


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    if train.batch_size < 2:
        raise errors.UserError(
            f"train.batch_size is {train.batch_size}: expected at least 2, for the covariance of a "
            f"task's actions; pass --config.train.batch_size=N"
        )
    size, shape = train.latent_dim, (config.width, config.depth)
    entropy = objectives.behaviour_entropy(
        spec, size, shape, (config.discriminator_width, config.discriminator_depth),
        config.noise_dim, config.rounds,
    )  # fmt: skip
    encoder = encoders.mean_encoder(spec, size, *shape, config.use_next_obs)
    terms = {"focal": objectives.focal(), "entropy": entropy}
    rep = compose.representation(encoder, terms, train)
    return learner.joint(rep, rl, train, spec, shown=("focal_loss", "entropy_loss", "q_loss"))
