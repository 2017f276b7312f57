"""Tables: the papers' cells, which numbers enter, how the text looks."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import run
from experiments.cli import flags
from experiments.runs import outputs
from experiments.show import paper_tables, tables
from gentle_jax import registry, suites
from gentle_jax.protocols import base

pytestmark = pytest.mark.filterwarnings("error")
META = {
    "suite": "ctmrl", "env": "point_robot", "algorithm": "ctmrl", "metric": "final",
    "num_steps": 300,
}  # fmt: skip


def make_arrays(num_points=3, num_seeds=4):
    """Returns what `returns.npz` holds; the final episode's return is point - task id."""
    ids = {"train": np.array([0, 2]), "test": np.array([1])}
    arrays = {
        "eval_steps": 100 * np.arange(1, num_points + 1),
        "random_return": np.array([-10.0, -11.0, -12.0]),
        "reference_return": np.array([10.0, 9.0, 8.0]),
    }
    for task_set, own in ids.items():
        arrays[f"{task_set}_ids"] = own
        for protocol in ("random_then_policy", "online"):
            final = np.arange(num_points)[:, None, None] - own.astype(float)
            returns = np.stack([np.full_like(final, -50.0), final], -1)
            shape = (num_points, num_seeds, len(own), 2)
            arrays[f"{task_set}/{protocol}"] = np.broadcast_to(returns, shape).copy()
    return arrays


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("ctmrl", "cheetah_vel", "ctmrl", "random_then_policy", "test"), (-108.30, 13.54, "ci95")),
        (("ctmrl_b", "point_robot", "ctmrl", "random_then_policy", "test"), (-4.81, 0.12, "ci95")),
        (("ctmrl", "ant_goal", "ctmrl_no_kmeans", "random_then_policy", "test"),
         (-385.98, 2.76, "ci95")),
        (("ctmrl", "hopper_params", "ctmrl_codes_4", "random_then_policy", "test"),
         (338.21, 10.12, "ci95")),
        (("gentle", "point_robot", "gentle", "given_context", "test"), (-9.71, 1.31, "std")),
        (("gentle", "ant_dir", "focal", "one_shot", "train"), (188.25, 54.58, "std")),
        (("gentle", "point_robot", "gentle_no_relabel", "one_shot", "test"), (-15.51, 1.36, "std")),
    ],
)  # fmt: skip
def test_lookup_returns_the_papers_cell(cell, expected):
    names, num_seeds = ("mean", "spread", "kind"), 8 if cell[0] == "gentle" else 6
    assert paper_tables.lookup(*cell) == dict(
        zip(names, expected, strict=True), num_seeds=num_seeds
    )


def test_lookup_is_none_where_the_paper_has_no_number():
    assert paper_tables.lookup("ctmrl", "point_robot", "ctmrl", "online", "test") is None
    assert paper_tables.lookup("other", "point_robot", "ctmrl", "online", "test") is None
    cell = ("ctmrl", "point_robot", "ctmrl", "random_then_policy", "test")
    assert paper_tables.lookup(*cell, "all") is None
    assert paper_tables.lookup(*cell, "final") is not None


def test_suites_agree_with_the_paper_tables():
    assert set(paper_tables.papers()) == set(suites.SUITES)
    for metric, names in paper_tables.papers().values():
        assert paper_tables.cells(names) and metric in base.METRICS


def test_results_hold_the_last_point_native_metric_first():
    entries = tables.results(make_arrays(), META)
    assert len(entries) == 2 * 2 * 3  # task sets x protocols x metrics
    first = entries[0]
    assert (first["task_set"], first["protocol"]) == ("test", "random_then_policy")
    assert [entry["metric"] for entry in entries[:3]] == ["final", "all", "first"]
    assert first["mean"] == 1.0  # point 2 - task 1
    assert first["normalized"] == pytest.approx(12 / 20)  # (1 + 11) / (9 + 11)
    assert first["step"] == 300
    assert first["paper"] == {"mean": -4.81, "spread": 0.12, "kind": "ci95", "num_seeds": 6}
    assert entries[1]["paper"] is None  # the paper reports final episodes only
    assert json.loads(json.dumps(entries)) == entries


def test_costs_are_those_before_the_reported_episode():
    arrays = make_arrays()
    costs = {}
    for name, *_ in tables.blocks(arrays):
        plain = np.zeros_like(arrays[name])
        plain[-1] = np.array([20.0, 65.0])  # of the last evaluation
        plain[-1, 0] += 4 * (name == "test/online")  # of one of four seeds
        costs |= {
            f"{name}/steps": plain,
            f"{name}/episodes": plain / 10,
            f"{name}/queries": plain * 0,
        }
    entries = tables.results(arrays, META, costs=costs)
    cost = [entry["cost"] for entry in entries]
    assert cost[0] == {"steps": 65.0, "episodes": 6.5, "queries": 0.0}  # final
    assert cost[1]["steps"] == 42.5 and cost[2]["steps"] == 20.0  # all, first
    text = tables.render(entries)
    assert "65/6.5/0" in text.splitlines()[2] and "66/6.6/0" in text.splitlines()[3]
    assert "before a reported episode" in text
    groups = [("a", slice(0, 1)), ("b", slice(1, 4))]
    entries = tables.results(arrays, META, groups, costs)
    found = [e["cost"]["steps"] for e in tables.native(entries) if e["protocol"] == "online"]
    assert found[0] == 69.0 and found[2] == 65.0
    unknown = tables.results(arrays, META)[0]
    assert unknown["cost"] is None and tables.spent(unknown) == "-"
    del unknown["cost"]  # of a run from before they were counted
    assert tables.spent(unknown) == "-"


def test_a_sweep_that_diverged_does_not_fall_back_on_an_earlier_point():
    arrays = make_arrays()
    for name, *_ in tables.blocks(arrays):
        arrays[name][2:] = np.nan
    entries = tables.results(arrays, META)
    assert all(np.isnan(entry["mean"]) and entry["step"] == 300 for entry in entries)
    for text in (tables.render(entries), tables.markdown(entries)):
        assert "nan" in text


def test_a_diverged_seed_shows():
    arrays = make_arrays()
    arrays["test/online"][1:, 0] = np.nan
    entries = [e for e in tables.results(arrays, META) if e["protocol"] == "online"]
    assert np.isnan(entries[0]["mean"])
    assert entries[0]["step"] == 300


def test_render_aligns_native_rows():
    text = tables.render(tables.results(make_arrays(), META))
    lines = text.splitlines()
    assert len(lines) == 2 + 4 + 1  # header, rule, test and train x two protocols, note
    assert lines[0].split()[:2] == ["task", "set"]
    assert "-4.81 +- 0.12 (ci95)" in lines[2]
    assert lines[3].endswith("-")
    assert len({len(line) for line in lines[:6]}) == 1
    assert "4 seed(s), after 300 steps" in lines[-1]


def test_steps_of_pretraining_are_told_apart_from_those_that_were_asked_for():
    entries = tables.results(make_arrays(), META | {"num_steps": 240})
    assert (entries[0]["step"], entries[0]["pretraining"]) == (300, 60)
    for text in (tables.render(entries), tables.markdown(entries)):
        assert "after 240 steps (and 60 of pretraining) (last, not best)" in text
    plain = tables.results(make_arrays(), META)
    assert "pretraining" not in tables.render(plain)
    for entry in plain:  # of a run from before they were told apart
        del entry["pretraining"]
    assert "after 300 steps (last, not best)" in tables.render(plain)


def test_one_seed_renders_no_interval():
    row = tables.row(tables.results(make_arrays(num_seeds=1), META)[0])
    assert row[3:5] == ["-", "-"]


def test_groups_make_a_block_per_grid_point():
    groups = [("lr=1", slice(0, 1)), ("lr=2", slice(1, 4))]
    entries = tables.results(make_arrays(), META, groups)
    assert [len(e["per_seed"]) for e in (entries[0], entries[-1])] == [1, 3]
    assert [entries[0]["sweep"], entries[-1]["sweep"]] == ["lr=1", "lr=2"]
    assert len(tables.native(entries)) == 2 * 4
    assert tables.render(entries).startswith("sweep")
    assert "| lr=2 | train | online |" in tables.markdown(entries)


def test_markdown_has_one_row_per_native_entry():
    text = tables.markdown(tables.results(make_arrays(), META))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {row.count("|") for row in rows} == {len(tables.COLUMNS) + 1}


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ("--algo=ctmrl", "ctmrl"),
        ("--algo=ctmrl --config.algo.use_kmeans=False", "ctmrl_no_kmeans"),
        ("--algo=ctmrl --config.algo.num_codes=2", "ctmrl_codes_2"),
        ("--algo=ctmrl --config.algo.num_codes=3", None),
        ("--algo=ctmrl --config.algo.use_codebook=False", None),
        ("--algo=ctmrl --config.algo.use_kmeans=False --config.algo.num_codes=2", None),
        ("--algo=ctmrl --backbone=td3_bc", None),
        ("--algo=ctmrl --env=ant_goal", "ctmrl"),  # on td3_bc, as the preset says
        ("--algo=ctmrl --env=ant_goal --backbone=brac_sac", "ctmrl"),
        ("--algo=ctmrl --env=ant_goal --backbone=iql", None),
        ("--algo=ctmrl --config.env.reveal_task=True", None),
        ("--algo=multitask --config.env.reveal_task=True", None),
        ("--algo=ctmrl --fidelity=release --config.algo.width=32 --config.algo.lr=0.1", "ctmrl"),
        ("--algo=gentle --suite=gentle --config.algo.relabel=False", "gentle_no_relabel"),
        ("--algo=gentle --suite=gentle --config.algo.num_cross_tasks=1", "gentle"),
    ],
)
def test_the_papers_number_is_shown_only_beside_what_it_describes(arguments, expected):
    request = flags.parse(run.COMMAND, ["run", "--preset=quick", *arguments.split()])
    assert outputs.paper_name(request.config) == expected


def test_variants_have_a_row_in_the_papers_tables_if_any_of_an_algorithm_has():
    every = [
        cell for _, names in paper_tables.papers().values() for cell in paper_tables.cells(names)
    ]
    named = {name for _, name, _, _ in every}
    for algorithm in registry.ALGORITHMS:
        module = registry.load("algorithm", algorithm)
        variants = set(getattr(module, "VARIANTS", {}))
        assert variants <= named or not variants & named  # none: its paper's tables are not here
        for values in getattr(module, "VARIANTS", {}).values():
            dataclasses.replace(module.Config(), **values)
