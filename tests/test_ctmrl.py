"""CTMRL: its stages, when K-means runs, what every switch removes, paper against release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import errors, registry
from gentle_jax.types import MetaBatch

# tiny: 20 steps in 10 iterations of 2. Codes start at iteration 3 (f >= 0.3), so `warmup` has 6
# steps. No f lies strictly in (0.2, 0.3): the last warm-up iteration is collected. 10 // 20 = 0, so
# the period is 1 + 1: vectors at the ends of iterations 4, 6, 8, K-means at 5, 7, 9 (steps 11, 15,
# 19). REFRESH and COLLECT count within `train`
WARMUP, REFRESH, COLLECT = 6, (5, 9, 13), (3, 7, 11)  # the last two count within `train`


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def metrics_of(made, stage):
    """Names of a stage's metrics, without compiling anything."""
    shapes = jax.eval_shape(
        made.algorithm.stages[stage].step, made.state(), made.train, jax.random.key(0), jnp.int32(0)
    )
    return set(shapes[1])


# --- stages and the schedule


def test_stages_split_at_the_first_iteration_with_codes(tiny):
    made = tiny("ctmrl")
    assert [(s.name, s.num_steps) for s in made.algorithm.stages] == [("warmup", 6), ("train", 14)]


@pytest.mark.parametrize("num_steps,num_iterations,warmup", [
    (65_000, 65, 20_000), (105_000, 105, 32_000), (50_000, 50, 15_000), (7, 65, 3),
])  # fmt: skip
def test_stage_lengths_of_real_sizes(tiny, num_steps, num_iterations, warmup):
    made = tiny("ctmrl", **{"train.num_steps": num_steps, "algo.num_iterations": num_iterations})
    first, second = made.algorithm.stages
    assert (first.num_steps, first.num_steps + second.num_steps) == (warmup, num_steps)


@pytest.fixture(scope="module")
def steps(tiny):
    """(step of `warmup`, step of `train`, state): four codes for four tasks, no code gradient.

    With as many codes as vectors in the bag, K-means returns the bag's rows in some order.
    """
    made = tiny("ctmrl", **{
        "algo.num_codes": 4, "algo.code_gradient": False, "algo.use_contrast": False,
        "train.meta_batch": 4, "brac_sac.use_brac": False,
    })  # fmt: skip
    data = jax.tree.map(jnp.asarray, made.train)

    def compiled(stage):
        step = jax.jit(stage.step)

        def advance(state, index, eta, seed=None):
            hp = state.hp | {"algo": state.hp["algo"] | {"eta": jnp.float32(eta)}}
            key = jax.random.key(index if seed is None else seed)
            return step(state.replace(hp=hp), data, key, jnp.int32(index))[0]

        return advance

    return (*[compiled(stage) for stage in made.algorithm.stages], made.state())


def with_bag(state, rows):
    return state.replace(rep=state.rep.replace(bag=jnp.asarray(rows, jnp.float32)))


def with_codes(state, codes):
    book = state.rep.book.replace(codes=jnp.asarray(codes, jnp.float32))
    return state.replace(rep=state.rep.replace(book=book))


def sorted_rows(x):
    return np.array(sorted(np.asarray(x).round(6).tolist()))


BAG = 10 * np.eye(4, 3) + np.arange(12).reshape(4, 3) / 7  # four rows in four directions


def test_codes_start_as_centres_of_the_collected_vectors(steps):
    _, train, state = steps
    new = train(with_bag(state, BAG), 0, 0.0).rep.book
    np.testing.assert_allclose(sorted_rows(new.codes), sorted_rows(BAG), rtol=1e-5)
    np.testing.assert_array_equal(new.size, np.ones(4))  # and their cluster sizes


def test_codes_move_only_by_eta_and_kmeans(steps):
    warmup, train, state = steps
    state = with_bag(state, BAG)
    for index in range(WARMUP):  # no codes yet: nothing touches them, whatever eta
        assert same(warmup(state, index, 0.5).rep.book, state.rep.book), index
    for index in range(1, 14):  # at a rate of 0 they never move after their start
        assert same(train(state, index, 0.0).rep.book.codes, state.rep.book.codes), index
    assert not same(train(state, 1, 0.5).rep.book.codes, state.rep.book.codes)


def test_kmeans_refreshes_codes_at_its_iterations_only(steps):
    # the bag is all that tells a step with a K-means refresh from one without
    _, train, state = steps
    read = []
    for index in range(1, 14):
        first = train(with_bag(state, BAG), index, 0.25).rep.book.codes
        second = train(with_bag(state, -BAG), index, 0.25).rep.book.codes
        read += [] if same(first, second) else [index]
    assert tuple(read) == REFRESH


def test_a_refresh_moves_the_codes_that_match_the_centres(steps):
    # a step with the same key that refreshes nothing gives the codes just before the refresh; then
    # Eq. 2 with the centres (the bag's rows) in place of z
    _, train, state = steps
    state = with_bag(with_codes(state, 0.1 * BAG), BAG)
    before = np.asarray(train(state, 1, 0.25, seed=3).rep.book.codes)
    after = train(state, REFRESH[0], 0.25, seed=3).rep.book.codes
    expected = ref.move(before, BAG, ref.match(before, BAG), 0.25)
    np.testing.assert_allclose(after, expected, rtol=1e-4)


def test_vectors_are_collected_at_the_end_of_the_right_iterations(steps):
    warmup, train, state = steps
    state = with_bag(state, BAG)
    changed = lambda step, count, first: tuple(
        index for index in range(first, count)
        if not same(step(state, index, 0.0).rep.bag, state.rep.bag)
    )  # fmt: skip
    assert changed(warmup, WARMUP, 0) == (5,)  # the last step of iteration 2
    assert changed(train, 14, 0) == COLLECT
    bag = warmup(state, 5, 0.0).rep.bag
    assert bag.shape == BAG.shape and (np.abs(bag) < 1).all()  # one z per training task


# --- losses and switches

ALL = {"prediction_loss", "code_loss", "cross_loss", "contrast_loss", "codes_used"}


def losses_of(names):
    return {n for n in names if n.endswith("_loss") and n not in ("q_loss", "v_loss", "bc_loss")}


def test_warmup_has_no_code_terms(tiny):
    assert losses_of(metrics_of(tiny("ctmrl"), 0)) == {"prediction_loss"}


@pytest.mark.parametrize(
    "switch,removed",
    [
        ("use_code_loss", {"code_loss"}),
        ("use_cross_prediction", {"cross_loss"}),
        ("use_contrast", {"contrast_loss"}),
        ("use_kmeans", set()),
        ("use_codebook", {"code_loss", "cross_loss", "contrast_loss", "codes_used"}),
    ],
)
def test_each_ablation_removes_its_own_term_only(tiny, switch, removed):
    made = tiny("ctmrl", **{f"algo.{switch}": False})
    names = metrics_of(made, 1)
    assert losses_of(names) == losses_of(ALL - removed)
    assert ("codes_used" in names) == ("codes_used" not in removed)


def test_release_adds_focal_and_club_to_every_stage(tiny):
    made = tiny("ctmrl", fidelity="release")
    kept = {"prediction_loss", "focal_loss", "club_loss", "club_model_loss"}
    assert losses_of(metrics_of(made, 0)) == kept
    assert losses_of(metrics_of(made, 1)) == kept | {"code_loss", "cross_loss", "contrast_loss"}


def updated(made, **hp):
    """(state before, state after) of one representation update with codes on."""
    data, state = jax.tree.map(jnp.asarray, made.train), made.state()
    rows = data_lib.rl_batch(data, jnp.arange(3), 8, jax.random.key(0))
    batch = MetaBatch(rows, rows, jnp.arange(3))
    settings = state.hp["algo"] | {k: jnp.float32(v) for k, v in hp.items()}
    new, _ = jax.jit(made.algorithm.rep.update)(
        state.rep, settings, batch, None, data, jax.random.key(0), jnp.int32(0)
    )
    return state.rep, new, batch


ONLY_PREDICTION = {
    "algo.use_code_loss": False, "algo.use_cross_prediction": False, "algo.use_contrast": False,
}  # fmt: skip


@pytest.mark.parametrize("reaches", [True, False])
def test_prediction_trains_the_encoder_in_the_paper_but_not_in_the_release(tiny, reaches):
    made = tiny("ctmrl", **ONLY_PREDICTION, **{"algo.encoder_prediction": reaches})
    old, new, _ = updated(made)
    assert same(old.params["encoder"], new.params["encoder"]) != reaches
    for decoder in ("reward", "transition"):
        assert not same(old.params[decoder], new.params[decoder])


def test_codes_follow_equation_2_after_a_step(tiny):
    made = tiny("ctmrl", **ONLY_PREDICTION)
    old, new, batch = updated(made, eta=0.25)
    # z of the encoder before its step: the mean of tanh codes of (s, a, r)
    columns = [batch.context.obs, batch.context.action, batch.context.context_reward[..., None]]
    rows = np.concatenate(columns, -1)
    z = np.tanh(ref.mlp(old.params["encoder"], rows, 1)).mean(1)
    matched = ref.match(np.asarray(old.book.codes), z)
    expected = ref.move(np.asarray(old.book.codes), z, matched, 0.25)
    np.testing.assert_allclose(new.book.codes, expected, atol=1e-5)


def test_frozen_bilinear_form_is_never_trained(tiny):
    made = tiny("ctmrl", fidelity="release", **{"algo.use_club": False})
    old, new, _ = updated(made)
    np.testing.assert_array_equal(old.matrix, new.matrix)
    assert (np.asarray(old.matrix) >= 0).all()
    assert not same(old.params, new.params)


# --- configuration


@pytest.mark.parametrize("count", [1, 5])
def test_impossible_numbers_of_codes_are_refused(tiny, count):
    with pytest.raises(errors.UserError, match=f"num_codes is {count}: expected 2 to 4"):
        tiny("ctmrl", **{"algo.num_codes": count})
    tiny("ctmrl", **{"algo.num_codes": count, "algo.use_codebook": False})  # then it is unused


@pytest.mark.parametrize("name,value", [
    ("code_loss", "info_nce"), ("cross_loss", "cycles"), ("contrast", "cosin"),
    ("num_iterations", 1), ("contrast_every", 0),
])  # fmt: skip
def test_unknown_choices_are_refused(tiny, name, value):
    with pytest.raises(errors.UserError, match=name):
        tiny("ctmrl", **{f"algo.{name}": value})


# ctmrl_suite.md sec. 3.3
FLAGS = {
    "ema_codes": (False, True),
    "code_loss": ("infonce", "commit"),
    "encoder_prediction": (True, False),
    "cross_loss": ("regress", "cycle"),
    "contrast": ("cosine", "bilinear"),
    "unit_norm_kmeans": (False, True),
    "use_focal": (False, True),
    "use_club": (False, True),
}


@pytest.mark.parametrize("fidelity", config_lib.FIDELITIES)
def test_fidelities_are_the_columns_of_the_sheet(fidelity):
    run = config_lib.RunConfig(algorithm="ctmrl", env="point_robot", fidelity=fidelity)
    config = config_lib.resolve(run).algo
    column = config_lib.FIDELITIES.index(fidelity)
    assert {name: getattr(config, name) for name in FLAGS} == {
        name: values[column] for name, values in FLAGS.items()
    }
    assert registry.load("algorithm", "ctmrl").DEFAULT_FIDELITY == "paper"
    # every part is on in both
    for switch in ("codebook", "code_loss", "cross_prediction", "kmeans", "contrast"):
        assert getattr(config, f"use_{switch}")
    assert (config.eta, config.decay, config.temperature, config.num_fillers) == (0.1, 0.9, 0.5, 4)


@pytest.mark.parametrize(
    "env,codes,iterations,steps",
    [
        ("point_robot", 8, 65, 65_000),
        ("point_robot_wind", 8, 50, 50_000),
        ("sparse_point_robot", 4, 50, 50_000),
    ],
)
def test_table_1_sizes(env, codes, iterations, steps):
    config = config_lib.resolve(config_lib.RunConfig(algorithm="ctmrl", env=env))
    assert (config.algo.num_codes, config.algo.num_iterations) == (codes, iterations)
    assert config.train.num_steps == steps
    assert (config.algo.club_weight, config.algo.focal_weight) == (25.0, 10.0)
    assert (config.backbone.discount, config.backbone.reward_scale) == (0.9, 100.0)
    assert not config.backbone.use_brac
