"""Are the datasets and runs below two folders the same, bit by bit? Times do not count."""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

ARRAYS = ("returns.npz", "costs.npz", "embeddings.npz", "rollouts.npz")
UNEQUAL_META = ("environment", "checksum")  # of meta.json: where it was made, and what covers that


def datasets(one, two):
    """Returns what differs between the datasets below two roots, a line each, and how many."""
    pairs, unlike = matched(one, two, "meta.json")
    for name in pairs:
        a, b = (pathlib.Path(root) / name for root in (one, two))
        metas = [json.loads((folder / "meta.json").read_text()) for folder in (a, b)]
        for meta in metas:
            for key in UNEQUAL_META:
                meta.pop(key, None)
        if metas[0] != metas[1]:
            unlike.append(f"{name}/meta.json")
        for path in sorted(a.glob("*.npy")):
            if path.read_bytes() != (b / path.name).read_bytes():
                unlike.append(f"{name}/{path.name}")
    return unlike, len(pairs)


def runs(one, two):
    """Returns what differs between the runs below two roots, a line each, and how many."""
    pairs, unlike = matched(one, two, "config.json")
    for name in pairs:
        a, b = (pathlib.Path(root) / name for root in (one, two))
        if not all((folder / "summary.json").exists() for folder in (a, b)):
            unlike.append(f"{name}/summary.json: not finished")
            continue
        for file in ARRAYS:
            with np.load(a / file) as first, np.load(b / file) as second:
                unlike += [f"{name}/{file}: {key}" for key in unequal(dict(first), dict(second))]
        lines = [(folder / "metrics.jsonl").read_text() for folder in (a, b)]
        if lines[0] != lines[1]:
            unlike.append(f"{name}/metrics.jsonl")
        results = [
            json.loads((folder / "summary.json").read_text())["results"] for folder in (a, b)
        ]
        if json.dumps(results[0]) != json.dumps(results[1]):  # NaN is equal to itself here
            unlike.append(f"{name}/summary.json: results")
        states = [newest_checkpoint(folder / "checkpoints") for folder in (a, b)]
        if states[0][0] != states[1][0]:
            unlike.append(f"{name}/checkpoints: of steps {states[0][0]} and {states[1][0]}")
        else:
            keys = unequal(states[0][1], states[1][1])
            unlike += [f"{name}/checkpoints/{states[0][0]}: leaf {key}" for key in keys]
    return unlike, len(pairs)


def matched(one, two, marker):
    """Returns (folders below both roots that hold the file `marker`, lines for the others)."""
    folders = [
        {str(path.parent.relative_to(root)) for path in pathlib.Path(root).rglob(marker)}
        for root in (one, two)
    ]
    unpaired = [f"{name}: only below {one}" for name in sorted(folders[0] - folders[1])]
    unpaired += [f"{name}: only below {two}" for name in sorted(folders[1] - folders[0])]
    return sorted(folders[0] & folders[1]), unpaired


def unequal(one, two):
    """Returns the names of arrays whose bits, types or shapes differ, or that only one has."""
    return [
        name
        for name in sorted(one.keys() | two.keys())
        if name not in one or name not in two or bits(one[name]) != bits(two[name])
    ]


def bits(array):
    """Returns what two equal arrays share: type, shape and bytes."""
    array = np.asarray(array)
    return str(array.dtype), array.shape, array.tobytes()


def newest_checkpoint(folder):
    """Returns (step, {leaf: array}) of the newest checkpoint below `folder`; (None, {}) of none."""
    folder = pathlib.Path(folder).absolute()
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    if not steps:
        return None, {}
    path = folder / str(max(steps)) / "tree"
    with ocp.StandardCheckpointer() as reader:
        held = reader.metadata(path)
        held = getattr(held, "item_metadata", held)
        held = getattr(held, "tree", held)
        like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in held.items()}
        return max(steps), reader.restore(path, like)
