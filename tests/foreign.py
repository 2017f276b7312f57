"""Makes folders as other projects write them, and reads them; for tests of `interop`."""

import os

import numpy as np
import pytest

from gentle_jax import errors, interop, registry
from gentle_jax.interop import table


def make_env(env="point_robot", suite="gentle"):
    return registry.load("environment", env).make(suite)


def episode(env, task, rng, length=None):
    """Returns {column: float64 [T, ...]} of random actions in a point robot's task.

    It begins where the suite's episodes do: anywhere in `gentle`, else in the middle.
    """
    length, far = length or env.horizon, 1.0 if env.suite == "gentle" else 0.0
    action = rng.uniform(-1.0, 1.0, (length, 2))
    steps = 0.1 * action + env.tasks["wind"][task]
    path = np.concatenate([rng.uniform(-far, far, (1, 2)), steps]).cumsum(0)
    reward = -np.linalg.norm(path[1:] - env.tasks["goal"][task], axis=-1)
    return {"obs": path[:-1], "action": action, "reward": reward, "next_obs": path[1:]}


def object_rows(columns, reward=float):
    """Returns the object array [T, 4] of an episode, as rlkit's collectors store it."""
    rows = np.empty((len(columns["reward"]), 4), object)
    for t in range(len(rows)):
        rows[t, 0], rows[t, 1] = columns["obs"][t], columns["action"][t]
        rows[t, 2], rows[t, 3] = reward(columns["reward"][t]), columns["next_obs"][t]
    return rows


def name(number, step, kind="sampled"):
    return f"trj_eval{'sample' if kind == 'sampled' else ''}{number}_step{step}.npy"


def focal(folder, env, steps=(1000, 2000), episodes=3, lengths=None, kind="sampled", seed=0):
    """Writes a FOCAL folder; lengths, {(task, step, number): T} of short episodes.

    Returns {(task, step, number): columns}.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for task in range(len(env.parameters)):
        below = folder / f"goal_idx{task}"
        below.mkdir(parents=True, exist_ok=True)
        (below / "actor_step2000.pkl").write_bytes(b"not for us")
        (below / "eval0.csv").write_text("step,return\n")
        for step in steps:
            for number in range(episodes):
                length = (lengths or {}).get((task, step, number))
                columns = episode(env, task, rng, length)
                made[task, step, number] = columns
                path = below / name(number, step, kind)
                np.save(path, object_rows(columns), allow_pickle=True)
    return made


def corro(folder, env, episodes=2, seed=0):
    """Writes a CORRO folder; returns a list of {column: [rows, ...]}, one a task."""
    rng, made = np.random.default_rng(seed), []
    for task in range(len(env.parameters)):
        parts = [episode(env, task, rng) for _ in range(episodes)]
        columns = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        goal = "_".join(str(round(float(value), 3)) for value in env.parameters[task])
        below = folder / "data" / f"seed_{task}_goal_{goal}"
        below.mkdir(parents=True)
        ends = np.tile(np.arange(env.horizon) == env.horizon - 1, episodes)
        np.save(below / "obs.npy", columns["obs"])
        np.save(below / "actions.npy", columns["action"])
        np.save(below / "rewards.npy", columns["reward"][:, None])
        np.save(below / "next_obs.npy", columns["next_obs"])
        np.save(below / "terminals.npy", ends.astype(np.float64)[:, None])
        made.append(columns)
    return made


class Evil:
    """What a hostile file holds: unpickling it makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def read(folder, env, format="focal", **options):
    return interop.load(format).read(folder, env, table.Options(**options))


def refused(call):
    """Returns the message of the UserError that `call` raises: one line."""
    with pytest.raises(errors.UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
