"""Tables beside a paper's: statistics by hand, verdicts of claims, files to compute them from."""

import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from experiments import reproduce
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import comparison, comparisons
from experiments.show import (
    differences,
    paper_tables,
    paper_view,
    results_page,
    scores,
    table_text,
    tables,
)
from gentle_jax import statistics, suites
from tests.test_report import make_summary

ROOT = pathlib.Path(__file__).parent.parent
TABLE, ENV, COLUMN = "ctmrl_table1", "cheetah_vel", "test/random_then_policy"
BACKBONE = suites.backbone("ctmrl", ENV, "quick")


def drawn(level, num_seeds=6, num_tasks=3, seed=0):
    random = np.random.default_rng(seed)
    return (level + 0.01 * random.normal(size=(num_seeds, num_tasks))).astype(np.float32)


def test_probability_of_improvement_counts_pairs_of_runs_in_each_task():
    ours, theirs = [[1.0, 5.0], [2.0, 5.0]], [[0.0, 5.0], [1.0, 6.0], [3.0, 4.0]]
    tasks = []
    for task in range(2):
        pairs = itertools.product((run[task] for run in ours), (run[task] for run in theirs))
        tasks.append(np.mean([1.0 * (a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert statistics.improvement(ours, theirs) == pytest.approx(np.mean(tasks))
    assert statistics.improvement(theirs, ours) == pytest.approx(1.0 - np.mean(tasks))
    assert np.isnan(statistics.improvement([[np.nan]], [[1.0]]))


def test_samples_resample_whole_runs():
    ours, theirs = drawn(0.5, 4), drawn(0.5, 5, seed=1)
    samples = statistics.improvement_samples(ours, theirs, 4000)
    assert samples.shape == (4000,) and samples.std() > 0.05
    assert samples.mean() == pytest.approx(statistics.improvement(ours, theirs), abs=0.02)
    # only runs of one task are compared, never those of different ones
    apart = np.arange(3) * 10.0
    assert (statistics.improvement_samples(drawn(1.0) + apart, drawn(0.0) + apart) == 1.0).all()
    # a run that is good in one task is good in all: many tasks are no more evidence than one
    level = np.array([[0.0], [1.0], [0.1], [1.1]])
    one = statistics.improvement_samples(level, level + 0.5, 4000)
    many = statistics.improvement_samples(np.tile(level, 20), np.tile(level, 20) + 0.5, 4000)
    assert many.std() == pytest.approx(one.std(), rel=0.1)


def test_holm_refuses_the_smallest_while_they_are_small_enough():
    assert statistics.holm([0.04, 0.001, 0.02]) == [True, True, True]  # .05/3, .05/2, .05/1
    assert statistics.holm([0.04, 0.03, 0.001]) == [False, False, True]  # 0.03 > 0.05 / 2
    assert statistics.holm([0.02, 0.02, 0.02]) == [False, False, False]
    assert statistics.holm([]) == []


def cells(levels, num_seeds=6):
    """Returns (summaries, scores) of the table's rows in ENV. Args: levels, {row: return}."""
    summaries, found = {}, {}
    for number, (row, level) in enumerate(levels.items()):
        summary = make_summary(algorithm=row, num_seeds=num_seeds, env=ENV, backbone=BACKBONE)
        scored = drawn(level, num_seeds, seed=number)
        per_seed = scored.mean(1).tolist()
        entry = summary["results"][0] | {"mean": level, "normalized": level, "per_seed": per_seed}
        entry["paper"] = paper_tables.lookup(
            "ctmrl", ENV, row.split(",")[0], "random_then_policy", "test"
        )
        summary["results"] = [entry, entry | {"task_set": "train", "paper": None}]
        summaries[row, ENV] = summary
        found[row, ENV] = {COLUMN: scored}
    return summaries, found


def view(levels, num_seeds=6):
    summaries, found = cells(levels, num_seeds)
    return "\n".join(
        paper_view.lines(TABLE, comparisons.TABLES[TABLE], summaries, found)
    ).splitlines()


def test_verdicts_and_differences_follow_from_the_scores():
    lines = view({"ctmrl": 0.9, "er_trl": 0.5, "unicorn": 0.99, "csro": 0.9})
    verdicts = {
        line.split("|")[1].strip(): line.split("|")[4].strip()
        for line in lines
        if line.startswith("| ctmrl above")
    }
    assert verdicts == {
        "ctmrl above er_trl": "holds",
        "ctmrl above unicorn": "fails",
        "ctmrl above csro": "undecided",
    }
    assert "### Claims: 1 holds, 1 fails, 1 undecided" in lines
    (beyond,) = [line for line in lines if line.startswith("- Beyond chance")]
    assert (
        "5 of 6 pairs" in beyond
        and "`unicorn` above `ctmrl` (1.00), `er_trl` (1.00), `csro` (1.00)" in beyond
    )
    assert "`csro` above `er_trl` (1.00)" in beyond and beyond.count("`csro`") == 2
    own = paper_tables.lookup("ctmrl", ENV, "ctmrl", "random_then_policy", "test")
    (row,) = [line for line in lines if line.startswith("| ctmrl |")]
    assert f"{own['mean']:.2f} ± {own['spread']:.2f}" in row and "`random_then_policy`" in row


def test_few_seeds_decide_nothing_and_are_marked():
    lines = view({"ctmrl": 0.9, "er_trl": 0.1}, num_seeds=3)
    assert "### Claims: 0 holds, 0 fails, 1 undecided" in lines
    assert not any(line.startswith("- Beyond chance") for line in lines)
    assert tables.FEW_MARK in next(line for line in lines if line.startswith("| ctmrl |"))
    text = table_text.lines(TABLE, *cells({"ctmrl": 0.9, "er_trl": 0.1}, 3))[-1]
    assert f"{tables.FEW_MARK} fewer than 5 seeds" in text


def test_a_run_that_diverged_decides_nothing():
    summaries, found = cells({"ctmrl": 0.9, "er_trl": 0.1})
    found["er_trl", ENV][COLUMN][0, 0] = np.nan
    summaries["er_trl", ENV]["results"][0]["per_seed"][0] = np.nan
    text = paper_view.lines(TABLE, comparisons.TABLES[TABLE], summaries, found)
    assert "### Claims: 0 holds, 0 fails, 1 undecided" in text


def test_only_what_the_paper_says_is_a_claim():
    of = comparisons.TABLES[TABLE]
    summaries, _ = cells({"ctmrl": 0.9, "er_trl": 0.1})
    assert len(paper_view.claimed(TABLE, of, summaries)) == 1
    lower = summaries["er_trl", ENV]["results"]
    better = {"mean": 0.0, "spread": 1.0, "kind": "ci95", "num_seeds": 6}  # costs are below 0
    summaries["er_trl", ENV]["results"] = [entry | {"paper": better} for entry in lower]
    assert paper_view.claimed(TABLE, of, summaries) == []
    figure = comparisons.TABLES["gentle_fig3"]
    shown = {(row, env): summaries["ctmrl", ENV] for row in figure.rows for env in figure.envs}
    places = paper_view.claimed("gentle_fig3", figure, shown)
    assert {(env, task_set) for _, env, task_set in places} == {
        ("ant_dir", "test"), ("ant_dir", "train"),
    }  # fmt: skip


def test_rows_that_a_paper_has_no_number_of_have_none_beside_them():
    of = comparisons.TABLES["ctmrl_table2"]
    summary = make_summary()
    summary["results"] = [entry | {"paper": {"mean": 1.0}} for entry in summary["results"]]
    for row, wanted in (("ctmrl", {"mean": 1.0}), ("ctmrl, release", None)):
        found = paper_view.with_paper(of, row, ENV, summary)["results"]
        assert all(entry["paper"] == wanted for entry in found)


def test_numbers_that_settings_do_not_name_are_found_by_the_row():
    of = comparisons.TABLES["gentle_table3"]
    summary = make_summary()
    summary["results"] = [summary["results"][0] | {"protocol": "one_shot"}, summary["results"][1]]
    found = paper_view.with_paper(of, "gentle, medium", "ant_dir", summary)["results"]
    assert found[0]["paper"] == {"mean": 475.11, "spread": 85.4, "kind": "std", "num_seeds": 8}
    assert found[1]["paper"] is None  # the paper has no given contexts there


def test_rows_of_different_suites_are_no_pair():
    summaries, found = cells({"ctmrl": 0.9, "er_trl": 0.1})
    own = {row: of for (row, _), of in found.items()}
    chosen = {row: summary for (row, _), summary in summaries.items()}
    chosen["er_trl"]["suite"] = "ctmrl_b"
    assert differences.sentences(comparisons.TABLES[TABLE].columns, own, chosen) == []


def test_every_claim_is_of_a_table_that_has_its_rows_and_protocol():
    for claim in paper_tables.rows("claims"):
        of = comparisons.TABLES[claim["table"]]
        assert {claim["better"], claim["worse"]} <= set(of.rows), claim
        assert claim["protocol"] in {protocol for protocol, _ in of.columns}, claim


def test_files_of_a_table_give_the_same_text_again(tmp_path, capsys):
    summaries, found = cells({"ctmrl": 0.9, "er_trl": 0.5})
    text = reproduce.write(TABLE, summaries, tmp_path, found=found)
    path = tmp_path / f"{TABLE}.json"
    assert main(reproduce.COMMAND, ["reproduce", f"--from={path}"]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    assert "holds" in text
    path.with_suffix(".npz").write_bytes(b"no archive")
    assert main(reproduce.COMMAND, ["reproduce", f"--from={path}"]) == 2
    assert "holds no scores of a table" in capsys.readouterr().err
    for content in ("[]", *(json.dumps({"table": table, "cells": [1]})
                            for table in ("other", TABLE, [TABLE]))):  # fmt: skip
        path.write_text(content)
        assert main(reproduce.COMMAND, ["reproduce", f"--from={path}"]) == 2
        assert "is no table of this version" in capsys.readouterr().err
    for place in (tmp_path / "none.json", tmp_path):
        assert main(reproduce.COMMAND, ["reproduce", f"--from={place}"]) == 2


def test_files_of_a_table_are_exported_for_rliable(tmp_path, capsys):
    summaries, found = cells({"ctmrl": 0.9, "er_trl": 0.5})
    bounds = np.array([[0.0] * 3, [1.0] * 3], np.float32)
    found = {at: of | {"bounds/test": bounds} for at, of in found.items()}
    reproduce.write(TABLE, summaries, tmp_path, found=found)
    path = tmp_path / f"{TABLE}.json"
    words = ["reproduce", f"--from={path}", "--export=rliable"]
    assert main(reproduce.COMMAND, [*words, f"--to={tmp_path / 'to'}"]) == 0
    (made,) = (tmp_path / "to").iterdir()
    with np.load(made) as arrays:
        np.testing.assert_allclose(arrays["ctmrl"], found["ctmrl", ENV][COLUMN], rtol=1e-6)
    assert main(reproduce.COMMAND, words) == 0 and (tmp_path / made.name).exists()
    path.with_suffix(".npz").unlink()
    assert main(reproduce.COMMAND, words) == 2
    assert "which is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,part",
    [
        (("--from=a.json", "--dry_run"), "--from runs no table, and takes no --dry_run"),
        (("--list", "--page=b.md"), "--list runs no table, and takes no --page"),
        (("--list", "--export=rliable"), "--list runs no table, and takes no --export"),
        (("--dry_run", "--html=c.html"), "--dry_run makes no table"),
        (("--from=a.json", f"--table={TABLE}"), "--from runs no table, and takes no --table"),
        (("--from=a.json", "--num_seeds=3"), "--from runs no table, and takes no --num_seeds"),
        (("--page=b.md", "--rows=x"), "--page runs no table, and takes no --rows"),
        (("--from=a.json", "--to=b"), "--to with --from is the folder of --export"),
        (("--from=a.json", "--export=csv"), "unknown export"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_one_line(words, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(reproduce.COMMAND, ["reproduce", *words]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_best_method_is_named_with_those_that_may_be_as_good():
    of = comparison.Comparison(
        "what?", {n: (f"--algo={n}",) for n in "abcdef"}, ("one",), (("p", "test"), ("q", "test"))
    )
    near = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    # of b alone against c p is .04, of 10 pairs it is not beyond chance
    runs = {
        "a": near,
        "b": [x + 1.75 for x in near],
        "c": [x + 2.03 for x in near],
        "d": [x + 0.1 for x in near],
        "e": [x + 0.2 for x in near],
        "f": [*near[1:], np.nan],
    }
    results = lambda row: [
        {"protocol": "p", "task_set": "test", "normalized": np.mean(runs[row]),
         "mean": float(np.mean(runs[row])), "per_seed": runs[row]}
    ]  # fmt: skip
    cell = {"env": "one", "suite": "s", "backbone": "sac"}
    chosen = [{"row": r, "results": results(r), **cell} for r in runs]
    lines = results_page.leaders([(None, {"table": "t", "cells": chosen}, "T: one")], {"t": of})
    row = "| [T: one](#t-one) | s, sac | `p` | c 2.28 | b 2.00 | e 0.45, d 0.35, a 0.25 |"
    assert lines[-1].splitlines()[2:] == [row]  # no row has q
    assert statistics.welch(runs["c"], runs["b"])[2] < 0.05


def test_tasks_that_are_both_sets_are_shown_once_where_the_paper_has_numbers():
    columns = (("p", "test"), ("p", "train"))
    entry = lambda task_set, seeds, paper=None: {
        "protocol": "p", "task_set": task_set, "per_seed": seeds, "paper": paper
    }  # fmt: skip
    two = lambda *pair: {"a": {"results": [entry(*one) for one in pair]}}
    told = two(("test", [1.0]), ("train", [1.0], {"mean": 1.0}))
    assert paper_view.once(columns, told) == (("p", "train"),)
    assert paper_view.once(columns, two(("test", [1.0]), ("train", [1.0]))) == (("p", "test"),)
    assert paper_view.once(columns, two(("test", [1.0]), ("train", [2.0]))) == columns
    assert paper_view.once(columns, two(("test", [1.0]))) == columns


def test_claims_skip_rows_without_the_protocol():
    of = comparisons.TABLES["gentle_fig3"]
    summary = make_summary() | {"results": []}
    places = {(row, env): summary for row in of.rows for env in of.envs}
    assert paper_view.claims("gentle_fig3", of, {}, places) == []


def test_a_diverged_seed_in_the_files_of_a_table_is_nan_again(tmp_path, capsys):
    summaries, found = cells({"ctmrl": float("nan"), "er_trl": 0.5})
    reproduce.write(TABLE, summaries, tmp_path, found=found)
    assert main(reproduce.COMMAND, ["reproduce", f"--from={tmp_path / f'{TABLE}.json'}"]) == 0
    assert "| ctmrl | nan ± " in capsys.readouterr().out


def test_scores_of_a_run_are_normalized_and_exported_for_rliable(tmp_path):
    ids = {"train_ids": np.array([0]), "test_ids": np.array([2, 1])}
    bounds = {"random_return": np.array([0.0, -2.0, -4.0]), "reference_return": np.array([1, 2, 4])}
    returns = np.zeros((2, 3, 2, 4))  # [point, seed, task, episode]
    returns[-1, 1, :, -1] = [4.0, -2.0]
    arrays = {COLUMN: returns, "eval_steps": np.array([1, 2]), **ids, **bounds}
    np.savez(tmp_path / "returns.npz", **arrays)
    found = scores.of_run(tmp_path, "final")
    np.testing.assert_allclose(found[COLUMN][1], [4.0, -2.0])  # as they are
    share = scores.normalized(found, COLUMN)
    np.testing.assert_allclose(share[1], [1.0, 0.0])  # tasks 2 and 1
    np.testing.assert_allclose(share[0], [0.5, 0.5])
    worse = {**found, "bounds/test": np.array([[0.0, 0.0], [-1.0, 1.0]])}
    assert np.isnan(scores.normalized(worse, COLUMN)[:, 0]).all()
    assert scores.of_run(tmp_path / "none", "final") == {}
    table = {(row, env): found for row in ("a", "b") for env in ("one", "two")}
    del table["b", "two"]
    (path,) = scores.export(tmp_path, "t", table)
    assert path.name == "t_rliable_test_random_then_policy.npz"
    with np.load(path) as exported:
        assert set(exported) == {"a"} and exported["a"].shape == (3, 4)  # b lacks a family


def test_the_page_of_results_is_that_of_the_files(tmp_path, capsys):
    page = tmp_path / "page.md"
    assert main(reproduce.COMMAND, ["reproduce", f"--page={page}"]) == 0
    again = "python -m experiments.reproduce --page=docs/results.md"
    assert page.read_text() == (ROOT / "docs/results.md").read_text(), f"old: run `{again}`"
    kept = {path.name: path.read_text() for path in (ROOT / "docs/figures").iterdir()}
    made = {path.name: path.read_text() for path in (tmp_path / "figures").iterdir()}
    assert kept.keys() == made.keys()
    drawn_by = lambda text: re.search(r"<dc:title>(.*?)</dc:title>", text).group(1)
    for name, text in kept.items():
        if drawn_by(text) == drawn_by(made[name]):  # another matplotlib draws other paths
            numbers = [re.findall(r"(?<=[ MLQ\"])-?\d+\.\d+", t) for t in (text, made[name])]
            assert len(numbers[0]) == len(numbers[1]) > 100
            np.testing.assert_allclose(*(np.array(n, float) for n in numbers), atol=0.01)
    assert main(reproduce.COMMAND, ["reproduce", "--page=/proc/none/page.md"]) == 2
    assert "pass another --page" in capsys.readouterr().err


def test_a_command_in_a_file_has_no_paths():
    words = ["--data=a", "--num_seeds=2", "--out", "b", "--rows", "x", "--config.train.tau=data"]
    assert flags.without_paths(words) == ["--num_seeds=2", "--rows", "x", "--config.train.tau=data"]


def test_the_page_has_papers_first_and_says_what_was_not_run(tmp_path):
    of = comparison.Comparison("what?", dict.fromkeys("abc", ()), ("one", "two"))
    environment = {"versions": dict.fromkeys(results_page.KEPT, "1")}
    for table in ("mine", "gentle_table1"):
        cell = {"row": "a", "env": "one", "preset": "quick"}
        content = {"table": table, "environment": environment, "cells": [cell]}
        (tmp_path / f"{table}_one_quick.json").write_text(json.dumps(content))
    (tmp_path / "else.json").write_text("{}")
    papers = {"gentle_table1": of, "ctmrl_fig3": of}
    show = lambda path: (path.stem, ["f.svg"] if "mine" in path.name else [])
    fits = lambda *cell: cell != ("gentle_table1", "quick", "b", "one")
    made = results_page.page(tmp_path.glob("*.json"), {"mine": of, **papers}, papers, show, fits)
    heads = [line for line in made.splitlines() if line.startswith("## ")]
    assert heads == ["## GENTLE, Table 1: one", "## mine: one"]
    assert "- `gentle_table1`: one (c), two\n- `ctmrl_fig3`: one, two\n" in made
    assert "![mine: one](f.svg)" in made and made.count("![") == 1
