"""Statistics: values by hand, intervals that cover, edge cases of one seed and of NaN."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from gentle_jax import statistics

pytestmark = pytest.mark.filterwarnings("error")


def test_bootstrap_ci_agrees_with_scipy():
    per_seed = np.random.default_rng(0).normal(size=8)
    theirs = stats.bootstrap((per_seed,), np.mean, method="percentile").confidence_interval
    low, high = statistics.bootstrap_ci(per_seed)
    assert low == pytest.approx(theirs.low, abs=0.05)
    assert high == pytest.approx(theirs.high, abs=0.05)
    assert low < per_seed.mean() < high


@pytest.mark.parametrize("per_seed", [[0.1], [0.1, 0.1, 0.1]])
def test_bootstrap_ci_without_spread_is_the_value(per_seed):
    assert statistics.bootstrap_ci(per_seed) == (0.1, 0.1)


def test_bootstrap_ci_covers_the_true_mean():
    # 30 seeds, so that the percentile interval is near its nominal 95%
    random = np.random.default_rng(1)
    hits = [low < 0 < high for low, high in map(interval, random.normal(size=(300, 30)))]
    assert 0.89 < np.mean(hits) < 0.98


def interval(sample):
    return statistics.bootstrap_ci(sample, 500)


def test_iqm_drops_the_outer_quarters():
    # sorted: -100 1 2 3 4 5 6 100; two values go at each end, (2 + 3 + 4 + 5) / 4 = 3.5 remains
    assert statistics.iqm([[1, -100, 5, 3], [100, 2, 4, 6]]) == 3.5


def test_iqm_ci_resamples_within_tasks():
    # equal seeds on unequal tasks: stratified resampling cannot change anything
    scores = np.tile([1.0, 5.0, 9.0, 20.0], (6, 1))
    assert statistics.iqm_ci(scores) == (7.0, 7.0)  # (5 + 9) / 2
    scores = scores + np.random.default_rng(0).normal(size=scores.shape)
    low, high = statistics.iqm_ci(scores)
    assert low < statistics.iqm(scores) < high < low + 3


def test_chunks_do_not_change_the_interval_much(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(5, 3))
    whole = statistics.iqm_ci(scores)
    monkeypatch.setattr(statistics, "CHUNK", 100)
    assert statistics.iqm_ci(scores) == pytest.approx(whole, abs=0.1)


def test_summarize_by_hand():
    # seeds x tasks; task 0 runs from -10 to 0, task 1 from 0 to 20
    returns = np.array([[-5.0, 10.0], [0.0, 20.0]])
    summary = statistics.summarize(returns, np.array([-10.0, 0.0]), np.array([0.0, 20.0]))
    assert summary["per_seed"] == [2.5, 10.0]
    assert summary["mean"] == 6.25
    assert summary["std"] == pytest.approx(7.5 / math.sqrt(2))  # |10 - 2.5| / sqrt(2), ddof=1
    assert summary["normalized"] == 0.75  # (0.5 + 0.5 + 1 + 1) / 4
    assert summary["iqm"] == 5.0  # (0 + 10) / 2
    assert summary["ci95"] == [2.5, 10.0]
    assert json.loads(json.dumps(summary)) == summary


def test_one_seed_has_no_spread():
    summary = statistics.summarize(np.array([[1.0, 3.0]]), np.zeros(2), np.ones(2))
    assert summary["std"] == 0.0
    assert summary["ci95"] == [2.0, 2.0]
    assert summary["iqm_ci95"] == [2.0, 2.0]


def test_a_diverged_seed_is_never_dropped():
    returns = np.array([[1.0, 2.0], [np.nan, np.nan]])
    summary = statistics.summarize(returns, np.zeros(2), np.ones(2))
    for name in ("mean", "std", "iqm", "normalized"):
        assert math.isnan(summary[name]), name
    assert np.isnan(summary["ci95"] + summary["iqm_ci95"]).all()
    assert summary["per_seed"][0] == 1.5


def test_normalized_is_unknown_without_a_gap():
    assert math.isnan(statistics.normalized([[1.0]], [2.0], [2.0]))
