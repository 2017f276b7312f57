"""The table of all methods on the same data, and how its order compares with a paper's.

Kendall's tau counts the pairs of methods that two lists put in the same order, from -1 to 1. Its
interval is a bootstrap: our seeds are drawn anew for each method, and a paper's mean is drawn from
the normal distribution that its own spread stands for.
"""

import math

import numpy as np
from scipy import stats

from . import tables

GIVEN = "given_context"
COLUMNS = (
    "method", "native protocol", "test", "95 % CI", "train", "spent", f"{GIVEN}, test", "95 % CI",
    f"{GIVEN}, train", "paper, test",
)  # fmt: skip
RESAMPLES = 10_000
Z95 = 1.96  # half a 95 % interval in standard errors


def entry(summary, protocol, task_set):
    """Returns a summary's entry of the metric that comes first, or None."""
    for one in summary["results"]:
        if (one["protocol"], one["task_set"]) == (protocol, task_set):
            return one
    return None


def row(name, summary):
    """Returns the texts of COLUMNS; numbers are normalized returns, the interval too."""
    native = summary["protocols"][0]
    spent = tables.spent(entry(summary, native, "test"))
    columns = [name, f"`{native}`", *numbers(summary, native), spent, *numbers(summary, GIVEN)]
    return [*columns, papers_number(summary)]


def numbers(summary, protocol):
    """Returns test tasks' normalized return, its interval, and that of training tasks, as texts."""
    test, train = (entry(summary, protocol, task_set) for task_set in tables.TASK_SETS)
    return [normalized(test), interval(test), normalized(train)]


def papers_number(summary):
    """Returns a paper's number for test tasks and its protocol, the first that has one, as text."""
    for protocol in summary["protocols"]:
        paper = (entry(summary, protocol, "test") or {}).get("paper")
        if paper:
            return f"{paper['mean']:.2f} ± {paper['spread']:.2f}, `{protocol}`"
    return "-"


def normalized(one):
    """Returns an entry's normalized return as text."""
    return "-" if one is None else f"{one['normalized']:.3f}"


def interval(one):
    """Returns the 95 % interval of an entry's normalized return, as text."""
    if one is None or len(one["per_seed"]) == 1:
        return "-"
    low, high = one["normalized_ci95"]
    return f"{low:.3f} to {high:.3f}{tables.mark(one)}"


def lines(summaries):
    """Returns Markdown lines from {(row, env): summary}: a table and orders, for each env."""
    text = []
    for env in dict.fromkeys(env for _, env in summaries):
        chosen = {name: summary for (name, at), summary in summaries.items() if at == env}
        text += [f"### {env}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        text += ["| " + " | ".join(row(*item)) + " |" for item in chosen.items()]
        orders = [order for task_set in tables.TASK_SETS for order in orders_of(chosen, task_set)]
        text += ["", *orders] if orders else []
        text.append("")
    return text


def orders_of(summaries, task_set):
    """Returns a sentence for each protocol in which a paper has three of the methods, or more."""
    sentences = []
    protocols = dict.fromkeys(p for summary in summaries.values() for p in summary["protocols"])
    for protocol in protocols:
        pairs = []
        for name, summary in summaries.items():
            one = entry(summary, protocol, task_set)
            if one is not None and one["paper"] and np.isfinite(one["per_seed"]).all():
                pairs.append((name, one["per_seed"], one["paper"]))
        if len(pairs) >= 3:
            tau, (low, high), opposite = agreement(pairs)
            against = "; clearly the other way round: " + ", ".join(opposite) if opposite else ""
            sentences.append(
                f"- Order of {len(pairs)} methods against the paper's, `{protocol}`, {task_set} "
                f"tasks: Kendall's tau {tau:.2f} [{low:.2f}, {high:.2f}]{against}."
            )
    return sentences


def agreement(pairs, seed=0):
    """Returns (tau, its 95 % interval, names of pairs that differ for sure).

    Args: pairs, (name, our value of each seed, the paper's cell) of each method. A pair of methods
    differs for sure where both differences are larger than their 95 % intervals and of other signs.
    """
    random = np.random.default_rng(seed)
    ours, theirs = [], []
    for _, per_seed, paper in pairs:
        per_seed = np.asarray(per_seed)
        drawn = random.integers(len(per_seed), size=(RESAMPLES, len(per_seed)))
        ours.append(per_seed[drawn].mean(1))
        theirs.append(random.normal(paper["mean"], standard_error(paper), RESAMPLES))
    ours, theirs = np.array(ours), np.array(theirs)
    tau = lambda a, b: stats.kendalltau(a, b).statistic
    means = [np.mean(per_seed) for _, per_seed, _ in pairs], [cell["mean"] for *_, cell in pairs]
    taus = [tau(ours[:, i], theirs[:, i]) for i in range(0, RESAMPLES, 10)]
    opposite = []
    for i, (first, *_) in enumerate(pairs):
        for j, (second, *_) in list(enumerate(pairs))[i + 1 :]:
            signs = [sure_sign(side[i] - side[j]) for side in (ours, theirs)]
            if signs[0] * signs[1] < 0:
                better = (first, second) if signs[0] > 0 else (second, first)
                opposite.append(f"{better[0]} above {better[1]}")
    return tau(*means), tuple(np.percentile(taus, [2.5, 97.5])), opposite


def standard_error(paper):
    """Returns the standard error of a paper's mean, from its spread and what kind that is."""
    if paper["kind"] == "ci95":
        return paper["spread"] / Z95
    return paper["spread"] / math.sqrt(paper["num_seeds"])


def sure_sign(differences):
    """Returns 1 or -1 where 95 % of bootstrap differences lie on one side of 0, else 0."""
    low, high = np.percentile(differences, [2.5, 97.5])
    return int(low > 0) - int(high < 0)
