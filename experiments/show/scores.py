"""Returns of every seed and task: what comparisons of methods are computed from."""

import io

import numpy as np

from gentle_jax import errors
from gentle_jax.protocols import base

from ..runs import npz_files, remote
from . import tables

BOUNDS = "bounds"
RLIABLE = "rliable"  # the form of the library of that name: {algorithm: scores [runs, tasks]}


def of_run(folder, metric):
    """Returns {"<task set>/<protocol>": returns [seeds, tasks]} of a run's last checkpoint.

    And "bounds/<task set>": the random policy's and the reference's returns [2, tasks]. Args:
    metric, of `base.metrics`. Runs without `returns.npz` have none.
    """
    path = remote.path(folder) / "returns.npz"
    if not path.exists():
        return {}
    try:
        return _of_file(io.BytesIO(path.read_bytes()), metric)
    except npz_files.DAMAGE as error:
        raise errors.UserError(
            f"{path} cannot be read ({error}): delete the summary.json beside it, give the run's "
            f"command again"
        ) from None


def _of_file(file, metric):
    """Returns what `of_run` does, of an open `returns.npz`."""
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: base.METRICS[metric](arrays[name][-1]) for name, *_ in tables.blocks(arrays)}
        for task_set in tables.TASK_SETS:
            ids = arrays[f"{task_set}_ids"]
            bounds = [arrays[f"{bound}_return"][ids] for bound in ("random", "reference")]
            found[f"{BOUNDS}/{task_set}"] = np.stack(bounds)
    return {name: np.asarray(one, np.float32) for name, one in found.items()}


def normalized(own, name):
    """Returns the scores [seeds, tasks] of a run's returns; NaN without a better reference."""
    random, reference = own[f"{BOUNDS}/{name.split('/')[0]}"]
    gap = np.where(reference > random, reference - random, np.nan)
    return (own[name] - random) / gap


def write(path, scores):
    """Writes {(row, env): {name: [seeds, tasks]}} as one compressed file."""
    flat = {"|".join((*at, name)): one for at, of in scores.items() for name, one in of.items()}
    npz_files.write(path, flat)


def read(path):
    """Returns what `write` wrote; raises UserError for a file that is none."""
    found = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays:
                row, env, name = key.split("|")
                found.setdefault((row, env), {})[name] = arrays[key]
    except npz_files.DAMAGE as error:
        raise errors.UserError(f"{path} holds no scores of a table ({error})") from None
    return found


def export(folder, table, scores):
    """Writes {row: normalized returns [runs, tasks]} for each protocol and task set, to a file.

    Returns the paths. Tasks are those of all environments, one after the other; rows that lack one
    are left out.
    """
    names = dict.fromkeys(name for of in scores.values() for name in of)
    paths = []
    for name in (name for name in names if not name.startswith(BOUNDS)):
        envs = list(dict.fromkeys(env for (_, env), of in scores.items() if name in of))
        whole = {}
        for row in dict.fromkeys(row for row, _ in scores):
            own = [scores.get((row, env), {}) for env in envs]
            parts = [normalized(each, name) for each in own if name in each]
            if len(parts) == len(envs) and len({len(part) for part in parts}) == 1:
                whole[row] = np.concatenate(parts, 1)
        paths.append(folder / f"{table}_{RLIABLE}_{name.replace('/', '_')}.npz")
        np.savez_compressed(paths[-1], **whole)
    return paths
