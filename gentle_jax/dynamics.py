"""Per-task ensembles of dynamics models, all tasks and members at once (gentle_suite.md sec. 3.2).

Training runs in epochs over bootstrapped rows; a member whose holdout error improves by over 1 % is
kept; a task whose members have not improved for `patience` epochs in a row stops changing. The
release has no last epoch: a compiled program needs one, so `max_epochs` bounds it, and tasks that
stopped earlier are masked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import errors as errors_lib
from gentle_jax import learner, networks

HOLDOUT_SHARE, HOLDOUT_MAX = 0.2, 1000
IMPROVEMENT = 0.01  # relative, of the holdout error


@struct.dataclass
class EnsembleState:
    """N tasks x K members. `best` is what relabelling uses."""

    params: dict  # [N, K, ...]
    moments: tuple
    best: dict  # [N, K, ...] snapshots
    best_error: jax.Array  # [N, K]
    stale: jax.Array  # [N] epochs without any improvement
    holdout: jax.Array  # [N, rows] int32, shared by members
    order: jax.Array  # [N, K, rows] int32, bootstrapped training rows in this epoch's order


class Ensemble(NamedTuple):
    """Functions of the ensembles of all training tasks."""

    init: callable  # (key) -> EnsembleState
    step: callable  # (EnsembleState, data, hp, key, index) -> (EnsembleState, Metrics)
    num_steps: int
    predict: callable  # (params of one task [K, ...], obs, action) -> (reward, next_obs or None)


def sizes(rows_per_task, batch_size):
    """Returns (holdout rows, training rows, steps per epoch); raises UserError for too few rows."""
    holdout = min(int(HOLDOUT_SHARE * rows_per_task), HOLDOUT_MAX)
    if holdout < 1:
        raise errors_lib.UserError(
            f"a training task has {rows_per_task} rows: expected at least 5 to fit a model: "
            f"collect more episodes, or pass --config.algo.relabel=False"
        )
    train = rows_per_task - holdout
    return holdout, train, -(-train // batch_size)


def make(spec, width, members, batch_size, max_epochs, patience, predict_next_obs):
    """Returns an Ensemble. Members see [s, a] and predict r, or r and s' - s."""
    depth = 3 if predict_next_obs else 2
    out = 1 + (spec.obs_dim if predict_next_obs else 0)
    decay = jnp.array([2.5e-5, 5e-5] + [7.5e-5] * (depth - 1))
    net = networks.mlp(spec.obs_dim + spec.action_dim, width, depth, out, "swish")
    num_holdout, num_train, steps_per_epoch = sizes(spec.rows_per_task, batch_size)
    num_tasks = spec.num_train_tasks

    def init(key):
        k_params, k_split, k_boot = jax.random.split(key, 3)
        init_task = lambda k: networks.ensemble(net, members).init(k)
        params = jax.vmap(init_task)(jax.random.split(k_params, num_tasks))
        shuffle = lambda k: jax.random.permutation(k, spec.rows_per_task)
        rows = jax.vmap(shuffle)(jax.random.split(k_split, num_tasks)).astype(jnp.int32)
        boot = jax.random.randint(k_boot, (num_tasks, members, num_train), 0, num_train)
        kept = jnp.broadcast_to(rows[:, None, num_holdout:], boot.shape)
        return EnsembleState(
            params=params,
            moments=learner.adam_init(params),
            best=learner.copy(params),
            best_error=jnp.full((num_tasks, members), jnp.inf),
            stale=jnp.zeros(num_tasks, jnp.int32),
            holdout=rows[:, :num_holdout],
            order=jnp.take_along_axis(kept, boot, axis=-1),
        )

    def errors(params, batch):
        """[K, rows] squared errors, mean over outputs; batch leaves [K or 1, rows, ...]."""
        target = batch.context_reward[..., None]  # what contexts are made of
        guess = jax.vmap(net.apply)(params, batch.obs, batch.action)
        if predict_next_obs:
            target = jnp.concatenate([target, batch.next_obs - batch.obs], axis=-1)
        return ((guess - target) ** 2).mean(-1)

    def decayed(params):
        layers = [params[name]["kernel"] for name in sorted(params)]
        return sum(0.5 * d * (w**2).sum() for d, w in zip(decay, layers, strict=True))

    def gradient_step(state, data, index, lr):
        slots = (index % steps_per_epoch) * batch_size + jnp.arange(batch_size)
        inside = (slots < num_train).astype(jnp.float32)  # the last batch of an epoch is short
        rows = state.order[:, :, jnp.minimum(slots, num_train - 1)]  # [N, K, batch]

        def task_loss(params, task, rows):
            batch = jax.tree.map(lambda x: x[task][rows], data.rows)
            error = (errors(params, batch) * inside).sum(-1) / inside.sum()
            return error.sum() + decayed(params), error.mean()

        def total(params):
            value, error = jax.vmap(task_loss)(params, jnp.arange(num_tasks), rows)
            return value.sum(), error.mean()

        (_, error), grads = jax.value_and_grad(total, has_aux=True)(state.params)
        params, moments = learner.adam_step(state.params, grads, state.moments, lr)
        running = state.stale < patience
        keep = lambda new, old: jnp.where(_like(running, new), new, old)
        params = jax.tree.map(keep, params, state.params)
        moments = jax.tree.map(
            lambda new, old: keep(new, old) if new.ndim else new, moments, state.moments
        )
        return state.replace(params=params, moments=moments), error, running.mean()

    def end_of_epoch(state, data, key):
        def holdout_error(params, task, rows):
            batch = jax.tree.map(lambda x: x[task][rows][None].repeat(members, 0), data.rows)
            return errors(params, batch).mean(-1)

        error = jax.vmap(holdout_error)(state.params, jnp.arange(num_tasks), state.holdout)
        running = (state.stale < patience)[:, None]
        better = (error < (1 - IMPROVEMENT) * state.best_error) & running
        take = lambda new, old: jnp.where(_like(better, new), new, old)
        return state.replace(
            best=jax.tree.map(take, state.params, state.best),
            best_error=jnp.where(better, error, state.best_error),
            stale=jnp.where(better.any(-1), 0, state.stale + 1),
            order=jax.random.permutation(key, state.order, axis=-1, independent=True),
        )

    def step(state, data, lr, key, index):
        state, error, running = gradient_step(state, data, index, lr)
        last = (index + 1) % steps_per_epoch == 0
        state = jax.lax.cond(last, lambda s: end_of_epoch(s, data, key), lambda s: s, state)
        finite = jnp.where(jnp.isinf(state.best_error), 0.0, state.best_error)
        metrics = {"model_loss": error, "holdout_error": finite.mean(), "tasks_running": running}
        return state, metrics

    def predict(params, obs, action):
        """Mean over members; obs [..., o], action [..., a]."""
        out = networks.ensemble(net, members).apply(params, obs, action).mean(0)
        return out[..., 0], (obs + out[..., 1:] if predict_next_obs else None)

    return Ensemble(init, step, max_epochs * steps_per_epoch, predict)


def _like(flags, array):
    """Reshapes flags [N] or [N, K] to broadcast against array [N, K, ...]."""
    return flags.reshape(flags.shape + (1,) * (array.ndim - flags.ndim))
