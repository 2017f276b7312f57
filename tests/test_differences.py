"""What differs beyond chance: Welch's t-test by hand, and how often equal methods differ."""

import numpy as np
import pytest
from scipy import stats

from experiments.show import differences, tables
from gentle_jax import statistics


def test_welch_is_that_of_scipy_with_its_interval():
    random = np.random.default_rng(0)
    for sizes in ((6, 6), (5, 8), (2, 9)):
        ours, theirs = (random.normal(i, 1 + i, size) for i, size in enumerate(sizes))
        value, interval, p = statistics.welch(ours, theirs)
        known = stats.ttest_ind(ours, theirs, equal_var=False)
        assert value == pytest.approx(ours.mean() - theirs.mean())
        assert p == pytest.approx(known.pvalue)
        assert interval == pytest.approx(tuple(known.confidence_interval()))


def test_welch_of_runs_without_variance():
    assert statistics.welch([1.0] * 5, [0.0] * 5) == (1.0, (1.0, 1.0), 0.0)
    assert statistics.welch([1.0] * 5, [1.0] * 5) == (0.0, (0.0, 0.0), 1.0)
    assert statistics.welch([0.1] * 6, [0.1] * 5)[2] == 1.0  # though their mean is rounded
    value, interval, p = statistics.welch([1.0], [0.0, 1.0])
    assert value == 0.5 and np.isnan([*interval, p]).all()


KINDS = {  # returns [methods, runs, tasks] of equal methods
    "runs differ": lambda r, shape: r.normal(size=(*shape[:2], 1)) + 0.1 * r.normal(size=shape),
    "tasks differ": lambda r, shape: 0.1 * r.normal(size=(*shape[:2], 1)) + r.normal(size=shape),
    "spreads differ": lambda r, shape: (
        r.normal(size=(*shape[:2], 1)) * np.exp(r.normal(size=(shape[0], 1, 1)))
    ),
    "some runs fail": lambda r, shape: (
        0.2 * r.normal(size=shape) - 3.0 * (r.random((*shape[:2], 1)) < 0.2)
    ),
    "skewed": lambda r, shape: 0.3 * r.normal(size=shape) - r.exponential(size=(*shape[:2], 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_methods,num_runs", [(8, 6), (4, 5)])
def test_a_table_of_equal_methods_seldom_has_a_difference(kind, num_methods, num_runs):
    """5 % is promised; a bootstrap of whole runs had 15 to 35 % with eight methods of six runs."""
    random, tables_wrong = np.random.default_rng(0), 0
    for _ in range(200):
        runs = KINDS[kind](random, (num_methods, num_runs, 20)).mean(-1)
        pairs = [(runs[i], runs[j]) for i in range(num_methods) for j in range(i)]
        tables_wrong += any(sure for *_, sure in differences.tests(pairs))
    assert tables_wrong <= 20  # at 5 % more in one of 300 cases


def test_a_clear_difference_is_found_in_the_largest_table():
    random = np.random.default_rng(0)
    runs = [level + 0.1 * random.normal(size=6) for level in range(12)]
    pairs = [(runs[i], runs[j]) for i in range(12) for j in range(i)]
    assert all(sure and value > 0 for value, _, sure in differences.tests(pairs))


def test_few_runs_and_failed_ones_are_never_beyond_chance():
    other = differences.Side([9.0, 9.1, 9.2, 9.3, 9.4], "s", "test")
    for one in ([1.0, 1.1, 1.2, 1.3], [1.0, 1.1, 1.2, 1.3, np.nan]):
        sides = {"a": differences.Side(one, "s", "test"), "b": other}
        assert differences.apart(sides) == ([], 0)
    sides["a"] = other._replace(per_seed=[1.0] * 5)
    assert differences.apart(sides) == ([("b", "a")], 1)
    assert differences.tests([]) == []


def test_rows_whose_tasks_may_differ_are_no_pair():
    one = differences.Side([1.0] * 5, "s", "test")
    assert differences.is_pair(one, one)
    assert not differences.is_pair(one, one._replace(suite="other"))
    train = one._replace(task_set="train")  # of a row with as many training tasks, or not
    assert not differences.is_pair(train, train)
    of = lambda tasks: train._replace(scores=np.ones((5, tasks)))
    assert differences.is_pair(of(3), of(3)) and not differences.is_pair(of(3), of(4))
    assert differences.improvement(of(3), of(4)) is None


def test_of_many_pairs_only_those_of_the_best_row_are_told():
    chosen = {f"r{i:02d}": summary([float(i)] * 5, "p") for i in range(10)}
    (line,) = differences.sentences((("p", "test"),), {}, chosen)
    assert "45 of 45 pairs: `r09` above `r00`" in line and line.count(" above ") == 1
    assert line.endswith("`r08`; and 36 pairs of other rows.")


def summary(per_seed, *protocols, suite="s"):
    results = [
        {"protocol": p, "task_set": task_set, "per_seed": per_seed}
        for p in protocols
        for task_set in tables.TASK_SETS
    ]
    return {"suite": suite, "protocols": protocols, "results": results}


def test_a_sentence_names_the_rows_below_each_row_the_best_first():
    level = lambda at: [at + 0.01 * i for i in range(6)]
    chosen = {name: summary(level(at), "p") for name, at in (("a", 1.0), ("b", 3.0), ("c", 2.0))}
    chosen["d"] = summary(level(9.0), "p", suite="other")  # its tasks are others
    scores = {"a": {"test/p": np.zeros((6, 2))}, "b": {"test/p": np.ones((6, 2))}}
    (line,) = differences.sentences((("p", "test"),), scores, chosen)
    assert line == (
        "- Beyond chance, `p`, test tasks, 3 of 3 pairs: `b` above `a` (1.00), `c`; `c` above `a`."
    )
    scores["a"]["test/p"] = np.zeros((6, 3))  # of other tasks
    (line,) = differences.sentences((("p", "test"),), scores, chosen)
    assert "2 of 2 pairs: `b` above `c`; `c` above `a`." in line


def test_columns_that_all_rows_have():
    chosen = {"a": summary([1.0], "x", "given"), "b": summary([1.0], "given", "y")}
    assert differences.shared(chosen) == [("given", "test")]
