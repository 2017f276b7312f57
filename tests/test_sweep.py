"""Seed sweeps: the plan, the two drivers, isolation of runs, and how often anything compiles."""

import functools
import pathlib
import subprocess
import sys
import threading
import time
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from experiments.cli import settings
from gentle_jax import assembly, evaluation, registry, storage, sweep, training
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.types import Stage

COMPILED = "/jax/core/compile/backend_compile_duration"
NUM_EVALS = 2
ROOT = pathlib.Path(__file__).parent.parent
START = training.Position()


def same(a, b):
    """Whether two trees are equal bit by bit, NaN included."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def row(tree, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def results_of(task, carry):
    """Everything of a chunked run on the host: its device buffers are reused later."""
    return jax.tree.map(np.array, training.to_host(task, carry))


def run_all(task, programs, **options):
    """The results of a chunked run from its start."""
    carry = training.empty_carry(task, programs.init.call(task.hp, task.run_keys, task.data))
    return results_of(task, training.chunked(task, programs, carry, START, **options))


class Setting(NamedTuple):
    """A compiled sweep of two runs, and what it gives."""

    task: training.Sweep
    programs: training.Programs
    compiled: list  # compile events while `compile_all` ran
    plain: dict  # carry of an uninterrupted chunked run, every step a chunk

    def run(self, **changes):
        """Runs all chunks with the same programs and some other `hp` or `run_keys`."""
        return run_all(self.task._replace(**changes), self.programs)


class Counter:
    """Counts compilations while it is entered."""

    def __enter__(self):
        self.count = 0
        self.listen = lambda event, seconds, **_: self.add(event)
        monitoring.register_event_duration_secs_listener(self.listen)
        return self

    def add(self, event):
        self.count += event == COMPILED

    def __exit__(self, *_):
        monitoring.unregister_event_duration_listener(self.listen)


@pytest.fixture(scope="module")
def setting(tiny):
    made = tiny(
        "ctmrl",
        backbone="td3_bc",
        **{
            "eval.scored_steps": 5,
            "train.num_steps": 12,
            "ctmrl.num_iterations": 4,
            # losses that cost compile time and that no driver knows of
            "algo.use_cross_prediction": False,
            "algo.use_contrast": False,
        },
    )
    data = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), made.train, made.test)
    protocols = {"given_context": made.protocols["given_context"]}
    task = training.Sweep(
        algorithm=made.algorithm,
        evaluate=evaluation.make_evaluate(made.algorithm, made.env, protocols, 1),
        episodes={name: protocol.num_episodes for name, protocol in protocols.items()},
        embed=evaluation.make_embed(made.algorithm, made.config.train, 2),
        trace=evaluation.make_trace(made.algorithm, made.env, protocols["given_context"]),
        data=data,
        tasks=jax.tree.map(jnp.asarray, made.env.tasks),
        hp=made.hp,
        run_keys=jax.vmap(jax.random.key)(jnp.arange(2)),
        num_evals=NUM_EVALS,
    )
    seen = []
    programs = training.compile_all(
        task, training.Hooks(on_compile=lambda name, program: seen.append(name))
    )
    found = Setting(task, programs, seen, {})
    return found._replace(plain=found.run())


@pytest.fixture(scope="module")
def fused(setting):
    task = setting.task
    return sweep.fused(
        task.algorithm, task.evaluate, task.data, task.tasks, task.hp, task.num_evals
    )


def lengths(*parts):
    return tuple(Stage(f"s{i}", steps, None, evaluate) for i, (steps, evaluate) in enumerate(parts))


@pytest.mark.parametrize(
    "stages,num_evals,num_chunks",
    [
        (((20, True),), 2, 50),
        (((3, True), (17, True)), 10, 4),
        (((7, False), (13, True)), 3, 1),
        (((0, True), (5, True)), 9, 50),
        (((5, False), (0, True), (6, True)), 1, 2),
        (((16_000, True), (49_000, True)), 10, 50),
        (((1, True), (1, True)), 1, 1),
    ],
)
def test_plan_covers_every_step_once_and_ends_with_an_evaluation(stages, num_evals, num_chunks):
    built = lengths(*stages)
    chunks = sweep.plan(built, num_evals, num_chunks)
    total = sum(stage.num_steps for stage in built)
    begin_of = np.cumsum([0] + [stage.num_steps for stage in built])
    done = 0
    for chunk in chunks:
        # contiguous, non-empty, and within one stage
        assert chunk.length > 0
        assert begin_of[chunk.stage] + chunk.start == done
        done += chunk.length
        assert done == chunk.done <= begin_of[chunk.stage + 1]
    assert done == total
    assert {begin_of[i + 1] for i, s in enumerate(built) if s.num_steps} <= {c.done for c in chunks}
    points = [c.done for c in chunks if c.evaluate]
    with_policy = [s.num_steps for s in built if s.evaluate]
    assert len(points) == min(num_evals, sum(with_policy))
    assert chunks[-1].evaluate and points[-1] == total
    for chunk in chunks:
        assert built[chunk.stage].evaluate or not chunk.evaluate
    # evenly spaced over the stages that have a policy
    offsets = [sum(s.num_steps for s in built[: c.stage] if not s.evaluate) for c in chunks]
    policy_steps = [c.done - o for c, o in zip(chunks, offsets, strict=True) if c.evaluate]
    gaps = np.diff([0, *policy_steps])
    assert gaps.max() - gaps.min() <= 1


def test_both_stages_and_all_results_are_there(setting):
    assert [stage.num_steps > 1 for stage in setting.task.algorithm.stages] == [True, True]
    for results in ("returns", "embeddings"):
        for name, values in setting.plain[results].items():
            assert values.shape[:2] == (NUM_EVALS, 2)
            # the first evaluation is before the codes: figures show none there
            assert np.isfinite(values[1:] if name == "code" else values).all()
    assert np.isnan(setting.plain["embeddings"]["code"][0]).all()
    assert not same(row(setting.plain["state"], 0), row(setting.plain["state"], 1))


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_the_number_of_chunks_changes_no_bit(setting, monkeypatch, num_chunks):
    before = sweep.plan(setting.task.algorithm.stages, NUM_EVALS)
    monkeypatch.setattr(sweep, "plan", functools.partial(sweep.plan, num_chunks=num_chunks))
    assert len(sweep.plan(setting.task.algorithm.stages, NUM_EVALS)) < len(before)
    assert same(setting.run(), setting.plain)


class OneByOne(training.Pace):
    """Asks the host after every single step."""

    def size(self, stage, left):
        return 1


def test_pieces_of_any_size_and_resuming_at_any_pause_change_no_bit(setting, monkeypatch):
    # chunks of several steps, so that there are positions within one
    monkeypatch.setattr(sweep, "plan", functools.partial(sweep.plan, num_chunks=2))
    task, programs, saved, logs = setting.task, setting.programs, {}, []

    def hooks(log):
        def on_pause(position, carry, last):
            saved[position] = results_of(task, carry), last

        return training.Hooks(
            on_chunk=lambda chunk, metrics: log.append((chunk, metrics)), on_pause=on_pause
        )

    whole, pieces = [], []
    assert same(run_all(task, programs, hooks=hooks(whole)), setting.plain)
    saved.clear()
    assert same(run_all(task, programs, hooks=hooks(pieces), pace=OneByOne()), setting.plain)
    assert [c for c, _ in whole] == [c for c, _ in pieces] and len(whole) < 12
    assert same([m for _, m in whole], [m for _, m in pieces])  # metrics are means over chunks
    total = sum(stage.num_steps for stage in task.algorithm.stages)
    units = len(task.episodes) + 1
    within = {training.Position(done) for done in range(1, total)} & set(saved)
    assert len(within) > total // 2 and training.Position(total, 1) in saved
    assert [p for p, (_, last) in saved.items() if last] == [training.Position(total, units)]
    for position in sorted(saved)[:: len(saved) // 5] + [training.Position(total, 1)]:
        carry = training.to_device(task, saved[position][0])
        again = training.chunked(task, programs, carry, position, hooks(logs))
        assert same(results_of(task, again), setting.plain), position
        first = whole[-1][1] if position.done < total else None
        if first is not None:  # sums were taken over from before the interruption
            assert same(logs[-1][1], first), position


def test_fused_and_chunked_drivers_agree_bit_by_bit(setting, fused):
    result = jax.device_get(fused(setting.task.run_keys))
    assert same(result["returns"], setting.plain["returns"])
    assert same(result["state"], setting.plain["state"])
    chunks = sweep.plan(setting.task.algorithm.stages, NUM_EVALS)
    for number, stage in enumerate(setting.task.algorithm.stages):
        expected = (sum(c.stage == number for c in chunks), 2)
        assert {v.shape for v in jax.tree.leaves(result["metrics"][stage.name])} == {expected}


def test_runs_together_equal_each_run_alone(setting):
    """Widths may differ in the last bits (product.md sec. 8), which training then amplifies."""
    task, programs = setting.task, setting.programs
    warmup, stage = task.algorithm.stages
    state = programs.init.call(task.hp, task.run_keys, task.data)
    totals = training.empty_carry(task, state)["totals"][0]
    state, _ = programs.stages[0].call(
        state, totals, task.run_keys, task.data, jnp.int32(0), jnp.int32(warmup.num_steps)
    )
    alone = jax.jit(sweep.make_chunk(stage))
    for index in range(2):
        one, _ = alone(
            jax.tree.map(lambda x, i=index: x[i], state),
            task.run_keys[index],
            task.data,
            jnp.int32(0),
            jnp.int32(stage.num_steps),
        )
        together = row(setting.plain["state"], index)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_side_by_side_equals_in_turn(setting):
    """What accelerators do (vmap) against what a CPU does (lax.map), up to the last bits."""
    task, stage = setting.task, setting.task.algorithm.stages[1]
    state = setting.programs.init.call(task.hp, task.run_keys, task.data)
    found = []
    for in_turn in (False, True):
        chunk = jax.jit(sweep.over_runs(sweep.make_chunk(stage), 2, None, in_turn))
        length = jnp.int32(stage.num_steps)
        found.append(chunk(state, task.run_keys, task.data, jnp.int32(0), length))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "num_runs,num_devices,expected",
    [(8, 2, 2), (6, 4, 3), (7, 2, 2), (1, 4, None), (8, 3, 3), (5, 4, 3), (3, 8, 3), (9, 1, None)],
)
def test_the_mesh_takes_no_more_devices_than_save_time(
    monkeypatch, num_runs, num_devices, expected
):
    monkeypatch.setattr(sweep, "Mesh", lambda devices, *_, **__: len(devices))
    device = types.SimpleNamespace(process_index=0)
    assert sweep.make_mesh(num_runs, [device] * num_devices) == expected


def test_no_process_is_left_without_a_device(monkeypatch):
    monkeypatch.setattr(sweep, "Mesh", lambda devices, *_, **__: len(devices))
    devices = [types.SimpleNamespace(process_index=i // 2) for i in range(4)]
    assert sweep.make_mesh(2, devices) == 4  # padded: two of them repeat the last run


def test_an_error_does_not_wait_for_what_still_compiles():
    begin, ended = time.perf_counter(), threading.Event()

    def fails():
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        sweep.together([fails, lambda: ended.wait(20), lambda: ended.wait(20)])
    assert time.perf_counter() - begin < 10
    ended.set()


def spread(task, num_runs, split=False):
    """The same sweep with so many runs (keys and hp of the two repeated), over two devices."""
    index = np.arange(num_runs) % 2
    mesh = sweep.make_mesh(num_runs)
    data = jax.tree.map(np.asarray, task.data)
    data = data_lib.split_tasks(data, mesh.size) if split else data
    return task._replace(
        data=sweep.place_data(data, mesh),
        tasks=sweep.place_shared(task.tasks, mesh),
        hp=sweep.place(jax.tree.map(lambda x: x[index], task.hp), mesh),
        run_keys=sweep.place(task.run_keys[index], mesh),
        mesh=mesh,
        num_runs=num_runs,
    )


@pytest.fixture(scope="module")
def four(setting):
    """Four runs, two on each of two devices: (task, programs, results)."""
    task = spread(setting.task, 4)
    programs = training.compile_all(task)
    return task, programs, run_all(task, programs)


def check_repeats(found, plain):
    """Runs 0, 2, ... of `found` are alike bit by bit, and close to run 0 of `plain`; so are odd."""
    size = jax.tree.leaves(found["state"])[0].shape[0]
    for index in range(2, size):
        assert same(row(found["state"], index), row(found["state"], index % 2))
        for results in ("returns", "embeddings"):
            for values in found[results].values():
                np.testing.assert_array_equal(values[:, index], values[:, index % 2])
    for a, b in zip(*map(jax.tree.leaves, (found["state"], plain["state"])), strict=True):
        np.testing.assert_allclose(a[:2], b, rtol=1e-4, atol=1e-5)


def test_runs_split_over_two_devices(setting, four):
    """The same two runs on each of two devices: bit-equal, and close to two runs on one device."""
    task, programs, found = four
    assert task.mesh.size == 2
    state = programs.init.call(task.hp, task.run_keys, task.data)
    leaf = jax.tree.leaves(state)[0]
    assert len(leaf.sharding.device_set) == 2
    assert leaf.addressable_shards[0].data.shape[0] == 2  # half of the runs each
    check_repeats(found, setting.plain)
    fused = sweep.fused(
        task.algorithm, task.evaluate, task.data, task.tasks, task.hp, NUM_EVALS, task.mesh
    )
    assert same(jax.device_get(fused(task.run_keys))["returns"], found["returns"])


def test_runs_that_do_not_divide_are_padded_and_the_copies_dropped(setting, four):
    """Three runs on two devices have the width of four: bit-equal to the first three of them."""
    task = spread(setting.task, 3)
    assert task.mesh.size == 2 and task.run_keys.shape == (4,) and task.runs == 3
    wide, programs, expected = four
    del wide
    found = run_all(task, programs)  # the very programs of four runs
    assert same(row(expected["state"], slice(0, 3)), found["state"])
    for results in ("returns", "embeddings"):
        for name, values in found[results].items():
            assert values.shape[:2] == (NUM_EVALS, 3)
            np.testing.assert_array_equal(values, expected[results][name][:, :3])
    fused = sweep.fused(
        task.algorithm, task.evaluate, task.data, task.tasks, task.hp, NUM_EVALS, task.mesh, 3
    )
    result = jax.device_get(fused(task.run_keys))
    assert same(result["returns"], found["returns"]) and same(result["state"], found["state"])


@pytest.mark.slow
def test_more_devices_change_no_bit_at_equal_width():
    command = [sys.executable, "-m", "tests.equal_width"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"


def test_one_device_equals_two_at_equal_width(setting):
    """Without XLA's algebraic simplifier, which programs for several devices pass once more."""
    found = []
    for task in (setting.task, spread(setting.task, 4)):
        stage = task.algorithm.stages[1]
        chunk = sweep.over_runs(sweep.make_chunk(stage), 2, task.mesh, in_turn=False)
        init_args = setting.task.hp, setting.task.run_keys, setting.task.data
        state = setting.programs.init.call(*init_args)
        state = jax.tree.map(lambda x, n=task.runs: np.asarray(x)[np.arange(n) % 2], state)
        args = sweep.place(state, task.mesh), task.run_keys, task.data, jnp.int32(0), jnp.int32(5)
        options = {"xla_disable_hlo_passes": "algsimp"}
        compiled = jax.jit(chunk).lower(*args).compile(compiler_options=options)
        found.append(jax.device_get(compiled(*args)))
    one, two = found
    assert same(one, row(two, slice(0, 2))) and same(one, row(two, slice(2, 4)))


def test_a_checkpoint_of_one_device_resumes_on_two(setting, four):
    """Real runs only are saved, so what they lay on does not matter."""
    task, saved = spread(setting.task, 2), {}
    hooks = training.Hooks(
        on_pause=lambda position, carry, last: saved.update(
            {position: results_of(setting.task, carry)}
        )
    )
    run_all(setting.task, setting.programs, hooks=hooks)
    position = sorted(saved)[len(saved) // 2]
    assert task.mesh.size == 2
    carry = training.to_device(task, saved[position])
    programs = training.compile_all(task)
    found = results_of(task, training.chunked(task, programs, carry, position))
    check_repeats(found, setting.plain)


def test_data_split_by_task_change_no_bit(setting, four):
    """Rows are fetched from the device that has them, in training and in evaluation."""
    task = spread(setting.task, 4, split=True)
    shard = task.data.rows.reward.addressable_shards[0].data
    num_tasks = setting.task.data.rows.reward.shape[0]
    assert shard.shape[0] == -(-num_tasks // 2)  # half of the tasks
    programs = training.compile_all(task)
    found = run_all(task, programs)
    for a, b in zip(*map(jax.tree.leaves, (found, four[2])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    drawn = jax.jit(sweep.over_runs(draw_rows, 1, task.mesh))
    alone = jax.jit(sweep.over_runs(draw_rows, 1, four[0].mesh))
    assert same(drawn(task.run_keys, task.data), alone(task.run_keys, four[0].data))


def draw_rows(key, data):
    """Rows of every kind of draw, of some tasks in another order."""
    ids = jnp.array([3, 0, 4, 1])
    seen = data_lib.view_tasks(data, ids[::-1])
    draws = [
        data_lib.context_batch(data, ids, 6, key, d, 2) for d in ("uniform", "level", "episodes")
    ]
    return draws, data_lib.rl_batch(seen, jnp.arange(4), 5, key)


@pytest.mark.parametrize("what", ["hp", "key"])
def test_changing_one_run_leaves_the_other_alone(setting, what):
    task = setting.task
    if what == "hp":
        changes = {"hp": jax.tree.map(lambda x: x.at[1].multiply(0.9), task.hp)}
    else:
        changes = {"run_keys": jnp.stack([task.run_keys[0], jax.random.key(99)])}
    other = setting.run(**changes)
    plain = setting.plain
    assert same(row(other["state"], 0), row(plain["state"], 0))
    assert not same(row(other["state"], 1), row(plain["state"], 1))
    for results in ("returns", "embeddings"):
        first = lambda tree: {name: values[:, 0] for name, values in tree.items()}
        assert same(first(other[results]), first(plain[results]))


def test_every_program_is_compiled_once(setting, fused):
    # ahead of time, in any order: one per stage and per protocol, and init, embed, trace
    task = setting.task
    names = {"init", "embed", "trace"} | {f"stage {stage.name}" for stage in task.algorithm.stages}
    names |= {f"evaluate {protocol}" for protocol in task.episodes}
    assert set(setting.compiled) == names
    assert len(setting.compiled) == len(setting.programs.all()) == len(names)
    other = jax.tree.map(lambda x: x * 0.5, setting.task.hp)
    keys = jax.vmap(jax.random.key)(jnp.arange(5, 7))
    setting.run()
    with Counter() as counter:
        for hp in (setting.task.hp, other):
            for run_keys in (setting.task.run_keys, keys):
                setting.run(hp=hp, run_keys=run_keys)
    assert counter.count == 0
    task = setting.task
    for hp in (task.hp, other):
        for run_keys in (task.run_keys, keys):
            fused.jitted(run_keys, hp, task.data, task.tasks)
    fused(keys)
    assert fused.jitted._cache_size() == 1


def test_a_changed_shape_is_an_error_not_a_second_compilation(setting):
    task = setting.task
    with pytest.raises(TypeError):
        setting.programs.init.call(jax.tree.map(lambda x: x[:1], task.hp), task.run_keys[:1])


def test_donated_state_leaves_hp_and_keys_usable(setting):
    task = setting.task
    assert same(setting.run(), setting.plain)
    assert same(setting.run(), setting.plain)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((task.hp, task.data, task.tasks)))
    assert not task.run_keys.is_deleted()


def test_grid_points_cross_with_seeds():
    run = config_lib.RunConfig(num_seeds=3, seed_offset=4)
    small = {
        "behaviour.num_levels": 1, "behaviour.episodes_per_level": 1,
        "train.latent_dim": 2, "train.context_size": 4,
    }  # fmt: skip
    config = config_lib.resolve(run, (small,))
    points = settings.points_of(settings.parse_sweep(config, ["lr=0.1,0.2", "algo.eta=0.5"]))
    env = registry.load("environment", run.env).make(run.suite)
    shapes = storage.shapes(jax.tree.leaves(env.tasks)[0].shape[0], config.behaviour, env)
    fields = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    task = assembly.make_sweep(config, fields, points)
    for section in ("algo", "backbone"):
        np.testing.assert_allclose(task.hp[section]["lr"], [0.1] * 3 + [0.2] * 3)
    np.testing.assert_allclose(task.hp["algo"]["eta"], [0.5] * 6)
    np.testing.assert_allclose(task.hp["algo"]["decay"], [config.algo.decay] * 6)
    seeds = [jax.random.key_data(jax.random.key(seed)) for seed in (4, 5, 6)]
    np.testing.assert_array_equal(jax.random.key_data(task.run_keys), seeds * 2)
