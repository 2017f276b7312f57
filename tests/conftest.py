"""Pieces that tests share: strict numerics, toy data, tiny experiments.

`tiny` builds what an experiment builds, through `config.resolve` and the registry, only smaller:
few tasks, a short horizon, narrow networks. Compilation dominates the time of this suite, so tests
jit few functions, share them through module fixtures, and evaluate losses eagerly.
"""

import gc
import os
import tempfile
from importlib import metadata
from typing import NamedTuple

import jax
import jaxtyping
import numpy as np
import pytest

# shapes and types in signatures are checked: some microseconds a call, at tracing only; the flag
# `--jaxtyping-packages` refuses a package that an installed plugin has imported, as ours has
jaxtyping.install_import_hook("gentle_jax", "beartype.beartype")

from gentle_jax import assembly, registry
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.envs import base
from gentle_jax.testing.small import FIELDS, random_data  # noqa: F401  other tests import FIELDS
from gentle_jax.types import Spec

# compiling is nearly all that this suite does: tiny programs need no optimised code, and the older
# generator of loops compiles two to three times as fast; processes that tests start inherit both
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
XLA_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# XLA stops at a flag that it does not know: other versions do without
if metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip()
jax.config.update("jax_num_cpu_devices", 2)  # what is split over devices is tested on every machine

HORIZON, NUM_TRAIN, NUM_TEST = 5, 4, 2
TINY = {
    "train.num_steps": 20,
    "train.meta_batch": 3,
    "train.batch_size": 8,
    "train.context_size": 8,
    "train.latent_dim": 3,
    "train.num_evals": 2,
    "backbone.width": 8,
    "backbone.depth": 1,
    "eval.online_steps": 3 * HORIZON,
    "eval.context_episodes": 1,
    "eval.scored_steps": 2 * HORIZON,
    "eval.num_repeats": 1,
    "eval.reference_episodes": 1,
    "eval.num_candidates": 0,
    "eval.fragment_steps": 0,
    "eval.num_pairs": 3,
    "focal.width": 8,
    "focal.depth": 1,
    "csro.width": 8,
    "csro.depth": 1,
    "er_trl.width": 8,
    "er_trl.depth": 1,
    "er_trl.discriminator_width": 8,
    "er_trl.discriminator_depth": 1,
    "er_trl.noise_dim": 3,
    "er_trl.rounds": 2,
    "unicorn.width": 8,
    "unicorn.depth": 1,
    "unicorn.decoder_width": 8,
    "unicorn.decoder_depth": 1,
    "ctmrl.encoder_width": 8,
    "ctmrl.encoder_depth": 1,
    "ctmrl.width": 8,
    "ctmrl.depth": 1,
    "ctmrl.num_codes": 2,
    "ctmrl.num_iterations": 10,
    "idaq.width": 8,
    "idaq.depth": 1,
    "idaq.model_width": 8,
    "idaq.model_depth": 1,
    "anole.width": 8,
    "anole.fragment_steps": 0,
    "anole.depth": 1,
    "gentle.width": 8,
    "gentle.depth": 1,
    "gentle.num_cross_tasks": 1,
    "gentle.relabel_rows": 16,
    "gentle.relabel_every": 4,
    "gentle.ensemble_size": 2,
    "gentle.model_batch": 16,
    "gentle.max_epochs": 2,
    "corro.width": 8,
    "corro.cvae_width": 8,
    "corro.code_dim": 2,
    "corro.num_negatives": 2,
    "corro.contrast_batch": 4,
    "corro.cvae_batch": 8,
    "corro.cvae_steps": 20,
    "corro.contrast_steps": 20,
    "borel.width": 8,
    "borel.obs_features": 4,
    "borel.action_features": 4,
    "borel.reward_features": 4,
    "borel.decoder_width": 8,
    "borel.num_episodes": 2,
    "borel.vae_tasks": 2,
    "borel.vae_sequences": 3,
    "borel.vae_steps": 10,
    "borel.posteriors_at_once": 4,
}
# modules by the time they take; the others follow as they are
LONGEST = (
    "contracts", "physics", "run", "render", "predicted_rewards", "multihost", "locomotion",
    "accelerator_suite", "benchmarks", "envs", "protocols", "remote", "collect", "ctmrl", "cli",
    "backbones", "grids", "torch_step", "soak", "networks", "sweep", "data_command",
)  # fmt: skip
OWN = {"borel": {"train.latent_dim": 4}}  # an algorithm's sizes of other sections


class Tiny(NamedTuple):
    """A small experiment, as `experiments` would build it."""

    config: config_lib.ExperimentConfig
    env: object  # normalised where the suite says so
    train: data_lib.Dataset
    test: data_lib.Dataset
    spec: Spec
    algorithm: object
    protocols: dict
    hp: dict  # leaves [2]: two runs

    def states(self, num_runs=2):
        """Initial states of some runs, leaves [num_runs, ...]."""
        keys = jax.random.split(jax.random.key(0), num_runs)
        hp = jax.tree.map(lambda x: x[:num_runs], self.hp)
        return jax.jit(jax.vmap(self.algorithm.init, (0, 0, None)))(hp, keys, self.train)

    def state(self):
        """The initial state of one run."""
        hp = jax.tree.map(lambda x: x[0], self.hp)
        return jax.jit(self.algorithm.init)(hp, jax.random.key(0), self.train)


def pytest_configure(config):
    """Gives the processes of a run one compile cache, which goes with it, unless there is one."""
    if not hasattr(config, "workerinput") and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        jax.config.update("jax_compilation_cache_dir", folder.name)


def pytest_collection_modifyitems(items):
    """Puts the longest modules first: what begins last must not leave a process alone."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem.removeprefix("test_"), len(place)))


def pytest_collection_finish():
    """Collects garbage seldom: tracing makes many objects, and searching them all takes time."""
    gc.freeze()
    gc.set_threshold(100_000)


_DATA = {}


def small_env(suite, name):
    """Returns (env with few tasks and a short horizon, its toy Dataset of all tasks)."""
    env = registry.load("environment", name).make(suite)
    ids = np.concatenate([env.train_ids[:NUM_TRAIN], env.test_ids[:NUM_TEST]])
    env = env._replace(
        horizon=HORIZON,
        tasks=jax.tree.map(lambda x: x[ids], env.tasks),
        parameters=env.parameters[ids],
        train_ids=np.arange(NUM_TRAIN),
        test_ids=np.arange(NUM_TRAIN, NUM_TRAIN + NUM_TEST),
    )
    if (suite, name) not in _DATA:
        _DATA[suite, name] = random_data(env)
    return env, _DATA[suite, name]


def make_tiny(algorithm, suite="ctmrl", env="point_robot", backbone="", fidelity="", **overrides):
    """Returns a Tiny; `overrides` are dotted keys, as in **{"train.meta_batch": 2}."""
    run = config_lib.RunConfig(
        algorithm=algorithm, suite=suite, env=env, backbone=backbone, fidelity=fidelity
    )
    config = config_lib.resolve(run, (TINY, OWN.get(algorithm, {})), overrides)
    env, dataset = small_env(suite, env)
    train = data_lib.take_tasks(dataset, env.train_ids)
    test = data_lib.take_tasks(dataset, env.test_ids)
    if config.train.normalize_obs:
        mean, std = data_lib.statistics(train)
        train, test = (data_lib.normalize(d, mean, std) for d in (train, test))
        env = base.normalize(env, mean, std)
    spec = assembly.spec_of(config, env, train)
    built, protocols = assembly.make_algorithm(config, env, spec)
    hp = config_lib.hyper_params(config, ({}, {}))
    return Tiny(config, env, train, test, spec, built, protocols, hp)


@pytest.fixture(scope="session")
def tiny():
    """The factory of small experiments: `make_tiny`."""
    return make_tiny


@pytest.fixture(scope="session")
def toy_dataset():
    """The factory of random data of an Env: `random_data`."""
    return random_data


@pytest.fixture
def strict_rank():
    """Implicit rank promotion raises: a forgotten axis is an error, not a broadcast.

    Scoped to the tests that ask for it: critics [2, N] against targets [N] broadcast on purpose.
    """
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """The user's compile cache stays as it is, and commands run in an empty folder."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
