"""Networks: shared inputs, the forward pass of flax, initial values, and the precisions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import machine
from gentle_jax import config as config_lib
from gentle_jax import errors, learner, networks, registry
from gentle_jax.types import Cond, Spec, Transition

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


class Flax(nn.Module):
    """The same network as a flax module, with flax's own names."""

    activation: Any

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = self.activation(nn.Dense(16)(x))
        return jnp.concatenate([nn.Dense(size)(x) for size in (2, 3)], axis=-1)


@pytest.mark.parametrize("style", ["rlkit", "policy", "orthogonal", "swish"])
def test_names_shapes_and_apply_are_those_of_a_flax_module(inputs, style):
    obs, action, _ = inputs
    rows = jnp.concatenate([obs, action], -1)
    module = Flax(nn.swish if style == "swish" else nn.relu)
    network = networks.mlp(OBS + ACTION, 16, 2, (2, 3), style)
    params = network.init(jax.random.key(0))
    wanted = module.init(jax.random.key(0), rows)["params"]
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kinds(params) == kinds(wanted)
    expected = module.apply({"params": params}, rows)
    np.testing.assert_allclose(network.apply(params, obs, action), expected, rtol=1e-5, atol=1e-6)


# --- initial values

IN, WIDTH, HEADS, DRAWS = 4, 8, (2, 3), 2000
CONSTANT, UNIFORM, NORMAL, HAAR = "constant", "uniform", "normal", "orthogonal"


def _wanted(style, hidden_init, shape, last):
    """What is published of a tensor: (distribution, its constant, bound or deviation)."""
    kernel = len(shape) == 2
    if style == "orthogonal":
        return (HAAR, max(shape) ** -0.5) if kernel else (CONSTANT, 0.0)
    if style == "swish":
        return (NORMAL, 0.5 / shape[0] ** 0.5) if kernel else (CONSTANT, 0.0)
    if last:
        return UNIFORM, {"rlkit": 3e-3, "policy": 1e-3}[style]
    if hidden_init == "he":
        return (UNIFORM, (6.0 / shape[0]) ** 0.5) if kernel else (CONSTANT, 0.0)
    return (UNIFORM, shape[1] ** -0.5) if kernel else (CONSTANT, 0.1)


def _check_tensor(drawn, kind, scale, name):
    """Checks tensors [DRAWS, ...]: range, mean and variance to 5 standard errors."""
    flat = np.asarray(drawn, np.float64).reshape(-1)
    if kind == CONSTANT:
        np.testing.assert_array_equal(drawn, np.float32(scale), err_msg=name)
        return
    deviation = scale / 3**0.5 if kind == UNIFORM else scale
    # mean fourth power over squared variance: 9 / 5, 3, and at most 3 for entries of unit vectors
    fourth = 1.8 if kind == UNIFORM else 3.0
    assert abs(flat.mean()) < 5 * deviation / flat.size**0.5, name
    error = ((fourth - 1) / flat.size) ** 0.5
    assert abs((flat**2).mean() / deviation**2 - 1) < 5 * error, name
    if kind == UNIFORM:
        for end in (flat.max(), -flat.min()):
            assert 0.995 * scale < end <= scale * (1 + 1e-6), name
    if kind == NORMAL:
        assert 3.5 * scale < np.abs(flat).max() < 6 * scale, name
        share = (np.abs(flat) < scale).mean()  # 0.6827 of a normal one, 0.577 of a uniform one
        assert abs(share - 0.6827) < 5 * (0.6827 * 0.3173 / flat.size) ** 0.5, name
    if kind == HAAR:
        wide = drawn if drawn.shape[1] <= drawn.shape[2] else drawn.swapaxes(1, 2)
        gram = wide @ wide.swapaxes(1, 2)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(gram.shape[1]), gram.shape),
                                   atol=1e-5, err_msg=name)  # fmt: skip


INITS = [("rlkit", "rlkit"), ("rlkit", "he"), ("policy", "rlkit"), ("policy", "he"),
         ("orthogonal", "rlkit"), ("swish", "rlkit")]  # fmt: skip


@pytest.fixture(scope="module", params=INITS, ids="-".join)
def drawn(request):
    """(style, hidden_init, network, keys, parameters of every key [DRAWS, ...])."""
    network = networks.mlp(IN, WIDTH, 2, HEADS, request.param[0], hidden_init=request.param[1])
    keys = jax.random.split(jax.random.key(5), DRAWS)
    return *request.param, network, keys, jax.device_get(jax.jit(jax.vmap(network.init))(keys))


def test_every_tensor_has_the_distribution_of_its_style(drawn):
    style, hidden_init, *_, params = drawn
    for layer, tensors in params.items():
        last = int(layer.removeprefix("Dense_")) >= 2
        for name, values in tensors.items():
            kind, scale = _wanted(style, hidden_init, values.shape[1:], last)
            _check_tensor(values, kind, scale, f"{layer} {name}")


def test_no_two_numbers_of_a_network_are_related(drawn):
    """Equal or overlapping draws would correlate over keys: within a tensor or between layers."""
    *_, params = drawn
    columns = np.concatenate([x.reshape(DRAWS, -1) for x in jax.tree.leaves(params)], 1)
    columns = columns[:, np.ptp(columns, axis=0) > 0]  # constants apart
    assert columns.shape[1] >= IN * WIDTH + WIDTH * (WIDTH + sum(HEADS))
    related = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(related).max() < 6 / DRAWS**0.5


def test_a_network_is_the_same_alone_in_turn_and_side_by_side(drawn):
    style, _, network, keys, params = drawn
    some = keys[:3]
    # side by side, Gram-Schmidt's sums are batched products: they round differently
    near = {"rtol": 0, "atol": 1e-6 if style == "orthogonal" else 0}
    in_turn = jax.jit(lambda k: jax.lax.map(network.init, k))(some)
    alone = jax.jit(network.init)
    alone = jax.tree.map(lambda *x: np.stack(x), *[alone(key) for key in some])
    for tree in (in_turn, alone):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[:3], **near), tree, params)


def test_a_network_takes_one_draw(drawn):
    """Each one more would be compiled by every command, in 0.03 to 0.2 s."""
    *_, network, keys, _ = drawn
    assert str(jax.make_jaxpr(network.init)(keys[0])).count("random_bits[") == 1


def test_keys_and_members_give_other_numbers(drawn):
    *_, network, keys, params = drawn
    members = networks.ensemble(network, 3).init(keys[0])
    differ = lambda x, y: np.ptp(x) == 0 or (x != y).all()
    for tree in (params, jax.device_get(members)):
        for x in jax.tree.leaves(tree):
            assert differ(x[0], x[1]) and differ(x[1], x[2]) and differ(x[0], x[2])


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
    z = jnp.broadcast_to(z, (rl.num_batches, *z.shape))
    return jax.jit(rl.update)(state, hp, batches, Cond(z, z), jax.random.key(1), jnp.int32(0))


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


def kinds_of_products(function, *args):
    """Returns the types of the operands of all products in the jaxpr of a function."""
    pending, kinds = [jax.make_jaxpr(function)(*args).jaxpr], set()
    while pending:
        for eqn in pending.pop().eqns:
            pending += machine.jaxprs_in(eqn.params)
            if eqn.primitive.name == "dot_general":
                kinds |= {str(atom.aval.dtype) for atom in eqn.invars}
    return kinds


def test_every_network_of_an_experiment_takes_the_precision(tiny):
    """Products of the encoder and of the policy are bfloat16."""
    for algorithm, suite in (("gentle", "gentle"), ("ctmrl", "ctmrl"), ("focal", "ctmrl")):
        made = tiny(algorithm, suite=suite, **{"train.precision": "bfloat16"})
        data = jax.tree.map(jnp.asarray, made.train)
        context = jax.tree.map(lambda x: x[:, :8], data.rows)
        ids = jnp.arange(made.spec.num_train_tasks)
        hp = jax.tree.map(lambda x: x[0], made.hp)
        state = jax.eval_shape(made.algorithm.init, hp, jax.random.key(0), data)
        encode = lambda s, made=made, c=context, ids=ids: learner.encode_tasks(
            made.algorithm.rep, s.rep, c, ids, jax.random.key(0)
        )
        assert kinds_of_products(encode, state) == {"bfloat16"}, algorithm
        obs, z = jnp.zeros(made.spec.obs_dim), jnp.zeros(made.config.train.latent_dim)
        kinds = kinds_of_products(made.algorithm.rl.mode, state.rl, obs, z)
        assert kinds == {"bfloat16"}, algorithm


def test_an_unknown_precision_is_a_user_error():
    run = config_lib.RunConfig(algorithm="ctmrl")
    with pytest.raises(errors.UserError, match="float32, tensorfloat32, bfloat16"):
        config_lib.resolve(run, (), {"train.precision": "float16"})


@pytest.mark.parametrize(
    "algorithm,suite", [("gentle", "gentle"), ("ctmrl", "ctmrl"), ("focal", "gentle")]
)
def test_encode_is_what_the_belief_says(tiny, algorithm, suite):
    made = tiny(algorithm, suite=suite)
    context = jax.tree.map(lambda x: jnp.asarray(x[:, :8]), made.train.rows)
    rep, state = made.algorithm.rep, made.state().rep
    more = context, jnp.arange(context.reward.shape[0]), jax.random.key(0)
    z = learner.encode_tasks(rep, state, *more)
    belief = learner.encode_tasks(rep._replace(encode=None), state, *more)
    np.testing.assert_allclose(z, belief, rtol=1e-5, atol=1e-6)
