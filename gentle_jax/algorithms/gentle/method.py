"""GENTLE's stages, and its representation: a set encoder with one term."""

import jax
import jax.numpy as jnp

from gentle_jax import compose, encoders, errors, learner, losses, networks, objectives
from gentle_jax import data as data_lib
from gentle_jax.algorithms.gentle import dynamics, relabelling
from gentle_jax.algorithms.gentle.settings import Config
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec, Stage


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    _check(config, spec)
    models = dynamics.make(
        spec, config.width, config.ensemble_size, config.model_batch, config.max_epochs,
        config.patience, config.use_next_obs,
    )  # fmt: skip
    encoder = encoders.mean_encoder(
        spec, train.latent_dim, config.width, config.depth, config.use_next_obs
    )
    decoder = _decoder(config, spec, train)
    objective, predict_reward = _reconstruction(config, decoder), _predict_reward(decoder)
    if config.objective == "contrastive":
        objective, predict_reward = objectives.focal(), None
    terms = {"context": objective, "relabelling": _relabelling_term(config, spec, models)}

    def context(state, data, task_id, key):
        if not config.relabel:
            return data_lib.context_of(data, task_id, train, key)
        buffer = state.own["relabelling"]["buffer"]
        return relabelling.mixed_context(config, train, buffer, data, task_id, key)

    fields = {"context": context, "predict_reward": predict_reward}
    fields["predicts_context_reward"] = True
    rep = compose.representation(encoder, terms, train, **fields)
    joint = learner.joint_step(rep, rl, train, spec)
    relabel = relabelling.make(config, spec, models, rep, rl)

    def dynamics_step(state, data, key, index):
        own, lr = state.rep.own["relabelling"], state.hp["algo"]["model_lr"]
        fitted, metrics = models.step(own["models"], data, lr, key, index)
        return _with_own(state, models=fitted), metrics

    def train_step(state, data, key, index):
        if not config.relabel:
            return joint(state, data, key, index)
        k_relabel, k_step = jax.random.split(key)
        buffer = jax.lax.cond(  # `index` has no run axis: a real branch, also under vmap
            index % config.relabel_every == 0,
            lambda: relabel(state, data, k_relabel),
            lambda: state.rep.own["relabelling"]["buffer"],
        )
        return joint(_with_own(state, buffer=buffer), data, k_step, index)

    model_steps = models.num_steps if config.relabel else 0
    shown = ("holdout_error", "tasks_running")
    stages = (
        Stage("dynamics", model_steps, dynamics_step, evaluate=False, shown=shown),
        Stage("train", train.num_steps, train_step, shown=("context_loss", "q_loss")),
    )
    return learner.assemble(rep, rl, stages)


def _check(config, spec):
    for name, allowed in (
        ("objective", ("reconstruct", "contrastive")),
        ("relabel_z", ("source", "target")),
        ("relabel_policy", ("target_mode", "mode", "sample")),
    ):
        if getattr(config, name) not in allowed:
            raise errors.unknown(f"algo.{name}", getattr(config, name), allowed)
    most = spec.num_train_tasks - 1
    if config.relabel and not 0 <= config.num_cross_tasks <= most:
        raise errors.UserError(
            f"algo.num_cross_tasks is {config.num_cross_tasks}: expected 0 to {most}, the other "
            f"training tasks; pass --config.algo.num_cross_tasks=N"
        )


def _decoder(config, spec, train):
    """Returns the Network (s, a, z) -> r, or r and s' - s."""
    return networks.mlp(
        spec.obs_dim + spec.action_dim + train.latent_dim,
        config.width,
        config.depth,
        1 + (spec.obs_dim if config.use_next_obs else 0),
        hidden_init=spec.init,
        precision=spec.precision,
    )


def _predict_reward(decoder):
    """Returns `predict_reward` of a Representation."""

    def predict(state, z, rows):
        return decoder.apply(state.params["context"], rows.obs, rows.action, z[None])[..., 0]

    return predict


def _reconstruction(config, decoder):
    """The task auto-encoder (Eq. 4): mean squared error of r (and s') over the context's rows."""

    def loss(params, own, hp, seen, key):
        context = seen.batch.context
        guess = decoder.apply(params, context.obs, context.action, seen.z)
        target = context.context_reward[..., None]
        if config.use_next_obs:
            shift = jnp.concatenate([jnp.zeros_like(target), context.obs], axis=-1)
            target = jnp.concatenate([target, context.next_obs], axis=-1)
            guess = guess + shift  # the next state is predicted as a change
        return hp["recon_weight"] * losses.mse(guess, target)

    return compose.Term(loss, lambda key, data: (decoder.init(key), {}))


def _relabelling_term(config, spec, models):
    """Owns the dynamics models and the buffer that contexts are drawn from; has no loss."""
    own = lambda key: {"models": models.init(key), "buffer": relabelling.empty(config, spec)}
    return compose.Term(None, lambda key, data: ({}, own(key)))


def _with_own(state, **fields):
    """Returns the AgentState with other models or another buffer."""
    own = state.rep.own["relabelling"] | fields
    return state.replace(rep=state.rep.replace(own=state.rep.own | {"relabelling": own}))
