"""Does behaviour SAC learn on a CPU? Cheetah-Dir, preset `quick`, both tasks.

    python -m benchmarks.behaviour_sac

Makes the data in a temporary folder and compares the last agents' deterministic returns with the
distance that uniform random actions cover: sums over 200 steps of the speed (m/s), so a return of
200 is a mean speed of 1 m/s without control costs.
"""

import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import machine
from experiments import collect
from experiments.host import computer as product
from gentle_jax import assembly, evaluation
from gentle_jax import config as config_lib

FACTOR = 5  # returns must exceed as many times the random distance


def make_config(steps, levels):
    """Returns the ExperimentConfig: preset `quick`, levels evenly along `steps`."""
    sizes = {
        "behaviour.num_steps": steps,
        "behaviour.first_level": steps // levels,
        "behaviour.level_every": steps // levels,
        "behaviour.num_levels": levels,
        "behaviour.episodes_per_level": 10,
    }
    names = {"suite": "gentle", "env": "cheetah_dir", "physics": "fast"}
    return assembly.make_config("gentle", "quick", sizes, **names)


def random_distance(env, episodes=32):
    """Returns the mean |sum of speeds| (m/s) of episodes of uniform random actions."""
    policy = lambda obs, key, index: evaluation.uniform_action(env, key)
    task = jax.tree.map(lambda leaf: leaf[0], env.tasks)

    def one(key):
        rows, _ = evaluation.rollout(env, task, policy, key)
        return jnp.abs(rows.next_obs[-1, -3] - rows.obs[0, -3])  # the torso's x is observed

    keys = jax.random.split(jax.random.key(0), episodes)
    return float(jax.jit(jax.vmap(one))(keys).mean() / env.system.dt)


def measure(steps, levels):
    """Returns the report: returns per level and task, the random distance, seconds."""
    config = make_config(steps, levels)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        _, meta, _ = collect.ensure(config, folder)
    seconds = time.perf_counter() - begin
    distance = random_distance(assembly.env_of(config))
    last = meta["expert_return"][-1]
    return {
        **machine.describe(),
        "config": config_lib.to_dict(config)["behaviour"],
        "physics": config.run.physics,
        "levels": meta["levels"],
        "deterministic_return": meta["expert_return"],  # [level][task]
        "sampled_return": meta["behaviour_return"],
        "random_distance": distance,
        "times_the_random_distance": [score / distance for score in last],
        "learned": bool(np.min(last) > FACTOR * distance),
        "seconds": seconds,
    }


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    define(flags.DEFINE_integer, "steps", 240_000, "environment steps of each task")
    define(flags.DEFINE_integer, "levels", 6, "levels whose returns are written")
    define(flags.DEFINE_string, "out", "benchmarks/results/behaviour_sac.json", "file to write")
    return values


def run(args):
    """Measures, prints the verdict, writes the JSON file."""
    machine.check_writable(args.out)
    report = measure(args.steps, args.levels)
    times = ", ".join(f"{value:.0f}" for value in report["times_the_random_distance"])
    print(f"{times} times the random distance, bar {FACTOR}; {report['seconds']:.0f} s")
    machine.write(report, args.out)


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    product.start()
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
