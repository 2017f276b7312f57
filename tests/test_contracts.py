"""What every entry of the registry must keep, and what every method must be able to learn.

Compiling is the cost, so not every pair is tested in full: every algorithm is, with one backbone,
in each fidelity that differs from the others; every backbone is with two algorithms; every other
pair is built and its step traced, each algorithm's compiled with one more backbone. Toys stand
beside the registry: they declare the traits that no method has yet, and a trait is tested where it
is declared, its opposite where it is not.
"""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys_contracts
from conftest import Tiny, make_tiny

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import evaluation, learner, presets, registry, sweep
from gentle_jax.testing import algorithms, small
from gentle_jax.testing.trees import check_finite, check_shapes, louder, row, same, with_row
from gentle_jax.types import Spec

ALGORITHMS = (*registry.ALGORITHMS, *toys_contracts.TOYS)
MAIN = "td3_bc"  # the backbone of every algorithm's full test: the fastest to compile
TWO = ("focal", "toy_pooled")  # with every backbone: one ignores dz, one reads it
# a set encoder, a belief that moves; the others: their native protocol and given_context
EVERY_PROTOCOL = ("focal", "borel")
ONCE = (*registry.ALGORITHMS, "toy_filter")  # with every backbone, for one step at least
# each algorithm on its own suite; BRAC on, though point robots switch it off
SUITE = collections.defaultdict(lambda: "ctmrl", gentle="gentle")  # a new algorithm needs no line
BRAC = {"brac_sac.use_brac": True}


def fidelities(algorithm):
    """Names of the fidelities that differ: "" is the default one."""
    if algorithm in toys_contracts.TOYS:
        return [""]
    module = registry.load("algorithm", algorithm)
    table = getattr(module, "FIDELITY", {})
    default = getattr(module, "DEFAULT_FIDELITY", "paper")
    return ["", *(name for name in table if table[name] != table.get(default))]


OTHERS = [backbone for backbone in registry.BACKBONES if backbone != MAIN]
FULL = [(name, MAIN, fidelity) for name in ALGORITHMS for fidelity in fidelities(name)]
FULL += [(name, backbone, "") for backbone in OTHERS for name in TWO]
# each algorithm's step is compiled with one more backbone, in turn, and traced with the others
REST = [
    (name, backbone, number % len(OTHERS) == turn)
    for turn, backbone in enumerate(OTHERS)
    for number, name in enumerate(name for name in ONCE if name not in TWO)
]


class Pair(NamedTuple):
    """An algorithm with a backbone, the states of two runs, and the training data."""

    made: Tiny
    states: Any
    data: data_lib.Dataset


@functools.cache
def pair(algorithm, backbone=MAIN, fidelity=""):
    """Returns the Pair; the tests of one algorithm share it."""
    made = make_tiny(algorithm, SUITE[algorithm], "point_robot", backbone, fidelity, **BRAC)
    return Pair(made, made.states(), jax.tree.map(jnp.asarray, made.train))


@pytest.fixture(scope="module", autouse=True)
def toys():
    """The toys are in the registry."""
    with pytest.MonkeyPatch.context() as patch:
        toys_contracts.register(patch)
        yield


@pytest.mark.parametrize("algorithm,backbone,fidelity", FULL)
def test_every_stage_keeps_the_contract(algorithm, backbone, fidelity):
    made, states, data = pair(algorithm, backbone, fidelity)
    last = made.algorithm.stages[-1]
    # stages before the last know no backbone: one is enough
    for stage in made.algorithm.stages if backbone == MAIN else [last]:
        taken = algorithms.take_steps(stage, states, data)
        states = taken.before
        algorithms.check_isolated(stage.name, taken, data)
        reads_dz = made.algorithm.rep.traits.critic_gradient
        algorithms.check_critics(stage.name, taken, data, reads_dz, stage is last)
        algorithms.check_sweeps(stage.name, taken, data, made.config)


@pytest.mark.parametrize("algorithm,backbone,compiled", REST)
def test_every_other_pair_takes_a_step(algorithm, backbone, compiled):
    # BRAC has a full test; K-means knows no backbone
    settings = {"ctmrl.use_kmeans": False, "brac_sac.use_brac": False}
    made = make_tiny(algorithm, SUITE[algorithm], "point_robot", backbone, **settings)

    def begin(hp, key, data):
        state = made.algorithm.init(hp, key, data)
        return state, *made.algorithm.stages[-1].step(state, data, key, jnp.int32(0))

    inputs = row(made.hp, 0), jax.random.key(0), made.train
    if not compiled:  # shapes and types of a step are all that a pair can get wrong by itself
        check_shapes(*jax.eval_shape(begin, *inputs)[:2])
        return
    state, after, metrics = jax.jit(begin)(*inputs)
    check_shapes(state, after)
    check_finite(backbone, after, state)
    check_finite(backbone, metrics)
    assert not same(after.rl, state.rl)


# --- what z is


@functools.cache
def seen(algorithm):
    made, states, data = pair(algorithm)
    sizes = made.spec.num_train_tasks, made.env.obs_dim
    return algorithms.look(made.algorithm, *sizes, row(states, 0), data)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_z_depends_on_its_own_context_only_or_on_none(algorithm):
    algorithms.check_z_of_own_context(seen(algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_z_lies_within_one_unless_it_is_unbounded(algorithm):
    algorithms.check_z_range(seen(algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_prior_z_is_zero_unless_it_is_learned_and_the_backbone_takes_it(algorithm):
    algorithms.check_prior_z(seen(algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_beliefs_and_z_have_their_shapes(algorithm):
    made, states, data = pair(algorithm)
    size = small.z_dim(made.config)
    algorithms.check_beliefs(made.algorithm.rep, row(states.rep, 0), data, size)


def test_every_trait_is_declared_and_not_declared_by_some():
    declared = [seen(name).traits._asdict() for name in ALGORITHMS]
    for trait in declared[0]:
        assert {traits[trait] for traits in declared} == {True, False}, trait


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_protocols_run_on_every_algorithm_and_tasks_are_isolated(algorithm):
    made, states, _ = pair(algorithm)
    names = {"given_context"}
    if algorithm in EVERY_PROTOCOL:
        names = set(made.protocols)
    elif algorithm in registry.ALGORITHMS:
        names.add(made.config.run.protocols[0])
    protocols = {name: one for name, one in made.protocols.items() if name in names}
    assert tuple(made.protocols) == made.config.run.protocols and "given_context" in protocols
    evaluate = jax.jit(evaluation.make_evaluate(made.algorithm, made.env, protocols, 1))
    # loud networks, so that another context is another return
    state = louder(row(states, 0), 5)
    tasks = jax.tree.map(jnp.asarray, made.env.tasks)
    both = lambda *parts: jnp.asarray(np.concatenate(parts))
    offline = jax.tree.map(both, made.train, made.test)
    run = lambda offline: evaluate(state, jax.random.key(1), tasks, offline, jnp.int32(3))
    scores = run(offline)
    for name, protocol in protocols.items():
        path = scores[name].shown and scores[name].shown[0]  # of the first protocol only
        assert (path is None) == (name != next(iter(protocols)))
        for leaf in jax.tree.leaves(scores[name]._replace(shown=None)):
            assert leaf.shape == (len(offline.episode_start), protocol.num_episodes)
            assert np.isfinite(leaf).all()
        assert (np.diff(scores[name].cost.episodes) >= 0).all()
    returns = {name: one.returns for name, one in scores.items()}
    rows = offline.rows
    other = offline.replace(rows=with_row(rows, -1, jax.tree.map(lambda x: 0.9, rows)))
    changed = {name: one.returns for name, one in run(other).items()}
    assert evaluate._cache_size() == 1
    old, new = returns["given_context"], changed["given_context"]
    np.testing.assert_array_equal(new[:-1], old[:-1])
    assert np.array_equal(new[-1], old[-1]) == made.algorithm.rep.traits.no_context
    for name in set(protocols) - {"given_context"}:  # the others read no data of a test task
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
    "csro.depth": 1,
    "csro.use_next_obs": False,
    "er_trl.depth": 1,
    "er_trl.use_next_obs": False,
    "er_trl.discriminator_width": 16,
    "er_trl.discriminator_depth": 1,
    "er_trl.rounds": 2,
    "er_trl.gan_lr": 3e-3,
    "unicorn.depth": 1,
    "unicorn.use_next_obs": False,
    "unicorn.decoder_width": 16,
    "unicorn.decoder_depth": 1,
    "ctmrl.encoder_width": 16,
    "ctmrl.encoder_depth": 1,
    "ctmrl.depth": 1,
    "ctmrl.num_codes": 2,
    "ctmrl.use_kmeans": False,  # tested in test_ctmrl.py, and slow to compile
    "ctmrl.num_iterations": 10,
    "idaq.depth": 1,
    "idaq.model_depth": 1,
    "idaq.model_width": 16,
    "anole.depth": 1,
    "gentle.depth": 1,
    "gentle.num_cross_tasks": 1,
    "gentle.relabel_rows": 64,
    "gentle.relabel_every": 100,
    "gentle.ensemble_size": 2,
    "gentle.model_batch": 64,
    "gentle.max_epochs": 60,
    "gentle.model_lr": 1e-2,
    "corro.cvae_width": 16,
    "corro.code_dim": 2,
    "corro.cvae_steps": 500,
    "corro.cvae_lr": 1e-2,
    "corro.contrast_steps": 500,
    "corro.contrast_lr": 3e-3,
    "borel.num_episodes": 4,  # of one step each: the first belief of an episode is not the prior
    "borel.vae_steps": 400,
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


PROBES = [(name, MAIN) for name in registry.ALGORITHMS]
PROBES += [("focal", backbone) for backbone in OTHERS]


@pytest.mark.parametrize("algorithm,backbone", PROBES)
def test_only_the_context_tells_which_arm_pays(algorithm, backbone):
    suite = SUITE[algorithm]
    run = config_lib.RunConfig(algorithm=algorithm, suite=suite, backbone=backbone)
    module = registry.load("algorithm", algorithm)
    config = config_lib.resolve(run, (presets.for_all(BANDIT, module.Config),))
    data = bandit_data()
    spec = Spec(1, 1, 2, 256, 1, statistics=data_lib.summary(data, 2))
    z_dim = getattr(module, "z_dim", lambda algo, train: train.latent_dim)
    size = z_dim(config.algo, config.train)
    rl = registry.load("backbone", backbone).make(config.backbone, size, spec)
    made = module.make(config.algo, config.train, spec, rl)
    hp = row(config_lib.hyper_params(config), 0)
    state = jax.jit(made.init)(hp, jax.random.key(0), data)
    for stage in made.stages:
        chunk = jax.jit(sweep.make_chunk(stage))
        state, metrics = chunk(state, jax.random.key(1), data, jnp.int32(0), stage.num_steps)
        check_finite(stage.name, metrics)

    @jax.jit
    def choose(state, key):
        ids, k_rows, k_z = jnp.arange(2), *jax.random.split(key)
        held_out = data_lib.context_rows(data, ids, 20, k_rows)
        z = learner.encode_tasks(made.rep, state.rep, held_out, ids, k_z)
        return z, jax.vmap(lambda z: rl.mode(state.rl, jnp.zeros(1), z)[0])(z)

    z, arms = map(np.asarray, choose(state, jax.random.key(5)))
    if np.array_equal(z[0], z[1]):  # nothing tells it the task, not even a table: one arm for both
        assert made.rep.traits.no_context and arms[0] == arms[1]
        return
    pays = np.array([1.0, -1.0])
    # the best return is 1, the worst -1; what ignores its context earns 0 over both tasks, and a
    # regularised optimum lies a little inside the arms
    right, wrong = pays * arms, pays * arms[::-1]
    assert (right > 0.5).all(), (right, z)
    assert (wrong < -0.5).all(), (wrong, z)


def test_the_delayed_actor_stays_a_branch_under_vmap():
    """Mapped over runs, `cond` on the step is no `select`: odd steps compute no actor."""
    made, states, data = pair("gentle")
    chunk = sweep.over_runs(sweep.make_chunk(made.algorithm.stages[1]), 2, None, in_turn=False)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    span = jnp.int32(0), jnp.int32(2)
    text = jax.jit(chunk).lower(states, keys, data, *span).as_text()
    assert text.count("stablehlo.case") >= 2  # the actor, and relabelling
