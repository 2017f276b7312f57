"""Task families as Gymnasium environments: one task, or all of them side by side (extra `gym`).

    env = gentle_jax.gymnasium.make("point_robot", suite="ctmrl", task=3)
    envs = gentle_jax.gymnasium.make_vector("point_robot", suite="ctmrl", tasks=range(8))

Steps are those that training and tests take, one compiled program each. The reward is the one that
tests report, which is sparse where a family's contexts are; `info["dense_reward"]` is the other. An
episode that reaches the horizon is truncated, not terminated.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from gentle_jax import config as config_lib
from gentle_jax import errors, registry, rng
from gentle_jax.envs import base
from gentle_jax.types import Env

HIGHEST_SEED = 2**31


def spaces_of(env: Env) -> tuple[spaces.Box, spaces.Box]:
    """Returns (observation space, action space) of one task."""
    return (
        spaces.Box(-np.inf, np.inf, (env.obs_dim,), np.float32),
        spaces.Box(-1.0, 1.0, (env.action_dim,), np.float32),
    )


def family(name: str, suite: str, physics: str, settings: base.EnvConfig | None) -> Env:
    """Returns the Env; physics, "" for the last mode of the family that the device has."""
    modes = registry.load("environment", name).PHYSICS
    physics = physics or config_lib.usable_physics(modes)[-1]
    return config_lib.make_env(name, suite, physics, settings or base.EnvConfig())


def check_task(env: Env, task: Any) -> int:
    """Returns a task's id; raises UserError for one that the family has not."""
    whole = isinstance(task, int | np.integer)
    if not (whole and 0 <= task < len(env.parameters)):
        raise errors.UserError(
            f"task is {task!r}: expected 0 to {len(env.parameters) - 1}, the tasks of {env.name} "
            f"in suite {env.suite}"
        )
    return int(task)


def checked(action: Any, space: spaces.Box) -> np.ndarray:
    """Returns actions as an array; raises UserError for another shape than the space's."""
    action = np.asarray(action, np.float32)
    if action.shape != space.shape:
        raise errors.UserError(
            f"action has shape {list(action.shape)}: expected {list(space.shape)}"
        )
    return action


def check_options(options: dict | None, known: Sequence[str]) -> dict:
    """Returns the options of a reset; raises UserError for unknown ones."""
    options = options or {}
    for name in options:
        if name not in known:
            raise errors.unknown("option of reset", name, known)
    return options


def make(
    name: str,
    suite: str = "ctmrl",
    task: int = 0,
    physics: str = "",
    settings: base.EnvConfig | None = None,
) -> "TaskEnv":
    """Returns one task as a `gymnasium.Env`. Raises UserError for what does not exist."""
    return TaskEnv(family(name, suite, physics, settings), task)


def make_vector(
    name: str,
    suite: str = "ctmrl",
    tasks: Sequence[int] | None = None,
    physics: str = "",
    settings: base.EnvConfig | None = None,
) -> "TasksEnv":
    """Returns tasks side by side as a `gymnasium.vector.VectorEnv`; default: all of the family."""
    env = family(name, suite, physics, settings)
    return TasksEnv(env, range(len(env.parameters)) if tasks is None else tasks)


class TaskEnv(gymnasium.Env):
    """One task; `reset(options={"task": k})` chooses another one of the family."""

    metadata = {"render_modes": []}  # noqa: RUF012 Gymnasium's own form

    def __init__(self, env: Env, task: int = 0) -> None:
        self.family, self.task = env, check_task(env, task)
        self.observation_space, self.action_space = spaces_of(env)
        self._reset, self._step = jax.jit(env.reset), jax.jit(env.step)
        self._state, self._steps = None, 0

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begins an episode; returns (observation, {"task", "parameters"})."""
        super().reset(seed=seed)
        chosen = check_options(options, ("task",)).get("task", self.task)
        self.task = check_task(self.family, chosen)
        key = rng.key(int(self.np_random.integers(HIGHEST_SEED)))
        self._state, obs = self._reset(_leaves(self.family, self.task), key)
        self._steps = 0
        parameters = np.copy(self.family.parameters[self.task])  # the user's to change
        return np.array(obs), {"task": self.task, "parameters": parameters}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Takes a step; returns (observation, reward, terminated, truncated, info)."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        action = checked(action, self.action_space)
        self._state, out = self._step(_leaves(self.family, self.task), self._state, action)
        self._steps += 1
        terminated = bool(out.terminal > 0)
        truncated = not terminated and self._steps >= self.family.horizon
        info = {"dense_reward": float(out.reward)}
        return np.array(out.obs), float(out.context_reward), terminated, truncated, info


class TasksEnv(gymnasium.vector.VectorEnv):
    """Several tasks, a copy each; one that has ended begins anew at the next step."""

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, env: Env, tasks: Sequence[int]) -> None:
        self.family, self.tasks = env, np.array([check_task(env, task) for task in tasks])
        if not len(self.tasks):
            raise errors.UserError("tasks is empty: expected one at least")
        self.num_envs = len(self.tasks)
        one = spaces_of(env)
        self.single_observation_space, self.single_action_space = one
        self.observation_space, self.action_space = (
            gymnasium.vector.utils.batch_space(space, self.num_envs) for space in one
        )
        self._leaves = _leaves(env, self.tasks)
        self._reset = jax.jit(jax.vmap(env.reset))
        self._step = jax.jit(jax.vmap(_step_or_reset(env)))
        self._state, self._steps, self._over = None, None, None

    def _keys(self):
        """Returns new keys [tasks]."""
        return jax.random.split(rng.key(int(self.np_random.integers(HIGHEST_SEED))), self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[np.ndarray, dict]:
        """Begins an episode of every task; returns (observations [tasks, ...], infos)."""
        super().reset(seed=seed, options=options)
        check_options(options, ())
        self._state, obs = self._reset(self._leaves, self._keys())
        self._steps = jnp.zeros(self.num_envs, jnp.int32)
        self._over = jnp.zeros(self.num_envs, bool)
        return np.array(obs), {"task": self.tasks.copy(), "parameters": self._parameters()}

    def _parameters(self):
        """Returns the parameters of the tasks [tasks, P]."""
        return np.asarray(self.family.parameters)[self.tasks]

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Takes a step in every task; returns arrays [tasks, ...] of what `TaskEnv.step` does."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        actions = checked(actions, self.action_space)
        self._state, out, self._steps, ended = self._step(
            self._leaves, self._state, actions, self._keys(), self._steps, self._over
        )
        terminated = np.array(ended)
        truncated = ~terminated & (np.asarray(self._steps) >= self.family.horizon)
        self._over = terminated | truncated
        info = {"dense_reward": np.array(out.reward)}
        return np.array(out.obs), np.array(out.context_reward), terminated, truncated, info


def _leaves(env, task):
    """Returns the leaves of a task, or of several."""
    return jax.tree.map(lambda leaf: leaf[task], env.tasks)


def _step_or_reset(env):
    """Returns step(task, state, action, key, steps, over) of one task, which begins anew if over.

    It returns (state, Step, steps, whether the episode has truly ended); a reset rewards nothing.
    """

    def step(task, state, action, key, steps, over):
        after, out = env.step(task, state, action)
        fresh, obs = env.reset(task, key)
        choose = lambda a, b: jax.tree.map(lambda x, y: jnp.where(over, x, y), a, b)
        zero = jnp.zeros_like
        begun = out._replace(
            obs=obs, reward=zero(out.reward), context_reward=zero(out.context_reward),
            terminal=zero(out.terminal),
        )  # fmt: skip
        out = choose(begun, out)
        return choose(fresh, after), out, jnp.where(over, 0, steps + 1), out.terminal > 0

    return step
