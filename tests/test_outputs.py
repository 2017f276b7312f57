"""What `outputs` says of returns whose slots may be empty."""

import types

import numpy as np

from experiments.runs import outputs, shards
from gentle_jax import assembly
from tests.test_gather import make_run


def failed(returns):
    """Returns the seeds that `failed_seeds` names. Args: returns [S, task, E]."""
    seeds = len(returns)
    session = types.SimpleNamespace(
        lost=np.zeros(seeds, bool), labels=lambda: [(seed, {}) for seed in range(seeds)]
    )
    entries = outputs.failed_seeds(session, {"returns": {"online": np.array(returns)[None]}})
    return [entry["seed"] for entry in entries]


def test_an_empty_slot_is_no_failed_seed_but_an_end_that_is_not_finite_is():
    nan = np.nan
    good, diverged, later = [1, nan, nan, 2], [nan, nan, nan, nan], [1, 2, nan, nan]
    assert failed([[good, good], [good, diverged], [later, good]]) == [1, 2]
    assert failed([[[1, 2, 3]], [[1, np.inf, 3]]]) == [1]


def test_the_grid_point_of_figures_is_the_best_on_training_tasks_that_did_not_diverge():
    run = types.SimpleNamespace(protocols=("online", "other"))
    config = types.SimpleNamespace(run=run, eval=types.SimpleNamespace(metric="final"))
    points = ({}, {}, {})
    last = np.array([[1.0, 1.0], [2.0, 2.0], [5.0, 5.0], [6.0, 0.0], [np.nan, 9.0], [9.0, 9.0]])
    returns = np.stack([np.full_like(last, 100.0), last], -1)[None]  # [1, run, task, episode]
    arrays = {"train/online": returns, "train/other": -returns, "test/online": -returns}
    assert outputs.best_point(config, points, arrays) == 1
    assert outputs.best_point(config, points, {"train/online": np.full_like(returns, np.nan)}) == 0


def test_of_many_grid_points_the_curves_of_the_best_are_drawn(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "--sweep=lr=" + ",".join(f"{k / 1000}" for k in range(1, 15)))
    shard = shards.read_shard(folder)
    config, points = shards.settings_of(shard.identity)
    returns = shards.load(shard, "returns.npz")
    drawn = {}
    for name in ("embeddings", "code_assignment", "rollouts"):
        monkeypatch.setattr(outputs.figures, name, lambda *args: None)
    monkeypatch.setattr(
        outputs.figures, "learning_curves",
        lambda *args: drawn.update(labels=[label for label, _ in args[3]], title=args[4]),
    )  # fmt: skip
    request = types.SimpleNamespace(config=config, points=points)
    embeddings = shards.load(shard, "embeddings.npz")
    trace = shards.load(shard, "rollouts.npz")
    env = assembly.env_of(config)
    outputs.draw(folder, request, env, returns, embeddings, (trace["paths"], trace["mask"]))
    # returns grow with the grid point
    assert drawn["labels"] == [outputs.label(point) for point in points[2:]]
    assert "the best 12 of 14 grid points on training tasks" in drawn["title"]
