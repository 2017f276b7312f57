"""How many misfits an import refuses, and how many good data it takes.

For every family: rows of random actions in C MuJoCo, good copies of them (as
they are, 64 bits, half precision, rounded) and misfits, each through the formats FOCAL, CORRO and
npz; and for every suite good copies of what `experiments.collect` writes at size smoke.
`python -m benchmarks.import_misfits [families]`, by hand: half an hour. It writes
`benchmarks/results/import_misfits.json`; exit code 1 if a verdict is wrong.
"""

import functools
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

import gentle_jax
from benchmarks import machine
from experiments import collect
from gentle_jax import assembly, errors, evaluation, interop, registry, rng, task_tables
from gentle_jax.envs import base
from gentle_jax.interop import agreement, npz, table
from gentle_jax.types import Transition

TASKS, HORIZON, EPISODES = (4, 2), 40, 8
OUT = "benchmarks/results/import_misfits.json"


def rows_of(env, seed=0):
    """Returns {field: [task, 1, episode, step, ...]} of random actions in every task."""
    uniform = functools.partial(evaluation.uniform_action, env)

    def episode(task, key):
        return evaluation.rollout(env, task, lambda obs, k, step: uniform(k), key)

    keys = jax.random.split(rng.key(seed), (len(env.parameters), 1, EPISODES))
    over = jax.vmap(jax.vmap(jax.vmap(episode, (None, 0)), (None, 0)))
    rows, mask = jax.device_get(jax.jit(over)(env.tasks, keys))
    there = lambda leaf: mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))
    fields = {name: leaf * there(leaf) for name, leaf in rows._asdict().items()}
    return fields | {"mask": np.array(mask)}


def changed(fields, **changes):
    """Returns a copy of fields with some of them changed by functions."""
    return {name: changes.get(name, np.copy)(values) for name, values in fields.items()}


def everywhere(change):
    """Returns a function of fields that changes all numbers but the mask."""
    return lambda fields: changed(fields, **dict.fromkeys(Transition._fields, change))


def rotated(fields):
    """Every task has the rows of another one."""
    return {name: np.roll(values, 1, 0) for name, values in fields.items()}


def two_tasks_swapped(fields):
    """The first task has the rows of the last one, and the other way round."""
    order = [len(fields["mask"]) - 1, *range(1, len(fields["mask"]) - 1), 0]
    return {name: values[order] for name, values in fields.items()}


def one_in_whole_numbers(fields):
    """The files of the first task hold whole numbers, those of others do not."""

    def first(values):
        values = values.copy()
        values[0] = np.trunc(values[0])
        return values

    return changed(fields, **dict.fromkeys(("obs", "action", "next_obs"), first))


def between(env):
    """Returns the Env with tasks half-way between its own, None where there is nothing between."""
    leaves = {}
    for name, leaf in env.tasks.items():
        leaves[name] = np.asarray(0.5 * (leaf + np.roll(leaf, 1, 0)), np.float32)
        rule = env.task_rules.leaves.get(name)
        if rule is not None and rule.unit:
            length = np.linalg.norm(leaves[name].reshape(len(leaf), -1), axis=1)
            if length.min() < 1e-3:
                return None
            leaves[name] = leaves[name] / length.reshape(-1, *[1] * (leaf.ndim - 1))
    return env._replace(tasks=leaves)


def shorter(fields):
    """Episodes of half their mean length at most, none of which has a true end."""
    lengths = fields["mask"].sum(-1)
    early = np.arange(fields["mask"].shape[-1]) < lengths[lengths > 0].mean() // 2
    return changed(fields, mask=lambda m: m * early, terminal=np.zeros_like)


GOOD = {
    "as it is": np.copy,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16).astype(np.float32),
    "three digits": lambda x: np.round(x, 3),
    "two digits": lambda x: np.round(x, 2),
}
MISFITS = {  # name -> (change of fields, part of the reasons that are right)
    "tasks swapped": (two_tasks_swapped, ("of task", "rewards differ", "next_obs differs")),
    "tasks rotated": (rotated, ("of task", "rewards differ", "next_obs differs")),
    "actions x 0.9": (lambda f: changed(f, action=lambda a: 0.9 * a), ("scaled", "times as far")),
    "actions x 0.5": (lambda f: changed(f, action=lambda a: a / 2), ("scaled", "times as far")),
    "rewards x 10": (lambda f: changed(f, reward=lambda r: 10 * r), ("10 times the", )),
    "rewards a row late": (
        lambda f: changed(f, reward=lambda r: np.roll(r, 1, -1)), ("rewards are shifted", )),
    "actions a row late": (
        lambda f: changed(f, action=lambda a: np.roll(a, 1, -2)), ("actions are shifted", )),
    "half the horizon": (shorter, ("longest episode has", "true end", "jump", "whole episodes")),
    "whole numbers": (
        lambda f: changed(f, obs=np.trunc), ("jump", "begin where", "follow one another")),
    "a task in whole numbers": (
        one_in_whole_numbers,
        ("jump", "begin where", "follow one another", "differ", "times as far")),
}  # fmt: skip
OTHER_TASKS = ("of task", "differ", "times", "scaled", "begin where no reset")


def through_focal(fields, folder, env):
    """Writes a FOCAL folder and reads it."""
    for task in range(len(fields["mask"])):
        below = folder / f"goal_idx{task}"
        below.mkdir()
        for episode, mask in enumerate(fields["mask"][task, 0]):
            count = int(mask.sum())
            rows = np.empty((count, 4), object)
            for column, name in enumerate(("obs", "action", "reward", "next_obs")):
                values = fields[name][task, 0, episode]
                for step in range(count):
                    rows[step, column] = values[step]
            if count:
                np.save(below / f"trj_evalsample{episode}_step100.npy", rows, allow_pickle=True)
    return interop.load("focal").read(folder, env, table.Options()).fields


def through_corro(fields, folder, env):
    """Writes a CORRO folder, episodes one after the other, and reads it."""
    files = {"obs": "obs", "actions": "action", "rewards": "reward", "next_obs": "next_obs"}
    for task in range(len(fields["mask"])):
        below, there = folder / f"seed_{task}_goal_x", fields["mask"][task, 0] > 0
        below.mkdir()
        for file, name in (files | {"terminals": "terminal"}).items():
            np.save(below / f"{file}.npy", fields[name][task, 0][there])
    return interop.load("corro").read(folder, env, table.Options()).fields


def through_npz(fields, folder, env):
    """Writes our own layout and reads it."""
    rows = []
    for task in range(len(fields["mask"])):
        there = fields["mask"][task, 0] > 0
        one = {name: fields[name][task, 0][there] for name in npz.ROWS}
        lengths = there.sum(-1)
        rows.append(one | {"length": lengths[lengths > 0]})
    gentle_jax.write_dataset(folder / "x", rows)
    return npz.read(folder / "x", env, table.Options()).fields


FORMATS = {"focal": through_focal, "corro": through_corro, "npz": through_npz}


def verdict(fields, env, form):
    """Returns (reason why the data are refused or "", seconds of the check)."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            read = FORMATS[form](fields, pathlib.Path(folder), env)
        except errors.UserError as error:
            return f"reader: {error}", 0.0
    begin = time.perf_counter()
    misfits = agreement.examine(read, lambda mode: env, ["one"])["misfits"]
    return misfits[0]["text"] if misfits else "", time.perf_counter() - begin


def small_env(name, suite):
    """Returns an Env of few tasks and, where that can be, short episodes."""
    module = registry.load("environment", name)
    sizes = TASKS if name != "cheetah_dir" else (0, 0)
    settings = base.EnvConfig(*sizes, horizon=HORIZON if len(module.PHYSICS) > 1 else 0)
    return assembly.make_env(name, suite, module.PHYSICS[-1], settings)


def collected(name, suite):
    """Returns (fields [task, 1, episode, ...], Env) of what `collect` writes at size smoke."""
    config = assembly.make_config("focal", "smoke", env=name, suite=suite)
    with tempfile.TemporaryDirectory() as folder:
        fields, _, _ = collect.ensure(config, folder)
        fields = {k: np.concatenate(np.split(v, v.shape[1], 1), 2) for k, v in fields.items()}
    return fields, assembly.env_of(config)


def of_family(name, tell):
    """Tells (what, whether the verdict is right, reason, where) of a family; returns seconds."""
    suites, longest = list(registry.load("environment", name).SETTINGS), 0.0
    for suite in suites:
        fields, env = collected(name, suite)
        for form in FORMATS:
            for case, change in GOOD.items():
                reason, _ = verdict(everywhere(change)(fields), env, form)
                tell("good, collected", not reason, reason, (name, suite, form, case))
    env = small_env(name, suites[0])
    fields = rows_of(env)
    cases = {case: (change(fields), right) for case, (change, right) in MISFITS.items()}
    if between(env) is not None:
        cases["tasks between"] = rows_of(between(env)), OTHER_TASKS
    for suite in suites[1:]:
        other = small_env(name, suite)
        if not task_tables.same(*map(task_tables.of_env, (env, other))):
            cases[f"suite {suite}"] = rows_of(other), OTHER_TASKS
    coarse = everywhere(GOOD["three digits"])  # rounding must not explain everything
    for case in ("actions x 0.5", "tasks between"):
        if case in cases and len(registry.load("environment", name).PHYSICS) > 1:
            cases[f"{case}, three digits"] = coarse(cases[case][0]), cases[case][1]
    for form in FORMATS:
        for case, change in GOOD.items():
            reason, seconds = verdict(everywhere(change)(fields), env, form)
            longest = max(longest, seconds)
            tell("good", not reason, reason, (name, form, case))
        for case, (wrong, right) in cases.items():
            reason, _ = verdict(wrong, env, form)
            tell("misfit refused", bool(reason), "taken", (name, form, case))
            fits = any(part in reason for part in right)
            tell("for the right reason", fits, reason, (name, form, case))
    return longest


def main():
    """Prints a line for whatever goes wrong, and the counts; returns 1 if anything did."""
    counts, wrong, longest = {}, [], 0.0
    families = sys.argv[1:] or registry.ENVIRONMENTS
    for name in families:
        longest = max(longest, of_family(name, functools.partial(count, counts, wrong)))
        print(f"{name}: {counts}", flush=True)
    for what, (good, of) in counts.items():
        print(f"{what}: {good} of {of}")
    print(f"longest check of good data: {longest:.1f} s")
    report = {"families": list(families), "counts": counts, "wrong": wrong}
    machine.write({**machine.describe(), **report}, OUT)
    return int(any(good < of for good, of in counts.values()))


def count(counts, wrong, what, good, reason, where):
    """Counts one verdict, and prints and keeps a bad one."""
    before = counts.get(what, (0, 0))
    counts[what] = before[0] + bool(good), before[1] + 1
    if not good:
        wrong.append(f"not {what}: {' '.join(where)}: {reason[-200:]}")
        print(wrong[-1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
