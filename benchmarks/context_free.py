"""What an agent can earn that knows nothing of its task: point robots, by simulation.

    python -m benchmarks.context_free

Two numbers of the test tasks of a suite. How likely ten episodes of random actions (what CTMRL's
test begins with) show any reward; and what the best walk to one fixed place earns, whose place is
chosen on a grid with all goals known. It writes `benchmarks/results/context_free.json`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from gentle_jax import assembly, evaluation, registry
from gentle_jax.envs import plane

OUT = "benchmarks/results/context_free.json"
EPISODES, TRIALS = 10, 2000  # episodes of an exploration; explorations of each task
GRID = 61  # places in each coordinate of [-1, 1]^2


def walk_to(place):
    """Returns the policy that walks straight to a place [2], and stays."""
    return lambda obs, key, step: jnp.clip((place - obs) / plane.MAX_SPEED, -1.0, 1.0)


def returns_of(env, tasks, policy, keys):
    """Returns what an episode earns, and whether it shows any reward, each [task, key]."""

    def one(task, key):
        rows, mask = evaluation.rollout(env, task, policy, key)
        return evaluation.episode_return(rows, mask), (rows.context_reward > 0).any()

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(tasks, keys)


def measure(name, suite):
    """Returns the row of a family: numbers of its test tasks, normalized as in tables."""
    env = assembly.make_env(name, suite)
    tasks = jax.tree.map(lambda leaf: leaf[env.test_ids], env.tasks)
    uniform = lambda obs, key, step: evaluation.uniform_action(env, key)
    keys = jax.random.split(jax.random.key(0), EPISODES * TRIALS)
    random, seen = jax.jit(lambda k: returns_of(env, tasks, uniform, k))(keys)
    seen = np.asarray(seen).reshape(len(env.test_ids), TRIALS, EPISODES).any(-1)
    line = jnp.linspace(-1.0, 1.0, GRID)
    places = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    walk = lambda place: returns_of(env, tasks, walk_to(place), keys[:1])[0][:, 0]
    earned = np.asarray(jax.jit(lambda every: jax.lax.map(walk, every))(places))  # [place, task]
    best = earned.mean(1).argmax()
    floor, ceiling = np.asarray(random).mean(1), np.asarray(env.optimal_return(1))[env.test_ids]
    normalized = ((earned[best] - floor) / (ceiling - floor)).mean()
    return {
        "family": name,
        "suite": suite,
        "random_return": float(floor.mean()),
        "best_return": float(ceiling.mean()),
        "reward_seen": float(seen.mean()) if env.context_reward is not None else 1.0,
        "one_place_return": float(earned[best].mean()),
        "one_place_normalized": float(normalized),
        "place": [float(x) for x in places[best]],
    }


def main():
    """Prints a line for each suite whose robots begin at one place, and writes all."""
    if sys.argv[1:]:
        print(f"it takes no arguments, given {sys.argv[1]!r}", file=sys.stderr)
        return 2
    rows = []
    for name in ("point_robot", "sparse_point_robot"):
        for suite in registry.load("environment", name).SETTINGS:
            if suite == "gentle":  # its robots begin anywhere
                continue
            rows.append(measure(name, suite))
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    machine.write({**machine.describe(), "rows": rows}, OUT)


if __name__ == "__main__":
    sys.exit(main())
