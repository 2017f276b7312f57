"""Task families as Gymnasium environments: its own checker, seeds, and the Env that they wrap."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gentle_jax
from gentle_jax import errors, registry, rng

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


def key_of(seed, number=1):
    """Returns the key that the draw `number` of a seed makes."""
    random = np.random.Generator(np.random.PCG64(seed))
    return rng.key([int(random.integers(2**31)) for _ in range(number)][-1])


def test_an_episode_is_that_of_the_family_and_truncated_at_the_horizon(env):
    family, actions = env.family, np.random.default_rng(0).uniform(-1, 1, (5, 2))
    obs, info = env.reset(seed=7)
    np.testing.assert_array_equal(info["parameters"], family.parameters[2])
    assert info["task"] == 2
    task = jax.tree.map(lambda leaf: leaf[2], family.tasks)
    state, wanted = family.reset(task, key_of(7))
    np.testing.assert_allclose(obs, wanted, rtol=1e-6)
    for i, action in enumerate(actions.astype(np.float32)):
        obs, reward, terminated, truncated, info = env.step(action)
        state, out = family.step(task, state, jnp.asarray(action))
        np.testing.assert_allclose(obs, out.obs, rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(float(out.context_reward), abs=1e-6)
        assert info["dense_reward"] == pytest.approx(float(out.reward), abs=1e-5)
        assert (terminated, truncated) == (False, i == 4)
    assert reward != pytest.approx(info["dense_reward"])  # the family is sparse


def test_seeds_repeat_differ_and_tasks_are_chosen_at_reset():
    env = gentle_gym.make("point_robot", "gentle", settings=FEW)  # starts are random there
    starts = [env.reset(seed=seed)[0] for seed in (3, 3, 4)] + [env.reset()[0]]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert len({start.tobytes() for start in starts}) == 3
    task = jax.tree.map(lambda leaf: leaf[0], env.family.tasks)
    np.testing.assert_allclose(starts[0], env.family.reset(task, key_of(3))[1], rtol=1e-6)
    np.testing.assert_allclose(starts[3], env.family.reset(task, key_of(4, 2))[1], rtol=1e-6)
    starts[0] += 1.0  # the user's to change
    assert env.reset(options={"task": 4})[1]["task"] == 4
    assert env.reset()[1]["task"] == 4  # until another is chosen
    for task in (9, 1.5, "3"):
        with pytest.raises(errors.UserError, match="expected 0 to 5"):
            env.reset(options={"task": task})
    with pytest.raises(errors.UserError, match="unknown option of reset 'tsak'"):
        env.reset(options={"tsak": 1})
    with pytest.raises(errors.UserError, match=r"action has shape \[\]: expected \[2\]"):
        env.step(0.5)


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


def test_tasks_side_by_side_are_each_their_own_and_begin_anew_after_an_end():
    envs = gentle_gym.make_vector("point_robot", "gentle", tasks=[2, 0, 5], settings=FEW)
    family, obs_of = envs.family, {}
    leaves = jax.tree.map(lambda leaf: leaf[np.array([2, 0, 5])], family.tasks)
    starts = lambda number: jax.vmap(family.reset)(
        leaves, jax.random.split(key_of(7, number), 3))[1]  # fmt: skip
    obs, info = envs.reset(seed=7)
    assert obs.shape == (3, 2) and envs.action_space.shape == (3, 2)
    np.testing.assert_array_equal(info["task"], [2, 0, 5])
    np.testing.assert_allclose(obs, starts(1), rtol=1e-6)
    actions = np.random.default_rng(0).uniform(-1, 1, (13, 3, 2)).astype(np.float32)
    for i, action in enumerate(actions, 1):  # step i makes draw i + 1
        before = obs
        obs, rewards, terminated, truncated, info = envs.step(action)
        obs_of[i] = obs
        assert not terminated.any() and (truncated == (i in (5, 11))).all()
        if i in (6, 12):  # is a reset
            np.testing.assert_allclose(obs, starts(i + 1), rtol=1e-6)
            assert not rewards.any() and not info["dense_reward"].any()
        else:
            np.testing.assert_allclose(obs, before + 0.1 * action, atol=1e-5)
            assert rewards.all()
    assert (obs_of[6] != obs_of[12]).all()
    with pytest.raises(errors.UserError, match="there is none; leave it out"):
        envs.reset(options={"task": 1})
    with pytest.raises(errors.UserError, match=r"action has shape \[2\]: expected \[3, 2\]"):
        envs.step(np.zeros(2))


@pytest.mark.mjx
def test_a_task_that_falls_is_terminated_and_begins_anew_alone():
    envs = gentle_gym.make_vector("hopper_params", tasks=[0, 1], settings=EnvConfig(horizon=150))
    envs.reset(seed=0)
    fell = np.zeros(2, bool)
    for _ in range(150):
        over = envs._over
        _, rewards, terminated, truncated, _ = envs.step(np.ones((2, 3)))
        assert not (terminated & truncated).any()
        assert not terminated[np.asarray(over)].any()
        assert (rewards[np.asarray(over)] == 0).all()  # the step after an end is a reset
        fell |= terminated
        if fell.all():
            break
    assert fell.all()
