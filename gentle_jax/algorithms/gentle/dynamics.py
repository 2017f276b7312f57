"""Per-task ensembles of dynamics models, all tasks and members at once (docs/methods/gentle.md,
"Dynamics ensembles").

Training runs in epochs over bootstrapped rows; a member whose holdout error improves by over 1 % is
kept; a task whose members have not improved for `patience` epochs in a row stops changing. The
release has no last epoch: a compiled program needs one, so `max_epochs` bounds it, and tasks that
stopped earlier are masked.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gentle_jax import data as data_lib
from gentle_jax import errors as errors_lib
from gentle_jax import learner, networks
from gentle_jax.types import Dataset, Index, Metrics, RandomKey, Section, Spec, pytree

HOLDOUT_SHARE, HOLDOUT_MAX = 0.2, 1000
IMPROVEMENT = 0.01  # relative, of the holdout error


@pytree
class EnsembleState:
    """N tasks x K members. `best` is what relabelling uses."""

    trained: learner.Trained  # leaves [N, K, ...]
    best: dict  # [N, K, ...] snapshots
    best_error: jax.Array  # [N, K]
    stale: jax.Array  # [N] epochs without any improvement
    holdout: jax.Array  # [N, rows] int32, shared by members
    order: jax.Array  # [N, K, rows] int32, bootstrapped training rows in this epoch's order


Predict = Callable[
    [PyTree, Float[Array, "*rows obs"], Float[Array, "*rows action"]],
    tuple[Float[Array, "..."], Float[Array, "... obs"] | None],
]


class Ensemble(NamedTuple):
    """Functions of the ensembles of all training tasks."""

    init: Callable[[RandomKey], EnsembleState]
    step: Callable[
        [EnsembleState, Dataset, Section, RandomKey, Index], tuple[EnsembleState, Metrics]
    ]
    num_steps: int
    # (params of one task [K, ...], obs, action) -> (reward [K, *rows], next_obs [K, *rows, obs] or
    # None)
    predict: Predict


def sizes(rows_per_task: int, batch_size: int) -> tuple[int, int, int]:
    """Returns (holdout rows, training rows, steps per epoch); raises UserError for too few rows."""
    holdout = min(int(HOLDOUT_SHARE * rows_per_task), HOLDOUT_MAX)
    if holdout < 1:
        raise errors_lib.UserError(
            f"a training task has {rows_per_task} rows: expected at least 5 to fit a model: "
            f"collect more episodes, or pass --config.algo.relabel=False"
        )
    train = rows_per_task - holdout
    return holdout, train, -(-train // batch_size)


class _Setup(NamedTuple):
    """What the functions below share; nothing of it is traced."""

    net: networks.Network  # one member: [s, a] -> r, or r and s' - s
    members: int
    num_tasks: int
    rows_per_task: int
    num_holdout: int
    num_train: int
    batch_size: int
    steps_per_epoch: int
    patience: int
    predict_next_obs: bool
    decay: tuple  # weight decay of each layer


def make(
    spec: Spec,
    width: int,
    members: int,
    batch_size: int,
    max_epochs: int,
    patience: int,
    predict_next_obs: bool,
) -> Ensemble:
    """Returns an Ensemble. Members see [s, a] and predict r, or r and s' - s."""
    depth = 3 if predict_next_obs else 2
    out = 1 + (spec.obs_dim if predict_next_obs else 0)
    num_holdout, num_train, steps_per_epoch = sizes(spec.rows_per_task, batch_size)
    setup = _Setup(
        net=networks.mlp(
            spec.obs_dim + spec.action_dim, width, depth, out, "swish", precision=spec.precision
        ),
        members=members,
        num_tasks=spec.num_train_tasks,
        rows_per_task=spec.rows_per_task,
        num_holdout=num_holdout,
        num_train=num_train,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        patience=patience,
        predict_next_obs=predict_next_obs,
        decay=(2.5e-5, 5e-5) + (7.5e-5,) * (depth - 1),
    )

    def step(state, data, lr, key, index):
        state, error, running = _gradient_step(setup, state, data, index, lr)
        last = (index + 1) % steps_per_epoch == 0
        ended = lambda s: _end_of_epoch(setup, s, data, key)
        state = jax.lax.cond(last, ended, lambda s: s, state)
        finite = jnp.where(jnp.isinf(state.best_error), 0.0, state.best_error)
        metrics = {"model_loss": error, "holdout_error": finite.mean(), "tasks_running": running}
        return state, metrics

    def predict(params, obs, action):
        """Mean over members; obs [..., o], action [..., a]."""
        out = networks.ensemble(setup.net, members).apply(params, obs, action).mean(0)
        return out[..., 0], (obs + out[..., 1:] if predict_next_obs else None)

    init = functools.partial(_init, setup)
    return Ensemble(init, step, max_epochs * steps_per_epoch, predict)


def _init(setup, key):
    k_params, k_split, k_boot = jax.random.split(key, 3)
    num_tasks, members = setup.num_tasks, setup.members
    init_task = lambda k: networks.ensemble(setup.net, members).init(k)
    params = jax.vmap(init_task)(jax.random.split(k_params, num_tasks))
    shuffle = lambda k: jax.random.permutation(k, setup.rows_per_task)
    rows = jax.vmap(shuffle)(jax.random.split(k_split, num_tasks)).astype(jnp.int32)
    shape = (num_tasks, members, setup.num_train)
    boot = jax.random.randint(k_boot, shape, 0, setup.num_train)
    kept = jnp.broadcast_to(rows[:, None, setup.num_holdout :], boot.shape)
    return EnsembleState(
        trained=learner.Trained.of(params),
        best=learner.copy(params),
        best_error=jnp.full((num_tasks, members), jnp.inf, jnp.float32),
        stale=jnp.zeros(num_tasks, jnp.int32),
        holdout=rows[:, : setup.num_holdout],
        order=jnp.take_along_axis(kept, boot, axis=-1),
    )


def _errors(setup, params, batch):
    """[K, rows] squared errors, mean over outputs; batch leaves [K or 1, rows, ...]."""
    target = batch.context_reward[..., None]  # what contexts are made of
    guess = jax.vmap(setup.net.apply)(params, batch.obs, batch.action)
    if setup.predict_next_obs:
        target = jnp.concatenate([target, batch.next_obs - batch.obs], axis=-1)
    return ((guess - target) ** 2).mean(-1)


def _weight_decay(setup, params):
    layers = [params[name]["kernel"] for name in sorted(params)]
    return sum(0.5 * d * (w**2).sum() for d, w in zip(setup.decay, layers, strict=True))


def _gradient_step(setup, state, data, index, lr):
    """One step of all members; returns (state, mean error, share of tasks still training)."""
    slots = (index % setup.steps_per_epoch) * setup.batch_size + jnp.arange(setup.batch_size)
    inside = (slots < setup.num_train).astype(jnp.float32)  # the last batch of an epoch is short
    rows = state.order[:, :, jnp.minimum(slots, setup.num_train - 1)]  # [N, K, batch]
    batches = data_lib.gather(data, jnp.arange(setup.num_tasks), rows)

    def task_loss(params, batch):
        error = (_errors(setup, params, batch) * inside).sum(-1) / inside.sum()
        return error.sum() + _weight_decay(setup, params), error.mean()

    def total(params):
        value, error = jax.vmap(task_loss)(params, batches)
        return value.sum(), error.mean()

    trained, error = state.trained.descend(total, lr)
    running = state.stale < setup.patience
    # Adam's step count has no task axis: it goes on for all
    keep = lambda new, old: jnp.where(_like(running, new), new, old) if new.ndim else new
    trained = jax.tree.map(keep, trained, state.trained)
    return state.replace(trained=trained), error, running.mean()


def _end_of_epoch(setup, state, data, key):
    """Keeps the members whose holdout error improved, and draws the next epoch's order."""

    def holdout_error(params, batch):
        batch = jax.tree.map(lambda x: x[None].repeat(setup.members, 0), batch)
        return _errors(setup, params, batch).mean(-1)

    batches = data_lib.gather(data, jnp.arange(setup.num_tasks), state.holdout)
    error = jax.vmap(holdout_error)(state.trained.params, batches)
    running = (state.stale < setup.patience)[:, None]
    better = (error < (1 - IMPROVEMENT) * state.best_error) & running
    take = lambda new, old: jnp.where(_like(better, new), new, old)
    return state.replace(
        best=jax.tree.map(take, state.trained.params, state.best),
        best_error=jnp.where(better, error, state.best_error),
        stale=jnp.where(better.any(-1), 0, state.stale + 1),
        order=jax.random.permutation(key, state.order, axis=-1, independent=True),
    )


def _like(flags, array):
    """Reshapes flags [N] or [N, K] to broadcast against array [N, K, ...]."""
    return flags.reshape(flags.shape + (1,) * (array.ndim - flags.ndim))
