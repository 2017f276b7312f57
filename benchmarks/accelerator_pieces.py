"""What `benchmarks.accelerator_suite` measures: a function per piece, small -> (numbers, verdict).

`verdict` are bars (`machine.bar_row`) and ratios that `benchmarks.compare` watches, {name: (value,
"higher" or "lower" is better)}.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from benchmarks import env_step as env_bench
from benchmarks import growth, machine, scaling, torch_step, train_step
from experiments import collect
from experiments.host import computer as product
from experiments.runs import outputs
from gentle_jax import assembly, errors, learner, sweep, training
from gentle_jax import behaviour as behaviour_lib
from gentle_jax import config as config_lib

PAPER_STEPS, PAPER_SEEDS = 200_000, 8
BODIES = ("cheetah_vel", "ant_dir", "hopper_params", "walker_params")  # others share these models
_KINDS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION"
COMMAND_BUFFERS = {  # name: what XLA may put into command buffers (CUDA graphs)
    "usual": None,
    "none": "",
    "with branches": f"{_KINDS},CONDITIONAL",
    "with loops": f"{_KINDS},CONDITIONAL,WHILE",
}
HIGHER, LOWER = "higher", "lower"
BARS = {  # name: (what, sense, bar, unit)
    "eight_seeds": ("wall clock of 8 seeds over one, GENTLE Ant-Dir", "<=", 2.0, "x"),
    "beside_torch": ("seed-steps/s of 8 seeds over PyTorch's", ">=", 50.0, "x"),
    "paper_run": ("GENTLE Ant-Dir, 200,000 steps x 8 seeds, training", "<=", 300.0, "s"),
    "family_data": ("data of Cheetah-Vel, 40 tasks x 1M steps, `fast`", "<=", 900.0, "s"),
    "host_share": ("host between chunks, over training and evaluation", "<=", 0.02, ""),
    "dataset_copies": ("copies of the dataset on a device, up to 64 runs", "<=", 1.01, ""),
    "linear_memory": ("R2 of memory = dataset + runs x state", ">=", 0.999, ""),
    "compile_growth": ("compile time, most runs over one run (fit)", "<=", 1.2, "x"),
    "warm_compile": ("programs of a run from the cache", "<=", 10.0, "s"),
}


class Verdict(NamedTuple):
    """What a piece says beside its numbers."""

    bars: list
    ratios: dict


def bar(name, measured, how):
    """Returns a row of BARS."""
    return machine.bar_row(BARS, name, measured, how, "accelerator_suite")


def _dynamics_seconds(problem, seeds, small):
    """Returns (seconds, steps) of GENTLE's first stage: a measured stretch times its length."""
    stage = problem.algorithm.stages[0]
    start = scaling.first_state(problem)
    loop = scaling.Loop(problem._replace(stage=stage), start, seeds, None)
    length = 8 if small else 200
    times = [loop.run(train_step.FIRST, length) / length for _ in range(3)]
    return statistics.median(times) * stage.num_steps, stage.num_steps


def _seeds(algorithm, small, rival=True):
    """Returns train_step's rows of 1 and 8 seeds, (step rows {seeds: row}, all rows)."""
    shapes, steps, counts = "ant_dir", 10 if small else 500, (1, 2 if small else PAPER_SEEDS)
    rows = []
    for count in counts:
        rows += train_step.measure(shapes, algorithm, count, steps, 3, small, rival)
    steps = [row for row in rows if row["kind"] == "step"]
    return steps[0], steps[1], rows


def gentle(small):
    """GENTLE at the paper's Ant-Dir shapes."""
    one, many, rows = _seeds("gentle", small)
    relabel = [row for row in rows if row["kind"] == "periodic"][-1]["amortised_seconds"]
    problem = train_step.make_problem("ant_dir", "gentle", small)
    first, first_steps = _dynamics_seconds(problem, many["seeds"], small)
    main = PAPER_STEPS * (many["step_seconds"] + relabel)
    chunk = PAPER_STEPS / 50 * many["step_seconds"]
    numbers = {
        "rows": rows,
        "paper_run": {"dynamics_seconds": first, "dynamics_steps": first_steps,
                      "train_seconds": main, "extrapolated": True},
        "empty_call_over_chunk": many["call_seconds"] / chunk,
    }  # fmt: skip
    over = many["step_seconds"] / one["step_seconds"]
    torch = many["torch_over_jax"]
    absent = "PyTorch is not installed" if torch_step.torch is None else "absent"
    on = "cuda" if torch_step.torch and torch_step.torch.cuda.is_available() else "cpu"
    beside = f"PyTorch on {on}, in turn or in processes" if torch else absent
    how = f"extrapolated from {many['steps']} steps, relabelling and {first_steps} steps of models"
    verdict = Verdict(
        [
            bar("eight_seeds", over, "median steps"),
            bar("beside_torch", torch if on == "cuda" or small else None, beside),
            bar("paper_run", first + main, how),
        ],
        {"eight_over_one": (over, LOWER)} | ({"torch_over_jax": (torch, HIGHER)} if torch else {}),
    )
    return numbers, verdict


def ctmrl(small):
    """CTMRL at the paper's sizes and Ant-Dir's shapes."""
    one, many, rows = _seeds("ctmrl", small, rival=False)
    over = many["step_seconds"] / one["step_seconds"]
    return {"rows": rows}, Verdict([], {"eight_over_one": (over, LOWER)})


def scaling_piece(small):
    """GENTLE at paper shapes over numbers of runs, side by side; ends where memory does."""
    problem = train_step.make_problem("ant_dir", "gentle", small)
    machine.product_rate(1, 64, 64, 64, 1)  # what a process does once
    start, rows, loops, stopped = scaling.first_state(problem), [], [], None
    for count in (1, 2) if small else (1, 4, 16, 64):
        try:
            loops.append(scaling.Loop(problem, start, count, False))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            stopped = f"{count} runs: {errors.first_line(error)}"
            break
        rows.append(scaling.make_row("runs", problem, loops[-1], count, "side by side"))
    scaling.add_times(rows, loops, 3, 0.01 if small else 0.5)
    fits, memory = growth.fits(rows), growth.memory_rows(rows)
    grown = [f["last_over_first"] for f in fits if f["quantity"] == "compile_seconds"]
    how = f"{rows[-1]['runs']} runs, the rest did not fit" if stopped else "GENTLE Ant-Dir"
    held = memory[0] if memory else {}
    verdict = Verdict(
        [
            bar("dataset_copies", held.get("dataset_copies_per_device"), how),
            bar("linear_memory", held.get("r2"), how),
            bar("compile_growth", grown[0] if grown else None, how),
        ],
        {"seed_steps_last_over_first": (
            rows[-1]["seed_steps_per_second"] / rows[0]["seed_steps_per_second"], HIGHER)},
    )  # fmt: skip
    return {"rows": rows, "fits": fits, "memory": memory, "stopped": stopped}, verdict


def precision_problem(name, small):
    """Returns the `train_step.Problem` whose matrix products have the precision `name`."""
    return train_step.make_problem("ant_dir", "gentle", small, {"train.precision": name})


def precision(small):
    """Step time by `train.precision`, that of matrix products."""
    seeds, rows, loops = 2 if small else PAPER_SEEDS, [], []
    for name in config_lib.PRECISIONS:
        problem = precision_problem(name, small)
        loops.append(scaling.Loop(problem, scaling.first_state(problem), seeds, None))
        rows.append(scaling.make_row("runs", problem, loops[-1], seeds, name))
    scaling.add_times(rows, loops, 3, 0.01 if small else 0.5)
    base = rows[0]["step_seconds"]
    ratios = {f"float32_over_{r['mapping']}": (base / r["step_seconds"], HIGHER) for r in rows[1:]}
    return {"rows": rows}, Verdict([], ratios)


def loops(small):
    """Step time of eight seeds where XLA puts loops into command buffers, and of a flat Adam."""
    seeds, rows, made = 2 if small else PAPER_SEEDS, [], []
    problems = {"gentle ant_dir": train_step.make_problem("ant_dir", "gentle", small)}
    problems["ctmrl quick"] = scaling.make_problem("ctmrl", small)
    variants = {"usual": (None, None)} if jax.default_backend() == "cpu" else {
        name: ({"xla_gpu_enable_command_buffer": value} if value is not None else None, None)
        for name, value in COMMAND_BUFFERS.items()
    }  # fmt: skip
    variants["flat adam"] = (None, flat_adam())
    for of, problem in problems.items():
        start = scaling.first_state(problem)
        for name, (options, adam) in variants.items():
            begin = start if adam is None else _with_adam(adam, scaling.first_state, problem)
            make = lambda p=problem, b=begin, o=options: scaling.Loop(p, b, seeds, None, o)
            try:
                loop = make() if adam is None else _with_adam(adam, make)
            except jax.errors.JaxRuntimeError as error:
                rows.append({"of": of, "mapping": name, "error": errors.first_line(error)})
                continue
            made.append((len(rows), loop))
            rows.append(scaling.make_row("runs", problem, loop, seeds, name) | {"of": of})
    timed = [rows[at] for at, _ in made]
    scaling.add_times(timed, [loop for _, loop in made], 3, 0.01 if small else 0.5)
    usual = {row["of"]: row["step_seconds"] for row in timed if row["mapping"] == "usual"}
    ratios = {f"{row['of']}, usual over {row['mapping']}": (
        usual[row["of"]] / row["step_seconds"], HIGHER)
        for row in timed if row["mapping"] != "usual" and row["of"] in usual}  # fmt: skip
    return {"rows": rows}, Verdict([], ratios)


def flat_adam():
    """Returns Adam whose moments are one vector: fewer, larger operations."""
    adam = optax.scale_by_adam()
    flat = lambda tree: ravel_pytree(tree)[0]

    def update(grads, state, params=None):
        vector, back = ravel_pytree(grads)
        updates, state = adam.update(vector, state, None)
        return back(updates), state

    return optax.GradientTransformation(lambda params: adam.init(flat(params)), update)


def _with_adam(adam, function, *args):
    """Calls a function while learners have another optimiser."""
    jax.clear_caches()  # of traces with the usual one
    with mock.patch.object(learner, "_ADAM", adam):
        return function(*args)


def env_step(small):
    """Environment steps per second of MJX, `fast` physics, over batches; one compile each."""
    batches, steps = ((2, 4), 2) if small else ((512, 8192, 65_536), 50)
    jobs, keys = [], []
    for family in BODIES[2:3] if small else BODIES:
        env = env_bench.make_env(family, "fast")
        given = env_bench.inputs(env, batches[-1], steps)
        for batch in batches:
            keys.append((family, batch))
            part = jax.tree.map(lambda leaf, n=batch: leaf[:n], given)
            jobs.append(lambda env=env, part=part: _simulator(env, part))
    begin = time.perf_counter()
    programs = sweep.together(jobs)
    compiled, rows = time.perf_counter() - begin, []
    for (family, batch), (call, args, seconds) in zip(keys, programs, strict=True):
        length = steps if small else max(2, min(steps, 100_000 // batch))  # large ones take long
        times = [machine.seconds(lambda c=call, a=args, n=length: c(*a, jnp.int32(n)))
                 for _ in range(4)]  # fmt: skip
        rate = batch * length / statistics.median(times[1:])
        rows.append({"family": family, "batch": batch, "steps_per_second": rate,
                     "compile_seconds": seconds})  # fmt: skip
    last = {row["family"]: row["steps_per_second"] for row in rows}
    first = {row["family"]: row["steps_per_second"] for row in reversed(rows)}
    ratios = {f"{f}_last_over_first_batch": (last[f] / first[f], HIGHER) for f in last}
    numbers = {"rows": rows, "physics": "fast", "compile_seconds_side_by_side": compiled}
    return numbers, Verdict([], ratios)


def _simulator(env, given):
    """Returns (compiled loop over environment steps, its arguments, seconds to compile)."""
    mesh = sweep.make_mesh(len(given[2]))
    args = tuple(sweep.place(tree, mesh) for tree in given)
    simulate = env_bench.make_simulate(env_bench.whole_step(env))
    loop = sweep.over_runs(simulate, 3, mesh, in_turn=False)
    program = sweep.compile_program(loop, (*args, jnp.int32(0)))
    return program.call, args, program.compile_seconds


def behaviour(small):
    """Data of one MuJoCo family with preset `fast`: a stretch of SAC, and one level's episodes."""
    sizes = {"env.num_train": 1, "env.num_test": 1, "env.horizon": 4} if small else {}
    preset = "smoke" if small else "fast"
    config = assembly.make_config("ctmrl", preset, sizes, env="cheetah_vel", physics="fast")
    env, settings = assembly.env_of(config), config.behaviour
    tasks = collect.num_tasks(env)
    mesh = sweep.make_mesh(tasks)
    collector = behaviour_lib.make(env, settings, mesh)
    keys = sweep.place(behaviour_lib.task_keys(settings, tasks), mesh)
    whose = (sweep.place(env.tasks, mesh), keys)
    shapes = jax.eval_shape(collector.init, *whose)
    begin = time.perf_counter()
    programs = collect.compile_programs(collector, whose, shapes, mesh)
    compiled = time.perf_counter() - begin
    state, start, copies = programs.init.call(*whose), settings.seed_steps, settings.num_envs

    def advance(state, length):
        begin = time.perf_counter()
        state, _ = programs.advance.call(*whose, state, jnp.int32(start), jnp.int32(length))
        jax.block_until_ready(state)
        return state, time.perf_counter() - begin

    state, _ = advance(state, copies)
    state, once = advance(state, 4 * copies)
    length = copies * min(max(round((0.1 if small else 20.0) / (once / 4)), 1), 5_000)
    state, seconds = advance(state, length)
    step = jnp.int32(settings.first_level)
    machine.seconds(lambda: programs.episodes.call(*whose, state, step))
    level = machine.seconds(lambda: programs.episodes.call(*whose, state, step))
    seconds_in_all = settings.num_steps * seconds / length + settings.num_levels * level
    numbers = {
        "tasks": tasks, "config": dataclasses.asdict(settings), "measured_steps_per_task": length,
        "steps_per_second": tasks * length / seconds, "level_seconds": level,
        "compile_seconds": compiled, "state_bytes": training.state_bytes(shapes),
        "extrapolated_seconds": seconds_in_all,
    }  # fmt: skip
    how = f"extrapolated from {length} steps of each task, updates too, and one level's episodes"
    how += f"; compiling, {compiled:.0f} s, and writing files apart"
    return numbers, Verdict([bar("family_data", seconds_in_all, how)], {})


def command(small):
    """A whole run of the first command twice, without and with the cache, data made once."""
    sizes = ["--preset=smoke", "--num_seeds=2"] if small else ["--preset=quick", "--num_seeds=8"]
    sizes += ["--protocol=given_context"] if small else []
    summaries, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
        for out in ("cold", "warm"):
            words = [*sizes, f"--data={folder}/data", f"--out={folder}/{out}"]
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "experiments.run", *words],
                check=True, env=environment, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            seconds.append(time.perf_counter() - begin)
            path = next(Path(folder, out).rglob("summary.json"))
            summaries.append(outputs.read_summary(path))
    cold, warm = (summary["seconds"] for summary in summaries)
    work = warm["train"] + warm["evaluate"]
    host = (warm["total"] - work - warm["compile"] - warm["collect"]) / work
    where = f"`experiments.run {' '.join(sizes)}`"
    numbers = {
        "flags": sizes,
        "process_seconds": seconds,
        "seconds": [cold, warm],
        "results": summaries[1]["results"],
        "run_peak_memory_bytes": summaries[1]["peak_memory_bytes"],
    }
    verdict = Verdict(
        [
            bar("host_share", host, f"{where}, all that is in no other phase"),
            bar("warm_compile", warm["compile"], f"{where}; {cold['compile']} s without a cache"),
        ],
        {"warm_over_cold_compile": (warm["compile"] / cold["compile"], LOWER)},
    )
    return numbers, verdict


MEASURES = {
    "gentle": gentle,
    "ctmrl": ctmrl,
    "scaling": scaling_piece,
    "precision": precision,
    "loops": loops,
    "env_step": env_step,
    "behaviour": behaviour,
    "command": command,
}


def measure(piece, small):
    """Returns the record of a piece: numbers, bars, ratios, machine, versions, peak memory.

    Programs are compiled afresh: no persistent cache, but where a piece measures one.
    """
    product.use_all_cores()
    with machine.no_cache():
        numbers, verdict = MEASURES[piece](small)
    described = machine.describe(torch_step.torch)
    return {
        **described,
        "device": described["machine"]["device"],
        "small": small,
        "peak_bytes": product.peak_bytes(),
        "ratios": verdict.ratios,
        "bars": verdict.bars,
        "result": numbers,
    }
