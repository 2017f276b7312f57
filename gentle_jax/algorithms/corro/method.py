"""CORRO's three stages over one representation."""

import dataclasses

import jax
import jax.numpy as jnp

from gentle_jax import compose, errors, learner, losses, objectives
from gentle_jax import data as data_lib
from gentle_jax.algorithms.corro import attention, generator
from gentle_jax.algorithms.corro.settings import CVAE_PASSES, NEGATIVES, Config
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, MetaBatch, Spec, Stage, Traits


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm; raises UserError for negatives that are unknown or do not fit."""
    _check(config)
    cvae = generator.make(config, spec)
    encoder = attention.attention_encoder(spec, train.latent_dim, config.width, config.depth)
    terms = {
        "cvae": generator.term(cvae),
        "contrast": _contrast(config, spec, cvae),
        "critic": objectives.critic(),
    }

    def representation(active, *frozen):
        traits = Traits(critic_gradient=True)
        return compose.representation(encoder, terms, train, (active,), frozen, traits=traits)

    stage = lambda name, rep, *sizes: _pretraining(name, rep, train, spec, *sizes)
    fit = representation("cvae", "encoder", "attention")
    contrast = representation("contrast", "attention")
    before = (
        stage("cvae", fit, cvae_steps(config, spec), config.cvae_batch, 1),
        stage("contrast", contrast, config.contrast_steps, config.contrast_batch, 2),
    )
    last = representation("critic", "encoder")
    return learner.joint(last, rl, train, spec, before, shown=("q_loss",))


def cvae_steps(config: Config, spec: Spec) -> int:
    """Returns the gradient steps of stage `cvae`: 0 where the negatives do not need it."""
    if config.negatives != "generative":
        return 0
    rows = spec.num_train_tasks * spec.rows_per_task
    return config.cvae_steps or CVAE_PASSES * -(-rows // config.cvae_batch)


def _check(config):
    if config.negatives not in NEGATIVES:
        raise errors.unknown("algo.negatives", config.negatives, NEGATIVES)
    if config.negatives == "reward" and config.dynamics_vary:
        others = " or ".join(name for name in NEGATIVES if name != "reward")
        raise errors.UserError(
            "algo.negatives is 'reward', but the dynamics of this environment vary, and such "
            f"negatives keep s': pass --config.algo.negatives={others}"
        )


def _contrast(config, spec, cvae):
    """InfoNCE of E1. The batch's contexts are pairs of rows of one task: query and key."""

    def loss(params, own, hp, seen, key):
        queries = jax.tree.map(lambda x: x[:, 0], seen.batch.context)
        rows = generator.negatives(config, spec, cvae, hp, seen, queries, key)
        negatives, _ = seen.encode(rows, seen.batch.task_id, key)
        query, positive = seen.row_codes[:, 0], seen.row_codes[:, 1]
        return losses.info_nce(query, positive, negatives, hp["temperature"])

    return compose.Term(loss)


def _pretraining(name, rep, train, spec, num_steps, batch_size, rows):
    """Returns the Stage that updates `rep` on batches of some rows of each of some random tasks.

    Its rate is `hp["algo"][name + "_lr"]`, which ends at `train.final_lr` of itself.
    """
    draw = data_lib.task_sampler(batch_size, spec.num_train_tasks, "replace")
    span = dataclasses.replace(train, num_steps=max(num_steps, 1))
    no_critics = jnp.zeros((batch_size, train.latent_dim))

    def step(state, data, key, index):
        k_task, k_rows, k_update = jax.random.split(key, 3)
        task_id = draw(k_task)
        drawn = data_lib.context_rows(data, task_id, rows, k_rows)
        algo = state.hp["algo"] | {"lr": state.hp["algo"][f"{name}_lr"]}
        hp = learner.decayed({"algo": algo}, span, index)["algo"]
        batch = MetaBatch(drawn, drawn, task_id)
        updated, metrics = rep.update(state.rep, hp, batch, no_critics, data, k_update, index)
        return state.replace(rep=updated), metrics

    return Stage(name, num_steps, step, evaluate=False, shown=(f"{name}_loss",))
