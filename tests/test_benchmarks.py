"""The benchmark runs end to end at a tiny size; its FLOP count is right."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    behaviour_sac,
    context_free,
    env_returns,
    env_step,
    machine,
    torch_step,
    train_step,
)
from gentle_jax import assembly, behaviour, registry, rng, sweep
from gentle_jax import config as config_lib

STEP_KEYS = {
    "kind", "algorithm", "shapes", "seeds", "steps", "compile_seconds", "step_seconds",
    "seed_steps_per_second", "temp_bytes", "argument_bytes", "gflop_per_seed_step", "gflops",
    "square_gflops", "square_share", "layer_gflops", "layer_share", "chunk_overhead",
    "call_seconds", "torch_in_turn_seconds", "torch_processes_seconds", "torch_step_seconds",
    "torch_over_jax",
}  # fmt: skip
POSITIVE = (
    "compile_seconds", "step_seconds", "seed_steps_per_second", "argument_bytes",
    "gflop_per_seed_step", "gflops", "square_share", "layer_gflops", "layer_share", "call_seconds",
)  # fmt: skip


def test_small_run_writes_the_report(tmp_path, capsys):
    out = tmp_path / "deep" / "report.json"
    flags = ["--grid=point_robot", "--algos=gentle,ctmrl", "--seeds=2", "--steps=3", "--rounds=1"]
    assert train_step.main(["train_step", *flags, "--small", f"--out={out}"]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"machine", "versions", "date", "small", "rows"}
    assert report["machine"]["cores"] >= 1 and report["machine"]["device"]
    wanted = {"python", "jax", "jaxlib", "torch", *machine.PHYSICS}
    assert wanted == set(report["versions"])
    steps = [row for row in report["rows"] if row["kind"] == "step"]
    periodic = [row for row in report["rows"] if row["kind"] == "periodic"]
    assert [row["algorithm"] for row in steps] == ["gentle", "ctmrl"]
    # as often as published for this size, although no timed step does it
    assert [(row["algorithm"], row["every"]) for row in periodic] == [("gentle", 8)]
    for row in steps:
        assert set(row) == STEP_KEYS
        assert row["steps"] == train_step.PERIOD
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in POSITIVE)
        ways = row[torch_step.IN_TURN], row[torch_step.PROCESSES]
        if torch_step.torch is None:
            assert {*ways, row["torch_step_seconds"], row["torch_over_jax"]} == {None}
        else:
            assert 0 < min(ways) == row["torch_step_seconds"]
            per_seed = row["step_seconds"] / row["seeds"]
            assert row["torch_over_jax"] == pytest.approx(min(ways) / per_seed)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["algorithm", "shapes", "seeds"]
    assert len({len(line) for line in printed[:3]}) == 1  # aligned


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--grid=point_robto", "did you mean 'point_robot'"),
        ("--algos=gentel", "did you mean 'gentle'"),
        ("--seeds=0", "--seeds=1,8"),
        ("--seeds=", "empty flag"),
        ("--steps=0", "1 or more"),
        ("--steps=many", "many"),
        ("--nonsense=1", "nonsense"),
        ("loose", "--flag=value"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(flag, hint, capsys):
    assert train_step.main(["train_step", flag]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and hint in message


def test_one_place_is_as_good_as_a_context_where_there_is_one_goal(monkeypatch, tmp_path, capsys):
    for name, value in (("EPISODES", 2), ("TRIALS", 5), ("GRID", 5), ("OUT", tmp_path / "x.json")):
        monkeypatch.setattr(context_free, name, value)
    whole, goal = assembly.make_env, np.array([[0.5, 0.0]], np.float32)

    def one_goal(name, suite):
        env = whole(name, suite)
        tasks = {"goal": goal, "wind": np.zeros_like(goal)}
        shown = env.task_rules.shown(tasks)
        return env._replace(tasks=tasks, test_ids=np.array([0]), **shown)

    monkeypatch.setattr(context_free.assembly, "make_env", one_goal)
    monkeypatch.setattr(context_free.sys, "argv", ["context_free"])
    assert context_free.main() is None
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["place"] for row in rows] == [[0.5, 0.0]] * 4
    np.testing.assert_allclose([row["one_place_normalized"] for row in rows], 1.0, atol=1e-4)
    monkeypatch.setattr(context_free.sys, "argv", ["context_free", "--help"])
    assert context_free.main() == 2 and "--help" in capsys.readouterr().err


def test_products_count_loops_and_the_branch_taken():
    def program(x, index):
        x = jax.lax.fori_loop(0, 3, lambda i, x: x @ x, x)
        x = jax.lax.cond(index % 2 == 0, lambda x: x @ x, lambda x: x, x)
        return jax.vmap(lambda row: row @ x)(x)

    closed = jax.make_jaxpr(program)(jnp.ones((4, 4)), jnp.int32(0))
    count = lambda index: machine.products(closed.jaxpr, [None, np.int32(index)])[0]
    assert machine.flops(count(0)) == 5 * 2 * 4**3
    assert machine.flops(count(1)) == 4 * 2 * 4**3
    unknown = machine.products(closed.jaxpr, [None, None])[0]
    assert machine.flops(unknown) == 5 * 2 * 4**3


def test_step_products_follow_the_schedule():
    """The actor counts on its steps only, relabelling where it is due."""
    problem = train_step.make_problem("point_robot", "gentle", True)
    hp = config_lib.hyper_params(problem.config)
    state = sweep.init_runs(problem.algorithm, hp, rng.run_keys(1), problem.data)
    args = (jax.tree.map(lambda x: x[0], state), problem.data, rng.run_keys(1)[0])
    even = machine.flops(machine.step_products(problem.stage, args, [2]))
    odd = machine.flops(machine.step_products(problem.stage, args, [3]))
    both = machine.flops(machine.step_products(problem.stage, args, [2, 3]))
    relabel = machine.flops(machine.step_products(problem.stage, args, [0]))
    assert both == pytest.approx((even + odd) / 2)
    assert relabel > even > odd > 0


# --- environment steps


class FakeLoop:
    """Stands in for MjxLoop: nothing is compiled."""

    def __init__(self, step, tasks, states, actions):
        self.devices, self.jitted = 1, None
        names = ("compile_seconds", "cached_seconds", "temp_bytes", "argument_bytes")
        self.costs = dict.fromkeys(names, 1)

    def run(self, steps):
        return 0.5, None

    def check_compiled_once(self):
        pass


def test_environment_steps_write_the_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(env_step, "MjxLoop", FakeLoop)
    out = tmp_path / "report.json"
    chosen = ["--families=hopper_params", "--batches=1,3", "--physics=fast", "--steps=2"]
    more = ["--rounds=2", "--cost_family=cheetah_dir", "--cost_batch=2", f"--out={out}"]
    assert env_step.main(["env_step", *chosen, *more]) == 0
    report = json.loads(out.read_text())
    assert {"mujoco", "mujoco-mjx", "brax", "jax"} <= set(report["versions"])
    steps = [row for row in report["rows"] if row["kind"] == "step"]
    costs = [row for row in report["rows"] if row["kind"] == "cost"]
    assert [row["batch"] for row in steps] == [1, 3]
    assert [row["mjx_steps_per_second"] for row in steps] == [2 / 0.5, 6 / 0.5]
    options = [(row["integrator"], row["iterations"], row["ls_iterations"]) for row in costs]
    assert options == [("EULER", 1, 4), ("EULER", 4, 50), ("RK4", 1, 4), ("RK4", 4, 50)]
    assert all(row["c_steps_per_second"] > 0 and row["c_bytes"] > 0 for row in steps + costs)
    tables = capsys.readouterr().out.split("\n\n")
    assert tables[0].startswith("C MuJoCo steps the physics only") and len(tables) == 3
    for text, count in zip(tables[1:], (2, 4), strict=True):
        lines = text.strip("\n").splitlines()
        assert len(lines) == 1 + count and len({len(line) for line in lines}) == 1  # aligned


@pytest.mark.mjx
@pytest.mark.slow
def test_both_engines_take_the_same_steps():
    """Each simulation with its own masses: float32 and float64 agree to rounding."""
    env = env_step.make_env("hopper_params", "fast")
    given = env_step.inputs(env, 2, 2)
    mjx = env_step.MjxLoop(env_step.whole_step(env), *given)
    c_loop = env_step.CLoop(env.system, *given)
    assert mjx.devices == 2 and mjx.costs["cached_seconds"] > 0
    for steps in (1, 2):
        (_, state), (_, qpos) = mjx.run(steps), c_loop.run(steps)
        np.testing.assert_allclose(state.qpos, qpos, atol=2e-4)
    assert np.abs(qpos[0] - qpos[1]).max() > 1e-2 and c_loop.resets() == 0
    mjx.check_compiled_once()
    mjx.jitted = jax.jit(lambda x: x)
    mjx.jitted(0), mjx.jitted(0.0)
    with pytest.raises(RuntimeError, match="2 were compiled"):
        mjx.check_compiled_once()


def test_options_of_the_cost_table_are_those_of_the_modes():
    options = lambda system: tuple(
        getattr(system.c_model.opt, name)
        for name in ("integrator", "iterations", "ls_iterations", "timestep", "jacobian")
    )
    modes = {m: env_step.make_env("walker_params", m).system for m in ("reference", "fast")}
    for mode, chosen in (("fast", ("EULER", (1, 4))), ("reference", ("RK4", (4, 50)))):
        made = env_step.with_options(modes["reference"], *chosen)
        assert options(made) == options(modes[mode])
        assert made.model.opt.iterations == modes[mode].model.opt.iterations
    made = env_step.with_options(modes["reference"], "EULER", (1, 4))
    assert made.c_model.opt.disableflags == modes["fast"].c_model.opt.disableflags
    assert modes["reference"].c_model.opt.disableflags == 0  # the original is not changed


def test_an_empty_cache_and_then_the_one_there_was():
    before = jax.config.jax_compilation_cache_dir
    with machine.empty_cache():
        assert jax.config.jax_compilation_cache_dir not in (None, before)
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--families=hopper", "did you mean 'hopper_params'"),
        ("--families=point_robot", "expected one of"),
        ("--cost_family=ant", "did you mean"),
        ("--physics=exact", "reference, fast"),
        ("--batches=0", "--batches=1,8"),
        ("--episodes=1", "2 or more"),
        ("--horizon=-1", "0 or more"),
        ("--trained_steps=17", "a multiple"),
        ("--out=/", "is a folder"),
        ("--steps=0", "1 or more"),
    ],
)
def test_bad_input_of_environment_steps_is_one_line(flag, hint, capsys):
    assert env_step.main(["env_step", flag]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and hint in message


def test_episodes_of_both_policies_have_the_same_starts():
    env = registry.load("environment", "point_robot").make("gentle")._replace(horizon=3)
    returns, obs, mask = env_returns.episodes_of(env, 4)
    assert returns.shape == (2, 4) and obs.shape == (2, 4, 3, 2) and mask.all()
    assert len(np.unique(returns)) == 8  # four tasks and starts, two policies
    again = env_returns.episodes_of(env, 4)
    np.testing.assert_array_equal(again[1], obs)


def test_trained_agents_meet_the_same_episodes_in_both_physics(monkeypatch):
    # the same mode twice: every difference is that of the episodes' random numbers
    monkeypatch.setattr(env_returns, "MODES", ("exact", "exact"))
    row = env_returns.trained("point_robot", 810, 3, horizon=4)
    assert row["episodes"] == 6 and row["fast_mean"] < 0 and row["fast_error"] > 0
    assert row["difference_mean"] == row["difference_error"] == row["obs_difference_1"] == 0


def test_behaviour_sac_is_configured_by_its_flags_and_bad_ones_are_told(capsys, tmp_path):
    config = behaviour_sac.make_config(64_000, 4)
    assert config.run.physics == "fast" and len(behaviour.levels(config.behaviour)) == 4
    assert behaviour.levels(config.behaviour)[-1] == config.behaviour.num_steps == 64_000
    assert behaviour_sac.main(["", "--steps=1000", "--levels=1", f"--out={tmp_path / 'a'}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "multiple of behaviour.num_envs" in message


@pytest.mark.slow
@pytest.mark.mjx
@pytest.mark.skipif("GENTLE_JAX_BY_HAND" not in os.environ, reason="minutes; run by hand")
def test_behaviour_sac_learns_both_directions():
    assert behaviour_sac.measure(240_000, 6)["learned"]


def test_differences_of_returns_by_hand():
    """Returns 1, 3 against 2, 6: differences 1 and 3, standard error 1."""
    ones, mask = np.ones((2, 12, 5)), np.ones((2, 12))
    mask[0, 5:] = 0  # the first episode ends early in one of the modes
    fast = np.stack([2.0 * ones[0], 4.0 * ones[1]])
    reference = (np.array([1.0, 3.0]), ones, mask)
    row = env_returns.row_of(reference, (np.array([2.0, 6.0]), fast, np.ones_like(mask)))
    assert (row["reference_mean"], row["fast_mean"], row["difference_mean"]) == (2, 4, 2)
    assert row["difference_error"] == pytest.approx(1) and row["fast_error"] == pytest.approx(2)
    assert row["obs_difference_1"] == 2 and row["obs_difference_10"] == 3
    assert row["obs_difference_50"] is None
    text = env_step.table([{"kind": "returns", "family": "a", "policy": "b", **row}], "returns")
    assert "2.00" in text and text.splitlines()[1].rstrip().endswith("3")
