"""in_distribution against its pseudocode in plain Python, with contexts kept as lists of episodes.

The toy agent heads for z; an episode's rows hold z and the task, and z of a context is a bent
function of them, so that a new z is sometimes better and sometimes worse.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from gentle_jax import assembly, errors, presets, registry
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.protocols import base, in_distribution, noisy_preferences
from gentle_jax.types import Env, Offline, Step

TASKS, HORIZON, RUNS = 5, 3, 12
POINTS = np.random.default_rng(0).uniform(-1, 1, (TASKS, 2)).astype(np.float32)
BEST = 0.1  # prediction errors are those of a model that is right about this z


def point_env(fall_at=0):
    """A task is a point; the reward is minus the action's distance from it."""

    def step(task, state, action):
        state = state + 1.0
        reward = -jnp.abs(action - task).sum()
        over = (state >= fall_at).astype(jnp.float32) if fall_at else jnp.zeros(())
        return state, Step(task, reward, reward, over)

    return Env(
        name="toy", suite="ctmrl", obs_dim=2, action_dim=2, horizon=HORIZON,
        ends_early=bool(fall_at), tasks=np.zeros((TASKS, 2)), train_ids=np.arange(TASKS),
        test_ids=np.arange(0), reset=lambda task, key: (jnp.zeros(()), task), step=step,
        parameters=np.zeros((TASKS, 1)), parameter_names=("x",),
    )  # fmt: skip


def bent(action, task, sin):
    """What a row adds to z: half the way to the task, and a bend."""
    return action + 0.5 * (task - action) + 0.3 * sin(9.0 * action)


def guess(z, action, sin):
    """The reward that the model predicts of an action at z."""
    return sin(3.0 * z).sum() - abs(action[..., 0] - BEST)


def point_agent():
    def extend(state, belief, rows, mask):
        codes = bent(rows.action, rows.next_obs, jnp.sin)
        return belief + jnp.append((codes * mask[:, None]).sum(0), mask.sum())

    agent = toys.agent(
        prior=lambda state: jnp.zeros(3),
        extend=extend,
        sample=lambda state, belief, key: belief[:2] / jnp.maximum(belief[2], 1.0),
        encode=lambda state, context, task_id, key: jnp.asarray(POINTS)[task_id],
        predict_reward=lambda state, z, rows: guess(z, rows.action, jnp.sin),
        uncertainty=lambda state, z, rows: jnp.abs(rows.action - z[0]).sum(-1) + z[1] ** 2,
    )
    mode = lambda state, obs, z: z
    return agent._replace(rl=agent.rl._replace(mode=mode))


def results(env, tasks, keys, **settings):
    """(returns [run], z of the reported episode [run, 2]) of the protocol."""
    protocol = toys.make("in_distribution", env, **settings)
    data = toys.stored(tasks=TASKS)

    def one(task, key):
        args = point_agent(), toys.STATE, env, task, Offline(data, data), key
        outcome = protocol.run(*args)
        return outcome.returns, outcome.rows.action[:, 0], outcome.cost

    returns, z, cost = jax.jit(jax.vmap(one))(tasks, keys)
    assert returns.shape == (len(keys), 1) and protocol.num_episodes == 1
    return np.asarray(returns)[:, 0], np.asarray(z)[:, 0], cost


def draws_of(key, slots, candidates):
    """The training tasks that each episode draws: the keys as the program splits them."""
    episodes = jax.random.split(jax.random.split(key, 3)[2], slots)
    drawn = [
        jax.random.randint(jax.random.split(k, 3)[0], (candidates,), 0, TASKS) for k in episodes
    ]
    return np.array(drawn)


def encode(context, task):
    """z of a list of episodes, each (action, length)."""
    rows = np.concatenate([np.tile(bent(a, task, np.sin), (n, 1)) for a, n in context])
    return rows.mean(0)


def simulate(task, draws, budget, reference, length, quantifier):
    """The pseudocode of docs/methods/idaq.md. Returns (return, z) of the last episode, a trace."""
    taken, number, tried, trace = 0, 0, [], []
    best, context, before, posterior = None, [], [], None
    while taken < budget:
        if best is not None and taken + HORIZON >= budget:
            z, stage = best[1], "last"
        elif number < reference:
            nearest = [
                min((((POINTS[i] - t) ** 2).mean() for t in tried), default=np.inf)
                for i in draws[number]
            ]
            z, stage = POINTS[draws[number][int(np.argmax(nearest))]], "reference"
            tried.append(z)
        else:
            z, stage = posterior, "iterative"
        value = -length * np.abs(z - task).sum()
        score = {
            "return": value,
            "prediction_error": -((guess(z, z, np.sin) - value / length) ** 2),
            "ensemble": -(np.abs(z - z[0]).sum() + z[1] ** 2),
        }[quantifier]
        better = best is None or score > best[0]
        trace.append((stage, better))
        if better and stage != "last":
            before = [] if stage == "reference" else context
            context = [*before, (z, length)]
            best, posterior = (score, z), encode(context, task)
        elif stage == "iterative":
            context, posterior = before, best[1]
        taken, number = taken + length, number + 1
    return value, z, trace


CASES = [  # budget in steps, reference episodes, candidates, steps of an episode
    (4 * HORIZON, 1, 3, HORIZON),
    (9 * HORIZON, 3, 2, HORIZON),
    (5 * HORIZON, 10, 4, HORIZON),  # a search among training tasks only
    (HORIZON + 1, 2, 2, HORIZON),
    (HORIZON, 2, 3, HORIZON),  # a single episode
    (11, 2, 3, 2),  # episodes fall after two of three steps
]


@pytest.mark.parametrize("budget,reference,candidates,length", CASES)
def test_the_stages_are_those_of_the_pseudocode(budget, reference, candidates, length):
    check(budget, reference, candidates, length, "return")


@pytest.mark.parametrize("quantifier", ["prediction_error", "ensemble"])
def test_other_quantifiers_choose_the_best_episode(quantifier):
    check(6 * HORIZON, 3, 2, HORIZON, quantifier)


def check(budget, reference, candidates, length, quantifier):
    env = point_env(fall_at=length if length < HORIZON else 0)
    tasks = np.random.default_rng(1).uniform(-1, 1, (RUNS, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), RUNS)
    settings = {"online_steps": budget, "reference_episodes": reference}
    settings |= {"num_candidates": candidates, "quantifier": quantifier}
    returns, z, cost = results(env, tasks, keys, **settings)
    slots = base.num_slots(env, budget)
    seen = set()
    for run in range(RUNS):
        draws = draws_of(keys[run], slots, candidates)
        wanted = simulate(tasks[run], draws, budget, reference, length, quantifier)
        np.testing.assert_allclose(z[run], wanted[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(returns[run], wanted[0], rtol=1e-5)
        seen |= set(wanted[2])
        episodes = len(wanted[2]) - 1  # before the reported one
        spent = [float(x[run, 0]) for x in cost]
        assert spent == [episodes * length, episodes, 0]
    if budget == 9 * HORIZON:  # the cases of the pseudocode all happened
        kinds = {
            (stage, better) for stage in ("reference", "iterative") for better in (True, False)
        }
        assert kinds <= seen


def test_the_farthest_of_the_drawn_tasks_is_tried():
    # three draws of two tasks: task 1 is taken unless it was not drawn
    for seed in range(8):
        key = jax.random.key(seed)
        drawn = np.asarray(jax.random.randint(key, (3,), 0, 2))
        chosen = in_distribution.farthest(jnp.array([0.1, 0.2]), 3, key)
        assert int(chosen) == drawn.max()
    nothing_tried = in_distribution.farthest(jnp.full(4, jnp.inf), 2, jax.random.key(0))
    first = jax.random.randint(jax.random.key(0), (2,), 0, 4)[0]
    assert int(nothing_tried) == int(first)


def test_the_error_is_that_of_the_rewards_which_contexts_see():
    env = point_env()._replace(context_reward=lambda reward: reward + 2.0)
    judge, needs = in_distribution.QUANTIFIERS["prediction_error"]
    rows = base.scored_episode(
        point_agent(), toys.STATE, env, jnp.zeros(2), jnp.ones(2), jax.random.key(0)
    )
    shifted = rows.rows._replace(context_reward=rows.rows.context_reward + 2.0)
    same = judge(point_agent(), toys.STATE, env, rows._replace(rows=shifted), jnp.ones(2))
    plain = judge(point_agent(), toys.STATE, point_env(), rows, jnp.ones(2))
    np.testing.assert_allclose(same, plain, rtol=1e-6)
    assert needs == ("predict_reward",)


def test_an_agent_without_z_runs():
    agent = point_agent()
    rep = agent.rep._replace(
        encode=lambda state, context, task_id, key: jnp.zeros((len(task_id), 0)),
        sample=lambda state, belief, key: jnp.zeros(0),
    )
    rl = agent.rl._replace(mode=lambda state, obs, z: jnp.full(2, 0.25))
    outcome = toys.make("in_distribution", point_env(), online_steps=9).run(
        agent._replace(rep=rep, rl=rl), toys.STATE, point_env(), jnp.zeros(2),
        Offline(None, toys.stored(tasks=TASKS)), jax.random.key(0),
    )  # fmt: skip
    np.testing.assert_allclose(outcome.returns, [-0.5 * HORIZON])


def test_an_unknown_quantifier_is_refused_in_one_line():
    with pytest.raises(errors.UserError) as error:
        toys.make("in_distribution", point_env(), quantifier="returns")
    wanted = "expected one of return, prediction_error, ensemble"
    assert str(error.value) == f"unknown eval.quantifier 'returns': did you mean 'return'? {wanted}"


@pytest.mark.parametrize(
    "suite,env,sizes",
    [
        ("ctmrl", "point_robot", (10, 0)),
        ("gentle", "point_robot", (10, 0)),
        ("ctmrl_b", "sparse_point_robot", (10, 0)),
        ("ctmrl", "point_robot_wind", (5, 5)),
        ("ctmrl", "cheetah_vel", (2, 5)),
        ("ctmrl", "hopper_params", (2, 5)),
        ("gentle", "ant_dir", (2, 5)),
    ],
)
def test_sizes_of_the_stages_are_those_of_the_environment(suite, env, sizes):
    for algorithm in registry.ALGORITHMS:
        run = config_lib.RunConfig(algorithm=algorithm, suite=suite, env=env)
        config = config_lib.resolve(run).eval
        assert (config.reference_episodes, config.num_candidates) == sizes


def test_more_candidates_than_training_tasks_are_refused_in_one_line():
    with pytest.raises(errors.UserError) as error:
        toys.make("in_distribution", point_env(), num_candidates=TASKS + 1)
    assert str(error.value) == (
        "eval.num_candidates is 6: expected at most 5, the training tasks; pass "
        "--config.eval.num_candidates=5, or 0 for up to 20"
    )
    many = point_env()._replace(train_ids=np.arange(30))
    number = lambda n, env: in_distribution.num_candidates(
        config_lib.EvalConfig(num_candidates=n), env
    )
    assert [number(n, point_env()) for n in (0, 5, 2)] == [5, 5, 2]
    assert [number(n, many) for n in (0, 30)] == [20, 30]


@pytest.mark.parametrize("name", list(registry.ENVIRONMENTS))
def test_candidates_and_fragments_of_every_preset_fit_the_environment(name):
    module, envs = registry.load("environment", name), {}
    for suite in module.SETTINGS:
        for preset in presets.PRESETS[1:]:
            for algorithm in ("idaq", "anole"):
                config = assembly.make_config(algorithm, preset, suite=suite, env=name)
                if (suite, config.env) not in envs:
                    envs[suite, config.env] = config_lib.make_env(name, suite, "", config.env)
                env = envs[suite, config.env]
                assert in_distribution.num_candidates(config.eval, env) <= len(env.train_ids)
                noisy_preferences.make(config.eval, env)
                steps = getattr(config.algo, "fragment_steps", 0)
                assert data_lib.fragment_steps(steps, env.horizon, "algo") <= env.horizon
