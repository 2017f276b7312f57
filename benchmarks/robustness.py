"""What changed bits and processes in one folder do: `python -m benchmarks.robustness --run=FOLDER`.

Flips single bits of a run folder and of its dataset, one at a time, and reads the file as commands
do: refused in one line, taken from the checkpoint before with a warning, or read as it was. A
number that differs without a word is wrong, and there must be none. Then several processes enter,
leave and probe one folder: there must never be two inside, nor a refusal of the folder. Needs a
finished run with two checkpoints, and its dataset. Exit code 1 where something is wrong.
"""

import collections
import contextlib
import io
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
import warnings

import jax
import numpy as np
from absl import flags

from benchmarks import machine
from experiments import collect, gather
from experiments.cli import exit_codes
from experiments.host import computer
from experiments.runs import code_identity, outputs, shards
from gentle_jax import agents, assembly, checkpoint, errors, storage, training

SAME, WARNED, REFUSED, WRONG = "as it was", "warned", "refused", "WRONG"


def make_flags():
    """Returns the flags of this command."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    define(flags.DEFINE_string, "run", "", "a finished run folder")
    define(flags.DEFINE_string, "data", "data", "root of its dataset")
    define(flags.DEFINE_integer, "flips", 1000, "bits to change, one at a time")
    define(flags.DEFINE_integer, "seed", 0, "of the places")
    define(flags.DEFINE_integer, "processes", 8, "that share a folder")
    define(flags.DEFINE_float, "seconds", 30.0, "how long they do")
    define(flags.DEFINE_string, "out", "benchmarks/results/robustness.json", "report to write")
    return values


def frozen(tree):
    """Returns a tree of arrays and numbers in a form that `==` compares bit by bit."""
    if isinstance(tree, dict):
        return {key: frozen(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [frozen(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return str(tree.dtype), tree.shape, tree.tobytes()
    return repr(tree)  # NaN is equal to itself


def readers_of(run):
    """Returns {name: function (run folder)} of what commands read of a run, arrays left out.

    Args: run, the folder as it was: its summary is what `gather` has read before its arrays.
    """
    shard = shards.read_shard(run)
    log = lambda folder: gather.metric_lines([shard._replace(folder=folder)])
    readers = {
        "summary.json": outputs.read_summary,
        "config.json": lambda folder: (
            shards.read_shard(folder)[1:4],
            agents.read_config(folder),
        ),
        "environment.json": code_identity.environment_of,
        "metrics.jsonl": log,
    }
    arrays = {name: None for name in shard.summary["sha256"] if name.endswith(".npz")}
    for name in arrays:
        readers[name] = lambda folder, name=name: shards.load(shard._replace(folder=folder), name)
    return readers


def checkpoints_of(run, root):
    """Returns (restore, frozen newest state, frozen state before) of a run's checkpoints."""
    config, points, _ = agents.read_config(run)
    fields, _ = storage.load(collect.dataset_folder(config, root), config)
    like = training.carry_shapes(assembly.make_sweep(config, fields, points))

    def restore(folder):
        with checkpoint.Checkpoints(folder / "checkpoints") as saves:
            tree, meta = saves.restore(like)
        return frozen([jax.tree.leaves(tree), meta])

    with tempfile.TemporaryDirectory() as work:
        copy = pathlib.Path(work) / "run"
        shutil.copytree(run, copy)
        newest = restore(copy)
        steps = sorted((copy / "checkpoints").iterdir(), key=lambda path: int(path.name))
        shutil.rmtree(steps[-1])
        return restore, newest, restore(copy)


def agree(found, wanted):
    """Whether two `frozen` trees are equal in all that is wanted; an unknown key is no number."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return all(key in found and agree(found[key], value) for key, value in wanted.items())
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return all(map(agree, found, wanted))
    return found == wanted


def outcome(read, wanted, before=None):
    """Returns what reading altered files led to. Args: before, what a fall-back gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = read()
        except errors.UserError:
            return REFUSED
    if agree(found, wanted):
        return SAME
    told = any("is damaged" in str(one.message) for one in caught)
    return WARNED if told and agree(found, before) else WRONG


def flip(path, bit):
    """Changes one bit of a file in place."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flips(run, data, count, seed, saved=None):
    """Returns {(kind of file, outcome): how often}, and the places of wrong ones.

    Args: run, a run folder; data, its dataset's folder, or None; saved, of `checkpoints_of`, or
    None to leave checkpoints out. Half of the places are uniform over files, half over bytes.
    """
    readers = readers_of(run)
    wanted = {name: frozen(read(run)) for name, read in readers.items()}
    files = [run / name for name in readers]
    if saved:
        newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
        files += [path for path in newest.rglob("*") if path.is_file()]
    whole = data and frozen(storage.load(data))
    files += [data / "meta.json", *sorted(data.glob("*.npy"))] if data else []
    sizes, draw = [path.stat().st_size for path in files], random.Random(seed)
    counts, wrong = collections.Counter(), []
    for number in range(count):
        path = draw.choice(files) if number % 2 else draw.choices(files, sizes)[0]
        bit = draw.randrange(8 * path.stat().st_size)
        home = data if data and path.parent == data else run
        with tempfile.TemporaryDirectory() as work:
            copy = pathlib.Path(work) / "copy"
            shutil.copytree(home, copy)
            flip(copy / path.relative_to(home), bit)
            if home == data:
                kind, found = "data", outcome(lambda c=copy: frozen(storage.load(c)), whole)
            elif path.name in readers and path.parent == run:
                read, kind = readers[path.name], path.name
                found = outcome(lambda r=read, c=copy: frozen(r(c)), wanted[kind])
            else:
                restore, newest_state, before = saved
                read = lambda r=restore, c=copy: r(c)
                kind, found = "checkpoint", outcome(read, newest_state, before)
        counts[kind, found] += 1
        wrong += [f"{path.relative_to(home)} bit {bit}"] if found == WRONG else []
    return counts, wrong


def enter(folder, results, until):
    """Enters and leaves a folder, and probes it, until a time; tells how often, and what failed."""
    entries = doubles = refused = 0
    inside = folder / "inside"
    while time.monotonic() < until:
        try:
            computer.prepare_folder(folder, 1, "--out")
        except errors.UserError:
            refused += 1
        with contextlib.suppress(errors.UserError), computer.alone(folder):
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                doubles += 1
                continue
            entries += 1
            time.sleep(0.0005)
            inside.unlink()
    results.put((entries, doubles, refused))


def compete(folder, seconds, count):
    """Returns (entries, double entries, refusals of the folder) of some processes together."""
    folder.mkdir(parents=True, exist_ok=True)
    fork = multiprocessing.get_context("fork")
    results, until = fork.Queue(), time.monotonic() + seconds
    workers = [fork.Process(target=enter, args=(folder, results, until)) for _ in range(count)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=seconds + 60) for _ in workers]
    for worker in workers:
        worker.join()
    return tuple(map(sum, zip(*found, strict=True)))


def run(args):
    """Measures, prints, writes the report; returns the exit code."""
    machine.check_writable(args.out)
    with tempfile.TemporaryDirectory() as work:  # before JAX has threads
        entries, doubles, refused = compete(
            pathlib.Path(work) / "runs", args.seconds, args.processes
        )
    print(f"{args.processes} processes x {args.seconds:.0f} s: {entries} entries,", end=" ")
    print(f"{doubles} double entries, {refused} refusals of the folder", flush=True)
    folder = pathlib.Path(args.run)
    config, _, _ = agents.read_config(folder)
    data = collect.dataset_folder(config, args.data)
    saved = checkpoints_of(folder, args.data)
    with contextlib.redirect_stderr(io.StringIO()):  # Orbax tells of reads that it gave up
        counts, wrong = flips(folder, data, args.flips, args.seed, saved)
    for (kind, found), number in sorted(counts.items()):
        print(f"{kind:<18} {found:<10} {number}")
    print(f"{sum(counts.values())} flips, {len(wrong)} wrong numbers without a warning")
    report = {
        **machine.describe(), "flips": {f"{k}: {found}": n for (k, found), n in counts.items()},
        "wrong": wrong, "processes": args.processes, "seconds": args.seconds, "entries": entries,
        "double_entries": doubles, "refusals": refused,
    }  # fmt: skip
    machine.write(report, args.out)
    return exit_codes.FAILED if wrong or doubles or refused else exit_codes.DONE


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
