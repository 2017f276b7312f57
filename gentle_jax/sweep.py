"""Seed sweeps: one compiled program for all runs, as chunks (a host in between) or fused.

Both drivers call the same chunk and evaluate functions: bit-equal when XLA does not optimise (a
test says so); with its optimisations it may fuse the two programs differently, and a step agrees to
some 1e-6. Runs are mapped, the dataset is shared, state is donated, and every program is compiled
once, ahead of time: a shape that changes later is an error, not a silent second compilation.

Runs are split over the devices of a mesh; where they do not divide, the last run is repeated and
its copies are dropped on the host. On each device, an accelerator takes its runs side by side
(vmap); a CPU takes them one after the other (lax.map), which costs no speed, takes
a fifth of the scratch memory, and makes a run's bits independent of how many others its device has.
"""

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from gentle_jax.data import DEVICES as RUNS  # the mesh axis
from gentle_jax.data import Dataset
from gentle_jax.rng import stream
from gentle_jax.types import AgentState, Algorithm, HyperParams, Metrics, RandomKey, Stage, Task

Shape = jax.ShapeDtypeStruct

_tracing = threading.Lock()
# XLA tries hundreds of kernels of its own for every product before it takes one: GENTLE's step at
# the paper's Ant-Dir sizes, 8 runs on an H100, then compiles in 114 s instead of 10, and takes
# 4.1 ms instead of 4.6 (docs/speed.md, "On a GPU")
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class Chunk(NamedTuple):
    """One call of a stage's program."""

    stage: int
    start: int  # step within the stage
    length: int
    done: int  # steps of all stages after this chunk
    evaluate: bool  # whether `done` is an evaluation point


def plan(stages: tuple[Stage, ...], num_evals: int, num_chunks: int = 50) -> list[Chunk]:
    """Returns the Chunks of a run: cut at stage ends, evaluation points and even intervals.

    `num_evals` points are evenly spaced over the stages that have a policy, the end included.
    """
    ends, offset = [], 0
    for stage in stages:
        ends.append((offset, offset + stage.num_steps))
        offset += stage.num_steps
    steps = [
        end_step
        for stage, (begin, end) in zip(stages, ends, strict=True)
        if stage.evaluate
        for end_step in range(begin + 1, end + 1)
    ]
    count = min(num_evals, len(steps))
    points = {steps[len(steps) * (i + 1) // count - 1] for i in range(count)}
    every = max(-(-offset // num_chunks), 1)
    chunks = []
    for number, (begin, end) in enumerate(ends):
        cuts = {p for p in points if begin < p <= end} | set(range(begin + every, end, every))
        for cut in sorted(cuts | ({end} if end > begin else set())):
            chunks.append(Chunk(number, begin - ends[number][0], cut - begin, cut, cut in points))
            begin = cut
    return chunks


def make_piece(stage: Stage) -> Callable:
    """Returns piece(state, totals, run_key, data, start, length) -> (state, totals) of one run.

    `start` and `length` are traced and have no run axis: any split of a chunk into pieces runs one
    program, and a step's key depends on (run, stage, step) only, so the split changes no bit.
    `totals` are the sums of the stage's metrics, see `metric_shapes`.
    """

    def piece(state, totals, run_key, data, start, length):
        def body(i, carry):
            state, totals = carry
            at = start + i
            state, metrics = stage.step(state, data, stream(run_key, stage.name, at), at)
            return state, jax.tree.map(jnp.add, totals, metrics)

        return jax.lax.fori_loop(0, length, body, (state, totals))

    return piece


def metric_shapes(
    stage: Stage, state: AgentState, data: Dataset, run_key: RandomKey | Shape
) -> Metrics:
    """Returns the shapes of a stage's metrics for one run. Args: arrays or shapes of one run."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.eval_shape(stage.step, state, data.unsplit(), run_key, step)[1]


def make_chunk(stage: Stage) -> Callable:
    """Returns chunk(state, run_key, data, start, length) -> (state, mean metrics) of one run."""
    piece = make_piece(stage)

    def chunk(state, run_key, data, start, length):
        shapes = metric_shapes(stage, state, data, run_key)
        totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, totals = piece(state, totals, run_key, data, start, length)
        return state, jax.tree.map(lambda t: t / length, totals)

    return chunk


def choose_devices(num_runs: int, devices: list) -> list:
    """Returns as few devices as take the runs in the same time.

    None is left out of those of several processes, each of which must have a part.
    """
    if len({device.process_index for device in devices}) > 1:
        return devices
    width = -(-num_runs // len(devices))  # runs of the device that has most
    return devices[: -(-num_runs // width)]


def make_mesh(num_runs: int, devices: list | None = None) -> Mesh | None:
    """Returns a mesh over the chosen devices, or None for one.

    Args: devices, by default those of this process; `jax.devices()` for all of several processes.
    """
    chosen = choose_devices(num_runs, jax.local_devices() if devices is None else devices)
    if len(chosen) == 1:
        return None
    # runs never talk to each other, so where devices stand is no matter (`jax.make_mesh` minds)
    return Mesh(np.array(chosen), (RUNS,), axis_types=(AxisType.Auto,))


def run_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Returns the sharding of leaves [S, ...], or None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(RUNS))


def place(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts leaves [S, ...] on the devices of a mesh.

    S is padded to a multiple of the mesh by repeating the last run; `fetch` drops what was added.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    padded = jax.tree.map(lambda leaf: _padded(leaf, mesh.size), tree)
    return _put(padded, PartitionSpec(RUNS), mesh)


def place_shared(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts a tree that all runs share on the devices of a mesh, a whole copy on each."""
    return jax.tree.map(jnp.asarray, tree) if mesh is None else _put(tree, PartitionSpec(), mesh)


def place_data(data: Dataset, mesh: Mesh | None) -> Dataset:
    """Puts a Dataset on the devices of a mesh: a copy on each, or split as `partition` says."""
    return jax.tree.map(jnp.asarray, data) if mesh is None else _put(data, data.partition(), mesh)


def _put(tree, specs, mesh):
    """Puts a tree on the devices of a mesh. Args: specs, a pytree prefix of PartitionSpecs."""
    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
    if mesh.is_multi_process:
        return jax.tree.map(_put_global, tree, jax.tree.broadcast(shardings, tree))
    return jax.device_put(tree, shardings)


def _shared_spec(tree):
    """Returns the pytree prefix of PartitionSpecs of a shared argument: a Dataset knows its own."""
    return tree.partition() if isinstance(tree, Dataset) else PartitionSpec()


def _padded(leaf, multiple):
    missing = -leaf.shape[0] % multiple
    if not missing:
        return leaf
    index = np.minimum(np.arange(leaf.shape[0] + missing), leaf.shape[0] - 1)
    return leaf[index]


def _put_global(leaf, sharding):
    """Puts an array that every process holds whole on the devices of several hosts."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put_global(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def fetch(tree: PyTree, num_runs: int | None) -> PyTree:
    """Returns leaves [S, ...] as numpy arrays on the host, of the first `num_runs` runs.

    Of several hosts each gets all runs.
    """
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves):
        tree = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:num_runs], jax.device_get(tree))


def over_runs(
    function: Callable, num_mapped: int, mesh: Mesh | None = None, in_turn: bool | None = None
) -> Callable:
    """Maps a one-run function over runs [S] in its first `num_mapped` arguments; others shared.

    Args: mesh, from `make_mesh`; in_turn, whether a device takes its runs one after the other
    instead of side by side (default: on a CPU). A shared Dataset may be split over devices; of any
    other shared argument each has a copy.
    """
    in_turn = jax.default_backend() == "cpu" if in_turn is None else in_turn

    def mapped(*args):
        of_runs, shared = args[:num_mapped], args[num_mapped:]
        if in_turn:
            return jax.lax.map(lambda one: function(*one, *shared), of_runs)
        return jax.vmap(lambda *one: function(*one, *shared))(*of_runs)

    if mesh is None:
        return mapped
    own = PartitionSpec(RUNS)

    def split(*args):
        specs = (own,) * num_mapped + tuple(map(_shared_spec, args[num_mapped:]))
        return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)(
            *args
        )

    return split


class Program(NamedTuple):
    """A compiled program and what it cost."""

    call: jax.stages.Compiled
    compile_seconds: float
    temp_bytes: int  # scratch memory beside arguments and results


def device_options() -> dict[str, Any]:
    """Returns XLA's options for programs on this device, {name: value}; words of XLA_FLAGS win."""
    asked = os.environ.get("XLA_FLAGS", "")
    given = _GPU_OPTIONS if jax.default_backend() == "gpu" else {}
    return {name: value for name, value in given.items() if name not in asked}


def compile_program(
    function: Callable,
    args: tuple,
    donate: tuple = (),
    out_sharding: Any = None,
    options: dict | None = None,
) -> Program:
    """Lowers and compiles `function` for `args` (arrays or shapes) ahead of time.

    Args: options, XLA's for this program, {name: value}, before those of `device_options`.
    """
    begin = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_sharding)
    with _tracing:  # Python code: in several threads at once it only gets slower
        lowered = jitted.lower(*args)
    compiled = lowered.compile(compiler_options=device_options() | (options or {}) or None)
    memory = compiled.memory_analysis()
    temp = int(getattr(memory, "temp_size_in_bytes", 0) or 0)
    return Program(compiled, time.perf_counter() - begin, temp)


def together(jobs: list[Callable]) -> list:
    """Calls functions () -> result in a few threads; returns their results in order.

    For compiling: most of it runs outside Python, on one core.
    """
    pool = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
    try:
        return [future.result() for future in [pool.submit(job) for job in jobs]]
    finally:  # an error or a signal does not wait for the others
        pool.shutdown(wait=False, cancel_futures=True)


def init_runs(
    algorithm: Algorithm,
    hp: HyperParams,
    run_keys: Key[Array, " S"],
    data: Dataset,
    mesh: Mesh | None = None,
) -> AgentState:
    """Returns the state of all runs: leaves [S, ...]. Args: hp, leaves [S]."""
    # a copy of hp: the state is donated, the caller's hp is not
    init = lambda hp, key, data: algorithm.init(
        jax.tree.map(jnp.copy, hp), stream(key, "init"), data
    )
    return over_runs(init, 2, mesh)(hp, run_keys, data)


def fused(
    algorithm: Algorithm,
    evaluate: Callable,
    data: Dataset,
    tasks: Task,
    hp: HyperParams,
    num_evals: int,
    mesh: Mesh | None = None,
    num_runs: int | None = None,
) -> Callable:
    """Returns run(run_keys [S]) -> {"state", "returns", "costs", "metrics"}: a sweep, one program.

    Args: evaluate, from `evaluation.make_evaluate`; data, the Dataset of all tasks, training tasks
    first; tasks, task leaves in that order; hp, leaves [S]; num_evals, evaluations along training;
    mesh, the one that `place` put them on; num_runs, how many runs are real where S was padded.
    Results: returns {protocol: [point, S, task, E]}; costs {protocol: Cost of such leaves}; metrics
    {stage: {name: [chunk, S]}}. The numbers are the chunked driver's, up to XLA's fusion.
    `run.jitted` is the compiled function itself, for those who count.
    """
    chunks = plan(algorithm.stages, num_evals)

    def unseen(*args):
        """Evaluates without the episodes that figures show: one for each point would be large."""
        return {name: one._replace(shown=None) for name, one in evaluate(*args).items()}

    def run(run_keys, hp, data, tasks):
        state, scored, metrics = init_runs(algorithm, hp, run_keys, data, mesh), [], {}
        for number, stage in enumerate(algorithm.stages):
            of_stage = [c for c in chunks if c.stage == number]
            if not of_stage:
                continue
            advance = over_runs(make_chunk(stage), 2, mesh)

            def stretch(state, chunk, advance=advance):
                start, length, done, due = chunk
                state, metrics = advance(state, run_keys, data, start, length)
                score = lambda: over_runs(unseen, 2, mesh)(state, run_keys, tasks, data, done)
                empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(score))
                return state, (jax.lax.cond(due, score, lambda: empty), metrics)

            columns = [jnp.array(x) for x in zip(*[c[1:] for c in of_stage], strict=True)]
            state, (scores, metrics[stage.name]) = jax.lax.scan(stretch, state, tuple(columns))
            due = [i for i, c in enumerate(of_stage) if c.evaluate]
            scored.append(jax.tree.map(lambda x, due=due: x[jnp.array(due, int)], scores))
        stacked = jax.tree.map(lambda *parts: jnp.concatenate(parts), *scored)
        real = lambda tree: jax.tree.map(lambda x: x[:, :num_runs], tree)
        results = {"returns": {name: one.returns for name, one in stacked.items()}}
        results |= {"costs": {name: one.cost for name, one in stacked.items()}}
        state = jax.tree.map(lambda x: x[:num_runs], state)
        return {"state": state} | real(results | {"metrics": metrics})

    jitted = jax.jit(run)

    def call(run_keys):
        return jitted(run_keys, hp, data, tasks)

    call.jitted = jitted
    return call
