"""Which rewards algorithms predict where contexts see sparse ones, and what they are held against.

In the data the dense reward is a coordinate of the state and the context reward minus it, so that
the sign of what was learned tells.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from gentle_jax import needs, registry, sweep
from gentle_jax.protocols import base, in_distribution, noisy_preferences
from gentle_jax.types import Offline, Outcome

OFFER = [
    name for name in registry.ALGORITHMS if "predict_reward" in needs.offers_of("algorithm", name)
]
FAST = {
    "algo.lr": 3e-2, "borel.vae_steps": 150, "gentle.relabel": False, "idaq.model_lr": 3e-2,
    "ctmrl.num_iterations": 150, "ctmrl.use_kmeans": False, "anole.preference_weight": 10.0,
}  # fmt: skip


@pytest.mark.parametrize("algorithm", OFFER)
def test_rewards_are_of_the_kind_that_the_bundle_says(tiny, algorithm):
    made = tiny(algorithm, env="sparse_point_robot", backbone="td3_bc", **FAST)
    rows = made.train.rows
    obs = np.random.default_rng(0).normal(size=rows.obs.shape).astype(np.float32)
    rows = rows._replace(obs=obs, next_obs=obs, reward=obs[..., 0], context_reward=-obs[..., 0])
    data, state = jax.tree.map(jnp.asarray, made.train.replace(rows=rows)), made.state()
    for stage in made.algorithm.stages:
        chunk = jax.jit(sweep.make_chunk(stage))
        steps = min(stage.num_steps, 150) if not stage.evaluate else 150
        state, _ = chunk(state, jax.random.key(1), data, jnp.int32(0), steps)

    @jax.jit
    def predict(state, data, key):
        ids = jnp.arange(2)
        z = base.of_training_tasks(made.algorithm, state, made.env, data, ids, key)[1][0]
        one = jax.tree.map(lambda x: x[0], data.rows)
        return made.algorithm.rep.predict_reward(state.rep, z, one)

    found = np.corrcoef(predict(state, data, jax.random.key(2)), obs[0, :, 0])[0, 1]
    sign = -1 if made.algorithm.rep.predicts_context_reward else 1
    assert sign * found > 0.5, found


def halved(reward):
    return 0.5 * reward


@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_predicted_meets_rewards_of_its_kind(sparse):
    """in_distribution compares with context rewards, noisy_preferences with either kind."""
    env = toys.env(4)._replace(context_reward=halved)
    rewards = jnp.array([[1.0, 3.0]])
    guess = halved(rewards[0]) if sparse else rewards[0]
    agent = toys.agent(predict_reward=lambda state, z, rows: guess, predicts_context_reward=sparse)
    rows = toys.stored((2,)).rows._replace(context_reward=halved(rewards))
    one = Outcome(jnp.zeros(()), jax.tree.map(lambda x: x[0], rows), jnp.ones(2))
    judge, _ = in_distribution.QUANTIFIERS["prediction_error"]
    assert float(judge(agent, toys.STATE, env, one, jnp.zeros(4))) == 0.0
    kind = base.predicted_kind(agent, env)
    np.testing.assert_array_equal(kind(rewards)[0], guess)
    plain = base.predicted_kind(agent, env._replace(context_reward=None))
    np.testing.assert_array_equal(plain(rewards), rewards)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_oracle_compares_returns_of_the_kind_that_is_predicted(monkeypatch, sparse):
    """A fragment's dense return is 1 + 2 + 3 + 4; what contexts see is minus that."""
    env = toys.env(4)._replace(context_reward=lambda reward: -reward)
    agent = toys.agent(predicts_context_reward=sparse)
    asked = []

    def search(config, guess, true, key):
        asked.append(true)
        return jnp.zeros((), jnp.int32)

    monkeypatch.setattr(noisy_preferences, "search", search)
    offline = Offline(toys.NO_DATA, toys.stored((4,)))
    toys.make("noisy_preferences", env, num_pairs=4, fragment_steps=4, online_steps=4).run(
        agent, toys.STATE, env, jnp.zeros(()), offline, jax.random.key(0)
    )
    np.testing.assert_array_equal(np.asarray(asked[0]), -10.0 if sparse else 10.0)
