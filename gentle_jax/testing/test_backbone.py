"""Contracts of a backbone: `--backbone`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import registry, rng
from gentle_jax.testing import backbones
from gentle_jax.testing.trees import check_finite, check_shapes, check_unshared, louder, same
from gentle_jax.types import Backbone, Cond, Spec, Transition

OBS, ACTION, Z, TASKS, ROWS = 3, 2, 4, 4, 32
SPEC = Spec(OBS, ACTION, TASKS, 64, 5)


@pytest.fixture(scope="module")
def config(given):
    """The Config, with small networks where it has such settings."""
    kind = registry.load("backbone", given["backbone"]).Config
    sizes = {"width": 16, "depth": 1}
    return kind(**{k: v for k, v in sizes.items() if k in kind.__dataclass_fields__})


@pytest.fixture(scope="module")
def rl(given, config):
    """The Backbone."""
    made = registry.load("backbone", given["backbone"]).make(config, Z, SPEC)
    assert isinstance(made, Backbone), "`make` returns no gentle_jax.types.Backbone"
    return made


@pytest.fixture(scope="module")
def hp(config):
    """Floats of the Config as leaves."""
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return {name: jnp.float32(v) for name, v in fields.items() if isinstance(v, float)}


@pytest.fixture(scope="module")
def state(rl, hp):
    """An initial state."""
    return jax.jit(rl.init)(hp, rng.key(3))


@pytest.fixture(scope="module")
def batches(rl):
    """(K independent batches [K, N, ...], Cond of a z per task)."""
    random = np.random.default_rng(0)
    normal = lambda *tail: jnp.array(random.normal(size=(rl.num_batches, *tail)), jnp.float32)
    action = jnp.tanh(normal(ROWS, ACTION))
    terminal = jnp.array(random.integers(0, 2, (rl.num_batches, ROWS)), jnp.float32)
    reward = normal(ROWS)
    rows = Transition(normal(ROWS, OBS), action, reward, reward, normal(ROWS, OBS), terminal)
    return rows, Cond(jnp.tanh(normal(TASKS, Z)), jnp.tanh(normal(TASKS, Z)))


@pytest.fixture(scope="module")
def update(rl):
    """The jitted update."""
    return jax.jit(rl.update)


@pytest.fixture(scope="module")
def updated(update, state, hp, batches):
    """(state, dz, metrics) of one update."""
    return update(state, hp, *batches, rng.key(0), jnp.int32(0))


def test_config_has_what_commands_set(config):
    lacking = {"width", "lr", "discount", "reward_scale"} - {*config.__dataclass_fields__}
    assert not lacking, f"Config lacks {sorted(lacking)}, which presets and tests set"


def test_the_state_can_be_donated(state):
    check_unshared("the initial state", state)


def test_the_same_key_gives_the_same_state(rl, hp, state):
    again = jax.jit(rl.init)(hp, rng.key(3))
    assert same(again, state), "two states of one key differ; draw with jax.random only"
    other = jax.jit(rl.init)(hp, rng.key(4))
    assert not same(other, state), "`init` does not read its key"


@pytest.mark.parametrize("name", ["act", "mode", "target_mode"])
def test_actions_have_their_shape_and_lie_within_one(rl, state, name):
    keys = (rng.key(0),) if name == "act" else ()
    act = jax.jit(getattr(rl, name))
    for lead in ((), (6,)):
        obs, z = 5.0 * jnp.ones((*lead, OBS)), jnp.ones((*lead, Z))
        action = act(louder(state, 3.0), obs, z, *keys)
        expected = (*lead, ACTION)
        assert action.shape == expected, f"`{name}` returns {action.shape}, expected {expected}"
        assert np.isfinite(action).all(), f"`{name}` is not finite"
        assert np.abs(action).max() <= 1.0, f"`{name}` leaves [-1, 1]: squash or clip it"


def test_an_update_keeps_the_state_and_returns_dz(state, updated):
    after, dz, metrics = updated
    check_shapes(state, after, "the state after an update")
    assert dz.shape == (TASKS, Z), f"dz has shape {dz.shape}, expected {(TASKS, Z)}, as cond.now"
    for name, value in metrics.items():
        assert value.shape == (), f"metric {name} has shape {value.shape}, expected a scalar"
    check_finite("an update", updated)
    assert not same(after, state), "an update changes nothing in the state"


def test_the_same_key_gives_the_same_update(update, state, hp, batches, updated):
    again = update(state, hp, *batches, rng.key(0), jnp.int32(0))
    assert same(again, updated), "two updates with one key differ; draw with jax.random only"


def test_swept_floats_are_leaves(update, state, hp, batches, updated):
    halved = {name: 0.5 * value for name, value in hp.items()}
    after = update(state, halved, *batches, rng.key(0), jnp.int32(0))
    assert update._cache_size() == 1, "an update was compiled twice: swept floats are leaves"
    assert not same(after[0], updated[0]), "floats change nothing: read them from `hp`"


def test_a_z_per_row_is_the_z_of_its_task(update, hp, batches, updated):
    call = lambda state, *batch: update(state, hp, *batch, rng.key(0), jnp.int32(2))
    # the second update: Adam's first ones have the size of the rate whatever the gradient
    backbones.check_z_of_rows(call, updated[0], *batches, rtol=1e-3, atol=1e-5)


def test_updates_side_by_side_are_updates_in_a_loop(rl, state, hp, batches, updated):
    two = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    mapped = jax.jit(jax.vmap(rl.update, (0, 0, None, None, 0, None)))
    keys = jax.random.split(rng.key(0), 2).at[0].set(rng.key(0))
    after, dz, _ = mapped(two(state), two(hp), *batches, keys, jnp.int32(0))
    text = "an update under vmap is not that of a single run"
    for found, expected in zip(
        jax.tree.leaves((after, dz)), jax.tree.leaves(updated[:2]), strict=True
    ):
        np.testing.assert_allclose(found[0], expected, 1e-3, 1e-4, err_msg=text)
