"""ANOLE-off: the table of task vectors, the reward head, who learns from what."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from conftest import HORIZON, NUM_TRAIN

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import errors, losses, registry
from gentle_jax.algorithms import anole
from gentle_jax.types import MetaBatch

HP = {"preference_weight": 10.0, "kl_weight": 0.1, "lr": 1e-3}
TASKS = np.array([2, 0, 1])
STEPS = 3


@pytest.fixture(scope="module")
def made(tiny):
    """(Tiny, a representation's state of loud features, data, step(rep, dz, **hp))."""
    made = tiny("anole", **{"anole.fragment_steps": STEPS})
    rep = made.state().rep
    head = rep.trained["preference"]
    params = jax.tree.map(lambda x: 10 * x, head.params)
    table = rep.trained["table"]
    other = table.params | {"log_std": -0.5 + 0.1 * table.params["mean"]}
    trained = {"preference": head.replace(params=params), "table": table.replace(params=other)}
    rep = rep.replace(trained=trained)
    data = jax.tree.map(jnp.asarray, made.train)
    rows = data_lib.context_rows(data, jnp.asarray(TASKS), 8, jax.random.key(1))
    batch = MetaBatch(rows, rows, jnp.asarray(TASKS), jax.random.key(4))
    update = jax.jit(made.algorithm.rep.update)

    def step(rep, dz=0.0, **hp):
        hp = {name: jnp.float32(value) for name, value in (HP | hp).items()}
        dz = jnp.broadcast_to(jnp.float32(dz), (3, 3))
        return update(rep, hp, batch, dz, data, jax.random.key(7), jnp.int32(0))

    return made, rep, data, step


def of_batch(rep):
    """(mean, log_std, z) [T, Z] of the batch, by NumPy and the batch's key."""
    table = {name: np.asarray(x)[TASKS] for name, x in rep.params["table"].items()}
    noise = np.asarray(jax.random.normal(jax.random.key(4), (3, 3)))
    return table["mean"], table["log_std"], table["mean"] + np.exp(table["log_std"]) * noise


def guess(rep, z, rows):
    """tanh(phi . z) by NumPy; z [..., Z] as the rows."""
    seen = np.concatenate([rows.obs, rows.action], -1)
    return np.tanh((ref.mlp(rep.params["preference"], seen, 1) * z).sum(-1))


# --- losses by hand


def test_preference_by_hand():
    # equal returns: log 2, whichever is better; 2 against 0 and better: log(1 + e^-2)
    ask = lambda a, b, better: float(
        losses.preference(jnp.array([a]), jnp.array([b]), jnp.array([better]))
    )
    assert ask(1.0, 1.0, True) == pytest.approx(math.log(2.0))
    assert ask(1.0, 1.0, False) == pytest.approx(math.log(2.0))
    assert ask(2.0, 0.0, True) == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert ask(2.0, 0.0, False) == pytest.approx(2 + math.log(1 + math.exp(-2.0)))
    assert ask(-60.0, 60.0, True) == pytest.approx(120.0)  # no overflow


def test_preference_of_exchanged_fragments_is_the_same_and_its_slope_is_the_error():
    random = np.random.default_rng(0)
    a, b = (jnp.asarray(random.normal(size=5), jnp.float32) for _ in range(2))
    better = jnp.array([True, False, True, True, False])
    swapped = losses.preference(b, a, ~better)
    np.testing.assert_allclose(losses.preference(a, b, better), swapped, rtol=1e-5)
    slope = jax.grad(losses.preference)(a, b, better)
    np.testing.assert_allclose(slope, (1 / (1 + np.exp(b - a)) - better) / 5, rtol=1e-4)


def test_losses_are_those_of_the_equations(made):
    _, rep, data, step = made
    _, metrics = step(rep)
    mean, log_std, z = of_batch(rep)
    kl = 0.5 * (mean**2 + np.exp(2 * log_std) - 2 * log_std - 1).mean()
    np.testing.assert_allclose(metrics["kl_loss"], 0.1 * kl, rtol=1e-5)
    key = jax.random.split(jax.random.key(7), (3, 3))[0, 1]  # the first term's key of its loss
    rows, mask = data_lib.fragments(data, jnp.asarray(TASKS), 4, STEPS, key)
    assert (np.asarray(mask) == 1).all()
    returns = guess(rep, z[:, None, None], rows).sum(-1)
    true = np.asarray(rows.reward).sum(-1)
    total, pairs = 0.0, 0
    for task in range(3):
        for i in range(4):
            for j in range(i + 1, 4):
                p = 1 / (1 + math.exp(returns[task, j] - returns[task, i]))
                total -= math.log(p if true[task, i] >= true[task, j] else 1 - p)
                pairs += 1
    np.testing.assert_allclose(metrics["preference_loss"], 10 * total / pairs, rtol=1e-4)


def test_kl_of_the_prior_is_zero_and_of_a_moved_mean_one_half():
    table = {"mean": jnp.array([[0.0], [1.0]]), "log_std": jnp.zeros((2, 1))}

    def kl(task_id):
        batch = MetaBatch(None, None, jnp.array(task_id))
        seen = types.SimpleNamespace(params={"table": table}, batch=batch)
        return float(anole._kl(None, None, {"kl_weight": 1.0}, seen, None))

    assert kl([0]) == 0.0 and kl([1]) == 0.5 and kl([0, 1]) == 0.25


# --- the table


def test_z_is_drawn_from_the_table_with_the_key_that_the_update_gets(made):
    made, rep, data, _ = made
    context = data_lib.context_rows(data, jnp.asarray(TASKS), 8, jax.random.key(9))
    z = made.algorithm.rep.encode(rep, context, jnp.asarray(TASKS), jax.random.key(4))
    np.testing.assert_allclose(z, of_batch(rep)[2], rtol=1e-6)


def test_a_task_that_was_not_trained_on_has_the_prior_z(made):
    made, rep, data, _ = made
    bundle, rows = (
        made.algorithm.rep,
        data_lib.context_rows(data, jnp.arange(2), 8, jax.random.key(9)),
    )
    z = bundle.encode(rep, rows, jnp.array([NUM_TRAIN, NUM_TRAIN + 5]), jax.random.key(4))
    np.testing.assert_array_equal(z, 0.0)
    one = jax.tree.map(lambda x: x[0], rows)
    belief = bundle.extend(rep, bundle.prior(rep), one, jnp.ones(8))
    np.testing.assert_array_equal(bundle.sample(rep, belief, jax.random.key(0)), 0.0)


def test_the_table_begins_as_the_prior():
    table = anole.table(4000, 3).init(jax.random.key(0))["table"]
    assert abs(float(table["mean"].mean())) < 0.05 and abs(float(table["mean"].std()) - 1) < 0.05
    np.testing.assert_array_equal(table["log_std"], 0.0)


# --- gradients


def moved(before, after):
    """Which rows of the table moved, and whether the head did."""
    differs = lambda name: np.asarray(after.params["table"][name] != before.params["table"][name])
    head = jax.tree.map(lambda a, b: bool((a != b).any()), *(
        x.params["preference"] for x in (before, after)
    ))  # fmt: skip
    rows = differs("mean").any(1) | differs("log_std").any(1)
    return rows.tolist(), any(jax.tree.leaves(head))


OFF = {"preference_weight": 0.0, "kl_weight": 0.0}
BATCH = [True, True, True, False]  # tasks 2, 0, 1 of four


@pytest.mark.parametrize(
    "on,dz,head",
    [({"preference_weight": 10.0}, 0.0, True), ({"kl_weight": 0.1}, 0.0, False), ({}, 1.0, False)],
)
def test_all_three_losses_reach_the_batchs_rows_and_only_preferences_the_head(made, on, dz, head):
    _, rep, _, step = made
    assert moved(rep, step(rep, **OFF)[0]) == ([False] * NUM_TRAIN, False)
    assert moved(rep, step(rep, dz, **OFF | on)[0]) == (BATCH, head)


def test_the_critics_gradient_moves_the_mean_against_it(made):
    _, rep, _, step = made
    after = step(rep, 1.0, **OFF)[0].params["table"]["mean"]
    # Adam's first step: the rate against the sign of the gradient
    np.testing.assert_allclose((after - rep.params["table"]["mean"])[:3], -1e-3, rtol=1e-2)


# --- the head


def test_predicted_rewards_are_those_that_order_fragments(made):
    made, rep, data, _ = made
    rows = jax.tree.map(
        lambda x: x[0], data_lib.context_rows(data, jnp.arange(1), 8, jax.random.key(9))
    )
    z = jnp.array([0.5, -2.0, 1.0])
    found = made.algorithm.rep.predict_reward(rep, z, rows)
    np.testing.assert_allclose(found, guess(rep, np.asarray(z), rows), rtol=1e-4, atol=1e-6)
    # a larger z exaggerates, z = 0 tells nothing, -z turns the order round
    flipped = made.algorithm.rep.predict_reward(rep, -z, rows)
    np.testing.assert_allclose(flipped, -found, rtol=1e-5)


# --- settings


def test_fragments_are_compared_so_there_are_two_at_least(tiny):
    with pytest.raises(errors.UserError, match="num_fragments is 1: expected at least 2 to"):
        tiny("anole", **{"anole.num_fragments": 1})


def test_fragments_are_one_horizon_by_default_and_never_longer(tiny, monkeypatch):
    made, drawn = tiny("anole"), []
    draw = data_lib.fragments

    def fragments(*args):
        rows, mask = draw(*args)
        drawn.append(mask.shape)
        return rows, mask

    monkeypatch.setattr(data_lib, "fragments", fragments)
    step = made.algorithm.stages[-1].step
    jax.eval_shape(step, made.state(), made.train, jax.random.key(0), jnp.int32(0))
    assert drawn and set(drawn) == {(3, 4, HORIZON)}
    with pytest.raises(errors.UserError) as error:
        tiny("anole", **{"anole.fragment_steps": HORIZON + 1})
    assert str(error.value) == (
        "algo.fragment_steps is 6: expected at most 5, the horizon; pass "
        "--config.algo.fragment_steps=5, or 0 for up to 64"
    )


def test_settings_of_the_suites():
    module = registry.load("algorithm", "anole")
    for env in ("point_robot", "point_robot_wind", "sparse_point_robot", "ant_goal"):
        run = config_lib.RunConfig(algorithm="anole", env=env)
        config = config_lib.resolve(run)
        assert config.algo.fragment_steps == (20 if env == "point_robot_wind" else 0)
        assert (config.algo.kl_weight, config.algo.preference_weight) == (0.1, 10.0)
        assert config.run.protocols[0] == "noisy_preferences"
    environments = {(s, e) for e in registry.ENVIRONMENTS
                    for s in registry.load("environment", e).SETTINGS}  # fmt: skip
    assert module.SETTINGS.keys() <= environments
