"""Protocols against toy agents whose z says what was in the context (`toys`)."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from gentle_jax import assembly, errors, evaluation, needs, registry, suites, sweep
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.protocols import base
from gentle_jax.types import Offline

NO_DATA = toys.stored((1,))


def make(name, env, **settings):
    return registry.load("protocol", name).make(config_lib.EvalConfig(**settings), env)


def outcome_of(protocol, agent, env, offline=NO_DATA, key=0):
    run = lambda offline, key: protocol.run(
        agent, toys.STATE, env, jnp.zeros(()), Offline(offline, offline), key
    )
    outcome = jax.jit(run)(offline, jax.random.key(key))
    assert outcome.returns.shape == (protocol.num_episodes,)
    return outcome


def run(name, env, offline=NO_DATA, agent=None, **settings):
    """Returns (z of every scored episode [E, 4], Outcome) where no episode ends early."""
    outcome = outcome_of(make(name, env, **settings), agent or toys.agent(), env, offline)
    action = np.asarray(outcome.rows.action)
    alive = np.asarray(outcome.mask) > 0
    assert (action[..., 0][alive] == toys.SCORED).all()  # scored episodes are deterministic
    for episode in range(len(action)):  # and z is fixed within one
        np.testing.assert_array_equal(action[episode], action[episode, :1].repeat(env.horizon, 0))
    return action[:, 0, 1:], outcome


def counts(name, horizon, fall_at, agent=None, offline=NO_DATA, **settings):
    """Returns (z of every scored episode [E, 4], steps of each) where episodes fall.

    Rows of all but the last episode are not kept: the reward is a part of z, one at a time.
    """
    parts = []
    for part in range(4):
        env = toys.env(horizon, fall_at, reward_of=1 + part)
        outcome = outcome_of(make(name, env, **settings), agent or toys.agent(), env, offline)
        returns = np.asarray(outcome.returns)
        episodes = np.append(returns[:-1][~np.isnan(returns[:-1])], returns[-1])
        parts.append(episodes / fall_at)
        np.testing.assert_array_equal(outcome.mask.sum(1), [fall_at])  # the last one's only
        assert outcome.rows.obs.shape == (1, horizon, 1)
    return np.stack(parts, -1)


# --- random_then_policy: the table of docs/methods/protocols.md, "random_then_policy"


def test_two_phase_on_point_robot_sizes():
    # B 400, H 20, X 1: 20 pairs; explorations 1..10 are fully random (n + j < 200); the last scored
    # episode's z comes from explorations 1..19, 10 random and 9 of the policy, not from the 20th
    z, _ = run("random_then_policy", toys.env(20), online_steps=400, context_episodes=1)
    assert len(z) == 20
    for pair in range(20):
        seen = pair  # explorations before this pair, for its own is not in z yet
        np.testing.assert_array_equal(z[pair, :2], [20 * seen, 20 * min(seen, 10)])
    np.testing.assert_array_equal(z[-1, :2], [19 * 20, 10 * 20])
    # from the second pair on z is not the prior, so no policy step was taken at z = 0
    np.testing.assert_array_equal(z[:, 2:], 0)


def test_two_phase_on_cheetah_sizes():
    # B 600, H 200, X 2: 3 pairs; exploration 1 and half of 2 are random; scored episodes 1 and 2
    # use z = 0; the third uses explorations 1, 2: 300 random and 100 policy steps at z = 0
    z, _ = run("random_then_policy", toys.env(200), online_steps=600, context_episodes=2)
    np.testing.assert_array_equal(z, [[0, 0, 0, 0], [0, 0, 0, 0], [400, 300, 100, 0]])


def test_two_phase_on_ant_sizes():
    # B 800, H 200, X 2: 4 pairs; explorations 1, 2 random; the last z: 400 random + 200 policy,
    # whose steps ran at the z of explorations 1, 2 (inferred after pair 2)
    z, _ = run("random_then_policy", toys.env(200), online_steps=800, context_episodes=2)
    np.testing.assert_array_equal(
        z, [[0, 0, 0, 0], [0, 0, 0, 0], [400, 400, 0, 0], [600, 400, 0, 0]]
    )


def test_two_phase_switches_within_an_episode():
    # B 6, H 4: half is 3, so steps 0..2 of the first exploration are random and step 3 is not
    z, _ = run("random_then_policy", toys.env(4), online_steps=6, context_episodes=1)
    np.testing.assert_array_equal(z, [[0, 0, 0, 0], [4, 3, 1, 0]])


def test_two_phase_where_every_episode_falls():
    # H 200, B 600, X 2, falls after 60: an exploration is 4 episodes of 60, the policy's share of
    # step j begins at n + j = 300. Ten pairs. z is not inferred before n >= 400, after 7 of them.
    z = counts("random_then_policy", 200, 60, online_steps=600, context_episodes=2)
    assert len(z) == 10
    np.testing.assert_array_equal(z[:7], 0)
    # explorations of pairs 1..5 are random (n = 0 ... 240, j < 60), those of 6 and 7 the policy's
    # at z = 0, from pair 8 on at another z
    policy = z[:, 0] - z[:, 1]
    np.testing.assert_array_equal(z[7:, 1], 1200)
    np.testing.assert_array_equal(policy[7:], [480, 720, 960])
    np.testing.assert_array_equal(z[7:, 2], 480)
    np.testing.assert_array_equal(z[:, 3], 0)  # scored episodes never enter


def test_two_phase_switches_by_the_step_within_an_episode():
    # H 10, falls after 6, B 20: explorations of 12 rows in 2 episodes; half is 10. Pair 1: n = 0,
    # all random; pair 2: n = 6, steps 0..3 of both episodes are random; pair 3: n = 12, none
    z = counts("random_then_policy", 10, 6, online_steps=20, context_episodes=0)
    np.testing.assert_array_equal(z[:, 0], [0, 12, 24, 36])
    np.testing.assert_array_equal(z[:, 1], [0, 12, 20, 20])


def test_episodes_that_end_at_the_horizon_by_falling_are_like_those_that_do_not():
    settings = {"online_steps": 6, "context_episodes": 1}
    z = counts("random_then_policy", 4, 4, **settings)
    np.testing.assert_array_equal(z, run("random_then_policy", toys.env(4), **settings)[0])


# --- online


@pytest.mark.parametrize("first", [1, 2, 4])
def test_online_runs_its_first_episodes_at_the_prior(first):
    # the first X episodes at z = 0; each scored episode enters the context, nothing else does
    z, _ = run("online", toys.env(5), online_steps=30, context_episodes=first)
    rows = np.array([0 if e < first else 5 * e for e in range(6)])
    np.testing.assert_array_equal(z, np.stack([rows, 0 * rows, 0 * rows, rows], -1))


# --- given_context


def test_given_context_grows_by_one_horizon_per_episode():
    # B / H episodes; H rows of the task's own data before each: H, 2H, 3H
    z, _ = run("given_context", toys.env(5), toys.stored(), scored_steps=15)
    np.testing.assert_array_equal(z, [[5, 0, 0, 0], [10, 0, 0, 0], [15, 0, 0, 0]])


def test_given_context_begins_an_episode_for_a_part_of_a_horizon():
    # "until >= B steps were taken": 12 steps at H = 5 need a third episode
    z, _ = run("given_context", toys.env(5), toys.stored(), scored_steps=12)
    assert len(z) == 3


def test_given_context_of_gentle_point_robot_has_thirty_episodes():
    run_config = config_lib.RunConfig(algorithm="gentle", suite="gentle", env="point_robot")
    config = config_lib.resolve(run_config)
    made = registry.load("protocol", "given_context").make(config.eval, toys.env(20))
    assert made.num_episodes == 30  # 600 / 20, docs/methods/protocols.md, "given_context"
    assert next(iter(made.metrics)) == "all"


# --- one_shot


def test_one_shot_context_is_one_sampled_exploration_at_the_prior():
    # every context row was sampled at z = 0; H rows are drawn again before each scored episode; the
    # exploration is not scored and scored episodes never enter the context
    z, outcome = run("one_shot", toys.env(5), scored_steps=15)
    np.testing.assert_array_equal(z, [[5, 0, 5, 0], [10, 0, 10, 0], [15, 0, 15, 0]])
    np.testing.assert_array_equal(outcome.returns, [15, 15, 15])


def test_one_shot_collects_exactly_its_exploration_steps():
    # 12 steps: two episodes of 5 and 2 rows of a third; context_resample=False encodes all of them
    z, _ = run(
        "one_shot", toys.env(5), scored_steps=5, exploration_steps=12, context_resample=False
    )
    np.testing.assert_array_equal(z, [[12, 0, 12, 0]])


def test_one_shot_fills_its_quota_with_new_episodes_after_falls():
    # 6 rows, episodes fall after 4: scored ones are 2, for 4 steps are less than 6
    z = counts("one_shot", 6, 4, scored_steps=6)
    np.testing.assert_array_equal(z, [[6, 0, 6, 0], [12, 0, 12, 0]])


# --- episodes that end early: until B steps were scored


def test_given_context_goes_on_until_the_budget_is_spent():
    # H 5, falls after 2, B 7: four episodes, 5 rows more before each
    z = counts("given_context", 5, 2, offline=toys.stored(), scored_steps=7)
    np.testing.assert_array_equal(z[:, 0], [5, 10, 15, 20])


def test_online_counts_real_steps():
    # H 5, falls after 2, B 12, X 1: z is inferred once n >= 5, after the third episode
    z = counts("online", 5, 2, online_steps=12, context_episodes=1)
    np.testing.assert_array_equal(z[:, 0], [0, 0, 0, 6, 8, 10])


def test_slots_without_an_episode_are_nan_and_the_last_slot_is_the_last_episode():
    env = toys.env(5, fall_at=2)
    protocol = make("online", env, online_steps=5, context_episodes=1)
    assert protocol.num_episodes == 5  # episodes of one step each would be 5
    returns = outcome_of(protocol, toys.agent(), env).returns
    np.testing.assert_array_equal(returns, [3, 3, np.nan, np.nan, 3])  # 1 + 2 each
    values = {name: float(pick(returns)) for name, pick in protocol.metrics.items()}
    assert values == {"final": 3.0, "all": 3.0, "first": 3.0}


def test_a_single_episode_is_the_first_and_the_last():
    env = toys.env(5, fall_at=3)
    returns = outcome_of(make("online", env, online_steps=3), toys.agent(), env).returns
    np.testing.assert_array_equal(returns, [6, np.nan, 6])


def test_a_return_that_is_not_finite_ends_the_loop_and_stays():
    env = toys.env(5, fall_at=1)
    nan = lambda state, obs, z: jnp.full(5, jnp.nan)
    agent = toys.agent()
    agent = agent._replace(rl=agent.rl._replace(mode=nan))
    broken = toys.env(5, fall_at=1, reward_of=0)
    protocol = make("given_context", broken, scored_steps=50)
    outcome = outcome_of(protocol, agent, broken, toys.stored())
    assert np.isnan(outcome.returns).all() and outcome.mask.sum() == 1
    assert all(np.isnan(pick(outcome.returns)) for pick in protocol.metrics.values())
    healthy = outcome_of(make("given_context", env, scored_steps=50), toys.agent(), env)
    assert np.isfinite(healthy.returns).all()  # fifty episodes of one step


def test_means_leave_out_empty_slots_but_not_runs_that_diverged():
    nan, mean = np.nan, base.METRICS["all"]
    rows = np.array([[1, 2, nan, nan, 6], [1, 2, 3, 4, 5], [nan] * 5, [1, nan, nan, nan, nan]])
    np.testing.assert_array_equal(mean(rows), [3, 3, nan, nan])
    plain = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_array_equal(mean(plain), plain.mean(-1))
    assert mean(plain).dtype == np.float32


def test_repeats_of_unlike_lengths_are_averaged_by_number_and_by_the_last():
    nan = jnp.nan
    returns = jnp.array([[1, 2, nan, nan, 4], [3, 6, 9, nan, 8]])
    np.testing.assert_array_equal(evaluation.mean_over_repeats(returns), [2, 4, 9, nan, 6])
    diverged = returns.at[1].set(nan)
    np.testing.assert_array_equal(evaluation.mean_over_repeats(diverged), [nan, 2, nan, nan, nan])


def falls_by_task(horizon):
    """An Env whose tasks are how many steps their episodes last. Reward: the rows behind z."""

    def step(task, state, action):
        state = state + 1.0
        over = (state >= task).astype(jnp.float32)
        return state, toys.Step(state[None], action[1], action[1], over)

    tasks = np.array([1.0, 4.0])
    return toys.env(horizon, horizon)._replace(step=step, train_ids=np.arange(2), tasks=tasks)


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
def test_tasks_side_by_side_do_not_disturb_each_other(name):
    env, agent, data = falls_by_task(4), toys.agent(), toys.stored(tasks=2)
    protocols = {name: make(name, env, scored_steps=8, online_steps=8)}
    args = toys.STATE, jax.random.key(0), jnp.array(env.tasks), data, jnp.int32(0)
    together, alone = (
        jax.jit(evaluation.make_evaluate(agent, env, protocols, 2, at_once))(*args)[name]
        for at_once in (2, 1)
    )
    np.testing.assert_array_equal(together, alone)
    assert np.isfinite(together).sum(1).tolist() == [8, 2]


def test_two_devices_that_exchange_rows_go_round_equally_often():
    # data split by task over two devices, tasks that fall after 1 and 4 steps: 8 and 2 episodes
    env = falls_by_task(4)
    protocol = make("given_context", env, scored_steps=8)
    mesh = sweep.make_mesh(2)
    tasks = jnp.array(env.tasks)

    def one(task, key, data):
        index = (task > 1).astype(jnp.int32)
        offline = evaluation.stored_data(data, index, 2)
        return protocol.run(toys.agent(), toys.STATE, env, task, offline, key).returns

    keys = jax.random.split(jax.random.key(0), 2)
    data = sweep.place_data(data_lib.split_tasks(toys.stored(tasks=2), 2), mesh)
    split = jax.jit(sweep.over_runs(one, 2, mesh))
    found = split(sweep.place(tasks, mesh), sweep.place(keys, mesh), data)
    whole = jax.jit(lambda *args: jax.lax.map(lambda x: one(*x, toys.stored(tasks=2)), args))
    np.testing.assert_array_equal(found, whole(tasks, keys))
    assert np.isfinite(found).sum(1).tolist() == [8, 2]


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
def test_environments_that_never_end_early_pay_nothing_for_restarts(name):
    # one scan of B / H rounds; no row of a second episode, no loop whose length is not known
    env, sizes = toys.env(7), {"online_steps": 21, "scored_steps": 21}
    run = make(name, env, **sizes).run
    offline = Offline(toys.stored(), toys.stored())
    text = str(
        jax.make_jaxpr(
            lambda key: run(toys.agent(), toys.STATE, env, jnp.zeros(()), offline, key).returns
        )(jax.random.key(0))
    )
    assert "while" not in text and "[13" not in text  # 2 H - 1
    falls = toys.env(7, fall_at=2)
    run = make(name, falls, **sizes).run
    assert "while" in str(
        jax.make_jaxpr(
            lambda key: run(toys.agent(), toys.STATE, falls, jnp.zeros(()), offline, key).returns
        )(jax.random.key(0))
    )


# --- a belief that moves within an episode


def moving(name, env, observe=toys.count_one, offline=NO_DATA, **settings):
    """Returns z [E, H, 4] of every step of the scored episodes of an observing agent."""
    agent = toys.agent(observe=observe)
    outcome = outcome_of(make(name, env, **settings), agent, env, offline)
    action = np.asarray(outcome.rows.action)
    assert (action[..., 0] == toys.SCORED).all()
    return action[..., 1:]


def steps_on(begin, horizon=5):
    """What z [H] says of the number of rows within episodes that begin at these ones."""
    return np.asarray(begin)[:, None] + np.arange(horizon)


def test_given_context_moves_within_an_episode_and_forgets_it():
    z = moving("given_context", toys.env(5), offline=toys.stored(), scored_steps=15)
    np.testing.assert_array_equal(z[..., 0], steps_on([5, 10, 15]))
    np.testing.assert_array_equal(z[..., 3], steps_on([0, 0, 0]))  # only its own steps


def test_one_shot_counts_its_exploration_once():
    # 12 steps, two episodes and a part: the belief goes on over them. Nothing is drawn again
    z = moving("one_shot", toys.env(5), scored_steps=15, exploration_steps=12)
    np.testing.assert_array_equal(z[..., 0], steps_on([12, 12, 12]))
    np.testing.assert_array_equal(z[..., 2], 1)  # the first step alone was at z = 0
    np.testing.assert_array_equal(z[..., 3], steps_on([0, 0, 0]))


def test_online_goes_on_and_counts_no_episode_twice():
    z = moving("online", toys.env(5), online_steps=20, context_episodes=3)
    np.testing.assert_array_equal(z[..., 0], steps_on([0, 5, 10, 15]))
    np.testing.assert_array_equal(z[..., 3], z[..., 0])


def test_two_phase_scores_from_what_z_would_be_inferred_from():
    # B 15, X 2: z is the prior for two pairs; the third begins at explorations 1 and 2
    z = moving("random_then_policy", toys.env(5), online_steps=15, context_episodes=2)
    np.testing.assert_array_equal(z[..., 0], steps_on([0, 0, 10]))
    np.testing.assert_array_equal(z[..., 3], steps_on([0, 0, 0]))
    # random while n + j < 7.5: all of exploration 1, steps 0..2 of exploration 2
    np.testing.assert_array_equal(z[2, 0, 1], 8)


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
def test_an_observer_where_episodes_fall_counts_each_row_once(name):
    env = toys.env(5, fall_at=3)
    agent = toys.agent(observe=toys.count_one)
    settings = {"online_steps": 12, "context_episodes": 0, "scored_steps": 12}
    last = outcome_of(make(name, env, **settings), agent, env, toys.stored()).rows.action[0]
    begin = {  # of the fourth and last episode
        "random_then_policy": 3 * 6,  # explorations of two falls each, 6 rows
        "online": 3 * 3,
        "given_context": 4 * 5,
        "one_shot": 5,
    }[name]
    np.testing.assert_array_equal(last[:3, 1], begin + np.arange(3))


@pytest.mark.parametrize("name", ["given_context", "one_shot", "online"])
@pytest.mark.parametrize("fall_at", [0, 3])
def test_an_observer_that_learns_nothing_acts_as_one_that_does_not_observe(name, fall_at):
    # the same keys, bit by bit: z of an episode is drawn with one key, observed or not
    env = toys.env(5, fall_at)
    draw = lambda state, belief, key: belief + jax.random.normal(key, (4,))
    nothing = {"extend": lambda state, belief, rows, mask: belief, "sample": draw}
    protocol = make(name, env, online_steps=15, scored_steps=15)
    plain = outcome_of(protocol, toys.agent(**nothing), env, toys.stored())
    observed = outcome_of(protocol, toys.agent(observe=toys.forget, **nothing), env, toys.stored())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(observed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_belief_stands_still_after_the_end_of_an_episode():
    env = toys.env(6, fall_at=4)
    count = lambda belief, row: belief + 1.0
    policy = lambda obs, key, step, belief: jnp.full(5, belief)
    rows, mask, belief = evaluation.play(
        env, jnp.zeros(()), policy, jax.random.key(0), jnp.zeros(()), count
    )
    np.testing.assert_array_equal(rows.action[:, 0], [0, 1, 2, 3, 4, 4])
    assert float(belief) == 4 == float(mask.sum())


# --- whole episodes as contexts


def test_an_ordered_context_is_a_whole_episode_in_time_order():
    env = toys.env(5)
    z, _ = run("given_context", env, toys.stored((5, 5, 5)), toys.ordered_agent(), scored_steps=15)
    np.testing.assert_array_equal(z[:, 1], [5, 10, 15])
    np.testing.assert_array_equal(z[:, 2], 1)
    assert (z[:, 0] % 100 == 4).all()  # the last row of an episode


def test_short_episodes_follow_each_other_until_there_is_one_horizon():
    lengths = (3, 0, 4, 1)
    draw = jax.jit(lambda key: base.whole_episodes(toys.stored(lengths), 5, key))
    starts = set()
    for seed in range(30):
        rows, mask = draw(jax.random.key(seed))
        tags = np.asarray(rows.obs)[:, 0]
        size = int(mask.sum())
        assert mask.shape == (9,) and 5 <= size <= 8 and (mask[:size] == 1).all()
        begins = np.flatnonzero(tags[:size] % 100 == 0)
        pieces = np.split(tags[:size], begins[1:])
        for piece in pieces:
            episode = int(piece[0] // 100)
            np.testing.assert_array_equal(piece, 100 * episode + np.arange(lengths[episode]))
            starts.add(episode)
        assert size - len(pieces[-1]) < 5  # no more than needed
    assert starts == {0, 2, 3}


@pytest.mark.parametrize("again,rows", [(True, [7, 14, 21]), (False, [7, 7, 7])])
def test_an_ordered_one_shot_context_is_the_exploration_as_it_came(again, rows):
    env = toys.env(5)  # observations are the steps: 0..4, 0, 1
    settings = {"scored_steps": 15, "exploration_steps": 7, "context_resample": again}
    z, _ = run("one_shot", env, agent=toys.ordered_agent(), **settings)
    np.testing.assert_array_equal(z[:, 1], rows)
    np.testing.assert_array_equal(z[:, [0, 2]], [[1, 1]] * 3)


# --- what protocols need


class Registered:
    """Puts toy modules into the registry."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def protocol(self, name, *needs):
        module = types.ModuleType(f"toy_{name}")
        module.make, module.NEEDS = registry.load("protocol", "online").make, needs
        self.monkeypatch.setitem(sys.modules, module.__name__, module)
        self.monkeypatch.setitem(registry.PROTOCOLS, name, module.__name__)


@pytest.fixture
def registered(monkeypatch):
    return Registered(monkeypatch)


def names(algorithm="focal", suite="ctmrl", env="point_robot", protocols=()):
    run = config_lib.RunConfig(algorithm=algorithm, suite=suite, env=env, protocols=protocols)
    return config_lib.fill_names(run).protocols


def test_a_protocol_runs_by_default_only_where_its_needs_are_offered(registered):
    registered.protocol("asks_rewards", "relabel")
    assert "asks_rewards" in names(env="ant_goal")
    assert "asks_rewards" not in names(env="hopper_params")
    assert set(names(env="hopper_params")) == set(registry.PROTOCOLS) - {"asks_rewards"}


@pytest.mark.parametrize(
    "need,who",
    [
        ("relabel", "environment 'hopper_params' lacks"),
        ("predict_reward", "algorithm 'focal' lacks"),
        ("a_map", "both algorithm 'focal' and environment 'hopper_params' lack"),
    ],
)
def test_a_protocol_that_cannot_run_is_refused_in_one_line(registered, need, who):
    registered.protocol("picky", need)
    with pytest.raises(errors.UserError) as error:
        names(env="hopper_params", protocols=("online", "picky"))
    text = str(error.value)
    assert text.startswith(f"protocol 'picky' needs '{need}', which {who}: choose from ")
    assert "\n" not in text and "random_then_policy, online, given_context, one_shot" in text


def test_settings_may_take_back_what_a_module_offers(registered):
    registered.protocol("asks_rewards", "relabel")
    rep = toys.agent().rep
    env = assembly.make_env("point_robot")
    needs.check_built(("asks_rewards",), "focal", env, rep)
    with pytest.raises(errors.UserError, match="'point_robot' lacks with these settings: choose"):
        needs.check_built(("asks_rewards",), "focal", env._replace(relabel=None), rep)


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_algorithms_offer_what_they_have(tiny, algorithm):
    made = tiny(algorithm)
    for name, feature in needs.FEATURES.items():
        if feature.kind == "algorithm":
            there = feature.there(made.env, made.algorithm.rep)
            assert there == (name in needs.offers_of("algorithm", algorithm))


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
@pytest.mark.parametrize("suite", list(suites.SUITES))
def test_methods_on_one_suite_are_compared_by_its_protocol(algorithm, suite):
    order = names(algorithm, suite)
    assert set(order) == set(registry.PROTOCOLS)
    own = getattr(registry.load("algorithm", algorithm), "PROTOCOL", suites.get(suite).protocol)
    assert order[0] == own
    rest = [name for name in registry.PROTOCOLS if name not in (own, suites.get(suite).protocol)]
    assert [name for name in order if name in rest] == rest


def test_an_algorithm_may_have_a_test_of_its_own(registered, monkeypatch):
    module = registry.load("algorithm", "focal")
    registered.protocol("own", "relabel")
    monkeypatch.setattr(module, "PROTOCOL", "own", raising=False)
    assert names(suite="gentle")[:2] == ("own", "given_context")
    assert names(env="hopper_params")[0] == "random_then_policy"  # where it cannot run
    assert names(protocols=("online",)) == ("online",)


# --- metrics, and what a real agent's context does


@pytest.mark.parametrize("name", list(registry.PROTOCOLS))
@pytest.mark.parametrize("metric", config_lib.METRICS)
def test_metrics_list_the_native_one_first(name, metric):
    made = registry.load("protocol", name).make(config_lib.EvalConfig(metric=metric), toys.env(5))
    assert next(iter(made.metrics)) == metric
    assert set(made.metrics) == {"final", "all", "first"}
    returns = np.array([[1.0, 2.0, 6.0]])
    values = {key: float(function(returns)[0]) for key, function in made.metrics.items()}
    assert values == {"final": 6.0, "all": 3.0, "first": 1.0}
