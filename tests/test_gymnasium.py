"""Task families as Gymnasium environments: its own checker, seeds, and the Env that they wrap."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gentle_jax
from gentle_jax import errors, registry

gym = pytest.importorskip("gymnasium")
gentle_gym = gentle_jax.gymnasium
from gymnasium.utils.env_checker import check_env  # noqa: E402

from gentle_jax.envs.base import EnvConfig  # noqa: E402

FAMILIES = [
    pytest.param(name, marks=pytest.mark.mjx if "point" not in name else ())
    for name in registry.ENVIRONMENTS
]
FEW = EnvConfig(num_train=4, num_test=2, horizon=5)


def suite_of(name):
    return next(iter(registry.load("environment", name).SETTINGS))


@pytest.mark.parametrize("name", FAMILIES)
def test_gymnasiums_own_checks_pass(name):
    env = gentle_gym.make(name, suite_of(name), task=1, settings=FEW if "dir" not in name else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity.*|.*not within.*")
        check_env(env, skip_render_check=True)


@pytest.fixture(scope="module")
def env():
    return gentle_gym.make("sparse_point_robot", task=2, settings=FEW)


def test_an_episode_is_that_of_the_family_and_truncated_at_the_horizon(env):
    family, actions = env.family, np.random.default_rng(0).uniform(-1, 1, (5, 2))
    obs, info = env.reset(seed=7)
    np.testing.assert_array_equal(info["parameters"], family.parameters[2])
    assert info["task"] == 2
    task = jax.tree.map(lambda leaf: leaf[2], family.tasks)
    key = jax.random.key(int(np.random.Generator(np.random.PCG64(7)).integers(2**31)))
    state, wanted = family.reset(task, key)
    np.testing.assert_allclose(obs, wanted, rtol=1e-6)
    for i, action in enumerate(actions.astype(np.float32)):
        obs, reward, terminated, truncated, info = env.step(action)
        state, out = family.step(task, state, jnp.asarray(action))
        np.testing.assert_allclose(obs, out.obs, rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(float(out.context_reward), abs=1e-6)
        assert info["dense_reward"] == pytest.approx(float(out.reward), abs=1e-5)
        assert (terminated, truncated) == (False, i == 4)
    assert reward != pytest.approx(info["dense_reward"])  # the family is sparse


def test_seeds_repeat_and_tasks_are_chosen_at_reset(env):
    one, other = (env.reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert env.reset(options={"task": 4})[1]["task"] == 4
    assert env.reset()[1]["task"] == 4  # until another is chosen
    with pytest.raises(errors.UserError, match="task is 9: expected 0 to 5"):
        env.reset(options={"task": 9})
    env.reset(options={"task": 2})


def test_what_does_not_exist_is_told():
    with pytest.raises(errors.UserError, match="unknown environment"):
        gentle_gym.make("none")
    with pytest.raises(errors.UserError, match="is not in suite"):
        gentle_gym.make("cheetah_dir", "ctmrl")
    with pytest.raises(errors.UserError, match="task is -1"):
        gentle_gym.make("point_robot", task=-1)
    with pytest.raises(errors.UserError, match="tasks is empty"):
        gentle_gym.make_vector("point_robot", tasks=[])
    with pytest.raises(gym.error.ResetNeeded):
        gentle_gym.make("point_robot").step(np.zeros(2))
    with pytest.raises(gym.error.ResetNeeded):
        gentle_gym.make_vector("point_robot", tasks=[0]).step(np.zeros((1, 2)))


def test_tasks_side_by_side_are_each_their_own_and_begin_anew_after_an_end(env):
    envs = gentle_gym.make_vector("sparse_point_robot", tasks=[2, 0, 5], settings=FEW)
    obs, info = envs.reset(seed=7)
    assert obs.shape == (3, 2) and envs.action_space.shape == (3, 2)
    np.testing.assert_array_equal(info["task"], [2, 0, 5])
    actions = np.random.default_rng(0).uniform(-1, 1, (7, 3, 2)).astype(np.float32)
    keys = jax.random.split(
        jax.random.key(int(np.random.Generator(np.random.PCG64(7)).integers(2**31))), 3
    )
    family = env.family
    for k, task in enumerate((2, 0, 5)):
        leaves = jax.tree.map(lambda leaf, task=task: leaf[task], family.tasks)
        np.testing.assert_allclose(obs[k], family.reset(leaves, keys[k])[1], rtol=1e-6)
    for i in range(5):
        before = obs
        obs, rewards, terminated, truncated, info = envs.step(actions[i])
        np.testing.assert_allclose(obs, before + 0.1 * actions[i], atol=1e-5)
        assert not terminated.any() and (truncated == (i == 4)).all()
    obs, rewards, terminated, truncated, info = envs.step(actions[5])  # is a reset
    assert not rewards.any() and not info["dense_reward"].any() and not truncated.any()
    after = envs.step(actions[6])[0]
    np.testing.assert_allclose(after, obs + 0.1 * actions[6], atol=1e-5)


@pytest.mark.mjx
def test_a_task_that_falls_is_terminated_and_begins_anew_alone():
    envs = gentle_gym.make_vector("hopper_params", tasks=[0, 1], settings=EnvConfig(horizon=150))
    envs.reset(seed=0)
    fell = np.zeros(2, bool)
    for _ in range(150):
        over = envs._over
        _, rewards, terminated, truncated, _ = envs.step(np.ones((2, 3)))
        assert not (terminated & truncated).any()
        assert (rewards[np.asarray(over)] == 0).all()  # the step after an end is a reset
        fell |= terminated
        if fell.all():
            break
    assert fell.all()
