"""The point in the plane that the three point-robot families share."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gentle_jax import rng
from gentle_jax.envs import base
from gentle_jax.types import Env, HostArray, Step, TaskLeaf, TaskRules, Transition

MAX_SPEED = 0.1  # distance per step and coordinate
LEAVES = {"goal": TaskLeaf(-100.0, 100.0), "wind": TaskLeaf(-1.0, 1.0)}


def half_circle(num_tasks: int) -> Float[HostArray, "num_tasks 2"]:
    """Returns goals, even on the upper unit half circle."""
    angle = np.linspace(0.0, np.pi, num_tasks)
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


def make(
    name: str,
    suite: str,
    goals: Float[HostArray, "num_tasks 2"],
    winds: Float[HostArray, "num_tasks 2"],
    split: base.Split,
    horizon: int,
    random_start: bool = False,
    sparse_radius: float = 0.0,
    differ_in: str = "goal",
) -> Env:
    """Returns an Env: s' = s + 0.1 a + wind, r = -|s' - goal|, a in [-1, 1]^2.

    Args: random_start, U(-1, 1)^2 at every reset instead of the origin; sparse_radius, if positive
    the context and reported rewards are 1 - d / radius within it and 0 outside; differ_in, the
    leaf that colours figures.
    """
    tasks = {"goal": goals.astype(np.float32), "wind": winds.astype(np.float32)}

    def reset(task, key):
        del task
        low = -1.0 if random_start else 0.0
        obs = jax.random.uniform(key, (2,), minval=low, maxval=-low)
        return obs, obs

    near = lambda reward: _near(reward, sparse_radius)

    def step(task, state, action):
        obs = state + base.scale_action(action, -MAX_SPEED, MAX_SPEED) + task["wind"]
        reward = _dense(task, obs)
        context_reward = near(reward) if sparse_radius > 0 else reward
        return obs, Step(obs, reward, context_reward, jnp.zeros(()))

    over_rows = jax.jit(jax.vmap(step, (None, 0, 0)))

    shown = _make_shown(reset, step, random_start, horizon, differ_in)
    return Env(
        name=name,
        suite=suite,
        obs_dim=2,
        action_dim=2,
        horizon=horizon,
        ends_early=False,
        max_reward=0.0,
        tasks=tasks,
        train_ids=split[0],
        test_ids=split[1],
        reset=reset,
        step=step,
        parameter_names=(f"{differ_in} x", f"{differ_in} y"),
        context_reward=near if sparse_radius > 0 else None,
        relabel=lambda task, rows: _dense(task, rows.next_obs),
        task_rules=TaskRules(
            {n: LEAVES[n] for n in dict.fromkeys(["goal", differ_in])}, shown, fit
        ),
        replay=lambda task, before, rows: over_rows(task, rows.obs, rows.action)[1],
        **shown(tasks),
    )


def _near(reward, radius):
    """The sparse reward, from the dense one."""
    return jnp.where(reward >= -radius, 1.0 + reward / max(radius, 1e-9), 0.0)


def _dense(task, position):
    """Minus the distance to the goal."""
    return -jnp.linalg.norm(position - task["goal"], axis=-1)


def fit(rows: Transition) -> dict[str, Float[HostArray, "2"]]:
    """Returns the goal and wind that rows [N, ...] of one task come from, by least squares.

    r^2 = |s' - g|^2 is linear in (g, |g|^2), and s' - s - 0.1 a is the wind.
    """
    after, reward = np.asarray(rows.next_obs, np.float64), np.asarray(rows.reward, np.float64)
    known = np.concatenate([-2.0 * after, np.ones((len(after), 1))], 1)
    solved = np.linalg.lstsq(known, reward**2 - (after**2).sum(-1), rcond=None)[0]
    wind = (after - rows.obs - MAX_SPEED * rows.action).mean(0)
    return {"goal": solved[:2], "wind": wind}


def _make_shown(reset, step, random_start, horizon, differ_in):
    """Returns shown(tasks): what of an Env follows from its tasks."""

    def shown(tasks):
        def optimal_return(num_samples, steps=horizon):
            keys = jax.random.split(rng.key(0), num_samples if random_start else 1)
            starts = jax.vmap(lambda k: reset(None, k)[0])(keys)
            return _best_returns(step, tasks, starts, steps)

        best = {"optimal_return": optimal_return}
        return best | {"parameters": tasks[differ_in], "landmarks": tasks["goal"]}

    return shown


def _best_returns(step, tasks, starts, horizon):
    """Returns [num_tasks]: the saturated controller per coordinate, best for any start."""

    def episode(task, start):
        def body(state, _):
            wanted = (task["goal"] - task["wind"] - state) / MAX_SPEED
            state, out = step(task, state, jnp.clip(wanted, -1.0, 1.0))
            return state, out.context_reward

        return jax.lax.scan(body, start, length=horizon)[1].sum()

    over_starts = jax.vmap(episode, (None, 0))
    return jax.jit(jax.vmap(lambda t: over_starts(t, starts).mean()))(tasks)
