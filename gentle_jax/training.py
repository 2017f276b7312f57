"""The chunked driver: the same steps as `sweep.fused`, with the host in between.

A chunk (between two lines of the log) is trained in pieces of some seconds, whose lengths follow
the clock and change no bit. After every piece and every evaluation the host may save, or stop: what
a run has produced so far (state, sums of metrics, returns, embeddings) and its `Position` are one
checkpoint, from which it goes on as if nothing had happened.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from gentle_jax import sweep as sweep_lib
from gentle_jax.data import Dataset
from gentle_jax.types import AgentState, Algorithm, Cost, Env, HyperParams, Metrics, Task

Carry = dict  # {"state", "totals", "returns", "costs", "embeddings", "shown"}: `carry_shapes`


class Sweep(NamedTuple):
    """Everything that a sweep of runs needs, on the devices; `assembly.make_sweep` makes it."""

    algorithm: Algorithm
    evaluate: Callable  # (state, run_key, tasks, data, at) -> {protocol: Scores [task, E]}
    episodes: dict  # {protocol: E}
    embed: Callable  # (state, run_key, data, at) -> {name: [task, ...]}
    data: Dataset  # of all tasks, training tasks first
    tasks: Task  # task leaves in that order
    hp: HyperParams  # leaves [S]
    run_keys: Key[Array, " S"]
    num_evals: int
    env: Env  # whose observations are scaled as the data's are
    scale: Any = None  # (mean, std) [obs_dim] of that scaling
    mesh: Mesh | None = None  # the devices that the runs are split over; None: one device
    num_runs: int | None = None  # real runs where S is padded to the devices; None: all
    spec: Any = None  # the Spec that the algorithm was made for

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return self.run_keys.shape[0] if self.num_runs is None else self.num_runs


class Programs(NamedTuple):
    """Every compiled program of a run; each is compiled exactly once."""

    init: sweep_lib.Program
    stages: tuple  # a Program, or None for an empty stage
    evaluate: dict  # {protocol: Program}
    embed: sweep_lib.Program

    def all(self) -> list[sweep_lib.Program]:
        """Returns the programs in a flat list."""
        programs = [self.init, *self.stages, *self.evaluate.values(), self.embed]
        return [program for program in programs if program is not None]


class Position(NamedTuple):
    """How far a run is: what a checkpoint says beside its arrays."""

    done: int = 0  # steps of all stages
    scored: int = 0  # evaluation programs that have run at this step


class Hooks(NamedTuple):
    """What the host does meanwhile; every hook may be None."""

    on_compile: Callable | None = None  # (name, Program)
    on_piece: Callable | None = None  # (Chunk, Position, steps, seconds)
    on_chunk: Callable | None = None  # (Chunk, metrics {name: [S]})
    on_evaluate: Callable | None = None  # (Chunk, returns {protocol: [S, task, E]}, seconds)
    on_pause: Callable | None = (
        None  # (Position, carry, last): a moment to save, or to stop by raising
    )


class Pace:
    """Chooses how many steps to take at once, so that the host is asked every `seconds`."""

    def __init__(self, seconds: float = 5.0, agree: Callable = lambda value: value) -> None:
        self.seconds, self.agree = seconds, agree  # agree: one number for all hosts
        self.per_step = {}  # stage -> seconds

    def size(self, stage: int, left: int) -> int:
        """Returns how many of the `left` steps of a chunk to take."""
        if stage not in self.per_step:
            wanted = max(left // 8, 1)
        else:
            wanted = max(int(self.seconds / max(self.per_step[stage], 1e-9)), 1)
        return int(self.agree(left if left < 1.5 * wanted else wanted))

    def took(self, stage: int, steps: int, seconds: float) -> None:
        """Notes how long some steps of a stage have taken."""
        self.per_step[stage] = seconds / steps


def compile_all(sweep: Sweep, hooks: Hooks = Hooks()) -> Programs:  # noqa: B008 immutable
    """Compiles every program of a run ahead of time, several at once, and returns them."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    sharding = sweep_lib.run_sharding(sweep.mesh)
    over = lambda function: sweep_lib.over_runs(function, 2, sweep.mesh)
    state = on_devices(state_shapes(sweep), sharding)
    inputs = (state, sweep.run_keys, sweep.tasks, sweep.data, step)
    jobs = {"init": (_init(sweep), (sweep.hp, sweep.run_keys, sweep.data))}
    for stage, totals in zip(sweep.algorithm.stages, total_shapes(sweep), strict=True):
        if stage.num_steps:
            args = (state, on_devices(totals, sharding), sweep.run_keys, sweep.data, step, step)
            piece = sweep_lib.over_runs(sweep_lib.make_piece(stage), 3, sweep.mesh)
            jobs["stage", stage.name] = (piece, args, (0, 1))
    for name in sweep.episodes:
        only = functools.partial(sweep.evaluate, names=(name,))
        jobs["evaluate", name] = (over(only), inputs)
    jobs["embed"] = (over(sweep.embed), inputs[:2] + inputs[3:])

    def build(key, function, args, donate=()):
        program = sweep_lib.compile_program(function, args, donate, sharding)
        if hooks.on_compile:
            hooks.on_compile(key if isinstance(key, str) else " ".join(key), program)
        return program

    order = sorted(jobs, key=lambda key: key[0] != "evaluate")  # longest first
    results = sweep_lib.together([functools.partial(build, key, *jobs[key]) for key in order])
    compiled = dict(zip(order, results, strict=True))
    return Programs(
        init=compiled["init"],
        stages=tuple(compiled.get(("stage", stage.name)) for stage in sweep.algorithm.stages),
        evaluate={name: compiled["evaluate", name] for name in sweep.episodes},
        embed=compiled["embed"],
    )


def _init(sweep):
    return lambda hp, keys, data: sweep_lib.init_runs(sweep.algorithm, hp, keys, data, sweep.mesh)


def on_devices(shapes: PyTree, sharding: Any) -> PyTree:
    """Returns shapes of arrays that lie on devices."""
    struct = jax.ShapeDtypeStruct
    return jax.tree.map(lambda s: struct(s.shape, s.dtype, sharding=sharding), shapes)


def state_shapes(sweep: Sweep) -> PyTree:
    """Returns the shapes of the state of all runs, padded ones too, without computing anything."""
    return jax.eval_shape(_init(sweep), sweep.hp, sweep.run_keys, sweep.data)


def total_shapes(sweep: Sweep) -> tuple[Metrics, ...]:
    """Returns the shapes of the sums of metrics of every stage: leaves [S], padded runs too."""
    runs = sweep.run_keys.shape[0]
    one = lambda tree: jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), tree)
    state, key = one(state_shapes(sweep)), jax.eval_shape(lambda keys: keys[0], sweep.run_keys)
    wide = lambda s: jax.ShapeDtypeStruct((runs, *s.shape), s.dtype)
    return tuple(
        jax.tree.map(wide, sweep_lib.metric_shapes(stage, state, sweep.data, key))
        if stage.num_steps
        else {}
        for stage in sweep.algorithm.stages
    )


def carry_shapes(sweep: Sweep) -> Carry:
    """Returns the shapes of what `chunked` hands on, and a checkpoint holds: real runs only.

    Leaves: state [S, ...]; totals [S] of every stage; shown, the newest evaluation's
    `Scores.shown` [S, task, ...]; others [point, S, ...].
    """
    cut = lambda s: jax.ShapeDtypeStruct((sweep.runs, *s.shape[1:]), s.dtype)
    points = len(eval_steps(sweep))
    stack = lambda s: jax.ShapeDtypeStruct((points, sweep.runs, *s.shape[1:]), jnp.float32)
    lead = (sweep.runs, jax.tree.leaves(sweep.tasks)[0].shape[0])
    # tracing `evaluate` only for its shapes would take long with physics
    returns = {
        name: jax.ShapeDtypeStruct((*lead, count), jnp.float32)
        for name, count in sweep.episodes.items()
    }
    state = state_shapes(sweep)
    args = (state, sweep.run_keys, sweep.data, jax.ShapeDtypeStruct((), jnp.int32))
    embeddings = jax.eval_shape(sweep_lib.over_runs(sweep.embed, 2, sweep.mesh), *args)
    return {
        "state": jax.tree.map(cut, state),
        "totals": jax.tree.map(cut, total_shapes(sweep)),
        "returns": jax.tree.map(stack, returns),
        "costs": {name: Cost(*[stack(one)] * 3) for name, one in returns.items()},
        "embeddings": jax.tree.map(stack, embeddings),
        "shown": shown_shapes(sweep),
    }


def shown_shapes(sweep: Sweep) -> tuple:
    """Returns the shapes of the `Scores.shown` of all real runs; nothing is traced."""
    lead = (sweep.runs, jax.tree.leaves(sweep.tasks)[0].shape[0])
    horizon = sweep.env.horizon
    tails = (horizon + 1, sweep.env.obs_dim), (horizon,)
    return tuple(jax.ShapeDtypeStruct((*lead, *tail), jnp.float32) for tail in tails)


def empty_carry(sweep: Sweep, state: AgentState) -> Carry:
    """Returns the carry before the first step: state, zero sums, and NaN where results will be."""
    shapes = carry_shapes(sweep)
    blank = lambda s: np.full(s.shape, np.nan, np.float32)
    totals = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes["totals"])
    results = {name: shapes[name] for name in ("returns", "costs", "embeddings", "shown")}
    placed = {"state": state, "totals": sweep_lib.place(totals, sweep.mesh)}
    return placed | jax.tree.map(blank, results)


def to_host(sweep: Sweep, carry: Carry) -> Carry:
    """Returns a carry as numpy arrays of the real runs: what a checkpoint holds."""
    on_device = {name: carry[name] for name in ("state", "totals")}
    return {**carry, **sweep_lib.fetch(on_device, sweep.runs)}


def to_device(sweep: Sweep, carry: Carry) -> Carry:
    """Returns the carry of a checkpoint with state and sums on the sweep's devices.

    Nothing is shared with `carry`: a CPU would use its memory, which is donated.
    """
    carry = jax.tree.map(np.copy, carry)
    placed = {name: sweep_lib.place(carry[name], sweep.mesh) for name in ("state", "totals")}
    return {**carry, **placed}


def eval_steps(sweep: Sweep) -> list[int]:
    """Returns the steps of all stages after which the run is evaluated."""
    return [c.done for c in sweep_lib.plan(sweep.algorithm.stages, sweep.num_evals) if c.evaluate]


def chunked(
    sweep: Sweep,
    programs: Programs,
    carry: Carry,
    position: Position,
    hooks: Hooks = Hooks(),  # noqa: B008 immutable
    pace: Pace | None = None,
) -> Carry:
    """Runs what is left after a Position and returns the final carry.

    Args: carry, from `empty_carry` or `to_device`, at that position.
    """
    pace = pace or Pace()
    units = len(programs.evaluate) + 1  # protocols, then embeddings
    for chunk in sweep_lib.plan(sweep.algorithm.stages, sweep.num_evals):
        if position >= Position(chunk.done, units if chunk.evaluate else 0):
            continue
        if chunk.done > position.done:
            carry = _train_chunk(sweep, programs, carry, chunk, position, hooks, pace)
            position = Position(chunk.done)
        while chunk.evaluate and position.scored < units:
            _score(sweep, programs, carry, chunk, position.scored, hooks)
            position = Position(chunk.done, position.scored + 1)
            if hooks.on_pause and position.scored < units:
                hooks.on_pause(position, carry, False)
        if hooks.on_pause:
            hooks.on_pause(position, carry, chunk.done == eval_steps(sweep)[-1])
    return carry


def _train_chunk(sweep, programs, carry, chunk, position, hooks, pace):
    """Trains from a position to the end of a chunk; returns the carry."""
    number, begin = chunk.stage, chunk.done - chunk.length
    program = programs.stages[number]
    at = max(position.done - begin, 0)
    while at < chunk.length:
        size, since = pace.size(number, chunk.length - at), time.perf_counter()
        state, sums = program.call(
            carry["state"],
            carry["totals"][number],
            sweep.run_keys,
            sweep.data,
            np.int32(chunk.start + at),
            np.int32(size),
        )
        jax.block_until_ready(sums)
        seconds = time.perf_counter() - since
        pace.took(number, size, seconds)
        at += size
        totals = tuple(sums if i == number else t for i, t in enumerate(carry["totals"]))
        carry = {**carry, "state": state, "totals": totals}
        now = Position(begin + at)
        if hooks.on_piece:
            hooks.on_piece(chunk, now, size, seconds)
        if hooks.on_pause and at < chunk.length:
            hooks.on_pause(now, carry, False)
    sums = sweep_lib.fetch(carry["totals"][number], sweep.runs)
    if hooks.on_chunk:
        hooks.on_chunk(chunk, jax.tree.map(lambda total: total / chunk.length, sums))
    # from here on the sums are those of the next chunk
    zero = sweep_lib.place(jax.tree.map(np.zeros_like, sums), sweep.mesh)
    totals = tuple(zero if i == number else t for i, t in enumerate(carry["totals"]))
    return {**carry, "totals": totals}


def _score(sweep, programs, carry, chunk, unit, hooks):
    """Runs one evaluation program, and writes its results into the carry."""
    since, at = time.perf_counter(), np.int32(chunk.done)
    index = eval_steps(sweep).index(chunk.done)
    state, keys = carry["state"], sweep.run_keys
    if unit < len(programs.evaluate):
        program = list(programs.evaluate.values())[unit]
        scores = program.call(state, keys, sweep.tasks, sweep.data, at)
        scores = sweep_lib.fetch(scores, sweep.runs)
        arrays = {"returns": {name: one.returns for name, one in scores.items()}}
        arrays |= {"costs": {name: one.cost for name, one in scores.items()}}
        for one in scores.values():
            if one.shown is not None:
                for kept, new in zip(carry["shown"], one.shown, strict=True):
                    kept[:] = new
    else:
        described = programs.embed.call(state, keys, sweep.data, at)
        arrays = {"returns": {}, "embeddings": sweep_lib.fetch(described, sweep.runs)}
    for results, values in arrays.items():
        for name, tree in values.items():
            for points, new in zip(
                *map(jax.tree.leaves, (carry[results][name], tree)), strict=True
            ):
                points[index] = new
    if hooks.on_evaluate:
        hooks.on_evaluate(chunk, arrays["returns"], time.perf_counter() - since)


def state_bytes(state: PyTree) -> int:
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
