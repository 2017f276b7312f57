"""Every number that this project has set itself and that a CPU can show, beside its bar.

    python -m benchmarks.product_bars --run=runs/ctmrl/point_robot/ctmrl/FINGERPRINT

`--run` is the folder of a finished first command (README); a cold one took longer than its summary
says by what `pip install` took: `--cold_seconds` is its wall clock by hand. Reports of
`benchmarks.train_step`, `benchmarks.scaling` and `benchmarks.accelerator_suite` are read from
`--results`; what is missing there stays unknown and is said so. Measured here: the finished command
given again, compiling without and with a cache and of the initialisation alone, the refusal of what
does not fit.

A row: what, measured, the bar, measured / bar, whether it is met (null: unknown), how.
"""

import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax import monitoring

from benchmarks import machine
from experiments import run as run_command
from experiments.cli import flags as command_line
from experiments.host import computer as product
from experiments.runs import outputs
from gentle_jax import agents, assembly, errors, storage, training
from gentle_jax import sweep as sweep_lib

HERE, TRAIN, SCALING = "product_bars", "train_step", "scaling"
COMPILED = "/jax/core/compile/backend_compile_duration"
AGAIN = "import sys; from benchmarks import product_bars; product_bars.again(sys.argv[1])"
RUN_ROWS = ("cold_command", "normalized_return", "cached_command", "host_share")
FIRST = ("point_robot", "quick", 8)  # environment, preset and seeds of the first command
MIN_CACHED_SECONDS = 0.5  # as `experiments.host.computer` sets it
BARS = {  # name: (what, sense, bar, unit)
    "cold_command": ("first command, cold", "<=", 600.0, "s"),
    "normalized_return": ("its normalized return, test tasks, native protocol", ">=", 0.9, ""),
    "cached_command": ("the same command, data cached", "<=", 360.0, "s"),
    "finished_command": ("a finished run given again", "<=", 15.0, "s"),
    "gentle_point_robot": ("GENTLE step beside PyTorch's, 64 wide", ">=", 1.2, "x"),
    "gentle_ant_dir": ("GENTLE step beside PyTorch's, 256 wide", ">=", 1.2, "x"),
    "square_share": ("share of the square product's rate, 256 wide", ">=", 0.7, ""),
    "host_share": ("host between chunks, over training and evaluation", "<=", 0.02, ""),
    "dataset_copies": ("copies of the dataset on a device", "<=", 1.01, ""),
    "linear_memory": ("R2 of memory = dataset + runs x state", ">=", 0.999, ""),
    "memory_check": ("a run that does not fit is refused before training", ">=", 1.0, ""),
    "compile_growth": ("compile time, most runs over one run (fit)", "<=", 1.2, "x"),
    "compiled_once": ("compilations per program of a run", "<=", 1.0, ""),
    "init_compile": ("initialisation of the first command, compiled alone", "<=", 5.0, "s"),
    "warm_compile": ("programs of the first command from the cache", "<=", 10.0, "s"),
}


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    define(flags.DEFINE_string, "run", "", "folder of a finished first command")
    define(flags.DEFINE_float, "cold_seconds", None, "wall clock of that command, installing too")
    command = "--algo=ctmrl --num_seeds=8"
    define(flags.DEFINE_string, "command", command, "flags of the command that is compiled here")
    define(flags.DEFINE_string, "results", "benchmarks/results", "folder of other reports")
    define(flags.DEFINE_string, "out", "benchmarks/results/product_bars.json", "file to write")
    return values


def bar_row(name, measured, how, source=HERE):
    """Returns the row of one bar. Args: measured, a number, or None where it is not known."""
    return machine.bar_row(BARS, name, measured, how, source)


def run_rows(folder, cold_seconds):
    """Yields the rows that a finished run's summary tells. Args: folder, "" = none."""
    if not folder:
        for name in RUN_ROWS:
            yield bar_row(name, None, "pass --run=FOLDER of a finished first command")
        return
    summary = outputs.read_summary(folder)
    seconds = summary["seconds"]
    where = f"preset {summary['preset']}, {summary['num_seeds']} seeds"
    if (summary["env"], summary["preset"], summary["num_seeds"]) != FIRST:
        for name in RUN_ROWS:
            yield bar_row(name, None, f"{folder} is no first command: {where}")
        return
    cold = cold_seconds
    how = f"{where}, --cold_seconds"
    if cold is None and seconds["collect"] > 0:
        cold, how = seconds["total"], f"{where}, its summary: without pip install and imports"
    elif cold is None:
        how = "the run reused its data: pass --cold_seconds, or the folder of a run that made them"
    yield bar_row("cold_command", cold, how)
    native = [
        row["normalized"]
        for row in summary["results"]
        if (row["task_set"], row["protocol"]) == ("test", summary["protocols"][0])
    ]
    yield bar_row("normalized_return", native[0] if native else None, where)
    again = seconds["total"] - seconds["collect"]
    yield bar_row(
        "cached_command", again, f"{where}, total less making data; compiled {seconds['compile']} s"
    )
    work = seconds["train"] + seconds["evaluate"]
    spent = work + seconds["collect"] + seconds["compile"]
    how = f"{where}, all of the total that is not making data, compiling, training, evaluating"
    yield bar_row("host_share", (seconds["total"] - spent) / work, how)


def again(folder):
    """Gives a finished run's command again, without a shell: prints its table."""
    product.start()
    folder = Path(folder)
    config, points, _ = agents.read_config(folder)
    request = command_line.Request(config, points, "data", str(folder.parents[3]))
    if run_command.folder_of(request) != folder:
        raise errors.UserError(f"{folder} is not the folder of its settings in this version")
    run_command.execute(request)


def finished_row(folder):
    """Returns the row of a finished run given again, as a process of its own."""
    if not folder:
        return bar_row("finished_command", None, "pass --run=FOLDER of a finished run")
    begin = time.perf_counter()
    command = [sys.executable, "-c", AGAIN, str(Path(folder).resolve())]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    taken = time.perf_counter() - begin
    if process.returncode or "finished before" not in process.stdout:
        reason = (process.stderr.strip().splitlines() or ["it did not print its table"])[-1]
        return bar_row("finished_command", None, f"the run could not be given again: {reason}")
    return bar_row("finished_command", taken, "wall clock of the process, imports too")


def report_of(results, name):
    """Returns the report `name`.json of a results folder, or None; small ones count as none."""
    path = Path(results) / f"{name}.json"
    report = machine.read(path) if path.exists() else None
    return None if report is None or report.get("small") else report


def train_rows(results):
    """Yields the rows that `train_step.json` tells."""
    report = report_of(results, TRAIN)
    rows = [r for r in report["rows"] if r["kind"] == "step"] if report else []
    keyed = {(row["algorithm"], row["shapes"], row["seeds"]): row for row in rows}
    ask = "not measured: python -m benchmarks.train_step --algos=gentle --seeds=1"
    for name, shapes, key in (
        ("gentle_point_robot", "point_robot", "torch_over_jax"),
        ("gentle_ant_dir", "ant_dir", "torch_over_jax"),
        ("square_share", "ant_dir", "square_share"),
    ):
        row = keyed.get(("gentle", shapes, 1))
        how = ask if row is None else "train_step.json, one seed, both in one process, in turns"
        if row is not None and row[key] is None:
            how = f"PyTorch was not installed. {ask}"
        yield bar_row(name, row and row[key], how, TRAIN)


def scaling_rows(results):
    """Yields the rows that `scaling.json` tells: the worst of its tables over runs."""
    report = report_of(results, SCALING)
    memory = report["memory"] if report else []
    grown = [
        (max(sizes) / min(sizes)) ** fit["power"]["exponent"]
        for fit in (report["fits"] if report else ())
        if (fit["series"], fit["quantity"]) == ("runs", "compile_seconds") and fit["power"]
        for sizes in [[r["runs"] for r in report["rows"] if r["series"] == "runs"]]
    ]
    most = max((row["most_runs"] for row in memory), default=0)
    how = "not measured: python -m benchmarks.scaling"
    if memory:
        how = f"scaling.json, worst of its tables, up to {most} runs"
    copies = max((row["dataset_copies_per_device"] for row in memory), default=None)
    yield bar_row("dataset_copies", copies, how, SCALING)
    linear = min((row["r2"] for row in memory), default=None)
    yield bar_row("linear_memory", linear, how, SCALING)
    yield bar_row("compile_growth", max(grown, default=None), how, SCALING)


def random_sweep(request):
    """Returns the `training.Sweep` of a Request with random data of the right shapes."""
    env = assembly.env_of(request.config)
    num_tasks = jax.tree.leaves(env.tasks)[0].shape[0]
    random = np.random.default_rng(0)
    shapes = storage.shapes(num_tasks, request.config.behaviour, env)
    fields = {name: random.random(shape, np.float32) for name, shape in shapes.items()}
    fields |= {"mask": np.ones(shapes["mask"], np.float32), "terminal": 0 * fields["terminal"]}
    return assembly.make_sweep(request.config, fields, request.points)


class Compilations:
    """Counts what XLA compiles while it is entered."""

    def __enter__(self):
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event, seconds, **_):
        del seconds
        self.count += event == COMPILED

    def __exit__(self, *_):
        monitoring.unregister_event_duration_listener(self._listen)


def compile_rows(command):
    """Yields the rows of the programs of a command: how often, how fast from a cache, too large."""
    line = ["run", *command.split()]
    request = command_line.parse(run_command.COMMAND, line, product.on_accelerator)
    sweep = random_sweep(request)
    with machine.empty_cache(MIN_CACHED_SECONDS):
        with Compilations() as cold:
            begin = time.perf_counter()
            programs = training.compile_all(sweep)
            first = time.perf_counter() - begin
        start = programs.init.call(sweep.hp, sweep.run_keys, sweep.data)
        carry, zero, one = training.empty_carry(sweep, start), np.int32(0), np.int32(1)
        state = carry["state"]
        jax.block_until_ready(carry)
        with Compilations() as later:  # the same programs, other lengths: nothing is compiled
            for program, sums in zip(programs.stages, carry["totals"], strict=True):
                for length in (zero, one) if program else ():
                    args = (sweep.run_keys, sweep.data, zero, length)
                    state, sums = program.call(state, sums, *args)
        jax.clear_caches()
        begin = time.perf_counter()
        programs = training.compile_all(sweep)
        warm = time.perf_counter() - begin
    count = len(programs.all())
    text = f"{count} programs of `{command}`, {product.cores()} cores"
    yield bar_row("compiled_once", (cold.count + later.count) / count, text)
    how = f"{text}; traced again, XLA's work cached; {first:.1f} s without"
    yield bar_row("warm_compile", warm, how) | {"without_cache": first}
    yield init_row(sweep, text)
    yield memory_row(sweep, programs)


def init_row(sweep, text):
    """Returns the row of the initialisation: beside other programs it would wait for a core."""
    init = lambda hp, keys, data: sweep_lib.init_runs(sweep.algorithm, hp, keys, data, sweep.mesh)
    with machine.no_cache():
        jax.clear_caches()
        sharding = sweep_lib.run_sharding(sweep.mesh)
        args = sweep.hp, sweep.run_keys, sweep.data
        program = sweep_lib.compile_program(init, args, (), sharding)
    how = f"{text}; traced and compiled, nothing beside it"
    return bar_row("init_compile", program.compile_seconds, how)


def memory_row(sweep, programs):
    """Returns the row of the refusal: scratch space that no machine has."""
    run_command.check_memory(sweep, programs)
    large = programs._replace(init=sweep_lib.Program(None, 0.0, 10**18))
    try:
        run_command.check_memory(sweep, large)
        refused = 0.0
    except errors.UserError:
        refused = 1.0
    return bar_row("memory_check", refused, "experiments.run.check_memory, 10^18 bytes of scratch")


def accelerator_rows(results):
    """Returns the rows of the accelerator's suite, unknown ones where it was not run."""
    path = Path(results) / "accelerator" / "suite.json"
    report = machine.read(path) if path.exists() else {}
    if report and not report.get("small"):
        return report["bars"]
    how = "needs an accelerator: python -m benchmarks.accelerator_suite"
    return [
        {"name": "accelerator", "what": "all bars of a GPU", "measured": None, "sense": "",
         "bar": None, "unit": "", "ratio_to_bar": None, "met": None, "how": how,
         "source": "accelerator_suite"}
    ]  # fmt: skip


def table(rows):
    """Returns the rows as aligned text."""
    verdict = {True: "met", False: "MISSED", None: "unknown"}
    number = lambda value: "" if value is None else f"{value:.4g}"
    lines = [["", "measured", "bar", "/ bar", "what", "how"]]
    for row in rows:
        bar = f"{row['sense']} {number(row['bar'])} {row['unit']}".strip()
        numbers = (number(row["measured"]), bar, number(row["ratio_to_bar"]))
        lines.append([verdict[row["met"]], *numbers, row["what"]])
        lines[-1].append(row["how"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def run(args):
    """Measures and reads every row, prints the table, writes the JSON file."""
    machine.check_writable(args.out)
    rows = [
        *run_rows(args.run, args.cold_seconds),
        finished_row(args.run),
        *train_rows(args.results),
        *scaling_rows(args.results),
        *compile_rows(args.command),
        *accelerator_rows(args.results),
    ]
    names = lambda met: [row["name"] for row in rows if row["met"] is met]
    report = {
        **machine.describe(),
        "command": args.command,
        "missed": names(False),
        "unknown": names(None),
        "rows": rows,
    }
    print(table(rows))
    shown = {"missed": report["missed"], "unknown": report["unknown"]}
    print("\n".join(f"{key}: {', '.join(value) or 'none'}" for key, value in shown.items()))
    machine.write(report, args.out)


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    product.use_all_cores()
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
