"""Tests a trained run again: `python -m experiments.evaluate --run=RUN_FOLDER --tasks=FILE`.

On other tasks, by other protocols, over more episodes. The result is a file in the folder
`evaluations` of the run, which `report --run` shows too.
"""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from gentle_jax import (
    agents,
    assembly,
    errors,
    evaluation,
    json_files,
    needs,
    registry,
    rng,
    storage,
    task_tables,
)
from gentle_jax import config as config_lib
from gentle_jax import sweep as sweep_lib
from gentle_jax.types import Cost

from .cli.command import Command, start
from .host import computer
from .runs import code_identity, npz_files, outputs, remote, snapshot
from .show import tables

SUMMARY = "Tests a trained run again: other tasks, other protocols, more episodes."
FOLDER = "evaluations"
EXTRA = (
    ("run", str, "", "the run folder"),
    ("episodes", int, None, "the test budget in episodes of full length; default: the run's own"),
    ("step", int, None, "training steps behind a checkpoint; default: the newest"),
)


class Chosen(NamedTuple):
    """What is evaluated."""

    config: config_lib.ExperimentConfig  # of the run
    points: tuple  # its grid points
    budget: config_lib.EvalConfig
    protocols: tuple  # names
    table: dict | None  # of other tasks, None: the run's own


def choose(config, points, asked):
    """Returns the Chosen. Args: asked, {"protocol", "tasks", "episodes"} of the command line.

    Raises UserError for what cannot be tested.
    """
    run, table = config.run, None
    protocols = tuple(dict.fromkeys(asked["protocol"])) or run.protocols
    needs.check(protocols, run.algorithm, run.env)
    if asked["tasks"]:
        if config.env.reveal_task:
            raise errors.UserError(
                "this run's agents are told their task in units of its own tasks: leave --tasks out"
            )
        suite = config_lib.make_env(run.env, run.suite, run.physics, type(config.env)(), None)
        table = task_tables.read(pathlib.Path(asked["tasks"]), suite, needed=())
        if not asked["protocol"]:
            protocols = tuple(name for name in protocols if not snapshot.reading([name]))
        if not protocols or snapshot.reading(protocols):
            able = [n for n in needs.able(run.algorithm, run.env) if not snapshot.reading([n])]
            named = snapshot.reading(asked["protocol"] or run.protocols)[0]
            raise errors.UserError(
                f"{named} reads stored data, and there are none "
                f"of other tasks: with --tasks pass --protocol, one of {', '.join(able)}"
            )
    if asked["episodes"] is not None and asked["episodes"] < 1:
        raise errors.UserError(f"--episodes is {asked['episodes']}: expected 1 or more")
    return Chosen(config, points, _budget(config, asked["episodes"]), protocols, table)


def _budget(config, episodes):
    """Returns the EvalConfig with a budget of so many episodes; None: the run's own."""
    if episodes is None:
        return config.eval
    steps = episodes * assembly.env_of(config).horizon
    return dataclasses.replace(config.eval, online_steps=steps, scored_steps=steps)


def prepare(folder, chosen, step, root):
    """Returns the Restored run, with the chosen tasks. Args: root, as `--data`."""
    restored = snapshot.restore(folder, chosen.protocols, root, step)
    if chosen.table is None:
        return restored
    all_of_them = dataclasses.replace(chosen.config.env, num_train=0, num_test=0)
    other = dataclasses.replace(chosen.config, tasks=chosen.table, env=all_of_them)
    env = assembly.env_as_seen(other, restored.scale)
    count = len(assembly.task_order(env))
    return restored._replace(env=env, offline=snapshot.blank(restored.sweep.data, count))


def test(restored, chosen):
    """Returns ({protocol: returns [S, task, E]}, {protocol: Cost of such arrays}), host arrays.

    Keys are those of the run's own evaluation after as many steps.
    """
    sweep, env, budget = restored.sweep, restored.env, chosen.budget
    protocols = {
        name: registry.load("protocol", name).make(budget, env) for name in chosen.protocols
    }
    needs.check_built(protocols, chosen.config.run.algorithm, env, sweep.algorithm.rep)
    evaluate = evaluation.make_evaluate(sweep.algorithm, env, protocols, budget.num_repeats)
    order = assembly.task_order(env)
    tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[order], env.tasks)
    over_runs = jax.jit(sweep_lib.over_runs(evaluate, 2))
    keys = sweep.run_keys[: sweep.runs]
    try:
        scores = over_runs(restored.state, keys, tasks, restored.offline, np.int32(restored.done))
        scores = jax.tree.map(np.asarray, scores)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise errors.UserError(
            f"a budget of {budget.scored_steps} steps needs more memory than there is: lower "
            f"--episodes, or test fewer --tasks"
        ) from None
    returns = {name: scores[name].returns for name in chosen.protocols}
    return returns, {name: scores[name].cost for name in chosen.protocols}


def bounds(folder, restored, chosen):
    """Returns {"random_return", "reference_return"} [task id]; NaN where there is no reference.

    The run's own are in its files; of other tasks the random policy's return is measured.
    """
    if chosen.table is None and (folder / "returns.npz").exists():
        with np.load(folder / "returns.npz", allow_pickle=False) as kept:
            return {name: kept[name] for name in ("random_return", "reference_return")}
    key = rng.stream(rng.key(0), "evaluate")
    random = evaluation.random_returns(restored.env, chosen.config.eval.random_episodes, key)
    optimum = restored.env.optimal_return
    best = np.full(len(random), np.nan) if optimum is None else optimum(1000)
    return {"random_return": random, "reference_return": best}


def arrays_of(restored, chosen, returns, costs, limits):
    """Returns (contents of an .npz as `returns.npz` of a run, costs alike)."""
    sets = assembly.task_sets(restored.env)
    cut = lambda values, positions: np.ascontiguousarray(values[None][:, :, positions])
    each = [(s, where, name) for name in chosen.protocols for s, where in sets.items()]
    arrays = {f"{s}/{name}": cut(returns[name], where) for s, where, name in each if len(where)}
    spent = {
        f"{s}/{name}/{kind}": cut(getattr(costs[name], kind), where)
        for s, where, name in each
        for kind in Cost._fields
        if len(where)
    }
    ids = {"train_ids": restored.env.train_ids, "test_ids": restored.env.test_ids}
    return arrays | limits | ids | {"eval_steps": np.array([restored.done])}, spent


def summary_of(restored, chosen, arrays, costs):
    """Returns the JSON-able summary of an evaluation."""
    config, own = chosen.config, chosen.table is None
    meta = {"suite": config.run.suite, "env": config.run.env, "metric": config.eval.metric}
    all_steps = sum(stage.num_steps for stage in restored.sweep.algorithm.stages)
    # the paper's number is of the suite's tasks and budget, after the whole training
    as_run = own and chosen.budget == config.eval and restored.done == all_steps
    meta["algorithm"] = outputs.paper_name(config) if as_run else None
    pretraining = all_steps - config.train.num_steps
    meta["num_steps"] = max(restored.done - pretraining, 0)
    groups = outputs.groups_of(chosen)
    entries = tables.results(arrays, meta, groups, costs)
    for entry in entries if not own and restored.env.optimal_return is None else ():
        entry["normalized"] = None  # nobody knows what is good there
    return {"results": entries, "step": restored.done, "protocols": list(chosen.protocols)}


def describe(summary):
    """Returns the lines that show an evaluation."""
    head = f"evaluation at step {summary['step']}, {summary['about']}"
    header, rows = tables.grid(summary["results"])
    grid = tables.plain_grid([header, *rows], header.index("mean"))
    return [head, "", grid, tables.note(summary["results"])]


def stored(folder):
    """Returns the summaries of all evaluations of a run; damaged ones are left out."""
    found = []
    for path in sorted((pathlib.Path(folder) / FOLDER).glob("*.json")):
        try:
            found.append(json_files.unsealed(storage.read_json(path), path, "delete it"))
        except errors.UserError as error:
            print(f"report: WARNING: {error}")
    return found


def run(line):
    """The command."""
    computer.start()
    asked = line.own | {name: line.shared[name] for name in ("protocol", "tasks", "data")}
    if remote.is_remote(asked["run"]):
        raise errors.UserError(f"--run is {asked['run']}: copy the run to this machine")
    folder = pathlib.Path(asked["run"])
    config, points, _ = agents.read_config(folder)
    chosen = choose(config, points, asked)
    restored = prepare(folder, chosen, asked["step"], asked["data"])
    code = code_identity.of(dataclasses.replace(config.run, protocols=chosen.protocols))
    what = {"protocols": chosen.protocols, "tasks": chosen.table, "step": restored.done}
    what |= {"eval": dataclasses.asdict(chosen.budget), "code": code}
    path = folder / FOLDER / f"{config_lib.fingerprint(what)}.json"
    if not path.exists():
        computer.prepare_folder(folder / FOLDER, 20e6, "--run")
        count = len(assembly.task_order(restored.env))
        whose = "its own tasks" if chosen.table is None else f"tasks of {chosen.table['from']}"
        print(
            f"evaluate: step {restored.done}, {restored.sweep.runs} runs, {count} tasks", flush=True
        )
        limits = bounds(folder, restored, chosen)
        arrays, costs = arrays_of(restored, chosen, *test(restored, chosen), limits)
        summary = summary_of(restored, chosen, arrays, costs) | code
        count = asked["episodes"]
        budget = "the run" if count is None else f"{count} episodes"
        summary["about"] = f"{whose}, budget of {budget}"
        npz_files.write(path.with_suffix(".npz"), arrays | costs)
        storage.write_json(path, json_files.sealed(summary))
    summary = json_files.unsealed(storage.read_json(path), path, "delete it")
    print("\n" + "\n".join(describe(summary)))
    print(f"results: {path}", flush=True)


COMMAND = Command(
    "evaluate",
    SUMMARY,
    run,
    own=EXTRA,
    shared=("protocol", "tasks", "data"),
    needed=("run",),
    texts=(
        ("protocol", "a test protocol, may be repeated; default: the run's"),
        ("tasks", "a file of other tasks, .npz or .csv; default: the run's own"),
    ),
)

if __name__ == "__main__":
    start(COMMAND)
