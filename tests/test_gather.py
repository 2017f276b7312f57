"""`experiments.gather`: shards of a sweep become the run that they are parts of."""

import json
import pathlib

import numpy as np
import pytest

from experiments import gather, render, report, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import code_identity, outputs
from experiments.show import tables
from gentle_jax import assembly, json_files, statistics, storage
from gentle_jax.protocols import base
from gentle_jax.types import Cost

FLAGS = ("--preset=smoke", "--protocol=given_context", "--num_steps=8")
SWEEP = "--sweep=lr=0.001,0.002"
EVALS, EPISODES, STEPS = 2, 3, (4, 8)
ENVIRONMENT = {"versions": {"jax": "1"}, "device": "cpu", "commit": None}


def value(kind, point, seed):
    """A number that only one run has."""
    return 100 * point + seed + {"returns": 0.0, "z": 0.25, "paths": 0.5}[kind]


def make_arrays(request, env):
    """Returns Arrays in which every number tells its grid point and seed."""
    offset, count = request.config.run.seed_offset, request.config.run.num_seeds
    labels = [(p, s) for p in range(len(request.points)) for s in range(offset, offset + count)]
    tasks = {"train": len(env.train_ids), "test": len(env.test_ids)}
    total = len(env.parameters)
    random = np.random.default_rng(0).normal(size=(EVALS, 1, total, EPISODES))

    def fill(kind, *shape, lead=()):
        return np.stack([np.full((*lead, *shape), value(kind, *label)) for label in labels])

    returns, embeddings, costs = {}, {"eval_steps": np.array(STEPS)}, {}
    for name, number in tasks.items():
        plain = np.moveaxis(fill("returns", EVALS, number, EPISODES), 0, 1)
        returns[f"{name}/given_context"] = plain + random[:, :, :number]
        spent = {kind: plain + number for number, kind in enumerate(Cost._fields)}
        costs |= {f"{name}/given_context/{kind}": cost for kind, cost in spent.items()}
        embeddings[f"{name}/z"] = np.moveaxis(fill("z", EVALS, number, 2, 3), 0, 1)
    returns |= {
        "eval_steps": np.array(STEPS),
        "random_return": np.zeros(total),
        "reference_return": np.ones(total),
        "train_ids": env.train_ids,
        "test_ids": env.test_ids,
        "axes": np.array("eval_point, seed, task, episode"),
    }
    paths = fill("paths", total, env.horizon + 1, env.obs_dim)
    trace = paths, np.ones((len(labels), total, env.horizon))
    return outputs.Arrays(returns, embeddings, trace, costs)


def make_run(out, *arguments, drawn=False, failed=False):
    """Writes a finished run folder without training; returns it."""
    given = {word.partition("=")[0] for word in arguments}
    usual = [word for word in FLAGS if word.partition("=")[0] not in given]
    request = flags.parse(run.COMMAND, ["run", *usual, f"--out={out}", *arguments])
    folder = run.folder_of(request)
    folder.mkdir(parents=True)
    storage.write_json(folder / "config.json", json_files.sealed(run.identity(request)))
    environment = ENVIRONMENT | code_identity.of(request.config.run)
    storage.write_json(folder / "environment.json", json_files.sealed(environment))
    env, config = assembly.env_of(request.config), request.config.run
    seeds = range(config.seed_offset, config.seed_offset + config.num_seeds)
    lines = [
        {"step": step, "stage": "train", "seed": seed}
        | ({"sweep": outputs.label(point)} if point else {})
        | {"loss": value("returns", index, seed) + 0.1}
        for step in STEPS
        for index, point in enumerate(request.points)
        for seed in seeds
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    costs = {
        "seconds": {"train": 2.0, "total": 3.0},
        "seed_steps_per_second": 5.0,
        "peak_memory_bytes": 10 + config.num_seeds,
        "failed_seeds": [{"seed": seeds[-1]}] if failed else [],
    }
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(outputs, "draw", lambda *_: None)
        outputs.store(request, folder, env, make_arrays(request, env), costs)
    return folder


def reseal(folder):
    """Makes summary.json fit the files that are there now."""
    summary = storage.read_json(folder / "summary.json")
    hashes = {name: storage.file_hash(folder / name) for name in summary["sha256"]}
    del summary["checksum"]
    sealed = json_files.sealed(summary | {"sha256": hashes})
    storage.write_json(folder / "summary.json", sealed)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time; one test draws them."""
    monkeypatch.setattr(outputs, "draw", lambda *_: None)


def command(capsys, *arguments):
    """Runs the command; returns (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main(gather.COMMAND, ["gather", *map(str, arguments)])
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    code, _, err = command(capsys, *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def shard(out, first, count, *arguments, failed=False):
    seeds = (f"--seed_offset={first}", f"--num_seeds={count}")
    return make_run(out, *seeds, *arguments, failed=failed)


def merged(out):
    """The run folders that were gathered below a root."""
    found = [path.parent for path in pathlib.Path(out).rglob("summary.json")]
    return [f for f in found if "shards" in json.loads((f / "summary.json").read_text())]


@pytest.mark.parametrize("sweep", [(), (SWEEP,)], ids=["seeds", "grid"])
def test_shards_become_the_run_that_they_are_parts_of(tmp_path, capsys, undrawn, sweep):
    whole = make_run(tmp_path / "whole", "--num_seeds=6", "--seed_offset=2", *sweep)
    out = tmp_path / "runs"
    parts = ((2, 2), (5, 3), (4, 1))
    shards = [shard(out, first, count, *sweep, failed=True) for first, count in parts]
    code, text, _ = command(capsys, f"--from={out}", f"--num_runs={6 * (1 + len(sweep))}")
    assert code == 3 and "3 shards, seeds 2 to 7" in text and "WARNING" not in text
    (folder,) = merged(out)
    assert folder.relative_to(out) == whole.relative_to(tmp_path / "whole")
    for name in ("returns.npz", "costs.npz", "embeddings.npz", "rollouts.npz"):
        with np.load(folder / name) as found, np.load(whole / name) as wanted:
            assert set(found) == set(wanted)
            for key in wanted:
                assert found[key].dtype == wanted[key].dtype
                np.testing.assert_array_equal(found[key], wanted[key], err_msg=key)
    for name in ("metrics.jsonl", "config.json"):
        assert (folder / name).read_text() == (whole / name).read_text()
    assert any((folder / "tensorboard").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    wanted = json.loads((whole / "summary.json").read_text())
    assert summary["results"] == wanted["results"] and summary["num_seeds"] == 6
    assert summary["results"][0]["cost"]["episodes"] > summary["results"][0]["cost"]["steps"] > 0
    # and the statistics are those of the joined arrays, computed here
    with np.load(folder / "returns.npz") as arrays:
        last = base.METRICS["final"](arrays["test/given_context"][-1, :6])
        zero, one = np.zeros(last.shape[1]), np.ones(last.shape[1])
        expected = statistics.summarize(last, zero, one)
    first = next(e for e in summary["results"] if (e["task_set"], e["metric"]) == ("test", "final"))
    assert {key: first[key] for key in expected} == expected
    # what a shard cost is not lost
    assert summary["seconds"] == {"train": 6.0, "total": 9.0}
    assert summary["seed_steps_per_second"] == 5.0 and summary["peak_memory_bytes"] == 13
    assert [failed["seed"] for failed in summary["failed_seeds"]] == [3, 4, 7]
    assert [(s["seed_offset"], s["num_seeds"]) for s in summary["shards"]] == [
        (2, 2), (4, 1), (5, 3),
    ]  # fmt: skip
    assert [s["folder"] for s in summary["shards"]] == [str(shards[i]) for i in (0, 2, 1)]


@pytest.mark.parametrize("failed,code", [((), 0), ((0,), 3), ((1,), 3)])
def test_the_code_tells_of_seeds_that_diverged(tmp_path, capsys, undrawn, failed, code):
    for first in (0, 1):
        one = shard(tmp_path, first, 1, failed=first in failed)
    assert command(capsys, f"--from={tmp_path}")[0] == code
    summary = json.loads((merged(tmp_path)[0] / "summary.json").read_text())
    assert [seed["seed"] for seed in summary["failed_seeds"]] == list(failed)
    # of a run that needs no gathering too
    assert command(capsys, f"--shard={one}")[0] == (3 if 1 in failed else 0)


def test_the_merged_folder_is_a_run_for_other_commands(tmp_path, capsys, undrawn):
    out = tmp_path / "runs"
    shard(out, 0, 2), shard(out, 2, 2)
    assert command(capsys, f"--from={out}")[0] == 0
    (folder,) = merged(out)
    assert main(report.COMMAND, ["report", f"--run={folder}"]) == 0
    results = json.loads((folder / "summary.json").read_text())["results"]
    assert tables.render(results) in capsys.readouterr().out
    again = ["run", *FLAGS, "--num_seeds=4", f"--out={out}"]
    assert main(run.COMMAND, again) == 0
    assert "finished before" in capsys.readouterr().out
    assert main(render.COMMAND, ["render", f"--run={folder}"]) == 2
    first = json.loads((folder / "summary.json").read_text())["shards"][0]["folder"]
    assert (
        f"was gathered, its checkpoints are in its shards: pass one of them, such as "
        f"--run={first}" in capsys.readouterr().err
    )
    # gathering again takes the shards, not what was gathered
    before = (folder / "summary.json").read_text()
    assert command(capsys, f"--from={out}")[0] == 0
    assert merged(out) == [folder] and (folder / "summary.json").read_text() == before


def test_shards_from_before_costs_were_counted_are_merged_without(tmp_path, capsys, undrawn):
    for first in (0, 1):
        (shard(tmp_path, first, 1) / "costs.npz").unlink()
    assert command(capsys, f"--from={tmp_path}")[0] == 0
    summary = json.loads((merged(tmp_path)[0] / "summary.json").read_text())
    assert {entry["cost"] for entry in summary["results"]} == {None}


def test_tables_tell_steps_of_pretraining_apart(tmp_path, capsys, undrawn):
    for first in (0, 1):
        folder = shard(tmp_path, first, 1, "--num_steps=5")
    text = f"after 5 steps (and {STEPS[-1] - 5} of pretraining)"
    code, shown, _ = command(capsys, f"--from={tmp_path}")
    assert code == 0 and text in shown
    assert main(report.COMMAND, ["report", f"--run={folder}"]) == 0
    assert text in capsys.readouterr().out


def test_figures_are_drawn_of_all_seeds(tmp_path, capsys):
    shard(tmp_path, 0, 1), shard(tmp_path, 1, 1)
    assert command(capsys, f"--from={tmp_path}")[0] == 0
    (folder,) = merged(tmp_path)
    found = {path.stem for path in (folder / "figures").glob("*.png")}
    assert found >= {"learning_curves", "embeddings", "rollouts"}


def test_several_sweeps_are_gathered_one_by_one(tmp_path, capsys, undrawn):
    for extra in ("--num_steps=8", "--num_steps=9"):
        shard(tmp_path, 0, 1, extra), shard(tmp_path, 1, 1, extra)
    alone = shard(tmp_path, 0, 1, "--num_steps=10")
    code, text, _ = command(capsys, f"--from={tmp_path}", f"--to={tmp_path / 'all'}")
    assert code == 0 and len(merged(tmp_path / "all")) == 2
    assert f"leaving out {alone}: it is the only one" in text


def test_shards_by_name_and_roots_of_their_own(tmp_path, capsys, undrawn):
    one, two = shard(tmp_path / "job0", 0, 1), shard(tmp_path / "job1", 1, 1)
    shard(tmp_path / "job2", 2, 1)
    code, text, _ = command(capsys, f"--shard={two}", f"--shard={one}")
    assert code == 0 and "seeds 0 to 1" in text
    (folder,) = merged(tmp_path)
    assert folder.is_relative_to(tmp_path / "job0")
    assert command(capsys, f"--from={tmp_path}")[0] == 0
    assert [f.is_relative_to(tmp_path / "ctmrl") for f in merged(tmp_path)].count(True) == 1
    # from a folder inside the root: beside the shards all the same
    inner = shard(tmp_path / "inner", 0, 1).parent
    shard(tmp_path / "inner", 1, 1)
    assert command(capsys, f"--from={inner}")[0] == 0
    assert [folder.parent for folder in merged(tmp_path / "inner")] == [inner]


def test_gaps_and_duplicates_are_refused(tmp_path, capsys, undrawn):
    shard(tmp_path, 0, 2)
    last = shard(tmp_path, 5, 2)
    line = refused(capsys, f"--from={tmp_path}")
    assert "seeds 2 to 4 are missing" in line and "--seed_offset=2 --num_seeds=3" in line
    twice = shard(tmp_path, 1, 4)
    line = refused(capsys, f"--from={tmp_path}")
    assert "seeds 1 to 1 are in both" in line and str(twice) in line
    inside = shard(tmp_path, 5, 1)
    line = refused(capsys, f"--shard={last}", f"--shard={inside}")
    assert "seeds 5 to 5 are in both" in line
    assert not merged(tmp_path)


def test_a_missing_last_shard_is_noticed_by_the_number_of_runs(tmp_path, capsys, undrawn):
    shard(tmp_path, 0, 2, SWEEP), shard(tmp_path, 2, 2, SWEEP)
    line = refused(capsys, f"--from={tmp_path}", "--num_runs=12")
    assert "are 8 runs" in line and "--num_runs asks for 12" in line
    assert "--num_seeds asks for 8" in refused(capsys, f"--from={tmp_path}", "--num_seeds=8")
    assert not merged(tmp_path)
    assert command(capsys, f"--from={tmp_path}", "--num_runs=8", "--num_seeds=4")[0] == 0
    alone = tmp_path / "alone"
    shard(alone, 0, 2)
    assert "are 2 runs" in refused(capsys, f"--from={alone}", "--num_runs=4")
    code, text, _ = command(capsys, f"--from={alone}", "--num_runs=2")
    assert code == 0 and "holds all runs already" in text


def test_an_unfinished_shard_is_refused_and_named(tmp_path, capsys, undrawn):
    shard(tmp_path, 0, 1)
    other = shard(tmp_path, 1, 1)
    (other / "summary.json").unlink()
    assert f"{other} is unfinished" in refused(capsys, f"--from={tmp_path}")
    assert f"{other} is unfinished" in refused(capsys, f"--shard={other}")


def test_shards_of_other_settings_data_or_no_shards_are_refused(tmp_path, capsys, undrawn):
    one, two = shard(tmp_path, 0, 1), shard(tmp_path, 1, 1, "--config.algo.lr=0.5")
    line = refused(capsys, f"--shard={one}", f"--shard={two}")
    assert "algo.lr is 0.000" in line and "0.5" in line
    three = shard(tmp_path, 1, 1)
    with np.load(three / "returns.npz") as arrays:
        changed = {**arrays, "random_return": arrays["random_return"] + 1}
    np.savez(three / "returns.npz", **changed)
    assert "returns.npz cannot be read, or was altered" in refused(
        capsys, f"--shard={one}", f"--shard={three}"
    )
    reseal(three)
    line = refused(capsys, f"--shard={one}", f"--shard={three}")
    assert "differ in random_return" in line
    (three / "rollouts.npz").write_bytes(b"PK")
    np.savez(three / "returns.npz", **(changed | {"random_return": changed["random_return"] - 1}))
    reseal(three)
    assert "rollouts.npz cannot be read" in refused(capsys, f"--shard={one}", f"--shard={three}")
    (three / "config.json").write_text("{")
    assert "is not the config of a run" in refused(capsys, f"--from={tmp_path}")
    (three / "config.json").unlink()
    assert "no run folder" in refused(capsys, f"--shard={one}", f"--shard={three}")
    assert "no shards below" in refused(capsys, f"--from={tmp_path / 'absent'}")
    assert "pass one of them" in refused(capsys, f"--from={tmp_path}", f"--shard={one}")
    assert "'form'" in refused(capsys, "--form=x")
    assert "unknown kind" in refused(capsys, "--from=ftp://x")
    assert not merged(tmp_path)


def test_another_version_is_a_warning_and_is_kept(tmp_path, capsys, undrawn):
    shard(tmp_path, 0, 1)
    other = shard(tmp_path, 1, 1)
    changed = code_identity.environment_of(other) | {"versions": {"jax": "2"}}
    storage.write_json(other / "environment.json", changed)
    code, text, _ = command(capsys, f"--from={tmp_path}")
    assert code == 0 and "WARNING: 1 of 2 shards differ from the first in versions" in text
    found = json.loads((merged(tmp_path)[0] / "environment.json").read_text())
    assert found["versions"] == {"jax": "1"}
    assert found["shards_with"] == [{"folder": str(other), "versions": {"jax": "2"}}]


def test_shards_of_different_code_are_refused_unless_accepted(tmp_path, capsys, undrawn):
    one, two = shard(tmp_path, 0, 1), shard(tmp_path, 1, 1)
    environment = code_identity.environment_of(two)
    mine = environment["source_hash"]
    for other, text in (
        ({"source_hash": "b" * 16}, f"different code ({mine}, {'b' * 16})"),
        ({"resumed_with": [{"source_hash": "b" * 16}]}, f"{two} was made by more than one code"),
    ):
        storage.write_json(two / "environment.json", environment | other)
        line = refused(capsys, f"--from={tmp_path}")
        assert text in line and "--accept_code" in line and not merged(tmp_path)
    for folder in (one, two):  # unknown ones may differ
        storage.write_json(folder / "environment.json", ENVIRONMENT)
    line = refused(capsys, f"--from={tmp_path}")
    assert f"{one} was made by more than one code, or an unknown one (no source hash)" in line
    storage.write_json(one / "environment.json", environment)
    storage.write_json(two / "environment.json", environment | {"source_hash": "b" * 16})
    assert command(capsys, f"--from={tmp_path}", "--accept_code")[0] == 0
    (folder,) = merged(tmp_path)
    assert code_identity.recorded(folder) == {mine, "b" * 16}


def test_runs_that_were_put_aside_are_no_shards(tmp_path, capsys, undrawn):
    shard(tmp_path, 0, 1)
    old = shard(tmp_path, 1, 1)
    code_identity.put_aside(old)
    shard(tmp_path, 1, 1)
    for root in (tmp_path, old.parent, old.parent.parent):
        assert command(capsys, f"--from={root}")[0] == 0


def test_a_run_of_its_own_is_not_overwritten(tmp_path, capsys, undrawn):
    shards = [shard(tmp_path / "parts", 0, 1), shard(tmp_path / "parts", 1, 1)]
    whole = shard(tmp_path / "runs", 0, 2)
    before = (whole / "summary.json").read_text()
    line = refused(capsys, *(f"--shard={s}" for s in shards), f"--to={tmp_path / 'runs'}")
    assert f"{whole} is a run of its own" in line
    assert (whole / "summary.json").read_text() == before
