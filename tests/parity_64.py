"""Prints how far MJX and C MuJoCo are apart after 200 physics steps in 64 bits, task by task.

Run as `JAX_ENABLE_X64=1 python -m tests.parity_64 cheetah_vel hopper_params`.
"""

import sys

import jax
import numpy as np

from gentle_jax import physics, registry
from tests import reference_mujoco

NUM_STEPS, TASKS = 200, 4


def errors(name):
    """Yields the largest error of qpos of each of TASKS randomised tasks, or of one task."""
    module = registry.load("environment", name)
    env = module.make(next(iter(module.SETTINGS)), "reference")
    system, random = env.system, np.random.RandomState(0)
    fields = physics.fields_of(system, env.tasks)
    ids = np.linspace(0, len(env.parameters) - 1, TASKS if fields else 1).astype(int)
    tasks = {f: np.asarray(v[ids], float) for f, v in env.tasks.items()}
    fields = {f: tasks[f] for f in fields}
    actions = random.uniform(-1, 1, (NUM_STEPS // system.frame_skip, env.action_dim))
    qpos = system.c_model.qpos0 + random.uniform(-0.005, 0.005, system.c_model.nq)
    qvel = random.uniform(-0.005, 0.005, system.c_model.nv)
    start = jax.device_get(system.reset(jax.numpy.asarray(qpos), qvel))

    def one(fields):
        advance = lambda state, action: (system.step(fields, state, action)[0],) * 2
        return jax.lax.scan(advance, start, actions)[1]

    found = jax.device_get(jax.jit(jax.vmap(one))(fields) if fields else jax.jit(one)({}))
    paths = found.qpos if fields else found.qpos[None]
    for index, path in enumerate(paths):
        task = {f: v[index] for f, v in tasks.items()}
        expected = reference_mujoco.rollout(env, task, start.qpos, start.qvel, actions)
        yield np.abs(path - [snapshot["qpos"] for snapshot in expected]).max()


if __name__ == "__main__":
    assert jax.config.jax_enable_x64, "set JAX_ENABLE_X64=1"
    for family in sys.argv[1:]:
        for error in errors(family):
            print(family, f"{error:.3g}")
