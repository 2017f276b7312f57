"""The command line: bad input is one clear line, nothing is written, help is short."""

import functools
import itertools

import jax
import numpy as np
import pytest

from experiments import collect, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import data_code
from gentle_jax import assembly, errors, presets, registry, storage, suites
from gentle_jax import config as config_lib

SMOKE = ("--preset=smoke", "--num_seeds=1")


pytestmark = pytest.mark.usefixtures("no_cache")


def parse(*arguments):
    """Returns the Request of a command line."""
    return flags.parse(run.COMMAND, ["run", *arguments])


def refused(capsys, *arguments):
    """Runs the command; returns its one line on stderr."""
    code = main(run.COMMAND, ["run", *arguments])
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert shown.startswith("error: ") and shown.count("\n") == 1 and shown.endswith("\n")
    assert "Traceback" not in shown
    return shown


def written(tmp_path):
    return [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    """A root with a dataset of random numbers in the place of the smoke preset's."""
    root = tmp_path_factory.mktemp("data")
    request = parse(*SMOKE)
    env = registry.load("environment", "point_robot").make("ctmrl")
    count = jax.tree.leaves(env.tasks)[0].shape[0]
    folder = storage.folder_of(root, request.config)
    arrays = storage.open_arrays(folder, storage.shapes(count, request.config.behaviour, env))
    rng = np.random.default_rng(0)
    for name, array in arrays.items():
        array[:] = 1.0 if name == "mask" else rng.uniform(size=array.shape)
        array.flush()
    meta = {"random_return": [0.0] * count, "reference_return": [1.0] * count}
    meta |= {"identity": config_lib.data_identity(request.config), **data_code.of(request.config)}
    storage.commit(folder, meta)
    return root


BAD = {
    # names: what was given, the nearest match
    "--algo=ctrml": ("'ctrml'", "did you mean 'ctmrl'"),
    "--env=point_robt": ("'point_robt'", "did you mean 'point_robot'"),
    "--suite=gentel": ("'gentel'", "did you mean 'gentle'"),
    "--preset=smok": ("'smok'", "did you mean 'smoke'"),
    "--protocol=oneshot": ("'oneshot'", "did you mean 'one_shot'"),
    "--backbone=td3bc": ("'td3bc'", "did you mean 'td3_bc'"),
    "--fidelity=papr": ("'papr'", "did you mean 'paper'"),
    "--physics=fast": ("'fast'", "exact"),
    "--num_sed=2": ("'num_sed'", "did you mean 'num_seeds'"),
    "-x": ("'x'", "expected one of"),
    "--config.algo.lrr=1": ("'algo.lrr'", "did you mean 'algo.lr'"),
    "--config.alg.lr=1": ("'alg.lr'", "did you mean 'algo.lr'"),
    "--algo=multitask --config.algo.lr=1": ("'algo.lr'", "did you mean 'backbone.lr'"),
    "--algo=multitask --sweep=algo.lr=1,2": ("'algo.lr'", "expected one of"),
    "--config.train=3": ("'train'", "expected one of"),
    "--config.run.num_seeds=3": ("'run.num_seeds'", "expected one of"),
    "--config=file.py": ("'config'", "expected one of"),
    "--config.train.task_draw=distnct": ("'distnct'", "did you mean 'distinct'"),
    "--config.train.context_draw=all": ("'all'", "uniform"),
    "--config.train.init=xavier": ("'xavier'", "rlkit"),
    "--config.eval.metric=best": ("'best'", "final"),
    "stray": ("'stray'", "--flag=value"),
    # values of another type
    "--num_seeds=two": ("--num_seeds=two",),
    "--num_seeds=1e3": ("--num_seeds=1e3",),
    "--num_seeds": ("num_seeds",),
    "--config.algo.lr=abc": ("--config.algo.lr=abc", "float"),
    "--config.algo.num_codes=2.5": ("--config.algo.num_codes=2.5",),
    "--config.algo.use_kmeans=maybe": ("--config.algo.use_kmeans=maybe",),
    "--config.algo.lr": ("--config.algo.lr has no value",),
    # impossible values
    "--num_seeds=0": ("--num_seeds is 0", "at least 1"),
    "--num_seeds=-3": ("--num_seeds is -3",),
    "--num_steps=0": ("--num_steps", "is 0", "at least 1"),
    "--seed_offset=-1": ("--seed_offset is -1",),
    "--config.train.num_evals=0": ("train.num_evals is 0",),
    "--config.train.meta_batch=0": ("train.meta_batch is 0",),
    "--config.train.final_lr=2.0": ("train.final_lr is 2.0",),
    "--config.algo.lr=-1": ("algo.lr is -1.0",),
    "--config.eval.exploration_steps=-1": ("eval.exploration_steps is -1",),
    "--config.eval.random_episodes=0": ("eval.random_episodes is 0",),
    "--config.backbone.dual_steps=0": ("backbone.dual_steps is 0",),
    "--algo=gentle --config.algo.model_batch=0": ("algo.model_batch is 0",),
    "--algo=gentle --config.algo.relabel_every=0": ("algo.relabel_every is 0",),
    "--algo=gentle --config.algo.max_epochs=0": ("algo.max_epochs is 0",),
    "--backbone=td3_bc --config.backbone.policy_delay=0": ("backbone.policy_delay is 0",),
    "--config.behaviour.num_levels=90": ("behaviour.num_levels",),
    # sweeps
    "--sweep=lr=abc": ("--sweep=lr=abc", "numbers"),
    "--sweep=lr=": ("--sweep=lr=", "numbers"),
    "--sweep=lr": ("--sweep=lr has no values",),
    "--sweep=lr=-1,1": ("rates of 0 or more",),
    "--sweep=nokey=1": ("'nokey'", "expected one of"),
    "--sweep=algo.et=1": ("'algo.et'", "did you mean 'algo.eta'"),
    "--sweep=num_codes=2,x": ("--sweep=num_codes=2,x", "type int"),
    # names that exist and do not go together
    "--suite=gentle --env=point_robot_wind": ("'point_robot_wind'", "'gentle'", "ctmrl"),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments):
    given = {word.partition("=")[0] for word in arguments.split()}
    usual = [word for word in SMOKE if word.partition("=")[0] not in given]
    line = refused(capsys, *usual, *arguments.split())
    for part in BAD[arguments]:
        assert part in line
    assert not written(tmp_path)


@pytest.mark.parametrize(
    "argument,part",
    [
        ("--config.algo.num_codes=31", "algo.num_codes is 31: expected 2 to 30"),
        ("--config.algo.num_codes=1", "algo.num_codes is 1"),
        ("--config.algo.form=release", "pass --fidelity=paper or --fidelity=release"),
        ("--algo=gentle --config.algo.objective=contrastve", "did you mean 'contrastive'"),
    ],
)
def test_settings_that_no_data_could_train_are_refused_before_it_is_made(
    tmp_path, capsys, monkeypatch, argument, part
):
    monkeypatch.setattr(collect, "_collect", lambda *_: pytest.fail("collected data first"))
    assert part in refused(capsys, *SMOKE, *argument.split())
    assert not written(tmp_path)


@pytest.mark.parametrize("place", ["below a file", "/proc/nope"])
def test_an_output_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch, toy_root, place):
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "runs" if place == "below a file" else place
    monkeypatch.setattr(collect, "_collect", lambda *_: pytest.fail("collected data first"))
    for data in (toy_root, tmp_path / "data"):
        line = refused(capsys, *SMOKE, f"--out={out}", f"--data={data}")
        assert "cannot write to" in line and "pass another --out" in line
    assert written(tmp_path) == [tmp_path / "file"]


@pytest.mark.parametrize("place", ["below a file", "/proc/nope"])
def test_a_data_folder_that_cannot_be_written(tmp_path, capsys, place):
    (tmp_path / "file").write_text("x")
    data = tmp_path / "file" / "data" if place == "below a file" else place
    line = refused(capsys, *SMOKE, f"--data={data}")
    assert "cannot write to" in line and "pass another --data" in line
    assert written(tmp_path) == [tmp_path / "file"]


@pytest.mark.parametrize("flag", ["--data", "--out"])
def test_a_full_disk_is_noticed_before_any_work(tmp_path, capsys, monkeypatch, toy_root, flag):
    usage = run.computer.shutil.disk_usage(tmp_path)
    full = {"--data": "data", "--out": "runs"}[flag]
    free = lambda path: 1000 if path.parts[0] == full else 10**12
    monkeypatch.setattr(
        run.computer.shutil, "disk_usage", lambda path: usage._replace(free=free(path))
    )
    data = [f"--data={toy_root}"] if flag == "--out" else []
    line = refused(capsys, *SMOKE, *data)
    assert "MB free" in line and f"pass another {flag}" in line


def test_a_dataset_of_another_configuration(tmp_path, capsys, toy_root):
    folder = storage.folder_of(toy_root, parse(*SMOKE).config)
    line = refused(capsys, *SMOKE, f"--data={folder}", "--config.behaviour.seed=3")
    assert "behaviour.seed=0" in line and "asks for 3" in line
    line = refused(capsys, *SMOKE, f"--data={folder}", "--env=sparse_point_robot")
    assert "env=point_robot" in line and "asks for sparse_point_robot" in line
    assert not [path for path in written(tmp_path) if path.name != ".write_test"]


def test_overrides_come_from_the_given_arguments_only(monkeypatch):
    monkeypatch.setattr("sys.argv", ["other", "--config.algo.eta=0.7"])
    config = parse(*SMOKE, "--config.algo.lr=0.5", "--config.train.meta_batch=3").config
    assert config.algo.lr == 0.5 and config.train.meta_batch == 3
    assert config.algo.eta != 0.7


def test_overrides_keep_the_type_of_the_default():
    config = parse(
        *SMOKE,
        "--config.algo.lr=1",
        "--config.algo.use_kmeans=false",
        "--config.algo.use_codebook=True",
        "--config.train.context_draw=level",
        "--config.backbone.width=7",
    ).config
    assert config.algo.lr == 1.0 and isinstance(config.algo.lr, float)
    assert config.algo.use_kmeans is False and config.algo.use_codebook is True
    assert config.train.context_draw == "level" and config.backbone.width == 7


def test_precedence_is_defaults_preset_flag_override():
    assert parse().config.train.num_steps == presets.QUICK["train.num_steps"]
    assert parse("--preset=paper").config.train.num_steps == config_lib.TrainConfig().num_steps
    assert parse("--num_steps=5").config.train.num_steps == 5
    both = parse("--num_steps=5", "--config.train.num_steps=6")
    assert both.config.train.num_steps == 6


def test_auto_is_quick_on_a_cpu_and_paper_on_an_accelerator():
    for accelerator, name in ((False, "quick"), (True, "paper")):
        request = flags.parse(run.COMMAND, ["run"], lambda a=accelerator: a)
        assert request.config.run.preset == name


def test_sweeps_cross():
    points = parse(*SMOKE, "--sweep=algo.lr=1e-3,2e-3", "--sweep=tau=0.1,0.2").points
    assert len(points) == 4
    assert {(p["algo.lr"], p["backbone.tau"]) for p in points} == set(
        itertools.product((1e-3, 2e-3), (0.1, 0.2))
    )
    both = parse(*SMOKE, "--sweep=lr=1e-3").points[0]
    assert both == {"algo.lr": 1e-3, "backbone.lr": 1e-3}
    assert parse(*SMOKE).points == ({},)


def test_repeated_protocols_are_kept_once_and_in_order():
    config = parse(*SMOKE, "--protocol=online", "--protocol=one_shot", "--protocol=online").config
    assert config.run.protocols == ("online", "one_shot")


def test_native_stands_for_the_methods_own_protocol():
    words = "--protocol=native", "--protocol=given_context"
    of = lambda *more: parse(*SMOKE, *words, *more).config.run.protocols
    assert of() == ("random_then_policy", "given_context")
    assert of("--algo=borel") == ("online", "given_context")
    assert of("--suite=gentle", "--algo=gentle") == ("given_context",)


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_fits_two_screens_and_lists_every_flag(capsys, flag, tmp_path):
    assert main(run.COMMAND, ["run", "--algo=nonsense", flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 100
    for group, entries in flags.GROUPS.items():
        assert f"{group}:" in lines
        for name, _, _, _ in entries:
            assert any(line.startswith(f"  --{name} ") for line in lines), name
    text = " ".join(lines)
    for name in (*registry.ALGORITHMS, *registry.BACKBONES, *registry.ENVIRONMENTS):
        assert name in text
    for name in (*registry.PROTOCOLS, *presets.PRESETS, "--config.SECTION.KEY=VALUE"):
        assert name in text
    assert not written(tmp_path)


COMBINATIONS = [
    (preset, suite, env)
    for preset in ("paper", "fast", "quick", "smoke")
    for env in registry.ENVIRONMENTS
    for suite in registry.load("environment", env).SETTINGS
]
EVERY_BACKBONE = ("focal", "gentle")  # the other algorithms resolve with their suite's


@pytest.mark.parametrize("preset", ["paper", "fast", "quick", "smoke"])
@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_programs_can_be_built_with_the_fewest_tasks_of_every_preset(algorithm, preset):
    # Cheetah-Dir has two: settings that need more of them fail here
    names = {"algo": algorithm, "suite": "gentle", "env": "cheetah_dir", "preset": preset}
    config = parse(*(f"--{name}={value}" for name, value in names.items())).config
    data, state = assembly.check(config)
    assert data > 0 and state > 0


@pytest.mark.parametrize("preset,suite,env", COMBINATIONS)
def test_every_preset_resolves_for_every_combination(preset, suite, env):
    usual = suites.backbone(suite, env, preset)
    chosen = itertools.product(registry.ALGORITHMS, [usual], config_lib.FIDELITIES)
    others = itertools.product(EVERY_BACKBONE, registry.BACKBONES, ["paper"])
    for algorithm, backbone, fidelity in {*chosen, *others}:
        names = {"suite": suite, "env": env, "backbone": backbone, "fidelity": fidelity}
        config = assembly.make_config(algorithm, preset, **names)
        assert config.run.fidelity == fidelity and config.run.backbone == backbone
        assert any(key.startswith("backbone.") for key in config_lib.swept_fields(config))
        assert config_lib.fingerprint(config_lib.to_dict(config))


def test_an_environment_may_have_a_backbone_of_its_own_for_a_preset():
    backbone = lambda *words: parse("--env=hopper_params", *words).config.run.backbone
    assert backbone("--preset=quick") == "td3_bc"
    assert backbone("--preset=quick", "--backbone=brac_sac") == "brac_sac"
    assert backbone("--preset=paper") == "brac_sac"


@pytest.mark.parametrize(
    "key", ["train.stepz", "ctmrl.nothing", "brac_sac.widht", "nowhere.lr", "run.num_seeds", "lr"]
)
def test_a_preset_key_that_does_not_exist_raises(monkeypatch, key):
    monkeypatch.setitem(presets.SMOKE, key, 1)
    with pytest.raises(errors.UserError, match="unknown"):
        parse(*SMOKE, "--backbone=brac_sac")


def tables():
    """Yields (who, algorithms that it is for, {key: layer}) of every table of overrides."""
    every = {"quick": presets.QUICK, "smoke": presets.SMOKE, "fast": presets.FAST}
    for name, table in (("all", every), ("OF_SUITE", presets.OF_SUITE)):
        yield f"presets.{name}", tuple(registry.ALGORITHMS), table
    for kind in ("algorithm", "environment"):
        for name in registry.TABLES[kind]:
            module = registry.load(kind, name)
            users = (name,) if kind == "algorithm" else tuple(registry.ALGORITHMS)
            for table in ("SETTINGS", "PRESETS", "FIDELITY"):
                if hasattr(module, table):
                    yield f"{name}.{table}", users, getattr(module, table)


LAYERS = {f"{who} {key}": (users, key, layer)
          for who, users, table in tables() for key, layer in table.items()}  # fmt: skip


@functools.cache
def usual_config(algorithm, backbone):
    """The ExperimentConfig of an algorithm with a backbone, without a preset."""
    return config_lib.resolve(config_lib.RunConfig(algorithm, backbone=backbone))


@pytest.mark.parametrize("where", LAYERS)
def test_every_key_of_every_table_exists_in_a_resolved_config(where):
    users, _, layer = LAYERS[where]
    for name in layer:
        section, _, field = name.partition(".")
        chosen = {"algorithm": users, "backbone": tuple(registry.BACKBONES)}
        for kind, known in (("algorithm", registry.ALGORITHMS), ("backbone", registry.BACKBONES)):
            if section in known:  # a key that only counts where this one is chosen
                chosen[kind] = (section,)
                section = {"algorithm": "algo", "backbone": "backbone"}[kind]
        lacking = []
        for algorithm, backbone in itertools.product(*chosen.values()):
            config = usual_config(algorithm, backbone)
            assert section != "run"
            lacking += [] if hasattr(getattr(config, section), field) else [algorithm]
        # sizes for all algorithms hold for those that have such a setting, at least one
        sizes = name.startswith("algo.") and len(users) > 1 and "SETTINGS" not in where
        assert not lacking or (sizes and len(set(lacking)) < len(users)), (name, lacking)


@pytest.mark.parametrize("where", LAYERS)
def test_every_table_is_for_something_that_exists(where):
    _, key, _ = LAYERS[where]
    table = where.split()[0].split(".")[1]
    if table == "FIDELITY":
        assert key in config_lib.FIDELITIES
    elif table == "SETTINGS" and isinstance(key, tuple):  # of an algorithm
        suite, env, *fidelity = key
        assert suite in registry.load("environment", env).SETTINGS
        assert not fidelity or (len(fidelity) == 1 and fidelity[0] in config_lib.FIDELITIES)
    elif table == "SETTINGS":
        assert key in flags.suites.SUITES
    else:
        preset, colon, of = key.partition(":")
        assert preset in {*presets.PRESETS} - {"auto", "paper"}  # `paper` changes nothing
        known = {*flags.suites.SUITES, *registry.ENVIRONMENTS, *config_lib.FIDELITIES}
        assert of in known if colon else not of


def test_a_key_of_a_table_reaches_the_config(monkeypatch):
    """The last layer wins: the environment's, then the algorithm's, in each the finer one."""
    algorithm = registry.load("algorithm", "focal")
    env = registry.load("environment", "cheetah_vel")
    line = ("--algo=focal", "--env=cheetah_vel", "--preset=quick")
    before = parse(*line).config
    assert before.algo.lr == env.PRESETS["quick"]["algo.lr"] != presets.QUICK["algo.lr"]
    assert before.algo.width == presets.QUICK["algo.width"]
    table = {"quick": {"algo.lr": 0.25, "algo.width": 7}, "quick:cheetah_vel": {"algo.width": 9}}
    monkeypatch.setattr(algorithm, "PRESETS", table, raising=False)
    after = parse(*line).config
    assert (after.algo.lr, after.algo.width) == (0.25, 9)
    assert parse(*line, "--config.algo.width=11").config.algo.width == 11


def test_the_fake_dataset_builds_a_task(toy_root):
    """What the tests above rely on: with good settings the same data is accepted."""
    config = parse(*SMOKE).config
    fields, _, seconds = collect.ensure(config, toy_root)
    task = assembly.make_sweep(config, fields)
    assert seconds == 0 and task.data.episode_start.shape[0] == len(assembly.task_order(task.env))


def test_a_disk_that_fills_up_is_told_of_the_folder_that_was_written():
    with (
        pytest.raises(errors.UserError, match="no space left in the_data"),
        run.computer.disk_may_fill("the_run"),
        run.computer.disk_may_fill("the_data"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="other"), run.computer.disk_may_fill("the_run"):
        raise OSError(5, "other")
