"""What a page shows: one run, runs side by side, or every run below a folder.

Each function returns (title, parts), which `page.page` takes.
"""

import io
import os
import pathlib
import tempfile

import numpy as np

from gentle_jax import assembly, errors, presets, storage
from gentle_jax import config as config_lib
from gentle_jax.protocols import base

from ..host import computer
from ..runs import code_identity, npz_files, outputs, remote, shards
from . import compare, page, results_page, run_figures, scene, scores, tables

FACTS = (
    "algorithm", "backbone", "fidelity", "suite", "env", "physics", "preset", "num_seeds",
    "num_steps",
)  # fmt: skip
DRAWN = {  # figures of a run's folder, in the order of a page
    "learning_curves": "Learning curves",
    "embeddings": "Embeddings of contexts",
    "code_assignment": "Codes of training tasks",
    "rollouts": "Rollouts",
}
MAX_ROWS = outputs.MAX_CURVES  # of a figure that has a line for each grid point
VERSIONS = ("jax", "numpy", "mujoco")


def of_run(folder, summary):
    """Returns the page of a run: what was run, results, figures, episodes, settings."""
    title = "{algorithm} on {env}".format(**summary)
    shard = shards.read_shard(folder)
    config, points, why = settings_of(shard)
    parts = [page.Text(facts(folder, summary)), page.Heading("Results")]
    parts.append(page.Text(tables.markdown(summary["results"])))
    if summary["failed_seeds"]:
        lost = ", ".join(map(outputs.run_name, summary["failed_seeds"]))
        parts.append(page.Text(f"**Not finite:** {lost}"))
    if summary.get("data_misfit"):
        parts.append(page.Text(f"**Warning:** {summary['data_misfit']}"))
    rows = rows_of(folder, summary["algorithm"], points)
    metric, every = summary["results"][0]["metric"], len(rows)
    rows = best_of(rows, metric, f"train/{summary['protocols'][0]}")
    parts += drawn("Every seed", run_figures.seeds, rows, metric)
    if len(rows) < every:
        told = f"The best {len(rows)} of {every} grid points on training tasks, also below."
        parts.append(page.Text(told))
    parts += heat_maps(folder)
    parts += kept(folder, "learning_curves")
    parts += drawn("Return by episode", run_figures.by_episode, rows)
    parts += [part for name in list(DRAWN)[1:] for part in kept(folder, name)]
    parts += played(folder, shard, config, points)
    parts.append(page.Heading("Settings"))
    parts += settings(config, points) if config else [page.Text(f"Not shown: {why}")]
    return title, parts


def settings_of(shard):
    """Returns (config, grid points, why there is no config) of a run; config None without one."""
    if shard is None:
        return None, ({},), "the run has no config.json"
    try:
        return *shards.settings_of(shard.identity), ""
    except errors.UserError as error:  # of another version: what it stored is shown
        return None, tuple(shard.identity["sweep"]), str(error)


def of_runs(runs):
    """Returns the page of [(folder, summary)] side by side.

    Raises UserError for runs that `compare` refuses.
    """
    parts = [page.Text(compare.markdown(runs))]
    for of, members in compare.grouped(runs).items():
        place, rows, metric = beside(of, members)
        parts += drawn(f"Every seed: {place}", run_figures.seeds, rows, metric)
        parts += drawn(f"Learning curves: {place}", run_figures.curves, rows, metric)
        parts += drawn(f"Return by episode: {place}", run_figures.by_episode, rows)
    return f"{len(runs)} runs side by side", parts


def beside(of, members):
    """Returns (heading, run_figures.Rows, metric) of runs [(folder, summary)] that share `of`."""
    place = ", ".join(f"{name} {value}" for name, value in of)
    names = compare.labels(members)
    rows = [rows_of(f, n)[0] for n, (f, _) in zip(names, members, strict=True)]
    return place, rows, members[0][1]["results"][0]["metric"]


def of_list(listed, runs):
    """Returns the page of all runs below a folder: the list, and the seeds where they are alike.

    Args: listed, rows of texts, a heading first; runs, [(folder, summary)].
    """
    parts = [page.Heading("All runs"), page.Text(tables.markdown_grid(listed))]
    places = {}
    for folder, summary in runs:
        if not tables.is_sweep(summary):
            places.setdefault(compare.common(folder, summary), []).append((folder, summary))
    for of, members in places.items():
        place, rows, metric = beside(of, members)
        parts += drawn(f"Every seed: {place}", run_figures.seeds, rows, metric)
    return "Finished runs", parts


def of_table(name, of, text, summaries, found):
    """Returns the page of a table.

    Args: of, its Comparison; text, its Markdown; summaries and found, {(row, env): summary and
    scores, of `scores.of_run`}.
    """
    parts = [page.Text(results_page.sentence(of.about)), page.Text(text)]
    columns = {f"{task_set}/{protocol}" for protocol, task_set in of.columns}
    for env in dict.fromkeys(env for _, env in summaries):
        known = {row: found.get((row, at), {}) for row, at in summaries if at == env}
        if columns:  # of protocols that only some rows have no panel is drawn
            known = {
                row: {key: one for key, one in own.items() if key in columns}
                for row, own in known.items()
            }
        rows = rows_of_scores(known)
        metric = next(s["results"][0]["metric"] for (_, at), s in summaries.items() if at == env)
        if of.axis:
            draw = lambda folder, *args: run_figures.along(folder, "along", *args)
            parts += drawn(f"Over {of.axis.name}: {env}", draw, rows, of.axis, metric)
        parts += drawn(f"Every seed: {env}", run_figures.seeds, rows, metric)
    return name, parts


def rows_of_scores(known):
    """Returns run_figures.Rows of {row: scores of its last checkpoint}."""
    as_returns = lambda own: {
        name: one[None, ..., None]
        for name, one in own.items()
        if not name.startswith(scores.BOUNDS)
    }
    return [run_figures.Row(name, as_returns(own), {}) for name, own in known.items()]


def facts(folder, summary):
    """Returns what was run and where, as Markdown."""
    environment = code_identity.environment_of(folder)
    lines = [[name, str(summary[name])] for name in FACTS]
    lines.append(["protocols", ", ".join(summary["protocols"])])
    spent = (f"{name} {seconds:.0f} s" for name, seconds in summary["seconds"].items())
    lines.append(["time", ", ".join(spent)])
    lines += [["device", summary["device"]]] if "device" in summary else []
    known = environment.get("versions") or {}
    told = [f"{name} {known[name]}" for name in VERSIONS if name in known]
    lines += [["versions", ", ".join(told)]] if told else []
    for name in ("commit", code_identity.HASH, "data_fingerprint"):
        lines += [[name, str(environment[name])]] if environment.get(name) else []
    lines.append(["folder", f"`{folder}`"])
    return tables.markdown_grid([["what", "value"], *lines], 2)


def rows_of(folder, name, points=({},)):
    """Returns a run_figures.Row for each grid point of a run, none without its returns.npz."""
    returns, costs = (arrays(folder, kind) for kind in ("returns", "costs"))
    if not returns:
        return [run_figures.Row(name, {}, {})]
    if len(points) == 1:
        return [run_figures.Row(name, returns, costs)]
    seeds = returns[tables.blocks(returns)[0][0]].shape[1] // len(points)
    part = lambda i: slice(i * seeds, (i + 1) * seeds)
    label = outputs.label
    return [run_figures.Row(label(p), returns, costs, part(i)) for i, p in enumerate(points)]


def best_of(rows, metric, key):
    """Returns MAX_ROWS of the rows at most, in order: those with the best returns `key`."""
    if len(rows) <= MAX_ROWS:
        return rows
    mean = [base.METRICS[metric](row.returns[key][-1, row.part]).mean() for row in rows]
    best = np.argsort(np.nan_to_num(np.array(mean), nan=-np.inf))[-MAX_ROWS:]
    return [rows[i] for i in sorted(best)]


def arrays(folder, name):
    """Returns the arrays of one .npz file of a run, {} where it has none.

    Raises UserError for a file that cannot be read.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return {key: found[key] for key in found}
    except npz_files.DAMAGE:
        raise shards.damaged(path) from None


def drawn(heading, function, rows, *args):
    """Returns the parts of a figure that is drawn for the page alone; none without returns."""
    rows = [row for row in rows if row.returns]
    if not rows:
        return []
    with tempfile.TemporaryDirectory() as work:
        paths = function(work, rows, *args)
        figures = [page.Figure(p.read_bytes(), heading) for p in paths if p.suffix == ".svg"]
    return [page.Heading(heading), *figures] if figures else []


def kept(folder, name):
    """Returns the parts of a figure in a run's folder, none where it is not there."""
    path = folder / "figures" / f"{name}.svg"
    if not path.exists():
        return []
    return [page.Heading(DRAWN[name]), page.Figure(path.read_bytes(), DRAWN[name])]


def heat_maps(folder):
    """Returns the parts of the heat maps of grids that a run belongs to."""
    figures = []
    for path in sorted(folder.parent.glob("grid_*/grid.json")):
        if any(cell.get("run") == folder.name for cell in storage.read_json(path).get("cells", ())):
            maps = sorted(path.parent.glob("heat_map*.svg"))
            figures += [page.Figure(one.read_bytes(), "Heat map of the sweep") for one in maps]
    return [page.Heading("Sweep"), *figures] if figures else []


def played(folder, shard, config, points):
    """Returns the parts with episodes that play: of the plane, and all that `render` has made."""
    pages = [path.read_text() for path in sorted(folder.glob("renders/*.html"))]
    scenes = [found for found in map(scene.of_page, pages) if found]
    if config is not None and (folder / "rollouts.npz").exists():
        scenes = [*plane_scenes(folder, shard, config, points), *scenes]
    parts = [page.Heading("Episodes")]
    if not scenes:
        where = "FOLDER" if remote.is_remote(str(folder)) else folder
        command = f"{errors.command('render')} --run={where}"
        return [*parts, page.Text(f"None is stored to play; `{command}` adds one to this page.")]
    return [*parts, page.Episodes(scenes)]


def plane_scenes(folder, shard, config, points):
    """Returns a scene for each test task of the plane: its last episode, of the first seed."""
    env = assembly.env_of(config)
    if env.landmarks is None or env.system is not None:
        return []
    returns, rollouts = (shards.load(shard, f"{name}.npz") for name in ("returns", "rollouts"))
    run, own = config.run, outputs.best_point(config, points, returns)
    index, last = own * config.run.num_seeds, returns[f"test/{run.protocols[0]}"][-1, :, :, -1]
    found = []
    for k, position in enumerate(assembly.task_sets(env)["test"]):
        steps = int(rollouts["mask"][index, position].sum())
        path = rollouts["paths"][index, position, : steps + 1, :2].astype(np.float64)
        if not np.isfinite(path).all():
            continue
        task = int(env.test_ids[k])
        details = f"seed {run.seed_offset}, return {last[index, k]:.2f}"
        details += f", {outputs.label(points[own])}" if len(points) > 1 else ""
        shown = scene.of_plane(path, np.asarray(env.landmarks[task], np.float64))
        shown |= {"goal": np.asarray(env.landmarks[task], np.float64), "rewards": []}
        found.append(shown | {"title": f"test task {task}", "details": details})
    return found


def settings(config, points):
    """Returns the parts that tell every setting, those first that are not the preset's."""
    run = config.run
    plain = config_lib.resolve(run, presets.layers(run.preset, run))
    flat = lambda tree: {
        f"{section}.{key}": value
        for section, own in config_lib.to_dict(tree).items()
        if section in config_lib.SECTIONS[1:]
        for key, value in own.items()
    }
    here, usual = flat(config), flat(plain)
    changed = [[k, str(v), str(usual[k])] for k, v in here.items() if v != usual[k]]
    heading = ["setting", "here", f"preset {run.preset}"]
    for key in points[0]:
        values = ", ".join(f"{value:g}" for value in dict.fromkeys(point[key] for point in points))
        changed = [line for line in changed if line[0] != key] + [[key, values, str(usual[key])]]
    text = "All settings are the preset's."
    if changed:
        text = f"Not as in the preset:\n\n{tables.markdown_grid([heading, *changed], 3)}"
    every = tables.markdown_grid([["setting", "value"], *([k, str(v)] for k, v in here.items())], 2)
    return [page.Text(text), page.Text(every, "every setting")]


def check(target):
    """Raises UserError for what no page can be written to."""
    if remote.is_remote(target) or pathlib.Path(target).is_dir():
        raise errors.UserError(
            f"--html is {target}: expected a file of this machine, such as --html=page.html"
        )
    computer.prepare_folder(pathlib.Path(target).parent, 20e6, "--html")


def write(target, title, parts):
    """Writes a page to a file."""
    path = pathlib.Path(target)
    whole = path.with_name(f".{path.name}.{os.getpid()}")  # a page that is open stays whole
    whole.write_text(page.page(title, parts), encoding="utf-8")
    whole.replace(path)
