"""Seed sweeps: one compiled program for all runs, as a chunk (with a host in between) or fused.

Both drivers call the same chunk and evaluate functions, so they give the same numbers. Runs are
mapped, the dataset is shared, state is donated, and every program is compiled once, ahead of
time: a shape that changes later is an error, not a silent second compilation.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gentle_jax.rng import stream


def make_chunk(stage):
    """Returns chunk(state, run_key, data, start, length) -> (state, mean metrics) of one run.

    `start` and `length` are traced and have no run axis: any split into chunks runs one program,
    and a step's key depends on (run, stage, step) only, so the split changes no bit.
    """

    def chunk(state, run_key, data, start, length):
        def body(i, carry):
            state, totals = carry
            at = start + i
            state, metrics = stage.step(state, data, stream(run_key, stage.name, at), at)
            return state, jax.tree.map(jnp.add, totals, metrics)

        shapes = jax.eval_shape(stage.step, state, data, run_key, start)[1]
        totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, totals = jax.lax.fori_loop(0, length, body, (state, totals))
        return state, jax.tree.map(lambda t: t / length, totals)

    return chunk


def over_runs(function, num_mapped):
    """Maps a one-run function over runs [S] in its first `num_mapped` arguments, shares the rest."""

    def mapped(*args):
        shared = len(args) - num_mapped
        return jax.vmap(function, (0,) * num_mapped + (None,) * shared)(*args)

    return mapped


class Program(NamedTuple):
    """A compiled program and what it cost."""

    call: jax.stages.Compiled
    compile_seconds: float
    temp_bytes: int  # scratch memory beside arguments and results


def compile_program(function, args, donate=()):
    """Lowers and compiles `function` for `args` (arrays or shapes) ahead of time."""
    begin = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    memory = compiled.memory_analysis()
    temp = int(getattr(memory, "temp_size_in_bytes", 0) or 0)
    return Program(compiled, time.perf_counter() - begin, temp)


def evaluation_points(num_steps, num_evals):
    """Returns the training steps after which to evaluate: evenly spaced, the last one included."""
    count = min(num_evals, num_steps)
    return [num_steps * (i + 1) // count for i in range(count)]


def init_runs(algorithm, hp, run_keys):
    """Returns the state of all runs: leaves [S, ...]. Args: hp leaves [S]; run_keys [S]."""
    init = lambda hp, key: algorithm.init(hp, stream(key, "init"))
    return jax.vmap(init)(hp, run_keys)


def fused(algorithm, evaluate, train_data, eval_sets, hp, num_evals):
    """Returns run(run_keys [S]) -> {"state", "returns", "metrics"}: the whole sweep as one program.

    Args: evaluate, from `evaluation.make_evaluate`; train_data, the Dataset of the training tasks;
    eval_sets, {task set: (task leaves, Dataset)}; hp, leaves [S]; num_evals, evaluations along the last
    stage. Result leaves: returns {task set: {protocol: [point, S, task, E]}}, metrics of each
    stretch before a point [point, S]. Bit-equal to the chunked driver's.
    """
    *before, last = algorithm.stages
    points = evaluation_points(last.num_steps, num_evals)
    lengths = jnp.diff(jnp.array([0] + points))

    def run(run_keys, hp, train_data, eval_sets):
        state = init_runs(algorithm, hp, run_keys)
        for stage in before:
            if stage.num_steps:
                advance = over_runs(make_chunk(stage), 2)
                state, _ = advance(state, run_keys, train_data, 0, stage.num_steps)
        advance = over_runs(make_chunk(last), 2)

        def stretch(carry, length):
            state, start = carry
            state, metrics = advance(state, run_keys, train_data, start, length)
            returns = {
                name: over_runs(evaluate, 2)(state, run_keys, tasks, offline, start + length)
                for name, (tasks, offline) in eval_sets.items()
            }
            return (state, start + length), (returns, metrics)

        (state, _), (returns, metrics) = jax.lax.scan(stretch, (state, jnp.int32(0)), lengths)
        return {"state": state, "returns": returns, "metrics": metrics}

    jitted = jax.jit(run)
    return lambda run_keys: jitted(run_keys, hp, train_data, eval_sets)
