"""The MuJoCo families once more, from C MuJoCo's states and NumPy alone: the oracle of tests.

Rewards and observations follow docs/methods/environments.md ("Cheetah-Vel" to "Hopper and Walker"),
written here without looking at the environments' code. `before` and `after` are dicts with qpos,
qvel, torso.
"""

import mujoco
import numpy as np

from gentle_jax import physics

DT = {"cheetah": 0.05, "ant": 0.05, "params": 0.016}


def model_of(env, task):
    """Returns the C model of one task."""
    return physics.c_model_of(env.system, physics.fields_of(env.system, task))


def snapshot(env, data):
    """Returns what rewards and observations depend on: qpos, qvel, torso."""
    return {
        "qpos": data.qpos.copy(),
        "qvel": data.qvel.copy(),
        "torso": data.xpos[env.system.torso].copy(),
    }


def step(env, model, data, action):
    """One environment step of C MuJoCo, in place; returns its snapshot."""
    data.ctrl[:] = action
    for _ in range(env.system.frame_skip):
        mujoco.mj_step(model, data)
    return snapshot(env, data)


def rollout(env, task, qpos, qvel, actions):
    """Returns the snapshots after each of the actions [steps, nu], from a start."""
    model = model_of(env, task)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    return [step(env, model, data, action) for action in actions]


def follow(env, task, states, actions):
    """Returns the snapshots of single steps, each from MJX's own state before it.

    Trajectories with contacts are chaotic: 32-bit rounding grows to the size of the body within
    some hundred steps. Started anew at every step, C MuJoCo judges each of them by itself.
    Args: states, physics.State leaves [steps, ...] before each action of [steps, nu].
    """
    model = model_of(env, task)
    data, found = mujoco.MjData(model), []
    for index, action in enumerate(actions):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = states.qpos[index], states.qvel[index]
        data.qacc_warmstart[:] = states.warmstart[index]
        found.append(step(env, model, data, action))
    return found


def observe_cheetah(s):
    return np.concatenate([s["qpos"][1:], s["qvel"], s["torso"]])


def observe_params(s):
    return np.concatenate([s["qpos"][1:], np.clip(s["qvel"], -10, 10)])


OBSERVE = {
    "cheetah_vel": observe_cheetah,
    "cheetah_dir": observe_cheetah,
    "ant_dir": lambda s: np.concatenate([s["qpos"][2:], s["qvel"]]),
    "ant_goal": lambda s: np.concatenate([s["qpos"], s["qvel"]]),
    "hopper_params": observe_params,
    "walker_params": observe_params,
}


def speed(before, after, dt):
    return (after["qpos"][0] - before["qpos"][0]) / dt


def ant_dir(task, before, after, action):
    velocity = (after["torso"][:2] - before["torso"][:2]) / DT["ant"]
    reward = velocity @ np.asarray(task["direction"]) - 0.5 * (action**2).sum() + 1.0
    return reward, not 0.2 <= after["qpos"][2] <= 1.0


def ant_goal(task, before, after, action):
    distance = np.abs(after["torso"][:2] - np.asarray(task["goal"])).sum()
    return -distance - 0.1 * (action**2).sum(), False


def hopper(task, before, after, action):
    state = np.concatenate([after["qpos"], after["qvel"]])
    reward = speed(before, after, DT["params"]) + 1 - 1e-3 * (action**2).sum()
    fine = (np.abs(state[2:]) < 100).all() and state[1] > 0.7 and abs(state[2]) < 0.2
    return reward, not fine


def walker(task, before, after, action):
    reward = speed(before, after, DT["params"]) + 1 - 1e-3 * (action**2).sum()
    height, angle = after["qpos"][1:3]
    return reward, not (0.8 < height < 2.0 and -1.0 < angle < 1.0)


JUDGE = {
    "cheetah_vel": lambda task, before, after, action: (
        -abs(speed(before, after, DT["cheetah"]) - task["speed"]) - 0.05 * (action**2).sum(),
        False,
    ),
    "cheetah_dir": lambda task, before, after, action: (
        task["direction"] * speed(before, after, DT["cheetah"]) - 0.05 * (action**2).sum(),
        False,
    ),
    "ant_dir": ant_dir,
    "ant_goal": ant_goal,
    "hopper_params": hopper,
    "walker_params": walker,
}
