"""What a run leaves behind: metric lines, arrays, figures, summary.json, the table."""

import dataclasses
import hashlib
import json
from typing import NamedTuple

import numpy as np
from tensorboardX import SummaryWriter

from gentle_jax import (
    assembly,
    errors,
    json_files,
    presets,
    registry,
    storage,
    suites,
    training,
)
from gentle_jax import config as config_lib

from ..host import computer, switches
from ..show import figures, tables
from . import remote


def label(point):
    """Returns a grid point as text: `lr=0.001` where every key of that name has one value."""
    short = {}
    for key, value in point.items():
        short.setdefault(key.split(".")[1], []).append((key, value))
    parts = []
    for name, entries in short.items():
        if len({value for _, value in entries}) == 1:
            parts.append(f"{name}={entries[0][1]:g}")
        else:
            parts += [f"{key}={value:g}" for key, value in entries]
    return ",".join(parts)


class MetricsLog:
    """metrics.jsonl, a line per chunk and run, and TensorBoard means; forgets what was lost.

    Args: logged, the `digest` when the checkpoint at step `done` was taken; None: unknown.
    """

    def __init__(self, folder, done, labels, logged=None):
        self.path, self.labels, self._digest = folder / "metrics.jsonl", labels, hashlib.sha256()
        kept = []
        if done and self.path.exists():
            lines = self.path.read_text(errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= done]
        shortened = self.path.with_suffix(".tmp")  # a kill must not lose what was logged
        shortened.write_text("".join(self._counted(line) for line in kept))
        shortened.replace(self.path)
        if logged not in (None, self.digest()):
            print(f"run: WARNING: {self.path} is not what was logged up to step {done} (altered)")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, chunk, stage, metrics):
        """Appends the metrics of a chunk, {name: [S]}; returns {stage/name: mean over runs}."""
        with open(self.path, "a") as file:
            for index, (seed, point) in enumerate(self.labels):
                line = {"step": chunk.done, "stage": stage, "seed": seed}
                line |= {"sweep": label(point)} if point else {}
                line |= {name: float(values[index]) for name, values in metrics.items()}
                file.write(self._counted(json.dumps(json_files.without_nan(line))))
        means = {f"{stage}/{name}": float(values.mean()) for name, values in metrics.items()}
        for name, mean in means.items():
            self.board.add_scalar(name, mean, chunk.done)
        self.board.flush()
        return means

    def digest(self):
        """Returns the sha256 of all lines in hex."""
        return self._digest.hexdigest()

    def _counted(self, line):
        """Returns a line with its end, which enters the digest."""
        text = line + "\n"
        self._digest.update(text.encode())
        return text


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return np.inf  # a line that was cut by a kill


def groups_of(request):
    """Returns [(label, slice of the run axis)] of a sweep's grid points, or None without one."""
    if len(request.points) == 1:
        return None
    seeds = request.config.run.num_seeds
    return [
        (label(point), slice(i * seeds, (i + 1) * seeds)) for i, point in enumerate(request.points)
    ]


def paper_name(config):
    """Returns the paper's name of what is run: the algorithm, one of its VARIANTS, or None.

    Sizes, rates and loss weights do not count; switches, and what a variant names, do. None where
    the backbone is neither the suite's nor the preset's, observations tell the task, or tasks are
    not the suite's.
    """
    run = config.run
    usual = suites.get(run.suite).backbone, suites.backbone(run.suite, run.env, run.preset)
    if run.backbone not in usual or config.env.reveal_task or config.tasks:
        return None
    module = registry.load("algorithm", run.algorithm)
    plain = config_lib.resolve(run, presets.layers(run.preset, run)).algo
    variants = getattr(module, "VARIANTS", {})
    named = {key for variant in variants.values() for key in variant}
    changed = {
        field.name: getattr(config.algo, field.name)
        for field in dataclasses.fields(config.algo)
        if getattr(config.algo, field.name) != getattr(plain, field.name)
        and (field.name in named or isinstance(getattr(plain, field.name), bool | str))
    }
    names = {run.algorithm: {}} | variants
    return next((name for name, values in names.items() if values == changed), None)


MAX_CURVES = 12  # of a sweep's figure: more lie on each other
AXES = (
    "eval_point, seed, task, episode; seed = grid point x seed in a sweep; where episodes end "
    "early, NaN between the first and the last slot is no episode, the last slot the last episode"
)


class Arrays(NamedTuple):
    """The contents of a run's .npz files."""

    returns: dict
    embeddings: dict
    trace: tuple  # (paths [S, task, H + 1, obs], mask [S, task, H])
    costs: dict | None = None  # None: of a run from before they were counted


def arrays_of(config, sweep, env, meta, carry):
    """Returns the contents of returns.npz, costs.npz (axes: see "axes") and embeddings.npz.

    Protocols come in the order of the command line, by default the suite's own first.
    """
    sets = assembly.task_sets(env)
    steps = np.array(training.eval_steps(sweep))
    returns = {  # contiguous: sums are those of the arrays that a reader of the file has
        f"{task_set}/{protocol}": np.ascontiguousarray(carry["returns"][protocol][:, :, positions])
        for protocol in config.run.protocols
        for task_set, positions in sets.items()
    }
    costs = {
        f"{task_set}/{protocol}/{name}": values[:, :, positions]
        for protocol in config.run.protocols
        for task_set, positions in sets.items()
        for name, values in carry["costs"][protocol]._asdict().items()
    }
    returns |= {
        "eval_steps": steps,
        "random_return": np.array(meta["random_return"]),
        "reference_return": np.array(meta["reference_return"]),
        "train_ids": env.train_ids,
        "test_ids": env.test_ids,
        "axes": np.array(AXES),
    }
    embeddings = {
        f"{task_set}/{name}": values[:, :, positions]
        for name, values in carry["embeddings"].items()
        for task_set, positions in sets.items()
    }
    return returns, costs, embeddings | {"eval_steps": steps}


def best_point(config, points, returns):
    """Returns the index of the grid point whose agents did best on training tasks, at the end.

    By the suite's metric of the first protocol, mean over seeds and tasks; one that diverged is
    never the best where another did not.
    """
    return int(best_points(config, points, returns)[0])


def best_points(config, points, returns):
    """Returns the indices of all grid points, in the order that `best_point` goes by."""
    name = f"train/{config.run.protocols[0]}"
    last = tables.base.METRICS[config.eval.metric](returns[name][-1])  # [run, task]
    means = last.reshape(len(points), -1).mean(1)
    return np.argsort(-np.where(np.isfinite(means), means, -np.inf), kind="stable")


def draw(folder, request, env, returns, embeddings, trace, point=None):
    """Draws every figure of a run; of a sweep, what shows agents is of one grid point.

    Args: trace, (paths [S, task, H + 1, obs], mask [S, task, H]); point, the index of that grid
    point; None: `best_point`.
    """
    run, why = request.config.run, "" if point is not None else ", the best on training tasks"
    title = f"{run.algorithm} on {run.env}, suite {run.suite}, preset {run.preset}"
    point = best_point(request.config, request.points, returns) if point is None else point
    own = slice(point * run.num_seeds, (point + 1) * run.num_seeds)
    one = title
    if len(request.points) > 1:
        one += f"\n{label(request.points[point])}{why}"
    sets, target = assembly.task_sets(env), folder / "figures"
    reference = "optimum" if env.optimal_return is not None else "expert"
    metric, groups, curves = request.config.eval.metric, groups_of(request), title
    if groups and len(groups) > MAX_CURVES:
        best = sorted(best_points(request.config, request.points, returns)[:MAX_CURVES])
        curves += f"\nthe best {MAX_CURVES} of {len(groups)} grid points on training tasks"
        groups = [groups[i] for i in best]
    figures.learning_curves(target, returns, metric, groups, curves, reference)
    ids = {"train": env.train_ids, "test": env.test_ids}
    z = {name: embeddings[f"{name}/z"][-1, own] for name in ids}
    figures.embeddings(target, z, ids, env.parameters, env.parameter_names, one)
    if "train/code" in embeddings:
        codes = embeddings["train/code"][:, own]
        number = getattr(request.config.algo, "num_codes", None)
        figures.code_assignment(
            target, codes, embeddings["eval_steps"], number, "position in the split", one
        )
    if env.landmarks is not None:
        test, last = sets["test"], run.protocols[0]
        paths, mask = trace[0][own, test, :, :2], trace[1][own, test]
        scores = tables.base.METRICS["final"](returns[f"test/{last}"][-1, own])
        goals = env.landmarks[env.test_ids]
        figures.rollouts(target, paths, mask, goals, scores, env.test_ids, f"{one}, {last}")


def write(request, folder, sweep, env, meta, carry, trace, session):
    """Writes arrays, figures and summary.json; returns the summary.

    Args: trace, (paths [S, task, H + 1, obs] in the environment's units, mask [S, task, H]).
    """
    returns, spent, embeddings = arrays_of(request.config, sweep, env, meta, carry)
    seconds = session.seconds
    costs = {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "seed_steps_per_second": session.runs * session.total / max(seconds["train"], 1e-9),
        "peak_memory_bytes": computer.peak_bytes(),
        "device": switches.device_text(),
        "failed_seeds": failed_seeds(session, carry),
    }
    misfit = storage.misfit_of(meta)
    costs |= {"data_misfit": misfit} if misfit else {}
    return store(request, folder, env, Arrays(returns, embeddings, trace, spent), costs)


def store(request, folder, env, arrays, costs):
    """Writes Arrays, figures and, last, summary.json; returns the summary.

    Args: costs, what the summary has beside settings and results.
    """
    returns, embeddings, trace, spent = arrays
    np.savez_compressed(folder / "returns.npz", **returns)
    if spent is not None:
        np.savez_compressed(folder / "costs.npz", **spent)
    np.savez_compressed(folder / "embeddings.npz", **embeddings)
    np.savez_compressed(folder / "rollouts.npz", paths=trace[0], mask=trace[1])
    written = [path for name in HASHED if (path := folder / name).exists()]
    draw(folder, request, env, returns, embeddings, trace)
    run = request.config.run
    names = {"suite": run.suite, "env": run.env, "algorithm": paper_name(request.config)}
    names |= {"metric": request.config.eval.metric, "num_steps": request.config.train.num_steps}
    summary = {
        "algorithm": run.algorithm,
        "backbone": run.backbone,
        "env": run.env,
        "suite": run.suite,
        "physics": run.physics,
        "preset": run.preset,
        "fidelity": run.fidelity,
        "protocols": list(run.protocols),
        "num_seeds": run.num_seeds,
        "num_steps": request.config.train.num_steps,
        "results": tables.results(returns, names, groups_of(request), spent),
        **costs,
        "sha256": {path.name: storage.file_hash(path) for path in written},
    }
    storage.write_json(folder / "summary.json", json_files.sealed(summary))
    return summary


def run_name(entry):
    """Returns an entry of `failed_seeds` as text."""
    point = {key: value for key, value in entry.items() if key != "seed"}
    return f"seed {entry['seed']}" + (f" ({label(point)})" if point else "")


def failed_seeds(session, carry):
    """Returns [{"seed", and its grid point}] of runs whose metrics or returns are not finite."""
    bad = session.lost.copy()
    for values in carry["returns"].values():
        for pick in tables.base.METRICS.values():  # slots may be empty
            bad |= ~np.isfinite(pick(values[-1])).all(1)
    return [
        {"seed": seed, **point} for (seed, point), b in zip(session.labels(), bad, strict=True) if b
    ]


HASHED = ("returns.npz", "costs.npz", "embeddings.npz", "rollouts.npz", "metrics.jsonl")
RESULTS = ("mean", "std", "ci95", "iqm", "iqm_ci95", "normalized", "normalized_ci95", "per_seed")
SUMMARY_KEYS = (
    "algorithm", "backbone", "env", "suite", "physics", "preset", "fidelity", "num_seeds",
    "num_steps", "protocols", "results", "seconds", "seed_steps_per_second", "failed_seeds",
)  # fmt: skip


def read_summary(folder):
    """Returns a run's summary; raises UserError if there is none or it cannot be read."""
    folder = remote.path(folder)
    path = folder if folder.name == "summary.json" else folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise errors.UserError(
            f"{folder} holds no finished run (summary.json is missing): pass a run folder, or "
            f"finish the run by giving its command again"
        ) from None
    except OSError as error:
        raise errors.UserError(
            f"cannot read {path}: {error.strerror}; pass another folder"
        ) from None
    except ValueError:
        summary = None
    again = "delete it and give the run's command again"
    if not isinstance(summary, dict) or not isinstance(summary.get("results"), list):
        raise errors.UserError(f"{path} is not the summary of a run: {again}")
    summary = json_files.unsealed(summary, path, f"restore it, or {again}")
    summary.setdefault("physics", "exact")  # runs from before there was a choice
    lacking = [key for key in SUMMARY_KEYS if key not in summary]
    if lacking:
        raise errors.UserError(
            f"{path} is of an older version (it has no {lacking[0]}): use that version to show it, "
            f"or {again}"
        )
    return with_nan(summary)


def is_cell(content):
    """Whether what a file holds can be the summary of one cell of a table."""
    known = isinstance(content, dict) and isinstance(content.get("results"), list)
    return known and {"row", "env", *SUMMARY_KEYS} <= set(content)


def with_nan(summary):
    """Returns a summary with NaN in the place of null, where there are numbers."""
    return summary | {"results": [_with_nan(entry) for entry in summary["results"]]}


def _with_nan(entry):
    """Returns an entry of `results` with NaN in the place of null, where there are numbers."""
    numbers = {name: entry[name] for name in RESULTS if name in entry}
    numbers |= {"cost": entry["cost"]} if entry.get("cost") else {}
    return entry | json_files.with_nan(numbers)


def print_table(summary, folder):
    """Prints the table and what the run cost."""
    seconds = summary["seconds"]
    print()
    print(tables.render(summary["results"]))
    if summary["failed_seeds"]:
        print(f"not finite: {', '.join(map(run_name, summary['failed_seeds']))}")
    if summary.get("data_misfit"):
        print(f"WARNING: {summary['data_misfit']}")
    spent = "  ".join(f"{name} {seconds[name]:.1f} s" for name in seconds)
    print(f"\n{spent}  ({summary['seed_steps_per_second']:.0f} seed-steps/s)")
    if "device" in summary:  # there was none in older versions
        print(f"on {summary['device']}: the same seeds give other returns on other kinds of device")
    print(f"results: {folder}", flush=True)
