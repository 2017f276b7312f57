"""Task families: splits, goldens, rewards, ceilings, smoke (docs/methods/environments.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from gentle_jax import config as config_lib
from gentle_jax import evaluation, registry
from gentle_jax.envs import base
from gentle_jax.testing import environments

PAIRS = [
    pytest.param(name, suite, marks=[pytest.mark.mjx] if "fast" in module.PHYSICS else [])
    for name in registry.ENVIRONMENTS
    for module in [registry.load("environment", name)]
    for suite in module.SETTINGS
    if suite != "ctmrl_b" or "fast" not in module.PHYSICS  # the programs are those of `ctmrl`
]


def make(name, suite="ctmrl"):
    """An Env on its fastest physics; test_locomotion.py has what is particular to MuJoCo."""
    module = registry.load("environment", name)
    env = module.make(suite, config_lib.usable_physics(module.PHYSICS)[-1])
    return env if env.system is None else env._replace(horizon=5)


def task(env, index):
    return jax.tree.map(lambda x: x[index], env.tasks)


# --- splits


@pytest.mark.parametrize(
    "num_train,num_test,gap,first", [(30, 10, 4, 2), (80, 20, 5, 2), (40, 10, 5, 2)]
)
def test_interpolation_split_holds_out_every_gap_th_task(num_train, num_test, gap, first):
    # 30/10: {2, 6, ..., 38}; 80/20: {2, 7, ..., 97}; 40/10: {2, 7, ..., 47}
    train, held_out = base.interpolation_split(num_train, num_test)
    total = num_train + num_test
    np.testing.assert_array_equal(held_out, np.arange(first, total, gap))
    np.testing.assert_array_equal(train, [i for i in range(total) if i not in held_out])
    assert (len(train), len(held_out)) == (num_train, num_test)


def test_first_last_split_of_gentle():
    train, held_out = base.first_last_split(10, 10, 20)
    np.testing.assert_array_equal(train, range(10))
    np.testing.assert_array_equal(held_out, range(10, 20))


@pytest.mark.parametrize(
    "name,suite,sizes",
    [
        ("point_robot", "ctmrl", (30, 10)),
        ("point_robot", "ctmrl_b", (80, 20)),
        ("point_robot", "gentle", (10, 10)),
        ("point_robot_wind", "ctmrl", (30, 10)),
        ("point_robot_wind", "ctmrl_b", (40, 10)),
        ("sparse_point_robot", "ctmrl", (30, 10)),
        ("sparse_point_robot", "ctmrl_b", (80, 20)),
    ],
)
def test_suites_have_their_task_counts(name, suite, sizes):
    env = make(name, suite)
    assert (len(env.train_ids), len(env.test_ids)) == sizes
    assert len(env.tasks["goal"]) == sum(sizes)


@pytest.mark.parametrize("name,horizon", [("point_robot", 20), ("point_robot_wind", 25),
                                          ("sparse_point_robot", 20)])  # fmt: skip
def test_horizons(name, horizon):
    suites = registry.load("environment", name).SETTINGS
    assert {make(name, suite).horizon for suite in suites} == {horizon}


# --- tasks


def test_gentle_goals_are_the_releases():
    goals = make("point_robot", "gentle").tasks["goal"]
    np.testing.assert_allclose(goals[:2], [(-0.4760, -0.6826), (-0.4437, -0.0814)], atol=5e-5)


@pytest.mark.parametrize("suite,total", [("ctmrl", 40), ("ctmrl_b", 50)])
def test_winds_draw_all_first_coordinates_before_the_second(suite, total):
    random = np.random.RandomState(1337)
    first, second = random.uniform(-0.05, 0.05, total), random.uniform(-0.05, 0.05, total)
    env = make("point_robot_wind", suite)
    np.testing.assert_allclose(env.tasks["wind"], np.stack([first, second], -1), atol=1e-7)
    np.testing.assert_array_equal(env.tasks["goal"], np.tile([[1.0, 0.0]], (total, 1)))


@pytest.mark.parametrize("name", ["point_robot", "sparse_point_robot"])
def test_goals_lie_evenly_on_the_upper_half_circle(name):
    goals = make(name).tasks["goal"]
    angle = np.arctan2(goals[:, 1], goals[:, 0])
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.diff(angle), np.pi / 39, atol=1e-5)
    np.testing.assert_allclose(goals[[0, -1]], [(1, 0), (-1, 0)], atol=1e-6)


# --- steps and rewards


@pytest.mark.parametrize(
    "action,expected",
    [(-1.0, -0.1), (0.0, 0.0), (1.0, 0.1), (0.5, 0.05), (7.0, 0.1), (-3.0, -0.1)],
)
def test_actions_are_scaled_linearly_and_clipped(action, expected):
    scaled = base.scale_action(jnp.array([action]), -0.1, 0.1)
    np.testing.assert_allclose(scaled, [expected], atol=1e-8)


def test_asymmetric_bounds_are_scaled_linearly():
    np.testing.assert_allclose(base.scale_action(jnp.array([-1.0, 0.0, 1.0]), 1.0, 5.0), [1, 3, 5])


def test_step_by_hand():
    env = make("point_robot")
    first = {"goal": jnp.array([1.0, 0.0]), "wind": jnp.array([0.0, 0.02])}
    state, obs = env.reset(first, jax.random.key(0))
    np.testing.assert_array_equal(obs, [0.0, 0.0])
    # (0, 0) + 0.1 * (1, -1) clipped + wind (0, 0.02) = (0.1, -0.08); distance sqrt(.81 + .0064)
    _, out = env.step(first, state, jnp.array([3.0, -1.0]))
    np.testing.assert_allclose(out.obs, [0.1, -0.08], rtol=1e-5)
    np.testing.assert_allclose(out.reward, -np.sqrt(0.8164), rtol=1e-5)
    assert float(out.context_reward) == float(out.reward)
    assert float(out.terminal) == 0.0


def test_sparse_reward_inside_on_and_outside_the_radius():
    env = make("sparse_point_robot")
    goal = {"goal": jnp.array([1.0, 0.0]), "wind": jnp.zeros(2)}
    stay = jnp.zeros(2)
    # 1 - d / 0.2 within 0.2: d = 0 -> 1, 0.05 -> 0.75, 0.19 -> 0.05; outside 0
    for distance, expected in [(0.0, 1.0), (0.05, 0.75), (0.19, 0.05), (0.21, 0.0), (1.0, 0.0)]:
        _, out = env.step(goal, jnp.array([1.0 - distance, 0.0]), stay)
        np.testing.assert_allclose(out.context_reward, expected, atol=1e-5)
        np.testing.assert_allclose(out.reward, -distance, atol=1e-6)  # the backbone's, dense


def test_gentle_starts_vary_and_cover_the_square():
    env = make("point_robot", "gentle")
    keys = jax.random.split(jax.random.key(0), 200)
    _, starts = jax.vmap(env.reset, (None, 0))(task(env, 0), keys)
    assert np.abs(starts).max() <= 1.0
    assert (np.asarray(starts).min(0) < -0.9).all() and (np.asarray(starts).max(0) > 0.9).all()


def test_wind_moves_the_point_but_a_goal_does_not():
    for name, moves in (("point_robot", False), ("point_robot_wind", True)):
        env = make(name)
        state, _ = env.reset(task(env, 0), jax.random.key(0))
        outs = [env.step(task(env, i), state, jnp.zeros(2))[1].obs for i in (0, 5)]
        assert np.array_equal(*outs) != moves


# --- ceilings of docs/methods/environments.md, "Ceilings"


@pytest.mark.parametrize(
    "name,suite,low,high",
    [
        ("point_robot", "ctmrl", -3.865, -3.855),
        ("sparse_point_robot", "ctmrl", 12.455, 12.485),
        ("sparse_point_robot", "ctmrl_b", 12.455, 12.485),
        ("point_robot_wind", "ctmrl", -5.095, -5.085),
        ("point_robot_wind", "ctmrl_b", -5.115, -5.105),
    ],
)
def test_ceilings(name, suite, low, high):
    best = np.asarray(make(name, suite).optimal_return(1))
    assert low <= best.mean() <= high


def test_optimal_return_of_random_starts_by_numpy():
    # greedy per coordinate from many starts; 0.02 is five standard errors of 4000 starts
    env, random = make("point_robot", "gentle"), np.random.default_rng(0)
    goal, state = env.tasks["goal"][0], random.uniform(-1, 1, (4000, 2))
    total = 0.0
    for _ in range(env.horizon):
        state = state + np.clip(goal - state, -0.1, 0.1)
        total = total - np.linalg.norm(state - goal, axis=1)
    best = env.optimal_return(4000)[0]
    error = total.std() / np.sqrt(2000)
    assert abs(float(best) - total.mean()) < 5 * error


# --- every entry of the registry


@pytest.mark.parametrize("name,suite", PAIRS)
def test_environment_does_not_smoke(name, suite):
    env = make(name, suite)
    policy = lambda obs, key, index: jax.random.uniform(key, (env.action_dim,), minval=-1.0)
    run = jax.jit(lambda task, key: evaluation.rollout(env, task, policy, key))
    for index in (0, env.parameters.shape[0] - 1):
        rows, mask = run(task(env, index), jax.random.key(index))
        environments.check_rows(env, rows, mask)
        if env.relabel is not None:
            check_relabel(env, rows, task(env, index), rows.reward)
            other = task(env, 1)
            again, _ = run(other, jax.random.key(index))
            check_relabel(env, rows, other, again.reward)  # tasks differ in reward only
    # the same start and actions in another task: another outcome
    half = task(env, env.parameters.shape[0] // 2)
    one, other = (run(which, jax.random.key(0))[0].reward for which in (task(env, 0), half))
    assert not np.array_equal(one, other)
    assert run._cache_size() == 1  # the task is an argument, not a constant
    environments.check_tasks(env)
    assert (env.name, env.suite) == (name, suite)


@pytest.mark.parametrize("name,suite", PAIRS)
def test_environments_offer_what_they_have(name, suite):
    environments.check_offers(name, make(name, suite))


@pytest.mark.mjx
def test_contact_costs_are_in_no_row():
    module = registry.load("environment", "ant_goal")
    assert module.make("ctmrl", "fast", base.EnvConfig(contact_cost=True)).relabel is None


def check_relabel(env, rows, task, reward):
    """Positions in float32, divided by a step of 0.05 s; RK4 reports the ant a bit early."""
    atol = 1e-2 if env.name == "ant_goal" else 1e-4
    environments.check_relabel(env, rows, task, reward, atol)


def test_observation_normaliser_wraps_reset_and_step_but_not_rewards():
    env = make("point_robot_wind")
    mean, std = np.array([0.5, -1.0], np.float32), np.array([2.0, 0.1], np.float32)
    wrapped, first = base.normalize(env, mean, std), task(env, 3)
    state, obs = wrapped.reset(first, jax.random.key(0))
    plain_state, plain_obs = env.reset(first, jax.random.key(0))
    np.testing.assert_allclose(obs, (plain_obs - mean) / std)
    for _ in range(3):  # the state stays in raw units, so errors cannot pile up
        state, out = wrapped.step(first, state, jnp.array([0.3, -0.7]))
        plain_state, plain = env.step(first, plain_state, jnp.array([0.3, -0.7]))
        np.testing.assert_allclose(out.obs, (plain.obs - mean) / std, rtol=1e-6)
        assert float(out.reward) == float(plain.reward)


def test_rollout_with_a_step_count_starts_new_episodes():
    # 30 steps of a 20-step family: the point is back at the origin after step 20, every row counts
    env = make("point_robot")
    policy = lambda obs, key, index: jnp.ones(2)
    rows, mask = evaluation.rollout(
        env, task(env, 0), policy, jax.random.key(0), steps=30, restarts=True
    )
    np.testing.assert_allclose(rows.obs[[0, 19, 20, 29], 0], [0.0, 1.9, 0.0, 0.9], atol=1e-5)
    np.testing.assert_allclose(rows.next_obs[19, 0], 2.0, atol=1e-5)  # not the new start
    assert mask.shape == (30,) and mask.all()


def test_rollout_masks_what_follows_an_early_end():
    env = make("point_robot")

    def step(task, state, action):
        state, out = env.step(task, state, action)
        return state, out._replace(terminal=(out.obs[0] > 0.25).astype(jnp.float32))

    falls = env._replace(step=step, ends_early=True)
    policy = lambda obs, key, index: jnp.array([1.0, 0.0])
    rows, mask = evaluation.rollout(falls, task(env, 0), policy, jax.random.key(0))
    np.testing.assert_array_equal(mask, [1.0] * 3 + [0.0] * 17)  # 0.1, 0.2, 0.3 ends it
    np.testing.assert_allclose(
        evaluation.episode_return(rows, mask), np.asarray(rows.context_reward)[:3].sum(), rtol=1e-6
    )
    rows, mask = evaluation.rollout(
        falls, task(env, 0), policy, jax.random.key(0), steps=7, restarts=True
    )
    np.testing.assert_allclose(rows.obs[:, 0], [0, 0.1, 0.2, 0, 0.1, 0.2, 0], atol=1e-6)
    assert mask.all()


def test_how_far_the_gentle_suites_training_goals_reach():
    """Normalized test returns of policies that know the test goal but only go where some may go.

    What `given_context` results of this suite are to be read against (docs/point_robot.md): the
    nearest training goal, and the point of their convex hull that is nearest to the test goal.
    """
    env = registry.load("environment", "point_robot").make("gentle")
    goals = np.asarray(env.tasks["goal"], np.float64)
    random = np.random.default_rng(0)
    starts = random.uniform(-1, 1, (4000, 2))
    actions = random.uniform(-0.1, 0.1, (env.horizon, 4000, 2))

    def score(goal, move):
        state, total = starts, 0.0
        for step in range(env.horizon):
            state = state + move(state, step)
            total -= np.linalg.norm(state - goal, axis=1)
        return total.mean()

    toward = lambda target: lambda state, step: np.clip(target - state, -0.1, 0.1)
    train = goals[env.train_ids]
    found = {"nearest": [], "hull": []}
    for goal in goals[env.test_ids]:
        nearest = train[np.linalg.norm(train - goal, axis=1).argmin()]
        weight = 1e3  # a row of ones: weights of a convex combination sum to one
        share = scipy.optimize.nnls(
            np.vstack([train.T, weight * np.ones(len(train))]), np.append(goal, weight)
        )[0]
        low, best = score(goal, lambda s, step: actions[step]), score(goal, toward(goal))
        for name, target in (("nearest", nearest), ("hull", share @ train)):
            found[name].append((score(goal, toward(target)) - low) / (best - low))
    assert np.mean(found["nearest"]) == pytest.approx(0.76, abs=0.01)
    assert np.mean(found["hull"]) == pytest.approx(0.90, abs=0.01)
