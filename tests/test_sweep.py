"""Seed sweeps: the two drivers, isolation of runs, devices, and how often anything compiles."""

import contextlib
import functools
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from gentle_jax import assembly, evaluation, training
from gentle_jax import data as data_lib
from gentle_jax import sweep as sweep_lib

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


def results_of(sweep, carry):
    """Everything of a chunked run on the host: its device buffers are reused later."""
    return jax.tree.map(np.array, training.to_host(sweep, carry))


def run_all(sweep, programs, **options):
    """The results of a chunked run from its start."""
    carry = training.empty_carry(sweep, programs.init.call(sweep.hp, sweep.run_keys, sweep.data))
    return results_of(sweep, training.chunked(sweep, programs, carry, START, **options))


class Setting(NamedTuple):
    """A compiled sweep of two runs, and what it gives."""

    sweep: training.Sweep
    programs: training.Programs
    compiled: list  # compile events while `compile_all` ran
    plain: dict  # carry of an uninterrupted chunked run, every step a chunk

    def run(self, **changes):
        """Runs all chunks with the same programs and some other `hp` or `run_keys`."""
        return run_all(self.sweep._replace(**changes), self.programs)


@contextlib.contextmanager
def compilations():
    """Yields a list that grows whenever something is compiled."""
    seen = []
    listen = lambda event, seconds, **_: seen.extend([seconds] * (event == COMPILED))
    monitoring.register_event_duration_secs_listener(listen)
    yield seen
    monitoring.unregister_event_duration_listener(listen)


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
    sweep = training.Sweep(
        algorithm=made.algorithm,
        evaluate=evaluation.make_evaluate(made.algorithm, made.env, protocols, 1),
        episodes={name: protocol.num_episodes for name, protocol in protocols.items()},
        embed=evaluation.make_embed(made.algorithm, made.config.train, 2, made.env.horizon),
        data=data,
        tasks=jax.tree.map(jnp.asarray, made.env.tasks),
        hp=made.hp,
        run_keys=jax.vmap(jax.random.key)(jnp.arange(2)),
        num_evals=NUM_EVALS,
        env=made.env,
    )
    seen = []
    programs = training.compile_all(
        sweep, training.Hooks(on_compile=lambda name, program: seen.append(name))
    )
    found = Setting(sweep, programs, seen, {})
    return found._replace(plain=found.run())


@pytest.fixture(scope="module")
def fused(setting):
    sweep = setting.sweep
    return sweep_lib.fused(
        sweep.algorithm, sweep.evaluate, sweep.data, sweep.tasks, sweep.hp, sweep.num_evals
    )


def test_both_stages_and_all_results_are_there(setting):
    assert [stage.num_steps > 1 for stage in setting.sweep.algorithm.stages] == [True, True]
    for results in ("returns", "embeddings"):
        for name, values in setting.plain[results].items():
            assert values.shape[:2] == (NUM_EVALS, 2)
            # the first evaluation is before the codes: figures show none there
            assert np.isfinite(values[1:] if name == "code" else values).all()
    assert np.isnan(setting.plain["embeddings"]["code"][0]).all()
    assert not same(row(setting.plain["state"], 0), row(setting.plain["state"], 1))


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_the_number_of_chunks_changes_no_bit(setting, monkeypatch, num_chunks):
    before = sweep_lib.plan(setting.sweep.algorithm.stages, NUM_EVALS)
    monkeypatch.setattr(sweep_lib, "plan", functools.partial(sweep_lib.plan, num_chunks=num_chunks))
    assert len(sweep_lib.plan(setting.sweep.algorithm.stages, NUM_EVALS)) < len(before)
    assert same(setting.run(), setting.plain)


class OneByOne(training.Pace):
    """Asks the host after every single step."""

    def size(self, stage, left):
        return 1


def test_pieces_of_any_size_and_resuming_at_any_pause_change_no_bit(setting, monkeypatch):
    # chunks of several steps, so that there are positions within one
    monkeypatch.setattr(sweep_lib, "plan", functools.partial(sweep_lib.plan, num_chunks=2))
    sweep, programs, saved, logs = setting.sweep, setting.programs, {}, []

    def hooks(log):
        def on_pause(position, carry, last):
            saved[position] = results_of(sweep, carry), last

        return training.Hooks(
            on_chunk=lambda chunk, metrics: log.append((chunk, metrics)), on_pause=on_pause
        )

    whole, pieces = [], []
    assert same(run_all(sweep, programs, hooks=hooks(whole)), setting.plain)
    saved.clear()
    assert same(run_all(sweep, programs, hooks=hooks(pieces), pace=OneByOne()), setting.plain)
    assert [c for c, _ in whole] == [c for c, _ in pieces] and len(whole) < 12
    assert same([m for _, m in whole], [m for _, m in pieces])  # metrics are means over chunks
    total = sum(stage.num_steps for stage in sweep.algorithm.stages)
    units = len(sweep.episodes) + 1
    within = {training.Position(done) for done in range(1, total)} & set(saved)
    assert len(within) > total // 2 and training.Position(total, 1) in saved
    assert [p for p, (_, last) in saved.items() if last] == [training.Position(total, units)]
    for position in sorted(saved)[:: len(saved) // 5] + [training.Position(total, 1)]:
        carry = training.to_device(sweep, saved[position][0])
        again = training.chunked(sweep, programs, carry, position, hooks(logs))
        assert same(results_of(sweep, again), setting.plain), position
        first = whole[-1][1] if position.done < total else None
        if first is not None:  # sums were taken over from before the interruption
            assert same(logs[-1][1], first), position


def test_fused_and_chunked_drivers_agree_bit_by_bit(setting, fused):
    result = jax.device_get(fused(setting.sweep.run_keys))
    for results in ("returns", "costs"):
        assert same(result[results], setting.plain[results])
    assert same(result["state"], setting.plain["state"])
    chunks = sweep_lib.plan(setting.sweep.algorithm.stages, NUM_EVALS)
    for number, stage in enumerate(setting.sweep.algorithm.stages):
        expected = (sum(c.stage == number for c in chunks), 2)
        assert {v.shape for v in jax.tree.leaves(result["metrics"][stage.name])} == {expected}


def test_runs_together_equal_each_run_alone(setting):
    """Widths may differ in the last bits, which training then amplifies."""
    sweep, programs = setting.sweep, setting.programs
    warmup, stage = sweep.algorithm.stages
    state = programs.init.call(sweep.hp, sweep.run_keys, sweep.data)
    totals = training.empty_carry(sweep, state)["totals"][0]
    state, _ = programs.stages[0].call(
        state, totals, sweep.run_keys, sweep.data, jnp.int32(0), jnp.int32(warmup.num_steps)
    )
    alone = jax.jit(sweep_lib.make_chunk(stage))
    for index in range(2):
        one, _ = alone(
            jax.tree.map(lambda x, i=index: x[i], state),
            sweep.run_keys[index],
            sweep.data,
            jnp.int32(0),
            jnp.int32(stage.num_steps),
        )
        together = row(setting.plain["state"], index)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_side_by_side_equals_in_turn(setting):
    """What accelerators do (vmap) against what a CPU does (lax.map), up to the last bits."""
    sweep, stage = setting.sweep, setting.sweep.algorithm.stages[1]
    state = setting.programs.init.call(sweep.hp, sweep.run_keys, sweep.data)
    found = []
    for in_turn in (False, True):
        chunk = jax.jit(sweep_lib.over_runs(sweep_lib.make_chunk(stage), 2, None, in_turn))
        length = jnp.int32(stage.num_steps)
        found.append(chunk(state, sweep.run_keys, sweep.data, jnp.int32(0), length))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def spread(sweep, num_runs, split=False):
    """The same sweep with so many runs (keys and hp of the two repeated), over two devices."""
    index = np.arange(num_runs) % 2
    mesh = sweep_lib.make_mesh(num_runs)
    data = jax.tree.map(np.asarray, sweep.data)
    data = data_lib.split_tasks(data, mesh.size) if split else data
    return sweep._replace(
        data=sweep_lib.place_data(data, mesh),
        tasks=sweep_lib.place_shared(sweep.tasks, mesh),
        hp=sweep_lib.place(jax.tree.map(lambda x: x[index], sweep.hp), mesh),
        run_keys=sweep_lib.place(sweep.run_keys[index], mesh),
        mesh=mesh,
        num_runs=num_runs,
    )


@pytest.fixture(scope="module")
def four(setting):
    """Four runs, two on each of two devices: (task, programs, results)."""
    sweep = spread(setting.sweep, 4)
    programs = training.compile_all(sweep)
    return sweep, programs, run_all(sweep, programs)


def check_repeats(found, plain):
    """Runs 0, 2, ... of `found` are alike bit by bit, and close to run 0 of `plain`; so are odd."""
    for index in range(2, jax.tree.leaves(found["state"])[0].shape[0]):
        assert same(row(found["state"], index), row(found["state"], index % 2))
        for results in ("returns", "embeddings"):
            for values in found[results].values():
                np.testing.assert_array_equal(values[:, index], values[:, index % 2])
    for a, b in zip(*map(jax.tree.leaves, (found["state"], plain["state"])), strict=True):
        np.testing.assert_allclose(a[:2], b, rtol=1e-4, atol=1e-5)


def test_runs_split_over_two_devices(setting, four):
    """The same two runs on each of two devices: bit-equal, and close to two runs on one device."""
    sweep, programs, found = four
    assert sweep.mesh.size == 2
    state = programs.init.call(sweep.hp, sweep.run_keys, sweep.data)
    leaf = jax.tree.leaves(state)[0]
    assert len(leaf.sharding.device_set) == 2
    assert leaf.addressable_shards[0].data.shape[0] == 2  # half of the runs each
    check_repeats(found, setting.plain)


def test_runs_that_do_not_divide_are_padded_and_the_copies_dropped(setting, four):
    """Three runs on two devices have the width of four: bit-equal to the first three of them."""
    sweep = spread(setting.sweep, 3)
    assert sweep.mesh.size == 2 and sweep.run_keys.shape == (4,) and sweep.runs == 3
    wide, programs, expected = four
    del wide
    found = run_all(sweep, programs)  # the very programs of four runs
    assert same(row(expected["state"], slice(0, 3)), found["state"])
    for results in ("returns", "embeddings"):
        for name, values in found[results].items():
            assert values.shape[:2] == (NUM_EVALS, 3)
            np.testing.assert_array_equal(values, expected[results][name][:, :3])
    result = jax.device_get(assembly.train(sweep))
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
    for sweep in (setting.sweep, spread(setting.sweep, 4)):
        stage = sweep.algorithm.stages[1]
        chunk = sweep_lib.over_runs(sweep_lib.make_chunk(stage), 2, sweep.mesh, in_turn=False)
        init_args = setting.sweep.hp, setting.sweep.run_keys, setting.sweep.data
        state = setting.programs.init.call(*init_args)
        state = jax.tree.map(lambda x, n=sweep.runs: np.asarray(x)[np.arange(n) % 2], state)
        given = sweep_lib.place(state, sweep.mesh), sweep.run_keys, sweep.data
        args = *given, jnp.int32(0), jnp.int32(5)
        options = {"xla_disable_hlo_passes": "algsimp"}
        compiled = jax.jit(chunk).lower(*args).compile(compiler_options=options)
        found.append(jax.device_get(compiled(*args)))
    one, two = found
    assert same(one, row(two, slice(0, 2))) and same(one, row(two, slice(2, 4)))


def test_a_checkpoint_of_one_device_resumes_on_two(setting, four):
    """Real runs only are saved, so what they lay on does not matter."""
    sweep, saved = spread(setting.sweep, 2), {}
    hooks = training.Hooks(
        on_pause=lambda position, carry, last: saved.update(
            {position: results_of(setting.sweep, carry)}
        )
    )
    run_all(setting.sweep, setting.programs, hooks=hooks)
    position = sorted(saved)[len(saved) // 2]
    assert sweep.mesh.size == 2
    carry = training.to_device(sweep, saved[position])
    programs = training.compile_all(sweep)
    found = results_of(sweep, training.chunked(sweep, programs, carry, position))
    check_repeats(found, setting.plain)


def test_data_split_by_task_change_no_bit(setting, four):
    """Rows are fetched from the device that has them, in training and in evaluation."""
    sweep = spread(setting.sweep, 4, split=True)
    shard = sweep.data.rows.reward.addressable_shards[0].data
    num_tasks = setting.sweep.data.rows.reward.shape[0]
    assert shard.shape[0] == -(-num_tasks // 2)  # half of the tasks
    programs = training.compile_all(sweep)
    found = run_all(sweep, programs)
    for a, b in zip(*map(jax.tree.leaves, (found, four[2])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    drawn = jax.jit(sweep_lib.over_runs(draw_rows, 1, sweep.mesh))
    alone = jax.jit(sweep_lib.over_runs(draw_rows, 1, four[0].mesh))
    assert same(drawn(sweep.run_keys, sweep.data), alone(sweep.run_keys, four[0].data))


def draw_rows(key, data):
    """Rows of every kind of draw, of some tasks in another order."""
    ids = jnp.array([3, 0, 4, 1])
    seen = data_lib.view_tasks(data, ids[::-1])
    draws = [
        data_lib.context_batch(data, ids, 6, key, d, 2) for d in ("uniform", "level", "episodes")
    ]
    return draws, data_lib.context_rows(seen, jnp.arange(4), 5, key)


@pytest.mark.parametrize("what", ["hp", "key"])
def test_changing_one_run_leaves_the_other_alone(setting, what):
    sweep = setting.sweep
    if what == "hp":
        changes = {"hp": jax.tree.map(lambda x: x.at[1].multiply(0.9), sweep.hp)}
    else:
        changes = {"run_keys": jnp.stack([sweep.run_keys[0], jax.random.key(99)])}
    other = setting.run(**changes)
    plain = setting.plain
    assert same(row(other["state"], 0), row(plain["state"], 0))
    assert not same(row(other["state"], 1), row(plain["state"], 1))
    for results in ("returns", "embeddings"):
        first = lambda tree: {name: values[:, 0] for name, values in tree.items()}
        assert same(first(other[results]), first(plain[results]))


def test_every_program_is_compiled_once(setting, fused):
    # ahead of time, in any order: one per stage and per protocol, and init, embed
    sweep = setting.sweep
    names = {"init", "embed"} | {f"stage {stage.name}" for stage in sweep.algorithm.stages}
    names |= {f"evaluate {protocol}" for protocol in sweep.episodes}
    assert set(setting.compiled) == names
    assert len(setting.compiled) == len(setting.programs.all()) == len(names)
    other = jax.tree.map(lambda x: x * 0.5, setting.sweep.hp)
    keys = jax.vmap(jax.random.key)(jnp.arange(5, 7))
    setting.run()
    with compilations() as seen:
        for hp in (setting.sweep.hp, other):
            for run_keys in (setting.sweep.run_keys, keys):
                setting.run(hp=hp, run_keys=run_keys)
    assert not seen
    sweep = setting.sweep
    for hp in (sweep.hp, other):
        for run_keys in (sweep.run_keys, keys):
            fused.jitted(run_keys, hp, sweep.data, sweep.tasks)
    fused(keys)
    assert fused.jitted._cache_size() == 1


def test_a_changed_shape_is_an_error_not_a_second_compilation(setting):
    sweep = setting.sweep
    with pytest.raises(TypeError):
        one = jax.tree.map(lambda x: x[:1], sweep.hp), sweep.run_keys[:1]
        setting.programs.init.call(*one, sweep.data)


def test_donated_state_leaves_hp_and_keys_usable(setting):
    sweep = setting.sweep
    assert same(setting.run(), setting.plain)
    assert same(setting.run(), setting.plain)
    kept = sweep.hp, sweep.data, sweep.tasks, sweep.run_keys
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept))
