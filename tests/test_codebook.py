"""The codebook: match, moves, K-means, and when they run (docs/methods/ctmrl.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax.algorithms.ctmrl import codebook


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def book_of(codes, size=None):
    codes = jnp.asarray(codes, jnp.float32)
    size = jnp.ones(codes.shape[0]) if size is None else jnp.asarray(size, jnp.float32)
    return codebook.Codebook(codes, 2.0 * codes, size)


def test_match_is_the_largest_cosine_whatever_the_norms():
    # z points nearly along code 1, which is short; code 0 has the larger dot product
    codes = jnp.array([[10.0, 10.0], [0.01, 0.0]])
    np.testing.assert_array_equal(codebook.match(codes, jnp.array([[1.0, 0.1]])), [1])
    codes, z = normal(5, 4), normal(20, 4, seed=1)
    np.testing.assert_array_equal(
        codebook.match(jnp.array(codes), jnp.array(z)), ref.match(codes, z)
    )


def test_match_of_zero_vectors_is_defined():
    assert int(codebook.match(jnp.zeros((3, 2)), jnp.zeros((1, 2)))[0]) == 0


def test_match_heeds_the_direction_of_codes_and_z_that_are_nearly_zero():
    # the release's codes shrink: with a floor of 1e-8 below squared norms, a code of norm 1e-5 has
    # at most a tenth of its cosine, and the long code at 60 degrees would win
    codes = jnp.array([[1e-5, 0.0], [0.5, 3**0.5 / 2]])
    np.testing.assert_array_equal(codebook.match(codes, jnp.array([[1.0, 0.0]])), [0])
    np.testing.assert_array_equal(codebook.match(codes[::-1], jnp.array([[1e-5, 0.0]])), [1])
    np.testing.assert_allclose(codebook.unit(codes), [[1.0, 0.0], codes[1]], rtol=1e-5)


def test_move_by_hand_and_unmatched_codes_stay():
    # code 0 has matches (1, 0), (3, 0), mean (2, 0): .9 * (1, 1) + .1 * (2, 0) = (1.1, 0.9)
    z, matched = jnp.array([[1.0, 0.0], [3.0, 0.0]]), jnp.array([0, 0])
    moved = codebook.move(book_of([[1.0, 1.0], [5.0, -7.0]]), z, matched, 0.1)
    np.testing.assert_allclose(moved.codes, [[1.1, 0.9], [5.0, -7.0]], rtol=1e-6)


def test_move_matches_loops():
    codes, z, matched = normal(4, 3), normal(6, 3, seed=1), np.array([0, 2, 2, 0, 0, 3])
    moved = codebook.move(book_of(codes), jnp.array(z), jnp.array(matched), 0.25)
    np.testing.assert_allclose(moved.codes, ref.move(codes, z, matched, 0.25), rtol=1e-5)


def test_move_leaves_rows_of_weight_zero_out():
    codes, z = normal(2, 3), normal(3, 3, seed=1)
    weight = jnp.array([1.0, 0.0, 0.0])
    moved = codebook.move(book_of(codes), jnp.array(z), jnp.array([0, 0, 1]), 0.5, weight)
    np.testing.assert_allclose(moved.codes, ref.move(codes, z[:1], [0], 0.5), rtol=1e-5)


def test_moving_average_matches_loops_with_its_smoothing():
    codes, z, matched = normal(4, 3), normal(6, 3, seed=1), np.array([0, 2, 2, 0, 0, 3])
    size = np.array([3.0, 0.0, 1e-6, 2.0], np.float32)  # small sizes, where smoothing shows
    book = book_of(codes, size)
    moved = codebook.move_ema(book, jnp.array(z), jnp.array(matched), 0.9)
    expected = ref.move_ema(2.0 * codes, size, z, matched, 0.9)
    # code 1 was never matched and has size 0: its smoothed size is 1e-5 and its code mean / 1e-5
    np.testing.assert_allclose(moved.codes, expected[0], rtol=1e-4)
    np.testing.assert_allclose(moved.mean, expected[1], rtol=1e-5)
    np.testing.assert_allclose(moved.size, expected[2], rtol=1e-5)


def test_moving_average_right_after_kmeans_shrinks_codes():
    # unit means with counts n are not consistent; 300 vectors on 4 codes give codes of norm about
    # 1 / 75 at the first call
    codes = np.eye(4, dtype=np.float32)
    book = codebook.Codebook(jnp.array(codes), jnp.array(codes), jnp.full(4, 75.0))
    moved = codebook.move_ema(book, jnp.array(codes), jnp.arange(4), 0.9)
    # (.9 * 1 + .1 * 1) / (.9 * 75 + .1 * 1) = 1 / 67.6
    np.testing.assert_allclose(np.linalg.norm(moved.codes, axis=1), 1 / 67.6, rtol=1e-4)


# six rows, of which the first two are seeds
POINTS = [(0.1, 0.5), (-1.0, 0.7), (-0.4, -1.6), (-0.6, 0.6), (0.3, -1.1), (0.6, -0.1)]


def test_lloyd_counts_the_assignment_before_the_last_averaging():
    # by dot product with (.1, .5) and (-1, .7): rows 0, 4 and 5 go to the first, the others to the
    # second; their means are (1, -.7) / 3 and (-2, -.3) / 3, at length 1 below. Assigned once more,
    # these would have 2 and 4 rows
    points = jnp.array(POINTS)
    centres, counts = codebook.lloyd(points, jnp.ones(6), points[:2], True, iterations=1)
    np.testing.assert_array_equal(counts, [3.0, 3.0])
    expected = [np.array([1.0, -0.7]) / 1.49**0.5, np.array([-2.0, -0.3]) / 4.09**0.5]
    np.testing.assert_allclose(centres, expected, rtol=1e-5)
    _, again = codebook.lloyd(points, jnp.ones(6), centres, True, iterations=1)
    np.testing.assert_array_equal(again, [2.0, 4.0])


def test_lloyd_of_the_paper_takes_the_nearest_centre():
    # rows 0, 4 and 5 are nearer to (.1, .5), and so is row 2: 4.66 against 5.65 of squared distance
    points = jnp.array(POINTS)
    centres, counts = codebook.lloyd(points, jnp.ones(6), points[:2], False, iterations=1)
    np.testing.assert_array_equal(counts, [4.0, 2.0])
    np.testing.assert_allclose(centres, [[0.15, -0.575], [-0.8, 0.65]], rtol=1e-5)


@pytest.fixture(scope="module")
def kmeans():
    return jax.jit(codebook.kmeans, static_argnums=(2, 4))


@pytest.fixture(scope="module")
def clusters():
    """60 points around three orthogonal unit vectors, and the vectors."""
    centres = np.eye(3, dtype=np.float32)
    points = np.repeat(centres, 20, 0) + 0.02 * normal(60, 3)
    return points, centres


@pytest.mark.parametrize("unit_norm", [False, True])
def test_kmeans_recovers_separated_clusters(kmeans, clusters, unit_norm):
    points, centres = clusters
    # Lloyd from random rows may start twice in one cluster; separated clusters and ten seeds: the
    # best fit must be right, and counts must add up in each
    fits = []
    for seed in range(10):
        found, counts = kmeans(jnp.array(points), jnp.ones(60), 3, jax.random.key(seed), unit_norm)
        assert float(counts.sum()) == 60
        distance = np.linalg.norm(centres[:, None] - np.asarray(found)[None], axis=-1)
        fits.append((distance.min(1).max(), np.sort(counts)))
    worst, counts = min(fits, key=lambda fit: fit[0])
    assert worst < 0.05
    np.testing.assert_array_equal(counts, [20, 20, 20])


def test_kmeans_centres_are_means_of_their_clusters(kmeans, clusters):
    points, _ = clusters
    found, counts = kmeans(jnp.array(points), jnp.ones(60), 3, jax.random.key(1), False)
    nearest = ((points[:, None] - np.asarray(found)[None]) ** 2).sum(-1).argmin(1)
    for n in range(3):
        assert float(counts[n]) == (nearest == n).sum()
        np.testing.assert_allclose(found[n], points[nearest == n].mean(0), atol=1e-5)


def test_kmeans_of_the_release_returns_unit_centres(kmeans, clusters):
    found, _ = kmeans(jnp.array(clusters[0]), jnp.ones(60), 3, jax.random.key(0), True)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-4)


def test_kmeans_ignores_invalid_rows(kmeans, clusters):
    points, _ = clusters
    valid = np.r_[np.ones(40), np.zeros(20)].astype(np.float32)
    other = points.copy()
    other[40:] = 1e6  # what invalid rows hold does not matter
    for seed in range(3):
        key = jax.random.key(seed)
        first = kmeans(jnp.array(points), jnp.array(valid), 3, key, False)
        second = kmeans(jnp.array(other), jnp.array(valid), 3, key, False)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
        assert float(first[1].sum()) == 40


def test_kmeans_empty_cluster_keeps_its_centre(kmeans):
    # 60 rows of two values: with three starts, two are the same row and argmax gives every point to
    # the first of them; the other keeps the row that it started from
    points = np.repeat(np.array([[1.0, 0, 0], [0, 1.0, 0]], np.float32), 30, 0)
    found, counts = kmeans(jnp.array(points), jnp.ones(60), 3, jax.random.key(0), False)
    assert sorted(np.asarray(counts)) in ([0, 30, 30], [0, 0, 60])
    for row in np.asarray(found):
        assert any(np.allclose(row, p) for p in points)


def periodic(num_iterations):
    """Returns (first, iterations collected for the start, K-means refreshes) of a schedule."""
    first, warmup, period = codebook.refresh_schedule(num_iterations)
    refreshes = [i for i in range(first + 1, num_iterations) if (i - first) % period == 0]
    return first, list(range(*warmup)), refreshes


def test_schedule_of_105_iterations():
    # collect 22..31 (21 is not, 0.2 is excluded), start 32, 38, 44, ..., 104
    first, collected, refreshes = periodic(105)
    assert first == 32
    assert collected == list(range(22, 32))
    assert refreshes == list(range(38, 105, 6))
    assert refreshes[-1] == 104


def test_schedule_of_65_iterations():
    first, collected, refreshes = periodic(65)
    assert first == 20
    assert collected == list(range(14, 20))
    assert refreshes == list(range(24, 65, 4))
    assert refreshes[-1] == 64


@pytest.mark.parametrize("num_iterations", [2, 3, 5, 10, 50, 200])
def test_schedule_of_any_length_collects_before_it_starts(num_iterations):
    first, (begin, end), period = codebook.refresh_schedule(num_iterations)
    assert 0 <= begin < end == first < num_iterations
    assert first >= 0.3 * num_iterations
    assert period >= 2
