"""Small experiments on random data: few tasks, short episodes, the sizes of the preset smoke."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import assembly, errors, evaluation, registry, rng
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.config import RunConfig
from gentle_jax.envs import base
from gentle_jax.types import Algorithm, Env, Spec

HORIZON, NUM_TRAIN, NUM_TEST = 5, 4, 2
FIELDS = ("obs", "action", "reward", "context_reward", "next_obs", "terminal")
PROBE = "gentle_jax.testing.probe"
OTHER_SIZES = (
    "these tests take small sizes; where an algorithm needs others, its module says which: "
    'PRESETS = {"smoke": {"algo.KEY": VALUE}}'
)


class Small(NamedTuple):
    """A small experiment, as a command would build it."""

    config: config_lib.ExperimentConfig
    env: Env  # normalised where the suite says so
    data: data_lib.Dataset  # of all tasks, training tasks first
    spec: Spec
    algorithm: Algorithm
    protocols: dict
    hp: dict  # leaves [2]: two runs

    def states(self) -> Any:
        """Returns the initial states of two runs, leaves [2, ...]."""
        keys = jax.random.split(rng.key(0), 2)
        return jax.jit(jax.vmap(self.algorithm.init, (0, 0, None)))(self.hp, keys, self.data)


def suite_of(env: str) -> str:
    """Returns the suite that an environment is tested in: the usual one, or its first."""
    suites = registry.load("environment", env).SETTINGS
    return RunConfig.suite if RunConfig.suite in suites else next(iter(suites))


def settings_of(env: str) -> dict:
    """Returns the dotted overrides that make an environment small."""
    whole = assembly.make_env(env, suite_of(env))
    return {
        "env.num_train": min(NUM_TRAIN, len(whole.train_ids)),
        "env.num_test": min(NUM_TEST, len(whole.test_ids)),
        "env.horizon": min(HORIZON, whole.horizon),
    }


def make(
    algorithm: str = PROBE, backbone: str = "", env: str = RunConfig.env, protocol: str = ""
) -> Small:
    """Returns the Small of some names of the registry, or dotted ones."""
    protocols = {"protocols": (protocol,)} if protocol else {}
    sizes = settings_of(env)
    steps = 2 * sizes["env.horizon"]
    sizes |= {"eval.online_steps": steps, "eval.scored_steps": steps, "eval.num_pairs": 3}
    sizes |= {"train.latent_dim": 6, "backbone.depth": 1}
    own = _smoke_sizes(algorithm, env)
    sizes = {key: value for key, value in sizes.items() if _has(backbone, key) and key not in own}
    config = assembly.make_config(
        algorithm, "smoke", sizes, env=env, suite=suite_of(env), backbone=backbone, **protocols
    )
    plain = assembly.env_of(config)
    data = data_lib.take_tasks(random_data(plain), assembly.task_order(plain))
    seen = plain
    if config.train.normalize_obs:
        scale = data_lib.statistics(data, len(plain.train_ids))
        data, seen = data_lib.normalize(data, *scale), base.normalize(plain, *scale)
    spec = assembly.spec_of(config, seen, data)
    try:
        built, protocols = assembly.make_algorithm(config, seen, spec)
    except errors.UserError as error:
        error.add_note(OTHER_SIZES)
        raise
    hp = config_lib.hyper_params(config, ({}, {}))
    data = jax.tree.map(jnp.asarray, data)
    return Small(config, seen, data, spec, built, protocols, hp)


def _smoke_sizes(algorithm, env):
    """Returns the keys that an algorithm's own preset sets: it may not run with other sizes."""
    table = getattr(registry.load("algorithm", algorithm), "PRESETS", {})
    run = config_lib.fill_names(RunConfig(algorithm=algorithm, suite=suite_of(env), env=env))
    names = ("smoke", *(f"smoke:{name}" for name in (run.fidelity, run.suite, run.env)))
    return {key for name in names for key in table.get(name, {})}


def _has(backbone, key):
    """Whether a backbone has the setting of a dotted key; other sections have theirs."""
    section, _, field = key.partition(".")
    if section != "backbone" or not backbone:
        return True
    return field in registry.load("backbone", backbone).Config.__dataclass_fields__


def random_data(
    env: Env, levels: int = 2, episodes: int = 3, timeout_is_terminal: bool = True
) -> data_lib.Dataset:
    """Returns a numpy Dataset of uniform random actions in every task of `env`."""

    def policy(obs, key, index):
        return jax.random.uniform(key, (env.action_dim,), minval=-1.0, maxval=1.0)

    num_tasks = jax.tree.leaves(env.tasks)[0].shape[0]
    one = jax.vmap(lambda task, key: evaluation.rollout(env, task, policy, key), (None, 0))
    keys = jax.random.split(rng.key(1), (num_tasks, levels * episodes))
    rows, mask = jax.jit(jax.vmap(one))(env.tasks, keys)
    split = lambda x: np.asarray(x).reshape((num_tasks, levels, episodes) + x.shape[2:])
    fields = {name: split(getattr(rows, name)) for name in FIELDS}
    return data_lib.from_episodes(fields, split(mask), timeout_is_terminal)


def z_dim(config: config_lib.ExperimentConfig) -> int:
    """Returns the backbone's Z of a config."""
    module = registry.load("algorithm", config.run.algorithm)
    own = getattr(module, "z_dim", lambda algo, train: train.latent_dim)
    return own(config.algo, config.train)
