"""Imported data: the tasks that they are of, and whether rows are those of the environment."""

import dataclasses

import numpy as np

from gentle_jax import assembly, errors, registry, task_tables
from gentle_jax import config as config_lib
from gentle_jax.interop import agreement, samples

from .. import collect
from ..cli import flags

FIT = "fit"  # the value of --tasks that asks for what the rows say
SHOWN = 3  # misfits that are told at an import that accepts them


def config_of(line):
    """Returns the config of an import's Line: the whole family, of the tasks in --tasks."""
    given = line.shared["tasks"]
    named = "" if given == FIT else given
    config = flags.resolve(line._replace(shared=line.shared | {"tasks": named})).config
    # tasks of a dataset that is in --data already are not those of the source
    return dataclasses.replace(collect.whole_family(config), tasks=config.tasks if named else None)


def with_source_tasks(config, reader, folder, options):
    """Returns the config with the tasks that the source stores, where no others were given."""
    tasks_of = getattr(reader, "tasks_of", None)
    if config.tasks is not None or tasks_of is None:
        return config
    env = assembly.env_of(config)
    table = tasks_of(folder, env, options)
    if table is None or task_tables.same(table, task_tables.of_env(env)):
        return config
    print(f"data: taking the tasks that {folder} stores", flush=True)
    return dataclasses.replace(config, tasks=table)


def fitted(fields, env, config):
    """Returns the config with tasks fitted to rows, which are printed; the split is the suite's.

    Raises UserError where rows do not say what the task is.
    """
    rules = env.task_rules
    if rules is None or rules.fit is None:
        raise errors.UserError(
            f"--tasks={FIT}: rows of {env.name} do not say what their task is, those of point "
            f"robots do; pass a file, `{errors.command('data')} tasks --env={env.name} "
            f"--suite={env.suite}` prints one to start from"
        )
    each = [
        rules.fit(samples.rows_of(fields, task, agreement.REWARD_ROWS).rows)
        for task in range(len(fields["mask"]))
    ]
    leaves = {name: np.stack([one[name] for one in each]) for name in rules.leaves}
    split = env.train_ids, env.test_ids
    source = "fitted to the rows by least squares"
    table = task_tables.checked(leaves, *split, source, env, "the fit")
    print(f"data: tasks fitted by least squares, with the split of suite {env.suite}:")
    print(task_tables.to_csv(table, env), end="", flush=True)
    return dataclasses.replace(config, tasks=table)


def check(table, config, folder, accept, horizon=0):
    """Returns the report on a Table's rows, which is told; raises UserError for a misfit.

    Args: accept, whether rows that are not the environment's are taken all the same; horizon, that
    of the source, which the user states, 0: the environment's.
    """
    run, ours = config.run, table.source.get("exported") or {}
    settings = dataclasses.replace(config.env, horizon=horizon or config.env.horizon)
    for name in ("derive_constants", "contact_cost"):  # of data that were collected here
        if name in (ours.get("environment") or {}):
            settings = dataclasses.replace(settings, **{name: ours["environment"][name]})
    modes = registry.load("environment", run.env).PHYSICS
    first = ours.get("physics") if ours.get("physics") in modes else run.physics

    def make_env(mode):
        own = dataclasses.replace(run, physics=mode)
        env = assembly.env_of(dataclasses.replace(config, run=own, env=settings))
        sparse = table.source.get("rewards") == "sparse"
        return agreement.with_sparse_rewards(env) if sparse else env

    # rows are stepped again in C MuJoCo in any mode: on a GPU, too
    same = lambda mode: "reference" if mode == config_lib.CPU_PHYSICS else mode
    modes = list(dict.fromkeys(map(same, (first, *modes))))
    report = agreement.examine(table.fields, make_env, modes)
    print("\n".join(f"data: {line}" for line in lines_of(report)), flush=True)
    misfits = report["misfits"]
    if misfits and not accept:
        count = f"{len({one['task'] for one in misfits})} of {len(table.fields['mask'])} tasks"
        rules = make_env(modes[0]).task_rules
        fit = f", --tasks={FIT}" if rules is not None and rules.fit is not None else ""
        raise errors.UserError(
            f"the rows in {folder} are not those of {run.env} of suite {run.suite}: task "
            f"{misfits[0]['task']}: {misfits[0]['text']}; {count} misfit. Pass the --env and "
            f"--suite that they are of, their tasks with --tasks=FILE{fit} "
            f"(`{errors.command('data')} tasks` prints a file), or --accept_misfit to import them "
            "as they are"
        )
    return report | {"accepted": bool(misfits)}


def lines_of(report):
    """Returns lines on a report of `agreement.examine`, the misfits left out."""
    known = lambda name: [value for value in report[name] if value is not None]
    parts = []
    for name, what in (("transition_error", "transitions"), ("reward_error", "rewards")):
        if known(name):
            parts.append(f"{what} differ by at most {max(known(name)):.2g} of their spread")
    alike = known("reward_correlation")
    parts += [f"correlation of rewards at least {min(alike):.3f}"] if alike else []
    sizes = f"{report['rows']} rows a task ({report['rows_stepped']} stepped again"
    sizes += f", physics {report['physics']})" if report["physics"] else ")"
    return [f"checked {sizes}: {', '.join(parts) or 'nothing that rows could be held against'}"]


def told(meta):
    """Returns lines on whose tasks a dataset is of, and how its rows were checked."""
    lines = [f"tasks: {meta.get('tasks_from', 'suite ' + meta['identity']['suite'])}"]
    if "checked" not in meta:
        return lines
    lines += lines_of(meta["checked"])
    misfits = meta["checked"]["misfits"]
    lines += [f"MISFIT, accepted: task {m['task']}: {m['text']}" for m in misfits[:SHOWN]]
    more = len(misfits) - SHOWN
    return [*lines, *([f"... and {more} more misfits"] if more > 0 else [])]
