"""Environment steps per second of the MuJoCo families: MJX on all cores beside C MuJoCo.

    python -m benchmarks.env_step --families=hopper_params,ant_dir --batches=16,128 --returns

A row is one (family, physics, batch). MJX runs whole environment steps, observation and reward
included, split over all cores as `sweep.over_runs` splits tasks; C MuJoCo runs `mujoco.batch` on as
many threads with the same model options, start and actions, and computes no observation or reward.
Both take uniform random actions made beforehand and never restart. Times are medians over rounds
of C, MJX, C, MJX, ... A second table tells what integrator and solver cost (Euler as in `fast`,
without implicit damping), and `--returns` how far the two physics lie apart for the same policy.
"""

import copy
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from absl import flags
from mujoco import batch as c_batch

from benchmarks import env_returns, machine
from experiments.host.computer import cores, use_all_cores
from gentle_jax import assembly, errors, physics, registry, sweep

FAMILIES = tuple(
    name
    for name in registry.ENVIRONMENTS
    if registry.load("environment", name).PHYSICS == physics.MODES
)
INTEGRATORS = ("EULER", "RK4")
# (Newton iterations, line-search steps): those of `fast` and of `reference`
LIMITS = ((physics.FAST_ITERATIONS, physics.FAST_LS_ITERATIONS), (4, 50))
# MuJoCo starts a simulation anew, and counts it, where one of these is not finite or huge
RESETS = [int(getattr(mujoco.mjtWarning, f"mjWARN_BAD{name}")) for name in ("QPOS", "QVEL", "QACC")]


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    define(flags.DEFINE_list, "families", list(FAMILIES), f"families: {', '.join(FAMILIES)}")
    define(flags.DEFINE_list, "batches", ["1", "16", "128"], "numbers of simulations side by side")
    modes = f"of {', '.join(physics.MODES)}; the last is C MuJoCo within the program"
    define(flags.DEFINE_list, "physics", list(physics.MJX_MODES), modes)
    define(flags.DEFINE_integer, "steps", 20, "environment steps of every simulation in a round")
    define(flags.DEFINE_integer, "rounds", 3, "timed rounds per row: medians are over these")
    define(flags.DEFINE_string, "cost_family", "ant_dir", "family of the second table; '' = none")
    define(flags.DEFINE_integer, "cost_batch", 128, "simulations of the second table")
    define(flags.DEFINE_boolean, "returns", False, "also compare returns of the two physics")
    define(flags.DEFINE_integer, "episodes", 32, "episodes per policy of --returns")
    define(flags.DEFINE_integer, "trained_steps", 0, "also train agents for --returns; 0 = none")
    define(flags.DEFINE_integer, "horizon", 0, "steps of an episode of --returns; 0 = the suite's")
    define(flags.DEFINE_string, "out", "benchmarks/results/env_step.json", "JSON file to write")
    return values


def check(args):
    """Raises UserError for flags that nothing could be measured with, before anything is."""
    if not (args.families and args.batches and args.physics):
        raise errors.UserError("--families, --batches and --physics need a value: drop empty flags")
    for name in [*args.families, *([args.cost_family] if args.cost_family else [])]:
        if name not in FAMILIES:
            raise errors.unknown("family", name, FAMILIES)
    for name in args.physics:
        if name not in physics.MODES:
            raise errors.unknown("mode in --physics", name, physics.MODES)
    machine.whole_numbers("batches", args.batches)
    for name, least in (("steps", 1), ("rounds", 1), ("cost_batch", 1), ("episodes", 2)):
        if args[name].value < least:
            raise errors.UserError(f"--{name} is {args[name].value}: expected {least} or more")
    for name in ("horizon", "trained_steps"):
        if args[name].value < 0:
            raise errors.UserError(f"--{name} is {args[name].value}: expected 0 or more")
    if args.trained_steps % 16:
        raise errors.UserError(
            f"--trained_steps is {args.trained_steps}: 16 copies step at once, expected a multiple"
        )
    machine.check_writable(args.out)


def make_env(family, mode):
    """Returns the Env of a family in the first suite that it is in."""
    return assembly.make_env(family, env_returns.suite_of(family), mode)


def whole_step(env):
    """Returns step(task, state, action) -> (state, a number that needs reward and observation)."""

    def step(task, state, action):
        state, out = env.step(task, state, action)
        return state, out.reward + out.obs.sum()

    return step


def bare_step(system):
    """Returns a step of the physics alone, as C MuJoCo takes it."""

    def step(task, state, action):
        state, finite = system.step(physics.fields_of(system, task), state, action)
        return state, finite.astype(jnp.float32)

    return step


def with_options(system, integrator, limits):
    """Returns the System with another integrator and solver limits, Euler without damping."""
    c_model = copy.copy(system.c_model)
    c_model.opt.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator}")
    c_model.opt.iterations, c_model.opt.ls_iterations = limits
    c_model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    return physics.of_model(c_model, system.frame_skip, system.with_contact_cost)


def inputs(env, batch, steps):
    """Returns (tasks, states, actions [batch, steps, action_dim]): tasks in turn, random starts."""
    num_tasks = jax.tree.leaves(env.tasks)[0].shape[0]
    tasks = jax.tree.map(lambda leaf: leaf[np.arange(batch) % num_tasks], env.tasks)
    keys = jax.random.split(jax.random.key(0), batch)
    states = jax.jit(jax.vmap(lambda task, key: env.reset(task, key)[0]))(tasks, keys)
    random = np.random.default_rng(0)
    actions = random.uniform(-1.0, 1.0, (batch, steps, env.action_dim)).astype(np.float32)
    return tasks, jax.device_get(states), actions


def make_simulate(step):
    """Returns simulate(task, state, actions [H, A], steps) -> (state, a number) of one simulation.

    Args: step, from `whole_step` or `bare_step`.
    """

    def simulate(task, state, actions, steps):
        def body(i, carry):
            state, total = carry
            state, number = step(task, state, actions[i])
            return state, total + number

        return jax.lax.fori_loop(0, steps, body, (state, jnp.zeros(())))

    return simulate


class MjxLoop:
    """A compiled loop over environment steps of a batch that is split over the devices."""

    def __init__(self, step, tasks, states, actions):
        mesh = sweep.make_mesh(len(actions))
        self.devices = 1 if mesh is None else mesh.size
        self.args = tuple(sweep.place(tree, mesh) for tree in (tasks, states, actions))
        loop = sweep.over_runs(make_simulate(step), 3, mesh, in_turn=False)
        with machine.empty_cache():
            cold = sweep.compile_program(loop, (*self.args, jnp.int32(0)))
            jax.clear_caches()
            self.jitted = jax.jit(loop)
            cached, _ = self.run(0)
        memory = cold.call.memory_analysis()
        self.costs = {
            "compile_seconds": cold.compile_seconds,
            "cached_seconds": cached,  # tracing included, as at the start of a second process
            "temp_bytes": cold.temp_bytes,
            "argument_bytes": int(getattr(memory, "argument_size_in_bytes", 0) or 0),
        }

    def run(self, steps):
        """Runs some steps from the start; returns (seconds, last State [batch])."""
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(self.jitted(*self.args, jnp.int32(steps)))
        return time.perf_counter() - begin, state

    def check_compiled_once(self):
        """Raises RuntimeError if a timed call compiled anything."""
        count = self.jitted._cache_size()
        if count != 1:
            raise RuntimeError(f"one program was expected, {count} were compiled: times are wrong")


class CLoop:
    """The same steps by C MuJoCo on a thread pool, one simulation with its own fields each."""

    def __init__(self, system, tasks, states, actions):
        self.batch = c_batch.Batch(system.c_model, len(actions), cores())
        for name, values in physics.fields_of(system, tasks).items():
            self.batch.expand(name)[:] = values
        self.start, self.skip = states, system.frame_skip
        self.actions = np.swapaxes(actions, 0, 1).astype(np.float64)  # [steps, batch, action_dim]
        pool = mujoco.MjData(system.c_model)
        self.bytes = self.batch.state.nbytes + cores() * (pool.nbuffer + pool.narena)

    def run(self, steps):
        """Runs some steps from the start; returns (seconds, last qpos [batch, nq])."""
        self.batch.reset()
        self.batch.warning[:] = 0
        self.batch.bind("qpos")[:], self.batch.bind("qvel")[:] = self.start.qpos, self.start.qvel
        control = self.batch.bind("ctrl")
        begin = time.perf_counter()
        for row in self.actions[:steps]:
            control[:] = row
            self.batch.step(nstep=self.skip)
        return time.perf_counter() - begin, self.batch.bind("qpos")

    def resets(self):
        """Returns how often the last run began a simulation anew because it blew up."""
        return int(self.batch.warning[:, RESETS, 1].sum())


def measure(step, system, given, rounds):
    """Returns the numbers of one row. Args: step, for MjxLoop; given, from `inputs`."""
    mjx, c_loop = MjxLoop(step, *given), CLoop(system, *given)
    batch, steps = given[2].shape[:2]
    times = {"c": [], "mjx": []}
    mjx.run(1), c_loop.run(1)
    for _ in range(rounds):
        times["c"].append(c_loop.run(steps)[0])
        times["mjx"].append(mjx.run(steps)[0])
    mjx.check_compiled_once()
    rates = {name: batch * steps / statistics.median(values) for name, values in times.items()}
    return {
        "batch": batch,
        "steps": steps,
        "mjx_devices": mjx.devices,
        "c_threads": c_loop.batch.nthread,
        "mjx_steps_per_second": rates["mjx"],
        "c_steps_per_second": rates["c"],
        "c_over_mjx": rates["c"] / rates["mjx"],
        **mjx.costs,
        "c_bytes": c_loop.bytes,
        "c_resets": c_loop.resets(),
    }


def step_row(family, mode, batch, steps, rounds):
    """Returns the row of one (family, physics, batch)."""
    env = make_env(family, mode)
    numbers = measure(whole_step(env), env.system, inputs(env, batch, steps), rounds)
    return {"kind": "step", "family": family, "physics": mode, **numbers}


def cost_rows(family, batch, steps, rounds):
    """Returns the rows of integrator x solver limits, physics alone on both sides."""
    env, rows = make_env(family, "reference"), []
    given = inputs(env, batch, steps)
    for integrator in INTEGRATORS:
        for limits in LIMITS:
            system = with_options(env.system, integrator, limits)
            names = {"integrator": integrator, "iterations": limits[0], "ls_iterations": limits[1]}
            numbers = measure(bare_step(system), system, given, rounds)
            rows.append({"kind": "cost", "family": family, **names, **numbers})
    return rows


NUMBERS = {  # heading: (key, format, scale)
    "batch": ("batch", "{}", 1),
    "program steps/s": ("mjx_steps_per_second", "{:.0f}", 1),
    "C steps/s": ("c_steps_per_second", "{:.0f}", 1),
    "C / program": ("c_over_mjx", "{:.2f}", 1),
    "compile s": ("compile_seconds", "{:.1f}", 1),
    "cached s": ("cached_seconds", "{:.1f}", 1),
    "scratch MB": ("temp_bytes", "{:.1f}", 1e-6),
    "args MB": ("argument_bytes", "{:.1f}", 1e-6),
    "C MB": ("c_bytes", "{:.1f}", 1e-6),
    "C resets": ("c_resets", "{}", 1),
}
TABLES = {
    "step": {"family": ("family", "{}", 1), "physics": ("physics", "{}", 1), **NUMBERS},
    "cost": {
        "family": ("family", "{}", 1),
        "integrator": ("integrator", "{}", 1),
        "Newton": ("iterations", "{}", 1),
        "line search": ("ls_iterations", "{}", 1),
        **NUMBERS,
    },
    "returns": env_returns.COLUMNS,
}


def table(rows, kind):
    """Returns the rows of one kind as aligned text, with a heading; "" without any."""
    columns = TABLES[kind]

    def cell(row, key, form, scale):
        value = row[key]
        return "" if value is None else form.format(value if scale == 1 else value * scale)

    of_kind = [row for row in rows if row["kind"] == kind]
    lines = [[cell(row, *column) for column in columns.values()] for row in of_kind]
    if not lines:
        return ""
    return machine.aligned([list(columns), *lines])


def run(args):
    """Measures everything that is asked for, prints the tables and writes the JSON file."""
    check(args)
    rows = []
    tell = lambda *words: print("measuring", *words, file=sys.stderr)
    for family in args.families:
        for mode in args.physics:
            for batch in map(int, args.batches):
                tell(family, mode, "x", batch)
                rows.append(step_row(family, mode, batch, args.steps, args.rounds))
    if args.cost_family:
        tell("integrator and solver of", args.cost_family)
        rows += cost_rows(args.cost_family, args.cost_batch, args.steps, args.rounds)
    for family in args.families if args.returns else ():
        tell("returns of", family)
        rows += env_returns.compare(family, args.episodes, args.horizon)
        if args.trained_steps:
            rows.append(
                env_returns.trained(family, args.trained_steps, args.episodes, args.horizon)
            )
    print("C MuJoCo steps the physics only; MJX computes observations and rewards too, in table 1.")
    for text in filter(None, (table(rows, kind) for kind in TABLES)):
        print(f"\n{text}")
    machine.write({**machine.describe(), "rows": rows}, args.out)


def main(argv):
    """Runs the command; returns the exit code: 2, after one line, for bad input."""
    use_all_cores()
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
