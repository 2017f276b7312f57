"""IDAQ: FOCAL's loss on tasks drawn with replacement; models that the encoder does not notice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import assembly, errors, registry
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.types import MetaBatch

MEMBERS = 3
TASKS = np.array([1, 0, 1])
HP = {"focal_weight": 10.0, "lr": 1e-3, "model_lr": 1e-3}


def louder(trained, scale):
    return trained.replace(params=jax.tree.map(lambda x: scale * x, trained.params))


@pytest.fixture(scope="module")
def made(tiny):
    """(Tiny, a louder initial state of its representation, MetaBatch, one jitted update)."""
    made = tiny("idaq", **{"idaq.ensemble_size": MEMBERS})
    rep = made.state().rep
    models = {"models": louder(rep.own["models"], 3)}
    encoder = {"encoder": louder(rep.trained["encoder"], 20)}
    rep = rep.replace(trained=encoder, own=rep.own | models)
    data, ids = jax.tree.map(jnp.asarray, made.train), jnp.asarray(TASKS)
    context, rows = (data_lib.context_rows(data, ids, 8, jax.random.key(i)) for i in (0, 1))
    update = jax.jit(made.algorithm.rep.update)

    def step(rep, batch, **hp):
        hp = {name: jnp.float32(value) for name, value in (HP | hp).items()}
        return update(rep, hp, batch, None, None, jax.random.key(0), jnp.int32(0))

    return made, rep, MetaBatch(rows, context, ids), step


def z_of(rep, rows):
    columns = [rows.obs, rows.action, rows.context_reward[..., None]]
    return np.tanh(ref.mlp(rep.params["encoder"], np.concatenate(columns, -1), 1)).mean(1)


def predictions(rep, z, rows):
    """(r, s' - s) [member, ..., 1 + obs] of every member at z."""
    z = np.broadcast_to(z, (*rows.reward.shape, z.shape[-1]))
    seen = np.concatenate([z, rows.obs, rows.action], -1)
    member = lambda i: jax.tree.map(lambda x: x[i], rep.own["models"].params)
    return np.stack([ref.mlp(member(i), seen, 1) for i in range(MEMBERS)])


def test_both_losses_are_those_of_the_equations(made):
    _, rep, batch, step = made
    _, metrics = step(rep, batch)
    z = z_of(rep, batch.context)
    np.testing.assert_allclose(metrics["focal_loss"], 10 * ref.focal(z, TASKS), rtol=1e-4)
    guess = predictions(rep, z[:, None], batch.rl)
    change = np.asarray(batch.rl.next_obs) - np.asarray(batch.rl.obs)
    error = ((guess[..., 0] - batch.rl.reward) ** 2).mean() + (
        (guess[..., 1:] - change) ** 2
    ).mean()
    np.testing.assert_allclose(metrics["model_loss"], error, rtol=1e-4)


def test_models_leave_the_encoder_alone(made):
    _, rep, batch, step = made
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    usual, _ = step(rep, batch)
    loud = rep.replace(own={**rep.own, "models": louder(rep.own["models"], 5)})
    other, _ = step(loud, batch, model_lr=0.1)
    assert same(other.trained, usual.trained)
    # without the metric nothing moves the encoder, and the models still learn
    still, first = step(rep, batch, focal_weight=0.0)
    assert same(still.params, rep.params)
    assert not same(still.own["models"].params, rep.own["models"].params)
    _, second = step(still, batch, focal_weight=0.0)
    assert float(second["model_loss"]) < float(first["model_loss"])


def test_members_learn_apart_from_each_other(made):
    _, rep, batch, step = made
    usual, _ = step(rep, batch)
    models = rep.own["models"]
    of = lambda tree, i: jax.tree.map(lambda x: x[i], tree.own["models"].params)
    louder_second = jax.tree.map(lambda x: x.at[1].mul(2.0), models.params)
    other, _ = step(
        rep.replace(own={**rep.own, "models": models.replace(params=louder_second)}), batch
    )
    for a, b in zip(jax.tree.leaves(of(usual, 0)), jax.tree.leaves(of(other, 0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_quantifiers_read(made):
    made, rep, batch, _ = made
    z = jnp.array([0.5, -1.0, 0.25])
    rows = jax.tree.map(lambda x: x[0], batch.rl)
    guess = predictions(rep, np.asarray(z), rows)
    reward = made.algorithm.rep.predict_reward(rep, z, rows)
    np.testing.assert_allclose(reward, guess[..., 0].mean(0), rtol=1e-4, atol=1e-5)
    spread = made.algorithm.rep.uncertainty(rep, z, rows)
    wanted = guess[..., 0].std(0) + guess[..., 1:].std(0).mean(-1)
    np.testing.assert_allclose(spread, wanted, rtol=1e-3, atol=1e-5)
    assert spread.shape == (8,) and (spread > 0).all()


def test_one_member_has_no_spread_and_the_quantifier_is_refused(tiny):
    assert tiny("idaq").algorithm.rep.uncertainty is None
    config = assembly.make_config("idaq", "smoke", {"eval.quantifier": "ensemble"})
    with pytest.raises(errors.UserError) as error:
        assembly.check(config)
    text = "protocol 'in_distribution' needs 'uncertainty', which algorithm 'idaq' lacks with these"
    assert str(error.value).startswith(text) and "\n" not in str(error.value)
    twelve = registry.load("algorithm", "idaq").VARIANTS["idaq_ensemble"]
    assert twelve == {"ensemble_size": 12}
    overrides = {"eval.quantifier": "ensemble"} | {f"algo.{k}": v for k, v in twelve.items()}
    assembly.check(assembly.make_config("idaq", "smoke", overrides))


def test_settings_of_every_environment():
    for env in registry.ENVIRONMENTS:
        for suite in registry.load("environment", env).SETTINGS:
            runs = [
                config_lib.RunConfig(algorithm=a, suite=suite, env=env) for a in ("idaq", "focal")
            ]
            config, focal = map(config_lib.resolve, runs)
            assert config.train.task_draw == "replace"
            assert config.run.protocols[0] == "in_distribution"
            sizes = lambda c: (c.algo.width, c.algo.depth, c.algo.use_next_obs, c.algo.focal_weight)
            assert sizes(config) == sizes(focal)
            assert config.train == dataclasses.replace(focal.train, task_draw="replace")
