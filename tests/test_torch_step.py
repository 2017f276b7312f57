"""The PyTorch steps of the benchmarks are ours: equal losses and parameters on equal draws."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import torch_brac, torch_ctmrl, torch_parts, torch_process, torch_step, train_step
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import errors, learner, losses, rng, sweep
from gentle_jax.types import Cond, MetaBatch

torch = pytest.importorskip("torch")

TASKS = np.array([2, 0, 3])
STEPS = 3
# by how much of what they have moved parameters may differ, on average
MOVED = 0.02
# FOCAL's loss sees differences of z: the gradient of its last bias is mostly rounding, so that bias
# is not compared, and a low rate keeps it out of the other numbers
ROUNDED = ("focal", ".encoder.3.1")
SLOW = {"algo.lr": 3e-5}
# every term counts: with the presets' weights one term drowns the others
PENALTY = {
    "backbone.alpha_init": 0.05,
    "backbone.alpha_lr": 0.01,
    "backbone.mean_penalty": 2.0,
    "backbone.std_penalty": 2.0,
}
WEIGHTS = {"algo.contrast_weight": 0.1, "algo.code_loss_weight": 0.1}


def tensors(tree):
    """Arrays as tensors."""
    return jax.tree.map(lambda x: torch.tensor(np.array(x)), tree)


def flat(leaf):
    """Rows [T, B, ...] as [T * B, ...]."""
    return leaf.reshape(-1, *leaf.shape[2:])


def context_rows(context):
    """s, a, r of the rows of contexts."""
    parts = (context.obs, context.action, context.context_reward[..., None])
    return flat(jnp.concatenate(parts, -1))


def normal(key, like):
    return jax.random.normal(key, like.shape)


def td3_draws(batches, key):
    """What TD3+BC draws from `key`: noise of the target's and of the actor's actions."""
    first = {name: flat(x[0]) for name, x in batches._asdict().items()}
    return {"batch": first, "noise": [normal(k, first["action"]) for k in jax.random.split(key)]}


def brac_draws(batches, key):
    """What BRAC-SAC draws from `key`: noise of the actions, and mixtures of dual steps."""
    count = batches.reward.shape[0]
    rows = [{name: flat(x[i]) for name, x in batches._asdict().items()} for i in range(count)]
    k_dual, k_policy = jax.random.split(key)
    pairs = [jax.random.split(k) for k in jax.random.split(k_dual, count)]
    noise_keys = [k_policy, *(k_action for k_action, _ in pairs[1:])]
    action = rows[0]["action"]
    noise = [normal(k, action) for k in noise_keys]
    mix = [jax.random.uniform(k_mix, (len(action), 1)) for _, k_mix in pairs]
    return {"rl": {"batches": rows, "noise": noise, "mix": mix}}


def no_draws(problem, key):
    return {}


def contrast_draws(problem, key):
    """What CTMRL's last term of five draws from `key`: two views of every task, fillers."""
    k_anchor, k_positive, k_filler = jax.random.split(jax.random.split(key, (5, 3))[4][1], 3)
    count = problem.data.episode_start.shape[0]
    every, train = jnp.arange(count), problem.config.train
    view = lambda k: data_lib.context_of(problem.data, every, train, jax.random.split(k)[0])
    views = [context_rows(view(k)) for k in (k_anchor, k_positive)]
    return {"views": views, "chance": jax.random.uniform(k_filler, (count, count))}


DRAWS = {  # algorithm: draws of its backbone, draws of its representation
    "gentle": (td3_draws, no_draws),
    "focal": (brac_draws, no_draws),
    "ctmrl": (brac_draws, contrast_draws),
}


def initial(problem):
    """Returns the state of one run."""
    hp = config_lib.hyper_params(problem.config)
    runs = sweep.init_runs(problem.algorithm, hp, rng.run_keys(1), problem.data)
    return jax.tree.map(lambda x: x[0], runs)


def with_larger(state):
    """Returns the state with larger outputs of networks, which are near 0 at first.

    Values then depend on actions and predictions on z, and the dual critic is penalised.
    """
    factors = {"policy": 4.0, "critics": 4.0, "dual": 8.0, "prediction": 8.0}

    def larger(name, trained):
        factor = factors.get(name, 1.0)
        return trained.replace(params=jax.tree.map(lambda x: factor * x, trained.params))

    rep, rl = state.rep, state.rl
    learning = {n: larger(n, getattr(rl, n)) for n in factors if hasattr(rl, n)}
    trained = {n: larger(n, x) for n, x in rep.trained.items()}
    return state.replace(rep=rep.replace(trained=trained), rl=rl.replace(**learning))


def both_steps(problem, state, other, index, updates):
    """One step of ours and one of PyTorch. Returns (state, our metrics, their losses)."""
    rep, rl = problem.algorithm.rep, problem.algorithm.rl
    train, data, task_id = problem.config.train, problem.data, jnp.asarray(TASKS)
    k_rl, k_context, k_update, k_rep = jax.random.split(jax.random.key(index), 4)
    context = data_lib.context_of(data, task_id, train, k_context)
    draw = lambda k: data_lib.context_rows(data, task_id, train.batch_size, k)
    batches = jax.vmap(draw)(jax.random.split(k_rl, rl.num_batches))
    z = learner.encode_tasks(rep, state.rep, context, task_id, k_update)
    z = jnp.broadcast_to(z, (rl.num_batches, *z.shape))
    rows = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), batches)
    update_rl, update_rep = updates
    at = jnp.int32(index)
    new_rl, dz, ours = update_rl(state.rl, state.hp["backbone"], rows, Cond(z, z), k_update, at)
    batch = MetaBatch(jax.tree.map(lambda x: x[0], batches), context, task_id, k_update)
    new_rep, more = update_rep(state.rep, state.hp["algo"], batch, dz, data, k_rep, at)
    of_rl, of_rep = DRAWS[problem.config.run.algorithm]
    draws = of_rl(batches, k_update) | of_rep(problem, k_rep)
    draws |= {"task_id": TASKS, "context": context_rows(context)}
    theirs = other.step(tensors(draws), index)
    return state.replace(rep=new_rep, rl=new_rl), ours | more, theirs


def parameters(part, name=""):
    """Yields (name, numpy array) of everything that learns in a learner."""
    if isinstance(part, torch.Tensor):
        yield name, part.detach().numpy().copy()
    elif isinstance(part, list | tuple):
        for i, each in enumerate(part):
            yield from parameters(each, f"{name}.{i}")
    elif type(part).__module__.startswith("benchmarks.") and not isinstance(
        part, torch_parts.Tables
    ):
        for key, each in vars(part).items():
            yield from parameters(each, f"{name}.{key}")


@pytest.mark.parametrize(
    "algorithm, shapes, more",
    [
        ("gentle", "ant_dir", {}),
        ("focal", "point_robot", SLOW),  # without BRAC's penalty
        ("focal", "ant_dir", SLOW | PENALTY),
        ("focal", "ant_dir", SLOW | PENALTY | {"backbone.true_gradient_penalty": True}),
        ("ctmrl", "ant_dir", WEIGHTS | PENALTY),
    ],
)
def test_losses_and_parameters_are_the_same(algorithm, shapes, more):
    """Some steps on the same draws. Parameters differ by little of what they have moved."""
    problem = train_step.make_problem(shapes, algorithm, True, more)
    state = with_larger(initial(problem))
    updates = jax.jit(problem.algorithm.rl.update), jax.jit(problem.algorithm.rep.update)
    learner_of = lambda state: (
        torch_process.loop_of(torch_step.job_of(problem, state), "cpu", 1).learner
    )
    other, begun = learner_of(state), dict(parameters(learner_of(state)))
    for index in range(STEPS):
        state, ours, theirs = both_steps(problem, state, other, index, updates)
        if "bc_loss" in ours:  # ours is of all steps, the actor's are some
            delay = problem.config.backbone.policy_delay
            assert ("bc_loss" in theirs) == (index % delay == 0)
            ours["bc_loss"] = ours["bc_loss"] / delay
        wanted = {name for name in ours if name.endswith("_loss")} - {"bc_loss"}
        assert wanted <= theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(float(value), ours[name], rtol=1e-4, err_msg=name)
    ours = dict(parameters(learner_of(state)))
    for name, theirs in parameters(other):
        moved = np.abs(ours[name] - begun[name]).mean()
        if (algorithm, name) != ROUNDED:
            assert np.abs(theirs - ours[name]).mean() <= MOVED * moved, name


def test_contrasts_are_the_same_with_tasks_alone_and_tasks_that_repeat():
    z, other = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    group, task_id = np.array([0, 0, 1, 3, 3, 3]), np.array([4, 2, 4, 0, 2, 1])
    filler = np.zeros((6, 6), bool)
    filler[:, [0, 4]] = True
    arrays = jax.tree.map(jnp.asarray, (z, other, group, filler, task_id))
    ours = losses.group_contrast(*arrays[:3], 5, arrays[3], 0.5)
    theirs = torch_ctmrl.group_contrast(*tensors((z, other, group, filler)), 0.5)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    ours = losses.focal(arrays[0], arrays[4])
    theirs = torch_brac.focal_loss(*tensors((z, task_id)))
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)


def test_draws_of_a_loop_have_the_shapes_of_a_step():
    """What a Loop draws is what `step` takes; losses stay finite."""
    for algorithm in DRAWS:
        problem = train_step.make_problem("ant_dir", algorithm, True)
        loop = torch_step.make_loop(problem, initial(problem), 1)
        draws = loop.learner.draw(0)
        train = problem.config.train
        assert len(draws["context"]) == train.meta_batch * train.context_size
        assert loop.run(2) > 0 and loop.index == 2
        found = loop.learner.step(loop.learner.draw(2), 2)
        assert all(np.isfinite(float(loss)) for loss in found.values())


def test_an_algorithm_without_a_pytorch_step_has_none():
    problem = train_step.make_problem("point_robot", "csro", True)
    with torch_step.loops(problem, None, 1, 8) as found:
        assert found == {}


def test_settings_that_the_pytorch_step_lacks_are_refused():
    for key, value in (("train.final_lr", 0.5), ("algo.encoder_rate", 0.3)):
        problem = train_step.make_problem("point_robot", "ctmrl", True, {key: value})
        with pytest.raises(errors.UserError, match=f"{key} is {value}"):
            torch_step.make_loop(problem, None, 1)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_processes_take_steps_without_jax_and_end_with_what_started_them(lost):
    check = "import benchmarks.torch_process, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=torch_step.ROOT, check=True)
    problem = train_step.make_problem("point_robot", "focal", True)
    processes = torch_step.Processes(torch_step.job_of(problem, initial(problem)), 2)
    other, dead = processes.children[1 - lost], processes.children[lost]
    try:
        assert processes.run(2) > 0
        dead.kill()
        dead.wait()
        with pytest.raises(errors.UserError, match="ended early"):
            processes.run(2)
        other.stdin.close()  # as where this process is killed
        assert other.wait(timeout=60) == 0
    finally:
        processes.close()


@pytest.mark.slow
def test_processes_that_cannot_start_are_told():
    problem = train_step.make_problem("point_robot", "focal", True)
    job = torch_step.job_of(problem, initial(problem)) | {"algorithm": "none"}
    with pytest.raises(errors.UserError, match="ended early"):
        torch_step.Processes(job, 1)
