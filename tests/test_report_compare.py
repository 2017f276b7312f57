"""`report --compare`: runs side by side, and how likely one is above another."""

import json

import numpy as np
import pytest

from experiments import report
from tests.test_report import ENTRY, NATIVE, make_summary, shown, store


def make_run(folder, level, num_seeds=6, settings=None, **changes):
    """Stores a finished run whose final test returns are about `level`."""
    summary = make_summary(num_seeds=num_seeds, protocols=[NATIVE], **changes)
    entry = ENTRY | {"protocol": NATIVE, "per_seed": [level] * num_seeds, "mean": level}
    entry |= {"ci95": [level, level + 1], "iqm_ci95": [level - 1, level]}
    summary["results"] = [entry, entry | {"task_set": "train", "normalized": 0.7}]
    store(folder, summary)
    (folder / "config.json").write_text(json.dumps(settings or {"train": {"lr": 1}}))
    random = np.random.default_rng(len(str(folder)))
    returns = level + 0.01 * random.normal(size=(1, num_seeds, 3, 2))
    arrays = {f"test/{NATIVE}": returns, "test_ids": np.arange(3), "train_ids": np.arange(3)}
    arrays["eval_steps"] = np.array([20])
    np.savez(
        folder / "returns.npz", random_return=np.zeros(3), reference_return=np.ones(3), **arrays
    )
    return folder


def table(out, start):
    """Returns {first words: rest} of the lines below the one that begins with `start`."""
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(start))
    found = {}
    for line in lines[first + 2 :]:
        if not line.strip():
            break
        name, *rest = [part for part in line.split("  ") if part]
        found[name.strip()] = [part.strip() for part in rest]
    return found


def test_runs_stand_side_by_side_with_the_probability_of_improvement(capsys, tmp_path):
    make_run(tmp_path / "a", 0.9)
    make_run(tmp_path / "deep/er/b", 0.5, algorithm="focal")
    code, out, err = shown(capsys, f"--compare={tmp_path}")
    assert code == 0 and not err
    rows = table(out, "run ")
    assert rows["ctmrl"][:3] == [NATIVE, "0.90", "[0.90, 1.90]"]
    assert rows["focal"][5:7] == ["[-0.50, 0.50]", "0.700"]
    chances = table(out, f"{NATIVE}: row above column")
    assert chances["ctmrl"] == ["-", "1.00 [1.00, 1.00]*"]
    assert chances["focal"] == ["0.00 [0.00, 0.00]*", "-"]


def test_sweeps_in_a_folder_of_runs_are_left_out(capsys, tmp_path):
    make_run(tmp_path / "a", 0.9)
    make_run(tmp_path / "b", 0.5, algorithm="focal")
    swept = make_summary()
    swept["results"] = [entry | {"sweep": "lr=1"} for entry in swept["results"]]
    store(tmp_path / "s", swept)
    code, out, err = shown(capsys, f"--compare={tmp_path}")
    assert code == 0 and not err and f"left out: {tmp_path / 's'} is a sweep" in out
    assert {"ctmrl", "focal"} <= set(table(out, "run "))


def test_settings_in_which_runs_differ_are_named(capsys, tmp_path):
    first = {"train": {"lr": 1, "tau": 2}, "algo": {"own": 3}}
    second = {"train": {"lr": 5, "tau": 2}, "algo": {"other": 4}}
    places = [make_run(tmp_path / n, 0.5, settings=s) for n, s in (("a", first), ("b", second))]
    _, out, _ = shown(capsys, *(f"--compare={place}" for place in places))
    told = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    assert told == ["train.lr=1", "train.lr=5"]
    assert {"ctmrl lr=1", "ctmrl lr=5"} <= set(table(out, "run "))


def test_runs_of_one_algorithm_are_named_by_what_is_not_as_in_most(capsys, tmp_path):
    own = {"relabel": True, "size": 4}
    changes = ({}, {}, {"relabel": False}, {"size": 8, "relabel": True})
    for i, change in enumerate(changes):
        make_run(tmp_path / str(i), 0.5, settings={"algo": own | change})
    make_run(tmp_path / "other", 0.5, algorithm="focal", settings={"algo": {"other": 1}})
    _, out, _ = shown(capsys, f"--compare={tmp_path}")
    names = set(table(out, "run "))
    assert names == {"ctmrl #1", "ctmrl #2", "ctmrl relabel=False", "ctmrl size=8", "focal"}
    assert out.count("algo.relabel=True") == 3  # what only one method has, in which its runs differ


def test_few_seeds_are_marked_and_others_suites_stand_apart(capsys, tmp_path):
    make_run(tmp_path / "a", 0.9, num_seeds=3)
    make_run(tmp_path / "b", 0.5, num_seeds=3)
    make_run(tmp_path / "c", 0.5, suite="gentle")
    _, out, _ = shown(capsys, f"--compare={tmp_path}")
    assert "1.00 [1.00, 1.00]†" in out and "† fewer than 5 seeds" in out
    assert out.count("row above column") == 1
    assert "suite gentle, env point_robot" in out and "suite ctmrl, env point_robot" in out


def test_a_seed_that_diverged_makes_no_probability(capsys, tmp_path):
    make_run(tmp_path / "a", np.nan)
    make_run(tmp_path / "b", 0.5, algorithm="focal")
    _, out, _ = shown(capsys, f"--compare={tmp_path}")
    assert table(out, f"{NATIVE}: row above column")["focal"] == ["nan", "-"]


@pytest.mark.parametrize(
    "arguments,part",
    [
        (["--compare={}/a"], "--compare has 1 run: expected two or more"),
        (["--compare={}/a", "--compare={}/a"], "--compare has 1 run"),
        (["--compare={}/none"], "holds no finished run"),
        (["--compare={}", "--run={}/a"], "report does not use --run with --compare"),
        (["--compare={}", "--algo=ctmrl"], "report does not use --algo with --compare"),
        (["--compare={}/a", "--compare={}/s"], "is a sweep"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, part):
    make_run(tmp_path / "a", 0.9)
    swept = make_summary()
    swept["results"] = [entry | {"sweep": "lr=1"} for entry in swept["results"]]
    store(tmp_path / "s", swept)
    code, _, err = shown(capsys, *(one.format(tmp_path) for one in arguments))
    assert code == 2 and part in err and err.count("\n") == 1


def test_runs_of_other_tasks_stand_apart(capsys, tmp_path):
    make_run(tmp_path / "a", 0.9)
    make_run(tmp_path / "b", 0.5, settings={"tasks": {"leaves": [1]}})
    _, out, _ = shown(capsys, f"--compare={tmp_path}")
    assert "row above column" not in out and out.count("env point_robot") == 2


def test_damaged_returns_are_one_line(capsys, tmp_path):
    make_run(tmp_path / "a", 0.9)
    make_run(tmp_path / "b", 0.5)
    (tmp_path / "b/returns.npz").write_bytes(b"no archive")
    code, _, err = shown(capsys, f"--compare={tmp_path}")
    assert code == 2 and "returns.npz cannot be read" in err and err.count("\n") == 1


def test_figures_of_a_folder_without_its_settings_are_refused(capsys, tmp_path):
    make_run(tmp_path / "a", 0.9)
    (tmp_path / "a/config.json").unlink()
    code, _, err = shown(capsys, f"--run={tmp_path / 'a'}", "--point=0")
    assert code == 2 and "leave --point out" in err


def test_the_command_reads_what_a_flag_gives(tmp_path):
    make_run(tmp_path / "a", 0.9)
    make_run(tmp_path / "b", 0.9)
    make_run(tmp_path / "replaced/c", 0.9)  # put aside by --fresh
    assert len(report.runs_below([str(tmp_path / "a/summary.json"), str(tmp_path / "b")])) == 2
    assert len(report.runs_below([str(tmp_path / "a"), str(tmp_path)])) == 2
