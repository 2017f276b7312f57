"""Pieces that environments share: splits, action scaling, the observation normaliser."""

import jax.numpy as jnp
import numpy as np


def interpolation_split(num_train, num_test):
    """Returns (train ids, test ids): every gap-th task is held out (ctmrl_suite.md sec. 13)."""
    total, gap = num_train + num_test, int(num_train / num_test) + 1
    test = np.arange(0, total, gap) + gap // 2
    return np.setdiff1d(np.arange(total), test), test


def first_last_split(num_train, num_test, total):
    """Returns (train ids, test ids): the first and the last tasks (gentle_suite.md sec. 1.1)."""
    return np.arange(num_train), np.arange(total - num_test, total)


def scale_action(action, low, high):
    """Maps [-1, 1] linearly to [low, high] and clips, as the releases' wrapper does."""
    return jnp.clip(low + (action + 1.0) * 0.5 * (high - low), low, high)


def normalize(env, mean, std):
    """Returns `env` with observations (x - mean) / std at reset and step; rewards stay raw."""

    def reset(task, key):
        state, obs = env.reset(task, key)
        return state, (obs - mean) / std

    def step(task, state, action):
        state, out = env.step(task, state, action)
        return state, out._replace(obs=(out.obs - mean) / std)

    return env._replace(reset=reset, step=step)
