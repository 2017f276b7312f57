"""What every method costs beside FOCAL: a whole run of preset `quick`, and one of its steps.

    python -m benchmarks.method_times --num_seeds=1

Each method is run as a user would, `python -m experiments.run --protocol=native`, a process of its
own with an empty compilation cache, on data that are made once. Wall-clock seconds count only on a
machine that does nothing else; CPU seconds (of all threads) are reported beside them. A step's time
is that of all training, pretraining included, over all steps, pretraining included. A row above
LIMIT times FOCAL is marked.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks import machine
from experiments.host import computer as product
from experiments.runs import outputs
from gentle_jax import errors, registry

BASE = "focal"
LIMIT = 4.0  # times FOCAL
COLUMNS = ("method", "run s", "CPU s", "compile s", "step ms", "run / FOCAL", "step / FOCAL")


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    names = list(registry.ALGORITHMS)
    define(flags.DEFINE_list, "algos", names, f"methods beside {BASE}: {', '.join(names)}")
    define(flags.DEFINE_string, "suite", "ctmrl", "suite")
    define(flags.DEFINE_string, "env", "point_robot", "environment")
    define(flags.DEFINE_string, "preset", "quick", "sizes: quick, or smoke, which means nothing")
    define(flags.DEFINE_integer, "num_seeds", 1, "seeds of every run")
    define(flags.DEFINE_string, "out", "benchmarks/results/method_times.json", "file to write")
    return values


def launch(words, environment):
    """Runs a command of the project; returns (wall seconds, CPU seconds of all its threads)."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    wall, cpu = time.perf_counter(), used()
    subprocess.run(
        [sys.executable, "-m", *words], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - wall, used() - cpu


def measure(algos, args, launch=launch):
    """Returns a row for each method, FOCAL first. Args: launch, what runs a command."""
    rows = []
    shared = [f"--suite={args.suite}", f"--env={args.env}", f"--preset={args.preset}"]
    with tempfile.TemporaryDirectory() as folder:
        shared.append(f"--data={folder}/data")
        launch(["experiments.collect", *shared], dict(os.environ))
        for name in dict.fromkeys((BASE, *algos)):
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache_{name}"}
            words = ["experiments.run", f"--algo={name}", "--protocol=native", *shared]
            words += [f"--num_seeds={args.num_seeds}", f"--out={folder}/{name}"]
            wall, cpu = launch(words, environment)
            path = next(Path(folder, name).rglob("summary.json"))
            rows.append(row(name, outputs.read_summary(path), wall, cpu))
            add_ratios(rows)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def row(name, summary, wall, cpu):
    """Returns a method's times, seconds."""
    entry, seconds = summary["results"][0], summary["seconds"]
    steps = summary["num_steps"] + entry["pretraining"]
    return {
        "method": name,
        "protocol": summary["protocols"][0],
        "steps": steps,
        "run_seconds": wall,
        "cpu_seconds": cpu,
        "compile_seconds": seconds["compile"],
        "train_seconds": seconds["train"],
        "step_seconds": seconds["train"] / steps,
    }


def add_ratios(rows):
    """Writes into each row its ratios to the first, which is FOCAL's, and whether one is large."""
    for one in rows:
        for name in ("run", "cpu", "step"):
            one[f"{name}_over_focal"] = one[f"{name}_seconds"] / rows[0][f"{name}_seconds"]
        one["above_limit"] = max(one["run_over_focal"], one["step_over_focal"]) > LIMIT


def lines(rows):
    """Returns COLUMNS and a line of texts for each row."""
    texts = [list(COLUMNS)]
    for one in rows:
        mark = " *" if one["above_limit"] else ""
        numbers = (one["run_seconds"], one["cpu_seconds"], one["compile_seconds"])
        ratios = (one["run_over_focal"], one["step_over_focal"])
        texts.append(
            [one["method"] + mark, *(f"{x:.0f}" for x in numbers),
             f"{1e3 * one['step_seconds']:.2f}", *(f"{x:.2f}" for x in ratios)]
        )  # fmt: skip
    return texts


def run(args):
    """Measures, prints the table, writes the JSON file."""
    for name in args.algos:
        if name not in registry.ALGORITHMS:
            raise errors.unknown("algorithm", name, registry.ALGORITHMS)
    if args.num_seeds < 1:
        raise errors.UserError(f"--num_seeds is {args.num_seeds}: expected 1 or more")
    machine.check_writable(args.out)
    rows = measure(args.algos, args)
    print(machine.aligned(lines(rows)) + f"\n*: above {LIMIT:g} times FOCAL")
    settings = {name: getattr(args, name) for name in ("suite", "env", "preset", "num_seeds")}
    machine.write({**machine.describe(), **settings, "rows": rows}, args.out)


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    product.start()
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
