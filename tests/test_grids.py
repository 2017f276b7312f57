"""Grids: what `--sweep` accepts, the queue of programs, the table and the heat map."""

import json

import numpy as np
import pytest

from experiments import collect, reproduce, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import grids, outputs
from experiments.show import figures, heatmap
from gentle_jax import config as config_lib
from gentle_jax import errors

SMOKE = ("--preset=smoke", "--num_seeds=2")


pytestmark = pytest.mark.usefixtures("no_cache")


def parse(*arguments):
    return flags.parse(run.COMMAND, ["run", *SMOKE, *arguments])


@pytest.mark.parametrize(
    "entry,values",
    [
        ("num_codes=2,4", (2, 4)),
        ("algo.use_kmeans=true,False", (True, False)),
        ("train.context_draw=uniform,level", ("uniform", "level")),
        ("final_lr=1,0.5", (1.0, 0.5)),
        ("eval.num_repeats=1,2", (1, 2)),
    ],
)
def test_values_have_the_type_of_the_default(entry, values):
    request = parse(f"--sweep={entry}")
    (axis,) = request.axes
    assert axis.structural and axis.values == values
    assert [type(value) for value in axis.values] == [type(value) for value in values]
    assert len(request.programs) == 2 and request.points == ({},)
    section, _, name = axis.keys[0].partition(".")
    assert [getattr(getattr(c, section), name) for c in request.programs] == list(values)


def test_a_short_key_sets_every_section_that_has_it():
    request = parse("--sweep=width=4,8")
    assert request.axes[0].keys == ("algo.width", "backbone.width")
    assert [(c.algo.width, c.backbone.width) for c in request.programs] == [(4, 4), (8, 8)]


def test_a_float_that_shapes_depend_on_makes_programs():
    request = parse("--algo=gentle", "--suite=gentle", "--sweep=algo.own_share=0.25,0.5")
    assert request.axes[0].structural and len(request.programs) == 2


def test_floats_stay_in_the_program_and_cross_with_every_one():
    arguments = ("--sweep=lr=0.1,0.2", "--sweep=num_codes=2,4", "--sweep=latent_dim=3,5")
    queue = grids.programs(parse(*arguments))
    choices = [{"num_codes": n, "latent_dim": z} for n in (2, 4) for z in (3, 5)]
    assert [choice for choice, _ in queue] == choices
    for choice, program in queue:
        assert [point["algo.lr"] for point in program.points] == [0.1, 0.2]
        assert program.config.algo.num_codes == choice["num_codes"]
        assert program.config.train.latent_dim == choice["latent_dim"]
    assert [choice for choice, _ in grids.programs(parse(arguments[0]))] == [{}]


def test_folders_are_those_of_the_config_form():
    queue = grids.programs(parse("--sweep=lr=0.1,0.2", "--sweep=num_codes=2,4", "--out=x"))
    for number, (_, program) in zip((2, 4), queue, strict=True):
        alone = parse("--sweep=lr=0.1,0.2", f"--config.algo.num_codes={number}", "--out=x")
        assert run.folder_of(program) == run.folder_of(alone)
    assert len({run.folder_of(program) for _, program in queue}) == 2


def test_data_are_the_same_for_all_programs():
    request = parse("--sweep=num_codes=2,4", "--sweep=eval.num_repeats=1,2", "--sweep=width=4,8")
    identities = [config_lib.data_identity(c) for c in request.programs]
    assert len(identities) == 8 and all(one == identities[0] for one in identities)


BAD = {
    "--sweep=num_codes=2.5,3": ("--sweep=num_codes=2.5,3", "type int", "'2.5'"),
    "--sweep=num_codes=2,x": ("type int", "'x'"),
    "--sweep=num_codes=2,,4": ("type int", "''"),
    "--sweep=num_codes=": ("type int", "''"),
    "--sweep=num_codes": ("--sweep=num_codes has no values",),
    "--sweep=use_kmeans=maybe,true": ("type bool", "'maybe'"),
    "--sweep=final_lr=0.1,a": ("type float", "'a'"),
    "--sweep=num_code=2,4": ("'num_code'", "did you mean 'algo.num_codes'"),
    "--sweep=num_codes=2,2": ("listed twice",),
    "--sweep=lr=0.1,0.10": ("listed twice",),
    "--sweep=width=2,4 --sweep=algo.width=8": ("swept twice",),
    "--sweep=num_codes=2,4 --config.algo.num_codes=3": ("algo.num_codes", "leave one out"),
    "--sweep=lr=0.1,0.2 --config.backbone.lr=0.3": ("backbone.lr", "leave one out"),
    "--sweep=train.init=he,xavier": ("'xavier'", "rlkit"),
    "--sweep=meta_batch=0,2": ("train.meta_batch is 0",),
    "--sweep=env.num_train=2,4": ("changes the data", "--config.env.num_train=VALUE"),
    "--sweep=behaviour.lr=0.1,0.2": ("changes the data",),
    "--sweep=random_episodes=10,20": ("eval.random_episodes changes the data",),
    "--sweep=eval.metric=all,final": ("all metrics",),
    "--sweep=num_seeds=2,4": ("'num_seeds'", "expected one of"),
    # the second program could not be trained: the first one does not start
    "--sweep=num_codes=2,31": ("with num_codes=31:", "expected 2 to 30"),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_grids_are_one_line_and_write_nothing(tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.setattr(collect, "ensure", lambda *_: pytest.fail("began"))
    assert main(run.COMMAND, ["run", *SMOKE, *arguments.split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and "Traceback" not in shown
    for part in BAD[arguments]:
        assert part in shown
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("entry", ["latent_dim=2,4", "lr=0.1,0.2"])
def test_reproduce_refuses_a_sweep(entry, capsys):
    assert main(reproduce.COMMAND, ["reproduce", *SMOKE, f"--sweep={entry}"]) == 2
    assert "reproduce does not use --sweep: a table has one cell" in capsys.readouterr().err


def entry(per_seed, **more):
    """Returns a summary's entry for returns per seed."""
    mean = float(np.mean(per_seed))
    half = 0.1 * (len(per_seed) > 1) + 0.0 * mean  # NaN where the mean is
    numbers = {"mean": mean, "std": 0.1, "ci95": [mean - half, mean + half], "iqm": mean}
    numbers |= {"iqm_ci95": [mean, mean], "normalized": mean / 10, "per_seed": list(per_seed)}
    kind = {"task_set": "test", "protocol": "random_then_policy", "metric": "final"}
    return kind | numbers | more


def summary(*scores, failed=()):
    """Returns a summary with a grid point for each list of returns per seed."""
    results = []
    for per_seed in scores:
        mine = entry(per_seed)
        others = ({"metric": "all"}, {"protocol": "online"}, {"task_set": "train"})
        results += [mine, *({**mine, "mean": 77.0} | other for other in others)]
    return {"results": results, "failed_seeds": list(failed)}


class Queue:
    """Stands in for `run.execute`: returns what is in `outcomes`, in order, or raises it."""

    def __init__(self, *outcomes):
        self.outcomes, self.requests = list(outcomes), []

    def __call__(self, request):
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


GRID = ("--sweep=lr=0.1,0.2", "--sweep=num_codes=2,4,8")


def grid_folder(root):
    (found,) = root.rglob("grid_*")
    return found


def test_the_table_has_a_row_for_each_cell_and_its_own_number(tmp_path, capsys):
    request = parse(*GRID, f"--out={tmp_path}")
    queue = Queue(*(summary([n + 0.0] * 2, [n + 5.0] * 2) for n in (1, 2, 3)))
    assert grids.execute(request, queue, run.folder_of) == 0
    assert [r.config.algo.num_codes for r in queue.requests] == [2, 4, 8]
    folder = grid_folder(tmp_path)
    assert folder.parent == run.folder_of(queue.requests[0]).parent
    whole = json.loads((folder / "grid.json").read_text())
    found = {(c["at"]["lr"], c["at"]["num_codes"]): c for c in whole["cells"]}
    for (lr, codes), cell in found.items():
        number = {2: 1, 4: 2, 8: 3}[codes] + (5 if lr == 0.2 else 0)
        assert cell["mean"] == number and cell["finite"] == 2
        request = next(r for r in queue.requests if r.config.algo.num_codes == codes)
        assert cell["run"] == run.folder_of(request).name
    assert len(found) == 6 and whole["cells"][whole["best"]]["at"] == {"lr": 0.2, "num_codes": 8}
    lines = (folder / "grid.md").read_text().splitlines()
    assert lines[0].startswith("| lr | num_codes | mean |")
    assert [line for line in lines if line.endswith("| best |")] == [
        "| 0.2 | 8 | 8.00 | [7.90, 8.10] | 0.800 | 2/2 | best |"
    ]
    shown = capsys.readouterr().out
    assert "program 2 of 3, num_codes=4" in shown and grids.UNFAIR in shown
    assert grids.UNFAIR in "\n".join(lines)
    for kind in ("png", "svg"):
        assert (folder / f"heat_map.{kind}").stat().st_size > 5_000


def test_a_grid_of_floats_is_one_program_and_has_its_table_too(tmp_path, capsys):
    request = parse(GRID[0], f"--out={tmp_path}")
    queue = Queue(summary([1.0, 1.2], [1.1, 1.3]))
    assert grids.execute(request, queue, run.folder_of) == 0
    assert queue.requests == [request]
    assert json.loads((grid_folder(tmp_path) / "grid.json").read_text())["best"] is None
    assert "None is marked best" in capsys.readouterr().out
    assert grids.execute(parse(), Queue(summary([1.0, 2.0])), run.folder_of) == 0
    assert "best" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "outcomes,code,ran",
    [
        ([summary([1.0, 1], [2.0, 2])] * 3, 0, 3),
        ([summary([1.0, np.nan], [2.0, 2], failed=[{"seed": 1}]), *[summary([1.0, 1], [2, 2])] * 2],
         3, 3),
        ([errors.UserError("too little memory"), *[summary([1.0, 1], [2.0, 2])] * 2], 2, 3),
        ([summary([1.0, 1], [2.0, 2]), SystemExit(42)], 42, 2),
    ],
)  # fmt: skip
def test_the_code_is_the_worst_and_an_interrupt_ends_the_queue(
    tmp_path, capsys, outcomes, code, ran
):
    queue = Queue(*outcomes)
    request = parse(*GRID, f"--out={tmp_path}")
    if code == 42:
        with pytest.raises(SystemExit) as raised:
            grids.execute(request, queue, run.folder_of)
        assert raised.value.code == code and not list(tmp_path.rglob("grid_*"))
    else:
        assert grids.execute(request, queue, run.folder_of) == code
    assert len(queue.requests) == ran
    text = capsys.readouterr()
    if code == 3:
        assert "1/2" in text.out and "nan" in text.out
    if code == 2:
        assert text.err == "error: program 1 of 3, num_codes=2: too little memory\n"
        assert json.loads((grid_folder(tmp_path) / "grid.json").read_text())["best"] is None


def test_one_of_several_processes_does_not_go_on_alone(monkeypatch):
    monkeypatch.setattr(grids.hosts, "several", lambda: True)
    queue = Queue(errors.UserError("too little memory"), summary([1.0, 1.0]))
    with pytest.raises(errors.UserError, match="program 1 of 2, num_codes=2: too little memory"):
        grids.execute(parse("--sweep=num_codes=2,4"), queue, run.folder_of)
    assert len(queue.requests) == 1


def test_the_best_cell_needs_an_interval_above_all_others():
    cell = lambda *per_seed: {k: v for k, v in entry(per_seed).items() if k in grids.KEPT}
    assert grids.best_of([cell(1.0, 1.0), cell(2.0, 2.0)]) == 1
    assert grids.best_of([cell(1.0, 1.0), cell(1.1, 1.1)]) is None  # overlap
    assert grids.best_of([cell(1.0), cell(2.0)]) is None  # one seed
    assert grids.best_of([cell(1.0, np.nan), cell(2.0, 2.0)]) is None  # nothing to compare with
    assert grids.best_of([cell(9.0, np.nan), cell(2.0, 2.0), cell(1.0, 1.0)]) == 1
    assert grids.best_of([{"at": {}}, cell(2.0, 2.0), cell(1.0, 1.0)]) is None  # did not run


def test_a_summary_of_other_points_is_refused():
    with pytest.raises(errors.UserError, match="holds 1 grid points instead of 2"):
        grids.entries_of(summary([1.0, 2.0]), "random_then_policy", 2)


@pytest.mark.parametrize(
    "shape", [(3,), (1,), (2, 3), (2, 2, 3), (2, 2, 2, 2), (2, 1, 13), (21, 20)]
)
def test_heat_maps_of_every_number_of_keys(tmp_path, shape):
    axes = [(f"key{i}", tuple(range(count))) for i, count in enumerate(shape)]
    means = np.random.default_rng(0).normal(size=shape)
    intervals = np.stack([means - 0.1, means + 0.1], -1)
    means.flat[0] = intervals.reshape(-1, 2)[0] = np.nan
    best = None if means.size == 1 else np.unravel_index(means.size - 1, shape)
    paths = heatmap.draw(tmp_path, axes, means, intervals, best, title="title", notes=["A note."])
    assert len(paths) == (4 if 13 in shape else 2)  # 12 panels on a page
    assert all(path.stat().st_size > 5_000 for path in paths)


def test_numbers_and_the_mark_are_drawn_where_they_belong():
    axis = figures.Figure().subplots()
    means = np.array([[1.0, 2.0], [3.0, np.nan]])
    intervals = np.stack([means - 0.5, means + 0.5], -1)
    scale = heatmap.matplotlib.cm.ScalarMappable(heatmap.scale_of(means), heatmap.COLOURS)
    heatmap.panel(axis, [("a", (7, 8)), ("b", (0.1, True))], means, intervals, scale, (1, 0))
    texts = {tuple(map(int, t.get_position())): t.get_text() for t in axis.texts}
    assert texts[0, 1] == "3.00\n[2.50, 3.50]" and texts[1, 1] == "-"  # x is the column
    (box,) = axis.patches
    assert box.get_xy() == (-0.5, 0.5)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0.1", "True"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["7", "8"]


@pytest.mark.slow
def test_two_programs_of_two_points_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(outputs, "draw", lambda *_: None)
    settings = {"train.meta_batch": 2, "train.num_evals": 1, "backbone.width": 4}
    settings |= {"backbone.depth": 1, "algo.depth": 1, "algo.width": 4, "eval.scored_steps": 5}
    settings |= {"env.num_train": 4, "env.num_test": 2, "env.horizon": 5}
    line = ["--algo=focal", "--suite=gentle", "--preset=smoke", "--num_seeds=2", "--num_steps=2"]
    line += ["--protocol=given_context", "--sweep=lr=0.001,0.002", f"--data={tmp_path / 'data'}"]
    line += [f"--config.{key}={value}" for key, value in settings.items()]
    out = [f"--out={tmp_path / 'grid'}", "--sweep=latent_dim=2,3"]
    assert main(run.COMMAND, ["run", *line, *out]) == 0
    shown = capsys.readouterr().out
    assert shown.count("data: making") == 1 and shown.count("data: reusing") == 1
    whole = json.loads((grid_folder(tmp_path) / "grid.json").read_text())
    assert len(whole["cells"]) == 4
    assert len({cell["run"] for cell in whole["cells"]}) == 2

    # the command with --config finds the second program's run, and the grid finds both
    alone = [f"--out={tmp_path / 'grid'}", "--config.train.latent_dim=3"]
    assert main(run.COMMAND, ["run", *line, *alone]) == 0
    assert main(run.COMMAND, ["run", *line, *out]) == 0
    assert capsys.readouterr().out.count("run: finished before") == 3
    folder = run.folder_of(parse(*(word for word in line if word not in SMOKE), *alone))
    stored = json.loads((folder / "summary.json").read_text())["results"]
    test = [e["mean"] for e in stored if (e["task_set"], e["metric"]) == ("test", "all")]
    cells = {(c["at"]["lr"], c["at"]["latent_dim"]): c["mean"] for c in whole["cells"]}
    assert [cells[0.001, 3], cells[0.002, 3]] == test
