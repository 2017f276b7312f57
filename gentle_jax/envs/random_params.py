"""Hopper and Walker with random mass, inertia, damping and friction.

Source: docs/methods/environments.md, "Hopper and Walker".

RK4, .004 s x 4; r = v + 1 - 1e-3 |a|^2; the suites differ in the stream of tasks only. In brax's
models the hopper's foot and the walker's feet and torso touch the ground, in gym's every part does.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from gentle_jax import physics
from gentle_jax.envs import base, locomotion
from gentle_jax.types import Env, Task, TaskLeaf, TaskRules

NOISE = (0.005, locomotion.uniform(0.005))
# field -> base of the multiplier base^U(-3, 3); drawn in this order for each task
RANDOMISED = {"body_mass": 1.5, "body_inertia": 1.5, "dof_damping": 1.3, "geom_friction": 1.5}
SEEDS = {"ctmrl": 1234, "ctmrl_b": 1234, "gentle": 1337}
LOG_SCALE = 3.0
SPEED_LIMIT = 10.0  # of observed velocities
CTMRL = {
    **locomotion.CTMRL,
    "train.context_size": 256,
    "brac_sac.alpha_init": 50.0,
    "brac_sac.alpha_max": 10_000.0,
}
GENTLE = {**locomotion.GENTLE, "train.latent_dim": 10}
# six bodies do not tell enough of others: policies knew them, and fell with new ones
MORE_BODIES = {"env.num_train": 10, "train.meta_batch": 10}
STEPS = locomotion.MANY_STEPS | {"train.num_steps": 32_000}
PRESETS = {
    **locomotion.PRESETS,
    "quick": locomotion.QUICK | MORE_BODIES,
    "quick:ctmrl": STEPS,
    "quick:ctmrl_b": STEPS,
}


def load(asset: str, mode: str) -> physics.System:
    """Returns the physics System; the root's height counts from the floor, as in gym's file."""
    return physics.load(asset, mode, 0.004, 4, "RK4", _count_from_the_floor)


def _count_from_the_floor(spec):
    spec.joint("rootz").ref = spec.body("torso").pos[2]


def split_of(suite: str) -> base.Split:
    """Returns (train ids, test ids)."""
    if suite == "gentle":
        return base.first_last_split(10, 10, 20)
    return base.interpolation_split(30, 10)


def sample(system: physics.System, suite: str, derive_constants: str) -> Task:
    """Returns task leaves {field: [num_tasks, ...]}: one legacy stream, element by element.

    Multipliers are drawn for the world body and the floor too, as the releases do. Args:
    derive_constants, "release" or "physical" (EnvConfig).
    """
    random = np.random.RandomState(SEEDS[suite])
    tasks = []
    for _ in range(sum(map(len, split_of(suite)))):
        own = {}
        for name, scale in RANDOMISED.items():
            default = getattr(system.c_model, name)
            power = random.uniform(-LOG_SCALE, LOG_SCALE, default.shape)
            own[name] = (default * scale**power).astype(np.float32)
        tasks.append(own)
    return completed(
        system, {name: np.stack([task[name] for task in tasks]) for name in own}, derive_constants
    )


def completed(system: physics.System, tasks: Task, derive_constants: str) -> Task:
    """Returns task leaves with the constants that follow from them, where they are "physical"."""
    if derive_constants != "physical":
        return tasks
    own = {name: tasks[name] for name in RANDOMISED}
    each = [
        physics.derived(system, {name: leaf[i] for name, leaf in own.items()})
        for i in range(len(tasks["body_mass"]))
    ]
    return {name: np.stack([task[name] for task in each]) for name in each[0]}


def make(
    name: str, asset: str, suite: str, mode: str, settings: base.EnvConfig, healthy: Callable
) -> Env:
    """Returns the Env. Args: healthy, (qpos, qvel) -> whether the episode goes on."""
    system = load(asset, mode)
    tasks = sample(system, suite, settings.derive_constants)

    def observe(state):
        speed = jnp.clip(state.qvel, -SPEED_LIMIT, SPEED_LIMIT)
        return jnp.concatenate([state.qpos[1:], speed])

    def judge(task, before, after, action):
        del task
        speed = (after.qpos[0] - before.qpos[0]) / system.dt
        reward = speed + 1.0 - 1e-3 * jnp.square(action).sum()
        return reward, ~healthy(after.qpos, after.qvel)

    def shown(tasks):
        tasks = completed(system, tasks, settings.derive_constants)
        sums = [tasks[name].sum(1) for name in ("body_mass", "dof_damping")]
        return {"tasks": tasks, "parameters": np.stack(sums, -1)}

    return locomotion.make(
        name,
        suite,
        system,
        tasks,
        split_of(suite),
        observe,
        judge,
        NOISE,
        rules=TaskRules({name: TaskLeaf(0.0, 1e6) for name in RANDOMISED}, shown),
        hidden=1,
        speed_limit=SPEED_LIMIT,
        parameter_names=("total mass (kg)", "total damping"),
    )
