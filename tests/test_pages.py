"""`report --html` and `reproduce --html`: what a page holds. A browser looks in test_browser.py."""

import json
import re

import numpy as np
import pytest

from experiments import report, reproduce
from experiments.runs import cells, comparison, comparisons
from experiments.show import page, run_figures, run_page, scene
from gentle_jax import errors, json_files
from tests.test_gather import make_run as make_folder
from tests.test_report import shown
from tests.test_report_compare import make_run

SWEPT = ("--sweep=lr=0.001,0.002", "--num_seeds=2", "--config.algo.eta=0.25")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a finished sweep with its figures, a grid beside it, and its page."""
    folder = make_folder(tmp_path_factory.mktemp("pages"), *SWEPT, drawn=True)
    grid = folder.parent / "grid_1"
    grid.mkdir()
    (grid / "grid.json").write_text(json.dumps({"cells": [{"run": folder.name}]}))
    (grid / "heat_map.svg").write_text("<svg>the map</svg>")
    damaged = folder.parent / "grid_3"
    damaged.mkdir()
    (damaged / "grid.json").write_text("{")
    other = folder.parent / "grid_2"
    other.mkdir()
    (other / "grid.json").write_text(json.dumps({"cells": [{"run": "another"}]}))
    (other / "heat_map.svg").write_text("<svg>no part of it</svg>")
    return folder


def parts_of(folder):
    """Returns {heading: the parts below it} of a run's page; "" is what stands before."""
    found, heading = {"": []}, ""
    for part in run_page.of_run(folder, report.outputs.read_summary(folder))[1]:
        if isinstance(part, page.Heading):
            heading = part.text
            found[heading] = []
        else:
            found[heading].append(part)
    return found


def test_a_page_of_a_run_has_everything_of_it(swept):
    found = parts_of(swept)
    drawn = ("Every seed", "Learning curves", "Return by episode", "Embeddings of contexts",
             "Rollouts")  # fmt: skip
    for name in drawn:
        (figure,) = found[name]
        assert figure.svg.lstrip().startswith(b"<?xml") and figure.name == name
    (heat_map,) = found["Sweep"]
    assert heat_map.svg == b"<svg>the map</svg>"
    (results,) = found["Results"]
    assert results.markdown.count("given_context") == 4 and "lr=0.002" in results.markdown
    (what,) = found[""]
    assert f"`{swept}`" in what.markdown and "source_hash" in what.markdown


def test_settings_that_are_not_the_presets_come_first(swept):
    changed, every = parts_of(swept)["Settings"]
    rows = [re.split(r" \| ", line.strip("| ")) for line in changed.markdown.splitlines()[4:]]
    told = {key: (here, usual) for key, here, usual in rows}
    assert told["algo.eta"] == ("0.25", "0.1") and "train.num_steps" in told
    assert [here for key, (here, _) in told.items() if key.endswith("lr")] == ["0.001, 0.002"] * 2
    assert every.folded and "train.context_size" in every.markdown
    assert "train.context_size" not in changed.markdown


def test_every_test_task_of_the_plane_plays_from_the_best_grid_point(swept):
    (shown_episodes,) = parts_of(swept)["Episodes"]
    with np.load(swept / "rollouts.npz") as arrays, np.load(swept / "returns.npz") as returns:
        paths, ids = arrays["paths"], returns["test_ids"]
        last = returns["test/given_context"][-1, :, :, -1]
    titles = [one["title"] for one in shown_episodes.scenes]
    assert titles == [f"test task {task}" for task in ids]
    first = shown_episodes.scenes[0]
    # the second grid point, whose numbers are larger; its first seed is run number 2
    assert first["details"] == f"seed 0, return {last[2, 0]:.2f}, lr=0.002"
    np.testing.assert_allclose(first["path"], paths[2, len(paths[2]) - len(ids), :, :2])
    assert first["goal"].shape == (2,) and first["rewards"] == []


def test_episodes_of_render_are_on_the_page_and_their_command_is_told_otherwise(tmp_path):
    folder = make_folder(tmp_path, "--num_seeds=2")
    (folder / "rollouts.npz").unlink()
    (told,) = parts_of(folder)["Episodes"]
    assert f"python -m experiments.render --run={folder}" in told.markdown
    content = scene.of_plane(np.zeros((3, 2)), None)
    content |= {"goal": None, "rewards": [1.0, 2.0], "title": "rendered", "details": "</script>"}
    (folder / "renders").mkdir()
    (folder / "renders/one.html").write_text(scene.page(content))
    (episodes,) = parts_of(folder)["Episodes"]
    (found,) = episodes.scenes
    assert found["title"] == "rendered" and found["rewards"] == [1.0, 2.0]
    (folder / "renders/two.html").write_text("<p>no episode</p>")
    cut = scene.page(content).partition("</script>")[0][:-9]
    (folder / "renders/three.html").write_text(cut)
    assert len(parts_of(folder)["Episodes"][0].scenes) == 1


def test_texts_stay_texts_and_nothing_comes_from_the_network():
    bad = "<script>alert(1)</script> @BODY@ [x](javascript:alert(1))"
    content = scene.of_plane(np.zeros((3, 2)), None) | {"goal": None, "rewards": []}
    episodes = page.Episodes([content | {"title": bad, "details": "$& $1"}])
    parts = [page.Heading(bad), page.Text(bad), page.Figure(b"<svg/>", bad), episodes]
    html = page.page(bad, [*parts, page.Text(f"| a |\n|---|\n| {bad} |", bad)])
    assert "<script>alert" not in html and 'href="javascript' not in html
    assert html.count("</script>") == 3  # the page's own, the viewer and the scenes
    assert "http" not in html and html.count("@BODY@") == 9


def test_figures_are_of_the_arrays(tmp_path, monkeypatch):
    returns = np.arange(2 * 3 * 2 * 4, dtype=float).reshape(1, 6, 2, 4)
    costs = np.broadcast_to([0.0, 1.0, 5.0, 6.0], returns.shape)
    arrays = {"test/online": returns, "eval_steps": np.array([10])}
    lines = []
    monkeypatch.setattr(
        run_figures.figures, "interval_band", lambda axis, x, scores, *_: lines.append((x, scores))
    )
    rows = [
        run_figures.Row("a", arrays, {"test/online/episodes": costs}, slice(0, 3)),
        run_figures.Row("b", arrays, {}, slice(3, 6)),
    ]
    assert len(run_figures.by_episode(tmp_path, rows)) == 2
    (spent, first), (counted, second) = lines
    np.testing.assert_allclose(spent, [0, 1, 5, 6])
    np.testing.assert_allclose(counted, [0, 1, 2, 3])  # of a run from before costs were kept
    np.testing.assert_allclose(first, returns[0, :3].mean(1).T)
    np.testing.assert_allclose(second, returns[0, 3:].mean(1).T)
    one = {"test/online": returns[..., :1], "eval_steps": np.array([10])}
    assert run_figures.by_episode(tmp_path, [run_figures.Row("a", one, {})]) == []


def test_slots_without_an_episode_are_no_part_of_a_mean(tmp_path, monkeypatch):
    returns = np.full((1, 1, 2, 3), np.nan)
    returns[0, 0, :, 0], returns[0, 0, :, 2], returns[0, 0, 1, 1] = 1.0, 3.0, 7.0
    costs = np.array([[[[0.0, 9.0, 2.0], [0.0, 1.0, 4.0]]]])
    lines = []
    monkeypatch.setattr(
        run_figures.figures, "interval_band", lambda axis, x, scores, *_: lines.append((x, scores))
    )
    arrays = {"test/online": returns, "eval_steps": np.array([10])}
    run_figures.by_episode(
        tmp_path, [run_figures.Row("a", arrays, {"test/online/episodes": costs})]
    )
    ((spent, scores),) = lines
    np.testing.assert_allclose(spent, [0, 1, 2, 4])
    np.testing.assert_allclose(scores[:, 0], [1, 7, 3, 3])


def test_rows_along_an_axis_are_curves_in_its_order(tmp_path, monkeypatch):
    drawn = []
    plot = run_figures.figures.Figure.subplots

    def subplots(self, *args, **kwargs):
        axes = plot(self, *args, **kwargs)
        for axis in axes.flat:
            monkeypatch.setattr(
                axis, "plot", lambda x, y, *a, **k: drawn.append((x, y, k["label"]))
            )
        return axes

    monkeypatch.setattr(run_figures.figures.Figure, "subplots", subplots)
    axis = comparison.Axis("size", {"a9": ("a", "9"), "a1": ("a", "1"), "b1": ("b", "1")})
    scores = {
        name: np.full((2, 3), level) for name, level in (("a1", 1.0), ("a9", 9.0), ("b1", 5.0))
    }
    rows = run_page.rows_of_scores({
        name: {"test/online": one, "train/online": 2 * one, "bounds/test": np.zeros((2, 3))}
        for name, one in scores.items()
    } | {"other": {"test/online": np.zeros((2, 3))}})  # fmt: skip
    assert len(run_figures.along(tmp_path, "curves", rows, axis, "final")) == 2
    told = {label: (list(x), list(y)) for x, y, label in drawn}
    assert told["a, test tasks"] == ([0, 1], [9, 1]) and told["b, test tasks"] == ([1], [5])
    assert told["a, train tasks"] == ([0, 1], [18, 2]) and len(told) == 4
    assert run_figures.along(tmp_path, "none", rows[-1:], axis, "final") == []


def test_axes_of_tables_name_their_rows():
    along = {name: of for name, of in comparisons.TABLES.items() if of.axis}
    assert {"gentle_fig3", "gentle_fig4", "ctmrl_table3"} <= set(along)
    assert all(set(of.axis.at) == set(of.rows) for of in along.values())


def test_runs_that_diverged_are_told_below_figures(tmp_path):
    returns = np.array([1.0, 3.0, np.nan])[None, :, None, None] * np.ones((1, 1, 2, 3))
    row = run_figures.Row("a", {"test/online": returns, "eval_steps": np.array([10])}, {})
    for draw in (run_figures.seeds, run_figures.curves):
        draw(tmp_path, [row], "final")
    run_figures.by_episode(tmp_path, [row])
    for name in ("seeds", "curves", "by_episode"):
        lines = re.findall(r"<!-- (.*?) -->", (tmp_path / f"{name}.svg").read_text())
        text = " ".join(line.strip() for line in lines)
        assert "Without 1 run(s) that diverged" in text and "Episodes end early" not in text
    whole = row._replace(part=slice(0, 2))
    run_figures.seeds(tmp_path, [whole], "final")
    assert "diverged" not in (tmp_path / "seeds.svg").read_text()


def test_of_many_grid_points_the_best_on_training_tasks_are_shown():
    level = np.r_[np.arange(14.0), np.nan, 3.5]
    returns = {"train/online": level[None, :, None, None] * np.ones((1, 1, 2, 3))}
    rows = [run_figures.Row(str(i), returns, {}, slice(i, i + 1)) for i in range(16)]
    kept = run_page.best_of(rows, "final", "train/online")
    assert [row.name for row in kept] == [str(i) for i in (*range(3, 14), 15)]
    assert run_page.best_of(rows[:5], "final", "none") == rows[:5]


# --- the commands


def test_report_writes_a_page_of_each_kind(capsys, tmp_path):
    root = tmp_path / "ctmrl/point_robot/ctmrl"
    make_run(root / "a", 0.9)
    make_run(root / "b", 0.5, algorithm="focal")
    target = tmp_path / "new/page.html"
    whole = make_folder(tmp_path / "whole", "--num_seeds=2")
    for arguments, title, words in (
        ([f"--run={whole}"], "ctmrl on point_robot", ["Every seed", "every setting"]),
        ([f"--compare={root}"], "2 runs side by side", ["row above column", "Every seed: "]),
        ([f"--out={tmp_path}"], "Finished runs", ["All runs", str(root / "b")]),
    ):
        code, out, err = shown(capsys, *arguments, f"--html={target}")
        html = target.read_text()
        assert code == 0 and not err and f"page: {target}" in out
        assert f"<title>{title}</title>" in html and all(word in html for word in words)
        target.unlink()
    assert list(target.parent.iterdir()) == []


def test_reproduce_writes_a_page_of_a_committed_table(capsys, tmp_path):
    path = cells.RESULTS / "gentle_table1_point_robot_quick.json"
    line = [f"--from={path}", f"--html={tmp_path / 'page.html'}"]
    code, out, _ = shown(capsys, *line, command=reproduce.COMMAND, name="reproduce")
    html = (tmp_path / "page.html").read_text()
    assert code == 0 and f"page: {tmp_path / 'page.html'}" in out
    assert "Claims: " in html and "Every seed: point_robot" in html and "<td>borel</td>" in html


@pytest.mark.parametrize("target", ["{}", "gs://bucket/page.html", "{}/file/page.html"])
def test_what_no_page_can_be_written_to_is_refused_before_anything_else(capsys, tmp_path, target):
    (tmp_path / "file").write_text("")
    where = f"--html={target.format(tmp_path)}"
    for command, name, more in (
        (report.COMMAND, "report", f"--run={tmp_path / 'none'}"),
        (reproduce.COMMAND, "reproduce", f"--from={tmp_path / 'none'}"),
    ):
        code, out, err = shown(capsys, where, more, command=command, name=name)
        assert code == 2 and "--html" in err and err.count("\n") == 1 and not out


def test_a_run_of_another_version_is_shown_without_its_settings(tmp_path):
    folder = make_folder(tmp_path, "--num_seeds=2", "--sweep=lr=0.001,0.002")
    content = json.loads((folder / "config.json").read_text())
    del content["train"]["final_lr"], content["checksum"]
    (folder / "config.json").write_text(json.dumps(json_files.sealed(content)))
    found = parts_of(folder)
    (told,) = found["Settings"]
    assert told.markdown.startswith("Not shown: these settings are of another version")
    assert len(found["Results"]) == 1 and len(found["Every seed"]) == 1
    (folder / "config.json").unlink()
    assert "no config.json" in parts_of(folder)["Settings"][0].markdown


@pytest.mark.parametrize("flag", ["--list", "--dry_run", "--page={}/results.md"])
def test_commands_that_make_no_table_make_no_page(capsys, tmp_path, flag):
    line = [flag.format(tmp_path), f"--html={tmp_path / 'page.html'}"]
    code, _, err = shown(capsys, *line, command=reproduce.COMMAND, name="reproduce")
    assert code == 2 and "no table" in err and not list(tmp_path.iterdir())


def test_a_damaged_file_of_a_run_is_one_line(tmp_path):
    folder = make_folder(tmp_path, "--num_seeds=2")
    (folder / "costs.npz").write_bytes(b"no archive")
    with pytest.raises(errors.UserError, match=r"costs\.npz cannot be read"):
        parts_of(folder)
