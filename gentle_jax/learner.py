"""What learners share: trained parameters, Polyak averages, the joint step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from gentle_jax import data as data_lib
from gentle_jax.config import TrainConfig
from gentle_jax.types import (
    Advance,
    AgentState,
    Algorithm,
    Backbone,
    Cond,
    HyperParams,
    Index,
    MetaBatch,
    RandomKey,
    Representation,
    Scalar,
    Spec,
    Stage,
    State,
    Transition,
    pytree,
)

DECAYED = ("lr", "policy_lr")
_ADAM = optax.scale_by_adam()  # betas .9, .999, eps 1e-8 (docs/methods/backbones.md, "Optimisers")


@pytree
class Trained:
    """Parameters and their Adam moments: one thing that learns."""

    params: Any
    moments: Any

    @classmethod
    def of(cls, params: PyTree) -> "Trained":
        """Returns parameters with fresh moments."""
        return cls(params, _ADAM.init(params))

    def step(self, grads: PyTree, lr: Scalar) -> "Trained":
        """Returns Trained after one Adam step; `lr` may be traced, so sweeps compile once."""
        updates, moments = _ADAM.update(grads, self.moments, self.params)
        return Trained(jax.tree.map(lambda p, u: p - lr * u, self.params, updates), moments)

    def descend(self, loss: Callable, lr: Scalar) -> tuple["Trained", Any]:
        """Returns (Trained, aux) after one Adam step on `loss(params) -> (scalar, aux)`."""
        grads, aux = jax.grad(loss, has_aux=True)(self.params)
        return self.step(grads, lr), aux


def polyak(target: PyTree, params: PyTree, tau: Scalar) -> PyTree:
    """Returns (1 - tau) * target + tau * params."""
    return optax.incremental_update(params, target, tau)


def critic_step(
    q: Callable,
    critics: Trained,
    batch: Transition,
    z: Float[Array, "G Z"],
    target: Float[Array, " N"],
    lr: Scalar,
) -> tuple[Trained, Float[Array, "G Z"], Float[Array, ""]]:
    """One Adam step of a backbone's stacked critics towards `target`, squared error.

    Args: q, (params, obs, action, z) -> [2, N]. Returns (critics, d loss / d z, loss): the sum over
    critics of the mean over rows.
    """

    def loss(params, z):
        error = q(params, batch.obs, batch.action, z) - target
        return (error**2).mean(1).sum()

    value, (grads, dz) = jax.value_and_grad(loss, (0, 1))(critics.params, z)
    return critics.step(grads, lr), dz, value


def copy(tree: PyTree) -> PyTree:
    """Returns a copy of a tree: a donated state must not hold one buffer twice."""
    return jax.tree.map(jnp.copy, tree)


def encode_tasks(
    rep: Representation,
    state: State,
    context: Transition,
    task_id: Int[Array, " T"],
    key: RandomKey,
) -> Float[Array, "T Z"]:
    """Returns z of contexts [T, C, ...] of some tasks, from the prior belief."""
    if rep.encode is not None:
        return rep.encode(state, context, task_id, key)
    num_tasks, size = context.reward.shape
    everything = jnp.ones((num_tasks, size))
    extend = jax.vmap(lambda c, m: rep.extend(state, rep.prior(state), c, m))
    sample = jax.vmap(lambda belief, k: rep.sample(state, belief, k))
    return sample(extend(context, everything), jax.random.split(key, num_tasks))


def decayed(hp: HyperParams, train: TrainConfig, at: Index) -> HyperParams:
    """Returns `hp` with every rate of DECAYED scaled linearly from 1 to `train.final_lr`."""
    progress = jnp.minimum(at / train.num_steps, 1.0)
    scale = 1.0 - (1.0 - train.final_lr) * progress
    return {
        section: {
            name: value * scale if name in DECAYED else value for name, value in leaves.items()
        }
        for section, leaves in hp.items()
    }


def joint_step(
    rep: Representation, rl: Backbone, train: TrainConfig, spec: Spec, offset: int = 0
) -> Advance:
    """Returns step(state, data, key, index): one RL and one representation update on a batch.

    `offset` is the training step at which the stage begins. A backbone's rewards are divided by
    their standard deviation with `train.normalize_rewards` (of the Spec's statistics, a constant of
    the program); representations see them as they are, but dz is of a loss in the divided ones.

        tasks    ~ the training tasks
        context  ~ rep.context(tasks); K RL batches ~ all rows of the tasks
        z        = of the contexts, or of every row (`rep.condition`); without gradient
        rl, dz   = rl.update(batches, z)
        rep      = rep.update(context, first batch, dz)

    Both updates see z of the representation before its own (docs/methods/backbones.md, "Joint
    step"). `dz` is dead code unless `rep.update` reads it.
    """
    draw = data_lib.task_sampler(train.meta_batch, spec.num_train_tasks, train.task_draw)
    spread = spec.statistics.reward_std if train.normalize_rewards else None

    def step(state, data, key, index):
        k_task, k_context, k_z, k_batch, k_rl, k_rep = jax.random.split(key, 6)
        hp = state.hp if train.final_lr == 1.0 else decayed(state.hp, train, index + offset)
        task_id = draw(k_task)
        context = rep.context(state.rep, data, task_id, k_context)
        keys = jax.random.split(k_batch, rl.num_batches)
        rows = lambda k: data_lib.draw_rows(data, task_id, train.batch_size, k)
        drawn = jax.vmap(rows)(keys)  # [K, T, B]
        batches = jax.vmap(lambda rows: data_lib.gather(data, task_id, rows))(drawn)
        cond = _condition(rep, state.rep, data, context, task_id, drawn, k_z)
        flat = jax.tree.map(lambda x: x.reshape((x.shape[0], -1) + x.shape[3:]), batches)
        flat = flat if spread is None else flat._replace(reward=flat.reward / max(spread, 1e-6))
        new_rl, dz, rl_metrics = rl.update(state.rl, hp["backbone"], flat, cond, k_rl, index)
        first = jax.tree.map(lambda x: x[0], batches)
        batch = MetaBatch(first, context, task_id, k_z)
        new_rep, rep_metrics = rep.update(state.rep, hp["algo"], batch, dz, data, k_rep, index)
        return state.replace(rep=new_rep, rl=new_rl), rl_metrics | rep_metrics

    return step


def _condition(rep, state, data, context, task_id, drawn, key):
    """Returns the Cond of rows `drawn` [K, T, B], without gradient: a z per task or per row."""
    if rep.condition is not None:
        cond = rep.condition(state, data, task_id, drawn, key)
    else:
        z = encode_tasks(rep, state, context, task_id, key)
        z = jnp.broadcast_to(z, (drawn.shape[0], *z.shape))
        cond = Cond(z, z)
    return jax.lax.stop_gradient(cond)


def joint(
    rep: Representation,
    rl: Backbone,
    train: TrainConfig,
    spec: Spec,
    before: tuple[Stage, ...] = (),
    shown: tuple = (),
) -> Algorithm:
    """Returns the Algorithm whose last stage, `train`, is the joint step.

    Args: before, Stages of its own; shown, the metrics that say most.
    """
    step = joint_step(rep, rl, train, spec)
    return assemble(rep, rl, (*before, Stage("train", train.num_steps, step, shown=shown)))


def assemble(rep: Representation, rl: Backbone, stages: tuple[Stage, ...]) -> Algorithm:
    """Returns the Algorithm of a representation, a backbone and Stages in time."""

    def init(hp, key, data):
        k_rep, k_rl = jax.random.split(key)
        return AgentState(rep.init(hp["algo"], k_rep, data), rl.init(hp["backbone"], k_rl), hp)

    return Algorithm(init, tuple(stages), rep, rl)
