"""Pieces that environments share: settings, splits, action scaling, what observations hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gentle_jax import errors
from gentle_jax.types import Action, Env, HostArray, Task, Transition

Ids = Int[HostArray, " _"]  # of any number
Split = tuple[Ids, Ids]  # (train ids, test ids)
DERIVE_CONSTANTS = ("release", "physical")
NOT_OF_DATA = ("reveal_task",)  # fields of an EnvConfig that change no stored data


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """What a task family may be asked for beside suite and physics.

    All but NOT_OF_DATA is part of a dataset's identity.

    `release` writes randomised parameters into the model and derives nothing from them, as the
    releases' environments do; `physical` derives what MuJoCo derives
    (docs/methods/environments.md, "Derived constants").
    """

    num_train: int = 0  # training tasks, evenly chosen from the suite's; 0 = all
    num_test: int = 0
    horizon: int = 0  # 0 = the suite's
    derive_constants: str = "release"
    contact_cost: bool = False  # Ant; MuJoCo 2.0 never filled the forces in ("Ant-Goal" there)
    reveal_task: bool = False  # observations end with the task's parameters (`reveal`)


def interpolation_split(num_train: int, num_test: int) -> Split:
    """Holds every gap-th task out (docs/methods/environments.md, "Splits")."""
    total, gap = num_train + num_test, int(num_train / num_test) + 1
    test = np.arange(0, total, gap) + gap // 2
    return np.setdiff1d(np.arange(total), test), test


def first_last_split(num_train: int, num_test: int, total: int) -> Split:
    """Trains on the first tasks, tests on the last (docs/methods/environments.md, "Splits")."""
    return np.arange(num_train), np.arange(total - num_test, total)


def shorten(env: Env, settings: EnvConfig) -> Env:
    """Returns `env` with the tasks and horizon that an EnvConfig asks for; UserError if too many.

    Tasks are chosen evenly along each split and keep their order; ids are counted anew.
    """
    kept, train, test = kept_tasks(env, settings)
    if settings.horizon:
        env = env._replace(horizon=settings.horizon)
        if env.optimal_return is not None:
            best = env.optimal_return
            env = env._replace(optimal_return=lambda samples: best(samples, settings.horizon))
    optimum = env.optimal_return
    if len(kept) == len(env.parameters):
        return env._replace(train_ids=train, test_ids=test)
    return env._replace(
        tasks=jax.tree.map(lambda leaf: leaf[kept], env.tasks),
        train_ids=np.searchsorted(kept, train),
        test_ids=np.searchsorted(kept, test),
        parameters=env.parameters[kept],
        landmarks=None if env.landmarks is None else env.landmarks[kept],
        optimal_return=None if optimum is None else lambda samples: optimum(samples)[kept],
    )


def with_tasks(env: Env, table: dict) -> Env:
    """Returns `env` with the tasks and split of a checked table (`task_tables`) for its suite's."""
    given = {name: np.asarray(leaf, np.float32) for name, leaf in table["leaves"].items()}
    count = len(next(iter(given.values())))
    same = {name: leaf[:1].repeat(count, 0) for name, leaf in env.tasks.items()}
    tasks = {name: given.get(name, leaf) for name, leaf in same.items()}
    train, test = (np.asarray(table[name], int) for name in ("train_ids", "test_ids"))
    shown = env.task_rules.shown(tasks)
    return env._replace(**{"tasks": tasks, "train_ids": train, "test_ids": test, **shown})


def kept_tasks(env: Env, settings: EnvConfig) -> tuple[Ids, Ids, Ids]:
    """Returns (task ids that `shorten` keeps, those to train on, those to test on), all sorted."""
    train = _evenly(env.train_ids, settings.num_train, "env.num_train", env)
    test = _evenly(env.test_ids, settings.num_test, "env.num_test", env)
    return np.union1d(train, test), train, test


def _evenly(ids, count, name, env):
    if count > len(ids):
        raise errors.UserError(
            f"{name} is {count}: {env.name} has {len(ids)} such tasks in suite {env.suite}; pass "
            f"0 for all of them, or fewer"
        )
    if not count or count == len(ids):
        return ids
    return ids[np.round(np.linspace(0, len(ids) - 1, count)).astype(int)]


def scale_action(action: Action, low: float, high: float) -> Action:
    """Maps [-1, 1] linearly to [low, high] and clips, as the releases' wrapper does."""
    return jnp.clip(low + (action + 1.0) * 0.5 * (high - low), low, high)


def normalize(env: Env, mean: Float[HostArray, " obs"], std: Float[HostArray, " obs"]) -> Env:
    """Returns `env` with observations (x - mean) / std at reset and step; rewards stay raw.

    `relabel` takes rows that are scaled like that.
    """

    def reset(task, key):
        state, obs = env.reset(task, key)
        return state, (obs - mean) / std

    def step(task, state, action):
        state, out = env.step(task, state, action)
        return state, out._replace(obs=(out.obs - mean) / std)

    def relabel(task, rows):
        raw = lambda obs: obs * std + mean
        return env.relabel(task, rows._replace(obs=raw(rows.obs), next_obs=raw(rows.next_obs)))

    relabel = None if env.relabel is None else relabel
    return env._replace(reset=reset, step=step, relabel=relabel)


def scaled_parameters(env: Env) -> Float[HostArray, "num_tasks P"]:
    """Returns all numbers of `env.tasks` that vary, z-scored over the training tasks.

    One that is constant in training but not in tests only loses its mean. `env.parameters`, which
    figures show, may say less.
    """
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(env.tasks))
    values = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)
    values = values[:, (values != values[:1]).any(0)]
    known = values[env.train_ids]
    spread = known.std(0)
    return np.float32((values - known.mean(0)) / np.where(spread > 1e-8, spread, 1.0))


def retold(task: Task, rows: Transition) -> Transition:
    """Returns rows whose observations tell `task`, where tasks are revealed; else the same rows."""
    if not isinstance(task, dict) or "revealed" not in task:
        return rows
    shown = task["revealed"]

    def retell(obs):
        kept = obs[..., : obs.shape[-1] - len(shown)]
        return jnp.concatenate([kept, jnp.broadcast_to(shown, (*obs.shape[:-1], len(shown)))], -1)

    return rows._replace(obs=retell(rows.obs), next_obs=retell(rows.next_obs))


def reveal(env: Env) -> Env:
    """Returns `env` with the task's `scaled_parameters` behind every observation.

    A task has them as its leaf "revealed". `relabel` takes rows that have them too.
    """
    shown = scaled_parameters(env)
    longer = lambda task, obs: jnp.concatenate([obs, task["revealed"]])

    def reset(task, key):
        state, obs = env.reset(task, key)
        return state, longer(task, obs)

    def step(task, state, action):
        state, out = env.step(task, state, action)
        return state, out._replace(obs=longer(task, out.obs))

    def relabel(task, rows):
        plain = lambda obs: obs[..., : env.obs_dim]
        return env.relabel(task, rows._replace(obs=plain(rows.obs), next_obs=plain(rows.next_obs)))

    return env._replace(
        obs_dim=env.obs_dim + shown.shape[1],
        tasks=env.tasks | {"revealed": shown},
        reset=reset,
        step=step,
        relabel=None if env.relabel is None else relabel,
    )
