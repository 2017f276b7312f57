"""Contracts of an algorithm: `--algo`, with `--backbone` and `--env` where these are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import rng
from gentle_jax.testing import algorithms, small
from gentle_jax.testing.trees import check_unshared, named, row, same


@pytest.fixture(scope="module")
def made(given):
    """The small experiment of the algorithm."""
    env = given.get("environment", config_lib.RunConfig.env)
    return small.make(given["algorithm"], given.get("backbone", ""), env)


@pytest.fixture(scope="module")
def states(made):
    """Two runs' initial states."""
    return made.states()


@pytest.fixture(scope="module")
def taken(made, states):
    """{stage: two steps of it}."""
    found, stages = {}, made.algorithm.stages
    assert stages, "`make` returns an Algorithm without a stage"
    for stage in stages:
        found[stage.name] = algorithms.take_steps(stage, states, made.data)
        states = found[stage.name].after  # a stage begins with what those before it have learned
    return found


@pytest.fixture(scope="module")
def seen(made, states):
    """What z is."""
    sizes = made.spec.num_train_tasks, made.spec.obs_dim
    return algorithms.look(made.algorithm, *sizes, row(states, 0), made.data)


def test_beliefs_and_z_have_their_shapes(made, states):
    rep, state = made.algorithm.rep, row(states.rep, 0)
    algorithms.check_beliefs(rep, state, made.data, small.z_dim(made.config))


def test_rows_with_mask_0_change_nothing(made, states):
    rep = made.algorithm.rep

    @jax.jit
    def z_of(state, data, filler):
        rows = algorithms.row_of_context(data, rng.key(0))
        mask = jnp.arange(rows.reward.shape[0]) < 3
        padded = lambda x: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, filler)
        belief = rep.extend(state, rep.prior(state), jax.tree.map(padded, rows), 1.0 * mask)
        return rep.sample(state, belief, rng.key(1))

    one, other = (z_of(row(states.rep, 0), made.data, jnp.float32(x)) for x in (0.0, 0.7))
    np.testing.assert_allclose(one, other, atol=1e-6, err_msg="`extend` counts rows with mask 0")


def test_stages_take_finite_steps_and_keep_the_state(taken):
    assert taken


def test_runs_do_not_depend_on_each_other(made, taken):
    for name, steps in taken.items():
        algorithms.check_isolated(name, steps, made.data)


def test_runs_side_by_side_are_runs_in_a_loop(made, taken):
    for stage in made.algorithm.stages:
        steps = taken[stage.name]
        alone, _ = jax.jit(stage.step)(row(steps.before, 0), made.data, steps.keys[0], jnp.int32(1))
        for (name, found), (_, expected) in zip(
            named(row(steps.after, 0)), named(alone), strict=True
        ):
            text = f"stage {stage.name!r}: {name} under vmap is not that of a single run"
            if jnp.issubdtype(found.dtype, jnp.floating):
                np.testing.assert_allclose(found, expected, 1e-3, 1e-4, err_msg=text)


def test_the_same_key_gives_the_same_step(made, taken):
    for name, steps in taken.items():
        again = steps.step(steps.before, made.data, steps.keys, jnp.int32(1))
        kept = same(again, (steps.after, steps.metrics))
        assert kept, f"stage {name!r}: two steps with one key differ; draw with jax.random only"


def test_the_same_key_gives_the_same_state(made, states):
    assert same(made.states(), states), "two states of one key differ; draw with jax.random only"


def test_the_state_can_be_donated(states):
    check_unshared("the initial state", {"rep": states.rep, "rl": states.rl})


def test_swept_floats_are_leaves(made, taken):
    check = lambda name: algorithms.check_sweeps(name, taken[name], made.data, made.config)
    moved = [check(name) for name in taken]
    own = [key for key in config_lib.swept_fields(made.config) if key.startswith("algo.")]
    text = f"{', '.join(own)} change no step: read them from `hp`, not `config`"
    assert any(moved) or not own, text


def test_critics_reach_the_representation_where_traits_say_so(made, taken):
    reads, names = made.algorithm.rep.traits.critic_gradient, list(taken)
    for name, steps in taken.items():
        algorithms.check_critics(name, steps, made.data, reads, name == names[-1])


def test_z_depends_on_its_own_context_or_on_none(seen):
    algorithms.check_z_of_own_context(seen)


def test_z_lies_within_one_unless_it_is_unbounded(seen):
    algorithms.check_z_range(seen)


def test_the_prior_z_is_zero_unless_it_is_learned(seen):
    algorithms.check_prior_z(seen)
