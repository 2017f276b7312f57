"""CTMRL: its stages, when K-means runs, what every switch removes, paper against release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import errors, registry
from gentle_jax.algorithms.ctmrl import paper, release
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
        "algo.num_codes": 4, "algo.use_cross_prediction": False, "algo.use_contrast": False,
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


def codes_of(state):
    return state.rep.params["codebook"]


def shelf_of(state):
    return state.rep.own["codebook"]


def with_bag(state, rows):
    shelf = shelf_of(state).replace(bag=jnp.asarray(rows, jnp.float32))
    return state.replace(rep=state.rep.replace(own=state.rep.own | {"codebook": shelf}))


def with_codes(state, codes):
    book = state.rep.trained["codebook"].replace(params=jnp.asarray(codes, jnp.float32))
    trained = state.rep.trained | {"codebook": book}
    return state.replace(rep=state.rep.replace(trained=trained))


def sorted_rows(x):
    return np.array(sorted(np.asarray(x).round(6).tolist()))


BAG = 10 * np.eye(4, 3) + np.arange(12).reshape(4, 3) / 7  # four rows in four directions


def test_codes_start_as_centres_of_the_collected_vectors(steps):
    _, train, state = steps
    new = train(with_bag(state, BAG), 0, 0.0)
    np.testing.assert_allclose(sorted_rows(codes_of(new)), sorted_rows(BAG), rtol=1e-5)
    np.testing.assert_array_equal(shelf_of(new).size, np.ones(4))  # and their cluster sizes


def test_codes_move_only_by_eta_and_kmeans(steps):
    warmup, train, state = steps
    state = with_bag(state, BAG)
    for index in range(WARMUP):  # no codes yet: nothing touches them, whatever eta
        new = warmup(state, index, 0.5)
        assert same(new.rep.trained["codebook"], state.rep.trained["codebook"]), index
        assert same(shelf_of(new).replace(bag=0), shelf_of(state).replace(bag=0)), index
    for index in range(1, 14):  # at a rate of 0 they never move after their start
        assert same(codes_of(train(state, index, 0.0)), codes_of(state)), index
    assert not same(codes_of(train(state, 1, 0.5)), codes_of(state))


def test_kmeans_refreshes_codes_at_its_iterations_only(steps):
    # the bag is all that tells a step with a K-means refresh from one without
    _, train, state = steps
    read = []
    for index in range(1, 14):
        first = codes_of(train(with_bag(state, BAG), index, 0.25))
        second = codes_of(train(with_bag(state, -BAG), index, 0.25))
        read += [] if same(first, second) else [index]
    assert tuple(read) == REFRESH


def test_a_refresh_moves_the_codes_that_match_the_centres(steps):
    # a step with the same key that refreshes nothing gives the codes just before the refresh; then
    # Eq. 2 with the centres (the bag's rows) in place of z
    _, train, state = steps
    state = with_bag(with_codes(state, 0.1 * BAG), BAG)
    before = np.asarray(codes_of(train(state, 1, 0.25, seed=3)))
    after = codes_of(train(state, REFRESH[0], 0.25, seed=3))
    expected = ref.move(before, BAG, ref.match(before, BAG), 0.25)
    np.testing.assert_allclose(after, expected, rtol=1e-4)


def test_vectors_are_collected_at_the_end_of_the_right_iterations(steps):
    warmup, train, state = steps
    state = with_bag(state, BAG)
    changed = lambda step, count, first: tuple(
        index for index in range(first, count)
        if not same(shelf_of(step(state, index, 0.0)).bag, shelf_of(state).bag)
    )  # fmt: skip
    assert changed(warmup, WARMUP, 0) == (5,)  # the last step of iteration 2
    assert changed(train, 14, 0) == COLLECT
    bag = shelf_of(warmup(state, 5, 0.0)).bag
    assert bag.shape == BAG.shape and (np.abs(bag) < 1).all()  # one z per training task


# --- losses and switches

ALL = {"prediction_loss", "code_loss", "cross_loss", "contrast_loss", "codes_used"}


def losses_of(names):
    return {n for n in names if n.endswith("_loss") and n not in ("q_loss", "v_loss", "bc_loss")}


def test_warmup_has_no_code_terms(tiny):
    assert losses_of(metrics_of(tiny("ctmrl"), 0)) == {"prediction_loss"}


KEPT = {"prediction_loss", "focal_loss", "club_loss", "club_model_loss"}  # what the release adds
CODED = {"code_loss", "cross_loss", "contrast_loss", "code_contrast_loss", "codes_used"}


@pytest.mark.parametrize("fidelity", config_lib.FIDELITIES)
@pytest.mark.parametrize(
    "switch,removed",
    [
        ("use_code_loss", {"code_loss", "code_contrast_loss"}),
        ("use_cross_prediction", {"cross_loss"}),
        ("use_contrast", {"contrast_loss"}),
        ("use_kmeans", set()),
        ("use_codebook", CODED),
    ],
)
def test_each_ablation_removes_its_own_term_only(tiny, fidelity, switch, removed):
    made = tiny("ctmrl", fidelity=fidelity, **{f"algo.{switch}": False})
    names = metrics_of(made, 1)
    whole = ALL if fidelity == "paper" else KEPT | CODED
    assert losses_of(names) == losses_of(whole - removed)
    assert ("codes_used" in names) == ("codes_used" not in removed)


def test_release_adds_focal_and_club_to_every_stage(tiny):
    made = tiny("ctmrl", fidelity="release")
    assert losses_of(metrics_of(made, 0)) == KEPT
    assert losses_of(metrics_of(made, 1)) == losses_of(KEPT | CODED)


def updated(made, **hp):
    """(state before, state after) of one representation update with codes on."""
    data, state = jax.tree.map(jnp.asarray, made.train), made.state()
    rows = data_lib.context_rows(data, jnp.arange(3), 8, jax.random.key(0))
    batch = MetaBatch(rows, rows, jnp.arange(3))
    settings = state.hp["algo"] | {k: jnp.float32(v) for k, v in hp.items()}
    new, _ = jax.jit(made.algorithm.rep.update)(
        state.rep, settings, batch, None, data, jax.random.key(0), jnp.int32(0)
    )
    return state.rep, new, batch


ONLY_PREDICTION = {
    "algo.use_code_loss": False, "algo.use_cross_prediction": False, "algo.use_contrast": False,
}  # fmt: skip


@pytest.mark.parametrize("fidelity", config_lib.FIDELITIES)
def test_prediction_trains_the_encoder_in_the_paper_but_not_in_the_release(tiny, fidelity):
    made = tiny("ctmrl", fidelity=fidelity, **ONLY_PREDICTION)
    old, new, _ = updated(made, focal_weight=0.0, club_weight=0.0)
    assert same(old.params["encoder"], new.params["encoder"]) == (fidelity == "release")
    for decoder in ("reward", "transition"):
        assert not same(old.params["prediction"][decoder], new.params["prediction"][decoder])


def test_codes_follow_equation_2_after_a_step(tiny):
    made = tiny("ctmrl", **ONLY_PREDICTION)
    old, new, batch = updated(made, eta=0.25)
    # z of the encoder before its step: the mean of tanh codes of (s, a, r)
    columns = [batch.context.obs, batch.context.action, batch.context.context_reward[..., None]]
    rows = np.concatenate(columns, -1)
    z = np.tanh(ref.mlp(old.params["encoder"], rows, 1)).mean(1)
    codes = np.asarray(old.params["codebook"])
    expected = ref.move(codes, z, ref.match(codes, z), 0.25)
    np.testing.assert_allclose(new.params["codebook"], expected, atol=1e-5)


def features(rows, *names):
    """Columns of rows, each [T, B, F], side by side in float64."""
    columns = [np.asarray(getattr(rows, name), float) for name in names]
    return np.concatenate([x if x.ndim == 3 else x[..., None] for x in columns], -1)


def paper_losses(params, codes, rows, temperature):
    """{metric: loss} by NumPy, and z. `rows` [4, 1, ...]: all tasks; the first three are a batch.

    codes: (those that cross prediction reads, those that z is matched and contrasted with).
    """
    read, fixed = codes
    z = np.tanh(ref.mlp(params["encoder"], features(rows, "obs", "action", "context_reward"), 1))
    z = z.mean(1)
    group, batch = ref.match(fixed, z), jax.tree.map(lambda x: x[:3], rows)

    def error(vectors):
        pairs = features(batch, "obs", "action")
        seen = np.concatenate([np.repeat(vectors[:, None], pairs.shape[1], 1), pairs], -1)
        errors = [
            ref.mlp(params["prediction"][name], seen, 1) - features(batch, target)
            for name, target in (("reward", "reward"), ("transition", "next_obs"))
        ]
        return sum((e**2).mean() for e in errors)

    every = np.ones((4, 4), bool)  # there are as many fillers as tasks
    return {
        "prediction_loss": error(z[:3]),
        "code_loss": ref.code_contrast(z[:3], fixed, group[:3], temperature),
        "cross_loss": error(read[group[:3]]),
        "contrast_loss": ref.group_contrast(z, z, group, every, temperature),
    }, z


def signs(loss, array):
    """Signs of the slopes of loss(array) by finite differences."""
    found = np.zeros(array.shape)
    for place in np.ndindex(array.shape):
        bump = np.zeros(array.shape)
        bump[place] = 1e-5
        found[place] = loss(array + bump) - loss(array - bump)
    return np.sign(np.where(np.abs(found) < 1e-12, 0.0, found))


def test_an_update_of_the_paper_is_its_equations(tiny):
    """Losses, the gradients' signs (Adam's first step), Eq. 2; every task has one row only."""
    made = tiny("ctmrl", **{"algo.lr": 0.01, "algo.eta": 0.25})
    data = jax.tree.map(jnp.asarray, made.train)
    data = data.replace(rows=jax.tree.map(lambda x: x[:, :1].repeat(30, 1), data.rows))
    rows = jax.tree.map(lambda x: np.asarray(x[:, :1]), data.rows)
    loud = jax.tree.map(lambda x: 5 * x if x.dtype == jnp.float32 else x, made.state().rep)
    params = jax.tree.map(lambda x: np.asarray(x, float), loud.params)
    _, z = paper_losses(params, (params["codebook"],) * 2, rows, 0.5)
    codes = np.float32(z[[0, 2]]).astype(float)  # so that both codes have matches
    book = loud.trained["codebook"].replace(params=jnp.asarray(codes, jnp.float32))
    state = loud.replace(trained=loud.trained | {"codebook": book})

    batch_rows = jax.tree.map(lambda x: jnp.asarray(x[:3]), rows)
    batch = MetaBatch(batch_rows, batch_rows, jnp.arange(3))
    hp = jax.tree.map(lambda x: x[0], made.hp)["algo"]
    update = jax.jit(made.algorithm.rep.update)
    new, metrics = update(state, hp, batch, None, data, jax.random.key(0), jnp.int32(0))

    wanted, _ = paper_losses(params, (codes, codes), rows, 0.5)
    for name, value in wanted.items():
        assert value > 1e-3
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    # codes: Adam's step on cross prediction, then Eq. 2 with z of the batch
    cross = lambda read: sum(paper_losses(params, (read, codes), rows, 0.5)[0].values())
    stepped = codes - 0.01 * signs(cross, codes)
    matched = ref.match(codes, z[:3])
    assert len(set(matched)) == 2
    moved = ref.move(stepped, z[:3], matched, 0.25)
    np.testing.assert_allclose(new.params["codebook"], moved, atol=1e-5)
    # the encoder: the sum of all losses, with the codes that they do not move
    bias = params["encoder"]["Dense_1"]["bias"]

    def total(bias):
        layer = params["encoder"]["Dense_1"] | {"bias": bias}
        other = params | {"encoder": params["encoder"] | {"Dense_1": layer}}
        return sum(paper_losses(other, (codes, codes), rows, 0.5)[0].values())

    step = new.params["encoder"]["Dense_1"]["bias"] - bias
    np.testing.assert_allclose(step, -0.01 * signs(total, bias), atol=1e-5)


def test_the_encoder_may_learn_slower_than_the_rest(tiny):
    old, new, _ = updated(tiny("ctmrl", **{"algo.encoder_rate": 0.0}))
    assert same(old.params["encoder"], new.params["encoder"])
    assert not same(old.params["prediction"], new.params["prediction"])


def test_frozen_bilinear_form_is_never_trained(tiny):
    made = tiny("ctmrl", fidelity="release")
    old, new, _ = updated(made)
    matrix = old.own["codebook"].matrix
    np.testing.assert_array_equal(matrix, new.own["codebook"].matrix)
    assert (np.asarray(matrix) >= 0).all()
    assert not same(old.params, new.params)


# --- configuration


@pytest.mark.parametrize("count", [1, 5])
def test_impossible_numbers_of_codes_are_refused(tiny, count):
    with pytest.raises(errors.UserError, match=f"num_codes is {count}: expected 2 to 4"):
        tiny("ctmrl", **{"algo.num_codes": count})
    tiny("ctmrl", **{"algo.num_codes": count, "algo.use_codebook": False})  # then it is unused


@pytest.mark.parametrize("name,value", [
    ("form", "papers"), ("num_iterations", 1), ("contrast_every", 0),
])  # fmt: skip
def test_unknown_choices_are_refused(tiny, name, value):
    with pytest.raises(errors.UserError, match=name):
        tiny("ctmrl", **{f"algo.{name}": value})


@pytest.mark.parametrize("fidelity", config_lib.FIDELITIES)
def test_a_fidelity_chooses_the_module_of_its_name(tiny, fidelity):
    module = registry.load("algorithm", "ctmrl")
    assert module.DEFAULT_FIDELITY == "paper"
    assert module.FIDELITY[fidelity] == {"algo.form": fidelity}
    made = tiny("ctmrl", fidelity=fidelity)
    form = {"paper": paper, "release": release}[fidelity].make(
        made.config.algo, made.config.train, made.spec, 4
    )
    assert set(jax.eval_shape(made.state).rep.own) == form.always.keys() | form.coded.keys()
    # every part is on in both
    config = made.config.algo
    for switch in ("codebook", "code_loss", "cross_prediction", "kmeans", "contrast"):
        assert getattr(config, f"use_{switch}")
    assert (config.eta, config.decay, config.temperature, config.num_fillers) == (0.1, 0.9, 0.5, 4)
    # docs/methods/ctmrl.md, "Paper against release"
    release_only = {"focal", "club", "code_contrast"}
    terms = form.always.keys() | form.coded.keys()
    shared = {"prediction", "codebook", "code", "cross", "contrast"}
    assert terms == (shared if fidelity == "paper" else shared | release_only)
    assert form.rules.unit_norm == (fidelity == "release")
    assert (form.rules.collect is not None) == (fidelity == "release")


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


def test_predicted_rewards_are_the_decoders(tiny):
    made = tiny("ctmrl")
    rep = made.state().rep
    data = jax.tree.map(jnp.asarray, made.train)
    rows = data_lib.context_rows(data, jnp.arange(1), 8, jax.random.key(0))
    rows, z = jax.tree.map(lambda x: x[0], rows), jnp.array([0.5, -0.5, 0.25])
    found = made.algorithm.rep.predict_reward(rep, z, rows)
    seen = np.concatenate([np.tile(z, (8, 1)), rows.obs, rows.action], -1)
    wanted = ref.mlp(rep.params["prediction"]["reward"], seen, 1)[:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
