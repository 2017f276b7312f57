"""`experiments.data`: import, export, list, show, verify, and training on what was imported."""

import json
import pathlib
import re
import shutil

import foreign
import numpy as np
import pytest
from data_command import refused, shown

from experiments import collect, data, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import outputs
from experiments.show import figures
from gentle_jax import assembly, storage
from gentle_jax import config as config_lib

TINY = (
    "--preset=smoke", "--backbone=td3_bc", "--protocol=given_context", "--num_seeds=2",
    "--num_steps=4", "--config.train.meta_batch=2", "--config.train.latent_dim=2",
    "--config.train.num_evals=1", "--config.train.context_draw=episodes",
    "--config.backbone.width=4", "--config.backbone.depth=1",
    "--config.algo.encoder_width=4", "--config.algo.encoder_depth=1",
    "--config.algo.width=4", "--config.algo.depth=1", "--config.algo.num_iterations=4",
    "--config.algo.use_cross_prediction=false", "--config.algo.use_contrast=false",
    "--config.eval.scored_steps=40",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """The user's compile cache stays as it is, and commands run in an empty folder."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A FOCAL folder of suite ctmrl with ragged episodes and one missing file."""
    folder = tmp_path_factory.mktemp("focal")
    foreign.focal(folder, foreign.make_env(suite="ctmrl"), episodes=2, lengths={(3, 1000, 1): 7})
    (folder / "goal_idx5" / foreign.name(1, 2000)).unlink()
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory, source):
    """A root of datasets with the imported folder in it."""
    folder = tmp_path_factory.mktemp("data")
    assert main(data.COMMAND, ["data", "import", *focal(source), f"--data={folder}"]) == 0
    return folder


@pytest.fixture
def dataset(root):
    """The imported dataset's folder."""
    (found,) = (root / "ctmrl" / "point_robot").iterdir()
    return found


def focal(folder):
    return "--format=focal", f"--from={folder}"


def test_an_imported_folder_trains_and_its_gap_is_named(capsys, tmp_path, source, monkeypatch):
    monkeypatch.setattr(outputs, "draw", lambda *_: None)
    arguments = ["import", *focal(source), f"--data={tmp_path / 'data'}"]
    code, out, err = shown(capsys, *arguments)
    assert code == 0, err
    assert "missing: goal_idx5, step 2000, episode 1" in out and "159 of 160 files" in out
    assert "WARNING" not in out
    (folder,) = (tmp_path / "data" / "ctmrl" / "point_robot").iterdir()
    assert folder.name.startswith("imported_") and f"--data={folder}" in out
    assert "holds a dataset already" in refused(capsys, *arguments)

    meta = storage.read_meta(folder)
    assert meta["checked"]["misfits"] == [] and meta["tasks_from"] == "suite ctmrl"
    accepted = meta["checked"] | {"misfits": [{"task": 3, "text": "odd rows"}]}
    storage.commit(
        folder, {k: v for k, v in meta.items() if k != "checksum"} | {"checked": accepted}
    )

    # whatever the behaviour settings and the number of random episodes are; fewer tasks too
    line = [*TINY, f"--data={folder}", f"--out={tmp_path / 'runs'}", "--config.behaviour.seed=3"]
    line += ["--config.env.num_train=6", "--config.env.num_test=3", "--config.algo.num_codes=2"]
    code, out, err = shown(capsys, *line, command=run.COMMAND)
    assert code == 0, err
    assert "data: imported from focal, its physics is unknown to us; evaluation uses" in out
    assert "taking 9 of its 40 tasks" in out
    misfit = (
        "1 task(s) of the data misfit the environment, accepted at the import; task 3: odd rows"
    )
    assert out.count(f"WARNING: {misfit}") == 2  # before training, and below the table
    (summary,) = (tmp_path / "runs").rglob("summary.json")
    found = json.loads(summary.read_text())
    assert not found["failed_seeds"] and found["data_misfit"] == misfit
    assert all(np.isfinite(entry["mean"]) for entry in found["results"])
    described = json.loads((summary.parent / "config.json").read_text())["data"]
    assert (
        described["format"] == "focal" and described["sha256"] == storage.imported(folder)["sha256"]
    )
    code, out, _ = shown(capsys, *line, command=run.COMMAND)
    assert "finished before" in out


def test_a_part_of_an_imported_family_keeps_its_rows_and_has_returns_of_its_own(monkeypatch):
    def resolve(**changes):
        return config_lib.resolve(config_lib.RunConfig(), ({"eval.random_episodes": 2}, changes))

    whole = assembly.env_of(resolve())
    values = np.arange(40.0).reshape(40, 1, 1, 1) * np.ones(20)
    fields = {"context_reward": values, "mask": np.ones_like(values)}
    meta = {name: [list(range(40))] for name in collect.RETURNS[:2]}
    meta |= {name: list(range(40)) for name in collect.RETURNS[2:]}
    meta |= {"identity": {"random_physics": "exact"}}
    assert collect.part_of(fields, meta, resolve()) == (fields, meta)

    fewer = {"env.num_train": 2, "env.num_test": 1}
    kept = sorted([whole.train_ids[0], whole.train_ids[-1], whole.test_ids[0]])
    part, own = collect.part_of(fields, meta, resolve(**fewer))
    np.testing.assert_array_equal(part["context_reward"][:, 0, 0], values[kept, 0, 0])
    assert own["random_return"] == kept and own["expert_return"] == [kept]

    # fewer steps: returns of 3 instead of 20, the optimum of 3, and random ones measured anew
    shorter = resolve(**fewer, **{"env.horizon": 3})
    part, own = collect.part_of(fields, meta, shorter)
    assert part["context_reward"].shape == (3, 1, 1, 3)
    np.testing.assert_allclose(own["expert_return"], 3.0 * np.array([kept]))
    env = assembly.env_of(shorter)
    np.testing.assert_allclose(own["reference_return"], env.optimal_return(1))
    assert -3.5 < np.mean(own["random_return"]) < -2.5  # some 1 away for 3 steps

    # random returns of another physics than the run's
    other = meta | {"identity": {"random_physics": "fast"}}
    monkeypatch.setattr(collect, "random_of", lambda config, env: [7.0] * 40)
    assert collect.part_of(fields, other, resolve())[1]["random_return"] == [7.0] * 40


def request_of(folder):
    arguments = ["run", *TINY, f"--data={folder}"]
    return flags.parse(run.COMMAND, arguments)


def test_runs_on_other_data_have_other_folders(capsys, tmp_path, root, dataset, source):
    other = tmp_path / "other"
    code, _, err = shown(capsys, "import", *focal(source), "--steps=2000", f"--to={other}")
    assert code == 0, err
    copy = shutil.copytree(dataset, tmp_path / "moved")
    folders = {place: run.folder_of(request_of(place)) for place in (dataset, other, copy, root)}
    assert folders[dataset] == folders[copy] != folders[other]  # what it holds, not where it is
    assert folders[root] not in (folders[dataset], folders[other])
    # without imported data the fingerprint is what it was: of the settings alone
    request = request_of(root)
    alone = {**config_lib.to_dict(request.config), "sweep": [{}]}
    assert folders[root].name == config_lib.fingerprint(alone)


def test_meta_has_what_collected_data_have(dataset):
    fields, meta = storage.load(dataset)
    assert fields["mask"].shape == (40, 2, 2, 20)
    assert meta["identity"]["physics"] == "imported" and meta["levels"] == [1000, 2000]
    total = (fields["reward"] * fields["mask"]).sum(-1, dtype=np.float64)
    returns = np.array(meta["behaviour_return"])
    np.testing.assert_allclose(returns[0], total[:, 0].mean(-1), rtol=1e-6)
    assert returns[1, 5] == pytest.approx(total[5, 1, 0])  # one of its two episodes is missing
    env = foreign.make_env(suite="ctmrl")
    np.testing.assert_allclose(meta["reference_return"], env.optimal_return(1000), rtol=1e-6)
    assert len(meta["random_return"]) == 40 and meta["test_ids"] == env.test_ids.tolist()
    np.testing.assert_allclose(meta["tasks"]["goal"], env.tasks["goal"])


def test_without_a_known_optimum_the_last_level_is_the_reference(source):
    env = foreign.make_env(suite="ctmrl")._replace(optimal_return=None)
    found = data.interop.load("focal").read(source, env, data.table_lib.Options())
    meta = data.meta_of(found, {}, env, request_of(source).config)
    assert meta["reference_return"] == meta["behaviour_return"][-1]


def test_a_pickle_warning_is_printed(capsys, tmp_path, source):
    arguments = ["import", *focal(source), f"--to={tmp_path / 'to'}", "--allow_pickle"]
    code, out, err = shown(capsys, *arguments)
    assert code == 0, err
    assert "WARNING: --allow_pickle lets the files of this folder run any code" in out


def test_a_failed_import_writes_nothing(capsys, tmp_path, source):
    copy = shutil.copytree(source, tmp_path / "copy")
    path = copy / "goal_idx7" / foreign.name(0, 1000)
    path.write_bytes(path.read_bytes()[:300])
    line = refused(capsys, "import", *focal(copy), f"--to={tmp_path / 'to'}")
    assert str(path) in line and not (tmp_path / "to").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    line = refused(capsys, "import", *focal(source), f"--to={tmp_path / 'full'}")
    assert "is not empty" in line


def test_an_import_that_was_cut_off_is_done_again(capsys, tmp_path, source, monkeypatch):
    commit = storage.commit
    monkeypatch.setattr(storage, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = ["import", *focal(source), f"--to={tmp_path / 'to'}"]
    assert shown(capsys, *arguments)[0] == 42
    assert not storage.is_complete(tmp_path / "to")
    monkeypatch.setattr(storage, "commit", commit)
    assert shown(capsys, *arguments)[0] == 0
    storage.load(tmp_path / "to")


def test_list_has_a_line_for_every_dataset(capsys, tmp_path, dataset):
    shutil.copytree(dataset, tmp_path / "data" / "a")
    (shutil.copytree(dataset, tmp_path / "data" / "b") / "meta.json").unlink()
    (shutil.copytree(dataset, tmp_path / "data" / "c") / "meta.json").write_text("{}")
    (shutil.copytree(dataset, tmp_path / "data" / "d") / "meta.json").write_text('{"schema": 1}')
    code, out, _ = shown(capsys, "list", f"--data={tmp_path / 'data'}")
    whole, unfinished, damaged, older = out.splitlines()[2:]
    assert code == 0 and "focal" in whole and "40 x 2 x 2" in whole and "-" in whole
    assert "unfinished" in unfinished and "damaged" in damaged and "older" in older
    assert "holds no dataset" in refused(capsys, "list", f"--data={tmp_path / 'cwd'}")
    assert "is not a folder" in refused(capsys, "list", "--data=nowhere")


def test_links_below_the_root_are_followed(capsys, tmp_path, dataset):
    """By list and verify as by a run; a link to a folder that it lies in ends nothing."""
    away, root = shutil.copytree(dataset, tmp_path / "away" / "x"), tmp_path / "data"
    (root / "ctmrl").mkdir(parents=True)
    (root / "ctmrl" / "point_robot").symlink_to(away.parent, target_is_directory=True)
    (root / "again").symlink_to(root, target_is_directory=True)
    linked = root / "ctmrl" / "point_robot" / "x"
    code, out, _ = shown(capsys, "list", f"--data={root}")
    assert code == 0 and [line.split()[-1] for line in out.splitlines()[2:]] == [str(linked)]
    assert "1 dataset(s) agree" in shown(capsys, "verify", f"--data={root}")[1]
    flip(away / "obs.npy")
    assert f"{linked}/obs.npy does not match" in refused(capsys, "verify", f"--data={root}")


def test_show_prints_tasks_and_levels_and_draws(capsys, tmp_path, dataset):
    code, out, _ = shown(capsys, "show", f"--data={dataset}", f"--to={tmp_path / 'figures'}")
    assert code == 0 and "goal[0]" in out and "format=focal" in out
    lines = out.splitlines()
    (level,) = [line.split() for line in lines if line.split()[:2] == ["1", "2000"]]
    returns = np.array(storage.read_meta(dataset)["behaviour_return"])[1]
    assert level[2:] == [
        "79",
        *(f"{n:.2f}" for n in (returns.mean(), returns.min(), returns.max())),
    ]
    assert (tmp_path / "figures" / "returns.png").stat().st_size > 5000
    storage.load(dataset)
    assert "holds no dataset" in refused(capsys, "show", f"--data={tmp_path}")


def test_the_returns_figure_has_a_line_for_every_task(tmp_path, monkeypatch):
    seen = []
    savefig = figures.Figure.savefig
    keep = lambda self, *args, **kwargs: (seen.append(self), savefig(self, *args, **kwargs))
    monkeypatch.setattr(figures.Figure, "savefig", keep)
    returns = np.arange(12.0).reshape(3, 4)
    for steps, values in ([1, 2, 3], returns), ([7], returns[:1]):
        figures.behaviour_returns(tmp_path, steps, values, [0.0], [11.0])
        drawn = [line.get_ydata() for line in seen[-1].axes[0].lines]
        assert len(drawn) == 4 + 1 + 2  # tasks, their mean, reference and random policy
        for task in range(4):
            np.testing.assert_array_equal(drawn[task], values[:, task])
        np.testing.assert_array_equal(drawn[4], values.mean(1))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_verify_names_every_bad_file(capsys, tmp_path, dataset):
    for name in "abc":
        shutil.copytree(dataset, tmp_path / "data" / name)
    code, out, _ = shown(capsys, "verify", f"--data={tmp_path / 'data'}")
    assert code == 0 and "3 dataset(s) agree" in out
    flip(tmp_path / "data" / "a" / "obs.npy")
    (tmp_path / "data" / "b" / "reward.npy").unlink()
    (tmp_path / "data" / "b" / "mask.npy").write_bytes(b"")
    line = refused(capsys, "verify", f"--data={tmp_path / 'data'}")
    for part in ("a/obs.npy does not match", "b/reward.npy is missing", "b/mask.npy does not"):
        assert part in line
    assert "c/" not in line
    assert "a/obs.npy" in refused(capsys, "verify", f"--data={tmp_path / 'data' / 'a'}")
    assert shown(capsys, "verify", f"--data={tmp_path / 'data' / 'c'}")[0] == 0
    (tmp_path / "data" / "c" / "meta.json").unlink()
    _, out, _ = shown(capsys, "verify", f"--data={tmp_path / 'data'}")
    assert f"unfinished  {tmp_path / 'data' / 'c'}" in out


def test_verify_finds_what_is_not_finite(capsys, tmp_path, dataset):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    obs = np.load(copy / "obs.npy")
    obs[3, 1, 0, 4] = np.nan
    np.save(copy / "obs.npy", obs)
    meta = storage.read_meta(copy)
    storage.commit(copy, {key: meta[key] for key in meta if key not in ("sha256", "checksum")})
    assert "obs.npy (task 3, level 1, episode 0, step 4)" in refused(
        capsys, "verify", f"--data={copy}"
    )
    # and no training begins on it
    line = refused(capsys, *TINY, f"--data={copy}", "--out=runs", command=run.COMMAND)
    assert "NaN or infinite values in obs.npy" in line


def test_data_of_other_sizes_are_refused_before_training(capsys, tmp_path, dataset):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    for name in ("obs", "next_obs"):
        values = np.load(copy / f"{name}.npy")
        np.save(copy / f"{name}.npy", np.concatenate([values, values[..., :1]], -1))
    meta = storage.read_meta(copy)
    storage.commit(copy, {key: meta[key] for key in meta if key not in ("sha256", "checksum")})
    line = refused(capsys, *TINY, f"--data={copy}", "--out=runs", command=run.COMMAND)
    assert "3 numbers an obs, point_robot of suite ctmrl has 2" in line


def test_an_import_takes_the_whole_family_whatever_the_preset():
    arguments = ["run", "--env=ant_dir", "--suite=gentle", "--config.env.horizon=50"]
    config = flags.parse(run.COMMAND, arguments).config
    assert config.env.num_train > 0 and config.env.num_test > 0  # what the preset for CPUs leaves
    sizes = collect.whole_family(config).env
    assert (sizes.num_train, sizes.num_test, sizes.horizon) == (0, 0, 0)


@pytest.mark.parametrize("arguments", [[], ["--env=sparse_point_robot"], ["--suite=ctmrl_b"]])
def test_an_altered_or_other_dataset_is_refused_before_training(
    capsys, tmp_path, dataset, arguments
):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    if not arguments:
        flip(copy / "obs.npy")
    line = refused(capsys, *TINY, *arguments, f"--data={copy}", command=run.COMMAND)
    assert "checksum" in line if not arguments else "asks for" in line


def test_minari_there_and_back(capsys, tmp_path, dataset):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    to = tmp_path / "minari"
    code, out, err = shown(capsys, "export", "--format=minari", f"--data={dataset}", f"--to={to}")
    assert code == 0 and "80 Minari datasets" in out, err
    code, _, err = shown(
        capsys, "import", "--format=minari", f"--from={to}", f"--to={tmp_path / 'b'}"
    )
    assert code == 0, err
    fields, meta = storage.load(dataset)
    again, other = storage.load(tmp_path / "b")
    for name in storage.FIELDS:
        np.testing.assert_array_equal(fields[name], again[name])
    for name in ("tasks", "levels", "random_return", "reference_return", "behaviour_return"):
        assert meta[name] == other[name]
    assert other["identity"]["source"]["exported"] == meta["identity"]


BAD = {
    "inport": ("unknown command 'inport'", "did you mean 'import'"),
    "--data=x": ("unknown command '--data=x'",),
    "import --from=x": ("data import needs --format",),
    "import --format=focal": ("data import needs --from",),
    "import --format=focl --from=.": ("unknown format 'focl'", "did you mean 'focal'"),
    "import --format=focal --from=nowhere": ("nowhere is not a folder", "--from"),
    "import --format=focal --from=. --steps=1e3": ("--steps=1e3", "whole numbers"),
    "import --format=focal --from=. --episodes=both": ("unknown --episodes 'both'",),
    "import --format=corro --from=. --steps=1": ("--format=corro does not use --steps",),
    "import --format=minari --from=. --allow_pickle": ("does not use --allow_pickle",),
    "import --format=minari --from=. --rewards=sparse": ("does not use --rewards",),
    "import --format=spc --from=. --allow_pickle": ("does not use --allow_pickle",),
    "import --format=focal --from=. --horizon=20": ("does not use --horizon",),
    "import --format=corro --from=. --levels=2": ("does not use --levels",),
    "import --format=metadt --from=. --levels=0": ("--levels=0", "at least 1"),
    "import --format=spc --from=. --horizon=-1": ("--horizon=-1", "at least 0"),
    "import --format=spc --from=.": ("has 0 files <...><i>.pth", "task 0 to 39"),
    "import --format=npz --from=.": ("has 0 files task_<i>.npz", "task 0 to 39"),
    "import --format=focal --from=. --algo=gentle": ("data import does not use --algo",),
    "import --format=focal --from=. --env=ant": ("unknown environment 'ant'",),
    "import --format=focal --from=. --config.algo.lr=1": ("does not use --config.algo.lr",),
    "import --format=corro --from=.": ("has 0 folders seed_<k>_goal_...", "needs 40"),
    "export --format=focal --data=. --to=x": ("unknown --format of export 'focal'",),
    "export --format=minari --to=x": ("data export needs --data",),
    "list --to=x": ("unknown flag 'to'", "expected one of data"),
    "show": ("data show needs --data",),
    "verify --env=point_robot": ("data verify does not use --env",),
    "verify --nonsense": ("unknown flag 'nonsense'",),
    "verify extra": ("unexpected argument 'extra'",),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_writes_nothing(capsys, tmp_path, arguments):
    line = refused(capsys, *arguments.split())
    for part in BAD[arguments]:
        assert part in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command_and_flag(capsys, arguments):
    code, out, _ = shown(capsys, *arguments)
    assert code == 0 and len(out.splitlines()) < 64
    for part in data.PARTS:
        text = out.split(f"\n{part.name.removeprefix('data ')}:\n")[1].split("\n\n")[0]
        flags_of_it = [*part.shared, *(name for name, *_ in part.own)]
        assert sorted(re.findall(r"^  --(\w+)", text, re.M)) == sorted(flags_of_it)
        assert text.count("(needed)") == len(part.needed)
    assert max(map(len, out.splitlines())) <= 100


def test_the_extra_is_declared():
    text = (pathlib.Path(__file__).parent.parent / "setup.cfg").read_text()
    assert "minari" in text.split("[options.extras_require]")[1]
