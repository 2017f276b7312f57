"""What a sweep is cut into before anything is compiled: chunks, devices, grid points and seeds."""

import threading
import time
import types

import jax
import numpy as np
import pytest

from experiments.cli import settings
from gentle_jax import assembly, registry, storage
from gentle_jax import config as config_lib
from gentle_jax import sweep as sweep_lib
from gentle_jax.types import Stage


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
    chunks = sweep_lib.plan(built, num_evals, num_chunks)
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


@pytest.mark.parametrize(
    "num_runs,num_devices,expected",
    [(8, 2, 2), (6, 4, 3), (7, 2, 2), (1, 4, 1), (8, 3, 3), (5, 4, 3), (3, 8, 3), (9, 1, 1)],
)
def test_a_sweep_takes_no_more_devices_than_save_time(num_runs, num_devices, expected):
    device = types.SimpleNamespace(process_index=0)
    assert len(sweep_lib.choose_devices(num_runs, [device] * num_devices)) == expected


def test_one_device_needs_no_mesh():
    assert sweep_lib.make_mesh(1) is None
    assert sweep_lib.make_mesh(2).size == 2


def test_no_process_is_left_without_a_device():
    devices = [types.SimpleNamespace(process_index=i // 2) for i in range(4)]
    assert len(sweep_lib.choose_devices(2, devices)) == 4  # padded: two of them repeat the last run


def test_an_error_does_not_wait_for_what_still_compiles():
    begin, ended = time.perf_counter(), threading.Event()

    def fails():
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        sweep_lib.together([fails, lambda: ended.wait(20), lambda: ended.wait(20)])
    assert time.perf_counter() - begin < 10
    ended.set()


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
    sweep = assembly.make_sweep(config, fields, points)
    for section in ("algo", "backbone"):
        np.testing.assert_allclose(sweep.hp[section]["lr"], [0.1] * 3 + [0.2] * 3)
    np.testing.assert_allclose(sweep.hp["algo"]["eta"], [0.5] * 6)
    np.testing.assert_allclose(sweep.hp["algo"]["decay"], [config.algo.decay] * 6)
    seeds = [jax.random.key_data(jax.random.key(seed)) for seed in (4, 5, 6)]
    np.testing.assert_array_equal(jax.random.key_data(sweep.run_keys), seeds * 2)
