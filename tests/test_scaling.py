"""Growth is fitted right, and the command measures every size it is asked for."""

import json
import math

import numpy as np
import pytest

from benchmarks import growth, scaling


def test_fits_by_hand():
    x = [1.0, 4.0, 16.0]
    power = growth.fit_power(x, [3.0, 6.0, 12.0])
    assert power["exponent"] == pytest.approx(0.5) and power["factor"] == pytest.approx(3.0)
    assert power["r2"] == pytest.approx(1.0) and power["standard_error"] < 1e-7
    line = growth.fit_line(x, [5.0, 11.0, 35.0])
    assert line["intercept"] == pytest.approx(3.0) and line["slope"] == pytest.approx(2.0)
    assert growth.fit_line(x, [2.0] * 3) == {"intercept": 2.0, "slope": 0.0, "r2": 1.0}
    assert growth.fit_power([2.0, 2.0], [1.0, 1.0]) is None is growth.fit_line([2.0], [1.0])
    assert growth.fit_power(x, [0.0, 1.0, 2.0]) is None
    assert growth.fit_power(x[:2], [1.0, 2.0])["interval95"] is None


def test_the_interval_holds_the_exponent_and_is_students():
    """Errors of +-10 % around y = x: two degrees of freedom, t = 4.303."""
    power = growth.fit_power([1, 2, 4, 8], [1.1, 1.8, 4.4, 7.2])
    low, high = power["interval95"]
    assert low < power["exponent"] < high and low < 1.0 < high
    assert high - low == pytest.approx(2 * 4.3027 * power["standard_error"], rel=1e-4)


def row(runs, argument_bytes):
    return {
        "series": "runs", "algorithm": "gentle", "mapping": "in turn", "runs": runs,
        "runs_per_device": runs / 2, "argument_bytes": argument_bytes, "dataset_bytes": 1000,
        "state_bytes_per_run": 10,
    }  # fmt: skip


def test_memory_tells_dataset_and_states_apart():
    once = growth.memory_rows([row(n, 1000 + 10 * n / 2) for n in (2, 4, 8)])[0]
    assert once["dataset_copies_per_device"] == pytest.approx(1.0)
    assert once["states_per_run"] == pytest.approx(1.0) and once["most_runs"] == 8
    copied = growth.memory_rows([row(n, (1000 + 10) * n / 2) for n in (2, 4, 8)])[0]
    assert copied["states_per_run"] == pytest.approx(101.0)  # a dataset per run shows


class FakeLoop:
    """Stands in for Loop: nothing is compiled; a step takes 1 ms a run."""

    def __init__(self, problem, start, num_runs, in_turn):
        self.devices, self.num_runs, self.state = 1, num_runs, start
        self.program = scaling.sweep.Program(None, 2.0, 100)

    def run(self, start, length):
        return 1e-3 * self.num_runs * length

    def memory(self):
        size = 1000 + 10 * self.num_runs
        return {"argument_bytes": size, "temp_bytes": 100, "device_bytes": size + 100}


def test_the_command_writes_rows_fits_and_a_figure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "Loop", FakeLoop)
    monkeypatch.setattr(scaling, "first_state", lambda problem: {"w": np.zeros((1, 3))})
    out = tmp_path / "scaling.json"
    flags = ["--small", "--runs=1,2,4,8", "--tasks=4,8", "--algos=gentle", f"--out={out}"]
    assert scaling.main(["scaling", *flags]) == 0
    report = json.loads(out.read_text())
    keys = [(r["series"], r["mapping"], r["runs"], r["tasks"]) for r in report["rows"]]
    assert keys == [
        *(("runs", "in turn", n, 10) for n in (1, 2, 4, 8)),
        *(("runs", "side by side", n, 10) for n in (1, 8)),
        ("tasks", "in turn", 1, 4),
        ("tasks", "in turn", 1, 8),
    ]
    batches = [r["meta_batch"] for r in report["rows"] if r["series"] == "tasks"]
    assert batches == [4, 8]  # GENTLE takes every task
    found = {(f["series"], f["mapping"], f["quantity"]): f for f in report["fits"]}
    steps = found["runs", "in turn", "step_seconds"]["power"]
    assert steps["exponent"] == pytest.approx(1.0)
    assert found["runs", "in turn", "compile_seconds"]["power"]["exponent"] == pytest.approx(0.0)
    assert all(r["seed_steps_per_second"] == pytest.approx(1e3) for r in report["rows"])
    assert out.with_suffix(".png").stat().st_size > 1000 and report["process_peak_bytes"] > 0
    assert "times per device" in capsys.readouterr().out


@pytest.mark.slow
def test_real_programs_share_the_dataset_and_keep_a_state_per_run(tmp_path):
    out = tmp_path / "scaling.json"
    flags = ["--small", "--runs=2,4,8", "--tasks=", "--algos=gentle", "--rounds=1"]
    assert scaling.main(["scaling", *flags, f"--out={out}"]) == 0
    report = json.loads(out.read_text())
    for found in report["memory"]:
        assert found["dataset_copies_per_device"] == pytest.approx(1.0, abs=0.02)
        assert found["states_per_run"] == pytest.approx(1.0, abs=0.01)
    for one in report["rows"]:
        assert one["compile_seconds"] > 0 and math.isfinite(one["step_seconds"])


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--runs=0", "--runs=1,8"),
        ("--tasks=3", "expected 0 to 2"),
        ("--tasks=many", "--tasks=1,8"),
        ("--algos=gentel", "did you mean 'gentle'"),
        ("--algos=", "empty flag"),
        ("--rounds=0", "1 or more"),
        ("--out=/", "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(flag, hint, capsys):
    assert scaling.main(["scaling", flag]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and hint in message
