"""Representations of terms: who sees what, in which order, and what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_encoder import ENCODER, batch_of, dataset_of

from gentle_jax import compose, losses, networks, objectives
from gentle_jax.compose import Term
from gentle_jax.config import TrainConfig
from gentle_jax.learner import Trained
from gentle_jax.types import Spec

TRAIN = TrainConfig(latent_dim=2, context_size=1)
Z = np.array([(0.5, -0.25), (0.25, 0.75), (-1.0, 0.5)], np.float32)
LR = 0.125
HP = {"lr": jnp.float32(LR)}


def rep_of(terms, encoder=ENCODER, **kwargs):
    """(representation, its state)."""
    rep = compose.representation(encoder, terms, TRAIN, **kwargs)
    return rep, rep.init(HP, jax.random.key(0), None)


def update(rep, state, hp=HP, dz=None, key=0, batch=None, data=None, index=0):
    """(state, metrics) after one update, computed op by op."""
    batch = batch_of(Z) if batch is None else batch
    return rep.update(state, hp, batch, dz, data, jax.random.key(key), jnp.int32(index))


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in leaves
    )


def scalar(start, loss=None, **hooks):
    """A Term with one number as parameters, whose default loss is half of its square."""
    half_square = lambda params, own, hp, seen, key: 0.5 * params**2
    return Term(loss or half_square, lambda key, data: (jnp.float32(start), {}), **hooks)


# --- order, keys and what hooks see


class Diary:
    """Terms that write down how their hooks are called."""

    def __init__(self):
        self.calls = []

    def term(self, name):
        def write(hook, own, seen, key):
            self.calls.append((hook, name, float(own), jax.random.key_data(key).tolist(), seen))

        def before(own, hp, seen, key):
            write("before", own, seen, key)
            return own + 1.0, {f"{name}_told": own}

        def loss(params, own, hp, seen, key):
            write("loss", own, seen, key)
            return params * own, {"name": name}

        def after(params, own, hp, seen, key):
            write("after", own, seen, key)
            return params + 100.0, own + 10.0

        start = jnp.float32(len(name))
        return Term(loss, lambda key, data: (start, jnp.float32(0.0)), before, after)

    def seen(self, hook, name):
        return next(call[-1] for call in self.calls if call[:2] == (hook, name))


@pytest.fixture
def diary():
    """(Diary, state before, state after, metrics) of one update of the terms a and bc."""
    diary = Diary()
    rep, state = rep_of({"a": diary.term("a"), "bc": diary.term("bc")})
    new, metrics = update(rep, state)
    return diary, state, new, metrics


def test_hooks_run_before_loss_after_in_the_order_of_the_terms(diary):
    calls = [call[:2] for call in diary[0].calls]
    hooks = ("before", "loss", "after")
    assert calls == [(hook, name) for hook in hooks for name in ("a", "bc")]


def test_every_hook_has_a_key_of_its_own(diary):
    keys = [tuple(call[3]) for call in diary[0].calls]
    assert len(set(keys)) == 6


def test_what_before_returns_reaches_the_loss_and_after(diary):
    owns = {call[:2]: call[2] for call in diary[0].calls}
    assert owns == {(hook, n): 0.0 if hook == "before" else 1.0 for hook, n in owns}
    _, _, new, metrics = diary
    assert float(new.own["a"]) == 11.0 and float(new.own["bc"]) == 11.0
    assert float(metrics["a_told"]) == 0.0
    # loss = params * own, with own after `before`
    assert float(metrics["a_loss"]) == 1.0 and float(metrics["bc_loss"]) == 2.0


def test_after_gets_parameters_after_the_step_and_sees_those_before(diary):
    book, state, new, _ = diary
    for name, start in (("a", 1.0), ("bc", 2.0)):
        # the slope is own = 1: Adam's first step is the rate; then `after` adds 100
        np.testing.assert_allclose(new.params[name], start - LR + 100.0, rtol=1e-6)
        assert float(book.seen("after", name).params[name]) == start
    assert same(state.trained["encoder"].params, new.trained["encoder"].params)  # slope 0
    assert book.seen("after", "a").aux == {"a": {"name": "a"}, "bc": {"name": "bc"}}


def test_a_loss_sees_what_the_terms_before_it_returned_beside_theirs(diary):
    book = diary[0]
    assert book.seen("loss", "a").aux == {}
    assert book.seen("loss", "bc").aux == {"a": {"name": "a"}}
    assert book.seen("before", "bc").aux == {}


def test_all_hooks_see_what_others_own(diary):
    book = diary[0]
    assert {n: float(v) for n, v in book.seen("before", "bc").own.items()} == {"a": 0.0, "bc": 0.0}
    for hook in ("loss", "after"):
        assert {n: float(v) for n, v in book.seen(hook, "a").own.items()} == {"a": 1.0, "bc": 1.0}


def test_nothing_of_before_is_differentiated():
    # a network of its own that chases z: if `before` were part of the loss, z would chase it too
    def before(own, hp, seen, key):
        assert not isinstance(seen.z, jax.core.Tracer)
        loss = lambda params: (((params - seen.z) ** 2).sum(), {})
        return own.descend(loss, hp["lr"])

    used = lambda params, own, hp, seen, key: (own.params**2).sum()
    init = lambda key, data: ({}, Trained.of(jnp.zeros(2)))
    rep, state = rep_of({"chase": Term(used, init, before)})
    new, metrics = update(rep, state)
    assert same(new.params, state.params)
    assert float(metrics["chase_loss"]) == pytest.approx(
        2 * LR**2, rel=1e-4
    )  # it has moved before the loss


def test_terms_without_parameters_have_no_moments():
    _, state = rep_of({"focal": objectives.focal(), "number": scalar(1.0)})
    assert state.trained.keys() == {"encoder", "number"} == state.params.keys()
    assert state.own == {"focal": {}, "number": {}}


def test_after_may_move_what_a_term_without_parameters_owns():
    count = Term(
        None,
        lambda key, data: ({}, jnp.float32(3.0)),
        after=lambda params, own, hp, seen, key: (params, own + 1.0),
    )
    rep, state = rep_of({"count": count})
    new, metrics = update(rep, state)
    assert float(new.own["count"]) == 4.0 and metrics == {}
    assert new.trained.keys() == {"encoder"}


def test_a_part_and_a_term_of_one_name_are_refused():
    rep = compose.representation(ENCODER, {"encoder": scalar(1.0)}, TRAIN)
    with pytest.raises(ValueError, match=r"share a name: \['encoder'\]"):
        rep.init(HP, jax.random.key(0), None)


# --- what moves


def pull(name):
    """A loss that pulls z to the term's parameters: it moves both."""

    def loss(params, own, hp, seen, key):
        return ((seen.z - params) ** 2).sum()

    return scalar(2.0, loss)


def test_inactive_terms_do_not_move():
    terms = {"a": pull("a"), "b": pull("b")}
    rep, state = rep_of(terms, active=("a",))
    # moments that would move parameters even without a gradient
    kicked = jax.tree.map(lambda x: x + 1, state.trained["b"].moments)
    state = state.replace(trained=state.trained | {"b": state.trained["b"].replace(moments=kicked)})
    new, metrics = update(rep, state)
    assert same(new.trained["b"], state.trained["b"]) and "b_loss" not in metrics
    for name in ("encoder", "a"):
        assert not same(new.trained[name].params, state.trained[name].params)
        assert not same(new.trained[name].moments, state.trained[name].moments)
    # the same state serves the stage in which both are active
    both, _ = update(compose.representation(ENCODER, terms, TRAIN), state)
    assert jax.tree.structure(both) == jax.tree.structure(state)
    assert not same(both.trained["b"].params, state.trained["b"].params)


def test_frozen_parts_of_an_encoder_do_not_move_and_gradients_pass_them():
    two = ENCODER._replace(
        init=lambda key: {"encoder": jnp.float32(1.0), "shift": jnp.float32(0.5)},
        encode=lambda params, context, task_id, key: (
            context.obs,
            params["encoder"] * (context.obs.mean(1) + params["shift"]),
        ),
    )
    rep, state = rep_of({"a": pull("a")}, two, frozen=("encoder",))
    new, _ = update(rep, state)
    assert same(new.trained["encoder"], state.trained["encoder"])
    assert not same(new.trained["shift"].params, state.trained["shift"].params)


def test_a_part_may_have_a_rate_of_its_own():
    terms = {"a": pull("a"), "b": pull("b")}
    rep, state = rep_of(terms)
    slow, _ = rep_of(terms, rates={"encoder": "encoder_rate"})
    plain, _ = update(rep, state)
    new, _ = update(slow, state, HP | {"encoder_rate": jnp.float32(0.25)})
    moved = lambda after: after.params["encoder"] - state.params["encoder"]
    np.testing.assert_allclose(moved(new), 0.25 * moved(plain), rtol=1e-5)
    assert same([new.trained[n] for n in "ab"], [plain.trained[n] for n in "ab"])
    assert same(update(slow, state, HP | {"encoder_rate": jnp.float32(1.0)})[0], plain)
    with pytest.raises(ValueError, match="encode_"):
        rep_of(terms, rates={"encode_": "encoder_rate"})


def test_separate_adams_are_one_adam_of_everything():
    def loss(params, own, hp, seen, key):
        return jnp.sin(seen.z * params).sum() + seen.params["b"] * params

    terms = {"a": scalar(0.7, loss), "b": scalar(0.4)}
    rep, state = rep_of(terms)
    whole = {"encoder": jnp.ones(()), "a": jnp.float32(0.7), "b": jnp.float32(0.4)}
    adam = optax.adam(LR)
    moments = adam.init(whole)

    def total(p):
        return jnp.sin(p["encoder"] * Z * p["a"]).sum() + p["b"] * p["a"] + 0.5 * p["b"] ** 2

    for index in range(3):
        state, _ = update(rep, state, index=index)
        updates, moments = adam.update(jax.grad(total)(whole), moments)
        whole = optax.apply_updates(whole, updates)
        for name, wanted in whole.items():
            np.testing.assert_allclose(state.params[name], wanted, rtol=1e-5)


def test_a_metric_is_the_value_of_its_term_and_the_sum_is_descended():
    weight = lambda w: lambda params, own, hp, seen, key: w * params**2
    rep, state = rep_of({"up": scalar(1.0, weight(-1.0)), "down": scalar(3.0, weight(2.0))})
    new, metrics = update(rep, state)
    assert (float(metrics["up_loss"]), float(metrics["down_loss"])) == (-1.0, 18.0)
    np.testing.assert_allclose(new.params["up"], 1.0 + LR, rtol=1e-6)
    np.testing.assert_allclose(new.params["down"], 3.0 - LR, rtol=1e-6)


# --- encoding


def test_seen_encodes_with_the_parameters_of_the_loss():
    other = np.array([[(0.5, 1.0)], [(2.0, 4.0)]], np.float32)
    found = {}

    def loss(params, own, hp, seen, key):
        codes, z = seen.encode(batch_of(other[:, 0]).context, jnp.arange(2), key)
        found["shapes"] = codes.shape, z.shape
        return z.sum()

    rep, state = rep_of({"other": Term(loss)})
    new, metrics = update(rep, state)
    assert found["shapes"] == ((2, 1, 2), (2, 2))
    assert float(metrics["other_loss"]) == other.sum()  # the factor is 1
    np.testing.assert_allclose(new.params["encoder"], 1.0 - LR, rtol=1e-6)  # and gets its slope


def test_z_is_drawn_with_the_key_of_the_batch_and_with_task_ids():
    def encode(params, context, task_id, key):
        noise = jax.random.normal(key, (len(task_id), 2))
        return None, params["encoder"] * (context.obs.mean(1) + noise + 10.0 * task_id[:, None])

    look = Term(lambda params, own, hp, seen, key: seen.z[0, 0])
    rep, state = rep_of({"look": look}, ENCODER._replace(encode=encode))
    key, ids = jax.random.key(5), jnp.array([2, 0, 1])
    batch = batch_of(Z, ids, key)
    drawn = rep.encode(state, batch.context, ids, key)
    assert float(drawn[0, 0]) > 15.0  # of task 2
    for other in (0, 1):  # whatever the key of the update
        _, metrics = update(rep, state, key=other, batch=batch)
        assert float(metrics["look_loss"]) == float(drawn[0, 0])


def test_the_bundle_calls_the_encoder_with_the_state():
    rep, state = rep_of({"a": scalar(1.0)}, describe=lambda state, z: {"x": z[0]})
    factor = state.trained["encoder"].replace(params=jnp.float32(3.0))
    state = state.replace(trained=state.trained | {"encoder": factor})
    context, key = batch_of(Z).context, jax.random.key(0)
    np.testing.assert_allclose(rep.encode(state, context, jnp.arange(3), key), 3 * Z)
    one = jax.tree.map(lambda x: x[0], context)
    belief = rep.extend(state, rep.prior(state), one, jnp.ones(1))
    np.testing.assert_allclose(rep.sample(state, belief, key), 3 * Z[0])
    assert float(rep.describe(state, jnp.asarray(Z[1]))["x"]) == 0.25  # a field that was replaced
    drawn = rep.context(state, dataset_of(Z[:, None]), jnp.array([2, 0]), key)
    np.testing.assert_array_equal(drawn.obs[:, 0], Z[[2, 0]])


# --- terms that methods share


def test_critic_sends_dz_into_the_encoder():
    # z = factor * obs: the pull-back of dz is sum(obs * dz); 0.5 * 1 + 0.75 * 2 - 1.0 * 3 = -1
    dz = jnp.array([(1.0, 0.0), (0.0, 2.0), (3.0, 0.0)])
    rep, state = rep_of({"critic": objectives.critic()})
    z_of = lambda factor: ENCODER.encode({"encoder": factor}, batch_of(Z).context, None, None)[1]
    _, pull_back = jax.vjp(z_of, 1.0)

    def loss(factor):
        seen = compose.Seen(None, z_of(factor), None, dz, None, {}, {}, {}, None, 0)
        return objectives.critic().loss({}, {}, HP, seen, None)

    assert float(jax.grad(loss)(1.0)) == float(pull_back(dz)[0]) == -1.0
    new, _ = update(rep, state, dz=dz)
    np.testing.assert_allclose(new.params["encoder"], 1.0 + LR, rtol=1e-6)
    np.testing.assert_allclose(new.trained["encoder"].moments.mu, -0.1, rtol=1e-5)


def test_critic_refuses_a_gradient_of_another_shape():
    rep, state = rep_of({"critic": objectives.critic()})
    with pytest.raises(AssertionError):
        update(rep, state, dz=jnp.ones((6, 2)))  # one z a row: not this term's


def test_focal_by_hand():
    # d = mean((0.8, -0.4)^2) = 0.4, one pair of two tasks: 2 / 1.001
    rep, state = rep_of({"focal": objectives.focal()})
    batch = batch_of([(0.8, 0.0), (0.0, 0.4)])
    hp = HP | {"focal_weight": jnp.float32(10.0)}
    new, metrics = update(rep, state, hp, batch=batch)
    assert float(metrics["focal_loss"]) == pytest.approx(20 / 1.001, rel=1e-6)
    np.testing.assert_allclose(new.params["encoder"], 1.0 + LR, rtol=1e-6)  # it repels
    batch = batch_of([(0.8, 0.0), (0.0, 0.4)], task_id=[4, 4])
    new, metrics = update(rep, state, hp, batch=batch)
    assert float(metrics["focal_loss"]) == pytest.approx(10 * 0.401**0.5 / 1.001, rel=1e-6)
    np.testing.assert_allclose(new.params["encoder"], 1.0 - LR, rtol=1e-6)  # it attracts


def club_batch():
    """Contexts of three rows each."""
    obs = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    batch = batch_of(Z[:2])
    rows = dataset_of(obs).rows
    return batch._replace(context=rows._replace(action=rows.obs[..., :1]))


def test_club_takes_its_own_step_first_and_the_bound_uses_the_new_network():
    spec, hp = Spec(2, 1, 2, 3, 1), {"club_weight": 5.0, "club_model_weight": 2.0}
    hp = HP | {name: jnp.float32(value) for name, value in hp.items()}
    rep, state = rep_of({"club": objectives.club(spec, 2, width=4, depth=1)})
    batch = club_batch()
    new, metrics = update(rep, state, hp, batch=batch)
    net = networks.mlp(3, 4, 1, 4, squash=True, hidden_init=spec.init)

    def heads(params):
        out = net.apply(params, batch.context.obs, batch.context.action)
        return out[..., :2], jax.nn.softplus(out[..., 2:])

    codes = batch.context.obs  # the factor is 1
    likelihood = lambda params: 2.0 * losses.club_likelihood(codes, *heads(params))
    bound = lambda factor, params: 5.0 * losses.club_bound(factor * codes, *heads(params))
    old = state.own["club"].params
    wanted = jax.tree.map(
        lambda p, g: p - LR * g / (jnp.abs(g) + 1e-8), old, jax.grad(likelihood)(old)
    )
    for a, b in zip(jax.tree.leaves(new.own["club"].params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # Adam's first step, on the likelihood only
    np.testing.assert_allclose(metrics["club_model_loss"], likelihood(old), rtol=1e-5)
    np.testing.assert_allclose(metrics["club_loss"], bound(1.0, wanted), rtol=1e-4)
    assert abs(float(bound(1.0, wanted) - bound(1.0, old))) > 1e-3
    slope = jax.grad(bound)(1.0, wanted)
    np.testing.assert_allclose(new.trained["encoder"].moments.mu, 0.1 * slope, rtol=1e-3)
    assert new.trained.keys() == {"encoder"}  # its network is no part of the encoder's Adam
