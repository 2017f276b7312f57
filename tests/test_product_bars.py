"""Bars are told as they are: met, missed or unknown, with where a number is from."""

import json

import pytest

from benchmarks import machine, product_bars

SUMMARY = {
    "algorithm": "ctmrl", "backbone": "brac_sac", "env": "point_robot", "suite": "ctmrl",
    "physics": "exact", "preset": "quick", "fidelity": "paper", "num_seeds": 8, "num_steps": 8000,
    "protocols": ["random_then_policy"], "seed_steps_per_second": 300.0, "failed_seeds": [],
    "results": [
        {"task_set": "train", "protocol": "random_then_policy", "normalized": 0.95},
        {"task_set": "test", "protocol": "random_then_policy", "normalized": 0.89},
    ],
    "seconds": {"collect": 20.0, "compile": 30.0, "train": 200.0, "evaluate": 50.0, "total": 310.0},
}  # fmt: skip


def rows_of(tmp_path, cold=None, **changes):
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, **changes}))
    return {row["name"]: row for row in product_bars.run_rows(str(tmp_path), cold)}


def test_a_run_tells_its_bars_by_hand(tmp_path):
    rows = rows_of(tmp_path)
    measured = {name: row["measured"] for name, row in rows.items()}
    assert measured == {
        "cold_command": 310.0, "normalized_return": 0.89, "cached_command": 290.0,
        "host_share": pytest.approx(10.0 / 250.0),
    }  # fmt: skip
    assert {name: row["met"] for name, row in rows.items()} == {
        "cold_command": True, "normalized_return": False, "cached_command": True,
        "host_share": False,
    }  # fmt: skip
    assert rows["normalized_return"]["ratio_to_bar"] == pytest.approx(0.89 / 0.9)
    assert rows_of(tmp_path, 601.0)["cold_command"]["met"] is False


def test_what_is_not_known_is_said_and_not_met(tmp_path):
    warm = {**SUMMARY["seconds"], "collect": 0.0}
    row = rows_of(tmp_path, seconds=warm)["cold_command"]
    assert row["met"] is None and "--cold_seconds" in row["how"]
    assert all(r["met"] is None for r in rows_of(tmp_path, preset="smoke").values())
    found = [*product_bars.run_rows("", None), product_bars.finished_row("")]
    found += [*product_bars.train_rows(tmp_path), *product_bars.scaling_rows(tmp_path)]
    found += product_bars.accelerator_rows(tmp_path)
    assert len(found) == 12 and all(row["met"] is None for row in found)
    assert all(row["how"] for row in found)
    text = product_bars.table(found)
    assert text.count("unknown") == 12


def test_other_reports_are_read(tmp_path):
    step = {"kind": "step", "algorithm": "gentle", "seeds": 1, "torch_over_jax": 1.19}
    rows = [{**step, "shapes": "point_robot", "square_share": 0.4}]
    rows.append({**step, "shapes": "ant_dir", "torch_over_jax": None, "square_share": 0.71})
    machine.write({"small": False, "rows": rows}, tmp_path / "train_step.json")
    met = [row["met"] for row in product_bars.train_rows(tmp_path)]
    assert met == [False, None, True]  # PyTorch was not there for the second
    fit = {"series": "runs", "quantity": "compile_seconds", "power": {"exponent": 0.1}}
    memory = {"dataset_copies_per_device": 1.0, "r2": 0.9999, "most_runs": 64}
    report = {"fits": [fit], "memory": [memory], "rows": [{"series": "runs", "runs": 1}]}
    report["rows"].append({"series": "runs", "runs": 64})
    machine.write(report, tmp_path / "scaling.json")
    found = {row["name"]: row for row in product_bars.scaling_rows(tmp_path)}
    assert found["compile_growth"]["measured"] == pytest.approx(64**0.1)
    assert [row["met"] for row in found.values()] == [True, True, False]
    machine.write({"small": True, **report}, tmp_path / "scaling.json")
    assert all(row["met"] is None for row in product_bars.scaling_rows(tmp_path))


@pytest.mark.slow
def test_programs_compile_once_and_come_from_the_cache():
    command = "--preset=smoke --num_seeds=2 --protocol=given_context"
    rows = {row["name"]: row for row in product_bars.compile_rows(command)}
    assert rows["compiled_once"]["measured"] == 1.0
    assert min(rows[name]["measured"] for name in ("warm_compile", "init_compile")) > 0
    assert rows["memory_check"]["met"]


def test_a_run_that_cannot_be_given_again_says_why(tmp_path):
    row = product_bars.finished_row(str(tmp_path))
    assert row["met"] is None and "is not a run folder" in row["how"]


@pytest.mark.parametrize("flag, hint", [("--out=/", "is a folder"), ("--nonsense=1", "nonsense")])
def test_bad_input_is_one_line_and_exit_code_two(flag, hint, capsys):
    assert product_bars.main(["product_bars", flag]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and hint in message
