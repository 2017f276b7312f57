"""The table of all methods: what a row shows, and how two orders are compared."""

import numpy as np
import pytest

from experiments.show import methods


def one(protocol, task_set, per_seed, paper=None):
    mean = float(np.mean(per_seed))
    return {
        "protocol": protocol, "task_set": task_set, "per_seed": list(per_seed), "mean": mean,
        "normalized": mean / 10, "normalized_ci95": [mean / 10 - 0.1, mean / 10 + 0.1],
        "cost": {"steps": 40.0, "episodes": 2.0, "queries": 0.0}, "paper": paper,
    }  # fmt: skip


def cell(mean, spread=0.1, kind="ci95", num_seeds=4):
    return {"mean": mean, "spread": spread, "kind": kind, "num_seeds": num_seeds}


def summary(ours, theirs, pairs_of_seeds=1):
    paper = None if theirs is None else cell(theirs)
    results = [one("online", "test", [ours - 0.01, ours + 0.01] * pairs_of_seeds, paper)]
    results += [one("online", "train", [ours, ours]), one("given_context", "test", [ours + 1])]
    return {"protocols": ["online", "given_context"], "results": results}


def test_a_row_has_its_native_protocol_and_given_context():
    texts = methods.row("a", summary(5.0, 4.0))
    assert dict(zip(methods.COLUMNS[:6], texts, strict=False)) == {
        "method": "a", "native protocol": "`online`", "test": "0.500", "95 % CI": "0.400 to 0.600†",
        "train": "0.500", "spent": "40/2/0",
    }  # fmt: skip
    # one seed has no interval; what was not run is a dash
    assert texts[6:] == ["0.600", "-", "-", "4.00 ± 0.10, `online`"]


def test_the_papers_number_is_shown_of_whichever_protocol_it_is():
    other = summary(5.0, None)
    other["protocols"].append("one_shot")
    assert methods.row("a", other)[-1] == "-"  # a protocol without results, and no number
    other["results"].append(one("one_shot", "test", [4.0], cell(3.0)))
    assert methods.row("a", other)[-1] == "3.00 ± 0.10, `one_shot`"


def test_a_row_whose_native_protocol_is_given_context_has_as_many_columns():
    own = summary(5.0, None) | {"protocols": ["given_context"]}
    texts = methods.row("a", own)
    assert len(texts) == len(methods.COLUMNS)
    assert texts[1:3] == ["`given_context`", "0.600"] and texts[6:9] == texts[2:5]


def test_the_order_of_three_methods_by_hand():
    """Ours a < b < c, the paper's b < a < c: 2 of 3 pairs agree, so tau is 1/3."""
    levels = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (3.0, 6.0)}
    chosen = {name: summary(*level, 3) for name, level in levels.items()}
    pairs = [(n, s["results"][0]["per_seed"], s["results"][0]["paper"]) for n, s in chosen.items()]
    tau, (low, high), opposite = methods.agreement(pairs)
    assert tau == pytest.approx(1 / 3)
    assert low == high == pytest.approx(1 / 3)  # intervals are far narrower than the differences
    assert opposite == ["b above a"]
    (line,) = methods.orders_of(chosen, "test")
    assert "`online`, test tasks: Kendall's tau 0.33 [0.33, 0.33]" in line and "b above a" in line
    assert not methods.orders_of(chosen, "train")  # the paper has no numbers
    few = {name: summary(*level, 2) for name, level in levels.items()}
    (line,) = methods.orders_of(few, "test")
    assert line.endswith("Kendall's tau 0.33 [0.33, 0.33]†.")  # four seeds are beyond no chance


def test_a_difference_within_the_noise_contradicts_nothing():
    noisy = [("a", [0.0, 4.0], cell(5.0)), ("b", [1.0, 5.0], cell(4.0)), ("c", [9.0], cell(9.0))]
    tau, (low, high), opposite = methods.agreement(noisy)
    assert not opposite and tau == pytest.approx(1 / 3) and low < high == 1.0
    wide = [(name, seeds, cell(paper["mean"], 4.0, "std", 1)) for name, seeds, paper in noisy]
    assert not methods.agreement([("a", [1.0], wide[0][2]), ("b", [2.0], wide[1][2]), noisy[2]])[2]


def test_spreads_of_papers_become_standard_errors():
    assert methods.standard_error(cell(0.0, 1.96)) == pytest.approx(1.0)
    assert methods.standard_error(cell(0.0, 3.0, "std", 9)) == pytest.approx(1.0)


def test_few_methods_have_no_order():
    assert not methods.orders_of({"a": summary(1.0, 5.0), "b": summary(2.0, None)}, "test")
