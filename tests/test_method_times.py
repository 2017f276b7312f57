"""The benchmark of what every method costs, without running one."""

import json
import types
from pathlib import Path

import pytest

from benchmarks import method_times
from experiments.runs import outputs
from gentle_jax import storage

TRAIN = {"focal": 4.0, "corro": 50.0}  # seconds


def fake_launch(words, environment):
    """Writes the summary of a run that took TRAIN seconds instead of running it."""
    flags = dict(word.lstrip("-").split("=") for word in words[1:])
    if words[0] == "experiments.run":
        name = flags["algo"]
        pretraining = 100 if name == "corro" else 0
        summary = dict.fromkeys(outputs.SUMMARY_KEYS) | {
            "protocols": ["given_context"], "num_steps": 400,
            "results": [{"pretraining": pretraining}],
            "seconds": {"compile": 10.0, "train": TRAIN[name]},
        }  # fmt: skip
        folder = Path(flags["out"]) / "run"
        folder.mkdir(parents=True)
        storage.write_json(folder / "summary.json", summary)
        return 10 + TRAIN[name], 2 * TRAIN[name]
    return 1.0, 1.0


def test_rows_have_ratios_to_focal_and_a_mark():
    args = types.SimpleNamespace(suite="ctmrl", env="point_robot", preset="quick", num_seeds=1)
    rows = method_times.measure(["corro"], args, fake_launch)
    assert [row["method"] for row in rows] == ["focal", "corro"]
    assert rows[1]["step_seconds"] == 50 / 500  # pretraining steps count
    assert rows[1]["step_over_focal"] == pytest.approx(10)
    assert rows[1]["run_over_focal"] == pytest.approx(60 / 14)
    assert [row["above_limit"] for row in rows] == [False, True]
    table = method_times.lines(json.loads(json.dumps(rows)))
    assert table[1][0] == "focal" and table[2][0] == "corro *"


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--algos=fokal", "unknown algorithm 'fokal'"), ("--num_seeds=0", "expected 1 or more")],
)
def test_bad_flags_are_told(flag, words, capsys, tmp_path):
    assert method_times.main(["", flag, f"--out={tmp_path / 'a.json'}"]) == 2
    assert words in capsys.readouterr().err
