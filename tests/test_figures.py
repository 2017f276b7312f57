"""Figures: every edge case writes two non-empty files, and what they show is right."""

import numpy as np
import pytest

from experiments.show import figures

pytestmark = pytest.mark.filterwarnings("error")


def check(paths):
    """Asserts that a PNG and an SVG were written, and are more than an empty canvas."""
    assert [path.suffix for path in paths] == [".png", ".svg"]
    assert all(path.stat().st_size > 5_000 for path in paths)


def make_arrays(num_points, num_seeds, reached):
    """Returns what `returns.npz` holds, NaN from point `reached` on."""
    random = np.random.default_rng(0)
    returns = random.normal(size=(num_points, num_seeds, 2, 3))
    returns[reached:] = np.nan
    return {
        "test/one_shot": returns,
        "train/one_shot": returns,
        "eval_steps": 10_000 * np.arange(1, num_points + 1),
        "random_return": np.full(4, -3.0),
        "reference_return": np.full(4, 3.0),
        "train_ids": np.array([0, 1]),
        "test_ids": np.array([2, 3]),
    }


@pytest.mark.parametrize(
    ("points", "seeds", "reached"), [(3, 4, 3), (1, 1, 1), (3, 2, 1), (2, 2, 0)]
)
def test_learning_curves(tmp_path, points, seeds, reached):
    check(figures.learning_curves(tmp_path, make_arrays(points, seeds, reached), title="title"))


def test_learning_curves_of_a_sweep_with_a_diverged_run(tmp_path):
    arrays = make_arrays(3, 4, 3)
    arrays["test/one_shot"][1:, 0] = np.nan
    groups = [("lr=1", slice(0, 2)), ("lr=2", slice(2, 4))]
    paths = figures.learning_curves(tmp_path, arrays, metric="all", groups=groups)
    check(paths)
    assert figures.num_diverged(arrays["test/one_shot"].mean((2, 3))) == 1


@pytest.mark.parametrize("seeds_tasks_contexts_width", [(2, 4, 3, 5), (1, 2, 1, 2), (1, 1, 1, 4)])
def test_embeddings(tmp_path, seeds_tasks_contexts_width):
    z = np.random.default_rng(0).normal(size=seeds_tasks_contexts_width)
    num_tasks = z.shape[1]
    ids = {"train": np.arange(num_tasks), "test": num_tasks + np.arange(num_tasks)}
    parameters = np.linspace(0, 1, 2 * num_tasks)[:, None]
    check(figures.embeddings(tmp_path, {"train": z, "test": z + 1}, ids, parameters, ("speed",)))


def test_embeddings_skip_a_diverged_seed_and_a_collapsed_latent(tmp_path):
    z = np.zeros((2, 3, 4, 5))
    z[0] = np.nan
    assert figures.first_finite(z) == 1
    check(figures.embeddings(tmp_path, {"test": z}, {"test": range(3)}, np.zeros((3, 1)), ("a",)))


def test_embeddings_of_no_finite_seed(tmp_path):
    z = np.full((1, 3, 4, 5), np.nan)
    check(figures.embeddings(tmp_path, {"test": z}, {"test": range(3)}, np.eye(3), ("a", "b", "c")))


def test_perplexity_stays_below_the_number_of_points():
    z = np.random.default_rng(0).normal(size=(6, 3))
    points, made = figures.flatten_to_plane(z)
    assert points.shape == (6, 2)
    assert "perplexity 2" in made  # (6 - 1) / 3, rounded


def test_task_colours_say_what_they_show():
    angle = np.linspace(0, np.pi, 5)
    half = np.stack([np.cos(angle), np.sin(angle)], -1)
    [(values, label, colour_map)] = figures.task_colours(half, ("x", "y"))
    np.testing.assert_allclose(values, [0, 45, 90, 135, 180])
    assert label == "angle of (x, y) in degrees"
    assert colour_map == "viridis"
    [(_, _, colour_map)] = figures.task_colours(np.concatenate([half, -half]), ("x", "y"))
    assert colour_map == "twilight"  # a full turn ends where it began
    square = np.random.default_rng(0).uniform(size=(5, 2))
    assert [label for _, label, _ in figures.task_colours(square, ("x", "y"))] == ["x", "y"]
    # a parameter that no task changes says nothing
    flat = np.stack([np.ones(4), np.arange(4)], -1)
    assert [label for _, label, _ in figures.task_colours(flat, ("x", "y"))] == ["y"]


def test_codes_by_hand():
    codes = np.array([[[[0, 2, 2], [1, 1, 3]]], [[[np.nan] * 3, [np.nan] * 3]]])
    expected = [[[2, 1]], [[np.nan, np.nan]]]
    np.testing.assert_array_equal(figures.most_frequent(codes), expected)
    np.testing.assert_array_equal(figures.codes_in_use(codes), [[4], [np.nan]])


@pytest.mark.parametrize("num_codes", [None, 8, 16, 64])
def test_code_assignment(tmp_path, num_codes):
    codes = np.random.default_rng(0).integers(0, 8, (3, 2, 5, 4)).astype(float)
    codes[2] = np.nan
    check(figures.code_assignment(tmp_path, codes, [100, 200, 300], num_codes))


def test_code_assignment_of_one_point_or_none(tmp_path):
    check(figures.code_assignment(tmp_path, np.zeros((1, 1, 1, 1)), [100]))
    check(figures.code_assignment(tmp_path, np.full((2, 2, 2, 2), np.nan), [100, 200], 8))


@pytest.mark.parametrize("seeds_tasks", [(3, 2), (1, 1), (1, 20)])
def test_rollouts(tmp_path, seeds_tasks):
    random = np.random.default_rng(0)
    paths, mask = random.normal(size=(*seeds_tasks, 6, 2)), np.ones((*seeds_tasks, 5))
    mask[0, 0, 2:] = 0
    before = paths.copy()
    landmarks = random.normal(size=(seeds_tasks[1], 2))
    check(figures.rollouts(tmp_path, paths, mask, landmarks, random.normal(size=seeds_tasks)))
    check(figures.rollouts(tmp_path, paths, mask, None))
    np.testing.assert_array_equal(paths, before)


def test_rollouts_of_a_diverged_run(tmp_path):
    paths = np.full((1, 2, 4, 2), np.nan)
    check(figures.rollouts(tmp_path, paths, np.ones((1, 2, 3)), None, np.full((1, 2), np.nan)))


def test_equal_inputs_give_equal_files(tmp_path):
    arrays = make_arrays(2, 2, 2)
    first = figures.learning_curves(tmp_path / "a", arrays)
    second = figures.learning_curves(tmp_path / "b", arrays)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
