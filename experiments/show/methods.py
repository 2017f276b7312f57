"""The table of all methods on the same data, and how its order compares with a paper's.

Kendall's tau counts the pairs of methods that two lists put in the same order, from -1 to 1. Its
interval is a bootstrap: our seeds are drawn anew for each method, and a paper's mean is drawn from
the normal distribution that its own spread stands for.
"""

import itertools
import math

import numpy as np
from scipy import stats

from gentle_jax import statistics

from . import differences, tables

GIVEN = "given_context"
COLUMNS = (
    "method", "native protocol", "test", "95 % CI", "train", "spent", f"{GIVEN}, test", "95 % CI",
    f"{GIVEN}, train", "paper, test",
)  # fmt: skip
RESAMPLES = 10_000
Z95 = 1.96  # half a 95 % interval in standard errors


def row(name, summary):
    """Returns the texts of COLUMNS; numbers are normalized returns, the interval too."""
    native = summary["protocols"][0]
    spent = tables.spent(tables.entry(summary, native, "test"))
    columns = [name, f"`{native}`", *numbers(summary, native), spent, *numbers(summary, GIVEN)]
    return [*columns, papers_number(summary)]


def numbers(summary, protocol):
    """Returns test tasks' normalized return, its interval, and that of training tasks, as texts."""
    test, train = (tables.entry(summary, protocol, task_set) for task_set in tables.TASK_SETS)
    return [normalized(test), interval(test), normalized(train)]


def papers_number(summary):
    """Returns a paper's number for test tasks and its protocol, the first that has one, as text."""
    for protocol in summary["protocols"]:
        paper = (tables.entry(summary, protocol, "test") or {}).get("paper")
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


def lines(summaries, found):
    """Returns Markdown lines from {(row, env): summary}: a table and orders, for each env.

    And which methods differ beyond chance where all are tested alike. Args: found, {(row, env):
    {"<task set>/<protocol>": scores [S, T]}}.
    """
    text = []
    for env in dict.fromkeys(env for _, env in summaries):
        chosen = tables.of_env(summaries, env)
        text += [f"### {env}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        text += ["| " + " | ".join(row(*item)) + " |" for item in chosen.items()]
        orders = [order for task_set in tables.TASK_SETS for order in orders_of(chosen, task_set)]
        columns = differences.shared(chosen)
        orders += differences.sentences(columns, tables.of_env(found, env), chosen)
        text += ["", *orders] if orders else []
        text.append("")
    return text


def orders_of(summaries, task_set, protocols=None):
    """Returns a sentence for each protocol in which a paper has three of the methods, or more.

    Args: protocols, None: all that a row has.
    """
    sentences = []
    if protocols is None:
        protocols = (p for summary in summaries.values() for p in summary["protocols"])
    for protocol in dict.fromkeys(protocols):
        pairs = []
        for name, summary in summaries.items():
            one = tables.entry(summary, protocol, task_set)
            if one is not None and one["paper"] and np.isfinite(one["per_seed"]).all():
                pairs.append((name, one["per_seed"], one["paper"]))
        if len(pairs) >= 3:
            tau, (low, high), opposite = agreement(pairs)
            against = "; beyond chance the other way round: " if opposite else ""
            few = any(len(per_seed) < tables.FEW for _, per_seed, _ in pairs)
            sentences.append(
                f"- Order of {len(pairs)} methods against the paper's, `{protocol}`, {task_set} "
                f"tasks: Kendall's tau {tau:.2f} [{low:.2f}, {high:.2f}]"
                f"{tables.FEW_MARK * few}{against}{', '.join(opposite)}."
            )
    return sentences


def agreement(pairs, seed=0):
    """Returns (tau, its 95 % interval, names of pairs that differ beyond chance, and oppositely).

    Args: pairs, (name, our value of each seed, the paper's cell) of each method. Both differences
    of such a pair are beyond chance, ours by `differences.tests`, the paper's by what its spread
    says, each corrected for the number of pairs, and their signs differ.
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
    twos = [
        (a, b) for a, b in itertools.combinations(pairs, 2) if differences.comparable(a[1], b[1])
    ]
    mine = differences.tests([(a[1], b[1]) for a, b in twos])
    papers = statistics.holm([chance_of(a[2], b[2]) for a, b in twos])
    opposite = []
    for (a, b), (value, _, sure), told in zip(twos, mine, papers, strict=True):
        if sure and told and value * (a[2]["mean"] - b[2]["mean"]) < 0:
            better = (a, b) if value > 0 else (b, a)
            opposite.append(f"{better[0][0]} above {better[1][0]}")
    return tau(*means), tuple(np.percentile(taus, [2.5, 97.5])), opposite


def standard_error(paper):
    """Returns the standard error of a paper's mean, from its spread and what kind that is."""
    if paper["kind"] == "ci95":
        return paper["spread"] / Z95
    return paper["spread"] / math.sqrt(paper["num_seeds"])


def chance_of(one, other):
    """Returns p of "these means of a paper do not differ", by their standard errors."""
    error = math.hypot(standard_error(one), standard_error(other))
    apart = abs(one["mean"] - other["mean"])
    return 2.0 * float(stats.norm.sf(apart / error)) if error else float(apart == 0)
