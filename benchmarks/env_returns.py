"""How far returns and observations move between `reference` and `fast` physics, same policy.

Two policies per family: the same uniform random actions in both modes, and a fixed random
a = tanh(W obs), W ~ N(0, 1 / obs_dim), which reacts to what it sees; with `trained`, also agents of
two tasks that SAC trained in `fast`, with their sampled actions. Starts, noise and tasks are the
same in both modes, so differences are paired.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import assembly, behaviour, evaluation, registry, sweep
from gentle_jax.envs import base
from gentle_jax.physics import MJX_MODES as MODES

AT = (1, 10, 50)  # steps after which observations are compared
POLICIES = ("random_actions", "linear_tanh")
COLUMNS = {
    "family": ("family", "{}", 1),
    "policy": ("policy", "{}", 1),
    **{mode: (f"{mode}_mean", "{:.2f}", 1) for mode in MODES},
    "+-": ("reference_error", "{:.2f}", 1),
    "fast - reference": ("difference_mean", "{:.2f}", 1),
    "+- ": ("difference_error", "{:.2f}", 1),
    **{f"|obs| at {step}": (f"obs_difference_{step}", "{:.2g}", 1) for step in AT},
}


def episodes_of(env, count):
    """Returns (returns [2, count], obs [2, count, H, obs_dim], mask [2, count, H]), per policy."""
    weights = jax.random.normal(jax.random.key(1), (env.obs_dim, env.action_dim))
    weights = weights / jnp.sqrt(env.obs_dim)

    def one(task, key, reacts):
        def policy(obs, k, index):
            uniform = evaluation.uniform_action(env, k)
            return jnp.where(reacts, jnp.tanh(obs @ weights), uniform)

        rows, mask = evaluation.rollout(env, task, policy, key)
        return evaluation.episode_return(rows, mask), rows.next_obs, mask

    num_tasks = jax.tree.leaves(env.tasks)[0].shape[0]
    ids = np.tile(np.linspace(0, num_tasks - 1, count).round().astype(int), 2)
    tasks = jax.tree.map(lambda leaf: leaf[ids], env.tasks)
    keys = jax.random.split(jax.random.key(0), count)
    keys, reacts = jnp.concatenate([keys, keys]), np.repeat([False, True], count)
    mesh = sweep.make_mesh(2 * count)
    over = sweep.over_runs(one, 3, mesh, in_turn=False)
    episodes = jax.jit(over)(*(sweep.place(tree, mesh) for tree in (tasks, keys, reacts)))
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(2, count, *leaf.shape[1:]), episodes)


def mean_and_error(values):
    """Returns (mean, standard error of it) of values [E]."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def suite_of(family):
    """Returns the first suite that a family is in."""
    return next(iter(registry.load("environment", family).SETTINGS))


def compare(family, count, horizon=0):
    """Returns a row per policy. Args: count, episodes; horizon, 0 = the suite's."""
    episodes = {}
    for mode in MODES:
        settings = base.EnvConfig(horizon=horizon)
        env = assembly.make_env(family, suite_of(family), mode, settings)
        episodes[mode] = episodes_of(env, count)
    rows = []
    for number, policy in enumerate(POLICIES):
        of_task = [[part[number] for part in episodes[mode]] for mode in MODES]
        rows.append(
            {"kind": "returns", "family": family, "policy": policy, "episodes": count}
            | {"horizon": env.horizon}
            | row_of(*of_task)
        )
    return rows


def trained(family, steps, count, horizon=0):
    """Returns the row of agents that SAC trained in `fast` physics, at the size of preset `quick`.

    Args: steps, environment steps of each of two tasks; count, episodes of each; horizon, 0
    = the suite's.
    """
    sizes = {"env.num_train": 1, "env.num_test": 1, "env.horizon": horizon}
    algorithm = next(iter(registry.ALGORITHMS))  # the data depend on none
    names = {"env": family, "suite": suite_of(family)}
    config = assembly.make_config(algorithm, "quick", sizes, **names)
    levels = {"num_steps": steps, "first_level": steps, "num_levels": 1}
    settings = dataclasses.replace(config.behaviour, episodes_per_level=count, **levels)
    episodes = {}
    for mode in reversed(MODES):  # `fast` first: it trains
        filled = dataclasses.replace(config.run, physics=mode)
        env = assembly.env_of(dataclasses.replace(config, run=filled))
        mesh = sweep.make_mesh(2)
        collector = behaviour.make(env, settings, mesh)
        whose = (env.tasks, behaviour.task_keys(settings, 2))
        whose = tuple(sweep.place(tree, mesh) for tree in whose)
        if not episodes:
            state = jax.jit(collector.init)(*whose)
            state, _ = jax.jit(collector.advance, donate_argnums=2)(*whose, state, 0, steps)
        fields = jax.device_get(jax.jit(collector.episodes)(*whose, state, steps)[0])
        rewards = (fields["context_reward"] * fields["mask"]).sum(-1)
        join = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])  # both tasks' episodes
        episodes[mode] = [join(x) for x in (rewards, fields["next_obs"], fields["mask"])]
    names = {"policy": f"SAC, {steps} steps", "episodes": 2 * count, "horizon": env.horizon}
    rows = row_of(*(episodes[mode] for mode in MODES))
    return {"kind": "returns", "family": family} | names | rows


def row_of(reference, fast):
    """Returns the numbers of a row from (returns [E], obs [E, H, obs_dim], mask [E, H]) of both.

    Observations are compared where both episodes go on; None where none does.
    """
    row = {}
    pairs = (("reference", reference[0]), ("fast", fast[0]), ("difference", fast[0] - reference[0]))
    for name, values in pairs:
        row[f"{name}_mean"], row[f"{name}_error"] = mean_and_error(values)
    apart, both = np.abs(fast[1] - reference[1]).mean(-1), (reference[2] * fast[2]) > 0
    for step in AT:
        seen = apart[both[:, step - 1], step - 1] if step <= both.shape[1] else np.empty(0)
        row[f"obs_difference_{step}"] = float(seen.mean()) if len(seen) else None
    return row
