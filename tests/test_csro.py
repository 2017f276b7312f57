"""CSRO: its weights, what its losses are, whom they train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import assembly, data, registry
from gentle_jax.types import MetaBatch


def config(env, suite="ctmrl"):
    return assembly.make_config("csro", preset="paper", env=env, suite=suite)


def louder(tree):
    """A tree with its floats times 20: networks are nearly silent at first."""
    return jax.tree.map(lambda x: 20 * x if x.dtype == jnp.float32 else x, tree)


@pytest.fixture(scope="module")
def made(tiny):
    """(Tiny, its jitted update, a louder state, a batch of three tasks)."""
    made = tiny("csro")
    state, ids = louder(made.state().rep), jnp.arange(3)
    context = data.context_rows(jax.tree.map(jnp.asarray, made.train), ids, 6, jax.random.key(1))
    return made, jax.jit(made.algorithm.rep.update), state, MetaBatch(context, context, ids)


def updated(made, **settings):
    """(state, metrics) after one update. Args: settings, other values of `hp`."""
    made, update, state, batch = made
    hp = {name: np.float32(values[0]) for name, values in made.hp["algo"].items()}
    hp |= {name: np.float32(value) for name, value in settings.items()}
    return update(state, hp, batch, jnp.zeros((3, 3)), None, jax.random.key(2), jnp.int32(0))


def test_published_weights():
    weights = {"point_robot": 25.0, "cheetah_vel": 10.0, "hopper_params": 25.0, "ant_goal": 50.0}
    assert {env: config(env).algo.club_weight for env in weights} == weights
    assert config("walker_params").algo.use_next_obs and not config("ant_goal").algo.use_next_obs
    assert config("point_robot").run.protocols[0] == "random_then_policy"
    gentle = {env: config(env, "gentle").algo for env in ("point_robot", "ant_dir")}
    assert {env: c.club_weight for env, c in gentle.items()} == {"point_robot": 25, "ant_dir": 10}
    assert {env: c.width for env, c in gentle.items()} == {"point_robot": 64, "ant_dir": 256}
    assert config("point_robot", "gentle").run.protocols[:2] == (
        "random_then_policy", "given_context",
    )  # fmt: skip


def test_the_losses_are_focals_and_the_bound_of_a_network_that_stepped_first(made):
    state, batch = made[2:]
    after, metrics = updated(made, lr=0.05)  # so that one step can be seen
    context = batch.context
    obs, action, reward = (np.asarray(x) for x in (context.obs, context.action, context.reward))
    row = np.concatenate([obs, action, reward[..., None]], -1)
    codes = np.tanh(ref.mlp(state.params["encoder"], row, 1))

    def heads(own):
        mean, raw = np.split(np.tanh(ref.mlp(own.params, row[..., :-1], 1)), 2, -1)
        return mean, np.log1p(np.exp(raw))

    before, stepped = heads(state.own["club"]), heads(after.own["club"])
    by_hand = {
        "focal_loss": 10.0 * ref.focal(codes.mean(1), [0, 1, 2]),
        "club_model_loss": 10.0 * ref.club_likelihood(codes, *before),
        "club_loss": 25.0 * ref.club_bound(codes, *stepped),
    }
    assert abs(25.0 * ref.club_bound(codes, *before) / by_hand["club_loss"] - 1) > 0.01
    assert metrics.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert abs(value) > 0.1
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3)


@pytest.mark.parametrize("variant", ["csro_no_min_mi", "csro_no_max_mi"])
def test_a_variant_lacks_one_loss(made, variant):
    (off,) = registry.load("algorithm", "csro").VARIANTS[variant].items()
    _, metrics = updated(made, **dict([off]))
    name = off[0].replace("weight", "loss")
    assert off[1] == 0.0 and float(metrics[name]) == 0.0
    assert all(float(value) != 0.0 for key, value in metrics.items() if key != name)
