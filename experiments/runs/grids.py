"""Grids of `--sweep`: programs one after the other, a table and a heat map over all of them.

Floats of `algo` and `backbone` are swept within a program. Any other setting makes programs of
their own; each is the run that the same command with `--config.KEY=VALUE` makes, in the same
folder, so that finished ones are reused and interrupted ones resume.
"""

import dataclasses
import gc
import itertools
import pathlib
import sys
import tempfile

import numpy as np

from gentle_jax import assembly, errors, storage
from gentle_jax import config as config_lib

from ..cli import exit_codes
from ..host import computer, hosts
from ..show import heatmap, tables
from . import code_identity, remote

KEPT = ("mean", "std", "ci95", "iqm", "iqm_ci95", "normalized", "per_seed")
UNFAIR = (
    "A setting chosen by these test returns has seen the test tasks: its own number is too good; "
    "choose by other tasks or seeds than those that are reported."
)


def programs(request):
    """Returns [({name: value}, Request)]: the programs of a Request, in the order they run."""
    axes = [axis for axis in request.axes if axis.structural]
    if not axes:
        return [({}, request)]
    choices = itertools.product(*(axis.values for axis in axes))
    return [
        (
            {axis.name: value for axis, value in zip(axes, choice, strict=True)},
            dataclasses.replace(
                request,
                config=config,
                axes=tuple(axis for axis in request.axes if not axis.structural),
                programs=(config,),
            ),
        )
        for choice, config in zip(choices, request.programs, strict=True)
    ]


def spell(choice):
    """Returns {name: value} as text: `num_codes=2,latent_dim=5`."""
    return ",".join(f"{name}={heatmap.text(value)}" for name, value in choice.items())


def check(queue):
    """Raises UserError if some program of the queue has settings that nothing could train with."""
    for choice, program in queue:
        try:
            assembly.check(program.config)
        except errors.UserError as error:
            raise errors.UserError(f"with {spell(choice)}: {error}") from None


def execute(request, run_one, folder_of):
    """Runs every program of a Request, then shows the grid; returns the exit code.

    Args: run_one, Request of one program -> summary; folder_of, Request of one program -> its run
    folder. The code is the worst of the programs'; whatever else ends one ends the queue.
    """
    queue = programs(request)
    if len(queue) == 1:
        summaries = [run_one(queue[0][1])]
    else:
        check(queue)
        print(f"grid: {len(queue)} programs, one after the other", flush=True)
        summaries = [
            attempt(run_one, program, f"program {number} of {len(queue)}, {spell(choice)}")
            for number, (choice, program) in enumerate(queue, 1)
        ]
    if request.axes and hosts.leader():
        show(request, [folder_of(program) for _, program in queue], summaries)
    if None in summaries:
        return exit_codes.USAGE
    diverged = any(summary["failed_seeds"] for summary in summaries)
    return exit_codes.DIVERGED if diverged else exit_codes.DONE


def attempt(run_one, program, text):
    """Returns the summary of a program of the queue, or None if it could not run: that is told.

    One of several processes raises its UserError: the others may be in the midst of the program.
    """
    print(f"\ngrid: {text}", flush=True)
    gc.collect()  # the arrays of the program before may hang in a cycle: the device needs the room
    try:
        return run_one(program)
    except errors.UserError as error:  # such as too little memory for this one
        if hosts.several():
            raise errors.UserError(f"{text}: {error}") from None
        print(f"error: {text}: {error}", file=sys.stderr, flush=True)
        return None


def entries_of(summary, protocol, count):
    """Returns the native entries of the test tasks, one for each of `count` grid points.

    They stand in the order of the points.
    """
    native = [e for e in summary["results"] if (e["task_set"], e["protocol"]) == ("test", protocol)]
    native = [entry for entry in native if entry["metric"] == native[0]["metric"]]
    if len(native) != count:
        raise errors.UserError(
            f"a run of this grid holds {len(native)} grid points instead of {count}: delete its "
            f"folder and give the command again"
        )
    return native


def cells(axes, folders, summaries, protocol):
    """Returns the grid's cells, the last axis fastest, and the metric.

    Args: axes, of settings.Axis; folders and summaries of the programs, None for one that did not
    run. A cell has "at", {name: value}, "run", its folder's name, KEPT and "finite", the number
    of seeds whose return is; the numbers are absent where nothing ran.
    """
    sizes = lambda structural: [len(a.values) for a in axes if a.structural == structural]
    count = int(np.prod(sizes(False), dtype=int))
    entries = [None if s is None else entries_of(s, protocol, count) for s in summaries]
    metric = next((e[0]["metric"] for e in entries if e), None)
    listed = []
    for index in itertools.product(*(range(len(axis.values)) for axis in axes)):
        position = lambda structural, index=index: [
            i for i, axis in zip(index, axes, strict=True) if axis.structural == structural
        ]
        program = flat_index(position(True), sizes(True))
        at = {axis.name: axis.values[i] for i, axis in zip(index, axes, strict=True)}
        cell = {"at": at, "run": folders[program].name}
        if entries[program] is not None:
            entry = entries[program][flat_index(position(False), sizes(False))]
            cell |= {name: entry[name] for name in KEPT}
            cell["finite"] = int(np.isfinite(entry["per_seed"]).sum())
        listed.append(cell)
    return listed, metric


def flat_index(index, sizes):
    """Returns the position of a cell in an outer product, the last axis fastest."""
    return int(np.ravel_multi_index(index, sizes)) if sizes else 0


def best_of(listed):
    """Returns the position of the cell whose interval lies above all others', or None.

    Cells with a run that diverged do not compete; one seed has no interval; a grid with a cell
    that did not run has no best one yet.
    """
    if any("mean" not in cell or len(cell["per_seed"]) < 2 for cell in listed):
        return None
    finite = [i for i, cell in enumerate(listed) if np.isfinite(cell["mean"])]
    if len(finite) < 2:
        return None
    first = max(finite, key=lambda i: listed[i]["mean"])
    others = max(listed[i]["ci95"][1] for i in finite if i != first)
    return first if listed[first]["ci95"][0] > others else None


def notes(listed, best, protocol, metric):
    """Returns the sentences below the table and the figure."""
    seeds = max((len(cell["per_seed"]) for cell in listed if "mean" in cell), default=0)
    lines = [f"Test tasks, {protocol}, {tables.EPISODES.get(metric, metric)}, last checkpoint."]
    if seeds > 1:
        lines.append(f"Mean and 95% bootstrap interval over {seeds} seeds.")
        finite = sum(bool(np.isfinite(cell.get("mean", np.nan))) for cell in listed)
        if best is not None:
            lines.append("Marked best: its interval overlaps with no other.")
        elif finite < 2 or any("mean" not in cell for cell in listed):
            lines.append("None is marked best: too few cells have a mean.")
        else:
            lines.append("None is marked best: the highest interval overlaps with another's.")
    else:
        lines.append("One seed has no interval, so none is marked best.")
    if any(cell.get("finite", seeds) < seeds for cell in listed):
        lines.append("The mean is NaN (in the figure: -) where a seed diverged.")
    if any("mean" not in cell for cell in listed):
        lines.append("-: did not run.")
    return [*lines, UNFAIR]


def rows(axes, listed, best):
    """Returns the table as rows of texts, a heading first."""
    lines = [[*(axis.name for axis in axes), "mean", "95% CI", "normalized", "finite seeds", ""]]
    for i, cell in enumerate(listed):
        line = [heatmap.text(value) for value in cell["at"].values()]
        if "mean" in cell:
            low, high = map(tables.number, cell["ci95"])
            alone = len(cell["per_seed"]) == 1
            line += [tables.number(cell["mean"]), "-" if alone else f"[{low}, {high}]"]
            line += [f"{cell['normalized']:.3f}", f"{cell['finite']}/{len(cell['per_seed'])}"]
        else:
            line += ["-"] * 4
        lines.append([*line, "best" if i == best else ""])
    return lines


def show(request, folders, summaries):
    """Prints the table of a grid, and writes its folder; returns that, None where nothing ran."""
    axes, run = request.axes, request.config.run
    listed, metric = cells(axes, folders, summaries, run.protocols[0])
    if metric is None:
        return None  # nothing ran
    best = best_of(listed)
    described = [axis._asdict() for axis in axes]
    name = config_lib.fingerprint({"axes": described, "runs": [folder.name for folder in folders]})
    lines, texts = rows(axes, listed, best), notes(listed, best, run.protocols[0], metric)
    now = code_identity.of(run)
    ran = [folder for folder, s in zip(folders, summaries, strict=True) if s is not None]
    other = code_identity.note([(folder, now[code_identity.HASH]) for folder in ran])
    texts += [other] if other else []
    content = {
        "algorithm": run.algorithm, "suite": run.suite, "env": run.env, "preset": run.preset,
        "protocol": run.protocols[0], "metric": metric, "axes": described, "cells": listed,
        "best": best, "environment": computer.environment() | now,
    }  # fmt: skip
    print(f"\n{tables.plain_grid(lines, len(axes))}\n" + "\n".join(texts), flush=True)
    folder = folders[0].parent / f"grid_{name}"
    if remote.is_remote(folder):
        with tempfile.TemporaryDirectory() as work:
            write(pathlib.Path(work), axes, content, lines, texts)
            upload(pathlib.Path(work), folder)
    else:
        computer.prepare_folder(folder, 2e6, "--out")
        write(folder, axes, content, lines, texts)
    print(f"grid: {folder}", flush=True)
    return folder


def upload(local, folder):
    """Copies the files of a grid to their URL; raises UserError if the store does not take them."""
    try:
        remote.copy_tree(local, folder, last=("grid.json",))
    except Exception as failure:  # each store has errors of its own
        raise errors.UserError(
            f"cannot write to {folder} ({remote.brief(failure)}): the runs are kept, the same "
            f"command writes the grid again"
        ) from None


def write(folder, axes, content, lines, texts):
    """Writes grid.json, grid.md and the heat map into a local folder.

    Args: content, what grid.json holds; lines, the table; texts, the sentences below it.
    """
    listed, best = content["cells"], content["best"]
    storage.write_json(folder / "grid.json", content)
    below = "\n\n".join([" ".join(texts), "![](heat_map.png)"])
    (folder / "grid.md").write_text(f"{tables.markdown_grid(lines, len(axes))}\n\n{below}\n")
    shape = [len(axis.values) for axis in axes]
    nothing = {"mean": np.nan, "ci95": [np.nan, np.nan]}
    means = np.array([(nothing | cell)["mean"] for cell in listed]).reshape(shape)
    alone = len(next(cell for cell in listed if "mean" in cell)["per_seed"]) == 1
    bounds = [(nothing if alone else nothing | cell)["ci95"] for cell in listed]
    heatmap.draw(
        folder,
        [(axis.name, axis.values) for axis in axes],
        means,
        np.array(bounds).reshape(*shape, 2),
        None if best is None else tuple(map(int, np.unravel_index(best, shape))),
        f"test return ({content['protocol']})",
        "{algorithm} on {env}, suite {suite}, preset {preset}".format(**content),
        texts,
    )
