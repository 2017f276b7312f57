"""The point in the plane that the three point-robot families share."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gentle_jax import rng
from gentle_jax.envs import base
from gentle_jax.types import Env, HostArray, Step

MAX_SPEED = 0.1  # distance per step and coordinate


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
    colour: tuple | None = None,
) -> Env:
    """Returns an Env: s' = s + 0.1 a + wind, r = -|s' - goal|, a in [-1, 1]^2.

    Args: random_start, U(-1, 1)^2 at every reset instead of the origin; sparse_radius, if positive
    the context and reported rewards are 1 - d / radius within it and 0 outside; colour, (values
    [num_tasks, P], names).
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

    def optimal_return(num_samples, steps=horizon):
        keys = jax.random.split(rng.key(0), num_samples if random_start else 1)
        starts = jax.vmap(lambda k: reset(None, k)[0])(keys)
        return _best_returns(step, tasks, starts, steps)

    parameters, names = colour if colour is not None else (goals, ("goal x", "goal y"))
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
        parameters=np.asarray(parameters, np.float32),
        parameter_names=tuple(names),
        landmarks=goals.astype(np.float32),
        optimal_return=optimal_return,
        context_reward=near if sparse_radius > 0 else None,
        relabel=lambda task, rows: _dense(task, rows.next_obs),
    )


def _near(reward, radius):
    """The sparse reward, from the dense one."""
    return jnp.where(reward >= -radius, 1.0 + reward / max(radius, 1e-9), 0.0)


def _dense(task, position):
    """Minus the distance to the goal."""
    return -jnp.linalg.norm(position - task["goal"], axis=-1)


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
