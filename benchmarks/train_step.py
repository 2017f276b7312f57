"""Gradient steps per second: compile time, memory, matrix-product rate, beside a PyTorch step.

    python -m benchmarks.train_step --grid=point_robot,ant_dir --algos=gentle,ctmrl --seeds=1,8

Data are random arrays of the papers' shapes; programs are built and chunked as experiments do, with
what is published for an environment of those shapes in the suite of the algorithm's first settings.
A row is one (algorithm, shapes, seeds) in its main stage. Times are medians over rounds of torch,
jax, torch, jax, ...; the machine's matrix-product rate is taken right before and after the rounds.
Several seeds of PyTorch run in turn with all threads, and all at once, a process of one thread
each: `torch ms`, of one step of one seed, is that of the faster way.
FLOPs are those of the matrix products that the step's program asks for (`machine.products`): the
actor counts at its share of steps, periodic work at none, and XLA may do fewer.
"""

import contextlib
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import machine, torch_step
from experiments.host.computer import cores, use_all_cores
from gentle_jax import assembly, errors, registry, rng, sweep
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib

PIECES = 5  # short chunks that one long chunk is compared with
PERIOD = 2 * PIECES  # steps are a multiple: every piece holds whole policy delays
FIRST = 2  # timed steps start here: periodic work (relabelling, K-means) is due at step 0
NEVER = 1_000_000  # steps between periodic work: more than any run here takes
LAYERS = 3  # layer shapes, of the most work, whose own product rate is measured


class Shapes(NamedTuple):
    """Sizes of one environment, and where settings are from."""

    obs_dim: int
    action_dim: int
    rows: int  # per task
    environments: tuple  # the first one that is in an algorithm's suite


HORIZON = 20
GRID = {
    "point_robot": Shapes(2, 2, 2_000, ("point_robot",)),
    "ant_dir": Shapes(27, 8, 10_000, ("ant_dir", "ant_goal")),
}
SMALL_ROWS = 2 * HORIZON


class Problem(NamedTuple):
    """What one row times."""

    config: config_lib.ExperimentConfig
    algorithm: object
    data: data_lib.Dataset
    stage: object  # the main stage


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    define(flags.DEFINE_list, "grid", list(GRID), f"shapes: {', '.join(GRID)}")
    names = list(registry.ALGORITHMS)
    define(flags.DEFINE_list, "algos", names, f"algorithms: {', '.join(names)}")
    define(flags.DEFINE_list, "seeds", ["1", "8"], "numbers of seeds mapped in one program")
    define(flags.DEFINE_integer, "steps", 20, f"steps of a chunk, rounded up to {PERIOD}s")
    define(flags.DEFINE_integer, "rounds", 3, "timed chunks per row: medians are over these")
    define(flags.DEFINE_boolean, "small", False, "tiny sizes: for tests, the numbers mean nothing")
    define(flags.DEFINE_string, "out", "benchmarks/results/train_step.json", "JSON file to write")
    return values


def check_algorithms(names):
    """Raises UserError for a name in --algos that is not registered."""
    for name in names:
        if name not in registry.ALGORITHMS:
            raise errors.unknown("algorithm in --algos", name, registry.ALGORITHMS)


def _check(args):
    if not (args.grid and args.algos and args.seeds):
        raise errors.UserError("--grid, --algos and --seeds each need a value: drop an empty flag")
    for name in args.grid:
        if name not in GRID:
            raise errors.unknown("shapes in --grid", name, GRID)
    check_algorithms(args.algos)
    machine.whole_numbers("seeds", args.seeds)
    if args.steps < 1 or args.rounds < 1:
        raise errors.UserError(
            f"--steps is {args.steps}, --rounds is {args.rounds}: expected 1 or more of each"
        )
    machine.check_writable(args.out)


def _dataset(env, num_tasks, rows):
    """Random episodes of an Env's shapes, packed as real ones are."""
    random = np.random.default_rng(0)
    lead = (num_tasks, 1, rows // env.horizon, env.horizon)
    draw = lambda *tail: random.standard_normal((*lead, *tail), np.float32)
    reward = draw()
    fields = {
        "obs": draw(env.obs_dim),
        "action": np.tanh(draw(env.action_dim)),
        "reward": reward,
        "context_reward": reward,
        "next_obs": draw(env.obs_dim),
        "terminal": np.zeros(lead, np.float32),
    }
    return data_lib.from_episodes(fields, np.ones(lead, np.float32), True)


def suite_of(algorithm):
    """Returns the suite of an algorithm's first published settings; the default without any."""
    settings = getattr(registry.load("algorithm", algorithm), "SETTINGS", {})
    return next(iter(settings))[0] if settings else config_lib.RunConfig().suite


def periodic_of(algorithm):
    """Returns the field of `algo` that says how often periodic work is due, or None."""
    return getattr(registry.load("algorithm", algorithm), "PERIODIC", None)


def make_config(algorithm, preset, env, more=None):
    """Returns the ExperimentConfig whose steps are timed, all of them alike: no periodic work.

    Args: env, in the suite of the algorithm; more, further dotted overrides.
    """
    field = periodic_of(algorithm)
    overrides = {"train.num_steps": NEVER} | ({f"algo.{field}": NEVER} if field else {})
    names = {"suite": suite_of(algorithm), "env": env}
    return assembly.make_config(algorithm, preset, overrides | (more or {}), **names)


def make_problem(name, algorithm, small, more=None):
    """Returns the Problem of shapes `name`: config, bundles, data and main stage.

    Args: more, further dotted overrides.
    """
    shapes, suite = GRID[name], suite_of(algorithm)
    settings = lambda env: registry.load("environment", env).SETTINGS
    env = next(env for env in shapes.environments if suite in settings(env))
    config = make_config(algorithm, "smoke" if small else "paper", env, more)
    return assemble(config, shapes, SMALL_ROWS if small else shapes.rows)


def assemble(config, shapes, rows, num_tasks=0):
    """Returns the Problem of a config, with random data. Args: num_tasks, 0 = the suite's."""
    env = assembly.make_env("point_robot", config.run.suite)  # of the shapes nothing is stepped
    num_tasks = num_tasks or len(env.train_ids)
    sizes = {"obs_dim": shapes.obs_dim, "action_dim": shapes.action_dim, "horizon": HORIZON}
    env = env._replace(train_ids=np.arange(num_tasks), **sizes)
    dataset = _dataset(env, num_tasks, rows)
    spec = assembly.spec_of(config, env, dataset)
    algorithm, _ = assembly.make_algorithm(config, env, spec)
    return Problem(config, algorithm, jax.tree.map(jnp.asarray, dataset), algorithm.stages[-1])


class JaxLoop:
    """The chunked driver's program for S seeds."""

    def __init__(self, problem, num_seeds):
        mesh = sweep.make_mesh(num_seeds)
        self.keys = sweep.place(rng.run_keys(num_seeds), mesh)
        self.data = sweep.place_data(problem.data, mesh)
        hp = sweep.place(config_lib.hyper_params(problem.config, ({},) * num_seeds), mesh)
        init = jax.jit(sweep.init_runs, static_argnums=(0, 4))
        self.state = init(problem.algorithm, hp, self.keys, self.data, mesh)
        chunk = sweep.over_runs(sweep.make_chunk(problem.stage), 2, mesh)
        args = (self.state, self.keys, self.data, jnp.int32(0), jnp.int32(1))
        self.program = sweep.compile_program(chunk, args, (0,), sweep.run_sharding(mesh))
        self.run(0, FIRST)  # periodic work once, so that its buffers hold what they would

    def run(self, start, length):
        """Runs one chunk and fetches its metrics, as a host does; returns the seconds it took."""
        begin = time.perf_counter()
        self.state, metrics = self.program.call(
            self.state, self.keys, self.data, jnp.int32(start), jnp.int32(length)
        )
        jax.device_get(metrics)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin

    def one_run(self):
        """Returns (state, data, key) of the first run."""
        return jax.tree.map(lambda x: x[0], self.state), self.data, self.keys[0]


def _time(jax_loop, torch_loops, steps, rounds):
    """Returns {name: [seconds per round]}; a warm-up chunk of each goes before."""
    piece = steps // PIECES
    jax_loop.run(FIRST, piece)
    times = {name: [] for name in (*torch_loops, "long", "pieces", "empty")}
    for loop in torch_loops.values():
        loop.run(2)
    for _ in range(rounds):
        for name, loop in torch_loops.items():
            times[name].append(loop.run(steps))
        times["long"].append(jax_loop.run(FIRST, steps))
        starts = [FIRST + i * piece for i in range(PIECES)]
        times["pieces"].append(sum(jax_loop.run(start, piece) for start in starts))
        times["empty"].append(jax_loop.run(FIRST, 0))
    return times


def _torch_columns(times, steps, jax_seconds):
    """Returns the columns about PyTorch, in seconds per seed-step; None where it did not run.

    Args: times, of `_time`; jax_seconds, ours.
    """
    ways = (torch_step.IN_TURN, torch_step.PROCESSES)
    found = {way: statistics.median(times[way]) / steps if way in times else None for way in ways}
    best = min((seconds for seconds in found.values() if seconds is not None), default=None)
    over = None if best is None else best / jax_seconds
    return {**found, "torch_step_seconds": best, "torch_over_jax": over}


def _periodic_row(problem, jax_loop, key, rounds):
    """Seconds of periodic work: a chunk from step 0, where it is due, against one from step 2."""
    extra = [jax_loop.run(0, FIRST) - jax_loop.run(FIRST, FIRST) for _ in range(rounds)]
    call = max(statistics.median(extra), 0.0)
    run = problem.config.run
    published = assembly.make_config(run.algorithm, run.preset, suite=run.suite, env=run.env)
    every = getattr(published.algo, periodic_of(run.algorithm))
    return {
        "kind": "periodic",
        **key,
        "seconds_per_call": call,
        "every": every,
        "amortised_seconds": call / every,
    }


def measure(name, algorithm, num_seeds, steps, rounds, small, rival=True):
    """Returns the rows of one (shapes, algorithm, seeds): `step`, and `periodic` where it is."""
    problem = make_problem(name, algorithm, small)
    jax_loop = JaxLoop(problem, num_seeds)
    counts = machine.step_products(problem.stage, jax_loop.one_run(), range(FIRST, FIRST + 2))
    work = lambda shape: machine.flops({shape: counts[shape]})
    layers = sorted(counts, key=work)[-LAYERS:]
    square = lambda: machine.square_rate(64 if small else 0)
    rivals = torch_step.loops(problem, jax_loop.one_run()[0], cores(), num_seeds)
    with rivals if rival else contextlib.nullcontext({}) as torch_loops:
        before = square()
        times = _time(jax_loop, torch_loops, steps, rounds)
        after = square()
    peak, layer = (before + after) / 2, max(machine.product_rate(*shape) for shape in layers)
    step = statistics.median(times["long"]) / steps
    rate = num_seeds * machine.flops(counts) / step / 1e9
    overhead = [b / a - 1.0 for a, b in zip(times["long"], times["pieces"], strict=True)]
    memory = jax_loop.program.call.memory_analysis()
    key = {"algorithm": algorithm, "shapes": name, "seeds": num_seeds}
    row = {
        "kind": "step",
        **key,
        "steps": steps,
        "compile_seconds": jax_loop.program.compile_seconds,
        "step_seconds": step,
        "seed_steps_per_second": num_seeds / step,
        "temp_bytes": jax_loop.program.temp_bytes,
        "argument_bytes": int(getattr(memory, "argument_size_in_bytes", 0) or 0),
        "gflop_per_seed_step": machine.flops(counts) / 1e9,
        "gflops": rate,
        "square_gflops": [before, after],
        "square_share": rate / peak,
        "layer_gflops": layer,
        "layer_share": rate / layer,
        "chunk_overhead": statistics.median(overhead),
        "call_seconds": statistics.median(times["empty"]),
        **_torch_columns(times, steps, step / num_seeds),
    }
    periodic = [_periodic_row(problem, jax_loop, key, rounds)] if periodic_of(algorithm) else []
    return [row, *periodic]


COLUMNS = {
    # heading: (key, format)
    "algorithm": ("algorithm", "{}"),
    "shapes": ("shapes", "{}"),
    "seeds": ("seeds", "{}"),
    "compile s": ("compile_seconds", "{:.1f}"),
    "step ms": ("step_seconds", "{:.3g}"),
    "seed-steps/s": ("seed_steps_per_second", "{:.1f}"),
    "scratch MB": ("temp_bytes", "{:.1f}"),
    "args MB": ("argument_bytes", "{:.1f}"),
    "GFLOP/s": ("gflops", "{:.1f}"),
    "of square": ("square_share", "{:.0%}"),
    "of layers": ("layer_share", "{:.0%}"),
    "chunk cost": ("chunk_overhead", "{:+.1%}"),
    "call ms": ("call_seconds", "{:.3g}"),
    "torch ms": ("torch_step_seconds", "{:.3g}"),
    "torch/jax": ("torch_over_jax", "{:.2f}"),
}
SCALES = {"ms": 1e3, "MB": 1e-6}  # by the last word of a heading


def _cell(row, heading):
    key, pattern = COLUMNS[heading]
    if row[key] is None:
        return ""
    scale = SCALES.get(heading.split()[-1])
    return pattern.format(row[key] * scale if scale else row[key])


def table(rows):
    """Returns aligned text: the step rows, then one line per periodic work."""
    steps = [row for row in rows if row["kind"] == "step"]
    lines = [list(COLUMNS)] + [[_cell(row, heading) for heading in COLUMNS] for row in steps]
    text = [machine.aligned(lines)]
    for row in rows:
        if row["kind"] == "periodic":
            text.append(
                f"periodic work, {row['algorithm']} {row['shapes']}, {row['seeds']} seed(s): "
                f"{row['seconds_per_call'] * 1e3:.3g} ms per call, "
                f"{row['amortised_seconds'] * 1e3:.3g} ms per step at one in {row['every']}"
            )
    return "\n".join(text)


def run(args):
    """Measures the whole grid, prints the table and writes the JSON file."""
    _check(args)
    if torch_step.torch is None:
        print("torch is not installed: its columns stay empty", file=sys.stderr)
    steps = -(-args.steps // PERIOD) * PERIOD
    rows = []
    for name in args.grid:
        for algorithm in args.algos:
            for num_seeds in map(int, args.seeds):
                print(f"measuring {algorithm} {name} x {num_seeds}", file=sys.stderr)
                rows += measure(name, algorithm, num_seeds, steps, args.rounds, args.small)
    print(table(rows))
    report = {**machine.describe(torch_step.torch), "small": args.small, "rows": rows}
    machine.write(report, args.out)


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    use_all_cores()
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
