"""ANOLE-off: learned task vectors, and a reward head that orders fragments (NeurIPS'22).

    z_i        ~ N(mu_i, exp(log_std_i)^2), a table: no context tells anything
    guess      = tanh(phi(s, a) . z)
    preference = BCE(sigmoid(R_1 - R_2), 1 if the true return of fragment 1 >= that of 2)
    loss       = preference_weight * preference + kl_weight * KL(z_i | N(0, 1)) + the critics' in z

R sums the guess over a fragment, steps in a row of one stored episode; all pairs of a task's
fragments are compared. The prior z, and that of a task that was not trained on, is 0, the mean of
the prior. This is our offline form of an online method: docs/methods/anole.md.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import compose, errors, learner, losses, networks, objectives
from gentle_jax import data as data_lib
from gentle_jax.config import TrainConfig, from_zero
from gentle_jax.types import Algorithm, Backbone, Spec, Traits

PROTOCOL = "noisy_preferences"
OFFERS = ("predict_reward",)
SETTINGS = {
    (suite, "point_robot_wind"): {"algo.fragment_steps": 20} for suite in ("ctmrl", "ctmrl_b")
}
PRESETS = {"quick": {"algo.preference_weight": 100.0}}  # docs/methods/anole.md


@dataclasses.dataclass(frozen=True)
class Config:
    """Floats are leaves of `hp`: they can be swept."""

    width: int = 200
    depth: int = 3
    fragment_steps: int = from_zero(0)  # 64, or one horizon where that is shorter
    num_fragments: int = 4  # of each task in a step
    preference_weight: float = 10.0
    kl_weight: float = 0.1
    lr: float = 3e-4


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm; raises UserError for fragments that cannot be compared."""
    if config.num_fragments < 2:
        raise errors.UserError(
            f"algo.num_fragments is {config.num_fragments}: expected at least 2 to compare; pass "
            f"--config.algo.num_fragments=N"
        )
    encoder = table(spec.num_train_tasks, train.latent_dim)
    net = networks.mlp(
        spec.obs_dim + spec.action_dim, config.width, config.depth, train.latent_dim,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def guess(params, z, rows):
        """Preference rewards [T, ...] of rows [T, ...] at z [T, Z]."""
        features = net.apply(params, rows.obs, rows.action)
        z = z.reshape(z.shape[0], *(1,) * (features.ndim - 2), z.shape[1])
        return jnp.tanh((features * z).sum(-1))

    def predict_reward(state, z, rows):
        return guess(state.params["preference"], z[None], jax.tree.map(lambda x: x[None], rows))[0]

    terms = {
        "preference": _preference(config, spec, net, guess),
        "kl": compose.Term(_kl),
        "critic": objectives.critic(),
    }
    traits = Traits(critic_gradient=True, no_context=True, unbounded_z=True)
    fields = {"predict_reward": predict_reward, "traits": traits}
    rep = compose.representation(encoder, terms, train, **fields)
    return learner.joint(rep, rl, train, spec, shown=("preference_loss", "kl_loss", "q_loss"))


def table(num_tasks: int, size: int) -> compose.Encoder:
    """Returns the Encoder z ~ N(mean[task], exp(log_std[task])^2), with one part, `table`.

    mean begins as N(0, 1), log_std as 0. Tasks that are not in the table have z 0.
    """

    def init(key):
        mean = jax.random.normal(key, (num_tasks, size))
        return {"table": {"mean": mean, "log_std": jnp.zeros_like(mean)}}

    def encode(params, context, task_id, key):
        del context
        rows = lambda x: x.at[task_id].get(mode="fill", fill_value=0.0)
        mean, std = rows(params["table"]["mean"]), rows(jnp.exp(params["table"]["log_std"]))
        return None, mean + std * jax.random.normal(key, mean.shape)

    prior = lambda params: jnp.zeros(size)
    extend = lambda params, belief, rows, mask: belief
    return compose.Encoder(init, encode, prior, extend, lambda params, belief, key: belief)


def _preference(config, spec, net, guess):
    """The Term of phi: cross-entropy of all pairs of a task's fragments."""
    steps = data_lib.fragment_steps(config.fragment_steps, spec.horizon, "algo.fragment_steps")
    first, second = np.triu_indices(config.num_fragments, 1)

    def loss(params, own, hp, seen, key):
        draw = (config.num_fragments, steps, key)
        rows, mask = data_lib.fragments(seen.data, seen.batch.task_id, *draw)
        sums = lambda rewards: (rewards * mask).sum(-1)  # [T, fragment]
        guessed, true = sums(guess(params, seen.z, rows)), sums(rows.reward)
        better = true[:, first] >= true[:, second]
        value = losses.preference(guessed[:, first], guessed[:, second], better)
        return hp["preference_weight"] * value

    return compose.Term(loss, lambda key, data: (net.init(key), {}))


def _kl(params, own, hp, seen, key):
    """KL of the batch's task vectors from N(0, 1), mean over tasks and Z."""
    of_batch = {name: x[seen.batch.task_id] for name, x in seen.params["table"].items()}
    mean, log_std = of_batch["mean"], of_batch["log_std"]
    return hp["kl_weight"] * 0.5 * (mean**2 + jnp.exp(2 * log_std) - 2 * log_std - 1.0).mean()
