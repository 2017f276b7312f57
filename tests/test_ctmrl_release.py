"""CTMRL's release: what its codebook goes through in a step, at the start, and at refreshes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from toy_encoder import ENCODER, batch_of, dataset_of

from gentle_jax import compose, losses
from gentle_jax.algorithms.ctmrl import Config, codebook, paper, release
from gentle_jax.config import TrainConfig
from gentle_jax.types import Spec

CODES = np.eye(2)  # and their running mean; running sizes are 1
DECAY = 0.9
Z = np.array([(0.6, 0.5), (0.6, 0.5), (0.0, 1.0)])  # of the batch
Z_ALL = np.array([(0.9, 0.1), (0.5, 0.58), (0.1, 0.9)])  # of all training tasks
Z_OTHER = np.array([(0.8, 0.2), (0.3, 0.6), (0.0, 0.8)])  # of their second contexts
MATRIX = np.array([(1.0, 0.5), (0.2, 0.3)])
TRAIN = TrainConfig(latent_dim=2, context_size=1)
SPEC = Spec(obs_dim=2, action_dim=1, num_train_tasks=3, rows_per_task=2, horizon=1)


def form_of(module, **settings):
    """Returns the Form of a fidelity, for two codes."""
    return module.make(Config(num_codes=2, **settings), TRAIN, SPEC, bag_rows=6)


def book_of(codes=CODES, size=(1.0, 1.0)):
    codes = jnp.asarray(codes, jnp.float32)
    return codebook.Codebook(codes, codes, jnp.asarray(size, jnp.float32))


def passed(mean, size, codes, vectors, count=1):
    """The book after some passes, by NumPy: each matches its codes, then averages."""
    for _ in range(count):
        codes, mean, size = ref.move_ema(mean, size, vectors, ref.match(codes, vectors), DECAY)
    return codes, mean, size


def rep_of(*names, **settings):
    """(representation with the codebook and some other terms, its state, hyper-parameters)."""
    form = form_of(release, **settings)
    terms = {name: form.coded[name] for name in ("codebook", *names)}
    rep = compose.representation(ENCODER, terms, TRAIN)
    state = rep.init({}, jax.random.key(0), None)
    shelf = state.own["codebook"].replace(
        mean=jnp.asarray(CODES, jnp.float32), matrix=jnp.asarray(MATRIX, jnp.float32)
    )
    codes = state.trained["codebook"].replace(params=jnp.asarray(CODES, jnp.float32))
    state = state.replace(
        trained=state.trained | {"codebook": codes}, own=state.own | {"codebook": shelf}
    )
    values = {"lr": 0.0, "decay": DECAY, "contrast_weight": 1.0, "code_loss_weight": 1.0}
    return rep, state, {k: jnp.float32(v) for k, v in (values | {"commit_weight": 1.0}).items()}


def update(rep, state, hp, z, data=None, **others):
    """(state, metrics) after one update on a batch of contexts with these z."""
    hp = hp | {name: jnp.float32(value) for name, value in others.items()}
    return rep.update(state, hp, batch_of(z), None, data, jax.random.key(0), jnp.int32(0))


# --- the contrast's groups


def test_groups_are_matched_after_the_passes_of_the_step():
    book = release.forward_passes(book_of(), jnp.asarray(Z), DECAY)
    codes = codebook.averaged(book.mean, book.size)
    np.testing.assert_array_equal(codes, book.codes)  # nothing but the averages is behind them
    views = jnp.asarray(Z_OTHER), jnp.asarray(Z_ALL)
    contrast = lambda group: losses.bilinear_group_contrast(*views, group, 2, jnp.asarray(MATRIX))
    group = codebook.match(codes, jnp.asarray(Z_ALL))
    np.testing.assert_array_equal(group, [0, 0, 1])
    np.testing.assert_allclose(contrast(group), 0.667582, atol=1e-6)
    early = codebook.match(jnp.asarray(CODES), jnp.asarray(Z_ALL))
    np.testing.assert_array_equal(early, [0, 1, 1])
    np.testing.assert_allclose(contrast(early), 0.674601, atol=1e-6)


@pytest.fixture(scope="module")
def contrasted():
    """run(z) -> (loss, running mean) of 1024 updates that draw their contexts differently.

    A task's data are one row with z = Z_ALL and one with Z_OTHER; contexts have one row.
    """
    rep, state, hp = rep_of("contrast")
    data = dataset_of(np.stack([Z_ALL, Z_OTHER], 1))
    keys = jax.random.split(jax.random.key(1), 1024)

    @jax.jit
    def run(z):
        one = lambda k: rep.update(state, hp, batch_of(z), None, data, k, jnp.int32(0))
        new, metrics = jax.vmap(one)(keys)
        return metrics["contrast_loss"], new.own["codebook"].mean

    return lambda z: [np.asarray(x) for x in run(jnp.asarray(z, jnp.float32))]


def expected_of(z):
    """{(rows of the first view, rows of the second): (loss, running mean)} by NumPy."""
    before = passed(CODES, np.ones(2), CODES, z, count=3)
    table = {}
    for first, second in itertools.product(itertools.product((0, 1), repeat=3), repeat=2):
        pick = lambda rows: np.where(np.array(rows)[:, None] == 0, Z_ALL, Z_OTHER)
        positive, anchor = pick(first), pick(second)
        group = ref.match(before[0], positive)
        loss = ref.bilinear_group_contrast(anchor, positive, group, MATRIX)
        _, mean, _ = ref.move_ema(before[1], before[2], positive, group, DECAY)
        table[first, second] = loss, mean
    return table


def test_an_update_contrasts_and_passes_the_contexts_of_all_tasks(contrasted):
    loss, mean = contrasted(Z)
    found = set()
    for views, (wanted, wanted_mean) in expected_of(Z).items():
        same = np.isclose(loss, wanted, atol=2e-6)
        same &= np.isclose(mean, wanted_mean, atol=1e-6).all((1, 2))
        found |= {(views, int(i)) for i in np.flatnonzero(same)}
    assert len({i for _, i in found}) == 1024  # each update is one of the 64 draws,
    assert len({views for views, _ in found}) == 64  # and each of these occurs
    assert np.isclose(loss, 0.667582, atol=1e-6).any()


def test_one_code_in_the_batch_means_no_contrast_and_no_pass_of_it(contrasted):
    z = np.array([(0.6, 0.5), (0.6, 0.4), (0.9, 0.1)])  # all match code 0
    loss, mean = contrasted(z)
    np.testing.assert_array_equal(loss, 0.0)
    wanted = passed(CODES, np.ones(2), CODES, z, count=3)[1]
    np.testing.assert_allclose(mean, np.broadcast_to(wanted, mean.shape), atol=1e-6)


def test_the_contrast_may_be_taken_less_often():
    rep, state, hp = rep_of("contrast", contrast_every=2)
    data = dataset_of(np.stack([Z_ALL, Z_OTHER], 1))
    one = lambda index: rep.update(
        state, hp, batch_of(Z), None, data, jax.random.key(0), jnp.int32(index)
    )
    (due, metrics), (left_out, nothing) = one(0), one(1)
    assert float(metrics["contrast_loss"]) > 0 == float(nothing["contrast_loss"])
    three = passed(CODES, np.ones(2), CODES, Z, count=3)
    np.testing.assert_allclose(left_out.own["codebook"].mean, three[1], atol=1e-6)
    assert np.abs(due.own["codebook"].mean - three[1]).max() > 1e-3


# --- Adam's step on codes


def test_codes_are_the_moving_average_and_adams_step():
    rep, state, hp = rep_of("code")
    z = np.array([(0.6, 0.5), (0.6, 0.5), (0.1, 1.0)])
    new, metrics = update(rep, state, hp, z, lr=0.01)
    # commitment: mean over 3 x 2 of (code - z)^2, codes (1, 0), (1, 0), (0, 1)
    wanted = (2 * 0.4**2 + 2 * 0.5**2 + 0.1**2) / 6
    np.testing.assert_allclose(metrics["code_loss"], wanted, rtol=1e-5)
    codes, mean, size = passed(CODES, np.ones(2), CODES, z, count=3)
    np.testing.assert_allclose(new.own["codebook"].mean, mean, atol=1e-6)
    np.testing.assert_allclose(new.own["codebook"].size, size, atol=1e-6)
    # Adam's first step is the rate against the sign of code - z: (+, -), (-, 0)
    step = 0.01 * np.array([(-1.0, 1.0), (1.0, 0.0)])
    np.testing.assert_allclose(new.params["codebook"], codes + step, atol=1e-5)
    assert float(new.params["encoder"]) != 1.0  # commitment reaches z, too


def test_adams_step_on_codes_is_seen_once_and_gone():
    # a rate of 0.5 turns codes so far that another one matches (.6, .5)
    rep, state, hp = rep_of("code")
    first, _ = update(rep, state, hp, Z, lr=0.5)
    first = first.replace(trained=first.trained | {"encoder": state.trained["encoder"]})
    shelf, codes = first.own["codebook"], np.asarray(first.params["codebook"])
    averaged = np.asarray(codebook.averaged(shelf.mean, shelf.size))
    z = np.array([(0.2, 0.9), (0.9, 0.2), (0.5, 0.5)])
    assert ref.match(codes, z) != ref.match(averaged, z)
    second, metrics = update(rep, first, hp, z, lr=0.0)
    # matched with the codes that Adam moved, and answered with them
    wanted = np.mean((codes[ref.match(codes, z)] - z) ** 2)
    np.testing.assert_allclose(metrics["code_loss"], wanted, rtol=1e-5)
    rebuilt, mean, _ = passed(np.asarray(shelf.mean), np.asarray(shelf.size), codes, z, count=3)
    np.testing.assert_allclose(second.own["codebook"].mean, mean, atol=1e-5)
    # and the first step's move is in no code any longer
    np.testing.assert_allclose(second.params["codebook"], rebuilt, atol=1e-5)


def test_codes_are_contrasted_with_each_other_after_the_passes():
    rep, state, hp = rep_of("code_contrast", use_contrast=False)
    new, metrics = update(rep, state, hp, Z, lr=0.01, code_loss_weight=2.0)
    codes, _, _ = passed(CODES, np.ones(2), CODES, Z, count=3)
    value = lambda c: ref.bilinear_group_contrast(c, c, [0, 0], MATRIX)
    np.testing.assert_allclose(metrics["code_contrast_loss"], 2 * value(codes), rtol=1e-5)
    slope = np.zeros((2, 2))
    for place in itertools.product(range(2), repeat=2):
        bump = np.zeros((2, 2))
        bump[place] = 1e-4
        slope[place] = (value(codes + bump) - value(codes - bump)) / 2e-4
    assert np.abs(slope).min() > 1e-3
    np.testing.assert_allclose(new.params["codebook"], codes - 0.01 * np.sign(slope), atol=1e-5)
    assert float(new.params["encoder"]) == 1.0  # it moves codes only


# --- collection and K-means


def test_a_start_takes_the_counts_of_the_last_assignment():
    counts = jnp.array([3.0, 0.0])
    book = codebook.from_centres(jnp.asarray(CODES), counts)
    for part, wanted in ((book.codes, CODES), (book.mean, CODES), (book.size, counts)):
        np.testing.assert_array_equal(part, wanted)


def test_an_empty_centre_counts_one_in_the_release_and_nothing_in_the_paper():
    centres, counts = np.array([(0.8, 0.1), (0.1, 0.7)]), jnp.array([0.0, 3.0])
    hp = {"decay": DECAY, "eta": 0.5}
    moved = form_of(release).rules.refresh(book_of(), jnp.asarray(centres), counts, hp)
    _, mean, size = passed(CODES, np.ones(2), CODES, centres)
    np.testing.assert_allclose(moved.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moved.size, size, rtol=1e-6)  # 1 stays 1: a centre for each code
    moved = form_of(paper).rules.refresh(book_of(), jnp.asarray(centres), counts, hp)
    np.testing.assert_allclose(moved.codes, [(1.0, 0.0), (0.05, 0.85)], rtol=1e-6)


# codes from iteration 1, K-means every third one after it, iterations of 2 steps
SCHEDULE, STEPS = (1, (0, 1), 3), 2
VECTORS = jnp.array([(0.7, 0.2), (0.3, 0.4)])
BAG = jnp.array([(3.0, 0.0), (0.0, 2.0), (9.0, 9.0), (9.0, 9.0)])


def ended(module, iteration, bag=BAG, step=-1):
    """(book, bag) after a step of an iteration, by default its last."""
    rules = form_of(module).rules
    periodic = codebook.make_periodic(SCHEDULE, STEPS, 2, 2, rules)
    at = jnp.int32((iteration + 1) * STEPS + step)
    hp = {"decay": DECAY, "eta": 0.5}
    return periodic.after_train(book_of(), bag, lambda: VECTORS, jax.random.key(0), at, hp)


@pytest.mark.parametrize("iteration", [1, 2, 3])  # the first one with codes, and two that collect
def test_collecting_passes_the_vectors_through_the_codebook(iteration):
    book, bag = ended(release, iteration)
    codes, mean, size = passed(CODES, np.ones(2), CODES, np.asarray(VECTORS))
    for part, wanted in ((book.codes, codes), (book.mean, mean), (book.size, size)):
        np.testing.assert_allclose(part, wanted, rtol=1e-5)
    slot = {1: None, 2: 0, 3: 2}[iteration]  # the first iteration has no place in the bag
    wanted = BAG if slot is None else BAG.at[slot : slot + 2].set(VECTORS)
    np.testing.assert_array_equal(bag, wanted)
    same, bag = ended(release, iteration, step=-2)  # not at the end: nothing
    np.testing.assert_array_equal(same.codes, CODES)
    np.testing.assert_array_equal(bag, BAG)


@pytest.mark.parametrize("iteration", [1, 2, 3])
def test_collecting_moves_no_code_in_the_paper(iteration):
    book, bag = ended(paper, iteration)
    np.testing.assert_array_equal(book.codes, CODES)
    assert np.array_equal(bag, BAG) == (iteration == 1)


def test_a_refresh_passes_vectors_first_and_centres_second():
    # four rows in two directions: whatever two rows K-means begins with, unless both lie in one
    # direction, its centres are (1, 0) and (0, 1), and so for this key
    bag = jnp.array([(3.0, 0.0), (0.0, 2.0), (1.0, 0.0), (0.0, 4.0)])
    centres, _ = codebook.kmeans(bag, jnp.ones(4), 2, jax.random.key(0), True)
    np.testing.assert_allclose(np.sort(centres, 0), [(0, 0), (1, 1)], atol=1e-6)
    book, same = ended(release, 4, bag)
    np.testing.assert_array_equal(same, bag)  # its own vectors are not kept
    after = passed(CODES, np.ones(2), CODES, np.asarray(VECTORS))
    codes, mean, size = passed(after[1], after[2], after[0], np.asarray(centres))
    for part, wanted in ((book.codes, codes), (book.mean, mean), (book.size, size)):
        np.testing.assert_allclose(part, wanted, rtol=1e-5)
