"""What learners share: an Adam step with a traced rate, Polyak averages, the joint step."""

import jax
import jax.numpy as jnp
import optax

from gentle_jax import data as data_lib
from gentle_jax.types import MetaBatch

DECAYED = ("lr", "policy_lr")
_ADAM = optax.scale_by_adam()  # betas .9, .999, eps 1e-8: torch's defaults, as every sheet says


def adam_init(params):
    """Returns Adam's moments for a tree of parameters."""
    return _ADAM.init(params)


def adam_step(params, grads, moments, lr):
    """Returns (params, moments) after one Adam step; `lr` may be traced, so sweeps compile once."""
    updates, moments = _ADAM.update(grads, moments, params)
    return jax.tree.map(lambda p, u: p - lr * u, params, updates), moments


def polyak(target, params, tau):
    """Returns (1 - tau) * target + tau * params."""
    return optax.incremental_update(params, target, tau)


def critic_step(q, state, batch, z, target, lr):
    """One Adam step of a backbone's stacked critics towards `target` [N], squared error.

    Args: q, (params, obs, action, z) -> [2, N]; state, with `critics` and `critic_moments`; z
    [T, Z]. Returns (state, d loss / d z [T, Z], loss): the sum over critics of the mean over rows.
    """

    def loss(critics, z):
        error = q(critics, batch.obs, batch.action, z) - target
        return (error**2).mean(1).sum()

    value, (grads, dz) = jax.value_and_grad(loss, (0, 1))(state.critics, z)
    critics, moments = adam_step(state.critics, grads, state.critic_moments, lr)
    return state.replace(critics=critics, critic_moments=moments), dz, value


def copy(tree):
    """Returns a copy of a tree: a donated state must not hold one buffer twice."""
    return jax.tree.map(jnp.copy, tree)


def encode_tasks(rep, state, context, key):
    """Returns z [T, Z] of contexts [T, C, ...], from the prior belief."""
    if rep.encode is not None:
        return rep.encode(state, context, key)
    num_tasks, size = context.reward.shape
    everything = jnp.ones((num_tasks, size))
    extend = jax.vmap(lambda c, m: rep.extend(state, rep.prior(state), c, m))
    return jax.vmap(rep.sample)(extend(context, everything), jax.random.split(key, num_tasks))


def decayed(hp, train, at):
    """Returns `hp` with every rate of DECAYED scaled linearly from 1 to `train.final_lr`."""
    progress = jnp.minimum(at / train.num_steps, 1.0)
    scale = 1.0 - (1.0 - train.final_lr) * progress
    return {
        section: {
            name: value * scale if name in DECAYED else value for name, value in leaves.items()
        }
        for section, leaves in hp.items()
    }


def joint_step(rep, rl, train, num_train_tasks, offset=0):
    """Returns step(state, data, key, index): one RL and one representation update on a batch.

    `offset` is the training step at which the stage begins.

    Both see z of the representation before its update; the RL side sees it without gradient
    (ctmrl_suite.md sec. 2.3, gentle_suite.md sec. 2). `dz` is dead code unless `rep.update`
    reads it.
    """
    draw = data_lib.task_sampler(train.meta_batch, num_train_tasks, train.task_draw)

    def step(state, data, key, index):
        k_task, k_context, k_z, k_batch, k_rl, k_rep = jax.random.split(key, 6)
        hp = state.hp if train.final_lr == 1.0 else decayed(state.hp, train, index + offset)
        task_id = draw(k_task)
        context = rep.context(state.rep, data, task_id, k_context)
        z = jax.lax.stop_gradient(encode_tasks(rep, state.rep, context, k_z))  # [T, Z]
        keys = jax.random.split(k_batch, rl.num_batches)
        batches = jax.vmap(lambda k: data_lib.rl_batch(data, task_id, train.batch_size, k))(keys)
        flat = jax.tree.map(lambda x: x.reshape((x.shape[0], -1) + x.shape[3:]), batches)
        new_rl, dz, rl_metrics = rl.update(state.rl, hp["backbone"], flat, z, k_rl, index)
        batch = MetaBatch(jax.tree.map(lambda x: x[0], batches), context, task_id)
        new_rep, rep_metrics = rep.update(state.rep, hp["algo"], batch, dz, data, k_rep, index)
        return state.replace(rep=new_rep, rl=new_rl), rl_metrics | rep_metrics

    return step
