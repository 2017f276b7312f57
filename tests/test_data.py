"""Datasets and samplers. Rows are tagged task * 1e4 + level * 1e2 + episode; obs holds the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import assembly, errors
from gentle_jax import data as data_lib

TASKS, LEVELS, EPISODES, STEPS = 3, 2, 4, 6
LENGTHS = np.random.default_rng(0).integers(1, STEPS + 1, (TASKS, LEVELS, EPISODES))


def episodes():
    """Fields [task, level, episode, step, ...]: the tag is the reward, the step is obs."""
    task, level, episode, step = np.indices((TASKS, LEVELS, EPISODES, STEPS)).astype(np.float32)
    tag = task * 1e4 + level * 1e2 + episode
    return {
        "obs": np.stack([step, tag], -1),
        "action": np.stack([0.1 * task - 0.1, 0.01 * step], -1),
        "reward": tag,
        "context_reward": tag + 0.5,
        "next_obs": np.stack([step + 1, tag], -1),
        "terminal": np.zeros_like(tag),
    }


def build(lengths=None, timeout_is_terminal=True):
    lengths = np.full((TASKS, LEVELS, EPISODES), STEPS) if lengths is None else lengths
    mask = (np.arange(STEPS) < lengths[..., None]).astype(np.float32)
    return data_lib.from_episodes(episodes(), mask, timeout_is_terminal)


@pytest.fixture(scope="module", params=["full", "ragged"])
def dataset(request):
    made = build(LENGTHS if request.param == "ragged" else None)
    return jax.tree.map(jnp.asarray, made)


def parts(batch):
    """Splits tags into (task, level, episode)."""
    tag = np.asarray(batch.reward).astype(int)
    return tag // 10000, tag % 10000 // 100, tag % 100


def test_episodes_are_packed_in_order_without_gaps():
    made = build(LENGTHS)
    ends = LENGTHS.reshape(TASKS, -1).cumsum(1)
    np.testing.assert_array_equal(made.episode_start[:, 0], 0)
    np.testing.assert_array_equal(made.episode_start[:, 1:], ends)
    assert made.rows.reward.shape == (TASKS, ends[:, -1].max())
    for task in range(TASKS):
        index = 0
        for level in range(LEVELS):
            for episode in range(EPISODES):
                for step in range(LENGTHS[task, level, episode]):
                    assert made.rows.reward[task, index] == task * 1e4 + level * 1e2 + episode
                    assert made.rows.obs[task, index, 0] == step
                    index += 1
        assert (made.rows.reward[task, index:] == 0).all()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
def test_only_the_last_row_of_each_episode_is_terminal(lengths):
    # docs/methods/data.md, "End flags": both releases set the end flag at the time limit too
    made = build(lengths)
    for task in range(TASKS):
        expected = np.zeros_like(made.rows.terminal[task])
        expected[made.episode_start[task, 1:] - 1] = 1.0
        np.testing.assert_array_equal(made.rows.terminal[task], expected)


def test_true_ends_alone_are_kept_when_time_limits_are_not_terminal():
    fields = episodes()
    fields["terminal"][1, 0, 2, STEPS - 1] = 1.0
    made = data_lib.from_episodes(fields, np.ones((TASKS, LEVELS, EPISODES, STEPS)), False)
    assert made.rows.terminal.sum() == 1
    assert made.rows.reward[made.rows.terminal > 0] == 1e4 + 2


def test_packing_does_not_change_its_input():
    fields = episodes()
    data_lib.from_episodes(fields, np.ones((TASKS, LEVELS, EPISODES, STEPS)), True)
    assert fields["terminal"].sum() == 0


def test_context_rows_returns_rows_of_the_asked_tasks_only(dataset):
    ids = jnp.array([2, 0, 2])
    batch = data_lib.context_rows(dataset, ids, 200, jax.random.key(0))
    task, _, _ = parts(batch)
    np.testing.assert_array_equal(task, np.repeat([[2], [0], [2]], 200, 1))
    # every field comes from the same row
    np.testing.assert_array_equal(batch.obs[..., 1], batch.reward)
    np.testing.assert_array_equal(batch.context_reward, batch.reward + 0.5)
    np.testing.assert_array_equal(batch.next_obs[..., 0], batch.obs[..., 0] + 1)


def test_context_rows_draws_every_row_about_equally_often(dataset):
    draws = 12_000
    batch = data_lib.context_rows(dataset, jnp.array([1]), draws, jax.random.key(1))
    row = np.asarray(batch.reward * 10 + batch.obs[..., 0]).ravel()  # unique per row
    rows = int(dataset.episode_start[1, -1])
    values, counts = np.unique(row, return_counts=True)
    assert len(values) == rows
    # binomial: mean draws / rows, five standard deviations
    mean = draws / rows
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


def test_two_occurrences_of_a_task_get_different_rows(dataset):
    batch = data_lib.context_rows(dataset, jnp.array([1, 1]), 50, jax.random.key(0))
    assert not np.array_equal(batch.obs[0], batch.obs[1])


def test_uniform_context_is_over_the_whole_history(dataset):
    batch = data_lib.context_batch(dataset, jnp.arange(3), 400, jax.random.key(0), "uniform")
    task, level, episode = parts(batch)
    assert (task == np.arange(3)[:, None]).all()
    assert set(level.ravel()) == set(range(LEVELS))
    assert set(episode.ravel()) == set(range(EPISODES))


def test_level_context_comes_from_one_level_drawn_per_task(dataset):
    ids, seen = jnp.array([0, 1, 2, 0, 1, 2]), set()
    for seed in range(4):
        batch = data_lib.context_batch(dataset, ids, 60, jax.random.key(seed), "level")
        task, level, episode = parts(batch)
        assert (task == np.asarray(ids)[:, None]).all()
        assert (level == level[:, :1]).all()  # one level within a context
        assert len(set(episode.ravel())) == EPISODES  # but all of its episodes
        seen |= {tuple(level[:, 0])}
    assert len(seen) > 1  # levels vary with the key and between tasks
    assert any(len(set(levels)) > 1 for levels in seen)


def test_episode_context_is_whole_episodes_of_one_level():
    dataset = jax.tree.map(jnp.asarray, build())
    ids, size = jnp.array([0, 1, 2]), 2 * STEPS + 3
    for seed in range(4):
        batch = data_lib.context_batch(dataset, ids, size, jax.random.key(seed), "episodes")
        task, level, episode = parts(batch)
        assert (task == np.asarray(ids)[:, None]).all()
        assert (level == level[:, :1]).all()
        # the steps of an episode in order, from its start; the last episode is cut
        expected = np.tile(np.r_[np.arange(STEPS), np.arange(STEPS), np.arange(3)], (3, 1))
        np.testing.assert_array_equal(batch.obs[..., 0], expected)
        for part in (slice(0, STEPS), slice(STEPS, 2 * STEPS), slice(2 * STEPS, None)):
            assert (episode[:, part] == episode[:, part][:, :1]).all()


def test_episode_context_of_ragged_episodes_stays_inside_them():
    dataset = jax.tree.map(jnp.asarray, build(LENGTHS))
    for seed in range(4):
        batch = data_lib.context_batch(dataset, jnp.arange(3), 20, jax.random.key(seed), "episodes")
        task, level, _ = parts(batch)
        assert (task == np.arange(3)[:, None]).all()
        assert (level == level[:, :1]).all()
        check_whole(batch, LENGTHS)


@pytest.mark.parametrize("short", [False, True])
def test_a_context_of_one_horizon_is_one_episode_or_as_many_as_fill_it(short):
    # of the last task, with episodes of one horizon, beside tasks with a mean length below it
    lengths = np.full((TASKS, LEVELS, EPISODES), STEPS)
    lengths[0] = 2 if short else STEPS
    lengths[1] = 1 if short else STEPS
    dataset = jax.tree.map(jnp.asarray, build(lengths))
    batch = data_lib.context_batch(dataset, jnp.arange(3), STEPS, jax.random.key(0), "episodes")
    check_whole(batch, lengths)
    wanted = (
        [[0, 1, 0, 1, 0, 1], [0] * STEPS, np.arange(STEPS)] if short else [np.arange(STEPS)] * 3
    )
    np.testing.assert_array_equal(batch.obs[..., 0], wanted)


def check_whole(batch, lengths):
    """Episodes follow each other from their first step to their last one; the end is cut."""
    steps, (task, level, episode) = np.asarray(batch.obs[..., 0]).astype(int), parts(batch)
    length = lengths[task, level, episode]
    assert (steps < length).all() and (steps[:, 0] == 0).all()
    over = steps[:, :-1] + 1 == length[:, :-1]
    np.testing.assert_array_equal(steps[:, 1:], np.where(over, 0, steps[:, :-1] + 1))
    goes_on = (level * EPISODES + episode)[:, 1:] == (level * EPISODES + episode)[:, :-1]
    assert (goes_on | over).all()


@pytest.mark.parametrize("draw", ["uniform", "level", "episodes"])
def test_contexts_never_draw_an_episode_that_is_missing(draw):
    """Empty episodes (gaps of an import) anywhere in a level, the last one of a task included."""
    lengths = LENGTHS.copy()
    for place in ((0, 1, 3), (0, 0, 0), (1, 0, 1), (1, 0, 2), (2, 1, 2), (2, 1, 3)):
        lengths[place] = 0
    made = jax.tree.map(jnp.asarray, build(lengths))
    for seed in range(20):
        batch = data_lib.context_batch(
            made, jnp.arange(TASKS), 40, jax.random.key(seed), draw, num_levels=2
        )
        task, level, episode = parts(batch)
        np.testing.assert_array_equal(task, np.arange(TASKS)[:, None].repeat(40, 1))
        assert (np.asarray(batch.obs[..., 0]) < lengths[task, level, episode]).all()
        np.testing.assert_array_equal(batch.next_obs[..., 0], batch.obs[..., 0] + 1)  # no padding
        if draw == "episodes":  # each from its start, not one row of a neighbour again and again
            check_whole(batch, lengths)


def test_float_rounding_never_draws_past_the_last_row(dataset, monkeypatch):
    # uniform draws are below 1, but u * n may round to n: the largest draw must be n - 1
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.ones(shape))
    for draw in ("uniform", "level"):
        batch = data_lib.context_batch(dataset, jnp.arange(3), 2, jax.random.key(0), draw)
        task, _, episode = parts(batch)
        assert (task == np.arange(3)[:, None]).all()
        assert (episode == EPISODES - 1).all()  # the last episode of the history or of the level
        assert (np.asarray(batch.terminal) == 1).all()


def test_take_tasks_keeps_order(dataset):
    taken = data_lib.take_tasks(dataset, np.array([2, 0]))
    assert [int(x) // 10000 for x in taken.rows.reward[:, 0]] == [2, 0]
    np.testing.assert_array_equal(taken.episode_start, dataset.episode_start[np.array([2, 0])])
    assert (taken.num_levels, taken.level_episodes) == (LEVELS, EPISODES)


def test_statistics_ignore_padding_and_normalize_z_scores_both_observations():
    made = build(LENGTHS)
    ends = made.episode_start[:, -1]
    rows = np.concatenate([made.rows.obs[t, : ends[t]] for t in range(TASKS)])
    mean, std = data_lib.statistics(made)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, rows.std(0), rtol=1e-5)
    scaled = data_lib.normalize(made, mean, std)
    again = data_lib.statistics(scaled)
    np.testing.assert_allclose(again[0], 0.0, atol=1e-5)
    np.testing.assert_allclose(again[1], 1.0, rtol=1e-4)
    np.testing.assert_allclose(scaled.rows.next_obs * std + mean, made.rows.next_obs, atol=2e-3)
    np.testing.assert_array_equal(scaled.rows.reward, made.rows.reward)  # raw


def test_summary_is_of_the_real_rows_of_the_first_tasks():
    made = build(LENGTHS)
    ends = made.episode_start[:, -1]
    real = lambda x: np.concatenate([x[t, : ends[t]] for t in range(TASKS - 1)]).astype(float)
    obs, reward = real(made.rows.obs), real(made.rows.reward)
    found = data_lib.summary(made, TASKS - 1)
    np.testing.assert_allclose(found.obs_mean, obs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.obs_std, obs.std(0), rtol=1e-4)
    np.testing.assert_allclose(found.reward_mean, reward.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.reward_std, reward.std(), rtol=1e-4)
    assert isinstance(found.reward_mean, float) and isinstance(found.reward_std, float)


def test_moments_of_many_rows_keep_their_digits():
    # float32 sums of so many rows stop growing at 2^24
    many = np.broadcast_to(np.ones((1, 1, 1), np.float32), (1, 2**25, 1))
    data = build()
    long = data.replace(
        rows=data.rows._replace(obs=many), episode_start=np.array([[0, 2**25]], np.int32)
    )
    mean, std = data_lib.statistics(long)
    np.testing.assert_allclose(mean, 1.0)
    np.testing.assert_allclose(std, 1e-4, rtol=1e-3)


def test_statistics_of_a_constant_coordinate_do_not_divide_by_zero():
    made = build()
    constant = made.replace(rows=made.rows._replace(obs=np.ones_like(made.rows.obs)))
    assert np.isfinite(data_lib.normalize(constant, *data_lib.statistics(constant)).rows.obs).all()


def test_task_sampler_draws_distinct_tasks_where_it_can():
    draw = data_lib.task_sampler(3, 5, "distinct")
    drawn = np.stack([draw(jax.random.key(k)) for k in range(30)])
    assert all(len(set(row)) == 3 for row in drawn)
    assert set(drawn.ravel()) == set(range(5))
    assert sorted(np.asarray(data_lib.task_sampler(5, 5, "distinct")(jax.random.key(0)))) == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("size,total,how", [(4, 2, "distinct"), (3, 3, "replace")])
def test_task_sampler_repeats_tasks_when_asked_or_when_it_must(size, total, how):
    draw = data_lib.task_sampler(size, total, how)
    drawn = np.stack([draw(jax.random.key(k)) for k in range(30)])
    assert drawn.min() == 0 and drawn.max() == total - 1
    assert any(len(set(row)) < size for row in drawn)


# --- rows of some behaviour levels


def levels_drawn(rows):
    """Returns the set of (task, level) of rows."""
    task, level, _ = parts(rows)
    return set(zip(task.ravel().tolist(), level.ravel().tolist(), strict=True))


@pytest.fixture(scope="module")
def two_windows(dataset):
    """A Dataset whose backbones learn from the last level, and whose contexts are of the first."""
    return dataset.replace(rl_levels=(LEVELS - 1, LEVELS), context_levels=(0, 1))


def test_backbones_and_contexts_draw_from_their_own_levels(two_windows):
    ids, key = jnp.arange(TASKS), jax.random.key(0)
    rl = data_lib.gather(two_windows, ids, data_lib.draw_rows(two_windows, ids, 100, key))
    assert levels_drawn(rl) == {(task, LEVELS - 1) for task in range(TASKS)}
    first = {(task, 0) for task in range(TASKS)}
    for draw in ("uniform", "level", "episodes"):
        context = data_lib.context_batch(two_windows, ids, 50, key, draw, 2)
        assert levels_drawn(context) == first, draw
    rows, mask = data_lib.fragments(two_windows, ids, 20, 2, key)
    assert mask.any() and levels_drawn(rows) == first
    own = data_lib.view_tasks(two_windows, jnp.array([1]))
    rows, mask = data_lib.whole_episodes(own, STEPS, key)
    there = jax.tree.map(lambda x: x[np.asarray(mask) > 0], rows)
    assert levels_drawn(there) == {(1, 0)}


@pytest.mark.parametrize("text", ["3:2", "1:1", "0:9", "one", "-1:2", "1"])
def test_levels_that_are_not_there_are_refused(text):
    with pytest.raises(errors.UserError, match=r"train.rl_data is .*: expected FIRST:END"):
        data_lib.levels_of(text, 3, "train.rl_data")
    assert data_lib.levels_of("1:3", 3, "x") == (1, 3) and data_lib.levels_of("", 3, "x") is None


def test_settings_of_levels_are_checked_before_any_data_are_made():
    config = assembly.make_config("focal", "smoke", {"train.context_data": "2:5"})
    with pytest.raises(errors.UserError, match=r"train.context_data is 2:5.*<= 3"):
        assembly.check(config)
    assembly.check(config, imported=True)  # whose number of levels is its own
    with pytest.raises(errors.UserError, match="BOReL learns from whole histories"):
        assembly.check(assembly.make_config("borel", "smoke", {"train.context_data": "0:1"}))


def test_rows_that_contexts_are_drawn_from_are_counted(dataset, two_windows):
    ids = jnp.arange(TASKS)
    starts = np.asarray(dataset.episode_start)
    np.testing.assert_array_equal(data_lib.num_context_rows(dataset, ids), starts[:, -1])
    np.testing.assert_array_equal(data_lib.num_context_rows(two_windows, ids), starts[:, EPISODES])
