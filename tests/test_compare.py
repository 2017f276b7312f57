"""The comparison with accepted ratios fails on a loss of over 20 %, in both directions."""

import json

import pytest

from benchmarks import compare, machine

ROW = {
    "kind": "step", "algorithm": "gentle", "shapes": "ant_dir", "seeds": 1,
    "torch_over_jax": 2.0, "square_share": 0.5, "chunk_overhead": 0.0,
}  # fmt: skip
NAME = "train_step/gentle/ant_dir/1"


def write(folder, **changes):
    """Writes a report of one row; None leaves the row out."""
    rows = [{**ROW, **changes}, {"kind": "relabel"}]
    report = {"machine": {"cpu": "x"}, "date": "now", "small": False, "rows": rows}
    machine.write(report, folder / "train_step.json")


def command(folder, *flags):
    where = [f"--results={folder}", f"--baseline={folder / 'baseline.json'}"]
    return compare.main(["compare", *where, *flags])


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"torch_over_jax": 2.0 * 0.79}, 1),  # higher is better
        ({"torch_over_jax": 2.0 * 0.81}, 0),
        ({"torch_over_jax": 2.0 * 1.5}, 0),
        ({"chunk_overhead": 0.21}, 1),  # lower is better
        ({"chunk_overhead": 0.19}, 0),
        ({"chunk_overhead": -0.5}, 0),
    ],
)
def test_a_ratio_worse_by_over_a_fifth_fails(changes, code, tmp_path, capsys):
    write(tmp_path)
    assert command(tmp_path, "--accept") == 0
    write(tmp_path, **changes)
    assert command(tmp_path) == code
    text = capsys.readouterr().out
    assert ("REGRESSION by 21%: train_step/gentle/ant_dir/1/" in text) == (code == 1)
    assert f"3 ratios compared, {code} worse by over 20%" in text


def test_missing_and_new_ratios_are_named_and_fail_nothing(tmp_path, capsys):
    write(tmp_path)
    assert command(tmp_path, "--accept") == 0
    write(tmp_path, torch_over_jax=None, seeds=8)
    assert command(tmp_path) == 0
    text = capsys.readouterr().out
    assert f"missing: {NAME}/torch_over_jax: accepted 2, not measured" in text
    assert "new: train_step/gentle/ant_dir/8/square_share: 0.5" in text
    assert "0 ratios compared" in text
    baseline = json.loads((tmp_path / "baseline.json").read_text())
    assert set(baseline["ratios"][f"{NAME}/torch_over_jax"]) == {"value", "better"}
    assert baseline["from"]["train_step.json"]["date"] == "now"


def test_zero_accepted_and_the_sign_of_worse():
    lower, higher = ({"value": 2.0, "better": better} for better in ("lower", "higher"))
    assert compare.worse_by(lower, 2.5) == 0.25 and compare.worse_by(higher, 2.5) == -0.25


@pytest.mark.parametrize(
    "file, text, hint",
    [
        ("baseline.json", "{", "is not JSON"),
        ("baseline.json", '{"ratios": {"a": 1}}', "is not a baseline"),
        ("baseline.json", "[]", "holds no JSON object"),
        ("train_step.json", "nonsense", "is not JSON"),
        ("train_step.json", '{"machine": {}, "date": "", "rows": [{}]}', "measure anew"),
        ("train_step.json", '{"small": true}', "has no ratios"),
    ],
)
def test_bad_files_are_one_line_and_exit_code_two(file, text, hint, tmp_path, capsys):
    write(tmp_path)
    assert command(tmp_path, "--accept") == 0
    (tmp_path / file).write_text(text)
    assert command(tmp_path) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and hint in message


def test_no_baseline_yet(tmp_path, capsys):
    write(tmp_path)
    assert command(tmp_path) == 2
    assert "--accept" in capsys.readouterr().err


def test_the_accepted_ratios_are_a_baseline():
    assert compare.accepted("benchmarks/baseline.json")


def test_scaling_and_other_reports_tell_their_ratios():
    row = {"series": "runs", "algorithm": "gentle", "mapping": "in turn"}
    fit = {**row, "quantity": "compile_seconds", "against": "runs", "power": {"exponent": 0.5}}
    rows = [{**row, "runs": n, "seed_steps_per_second": 10.0 * n} for n in (1, 4)]
    memory = {**row, "dataset_copies_per_device": 1.0, "states_per_run": 1.1}
    found = list(compare.of_scaling({"rows": rows, "fits": [fit], "memory": [memory]}))
    assert found[0] == ("runs/gentle/in_turn/compile/growth", 2.0, "lower")
    assert found[1] == ("runs/gentle/in_turn/last_over_first_seed_steps", 4.0, "higher")
    assert found[2:] == [
        ("memory/gentle/in_turn/dataset_copies_per_device", 1.0, "lower"),
        ("memory/gentle/in_turn/states_per_run", 1.1, "lower"),
    ]
    named = lambda **values: [{"name": k, "measured": v} for k, v in values.items()]
    bars = named(normalized_return=0.9, compiled_once=1.0, host_share=None)
    bars += [{"name": "warm_compile", "measured": 2.0, "without_cache": 8.0}]
    told = list(compare.of_bars({"rows": bars}))
    assert told[2:] == [
        ("whole_over_work", None, "lower"),
        ("warm_over_cold_compile", 0.25, "lower"),
    ]
    piece = {"piece": "gentle", "device": "A GPU", "ratios": {"eight_over_one": [1.5, "lower"]}}
    pieces = [piece, {"piece": "ctmrl", "status": "failed"}]
    told = list(compare.of_accelerator({"pieces": pieces}))
    assert told == [("A_GPU/gentle/eight_over_one", 1.5, "lower")]
