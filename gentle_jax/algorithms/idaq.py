"""IDAQ: FOCAL's metric; the test keeps to contexts like the data (ICML'23; docs/methods/idaq.md).

    z      = mean over the context of tanh(f(s, a, r))
    loss   = focal_weight * losses.focal(z)     tasks are drawn with replacement: pairs of one task
    models steps towards (r, s' - s) given (s, a, sg[z])

Only the first loss reaches the encoder. The models change nothing in training: quantifiers of the
protocol `in_distribution` read them. With `ensemble_size` above 1 there is a spread to read.
"""

import dataclasses

import jax.numpy as jnp

from gentle_jax import compose, encoders, learner, losses, networks, objectives
from gentle_jax.config import TrainConfig
from gentle_jax.learner import Trained
from gentle_jax.types import Algorithm, Backbone, Spec

PROTOCOL = "in_distribution"
OFFERS = ("predict_reward",)
SETTINGS = {key: sizes | {"train.task_draw": "replace"} for key, sizes in encoders.SETTINGS.items()}
PRESETS = encoders.PRESETS | {
    "quick": {"algo.model_width": 64},
    "smoke": {"algo.model_width": 16},
}
VARIANTS = {"idaq_ensemble": {"ensemble_size": 12}}  # what the two other quantifiers were run with


@dataclasses.dataclass(frozen=True)
class Config:
    """Floats are leaves of `hp`: they can be swept."""

    width: int = 200
    depth: int = 3
    use_next_obs: bool = False
    model_width: int = 256
    model_depth: int = 3
    ensemble_size: int = 1  # of models
    focal_weight: float = 10.0
    model_lr: float = 3e-4
    lr: float = 3e-4


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    shape = (config.width, config.depth, config.use_next_obs)
    encoder = encoders.mean_encoder(spec, train.latent_dim, *shape)
    models = _models(config, train.latent_dim, spec)
    terms = {"focal": objectives.focal(), "models": _term(models)}

    def predict(state, z, rows):
        return models.apply(state.own["models"].params, z[None], rows.obs, rows.action)

    def predict_reward(state, z, rows):
        return predict(state, z, rows)[..., 0].mean(0)

    def uncertainty(state, z, rows):
        spread = predict(state, z, rows).std(0)
        return spread[:, 0] + spread[:, 1:].mean(-1)

    several = uncertainty if config.ensemble_size > 1 else None
    fields = {"predict_reward": predict_reward, "uncertainty": several}
    rep = compose.representation(encoder, terms, train, **fields)
    return learner.joint(rep, rl, train, spec, shown=("focal_loss", "model_loss", "q_loss"))


def _models(config, latent_dim, spec):
    """Returns the ensemble (z, s, a) -> (r, s' - s): members [member, ..., 1 + obs_dim]."""
    seen = latent_dim + spec.obs_dim + spec.action_dim
    out = 1 + spec.obs_dim
    form = {"hidden_init": spec.init, "precision": spec.precision}
    net = networks.mlp(seen, config.model_width, config.model_depth, out, **form)
    return networks.ensemble(net, config.ensemble_size)


def _term(models):
    """Returns the Term whose own networks learn from RL rows, at z without gradient."""

    def before(own, hp, seen, key):
        rows = seen.batch.rl

        def loss(params):
            guess = models.apply(params, seen.z, rows.obs, rows.action)
            shape = guess[..., 1:].shape
            wanted = jnp.broadcast_to(rows.next_obs - rows.obs, shape)
            reward = jnp.broadcast_to(rows.reward, shape[:-1])
            error = losses.mse(guess[..., 0], reward) + losses.mse(guess[..., 1:], wanted)
            return len(guess) * error, {"model_loss": error}  # members learn apart: their sum

        return own.descend(loss, hp["model_lr"])

    return compose.Term(None, lambda key, data: ({}, Trained.of(models.init(key))), before)
