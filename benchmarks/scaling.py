"""How time, memory and compile time grow with the number of runs, and with that of tasks.

    python -m benchmarks.scaling --runs=1,2,4,8,16,32,64 --tasks=10,20,40,80,160,320

Data are random arrays of Point-Robot's shapes, sizes those of preset `quick`, programs those of an
experiment's main stage. Runs are mapped in turn, as a CPU does it, and side by side, as an
accelerator does; what this device would not do is measured for every third number only.

Over tasks the dataset always grows; the batch does what the papers do: some methods take every
training task in each step, so that their step grows too, others a number whatever there are.

Every program is compiled afresh: the persistent cache is off, and one program is traced and
compiled beforehand, so that none pays for what a process does once. Times are medians over rounds
in which all rows of one table take turns. Runs are split over the cores as in an experiment: two
runs on two cores take as long as one. Memory is per device: what XLA says of the program's
arguments (the dataset, and the states of that device's runs) and of its scratch space.

Growth is fitted twice: y = a x^b by least squares on logarithms (b with its standard error and 95 %
interval), and y = a + b x, which tells more where a constant part is large, as with memory.
"""

import math
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import growth, machine, train_step
from experiments.host import computer as product
from gentle_jax import assembly, errors, registry, rng, sweep, training
from gentle_jax import config as config_lib

ENV = "point_robot"
MAPPINGS = {"in turn": True, "side by side": False}
STEPS = 4  # timed chunks are a multiple: whole policy delays, whole periods of contrasts


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    runs, tasks = [str(2**i) for i in range(7)], [str(10 * 2**i) for i in range(6)]
    define(flags.DEFINE_list, "runs", runs, "numbers of runs; empty: leave that table out")
    define(flags.DEFINE_list, "tasks", tasks, "numbers of tasks; empty: leave that table out")
    algos = ", ".join(registry.ALGORITHMS)
    define(flags.DEFINE_list, "algos", ["gentle", "ctmrl"], f"algorithms: {algos}")
    define(flags.DEFINE_integer, "rounds", 3, "timed chunks per row: medians are over these")
    define(flags.DEFINE_boolean, "small", False, "tiny sizes: for tests, the numbers mean nothing")
    define(flags.DEFINE_string, "out", "benchmarks/results/scaling.json", "JSON file to write")
    return values


def make_problem(algorithm, small, num_tasks=0):
    """Returns the `train_step.Problem` of preset `quick`. Args: num_tasks, 0 = as the preset."""
    preset, batch = "smoke" if small else "quick", {}
    if num_tasks:
        batch["train.meta_batch"] = paper_batch(algorithm, num_tasks)
    config = train_step.make_config(algorithm, preset, ENV, batch)
    levels = config.behaviour.num_levels * config.behaviour.episodes_per_level
    rows = train_step.SMALL_ROWS if small else train_step.HORIZON * levels
    return train_step.assemble(config, train_step.GRID[ENV], rows, num_tasks)


def paper_batch(algorithm, num_tasks):
    """Returns the tasks of a step: all `num_tasks` training tasks where the paper takes all."""
    published = train_step.make_config(algorithm, "paper", ENV)
    size, all_tasks = published.train.meta_batch, len(assembly.env_of(published).train_ids)
    return num_tasks if size >= all_tasks else size


def first_state(problem):
    """Returns the state of one run, leaves [1, ...], on the host."""
    hp = config_lib.hyper_params(problem.config)
    init = jax.jit(sweep.init_runs, static_argnums=0)
    return jax.device_get(init(problem.algorithm, hp, rng.run_keys(1), problem.data))


class Loop:
    """The chunked driver's program for S runs, mapped in turn or side by side."""

    def __init__(self, problem, start, num_runs, in_turn, options=None):
        """Args: start, the state of one run, leaves [1, ...]: every run gets a copy; options, as
        `sweep.compile_program`.
        """
        mesh = sweep.make_mesh(num_runs)
        tile = lambda leaf: np.repeat(leaf, num_runs, 0)
        self.devices = 1 if mesh is None else mesh.size
        self.state = sweep.place(jax.tree.map(tile, start), mesh)
        keys = sweep.place(rng.run_keys(num_runs), mesh)
        self.args = (keys, sweep.place_data(problem.data, mesh))
        chunk = sweep.over_runs(sweep.make_chunk(problem.stage), 2, mesh, in_turn)
        args = (self.state, *self.args, jnp.int32(0), jnp.int32(1))
        sharding = sweep.run_sharding(mesh)
        self.program = sweep.compile_program(chunk, args, (0,), sharding, options)
        self.run(0, train_step.FIRST)  # periodic work once, so that buffers hold what they would
        self.run(train_step.FIRST, STEPS)

    def run(self, start, length):
        """Runs one chunk and waits for it; returns the seconds it took."""
        begin = time.perf_counter()
        self.state, metrics = self.program.call(
            self.state, *self.args, jnp.int32(start), jnp.int32(length)
        )
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begin

    def memory(self):
        """Returns the bytes of arguments and scratch on each device, as XLA counts them."""
        analysis = self.program.call.memory_analysis()
        argument = int(getattr(analysis, "argument_size_in_bytes", 0) or 0)
        return {
            "argument_bytes": argument,
            "temp_bytes": self.program.temp_bytes,
            "device_bytes": argument + self.program.temp_bytes,
        }


def make_row(series, problem, loop, num_runs, mapping):
    """Returns a row without its times."""
    start = jax.tree.map(lambda leaf: leaf[:1], loop.state)
    return {
        "series": series,
        "algorithm": problem.config.run.algorithm,
        "mapping": mapping,
        "runs": num_runs,
        "tasks": problem.data.rows.reward.shape[0],
        "meta_batch": problem.config.train.meta_batch,
        "devices": loop.devices,
        "runs_per_device": math.ceil(num_runs / loop.devices),
        "compile_seconds": loop.program.compile_seconds,
        "dataset_bytes": training.state_bytes(problem.data),
        "state_bytes_per_run": training.state_bytes(start),
        **loop.memory(),
    }


def add_times(rows, loops, rounds, seconds):
    """Adds times to the rows: medians over rounds in which all loops take turns.

    Args: seconds, about how long a timed chunk should take.
    """
    lengths = []
    for loop in loops:
        once = loop.run(train_step.FIRST, STEPS) / STEPS
        lengths.append(STEPS * min(max(math.ceil(seconds / once / STEPS), 1), 250))
    times = [[] for _ in loops]
    for _ in range(rounds):
        for of_row, loop, length in zip(times, loops, lengths, strict=True):
            of_row.append(loop.run(train_step.FIRST, length) / length)
    for row, of_row, length in zip(rows, times, lengths, strict=True):
        step = statistics.median(of_row)
        row |= {"steps": length, "step_seconds": step, "step_seconds_all": of_row}
        row["seed_steps_per_second"] = row["runs"] / step


def table_of(series, jobs, rounds, seconds=0.2, warm=False):
    """Returns the rows of one table. Args: jobs, [(Problem, runs, mapping)]; rounds and seconds,
    for `add_times`; warm, whether this process has compiled such a program before.
    """
    rows, loops, last = [], [], None
    for problem, num_runs, mapping in jobs:
        if problem is not last:  # rows over runs share one problem, so one initial state
            start, last = first_state(problem), problem
        if not (loops or warm):  # what a process does once: LLVM, the allocator, JAX's own traces
            Loop(problem, start, 1, MAPPINGS[mapping])
        loops.append(Loop(problem, start, num_runs, MAPPINGS[mapping]))
        rows.append(make_row(series, problem, loops[-1], num_runs, mapping))
    add_times(rows, loops, rounds, seconds)
    return rows


def table(rows):
    """Returns the rows as aligned text."""
    head = "series algorithm mapping runs tasks batch devices compile-s step-ms seed-steps/s"
    lines = [[*head.split(), "args-MB", "scratch-MB", "state-MB/run"]]
    for row in rows:
        names = ("series", "algorithm", "mapping", "runs", "tasks", "meta_batch", "devices")
        sizes = ("argument_bytes", "temp_bytes", "state_bytes_per_run")
        lines.append(
            [
                *(str(row[name]) for name in names),
                f"{row['compile_seconds']:.2f}",
                f"{row['step_seconds'] * 1e3:.3g}",
                f"{row['seed_steps_per_second']:.1f}",
                *(f"{row[name] / 1e6:.2f}" for name in sizes),
            ]
        )
    return machine.aligned(lines)


def fit_table(fits):
    """Returns the fits as aligned text."""
    lines = [["series", "algorithm", "mapping", "quantity", "exponent", "95 %", "R2", "line R2"]]
    for fit in fits:
        power, names = fit["power"], ("series", "algorithm", "mapping", "quantity")
        interval = power and power["interval95"]
        lines.append(
            [
                *(fit[name] for name in names),
                f"{power['exponent']:.3f}" if power else "",
                "[{:.2f}, {:.2f}]".format(*interval) if interval else "",
                f"{power['r2']:.3f}" if power else "",
                f"{fit['line']['r2']:.4f}",
            ]
        )
    return machine.aligned(lines)


def check(args):
    """Raises UserError for flags that nothing could be measured with, before anything is."""
    if not args.algos or not (args.runs or args.tasks):
        raise errors.UserError("--algos needs a value, and --runs or --tasks: drop an empty flag")
    train_step.check_algorithms(args.algos)
    machine.whole_numbers("runs", args.runs)
    tasks = machine.whole_numbers("tasks", args.tasks)
    for name in args.algos if tasks else ():
        make_problem(name, args.small, min(tasks))  # the algorithm says what is too few
    if args.rounds < 1:
        raise errors.UserError(f"--rounds is {args.rounds}: expected 1 or more")
    machine.check_writable(args.out)


def measure(args):
    """Returns the rows of all tables that the flags ask for."""
    rows, known, seconds = [], None, 0.01 if args.small else 0.2
    plain = "in turn" if jax.default_backend() == "cpu" else "side by side"
    for algorithm in args.algos:
        for mapping in MAPPINGS if args.runs else ():
            print(f"measuring {algorithm} over runs, {mapping}", file=sys.stderr)
            problem = make_problem(algorithm, args.small)
            counts = args.runs if mapping == plain else args.runs[::3]  # compiling takes long
            jobs = [(problem, int(count), mapping) for count in counts]
            rows += table_of("runs", jobs, args.rounds, seconds, known == algorithm)
            known = algorithm
        if args.tasks:
            print(f"measuring {algorithm} over tasks", file=sys.stderr)
            problems = [make_problem(algorithm, args.small, int(count)) for count in args.tasks]
            jobs = [(problem, 1, plain) for problem in problems]
            rows += table_of("tasks", jobs, args.rounds, seconds, known == algorithm)
    return rows


def run(args):
    """Measures everything, prints the tables, writes the JSON file and the figure."""
    check(args)
    begin = time.perf_counter()
    with machine.no_cache():
        rows = measure(args)
    report = {
        **machine.describe(),
        "small": args.small,
        "seconds": time.perf_counter() - begin,
        "process_peak_bytes": product.peak_bytes(),  # all programs at once, and their compiler
        "rows": rows,
        "fits": growth.fits(rows),
        "memory": growth.memory_rows(rows),
    }
    print(f"{table(rows)}\n\n{fit_table(report['fits'])}\n")
    for row in report["memory"]:
        print(
            f"{row['algorithm']}, {row['mapping']}, up to {row['most_runs']} runs: dataset "
            f"{row['dataset_copies_per_device']:.3f} times per device, "
            f"{row['states_per_run']:.3f} states per run, R2 {row['r2']:.5f}"
        )
    machine.write(report, args.out)
    growth.draw(report, args.out)


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    product.use_all_cores()
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
