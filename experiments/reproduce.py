"""Runs every cell of a comparison and writes its table: `python -m experiments.reproduce`.

A cell is a command line of `experiments.run`; finished cells are reused, so the command resumes.
"""

import pathlib

from experiments import run
from experiments.cli import exit_codes, flags
from experiments.cli.command import Command, start
from experiments.host import computer
from experiments.runs import code_identity, outputs, remote
from experiments.show import methods
from gentle_jax import errors, registry, storage, suites

SUMMARY = (
    "Runs every row of a table on every environment of the suite, and writes Markdown and JSON."
)
ALL = {name: (f"--algo={name}",) for name in registry.ALGORITHMS}
# an agent without context that is told the task: the ceiling beside `multitask`, the floor
ALL["multitask, task revealed"] = ("--algo=multitask", "--config.env.reveal_task=True")
TWO_AGENTS = ("multitask", "multitask, task revealed")  # without context: a floor, a ceiling
# GENTLE's claim: relabelling pays where tasks are few and data narrow
LIMITED = {
    "gentle": ("--algo=gentle",),
    "gentle without relabelling": ("--algo=gentle", "--config.algo.relabel=False"),
    "focal": ("--algo=focal",),
}
OF_DATA = {f"{count} tasks": (f"--config.env.num_train={count}",) for count in (4, 6, 8, 10)}
OF_DATA["10 expert episodes a task"] = ("--config.behaviour.episodes_per_level=10",)
OF_DATA["10 levels a task"] = tuple(
    f"--config.behaviour.{key}={value}"
    for key, value in (("num_steps", 4000), ("first_level", 400), ("level_every", 400),
                       ("num_levels", 10), ("episodes_per_level", 10))
)  # fmt: skip
# Data that a preset was not made for: agents at the end of their training, all along it, half-way.
KINDS = {
    "experts": (),
    "mixed": OF_DATA["10 levels a task"][:-1] + ("--config.behaviour.episodes_per_level=20",),
    "medium": ("--config.behaviour.num_steps=1200", "--config.behaviour.first_level=1200"),
}
# Why a MuJoCo family is learned or not: an agent that is told its task, one change a row
TOLD = ("--algo=multitask", "--config.env.reveal_task=True", "--protocol=online")
OLD_RATES = ("--config.backbone.lr=1e-3", "--config.backbone.policy_lr=1e-3")
OLD_SCALE = (
    "--config.train.normalize_rewards=False", "--config.backbone.reward_scale=5",
    "--config.backbone.alpha_init=50", "--config.backbone.alpha_lr=1",
    "--config.backbone.alpha_max=2000",
)  # fmt: skip
RELEASED = (
    "--config.backbone.true_gradient_penalty=False",
    "--config.backbone.clip_stored_alpha=False",
)
OLD_DUAL, RAW = ("--config.backbone.dual_steps=3",), ("--config.train.normalize_obs=False",)
OLD_END = ("--config.train.final_lr=0.1",)
OLD = (*RAW, *OLD_SCALE, *OLD_RATES, *OLD_END, *RELEASED)
CAUSES = {
    "preset": (),
    "all of the next six": (*OLD, *OLD_DUAL),
    "raw observations": RAW,
    "raw rewards, scale 5": OLD_SCALE,
    "rates of 1e-3": OLD_RATES,
    "a tenth of the rates at the end": OLD_END,
    "dual critic as released": RELEASED,
    "three dual steps": OLD_DUAL,
    "no penalty": ("--config.backbone.use_brac=False",),
    "tau 0.03": ("--config.backbone.tau=0.03",),
    "discount 0.97": ("--config.backbone.discount=0.97",),
    "td3_bc": ("--backbone=td3_bc",),
    "iql": ("--backbone=iql",),
}
NO_CODES = ("--config.algo.use_codebook=False",)
TABLES = {
    # row -> flags: what each part of CTMRL buys; Table 2 of its paper and more
    "components": {
        "paper equations": ("--algo=ctmrl", "--fidelity=paper"),
        "release": ("--algo=ctmrl", "--fidelity=release"),
        "no codebook at all": ("--algo=ctmrl", *NO_CODES),
        "contexts from the whole history": ("--algo=ctmrl", "--config.train.context_draw=uniform"),
        "without L_contra": ("--algo=ctmrl", "--config.algo.use_contrast=False"),
        "without L_C": ("--algo=ctmrl", "--config.algo.use_code_loss=False"),
        "without L_pre^cro": ("--algo=ctmrl", "--config.algo.use_cross_prediction=False"),
        "without K-means": ("--algo=ctmrl", "--config.algo.use_kmeans=False"),
    },
    "gentle": {
        "release": ("--algo=gentle", "--suite=gentle"),
        "paper": ("--algo=gentle", "--suite=gentle", "--fidelity=paper"),
        "without relabelling": ("--algo=gentle", "--suite=gentle", "--config.algo.relabel=False"),
    },
    # every method on the same data, backbone and protocols
    "methods": ALL,
    "methods_gentle": {name: (*line, "--suite=gentle") for name, line in ALL.items()},
    # few training tasks, the test tasks unchanged; fewer and more diverse data of ten tasks
    "limited": {
        f"{name}, {data}": ("--suite=gentle", *line, *of_data)
        for data, of_data in OF_DATA.items()
        for name, line in LIMITED.items()
    },
    # settings that must hold on data that they were not made for
    "robust": {
        f"{name}, {kind}": (f"--algo={name}", "--suite=gentle", *of_data)
        for kind, of_data in KINDS.items()
        for name in ("gentle", "focal", "ctmrl")
    },
    "causes": {name: (*TOLD, *changes) for name, changes in CAUSES.items()},
    "families": {name: ALL[name] for name in ("focal", "ctmrl", *TWO_AGENTS)},
    "families_gentle": {
        name: (*ALL[name], "--suite=gentle") for name in ("focal", "gentle", *TWO_AGENTS)
    },
}
ENVIRONMENTS = {
    "components": ("point_robot", "point_robot_wind", "sparse_point_robot"),
    "gentle": ("point_robot",),
    "methods": ("point_robot",),
    "methods_gentle": ("point_robot",),
    "limited": ("point_robot",),
    "robust": ("point_robot",),
    "causes": ("cheetah_vel",),
    "families": ("cheetah_vel", "ant_goal", "hopper_params", "walker_params", "sparse_point_robot"),
    "families_gentle": ("cheetah_dir", "ant_dir"),
}
PROTOCOLS = {
    "components": ("random_then_policy", "given_context"),
    "gentle": ("given_context", "one_shot"),
    "limited": ("given_context", "one_shot"),
    "robust": ("given_context", "one_shot"),
}
TASK_SETS = {"robust": "train"}  # of a table by protocols; others show test tasks
EXTRA = (
    ("table", str, "components", "which table: " + " ".join(TABLES)),
    ("rows", list, [], "only these rows; repeatable; the others are taken if they are finished"),
    ("envs", list, [], "only these environments; repeatable"),
    ("to", str, "", "folder of the table's files; default: the folder `tables` below --out"),
)
BY_ROWS = "it is set by the rows of a table; choose with --rows and --envs"
REFUSED = (
    *((name, BY_ROWS) for name in ("algo", "env", "fidelity")),
    ("tasks", "a paper's table is of the tasks of its suite; leave it out"),
    ("sweep", "a table has one cell for each row and environment; sweep with "
     "`python -m experiments.run`"),
    ("multihost", "one process runs the cells one by one; leave it out, or run a cell with "
     "`python -m experiments.run --multihost`"),
)  # fmt: skip


def cells(table, words):
    """Returns {(row, env): Request} of a table. Args: words, flags that reach every cell.

    Raises UserError for a flag that the table itself sets.
    """
    requests = {}
    for row, fixed in TABLES[table].items():
        taken = {flag.partition("=")[0] for flag in fixed}
        for word in words:
            if "--" + word.lstrip("-").partition("=")[0] in taken:
                raise errors.UserError(
                    f"{word} is set by the rows of table {table!r}: leave it out, or choose with "
                    f"--rows and --envs"
                )
        for env in ENVIRONMENTS[table]:
            line = ["run", *words, *fixed, f"--env={env}"]
            requests[row, env] = flags.parse(run.COMMAND, line, computer.on_accelerator)
    return requests


def text(entry):
    """Returns a table cell: normalized return, and the mean with half its interval."""
    if entry is None:
        return "-"
    if len(entry["per_seed"]) == 1:
        return f"{entry['normalized']:.3f} ({entry['mean']:.2f})"
    low, high = entry["ci95"]
    return f"{entry['normalized']:.3f} ({entry['mean']:.2f} ± {(high - low) / 2:.2f})"


def file_name(table, summaries):
    """Returns a table's name, and the backbone's behind it where that is not the suite's."""
    of_suite = lambda summary: suites.get(summary["suite"]).backbone
    others = {s["backbone"] for s in summaries.values() if s["backbone"] != of_suite(s)}
    return "_".join([table, *sorted(others)])


def write(table, summaries, folder, note=None):
    """Writes `file_name`.json and .md from {(row, env): summary}; returns the Markdown.

    Args: note, a sentence below the table.
    """
    if table in PROTOCOLS:
        lines = by_protocol(table, summaries)
        tasks = "Training" if TASK_SETS.get(table) == "train" else "Test"
        caption = f"{tasks} tasks, last checkpoint: normalized return (mean return ± half of the "
        caption += "95 % bootstrap interval over seeds)."
    else:
        lines = methods.lines(summaries)
        caption = (
            "Last checkpoint, normalized returns; 95 % bootstrap intervals over seeds; spent: "
        )
        caption += "environment steps/episodes/oracle queries in a tested task before the reported "
        caption += "episode; the paper's column is its own number, from other data and sizes."
    sizes = sorted({(s["num_seeds"], s["num_steps"], s["preset"]) for s in summaries.values()})
    kept = ", ".join(f"{seeds} seeds, {steps} steps, preset {p}" for seeds, steps, p in sizes)
    names = sorted({(s["suite"], s["backbone"]) for s in summaries.values()})
    kept += "".join(f"; suite {suite}, backbone {backbone}" for suite, backbone in names)
    devices = {s["device"] for s in summaries.values() if "device" in s}  # bits depend on them
    kept += "".join(f"; on {device}" for device in sorted(devices))
    lines += ["", f"{caption} {kept}. `-`: not run."]
    lines += ["", note] if note else []
    name = file_name(table, summaries)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    stored = [{"row": row, "env": env, **summary} for (row, env), summary in summaries.items()]
    content = {"table": table, "environment": computer.environment(), "cells": stored}
    storage.write_json(folder / f"{name}.json", content)
    return "\n".join(lines)


def by_protocol(table, summaries):
    """Returns the Markdown lines of a table with a column for each environment and protocol."""
    names = [(env, protocol) for env in ENVIRONMENTS[table] for protocol in PROTOCOLS[table]]
    lines = ["| " + " | ".join(["row", *(f"{e}, {p}" for e, p in names)]) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    done = {row for row, _ in summaries}
    for row in (row for row in TABLES[table] if row in done):
        entries = [
            methods.entry(summaries[row, env], protocol, TASK_SETS.get(table, "test"))
            if (row, env) in summaries
            else None
            for env, protocol in names
        ]
        lines.append("| " + " | ".join([row, *map(text, entries)]) + " |")
    return lines


def main(line):
    """The command; returns its exit code, DIVERGED if a run of the table became NaN."""
    own = line.own
    computer.start(require=line.shared["require"])
    table = own["table"]
    if table not in TABLES:
        raise errors.unknown("table", table, TABLES)
    for name, allowed in (("rows", TABLES[table]), ("envs", ENVIRONMENTS[table])):
        for value in own[name]:
            if value not in allowed:
                raise errors.unknown(name, value, allowed)
    requests = cells(table, line.words)
    out = next(iter(requests.values())).out
    if remote.is_remote(own["to"] or out):
        raise errors.UserError(
            f"--to is {own['to'] or 'missing'}: the table's files go to a folder of this machine, "
            f"pass --to=FOLDER"
        )
    to = pathlib.Path(own["to"] or pathlib.Path(out) / "tables")
    computer.prepare_folder(to, 1e6, "--to")
    summaries = {}
    for (row, env), cell in requests.items():
        chosen = row in (own["rows"] or [row]) and env in (own["envs"] or [env])
        folder = run.folder_of(cell)
        if chosen:
            print(f"\n=== {table}: {row} on {env}", flush=True)
            summaries[row, env] = run.execute(cell)
            write(table, summaries, to)  # a kill loses the cell that is running, not the table
        elif (folder / "summary.json").exists():
            summaries[row, env] = outputs.read_summary(folder)
    runs = [(run.folder_of(requests[at]), code_identity.hash_of(s)) for at, s in summaries.items()]
    note = code_identity.note(runs)
    written = to / f"{file_name(table, summaries)}.md"
    print("\n" + write(table, summaries, to, note) + f"\n\ntable: {written}")
    diverged = any(summary["failed_seeds"] for summary in summaries.values())
    return exit_codes.DIVERGED if diverged else exit_codes.DONE


COMMAND = Command(
    "reproduce",
    SUMMARY,
    main,
    own=EXTRA,
    shared=flags.but(*(name for name, _ in REFUSED)),
    refused=REFUSED,
)

if __name__ == "__main__":
    start(COMMAND)
