"""What the contracts promise, shown on toys that use what no method of the package uses yet.

A recording backbone stands in for RL: its state is the rows and the conditions that it was given.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
import toys_contracts
from conftest import FIELDS, NUM_TRAIN, TINY

from gentle_jax import assembly, learner, registry, sweep
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.envs.base import EnvConfig
from gentle_jax.types import Backbone, Spec

LATENT, HORIZON, EPISODES, TASKS = 2, 5, 4, 3
RECORDED_SLOPE = 3.0  # the recorder's dz is this times z


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """The toys are in the registry."""
    toys_contracts.register(monkeypatch)


def recorder(num_batches=1):
    """Returns a Backbone whose state after an update is (rows, cond), and whose dz is known."""

    def update(state, hp, rows, cond, key, index):
        return (rows, cond), RECORDED_SLOPE * cond.now[0], {}

    return Backbone(num_batches, lambda hp, key: None, update, None, None, None)


def ragged_fields(num_tasks=TASKS, levels=1, seed=0):
    """Returns (fields, mask) of episodes that end early, one without any row; obs tell the row."""
    random = np.random.default_rng(seed)
    shape = (num_tasks, levels, EPISODES, HORIZON)
    lengths = random.integers(1, HORIZON + 1, shape[:3])
    lengths[0, 0, 1] = 0
    mask = (np.arange(HORIZON) < lengths[..., None]).astype(np.float32)
    number = np.arange(np.prod(shape)).reshape(shape)
    obs = np.stack([0.1 * np.indices(shape)[0], 0.01 * number], -1).astype(np.float32)
    fields = {name: random.normal(size=shape) for name in ("reward", "context_reward")}
    fields |= {"obs": obs, "next_obs": obs + 0.5, "terminal": np.zeros(shape)}
    fields["action"] = random.uniform(-1, 1, (*shape, 2))
    return {name: np.asarray(fields[name], np.float32) for name in FIELDS}, mask


def ids_of(rows):
    """The tasks [T] of recorded rows [K, T * 16]."""
    return np.round(10 * np.asarray(rows.obs)[0, ::16, 0]).astype(int)


def dataset_of(fields, mask):
    return jax.tree.map(jnp.asarray, data_lib.from_episodes(fields, mask, False))


def spec_of(data):
    rows = np.asarray(data.episode_start)[:, -1]
    sizes = {"max_rows_per_task": int(rows.max()), "statistics": data_lib.summary(data, len(rows))}
    return Spec(2, 2, len(rows), int(rows.min()), HORIZON, **sizes)


def built(name, data, rl, **train):
    """Returns (Algorithm of a toy with a backbone, hp of one run)."""
    sizes = {"meta_batch": TASKS, "batch_size": 16, "context_size": 6, "latent_dim": LATENT} | train
    config = toys_contracts.Config()
    module = registry.load("algorithm", name)
    made = module.make(config, config_lib.TrainConfig(**sizes), spec_of(data), rl)
    return made, {"algo": dataclasses.asdict(config), "backbone": {}}


def louder(tree, scale):
    """A tree with its floats times `scale`: networks are nearly silent at first."""
    return jax.tree.map(lambda x: scale * x if x.dtype == jnp.float32 else x, tree)


def one_step(made, hp, data, key=3, **loud):
    """Returns (state before, state after, metrics) of a first step. Args: loud, {part: scale}."""
    before = jax.jit(made.init)(hp, jax.random.key(0), data)
    parts = {name: louder(getattr(before, name), scale) for name, scale in loud.items()}
    before = before.replace(**parts)
    step = jax.jit(made.stages[-1].step)
    after, metrics = step(before, data, jax.random.key(key), jnp.int32(0))
    return before, after, metrics


def gradient_of(after, name):
    """The gradient of a first step: Adam's first moment is a tenth of it."""
    return jax.tree.map(lambda m: np.asarray(m) / 0.1, after.rep.trained[name].moments.mu)


def test_a_backbone_sees_rewards_in_their_spread_where_that_is_asked_for():
    data, seen = dataset_of(*ragged_fields()), {}
    for divided in (False, True):
        made, hp = built("toy_embeddings", data, recorder(), normalize_rewards=divided)
        seen[divided] = one_step(made, hp, data)[1].rl[0]
    ends = np.asarray(data.episode_start)[:, -1]
    rewards = np.concatenate([np.asarray(data.rows.reward)[t, :end] for t, end in enumerate(ends)])
    assert 0.5 < rewards.std() < 1.5 and abs(rewards.std() - 1.0) > 0.01
    expected = seen[False]._replace(reward=seen[False].reward / rewards.std())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), seen[True], expected)


# --- z per row and at the next row; data at init


def filtered(rewards):
    """z of a filter that saw some rewards: the posterior of a unit Gaussian, by hand."""
    mean, log_variance = sum(rewards) / (1 + len(rewards)), -np.log(1 + len(rewards))
    return [mean] * LATENT + [log_variance] * LATENT


def beliefs_by_hand(fields, mask):
    """{(task, number of the row): (z before it, z after it)} by loops over steps."""
    table = {}
    for at in np.ndindex(mask.shape):
        if mask[at]:
            rewards = fields["context_reward"][at[:3]].tolist()
            here = filtered(rewards[: at[3]]), filtered(rewards[: at[3] + 1])
            table[tuple(fields["obs"][at].tolist())] = here
    return table


def test_every_row_gets_its_own_z_and_that_of_its_next_row():
    fields, mask = ragged_fields()
    data = dataset_of(fields, mask)
    made, hp = built("toy_filter", data, recorder(num_batches=2))
    _, after, _ = one_step(made, hp, data)
    rows, cond = after.rl
    assert cond.now.shape == cond.next.shape == (2, TASKS * 16, 2 * LATENT)
    table = beliefs_by_hand(fields, mask)
    drawn = [tuple(obs) for obs in np.asarray(rows.obs).reshape(-1, 2).tolist()]
    assert len(set(drawn)) > 20 and not np.array_equal(rows.obs[0], rows.obs[1])
    now, after_row = (np.array([table[key][i] for key in drawn]) for i in (0, 1))
    np.testing.assert_allclose(cond.now.reshape(-1, 2 * LATENT), now, atol=1e-5)
    np.testing.assert_allclose(cond.next.reshape(-1, 2 * LATENT), after_row, atol=1e-5)


def test_td3_bc_learns_from_the_z_of_every_row_and_of_its_next_row():
    data = dataset_of(*ragged_fields())
    rows, cond = one_step(*built("toy_filter", data, recorder()), data)[1].rl
    rows, now, after_row = (jax.tree.map(lambda x: x[0], x) for x in (rows, cond.now, cond.next))
    module = registry.load("backbone", "td3_bc")
    config = module.Config(width=8, depth=1, policy_noise=0.0)
    rl = module.make(config, 2 * LATENT, spec_of(data))
    made, hp = built("toy_filter", data, rl)
    hp["backbone"] = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, float)}
    # the same key draws the same rows, whatever the backbone
    before, _, metrics = one_step(made, hp, data, rl=20.0)

    def loss(now, after_row):
        row = lambda *parts: np.concatenate([np.asarray(x) for x in parts], -1)
        critics = [jax.tree.map(lambda x, i=i: x[i], before.rl.critics.params) for i in (0, 1)]
        policy = before.rl.policy.params  # targets are copies at first
        action = np.tanh(ref.mlp(policy, row(rows.next_obs, after_row), 1)[:, :2])
        seen = row(rows.next_obs, action, after_row)
        value = np.min([ref.mlp(critic, seen, 1)[:, 0] for critic in critics], 0)
        target = 5.0 * np.asarray(rows.reward) + 0.99 * value
        seen = row(rows.obs, rows.action, now)
        return sum(np.mean((ref.mlp(critic, seen, 1)[:, 0] - target) ** 2) for critic in critics)

    np.testing.assert_allclose(metrics["q_loss"], loss(now, after_row), rtol=1e-4)
    # which z is where can be told from the loss
    for other in ((now, now), (after_row, after_row), (now[::-1], after_row)):
        assert abs(loss(*other) / metrics["q_loss"] - 1.0) > 1e-3


def test_a_table_of_all_rows_is_the_same_where_devices_share_the_data():
    """`init` reads the training data through `gather`, which fetches what other devices hold."""
    data = dataset_of(*ragged_fields())
    made, hp = built("toy_filter", data, recorder())
    keys, hp = jax.random.split(jax.random.key(0), 2), jax.tree.map(lambda x: jnp.full(2, x), hp)
    alone = sweep.init_runs(made, hp, keys, data)
    mesh = sweep.make_mesh(2)
    assert mesh.size == 2
    parts = sweep.place_data(data_lib.split_tasks(jax.tree.map(np.asarray, data), 2), mesh)
    init = jax.jit(lambda *args: sweep.init_runs(made, *args, mesh))
    split = init(sweep.place(hp, mesh), sweep.place(keys, mesh), parts)
    for a, b in zip(jax.tree.leaves(alone.rep), jax.tree.leaves(split.rep), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# --- task ids, the key of z, the critics' gradient


def test_the_critics_gradient_reaches_the_embeddings_of_the_tasks_in_the_batch():
    data = dataset_of(*ragged_fields(6))
    made, hp = built("toy_embeddings", data, recorder(), task_draw="replace", meta_batch=6)
    before, after, _ = one_step(made, hp, data)
    rows, cond = after.rl
    ids = ids_of(rows)
    counts = np.bincount(ids, minlength=6)
    assert counts.max() > 1 and counts.min() == 0, counts
    z, dz = np.asarray(cond.now[0]), RECORDED_SLOPE * np.asarray(cond.now[0])
    mean = np.asarray(before.rep.params["table"]["mean"])
    assert np.abs(z - mean[ids]).min() > 1e-4  # z is drawn
    # z = mean + e^l noise: dz/dmean = 1, dz/dl = e^l noise = z - mean
    by_hand = {"mean": np.zeros((6, LATENT)), "log_std": np.zeros((6, LATENT))}
    for task, z_row, dz_row in zip(ids, z, dz, strict=True):
        by_hand["mean"][task] += dz_row
        by_hand["log_std"][task] += dz_row * (z_row - mean[task])
    for name, gradient in gradient_of(after, "table").items():
        np.testing.assert_allclose(gradient, by_hand[name], rtol=1e-4, atol=1e-5)
        old, new = (np.asarray(s.rep.params["table"][name]) for s in (before, after))
        np.testing.assert_array_equal((old != new).any(1), counts > 0)


def test_a_task_that_was_not_trained_on_has_an_id_that_no_embedding_answers():
    data = dataset_of(*ragged_fields())
    made, hp = built("toy_embeddings", data, recorder())
    state = jax.jit(made.init)(hp, jax.random.key(0), data).rep
    ids, key = jnp.array([0, TASKS, TASKS + 1]), jax.random.key(1)
    context = data_lib.context_rows(data, jnp.zeros(3, jnp.int32), 4, key)
    z = made.rep.encode(state, context, ids, key)
    noise = jax.random.normal(key, z.shape)
    np.testing.assert_array_equal(z[1:], noise[1:])
    assert not np.allclose(z[0], noise[0])


def test_the_critics_train_a_pool_over_a_frozen_encoder():
    data = dataset_of(*ragged_fields())
    made, hp = built("toy_pooled", data, recorder())
    before, after, _ = one_step(made, hp, data, rep=30.0)
    frozen = before.rep.trained["encoder"], after.rep.trained["encoder"]
    for a, b in zip(*map(jax.tree.leaves, frozen), strict=True):
        np.testing.assert_array_equal(a, b)
    rows, cond = after.rl
    ids = ids_of(rows)
    # joint_step's order of keys: tasks, context, z, rows, RL, representation
    _, k_context, k_z = jax.random.split(jax.random.key(3), 6)[:3]
    context = made.rep.context(before.rep, data, jnp.array(ids), k_context)
    dz = RECORDED_SLOPE * cond.now[0]

    def pulled(pool):
        trained = before.rep.trained | {"pool": before.rep.trained["pool"].replace(params=pool)}
        z = made.rep.encode(before.rep.replace(trained=trained), context, jnp.array(ids), k_z)
        return (z * dz).sum(), z

    by_hand, z = jax.jit(jax.grad(pulled, has_aux=True))(before.rep.params["pool"])
    np.testing.assert_allclose(z, cond.now[0], atol=1e-6)
    for a, b in zip(
        jax.tree.leaves(gradient_of(after, "pool")), jax.tree.leaves(by_hand), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    assert np.abs(by_hand["Dense_0"]["kernel"]).max() > 1e-3
    old, new = (state.rep.params["pool"]["Dense_0"]["kernel"] for state in (before, after))
    assert not np.array_equal(old, new)


# --- z that is drawn


def test_the_representation_learns_at_the_z_that_the_backbone_saw():
    data = dataset_of(*ragged_fields())
    made, hp = built("toy_sampled", data, recorder())
    _, after, metrics = one_step(made, hp, data)
    rows, cond = after.rl
    ids = ids_of(rows)
    np.testing.assert_allclose(metrics["focal_loss"], ref.focal(cond.now[0], ids), rtol=1e-4)
    other = one_step(made, hp, data, key=4)
    assert abs(other[2]["focal_loss"] / metrics["focal_loss"] - 1) > 1e-3


def test_sample_reads_the_state_and_draws_what_encode_draws():
    data = dataset_of(*ragged_fields())
    made, hp = built("toy_sampled", data, recorder())
    rep, state = made.rep, jax.jit(made.init)(hp, jax.random.key(0), data).rep
    ids, key = jnp.arange(TASKS), jax.random.key(1)
    context = data_lib.context_rows(data, ids, 6, jax.random.key(2))
    encode = lambda rep: jax.jit(lambda k: learner.encode_tasks(rep, state, context, ids, k))
    z = encode(rep)(key)
    # a draw for each task, as prior, extend and sample make it
    np.testing.assert_allclose(encode(rep._replace(encode=None))(key), z, atol=1e-6)
    assert np.abs(encode(rep)(jax.random.key(9)) - z).min() > 1e-4
    # mean and spread of the draws, from the parameters in the state
    one = jax.tree.map(lambda x: x[0], context)
    belief = rep.extend(state, rep.prior(state), one, jnp.ones(6))
    sample = jax.jit(jax.vmap(lambda k: rep.sample(state, belief, k)))
    draws = sample(jax.random.split(key, 4000))
    statistics, params = spec_of(data).statistics, state.params["encoder"]
    rewards = (np.asarray(one.context_reward) - statistics.reward_mean) / statistics.reward_std
    code = np.tanh(ref.mlp(params["net"], rewards[:, None], 1)).mean(0)
    middle, log_std = np.split(ref.mlp(params["heads"], code, 1), 2)
    std = np.exp(log_std)
    assert (np.abs(draws.mean(0) - middle) < 4 * std / np.sqrt(4000)).all()
    np.testing.assert_allclose(draws.std(0), std, rtol=0.05)


# --- the backbone's Z, statistics of the training data


def test_an_algorithm_chooses_the_z_of_its_backbone(tiny):
    made = tiny("toy_filter", backbone="td3_bc")
    size = 2 * made.config.train.latent_dim
    state = made.state()
    kernel = state.rl.policy.params["Dense_0"]["kernel"]
    assert kernel.shape[0] == made.env.obs_dim + size
    z = made.algorithm.rep.sample(state.rep, made.algorithm.rep.prior(state.rep), jax.random.key(0))
    assert made.algorithm.rl.mode(state.rl, jnp.zeros(made.env.obs_dim), z).shape == (2,)
    assert state.rep.own["table"].now.shape == (NUM_TRAIN, made.spec.max_rows_per_task, size)


@pytest.mark.parametrize("name", list(toys_contracts.TOYS))
def test_settings_are_checked_before_there_are_data(name):
    """`check` builds the algorithm and the shapes of its state without a dataset."""
    config = assembly.make_config(name, preset="smoke", num_seeds=1)
    data_bytes, state_bytes = assembly.check(config)
    assert data_bytes > 0 and state_bytes > 0


@pytest.mark.parametrize("suite", ["ctmrl", "gentle"])
def test_a_method_knows_sizes_and_statistics_of_the_training_data(monkeypatch, suite):
    """As a learner sees them: `gentle` z-scores observations, `ctmrl` does not."""
    specs = []

    def make(config, train, spec, rl):
        specs.append(spec)
        return toys_contracts.make_sampled(config, train, spec, rl)

    module = types.ModuleType("toys_contracts.spy")
    vars(module).update(Config=toys_contracts.Config, make=make)
    monkeypatch.setitem(toys_contracts.sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.ALGORITHMS, "toy_spy", module.__name__)
    run = config_lib.RunConfig(algorithm="toy_spy", suite=suite, num_seeds=1)
    sizes = {"env.num_train": 3, "env.num_test": 2, "env.horizon": HORIZON}
    config = config_lib.resolve(run, (TINY,), sizes)
    fields, mask = ragged_fields(num_tasks=5, levels=2)
    assembly.make_sweep(config, {**fields, "mask": mask})
    (spec,) = specs
    env = assembly.make_env("point_robot", suite, settings=EnvConfig(3, 2, HORIZON))
    rows = {name: [] for name in ("obs", "reward")}
    counts = []
    for task in env.train_ids:
        real = mask[task].astype(bool)
        counts.append(real.sum())
        for name, found in rows.items():
            found.append(fields[name][task][real])
    obs, reward = (np.concatenate(rows[name]).astype(float) for name in rows)
    if suite == "gentle":
        obs = (obs - obs.mean(0)) / np.sqrt(obs.var(0) + 1e-8)
    assert min(counts) < max(counts)
    assert (spec.rows_per_task, spec.max_rows_per_task) == (min(counts), max(counts))
    assert spec.num_train_tasks == 3
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(spec.statistics.obs_mean, obs.mean(0))
    close(spec.statistics.obs_std, obs.std(0))
    close(spec.statistics.reward_mean, reward.mean())
    close(spec.statistics.reward_std, reward.std())
