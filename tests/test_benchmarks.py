"""The benchmark runs end to end at a tiny size; its FLOP count and its PyTorch step are right."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import machine, torch_step, train_step
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import learner, rng, sweep
from gentle_jax.types import MetaBatch

STEP_KEYS = {
    "kind", "algorithm", "shapes", "seeds", "steps", "compile_seconds", "step_seconds",
    "seed_steps_per_second", "temp_bytes", "argument_bytes", "gflop_per_seed_step", "gflops",
    "square_gflops", "square_share", "layer_gflops", "layer_share", "chunk_overhead",
    "call_seconds", "torch_step_seconds", "torch_over_jax",
}  # fmt: skip
POSITIVE = (
    "compile_seconds", "step_seconds", "seed_steps_per_second", "argument_bytes",
    "gflop_per_seed_step", "gflops", "square_share", "layer_gflops", "layer_share", "call_seconds",
)  # fmt: skip


def test_small_run_writes_the_report(tmp_path, capsys):
    out = tmp_path / "deep" / "report.json"
    flags = ["--grid=point_robot", "--seeds=2", "--steps=3", "--rounds=1", "--small"]
    assert train_step.main(["train_step", *flags, f"--out={out}"]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"machine", "versions", "date", "small", "rows"}
    assert report["machine"]["cores"] >= 1 and report["machine"]["device"]
    assert {"python", "jax", "jaxlib", "torch"} == set(report["versions"])
    steps = [row for row in report["rows"] if row["kind"] == "step"]
    relabels = [row for row in report["rows"] if row["kind"] == "relabel"]
    assert [row["algorithm"] for row in steps] == ["gentle", "ctmrl"]
    assert [row["algorithm"] for row in relabels] == ["gentle"]
    for row in steps:
        assert set(row) == STEP_KEYS
        assert row["steps"] == train_step.PERIOD
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in POSITIVE)
        has_torch = torch_step.torch is not None and row["algorithm"] == "gentle"
        assert (row["torch_over_jax"] is not None) == has_torch
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
    state = sweep.init_runs(problem.algorithm, hp, rng.run_keys(1))
    args = (jax.tree.map(lambda x: x[0], state), problem.data, rng.run_keys(1)[0])
    even = machine.flops(machine.step_products(problem.stage, args, [2]))
    odd = machine.flops(machine.step_products(problem.stage, args, [3]))
    both = machine.flops(machine.step_products(problem.stage, args, [2, 3]))
    relabel = machine.flops(machine.step_products(problem.stage, args, [0]))
    assert both == pytest.approx((even + odd) / 2)
    assert relabel > even > odd > 0


def test_torch_step_has_the_same_losses():
    """Three steps on the same batches and noise: equal losses, so equal gradients and targets."""
    pytest.importorskip("torch")
    problem = train_step.make_problem("ant_dir", "gentle", True)
    algorithm, config = problem.algorithm, problem.config
    hp = config_lib.hyper_params(config)
    runs = sweep.init_runs(algorithm, hp, rng.run_keys(1))
    state = jax.tree.map(lambda x: x[0], runs)
    other = torch_step.TorchGentle(
        state.rep.params, state.rl, state.hp, config.algo.depth, config.backbone.policy_delay
    )
    tensor = lambda x: torch_step.torch.tensor(np.array(x))
    tensors = lambda row, names: {name: tensor(getattr(row, name)) for name in names}
    task_id = jnp.arange(3)
    for index in range(3):
        k_rl, k_context, k_update = jax.random.split(jax.random.key(index), 3)
        rl = data_lib.rl_batch(problem.data, task_id, 8, k_rl)
        context = data_lib.rl_batch(problem.data, task_id, 8, k_context)
        flat = jax.tree.map(lambda x: x.reshape((1, -1) + x.shape[2:]), rl)
        z = learner.encode_tasks(algorithm.rep, state.rep, context, k_update)
        noise = [jax.random.normal(k, flat.action.shape[1:]) for k in jax.random.split(k_update)]
        rows = learner.repeat_rows(z, 8)
        new_rl, dz, ours = algorithm.rl.update(
            state.rl, state.hp["backbone"], flat, rows, k_update, jnp.int32(index)
        )
        batch = MetaBatch(rl, context, task_id)
        new_rep, rep_metrics = algorithm.rep.update(
            state.rep, state.hp["algo"], batch, dz, problem.data, k_update, index
        )
        state = state.replace(rep=new_rep, rl=new_rl)
        theirs = other.step(
            tensors(rl, ("obs", "action", "reward", "next_obs", "terminal")),
            tensors(context, ("obs", "action", "reward")),
            [tensor(n) for n in noise],
            index,
        )
        ours = ours | rep_metrics
        ours["bc_loss"] = ours["bc_loss"] / config.backbone.policy_delay
        for name, value in theirs.items():
            np.testing.assert_allclose(float(value), ours[name], rtol=1e-4, err_msg=name)
        assert ("bc_loss" in theirs) == (index % 2 == 0)
