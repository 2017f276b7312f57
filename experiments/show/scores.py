"""Normalized returns of every seed and task: what comparisons of methods are computed from."""

import io
import zipfile

import numpy as np

from experiments.runs import remote
from experiments.show import tables
from gentle_jax import errors, statistics
from gentle_jax.protocols import base

RLIABLE = "rliable"  # the form of the library of that name: {algorithm: scores [runs, tasks]}


def of_run(folder, metric):
    """Returns {"<task set>/<protocol>": [seeds, tasks]} of a run's last checkpoint.

    Args: metric, of `base.metrics`. Runs without `returns.npz` have none.
    """
    path = remote.path(folder) / "returns.npz"
    if not path.exists():
        return {}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
        found = {}
        for name, task_set, _ in tables.blocks(arrays):
            ids = arrays[f"{task_set}_ids"]
            random, reference = (
                arrays[f"{bound}_return"][ids] for bound in ("random", "reference")
            )
            returns = base.METRICS[metric](arrays[name][-1])
            gap = np.where(reference == random, np.nan, reference - random)
            found[name] = ((returns - random) / gap).astype(np.float32)
    return found


def write(path, scores):
    """Writes {(row, env): {name: [seeds, tasks]}} as one compressed file."""
    flat = {"|".join((*at, name)): one for at, of in scores.items() for name, one in of.items()}
    np.savez_compressed(path, **flat)


def read(path):
    """Returns what `write` wrote; raises UserError for a file that is none."""
    found = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays:
                row, env, name = key.split("|")
                found.setdefault((row, env), {})[name] = arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise errors.UserError(f"{path} holds no scores of a table ({error})") from None
    return found


def export(folder, table, scores):
    """Writes a file {row: [runs, tasks]} for each protocol and task set; returns the paths.

    Tasks are those of all environments, one after the other; rows without one of them are left out.
    """
    paths, names = [], dict.fromkeys(name for of in scores.values() for name in of)
    for name in names:
        envs = list(dict.fromkeys(env for (_, env), of in scores.items() if name in of))
        whole = {}
        for row in dict.fromkeys(row for row, _ in scores):
            parts = [scores.get((row, env), {}).get(name) for env in envs]
            if all(part is not None for part in parts) and len({len(p) for p in parts}) == 1:
                whole[row] = np.concatenate(parts, 1)
        paths.append(folder / f"{table}_{RLIABLE}_{name.replace('/', '_')}.npz")
        np.savez_compressed(paths[-1], **whole)
    return paths


def two_sided(ours, theirs):
    """Returns (probability of improvement, its 95 % interval, p of "it is one half")."""
    samples = statistics.improvement_samples(ours, theirs)
    low, high = np.percentile(samples, [2.5, 97.5])
    below, above = (samples <= 0.5).sum() + 1, (samples >= 0.5).sum() + 1
    p = min(1.0, 2.0 * min(below, above) / (len(samples) + 1))
    return statistics.improvement(ours, theirs), (low, high), p
