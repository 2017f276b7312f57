"""Seed sweeps: the plan, the two drivers, isolation of runs, and how often anything compiles."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from experiments import build, flags
from gentle_jax import config as config_lib
from gentle_jax import evaluation, registry, storage, sweep, training
from gentle_jax.types import Stage

COMPILED = "/jax/core/compile/backend_compile_duration"
NUM_EVALS = 2


def same(a, b):
    """Whether two trees are equal bit by bit, NaN included."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def row(tree, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def results_of(carry):
    """Everything of a chunked run on the host: its device buffers are reused later."""
    return jax.tree.map(np.array, carry)


class Setting(NamedTuple):
    """A compiled sweep of two runs, and what it gives."""

    task: training.Task
    programs: training.Programs
    compiled: list  # compile events while `compile_all` ran
    plain: dict  # carry of an uninterrupted chunked run, every step a chunk

    def run(self, **changes):
        """Runs all chunks with the same programs and some other `hp` or `run_keys`."""
        task = self.task._replace(**changes)
        state = self.programs.init.call(task.hp, task.run_keys)
        return results_of(
            training.chunked(task, self.programs, training.empty_carry(task, state), 0)
        )


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
    task = training.Task(
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


def test_resume_from_any_chunk_changes_no_bit(setting):
    saved = {}
    task, programs = setting.task, setting.programs
    state = programs.init.call(task.hp, task.run_keys)
    hooks = training.Hooks(on_save=lambda done, carry: saved.update({done: results_of(carry)}))
    training.chunked(task, programs, training.empty_carry(task, state), 0, hooks)
    total = max(saved)
    for done in (1, total // 2, total):
        again = training.chunked(task, programs, jax.tree.map(np.copy, saved[done]), done)
        assert same(results_of(again), setting.plain), done


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
    state = programs.init.call(task.hp, task.run_keys)
    state, _ = programs.stages[0].call(
        state, task.run_keys, task.data, jnp.int32(0), jnp.int32(warmup.num_steps)
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
    state = setting.programs.init.call(task.hp, task.run_keys)
    found = []
    for in_turn in (False, True):
        chunk = jax.jit(sweep.over_runs(sweep.make_chunk(stage), 2, None, in_turn))
        length = jnp.int32(stage.num_steps)
        found.append(chunk(state, task.run_keys, task.data, jnp.int32(0), length))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "num_runs,num_devices,expected", [(8, 2, 2), (6, 4, 3), (7, 2, None), (1, 4, None), (8, 3, 2)]
)
def test_the_mesh_takes_as_many_devices_as_divide_the_runs(num_runs, num_devices, expected):
    stand_ins = [jax.devices()[0]] * num_devices
    chosen = sweep.devices_for(num_runs, stand_ins)
    assert (None if len(chosen) == 1 else len(chosen)) == expected


def test_runs_split_over_two_devices(setting):
    """The same two runs on each of two devices: bit-equal, and close to two runs on one device.

    Not bit-equal to one device: XLA compiles programs for one and for several differently.
    """
    mesh, plain = sweep.make_mesh(4), setting.task
    assert mesh.size == 2
    twice = lambda x: jnp.concatenate([x, x])
    task = plain._replace(
        data=sweep.place(plain.data, mesh, shared=True),
        tasks=sweep.place(plain.tasks, mesh, shared=True),
        hp=sweep.place(jax.tree.map(twice, plain.hp), mesh),
        run_keys=sweep.place(twice(plain.run_keys), mesh),
        mesh=mesh,
    )
    programs = training.compile_all(task)

    def run(state):
        return results_of(training.chunked(task, programs, training.empty_carry(task, state), 0))

    state = programs.init.call(task.hp, task.run_keys)
    leaf = jax.tree.leaves(state)[0]
    assert len(leaf.sharding.device_set) == 2
    assert leaf.addressable_shards[0].data.shape[0] == 2  # half of the runs each
    saved = jax.tree.map(np.array, state)  # what a checkpoint holds, whatever the devices
    carry = run(state)
    assert same(run(saved), carry)
    first, second = slice(0, 2), slice(2, 4)
    assert same(row(carry["state"], first), row(carry["state"], second))
    for results in ("returns", "embeddings"):
        for values in carry[results].values():
            np.testing.assert_array_equal(values[:, first], values[:, second])
    expected = jax.tree.leaves(setting.plain["state"])
    for a, b in zip(jax.tree.leaves(carry["state"]), expected, strict=True):
        np.testing.assert_allclose(a[first], b, rtol=1e-4, atol=1e-5)
    fused = sweep.fused(
        task.algorithm, task.evaluate, task.data, task.tasks, task.hp, NUM_EVALS, mesh
    )
    assert same(jax.device_get(fused(task.run_keys))["returns"], carry["returns"])


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
    points = flags.points_of(flags.parse_sweep(config, ["lr=0.1,0.2", "algo.eta=0.5"]))
    env = registry.load("environment", run.env).make(run.suite)
    shapes = storage.shapes(jax.tree.leaves(env.tasks)[0].shape[0], config.behaviour, env)
    fields = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    task, _, _ = build.make_task(config, points, fields)
    for section in ("algo", "backbone"):
        np.testing.assert_allclose(task.hp[section]["lr"], [0.1] * 3 + [0.2] * 3)
    np.testing.assert_allclose(task.hp["algo"]["eta"], [0.5] * 6)
    np.testing.assert_allclose(task.hp["algo"]["decay"], [config.algo.decay] * 6)
    seeds = [jax.random.key_data(jax.random.key(seed)) for seed in (4, 5, 6)]
    np.testing.assert_array_equal(jax.random.key_data(task.run_keys), seeds * 2)
