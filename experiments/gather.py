"""Merges the shards of a sweep: `python -m experiments.gather --from=runs`.

A shard is a finished run folder that differs from the others in its seeds only (`--seed_offset`,
`--num_seeds`). Arrays are joined along the seed axis, tables and figures are computed anew, and the
result is an ordinary run folder of the whole range, as if one process had run it.
"""

import itertools
import json
import math
import pathlib
import tempfile

import numpy as np
from tensorboardX import SummaryWriter

from gentle_jax import assembly, errors, json_files, storage
from gentle_jax import config as config_lib

from .cli import exit_codes, flags
from .cli.command import Command, start
from .host import computer, switches
from .runs import code_identity, environments, outputs, remote
from .runs.shards import damaged, load, read, read_shard, settings_of

SUMMARY = (
    "Merges run folders that differ in their seeds only into one run folder of all the seeds. "
    "Gaps, duplicates and unfinished shards are refused; several sweeps below --from are gathered "
    "one by one."
)
EXTRA = (
    ("from", str, "", "root to search for shards [runs]"),
    ("shard", list, [], "one shard's run folder, instead of --from; repeatable"),
    ("to", str, "", "root of the merged run folder; default: the one that holds all shards"),
    ("num_runs", int, None, "runs (seeds x grid points) that there must be: finds a missing last"),
    ("num_seeds", int, None, "the same for seeds, whatever the grid"),
    ("accept_code", bool, False, "merge shards of different code all the same"),
)
DEPTH = 5  # below a root: an --out of the shard's own, suite, env, algo, fingerprint
WHOLE = ("eval_steps", "train_ids", "test_ids", "axes", "random_return", "reference_return")


def find(root):
    """Returns the Shards below a root, those that were gathered before left out."""
    root = remote.path(root)
    paths = [path for depth in range(DEPTH + 1) for path in root.glob("*/" * depth + "config.json")]
    shards = [read_shard(p.parent) for p in sorted(paths) if not code_identity.is_aside(p.parent)]
    return [shard for shard in shards if not (shard.summary and "shards" in shard.summary)]


def without_seeds(identity):
    """Returns an identity without what shards of one sweep differ in."""
    run = {k: v for k, v in identity["run"].items() if k not in ("seed_offset", "num_seeds")}
    return identity | {"run": run}


def groups_of(shards):
    """Returns lists of Shards that agree in all settings but their seeds, sorted by seeds."""
    groups = {}
    for shard in sorted(shards, key=lambda shard: (shard.first, shard.count)):
        groups.setdefault(config_lib.fingerprint(without_seeds(shard.identity)), []).append(shard)
    return list(groups.values())


def differing(one, other, prefix=""):
    """Returns the first dotted key in which two JSON trees differ, with both values; or None."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return None if one == other else (prefix, one, other)
    for key in sorted({*one, *other}):
        found = differing(one.get(key), other.get(key), f"{prefix}.{key}" if prefix else key)
        if found:
            return found
    return None


def check(shards, wanted):
    """Raises UserError unless Shards of one group, sorted, are finished and cover one range once.

    Args: wanted, {"num_runs", "num_seeds"}: how many there must be, or None.
    """
    for shard in shards:
        if shard.summary is None:
            raise errors.UserError(
                f"{shard.folder} is unfinished (no summary.json): give its command again, it "
                f"resumes, and gather then"
            )
    for one, other in itertools.pairwise(shards):
        if other.first < one.end:
            raise errors.UserError(
                f"seeds {other.first} to {min(one.end, other.end) - 1} are in both {one.folder} "
                f"and {other.folder}: name the shards to take with --shard"
            )
        if other.first > one.end:
            raise errors.UserError(
                f"seeds {one.end} to {other.first - 1} are missing between {one.folder} and "
                f"{other.folder}: run them with --seed_offset={one.end} "
                f"--num_seeds={other.first - one.end}"
            )
    points = len(shards[0].identity["sweep"])
    count = sum(shard.count for shard in shards)
    for name, there in (("num_runs", points * count), ("num_seeds", count)):
        if wanted[name] not in (None, there):
            raise errors.UserError(
                f"seeds {shards[0].first} to {shards[-1].end - 1} of {points} grid point(s) below "
                f"{shards[0].folder.parent} are {points * count} runs: --{name} asks for "
                f"{wanted[name]}; run the missing shards, or pass another --{name}"
            )


def join(parts, axis, points):
    """Concatenates run axes [point x seed, point-major] of several shards, seeds in order."""
    split = [
        part.reshape(*part.shape[:axis], points, -1, *part.shape[axis + 1 :]) for part in parts
    ]
    both = np.concatenate(split, axis + 1)
    return both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])


def joined(shards, name, axis):
    """Returns the arrays of `name` of all shards, joined along their run axis.

    Raises UserError where what is common to all runs differs between shards.
    """
    loaded = [load(shard, name) for shard in shards]
    points = len(shards[0].identity["sweep"])
    whole = {}
    for key, first in loaded[0].items():
        parts = [arrays.get(key) for arrays in loaded]
        if key not in WHOLE and all(part is not None and part.ndim > axis for part in parts):
            whole[key] = join(parts, axis, points)
            continue
        for shard, part in zip(shards, parts, strict=True):
            if part is None or not same(first, part):
                raise errors.UserError(
                    f"{shards[0].folder} and {shard.folder} differ in {key} of {name}: they were "
                    f"run on other data or with another version; run one of them again"
                )
        whole[key] = first
    return whole


def same(one, other):
    """Whether two arrays are equal, NaN equal to NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def metric_lines(shards):
    """Returns the lines of all metrics.jsonl as dicts: by step, grid point, seed."""
    labels = [outputs.label(point) for point in shards[0].identity["sweep"]]
    order = {label: index for index, label in enumerate(labels)}
    lines = []
    for shard in shards:
        path = shard.folder / "metrics.jsonl"
        try:
            lines += map(json.loads, read(shard, path.name).decode().splitlines())
        except (OSError, ValueError):
            raise damaged(path) from None
    return sorted(lines, key=lambda x: (x["step"], order.get(x.get("sweep", ""), 0), x["seed"]))


def write_metrics(folder, lines):
    """Writes metrics.jsonl, and TensorBoard means over all runs."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    totals = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "stage", "seed", "sweep"):
                number = math.nan if value is None else value
                totals.setdefault((line["step"], f"{line['stage']}/{name}"), []).append(number)
    with SummaryWriter(str(folder / "tensorboard")) as board:
        for (step, name), values in totals.items():
            board.add_scalar(name, float(np.mean(values)), step)


def costs_of(shards):
    """Returns what a summary says of costs: seconds summed over shards, their mean rate."""
    summaries = [shard.summary for shard in shards]
    names = summaries[0]["seconds"]
    seconds = {k: round(sum(s["seconds"].get(k, 0.0) for s in summaries), 3) for k in names}
    steps = sum(s["seed_steps_per_second"] * s["seconds"]["train"] for s in summaries)
    misfit = next((s["data_misfit"] for s in summaries if s.get("data_misfit")), None)
    return {
        **({"data_misfit": misfit} if misfit else {}),
        "seconds": seconds,
        "seed_steps_per_second": steps / max(seconds["train"], 1e-9),
        "peak_memory_bytes": max(s.get("peak_memory_bytes", 0) for s in summaries),
        "device": " and ".join(sorted({s.get("device", "unknown") for s in summaries})),
        "failed_seeds": [failed for s in summaries for failed in s["failed_seeds"]],
        "shards": [
            {"folder": str(s.folder), "seed_offset": s.first, "num_seeds": s.count} for s in shards
        ],
    }


def identity_of(shards):
    """Returns the identity of the run that has the seeds of all shards."""
    run = shards[0].identity["run"]
    count = sum(shard.count for shard in shards)
    return shards[0].identity | {"run": run | {"num_seeds": count}}


def root_of(shards, searched):
    """Returns the root below which the merged run goes, unless --to says another one.

    Args: searched, what --from was, or None: it, or the root of the first shard if that is above.
    """
    shard, run = shards[0], shards[0].identity["run"]
    names = [run[name] for name in ("suite", "env", "algorithm")]
    parents = [*shard.folder.parents]
    regular = len(parents) > 3 and [folder.name for folder in parents[2::-1]] == names
    above = parents[3] if regular else parents[0]
    return above if searched is None or searched in parents[:3] else searched


def target_of(shards, root):
    """Returns the merged run's folder; raises UserError if a run of its own is there."""
    identity = identity_of(shards)
    run, name = identity["run"], config_lib.fingerprint(identity)
    folder = root / run["suite"] / run["env"] / run["algorithm"] / name
    there = read_shard(folder)
    if there and not (there.summary and "shards" in there.summary):
        raise errors.UserError(f"{folder} is a run of its own: pass another --to, or delete it")
    return folder


def merge(shards, folder):
    """Writes the merged run of Shards into `folder`; returns its summary."""
    identity = identity_of(shards)
    config, points = settings_of(identity)
    request = flags.Request(config, points, "", "")
    with tempfile.TemporaryDirectory() as work:
        local = pathlib.Path(work)
        returns = joined(shards, "returns.npz", 1)
        embeddings = joined(shards, "embeddings.npz", 1)
        rollouts = joined(shards, "rollouts.npz", 0)
        counted = all((shard.folder / "costs.npz").exists() for shard in shards)
        costs = joined(shards, "costs.npz", 1) if counted else None
        trace = rollouts["paths"], rollouts["mask"]
        arrays = outputs.Arrays(returns, embeddings, trace, costs)
        environment = json_files.sealed(environments.merged(shards))
        storage.write_json(local / "environment.json", environment)
        write_metrics(local, metric_lines(shards))
        env = assembly.env_of(config)
        summary = outputs.store(request, local, env, arrays, costs_of(shards))
        storage.write_json(local / "config.json", json_files.sealed(identity))
        if (folder / "config.json").exists():  # gathered before: no half of each
            (folder / "config.json").unlink()
        # a folder without its config.json is no run folder yet
        remote.copy_tree(local, folder, last=("summary.json", "config.json"))
    return summary


def chosen(own):
    """Returns the groups of Shards to merge; raises UserError for what cannot be merged."""
    if own["shard"] and own["from"]:
        raise errors.UserError("--shard and --from are both given: pass one of them")
    if own["shard"]:
        folders = [remote.path(text) for text in dict.fromkeys(own["shard"])]
        shards = [read_shard(folder) for folder in folders]
        for folder, shard in zip(folders, shards, strict=True):
            if shard is None:
                raise errors.UserError(f"{folder} is no run folder (no config.json): pass another")
        groups = groups_of(shards)
        if len(groups) > 1:
            one, other = groups[0][0], groups[1][0]
            key, first, second = differing(
                without_seeds(one.identity), without_seeds(other.identity)
            )
            raise errors.UserError(
                f"{one.folder} and {other.folder} are not of one sweep: {key} is {first} and "
                f"{second}; pass shards that differ in their seeds only"
            )
        return groups
    root = own["from"] or "runs"
    groups = groups_of(find(root))
    counted = own["num_runs"] is not None or own["num_seeds"] is not None
    kept = [group for group in groups if len(group) > 1 or counted]
    for (alone,) in (group for group in groups if len(group) == 1 and group not in kept):
        state = "is the only one of its sweep" if alone.summary else "is unfinished and alone"
        print(f"gather: leaving out {alone.folder}: it {state}")
    if not kept:
        raise errors.UserError(
            f"no shards below {root}: expected at least two run folders that differ in "
            f"--seed_offset only; pass another --from"
        )
    return kept


def run(line):
    """The command; returns its exit code, DIVERGED if a run of them became NaN."""
    switches.pin()
    switches.start_backend()
    own = line.own
    groups = chosen(own)
    for shards in groups:
        check(shards, own)
        code_identity.check_shards([shard.folder for shard in shards], own["accept_code"])
    failed = [seed for shards in groups for s in shards for seed in s.summary["failed_seeds"]]
    for (alone,) in (shards for shards in groups if len(shards) == 1):
        print(f"gather: {alone.folder} holds all runs already")
    groups = [shards for shards in groups if len(shards) > 1]
    to = remote.path(own["to"]) if own["to"] else None
    searched = None if own["shard"] else remote.path(own["from"] or "runs")
    targets = [target_of(shards, to or root_of(shards, searched)) for shards in groups]
    for shards, folder in zip(groups, targets, strict=True):
        print(
            f"gather: {len(shards)} shards, seeds {shards[0].first} to {shards[-1].end - 1}, "
            f"into {folder}",
            flush=True,
        )
        if not remote.is_remote(folder):
            computer.prepare_folder(folder, 20e6, "--to")
        with computer.disk_may_fill(folder):
            summary = merge(shards, folder)
        outputs.print_table(summary, folder)
    return exit_codes.DIVERGED if failed else exit_codes.DONE


COMMAND = Command("gather", SUMMARY, run, own=EXTRA)

if __name__ == "__main__":
    start(COMMAND)
