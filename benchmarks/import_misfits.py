"""How many misfits an import refuses, and how many good data it takes.

For every family: rows of random actions from C MuJoCo (`Env.replay`), good copies of them (as
they are, 64 bits, half precision, rounded) and misfits, each through the formats FOCAL, CORRO and
npz. `python -m benchmarks.import_misfits [families]`, by hand: some minutes. It writes
`benchmarks/results/import_misfits.json`; exit code 1 if a verdict is wrong.
"""

import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

import gentle_jax
from benchmarks import machine
from gentle_jax import assembly, errors, interop, registry
from gentle_jax.envs import base
from gentle_jax.interop import agreement, npz, table
from gentle_jax.types import Transition

TASKS, HORIZON, EPISODES = (4, 2), 40, 8
OUT = "benchmarks/results/import_misfits.json"


def rows_of(env, seed=0):
    """Returns {field: [task, 1, episode, step, ...]} of random actions in every task."""
    fields, starts = table.empty(env, 1, EPISODES), agreement.resets(env)
    random = np.random.default_rng(seed)
    for task in range(len(env.parameters)):
        one = jax.tree.map(lambda leaf, task=task: leaf[task], env.tasks)
        obs = starts[task * EPISODES : (task + 1) * EPISODES]
        action = np.zeros((EPISODES, env.action_dim), np.float32)
        before = Transition(np.full_like(obs, np.nan), action, None, None, None, None)
        alive, known = np.ones(EPISODES, bool), np.ones(EPISODES, bool)
        for step in range(env.horizon):
            action = random.uniform(-1.0, 1.0, action.shape).astype(np.float32)
            rows = before._replace(obs=obs, action=action)
            out = env.replay(one, before, rows)
            known &= np.isfinite(np.asarray(out.reward)) | ~alive  # else no observation says it
            alive &= known
            values = {"obs": obs, "action": action, "reward": out.reward, "next_obs": out.obs}
            for name, each in (values | {"terminal": out.terminal}).items():
                fields[name][task, 0, alive, step] = np.asarray(each)[alive]
            fields["mask"][task, 0, alive, step] = 1.0
            alive &= np.asarray(out.terminal) == 0
            before, obs = rows, np.asarray(out.obs)
        fields["mask"][task, 0, ~known] = 0.0
    fields["context_reward"][:] = table.context_reward(fields["reward"], env) * fields["mask"]
    return fields


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


def shorter(fields):
    """Episodes of half the horizon, none of which has a true end."""
    early = np.arange(fields["mask"].shape[-1]) < fields["mask"].shape[-1] // 2
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
}  # fmt: skip


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


def main():
    """Prints a line for whatever goes wrong, and the counts; returns 1 if anything did."""
    counts, longest, wrong = {}, 0.0, []
    families = sys.argv[1:] or registry.ENVIRONMENTS
    for name in families:
        module = registry.load("environment", name)
        suite = next(iter(module.SETTINGS))
        sizes = TASKS if name != "cheetah_dir" else (0, 0)
        settings = base.EnvConfig(*sizes, horizon=HORIZON if len(module.PHYSICS) > 1 else 0)
        env = assembly.make_env(name, suite, module.PHYSICS[0], settings)
        fields = rows_of(env)
        for form in FORMATS:
            for case, change in GOOD.items():
                reason, seconds = verdict(everywhere(change)(fields), env, form)
                longest = max(longest, seconds)
                count(counts, wrong, "good", not reason, reason, (name, form, case))
            for case, (change, right) in MISFITS.items():
                reason, _ = verdict(change(fields), env, form)
                where = (name, form, case)
                count(counts, wrong, "misfit refused", bool(reason), "taken", where)
                fits = any(part in reason for part in right)
                count(counts, wrong, "for the right reason", fits, reason, where)
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
