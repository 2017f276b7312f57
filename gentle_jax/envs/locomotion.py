"""What the MuJoCo families share: an Env made of a physics System, an observation and a judge."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Float

from gentle_jax import physics
from gentle_jax.envs import base, replay
from gentle_jax.types import Env, HostArray, Step, Task, TaskRules

HORIZON = 200
# of in_distribution and noisy_preferences (docs/methods/protocols.md)
TESTS = {"eval.reference_episodes": 2, "eval.num_candidates": 5}
# docs/methods/environments.md, "Settings of the ctmrl suites"
CTMRL = {
    "train.num_steps": 105_000,
    "eval.online_steps": 600,
    "eval.scored_steps": 600,
    "eval.context_episodes": 2,
    **TESTS,
    "behaviour.num_steps": 1_000_000,
    "behaviour.seed_steps": 50_000,
    "behaviour.first_level": 50_000,
    "behaviour.level_every": 50_000,
    "behaviour.num_levels": 19,
}
LATE = {"behaviour.first_level": 100_000, "behaviour.num_levels": 18}
# docs/methods/environments.md, "Settings of the gentle suite": episodes of the last level
GENTLE = {
    "train.num_steps": 200_000,
    "train.meta_batch": 10,
    "train.context_size": 256,
    "train.latent_dim": 5,
    "behaviour.num_steps": 1_000_000,
    "behaviour.seed_steps": 5_000,
    "behaviour.first_level": 1_000_000,
    "behaviour.num_levels": 1,
    "eval.scored_steps": 600,
    "eval.num_repeats": 1,
    "eval.metric": "all",
    **TESTS,
}
# Sizes for two CPU cores: few tasks, small networks, and SAC that learns after every step of 16
# copies. The training presets were made for point robots; what differs here is said here.
QUICK = {
    "env.num_train": 6,
    "env.num_test": 2,
    "train.meta_batch": 6,
    "train.batch_size": 64,
    "train.normalize_obs": True,  # velocities of joints are ten times as large as angles
    "train.normalize_rewards": True,
    "backbone.lr": 3e-3,
    "backbone.tau": 0.01,
    "backbone.reward_scale": 5.0,
    "backbone.width": 128,
    # Rewards in their spread, 50 for an entropy weight of 1; the dual weight is in the same unit
    "brac_sac.reward_scale": 50.0,
    "brac_sac.alpha_init": 500.0,
    "brac_sac.alpha_lr": 10.0,
    "brac_sac.alpha_max": 20_000.0,
    "brac_sac.clip_stored_alpha": True,  # else it winds up below 0, and answers late
    # The released penalty leaves the dual critic flat beyond the data: policies that got there were
    # not called back, whatever the weight
    "brac_sac.true_gradient_penalty": True,
    "brac_sac.dual_steps": 1,  # three are more than half of a step's time
    "brac_sac.policy_lr": 2e-3,
    "sac.policy_lr": 2e-3,
    "sac.reward_scale": 10.0,  # 50 for an entropy weight of 1 is 10 for one of 0.2
    "iql.policy_lr": 2e-3,
    "algo.lr": 1e-3,
    "behaviour.num_steps": 120_000,
    "behaviour.seed_steps": 3_200,
    "behaviour.first_level": 20_000,
    "behaviour.level_every": 20_000,
    "behaviour.num_levels": 6,
    "behaviour.episodes_per_level": 10,
    "behaviour.batch_size": 128,
    "behaviour.width": 128,
    "behaviour.lr": 1e-3,
    "behaviour.num_envs": 16,
    "behaviour.updates_per_step": 0.25,
    "eval.num_repeats": 1,
    "eval.random_episodes": 10,
}
SMOKE = {
    "env.num_train": 4,
    "env.num_test": 2,
    "env.horizon": 10,
    "eval.num_candidates": 0,
    "behaviour.num_envs": 4,
    "eval.online_steps": 20,
    "eval.context_episodes": 1,
    "eval.scored_steps": 10,
}
EXPERTS = {  # the suite's data are the last agent's
    "behaviour.first_level": QUICK["behaviour.num_steps"],
    "behaviour.num_levels": 1,
    "behaviour.episodes_per_level": 50,
    "td3_bc.bc_weight": 0.25,  # with 1 the values of Ant-Dir's critics grew to 10^6
}
MIXED = {"train.num_steps": 12_000}  # data of all levels take longer than those of experts
# td3_bc takes twice as many steps in a second as brac_sac, learns more of the data in all families,
# and its seeds end nearer to each other (docs/methods/backbones.md, "BRAC-SAC")
BACKBONES = {"quick": "td3_bc"}
# of gaits that fall, and of ants: small batches
MANY_STEPS = {"train.num_steps": 40_000, "train.batch_size": 32, "td3_bc.lr": 1e-3}
PRESETS = {
    "quick": QUICK,
    "quick:gentle": EXPERTS,
    "quick:ctmrl": MIXED,
    "quick:ctmrl_b": MIXED,
    "smoke": SMOKE,
}
LONG_PRESETS = PRESETS | {"quick:ctmrl": MANY_STEPS, "quick:ctmrl_b": MANY_STEPS}


def make(
    name: str,
    suite: str,
    system: physics.System,
    tasks: Task,
    split: base.Split,
    observe: Callable,
    judge: Callable,
    noise: tuple[float, Callable],
    rules: TaskRules,
    hidden: int,
    speed_limit: float = np.inf,
    **columns: Any,
) -> Env:
    """Returns an Env; every episode has at most HORIZON steps.

    Args: system, a physics.System; tasks, numpy leaves [num_tasks, ...]; split, (train ids, test
    ids); observe, physics.State -> obs [obs_dim]; judge, (task, State before, State after, action)
    -> (reward, terminal or None where episodes never end early); noise, (half width of positions,
    velocity sampler (key, shape) -> array); rules, of the Env; hidden, how many of the first
    positions observations lack: they begin with all others and the velocities, clipped at
    speed_limit; columns, `parameter_names`, `relabel`. Leaves named as fields of the model set them
    """
    model, (width, velocity) = system.c_model, noise
    start, zeros = jnp.asarray(model.qpos0, jnp.float32), (jnp.zeros(model.nq), jnp.zeros(model.nv))
    blank = jax.eval_shape(lambda: system.reset(*zeros))
    action = jax.ShapeDtypeStruct((model.nu,), jnp.float32)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks)
    ends_early = jax.eval_shape(judge, one, blank, blank, action)[1] is not None

    def reset(_, key):
        k_position, k_velocity = jax.random.split(key)
        offset = jax.random.uniform(k_position, start.shape, minval=-width, maxval=width)
        state = system.reset(start + offset, velocity(k_velocity, (model.nv,)))
        return state, observe(state)

    def step(task, state, action):
        own = physics.fields_of(system, task)
        after, finite = system.step(own, state, base.scale_action(action, -1.0, 1.0))
        reward, terminal = judge(task, state, after, action)
        over = jnp.logical_or(terminal, ~finite) if ends_early else jnp.zeros(())
        return after, Step(observe(after), reward, reward, over.astype(jnp.float32))

    return Env(
        name=name,
        suite=suite,
        obs_dim=jax.eval_shape(observe, blank).shape[0],
        action_dim=model.nu,
        horizon=HORIZON,
        ends_early=ends_early,
        train_ids=split[0],
        test_ids=split[1],
        reset=reset,
        step=step,
        system=system,
        task_rules=rules,
        replay=replay.by_mujoco(system, observe, judge, hidden, speed_limit),
        **({"tasks": tasks} | rules.shown(tasks)),
        **columns,
    )


def torso_lag(system: physics.System) -> Any:
    """Returns how many seconds `State.torso` lies behind `State.qpos` after a step.

    MuJoCo computes where bodies are before it moves them: with Euler a substep earlier, so that
    qpos - torso_lag * qvel is exact; the last stage of RK4 looks at the end of the substep.
    """
    option = system.c_model.opt
    return option.timestep if option.integrator == mujoco.mjtIntegrator.mjINT_EULER else 0.0


def normal(scale: float) -> Callable:
    """Returns a sampler of N(0, scale^2)."""
    return lambda key, shape: scale * jax.random.normal(key, shape)


def uniform(width: float) -> Callable:
    """Returns a sampler of U(-width, width)."""
    return lambda key, shape: jax.random.uniform(key, shape, minval=-width, maxval=width)


def legacy(seed: int, low: float, high: float, count: int) -> Float[HostArray, " count"]:
    """Returns [count] draws of NumPy's legacy generator, which the releases use."""
    return np.random.RandomState(seed).uniform(low, high, count)
