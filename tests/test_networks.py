"""Networks: inputs that groups of rows share, the forward pass of flax, and the precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import errors, learner, networks, registry
from gentle_jax.types import Spec, Transition

TASKS, PER_TASK, OBS, ACTION, Z = 3, 4, 5, 2, 6
ROWS = TASKS * PER_TASK


def draw(seed, *shape):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def inputs():
    """Rows of observations and actions, and z of each task."""
    return draw(0, ROWS, OBS), draw(1, ROWS, ACTION), draw(2, TASKS, Z)


@pytest.mark.parametrize("precision", config_lib.PRECISIONS)
def test_z_of_a_group_is_z_of_each_of_its_rows(inputs, precision):
    obs, action, z = inputs
    network = networks.ensemble(
        networks.mlp(OBS + ACTION + Z, 16, 2, (2, 3), precision=precision), 2
    )
    params = network.init(jax.random.key(0))
    once = lambda z: network.apply(params, obs, action, z)
    rows = lambda z: network.apply(params, obs, action, jnp.repeat(z, PER_TASK, axis=0))
    near = {"rtol": 1e-5, "atol": 1e-6} if precision != "bfloat16" else {"atol": 0.02}
    np.testing.assert_allclose(once(z), rows(z), **near)
    dz = [jax.grad(lambda z, f=f: (f(z) ** 2).sum())(z) for f in (once, rows)]
    assert dz[0].shape == z.shape
    np.testing.assert_allclose(*dz, **near)


def test_leading_axes_are_rows_in_order(inputs):
    obs, action, z = inputs
    network = networks.mlp(Z + OBS + ACTION, 16, 2, 3)
    params = network.init(jax.random.key(0))
    flat = network.apply(params, z, obs, action)  # z first, as decoders have it
    by_task = network.apply(params, z, *(x.reshape(TASKS, PER_TASK, -1) for x in (obs, action)))
    assert by_task.shape == (TASKS, PER_TASK, 3)
    np.testing.assert_allclose(by_task.reshape(flat.shape), flat, rtol=1e-6)
    single = network.apply(params, z[1], obs[PER_TASK], action[PER_TASK])
    np.testing.assert_allclose(single, flat[PER_TASK], rtol=1e-5, atol=1e-6)
    column = network.apply(params, z, *(x[:TASKS, None] for x in (obs, action)))
    assert column.shape == (TASKS, 1, 3)  # one row per task is still a row axis
    with pytest.raises(ValueError, match="3 rows of one input do not divide 4"):
        network.apply(params, z, obs[:4], action[:4])


@pytest.mark.parametrize("style", ["rlkit", "policy", "orthogonal", "swish"])
def test_apply_is_the_forward_pass_of_the_flax_module(inputs, style):
    obs, action, _ = inputs
    activation, hidden, bias, last, last_bias = networks._STYLES[style]
    module = networks._MLP((16, 16), (2, 3), activation, hidden, bias, last, last_bias)
    network = networks.mlp(OBS + ACTION, 16, 2, (2, 3), style)
    params = network.init(jax.random.key(0))
    expected = module.apply({"params": params}, jnp.concatenate([obs, action], -1))
    np.testing.assert_allclose(network.apply(params, obs, action), expected, rtol=1e-5, atol=1e-6)


# --- a backbone's update

SPEC = Spec(OBS, ACTION, TASKS, 64, 1)


def updated(name, z, precision="float32"):
    """(new state, dz, metrics) of one update on fixed batches."""
    module = registry.load("backbone", name)
    config = module.Config(width=16, depth=2)
    rl = module.make(config, Z, SPEC._replace(precision=precision))
    hp = {k: jnp.float32(v) for k, v in vars(config).items() if isinstance(v, float)}
    shape = (rl.num_batches, ROWS)
    reward = draw(3, *shape)
    batches = Transition(
        draw(4, *shape, OBS), jnp.tanh(draw(5, *shape, ACTION)), reward, reward,
        draw(6, *shape, OBS), jnp.zeros(shape),
    )  # fmt: skip
    state = jax.jit(rl.init)(hp, jax.random.key(0))
    return jax.jit(rl.update)(state, hp, batches, z, jax.random.key(1), jnp.int32(0))


@pytest.mark.parametrize("name", ["td3_bc", "brac_sac", "sac"])
def test_an_update_takes_z_of_tasks_as_z_of_their_rows(inputs, name):
    z = inputs[2]
    new, dz, metrics = updated(name, z)
    by_row, dz_rows, expected = updated(name, jnp.repeat(z, PER_TASK, axis=0))
    assert dz.shape == z.shape
    summed = dz_rows.reshape(TASKS, PER_TASK, Z).sum(1)
    np.testing.assert_allclose(dz, summed, rtol=1e-4, atol=1e-6)
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    # Adam's first step is lr * sign(g): entries whose gradient is rounding noise may differ
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(by_row), strict=True):
        assert np.mean(~np.isclose(a, b, rtol=1e-4, atol=1e-5)) < 0.02


@pytest.mark.parametrize("name", ["td3_bc", "brac_sac"])
def test_bfloat16_keeps_the_state_in_float32_and_the_losses_close(inputs, name):
    z = inputs[2]
    exact, dz, expected = updated(name, z)
    rounded, dz_rounded, metrics = updated(name, z, "bfloat16")
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=0.02, atol=0.02, err_msg=key)
    assert not np.array_equal(dz, dz_rounded)  # the flag reaches the products
    kinds = lambda tree: [x.dtype for x in jax.tree.leaves(tree)]
    assert kinds(rounded) == kinds(exact) and kinds(metrics) == kinds(expected)
    assert jnp.bfloat16 not in kinds(rounded) and dz_rounded.dtype == jnp.float32
    # single entries move with ReLUs that flip
    assert np.linalg.norm(dz_rounded - dz) < 0.2 * np.linalg.norm(dz)


def test_every_network_of_an_experiment_takes_the_precision(tiny):
    """A step's products are all bfloat16, those of the algorithm's own networks too."""
    for algorithm, suite in (("gentle", "gentle"), ("ctmrl", "ctmrl")):
        made = tiny(algorithm, suite=suite, **{"train.precision": "bfloat16"})
        context = jax.tree.map(lambda x: jnp.asarray(x[:, :8]), made.train.rows)
        state = jax.eval_shape(made.algorithm.init, jax.tree.map(lambda x: x[0], made.hp),
                               jax.random.key(0))  # fmt: skip
        encode = lambda s, made=made, c=context: learner.encode_tasks(
            made.algorithm.rep, s.rep, c, jax.random.key(0)
        )
        text = str(jax.make_jaxpr(encode)(state))
        assert "bf16" in text, algorithm
        obs, z = jnp.zeros(made.spec.obs_dim), jnp.zeros(made.config.train.latent_dim)
        text = str(jax.make_jaxpr(made.algorithm.rl.mode)(state.rl, obs, z))
        assert "bf16" in text, algorithm


def test_an_unknown_precision_is_a_user_error():
    run = config_lib.RunConfig(algorithm="ctmrl")
    with pytest.raises(errors.UserError, match="float32, tensorfloat32, bfloat16"):
        config_lib.resolve(run, (), {"train.precision": "float16"})


@pytest.mark.parametrize("algorithm", ["gentle", "ctmrl"])
def test_encode_is_what_the_belief_says(tiny, algorithm):
    made = tiny(algorithm, suite=algorithm)
    context = jax.tree.map(lambda x: jnp.asarray(x[:, :8]), made.train.rows)
    rep, state = made.algorithm.rep, made.state().rep
    z = learner.encode_tasks(rep, state, context, jax.random.key(0))
    belief = learner.encode_tasks(rep._replace(encode=None), state, context, jax.random.key(0))
    np.testing.assert_allclose(z, belief, rtol=1e-5, atol=1e-6)
