"""BOReL: whole episodes, the table of beliefs, what each stage trains, settings."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIELDS, make_tiny
from toys_borel import (
    ACTION,
    HP,
    LATENT,
    OBS,
    SMALL,
    decoder_by_hand,
    same,
)

from gentle_jax import assembly, errors, registry, sweep
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.algorithms.borel import method, sequences
from gentle_jax.algorithms.borel.settings import Config
from gentle_jax.types import Backbone, Spec

# --- whole episodes


def ragged(lengths):
    """A numpy Dataset of one level; observations tell (task, episode, step)."""
    lengths = np.asarray(lengths)
    shape = (len(lengths), 1, lengths.shape[1], 4)
    random = np.random.default_rng(0)
    fields = {name: random.normal(size=shape).astype("f") for name in ("reward", "context_reward")}
    tags = 0.01 * np.arange(np.prod(shape), dtype="f").reshape(shape)
    fields |= {"obs": np.stack([tags, 0.1 * np.indices(shape)[2]], -1).astype("f")}
    fields |= {"next_obs": fields["obs"] + 0.5, "terminal": np.zeros(shape, "f")}
    fields["action"] = random.uniform(-1, 1, (*shape, ACTION)).astype("f")
    mask = (np.arange(4) < lengths[:, None, :, None]).astype("f")
    return data_lib.from_episodes({name: fields[name] for name in FIELDS}, mask, False)


LENGTHS = [[4, 2, 1, 0], [3, 4, 4, 4], [1, 1, 2, 0]]


def test_episodes_are_drawn_uniformly_among_those_with_rows():
    data = jax.tree.map(jnp.asarray, ragged(LENGTHS))
    ids = jnp.array([2, 1])
    drawn = np.asarray(sequences.draw_episodes(data, ids, (500, 3), jax.random.key(0)))
    assert drawn.shape == (2, 500, 3)
    for episodes, count in zip(drawn, (3, 4), strict=True):
        shares = np.bincount(episodes.ravel(), minlength=4) / episodes.size
        np.testing.assert_allclose(shares, (np.arange(4) < count) / count, atol=0.05)


def test_sequences_hold_whole_episodes_in_time_order():
    data = jax.tree.map(jnp.asarray, ragged(LENGTHS))
    episode = jnp.array([[[1, 0]], [[2, 3]]])  # of tasks 0 and 2
    rows, mask = sequences.rows_of(data, jnp.array([0, 2]), episode, 4)
    assert rows.obs.shape == (2, 1, 8, OBS)
    np.testing.assert_array_equal(mask[0, 0], [1, 1, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(mask[1, 0], [1, 1, 0, 0, 0, 0, 0, 0])
    real = np.asarray(rows.obs[0, 0])[np.asarray(mask[0, 0]) > 0]
    np.testing.assert_array_equal(real, np.asarray(data.rows.obs)[0, [4, 5, 0, 1, 2, 3]])


# --- the stages


def recorder():
    """A Backbone whose state after an update is (rows, cond)."""

    def update(state, hp, rows, cond, key, index):
        return (rows, cond), jnp.zeros_like(cond.now[0]), {}

    return Backbone(1, lambda hp, key: None, update, None, None, None)


def built(data, **fields):
    """(Algorithm with a recording backbone, its initial state)."""
    rows = np.asarray(data.episode_start)[:, -1]
    sizes = {"vae_tasks": 2, "vae_sequences": 3, "vae_steps": 5, "posteriors_at_once": 3}
    sizes |= {"num_episodes": 1} | fields
    config = dataclasses.replace(SMALL, **sizes)
    train = config_lib.TrainConfig(meta_batch=3, batch_size=40, latent_dim=2 * LATENT, init="he")
    spec = Spec(OBS, ACTION, 3, max(int(rows.min()), 4), 4, init="he")
    made = method.make(config, train, spec, recorder())
    hp = {"backbone": {}, "algo": {**HP, "lr": 1e-2}}
    hp = jax.tree.map(jnp.float32, hp)
    return made, jax.jit(made.init)(hp, jax.random.key(0), data)


def louder(state):
    """The same with beliefs that differ much."""
    vae = state.rep.vae
    loud = jax.tree.map(lambda x: 2.0 * x, vae.params)
    return state.replace(rep=state.rep.replace(vae=vae.replace(params=loud)))


def filled(made, state, data, wrap=jax.jit):
    """The state after the stage `beliefs`."""
    stage = made.stages[1]
    step = wrap(stage.step)
    for index in range(stage.num_steps):
        state, metrics = step(state, data, jax.random.key(index), jnp.int32(index))
        assert np.isfinite(metrics["log_variance"])
    return state


def observed(made, state, data):
    """{(task, episode): z [length + 1, Z]} of beliefs that move from the prior, step by step."""
    rep, found = made.rep, {}
    observe = jax.jit(lambda belief, row: rep.observe(state.rep, belief, row))
    z_of = jax.jit(lambda belief: rep.sample(state.rep, belief, jax.random.key(0)))
    starts = np.asarray(data.episode_start)
    for task, episode in np.ndindex(len(LENGTHS), 4):
        belief = rep.prior(state.rep)
        z = [z_of(belief)]
        for at in range(starts[task, episode], starts[task, episode + 1]):
            belief = observe(belief, jax.tree.map(lambda x, t=task, r=at: x[t, r], data.rows))
            z.append(z_of(belief))
        found[task, episode] = np.asarray(z)
    return found


@pytest.fixture(scope="module")
def stored():
    """(Dataset of three ragged tasks, Algorithm, a loud state after the stage `beliefs`)."""
    data = jax.tree.map(jnp.asarray, ragged(LENGTHS))
    made, state = built(data)
    return data, made, filled(made, louder(state), data)


def test_every_row_gets_the_beliefs_of_single_steps(stored):
    data, made, state = stored
    wanted = observed(made, state, data)
    rows, counts = [], np.asarray(data.episode_start)[:, -1]
    for task in range(3):
        rows.append(np.arange(12) % counts[task])  # all rows; the shorter tasks' twice
    index = jnp.asarray(np.stack(rows))[None]
    cond = made.rep.condition(state.rep, data, jnp.arange(3), index, jax.random.key(0))
    assert cond.now.shape == cond.next.shape == (1, 36, 2 * LATENT)
    now, after = (np.asarray(x).reshape(3, 12, -1) for x in cond)
    starts = np.asarray(data.episode_start)
    for task, slot in np.ndindex(3, 12):
        row = rows[task][slot]
        episode = max(e for e in range(4) if starts[task, e] <= row)
        step = row - starts[task, episode]
        z = wanted[task, episode]
        np.testing.assert_allclose(now[task, slot], z[step], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[task, slot], z[step + 1], rtol=1e-4, atol=1e-5)
    assert now.std(1).max() > 0.05


def test_the_backbone_learns_from_rows_and_their_own_beliefs(stored):
    data, made, state = stored
    after, _ = jax.jit(made.stages[2].step)(state, data, jax.random.key(5), jnp.int32(0))
    rows, cond = after.rl
    wanted = observed(made, state, data)
    table = {}
    for (task, episode), z in wanted.items():
        for step in range(len(z) - 1):
            at = int(data.episode_start[task, episode]) + step
            table[float(data.rows.obs[task, at, 0])] = z[step], z[step + 1]
    drawn = np.asarray(rows.obs)[0, :, 0]
    assert drawn.shape == (120,)
    for tag, now, following in zip(drawn, cond.now[0], cond.next[0], strict=True):
        np.testing.assert_allclose(now, table[float(tag)][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(following, table[float(tag)][1], rtol=1e-4, atol=1e-5)
    same(after.rep, state.rep, rtol=0)  # encoder and table are frozen


def test_a_context_is_what_single_steps_make_of_it_and_padding_is_nothing(stored):
    data, made, state = stored
    rep, rows = made.rep, jax.tree.map(lambda x: x[1, :7], data.rows)
    start = rep.prior(state.rep)
    observe = jax.jit(lambda belief, row: rep.observe(state.rep, belief, row))
    wanted = start
    for at in range(7):
        wanted = observe(wanted, jax.tree.map(lambda x, at=at: x[at], rows))

    @jax.jit
    def extend(belief, where, rows):
        """Rows at some of nine slots, NaN in the others."""
        gaps = jax.tree.map(lambda x: jnp.full((9, *x.shape[1:]), jnp.nan).at[where].set(x), rows)
        return rep.extend(state.rep, belief, gaps, jnp.zeros(9).at[where].set(1.0))

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    close(extend(start, jnp.arange(7), rows), wanted)
    close(extend(start, jnp.array([0, 1, 3, 4, 5, 7, 8]), rows), wanted)
    # in two parts: the belief goes on. Slot 9 does not exist: such rows are dropped
    first = extend(start, jnp.where(jnp.arange(7) < 3, jnp.arange(7), 9), rows)
    close(extend(first, jnp.where(jnp.arange(7) < 3, 9, jnp.arange(7)), rows), wanted)
    backwards = extend(start, jnp.arange(7)[::-1], rows)
    assert np.abs(backwards - wanted).max() > 1e-3  # order matters


def test_the_prior_is_what_the_heads_say_of_a_zero_hidden_state(stored):
    _, made, state = stored
    own = state.rep.vae.params["encoder"]
    z = made.rep.sample(state.rep, made.rep.prior(state.rep), jax.random.key(0))
    wanted = np.concatenate([own["mean"]["bias"], own["log_variance"]["bias"]])
    np.testing.assert_allclose(z, wanted, rtol=1e-6)
    assert np.abs(wanted).min() > 0 and made.rep.traits.learned_prior


def test_rewards_are_predicted_at_the_mean(stored):
    data, made, state = stored
    rows = jax.tree.map(lambda x: x[1, :3], data.rows)
    z = jnp.array([0.5, -1.0, 3.0, -2.0])
    found = made.rep.predict_reward(state.rep, z, rows)
    own = state.rep.vae.params["reward"]
    for k in range(3):
        pair = [np.asarray(rows.next_obs[k]), np.asarray(rows.obs[k])]
        wanted = decoder_by_hand(own, np.array([0.5, -1.0]), pair, np.asarray(rows.action[k]))
        np.testing.assert_allclose(found[k], wanted[0], rtol=1e-4)
    same(made.rep.predict_reward(state.rep, z.at[2:].set(9.0), rows), found, rtol=0)


def test_an_episode_of_a_longer_sequence_begins_at_the_prior_or_at_the_end_of_another():
    data = jax.tree.map(jnp.asarray, ragged([[4, 2, 1, 3]] * 3))
    made, state = built(data, num_episodes=2)
    state = filled(made, louder(state), data)
    alone = observed(made, state, data)
    starts = np.asarray(data.episode_start)
    fresh = 0
    for task, episode in np.ndindex(3, 4):
        first = np.asarray(state.rep.beliefs)[task, starts[task, episode] + episode]
        ends = [alone[task, other][-1] for other in range(4)]
        gaps = [np.abs(first - z).max() for z in (alone[task, episode][0], *ends)]
        assert min(gaps) < 1e-4
        fresh += gaps[0] < 1e-4
    assert 2 <= fresh <= 10  # half of twelve


def test_the_stage_vae_learns_from_training_tasks_and_moves_nothing_else():
    fields = ragged([*LENGTHS, [4, 4, 4, 4]])  # the fourth is a test task
    data = jax.tree.map(jnp.asarray, fields)
    made, state = built(data)
    step = jax.jit(made.stages[0].step)
    after, metrics = step(state, data, jax.random.key(1), jnp.int32(0))
    same(after.rep.beliefs, state.rep.beliefs, rtol=0)
    assert after.rl is None and not made.stages[0].evaluate
    old, new = state.rep.vae.params, after.rep.vae.params
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        assert not np.array_equal(a, b)
    other = data.replace(rows=jax.tree.map(lambda x: x.at[3].set(5.0), data.rows))
    same(step(state, other, jax.random.key(1), jnp.int32(0))[0], after, rtol=0)
    changed = data.replace(rows=jax.tree.map(lambda x: x.at[:3].add(1.0), data.rows))
    found = step(state, changed, jax.random.key(1), jnp.int32(0))[1]
    assert abs(found["vae_loss"] - metrics["vae_loss"]) > 1e-3
    for index in range(60):
        state, last = step(state, data, jax.random.key(index), jnp.int32(index % 5))
    assert last["vae_loss"] < 0.7 * metrics["vae_loss"]


def test_devices_with_parts_of_the_data_make_the_beliefs_of_one(stored):
    _, made, wanted = stored
    two = jax.tree.map(lambda x: jnp.stack([x, x]), wanted)
    two = two.replace(rep=two.rep.replace(beliefs=jnp.zeros_like(two.rep.beliefs)))
    mesh = sweep.make_mesh(2)
    keys = sweep.place(jax.random.split(jax.random.key(0), 2), mesh)
    split = sweep.place_data(data_lib.split_tasks(ragged(LENGTHS), 2), mesh)
    chunk = jax.jit(sweep.over_runs(sweep.make_chunk(made.stages[1]), 2, mesh))
    after, _ = chunk(sweep.place(two, mesh), keys, split, jnp.int32(0), jnp.int32(3))
    for run in range(2):
        found = after.rep.beliefs[run]
        np.testing.assert_allclose(found, wanted.rep.beliefs, rtol=1e-4, atol=1e-5)


# --- settings and bad input


def test_an_odd_latent_size_is_a_user_error():
    with pytest.raises(errors.UserError, match=r"latent_dim is 5: .*even.*latent_dim=6$"):
        make_tiny("borel", **{"train.latent_dim": 5})
    config = assembly.make_config("borel", "smoke", {"train.latent_dim": 7})
    with pytest.raises(errors.UserError, match="latent_dim is 7"):
        assembly.check(config)  # before there are data


def test_a_horizon_longer_than_episodes_is_a_user_error():
    spec = Spec(OBS, ACTION, 3, rows_per_task=19, horizon=20)
    train = config_lib.TrainConfig(latent_dim=4)
    with pytest.raises(errors.UserError, match="horizon is 20 and a training task has 19 rows"):
        method.make(SMALL, train, spec, recorder())
    config = assembly.make_config("borel", "smoke", {"env.horizon": 20})
    shape = (len(assembly.env_of(config).parameters), 1, 2, 10)
    fields = {name: np.zeros(shape, "f") for name in FIELDS} | {"mask": np.ones(shape, "f")}
    for name in ("obs", "next_obs", "action"):
        fields[name] = np.zeros((*shape, 2), "f")
    with pytest.raises(errors.UserError, match="10"):
        assembly.make_sweep(config, fields)


def test_steps_are_a_hundred_passes_over_the_episodes_unless_they_are_given():
    train, spec = config_lib.TrainConfig(latent_dim=4), Spec(OBS, ACTION, 10, 2000, 20)
    stages = method.make(Config(), train, spec, recorder()).stages
    # 10 tasks x 100 episodes, 4 x 8 x 2 of them a step: 16 steps a pass
    assert [(s.name, s.num_steps) for s in stages[:2]] == [("vae", 1_600), ("beliefs", 10)]
    given = method.make(Config(vae_steps=7), train, spec, recorder()).stages
    assert given[0].num_steps == 7


def test_every_environment_of_a_suite_has_settings_with_ten_numbers_of_z():
    module = registry.load("algorithm", "borel")
    pairs = [
        (suite, env)
        for env in registry.ENVIRONMENTS
        for suite in registry.load("environment", env).SETTINGS
    ]
    assert set(pairs) == set(module.SETTINGS)
    for (suite, env), preset in itertools.product(pairs, ("paper", "quick", "smoke")):
        config = assembly.make_config("borel", preset, suite=suite, env=env)
        assert config.train.latent_dim == 10
        assert config.algo.decode_state == env.endswith("_params")
        assert config.train.task_draw == ("distinct" if preset == "quick" else "replace")
        assert preset != "paper" or config.train.meta_batch == 16
        assert config.run.protocols[0] == "online"
