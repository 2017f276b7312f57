"""What every entry of the registry must keep, and what every method must be able to learn."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import evaluation, learner, registry, sweep
from gentle_jax.types import Spec

COMBINATIONS = [
    (algorithm, backbone, fidelity)
    for algorithm in registry.ALGORITHMS
    for backbone in registry.BACKBONES
    for fidelity in config_lib.FIDELITIES
]
# each algorithm on its own suite; BRAC on, though point robots switch it off
SUITE = collections.defaultdict(lambda: "ctmrl", gentle="gentle")  # a new algorithm needs no line
BRAC = {"brac_sac.use_brac": True}


def row(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def with_row(tree, index, value):
    return jax.tree.map(lambda x, v: x.at[index].set(v), tree, value)


def check_shapes(before, after):
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, new.weak_type)


def check_finite(name, tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # the ensembles' best errors are infinite before the first epoch ends
        if "best_error" not in jax.tree_util.keystr(path):
            assert np.isfinite(leaf).all(), (name, jax.tree_util.keystr(path))


@pytest.mark.parametrize("algorithm,backbone,fidelity", COMBINATIONS)
def test_every_stage_keeps_the_contract(tiny, algorithm, backbone, fidelity):
    # compiling is the cost: stages before the last and K-means know no backbone, one is enough
    alone = backbone == "td3_bc"
    extra = BRAC if alone or algorithm != "ctmrl" else BRAC | {"algo.use_kmeans": False}
    made = tiny(algorithm, SUITE[algorithm], "point_robot", backbone, fidelity, **extra)
    data = jax.tree.map(jnp.asarray, made.train)
    keys = jax.random.split(jax.random.key(7), 2)
    states = made.states()
    for stage in made.algorithm.stages if alone else made.algorithm.stages[-1:]:
        mapped = jax.vmap(stage.step, (0, None, 0, None))
        step = jax.jit(mapped)
        for index in (0, 1):
            after, metrics = step(states, data, keys, jnp.int32(index))
            # one tree of one shape through all stages: checkpoints and scans need it
            check_shapes(states, after)
            check_finite(stage.name, (after, metrics))
            assert all(m.shape == (2,) for m in jax.tree.leaves(metrics))
            assert not same(row(after, 0), row(states, 0))
            if index == 0:
                states = after
        # runs are isolated: another state and key of run 1 leave every bit of run 0 alone
        noisy = jax.tree.map(lambda x: x * 1.5 if x.dtype == jnp.float32 else x, row(states, 1))
        disturbed = with_row(states, 1, noisy)
        other_keys = jax.vmap(jax.random.key)(jnp.arange(2)).at[0].set(keys[0])
        again, _ = step(disturbed, data, other_keys, jnp.int32(1))
        assert same(row(again, 0), row(after, 0))
        assert not same(row(again, 1), row(after, 1))
        # the encoder learns nothing from the RL losses: another RL learner, rewards scaled
        # otherwise, the same keys (no relabelling at index 1): the same representation, bit by bit
        louder = jax.tree.map(lambda x: x * 1.1 if x.dtype == jnp.float32 else x, states.rl)
        three = jnp.full(2, 3.0, jnp.float32)
        hp = states.hp | {"backbone": states.hp["backbone"] | {"reward_scale": three}}
        scaled, _ = step(states.replace(rl=louder, hp=hp), data, keys, jnp.int32(1))
        assert same(scaled.rep, after.rep)
        assert not same(scaled.rl, after.rl)
        # sweeping every swept float compiles nothing new
        swept = {key: v * 0.5 for key, v in config_lib.swept_fields(made.config).items()}
        hp = config_lib.hyper_params(made.config, ({}, swept))
        step(states.replace(hp=hp), data, keys, jnp.int32(1))
        assert step._cache_size() == 1


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_z_lies_within_one_and_depends_on_its_own_context_only(tiny, algorithm):
    made = tiny(algorithm, SUITE[algorithm])
    rep, data = made.algorithm.rep, jax.tree.map(jnp.asarray, made.train)
    # as loud as a trained encoder
    state = jax.tree.map(lambda x: 5 * x if x.dtype == jnp.float32 else x, made.state().rep)
    ids = jnp.arange(made.spec.num_train_tasks)
    context = data_lib.rl_batch(data, ids, 8, jax.random.key(0))
    encode = jax.jit(lambda c: learner.encode_tasks(rep, state, c, ids, jax.random.key(0)))
    z = encode(context)
    assert z.shape == (made.spec.num_train_tasks, made.config.train.latent_dim)
    assert (np.abs(z) < 1.0).all() and np.std(z, 0).max() > 1e-4
    other = jax.tree.map(lambda x: x.at[1].set(0.7), context)
    changed = encode(other)
    np.testing.assert_array_equal(np.delete(changed, 1, 0), np.delete(z, 1, 0))
    assert not np.array_equal(changed[1], z[1])
    prior = rep.sample(state, rep.prior(state), jax.random.key(0))
    np.testing.assert_array_equal(prior, np.zeros(made.config.train.latent_dim))


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_every_protocol_runs_on_every_algorithm_and_tasks_are_isolated(tiny, algorithm):
    made = tiny(algorithm, SUITE[algorithm])
    assert set(made.protocols) == set(registry.PROTOCOLS)
    evaluate = jax.jit(evaluation.make_evaluate(made.algorithm, made.env, made.protocols, 1))
    # loud networks, so that another context is another return
    state = jax.tree.map(lambda x: 5 * x if x.dtype == jnp.float32 else x, made.state())
    tasks = row(made.env.tasks, made.env.test_ids)
    offline = jax.tree.map(jnp.asarray, made.test)
    run = lambda offline: evaluate(state, jax.random.key(1), tasks, offline, jnp.int32(3))
    returns = run(offline)
    for name, protocol in made.protocols.items():
        assert returns[name].shape == (2, protocol.num_episodes)
        assert np.isfinite(returns[name]).all()
    other = offline.replace(rows=jax.tree.map(lambda x: x.at[1].set(0.9), offline.rows))
    changed = run(other)
    assert evaluate._cache_size() == 1
    np.testing.assert_array_equal(changed["given_context"][0], returns["given_context"][0])
    assert not np.array_equal(changed["given_context"][1], returns["given_context"][1])
    for name in set(made.protocols) - {"given_context"}:  # the others read no offline data
        np.testing.assert_array_equal(changed[name], returns[name])


# --- the context bandit

BANDIT = {
    "train.num_steps": 1500,
    "train.meta_batch": 2,
    "train.batch_size": 32,
    "train.context_size": 32,
    "train.latent_dim": 2,
    "backbone.width": 16,
    "backbone.depth": 2,
    "backbone.lr": 3e-3,
    "backbone.discount": 0.9,
    # regularisers weak beside the reward: both arms are equally likely in the data
    "td3_bc.reward_scale": 5.0,
    "td3_bc.bc_weight": 25.0,
    "brac_sac.reward_scale": 20.0,
    "brac_sac.use_brac": False,
    "algo.lr": 3e-3,
    "algo.width": 16,
    "focal.depth": 1,
    "focal.use_next_obs": False,
    "ctmrl.encoder_width": 16,
    "ctmrl.encoder_depth": 1,
    "ctmrl.depth": 1,
    "ctmrl.num_codes": 2,
    "ctmrl.use_kmeans": False,  # tested in test_ctmrl.py, and slow to compile
    "ctmrl.num_iterations": 10,
    "gentle.depth": 1,
    "gentle.num_cross_tasks": 1,
    "gentle.relabel_rows": 64,
    "gentle.relabel_every": 100,
    "gentle.ensemble_size": 2,
    "gentle.model_batch": 64,
    "gentle.max_epochs": 60,
    "gentle.model_lr": 1e-2,
}


def bandit_data():
    """Two tasks, one state, one step, arms a = -1 and 1: r = a in task 0 and r = -a in task 1."""
    action = np.random.default_rng(0).choice([-1.0, 1.0], (2, 1, 256, 1, 1)).astype(np.float32)
    reward = action[..., 0] * np.array([1, -1], np.float32).reshape(2, 1, 1, 1)
    nothing = np.zeros_like(action)
    fields = {"obs": nothing, "next_obs": nothing, "action": action, "terminal": nothing[..., 0]}
    fields |= {"reward": reward, "context_reward": reward}
    made = data_lib.from_episodes(fields, np.ones(reward.shape), timeout_is_terminal=True)
    return jax.tree.map(jnp.asarray, made)


@pytest.mark.parametrize("backbone", ["brac_sac", "td3_bc"])
@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_only_the_context_tells_which_arm_pays(algorithm, backbone):
    suite = SUITE[algorithm]
    run = config_lib.RunConfig(algorithm=algorithm, suite=suite, backbone=backbone)
    config = config_lib.resolve(run, (BANDIT,))
    data, spec = bandit_data(), Spec(1, 1, 2, 256, 1)
    rl = registry.load("backbone", backbone).make(config.backbone, 2, spec)
    made = registry.load("algorithm", algorithm).make(config.algo, config.train, spec, rl)
    hp = row(config_lib.hyper_params(config), 0)
    state = jax.jit(made.init)(hp, jax.random.key(0), data)
    for stage in made.stages:
        chunk = jax.jit(sweep.make_chunk(stage))
        state, metrics = chunk(state, jax.random.key(1), data, jnp.int32(0), stage.num_steps)
        check_finite(stage.name, metrics)
    held_out = data_lib.rl_batch(data, jnp.arange(2), 20, jax.random.key(5))
    z = learner.encode_tasks(made.rep, state.rep, held_out, jnp.arange(2), jax.random.key(0))
    arms = jnp.stack([rl.mode(state.rl, jnp.zeros(1), z[k])[0] for k in range(2)])
    pays = jnp.array([1.0, -1.0])
    # the best return is 1, the worst -1; what ignores its context earns 0 over both tasks, and a
    # regularised optimum lies a little inside the arms
    right, wrong = pays * arms, pays * arms[::-1]
    assert (right > 0.5).all(), (right, z)
    assert (wrong < -0.5).all(), (wrong, z)


def test_the_delayed_actor_stays_a_branch_under_vmap(tiny):
    """Mapped over runs, `cond` on the step is no `select`: odd steps compute no actor."""
    made = tiny("gentle", suite="gentle")
    chunk = sweep.over_runs(sweep.make_chunk(made.algorithm.stages[1]), 2, None, in_turn=False)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    span = jnp.int32(0), jnp.int32(2)
    text = jax.jit(chunk).lower(made.states(), keys, made.train, *span).compile().as_text()
    branches = text.count(" conditional(")
    assert branches >= 2  # the actor, and relabelling
