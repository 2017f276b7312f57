"""The chunked driver: the same chunks as `sweep.fused`, with the host in between.

Between chunks the host saves a checkpoint in the background, and reports: a kill loses the chunk
that is running, and the one before it only within the moment that its save takes. What a
run has produced so far (returns, embeddings) travels inside the checkpoint: one atomic unit.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import sweep
from gentle_jax.types import Algorithm


class Task(NamedTuple):
    """Everything that a sweep needs, on the device."""

    algorithm: Algorithm
    evaluate: Any  # (state, run_key, tasks, data, at) -> {protocol: [task, E]}
    episodes: dict  # {protocol: E}
    embed: Any  # (state, run_key, data, at) -> {name: [task, ...]}
    trace: Any  # (state, run_key, tasks, data, at) -> (paths, masks)
    data: Any  # Dataset of all tasks, training tasks first
    tasks: Any  # task leaves in that order
    hp: Any  # leaves [S]
    run_keys: Any  # [S]
    num_evals: int
    mesh: Any = None  # the devices that the runs are split over; None: one device


class Programs(NamedTuple):
    """Every compiled program of a run; each is compiled exactly once."""

    init: sweep.Program
    stages: tuple  # a Program, or None for an empty stage
    evaluate: dict  # {protocol: Program}
    embed: sweep.Program
    trace: sweep.Program

    def all(self):
        """Returns the programs in a flat list."""
        found = [self.init, *self.stages, *self.evaluate.values(), self.embed, self.trace]
        return [program for program in found if program is not None]


class Hooks(NamedTuple):
    """What the host does between chunks; every hook may be None."""

    on_compile: Any = None  # (name, Program)
    on_chunk: Any = None  # (Chunk, metrics {name: [S]}, seconds)
    on_evaluate: Any = None  # (Chunk, returns {protocol: [S, task, E]}, seconds)
    on_save: Any = None  # (step, carry): called after every chunk


def compile_all(task, hooks=Hooks()):  # noqa: B008 an immutable default
    """Compiles every program of a run ahead of time, several at once, and returns them."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    sharding = sweep.run_sharding(task.mesh)
    over = lambda function: sweep.over_runs(function, 2, task.mesh)
    state = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), state_shapes(task)
    )
    whole = (state, task.run_keys, task.tasks, task.data, step)
    jobs = {"init": (_init(task), (task.hp, task.run_keys))}
    for stage in task.algorithm.stages:
        if stage.num_steps:
            args = (state, task.run_keys, task.data, step, step)
            jobs["stage", stage.name] = (over(sweep.make_chunk(stage)), args, (0,))
    for name in task.episodes:
        only = functools.partial(task.evaluate, names=(name,))
        jobs["evaluate", name] = (over(only), whole)
    jobs["embed"] = (over(task.embed), whole[:2] + whole[3:])
    jobs["trace"] = (over(task.trace), whole)

    def build(key, function, args, donate=()):
        program = sweep.compile_program(function, args, donate, sharding)
        if hooks.on_compile:
            hooks.on_compile(key if isinstance(key, str) else " ".join(key), program)
        return program

    order = sorted(jobs, key=lambda key: key[0] != "evaluate" and key != "trace")  # longest first
    made = sweep.together([functools.partial(build, key, *jobs[key]) for key in order])
    found = dict(zip(order, made, strict=True))
    return Programs(
        init=found["init"],
        stages=tuple(found.get(("stage", stage.name)) for stage in task.algorithm.stages),
        evaluate={name: found["evaluate", name] for name in task.episodes},
        embed=found["embed"],
        trace=found["trace"],
    )


def _init(task):
    return lambda hp, keys: sweep.init_runs(task.algorithm, hp, keys, task.mesh)


def state_shapes(task):
    """Returns the shapes of the state of all runs, without computing anything."""
    return jax.eval_shape(_init(task), task.hp, task.run_keys)


def empty_carry(task, state):
    """Returns the carry before the first step: state, and NaN where results will be."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    args = (state_shapes(task), task.run_keys, task.tasks, task.data, step)
    points = sum(c.evaluate for c in sweep.plan(task.algorithm.stages, task.num_evals))
    blank = lambda s: np.full((points, *s.shape), np.nan, np.float32)
    lead = (task.run_keys.shape[0], jax.tree.leaves(task.tasks)[0].shape[0])
    # tracing `evaluate` only for its shapes would take long with physics
    shape = lambda count: jax.ShapeDtypeStruct((*lead, count), jnp.float32)
    returns = {name: shape(count) for name, count in task.episodes.items()}
    embeddings = jax.eval_shape(sweep.over_runs(task.embed, 2, task.mesh), *args[:2], *args[3:])
    return {
        "state": state,
        "returns": jax.tree.map(blank, returns),
        "embeddings": jax.tree.map(blank, embeddings),
    }


def eval_steps(task):
    """Returns the steps of all stages after which the run is evaluated."""
    return [c.done for c in sweep.plan(task.algorithm.stages, task.num_evals) if c.evaluate]


def chunked(task, programs, carry, done, hooks=Hooks()):  # noqa: B008 an immutable default
    """Runs the chunks after step `done` and returns the final carry.

    Args: carry, from `empty_carry` or a checkpoint taken at step `done`.
    """
    points = eval_steps(task)
    for chunk in sweep.plan(task.algorithm.stages, task.num_evals):
        if chunk.done <= done:
            continue
        begin = time.perf_counter()
        state, metrics = programs.stages[chunk.stage].call(
            carry["state"],
            task.run_keys,
            task.data,
            jnp.int32(chunk.start),
            jnp.int32(chunk.length),
        )
        metrics = jax.device_get(metrics)
        carry = {**carry, "state": state}
        if hooks.on_chunk:
            hooks.on_chunk(chunk, metrics, time.perf_counter() - begin)
        if chunk.evaluate:
            begin, at = time.perf_counter(), jnp.int32(chunk.done)
            args, returns = (state, task.run_keys, task.tasks, task.data, at), {}
            for program in programs.evaluate.values():
                returns |= jax.device_get(program.call(*args))
            embedded = jax.device_get(programs.embed.call(state, task.run_keys, task.data, at))
            index = points.index(chunk.done)
            for results, new in (("returns", returns), ("embeddings", embedded)):
                for name, values in new.items():
                    carry[results][name][index] = values
            if hooks.on_evaluate:
                hooks.on_evaluate(chunk, returns, time.perf_counter() - begin)
        if hooks.on_save:
            hooks.on_save(chunk.done, carry)
    return carry


def state_bytes(state):
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
