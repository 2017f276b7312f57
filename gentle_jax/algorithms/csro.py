"""CSRO: FOCAL's metric, and a bound on what z tells of the behaviour policy (NeurIPS'23).

    p      steps towards log p(z_t | s_t, a_t)              z_t is the code of one context row
    loss   = focal_weight * losses.focal(z) + club_weight * losses.club_bound(z_t, p)

Source: docs/methods/csro.md. Both fidelities are the same.
"""

import dataclasses

from gentle_jax import compose, encoders, learner, objectives
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec

WEIGHTS = {"point_robot": 25.0, "point_robot_wind": 25.0, "sparse_point_robot": 25.0}
WEIGHTS |= {"hopper_params": 25.0, "walker_params": 25.0, "ant_goal": 50.0}  # elsewhere 10
SETTINGS = {
    (suite, env): sizes | {"algo.club_weight": WEIGHTS.get(env, 10.0)}
    for (suite, env), sizes in encoders.SETTINGS.items()
}
PRESETS = encoders.PRESETS | {"quick": {"algo.club_weight": 10.0}}  # docs/methods/csro.md
PROTOCOL = "random_then_policy"
VARIANTS = {"csro_no_min_mi": {"club_weight": 0.0}, "csro_no_max_mi": {"focal_weight": 0.0}}


@dataclasses.dataclass(frozen=True)
class Config:
    """Floats are leaves of `hp`: they can be swept."""

    width: int = 200
    depth: int = 3
    use_next_obs: bool = False
    focal_weight: float = 10.0
    club_weight: float = 10.0
    club_model_weight: float = 10.0
    lr: float = 3e-4


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    size, shape = train.latent_dim, (config.width, config.depth)
    encoder = encoders.mean_encoder(spec, size, *shape, config.use_next_obs)
    terms = {"focal": objectives.focal(), "club": objectives.club(spec, size, *shape)}
    rep = compose.representation(encoder, terms, train)
    return learner.joint(rep, rl, train, spec, shown=("focal_loss", "club_loss", "q_loss"))
