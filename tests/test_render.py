"""`experiments.render`: the episode is the run's own, what is written, what is refused."""

import json
import shutil
import types
import typing

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import toys
from PIL import Image

from experiments import collect, render, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import snapshot
from experiments.show import movies, offscreen, scene
from gentle_jax import (
    agents,
    assembly,
    checkpoint,
    errors,
    json_files,
    presets,
    registry,
    rng,
    storage,
    sweep,
    training,
)
from gentle_jax import config as config_lib
from gentle_jax.types import Outcome, Representation, Transition

STEPS = 4
RUN = (
    "--preset=smoke", "--backbone=td3_bc", "--protocol=given_context", "--seed_offset=3",
    "--num_seeds=2", "--num_steps=4", "--sweep=lr=0.001,0.002", "--config.env.num_train=4",
    "--config.env.num_test=2", "--config.train.num_evals=1", "--config.algo.num_iterations=2",
    "--config.algo.num_codes=2",
    "--config.algo.use_cross_prediction=false", "--config.algo.use_contrast=false",
)  # fmt: skip
BODY = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/><geom type="plane" size="5 5 1"/>
    <body name="torso" pos="0 0 1">
      <freejoint/><geom type="capsule" size=".1 .3" rgba="1 0 0 1"/>
      <geom type="sphere" size=".2" pos="0 0 .5"/><geom type="box" size=".1 .5 .2"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(BODY)


@pytest.fixture(scope="module")
def falling(model):
    return fall(model)


def fall(model):
    """Returns positions [6, 7] of the body as it falls along a slope, turned upside down."""
    qpos = np.tile(model.qpos0, (6, 1))
    qpos[:, 0], qpos[:, 2] = np.linspace(0, 1, 6), np.linspace(1, 0.5, 6)
    qpos[3:, 3:] = [0, 1, 0, 0]
    return qpos


# --- the scene


def test_bodies_are_where_mujoco_has_them(model, falling):
    shown = scene.poses(model, falling, 1)
    np.testing.assert_allclose(shown["radius"], [0.1, 0.2, 0.2])  # the floor is left out
    np.testing.assert_allclose(shown["ends"][0, 0], [[0, 0, 0.7], [0, 0, 1.3]])
    np.testing.assert_allclose(shown["ends"][0, 1], [[0, 0, 1.5]] * 2)
    np.testing.assert_allclose(shown["ends"][0, 2], [[0, -0.3, 1], [0, 0.3, 1]])
    # upside down: the sphere is below the torso
    np.testing.assert_allclose(shown["ends"][-1, 1], [[1, 0, 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(shown["rgb"][0], [1, 0, 0])
    np.testing.assert_allclose(shown["torso"], falling[:, :3])


def bodies_scene(model, qpos):
    shown = scene.poses(model, qpos, 1)
    made = scene.of_bodies(shown, scene.camera_of(model, shown), 0.05)
    rewards = np.arange(1.0, len(qpos))
    return made | {"goal": None, "rewards": rewards, "title": "t", "details": "</script><b>"}


def test_a_page_is_whole_and_texts_stay_texts(model, falling):
    html = scene.page(bodies_scene(model, falling))
    assert "http" not in html and "@SCENE@" not in html
    assert html.count("</script>") == 2 and "<b>" not in html
    text = html.split('id="scene">')[1].split("</script>")[0]
    found = json.loads(text)
    assert found["details"] == "</script><b>" and len(found["frames"]) == 6
    assert all(len(frame) == 6 * 3 for frame in found["frames"])


# --- moving pictures


class FakeRenderer:
    """Stands in for mujoco.Renderer: pictures whose brightness is the torso's height."""

    def __init__(self, model, height, width):
        self.shape, self.level, self.closed = (height, width, 3), 0, []

    def update_scene(self, data, camera):
        assert camera.trackbodyid == 1 and camera.distance == 3.0
        self.level = int(100 * data.qpos[2])

    def render(self):
        return np.full(self.shape, self.level, np.uint8)

    def close(self):
        self.closed.append(True)


def test_pictures_of_every_frame(model, falling):
    drawn = offscreen.draw(model, falling, 1, (90.0, -12.0, 3.0), FakeRenderer)
    assert drawn.shape == (6, *offscreen.SIZE, 3) and drawn.dtype == np.uint8
    assert drawn[:, 0, 0, 0].tolist() == [100, 90, 80, 70, 60, 50]


def test_no_graphics_library_is_a_reason_not_a_crash(model, falling, monkeypatch, capfd):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    drawn, why = offscreen.render(model, falling, 1, (90.0, -12.0, 3.0))
    assert drawn is None and why.startswith("nonsense: ") and "\n" not in why
    assert capfd.readouterr() == ("", "")


def test_a_graphics_library_draws_the_body(model, falling):
    drawn, why = offscreen.render(model, falling[:2], 1, (90.0, -12.0, 3.0))
    if drawn is None:
        pytest.skip(why)
    assert drawn.shape == (2, *offscreen.SIZE, 3)
    red = (drawn[0, ..., 0] > 60) & (drawn[0, ..., 1] < 30)
    assert red.sum() > 500  # the capsule, in the middle
    assert np.abs(np.argwhere(red).mean(0) - np.array(offscreen.SIZE) / 2).max() < 60


def test_a_gif_has_a_frame_for_each_that_is_shown(tmp_path):
    path, goal = np.cumsum(np.ones((8, 2)), 0), np.array([3.0, 4.0])
    assert [movies.stride_of(dt) for dt in (0.1, 0.05, 0.016)] == [1, 1, 2]
    frames = [0, 2, 4, 6]
    draw = movies.plane(path, goal, frames)
    written = movies.write(tmp_path / "a.b", frames, np.ones(7), 0.08, draw, "title")
    assert written[0] == tmp_path / "a.b.gif"
    with Image.open(written[0]) as image:
        assert image.n_frames == 4 and image.info["duration"] == 80


# --- the episode


def make_restored():
    """A Cheetah-Dir run on random data that has not learned anything, at step 3."""
    choice = config_lib.RunConfig(
        algorithm="gentle", suite="gentle", env="cheetah_dir", preset="smoke", num_seeds=2,
        physics="fast", protocols=("given_context",),
    )  # fmt: skip
    own = {"env.horizon": STEPS, "eval.scored_steps": 2 * STEPS}
    layers = presets.layers("smoke", config_lib.fill_names(choice))
    config = config_lib.resolve(choice, layers, own)
    random = np.random.default_rng(0)
    draw = lambda *tail: random.normal(size=(2, 1, 4, STEPS, *tail)).astype(np.float32)
    fields = {
        "obs": 3 * draw(20) + 1, "next_obs": 3 * draw(20) + 1, "action": np.tanh(draw(6)),
        "reward": draw(), "context_reward": draw(), "terminal": 0 * draw(),
        "mask": np.ones((2, 1, 4, STEPS), np.float32),
    }  # fmt: skip
    task = assembly.make_sweep(config, fields)
    env, scale = task.env, task.scale
    state = jax.jit(lambda hp, keys: sweep.init_runs(task.algorithm, hp, keys, task.data))(
        *jax.device_get((task.hp,)), rng.run_keys(2)
    )
    return snapshot.Restored(config, task, env, scale, jax.device_get(state), 3, task.data)


@pytest.mark.mjx
@pytest.mark.slow
def test_the_episode_is_the_one_of_the_runs_rollouts():
    restored = make_restored()
    env, task = restored.env, restored.sweep
    shown = render.episode(restored, 1, 1, 1, "given_context")
    assert shown.obs.shape == (STEPS + 1, 20) and shown.rewards.shape == (STEPS,)
    # qpos is what was observed: all of it but x, bit by bit up to the normaliser
    np.testing.assert_allclose(shown.qpos[:, 1:], shown.obs[:, :8], atol=1e-5)
    speed = np.diff(shown.qpos[:, 0]) / env.system.dt
    assert (shown.rewards <= speed + 1e-4).all()  # direction +1, less the cost of control
    # what `run` writes into rollouts.npz: every task in one program, without qpos
    host = jax.device_get((task.tasks, task.data))
    state = jax.tree.map(lambda leaf: leaf[1], restored.state)
    scores = jax.jit(task.evaluate)(state, rng.run_keys(1, 1)[0], *host, jnp.int32(3))
    path, mask = scores["given_context"].shown
    mean, std = restored.scale
    np.testing.assert_allclose(shown.obs, path[1] * std + mean, atol=1e-4)
    assert mask.all()
    made, _ = render.draw(env, 1, shown)
    assert made["frames"].shape == (STEPS + 1, 8 * 6) and made["dt"] == env.system.dt
    np.testing.assert_allclose(made["path"][:, 0], shown.qpos[:, 0], atol=1e-6)


def takes_rows():
    """{field of a Representation: which argument is rows of an episode}, by the types."""
    found = {}
    for name, hint in Representation.__annotations__.items():
        for kind in typing.get_args(hint) if isinstance(hint, types.UnionType) else [hint]:
            arguments = (*typing.get_args(kind), None)[0]
            if isinstance(arguments, list) and Transition in arguments:
                found[name] = arguments.index(Transition)
    return found


def test_a_representation_sees_no_physics_states_in_any_rows():
    where = takes_rows()
    assert {"extend", "observe", "predict_reward", "uncertainty", "encode"} <= where.keys()
    size, longer = 3, 5
    system = types.SimpleNamespace(c_model=types.SimpleNamespace(nq=longer - size))
    env = toys.env(4)._replace(obs_dim=size, system=system)
    look = lambda at: lambda *args: (args[at].obs, args[at].next_obs)
    agent = toys.agent(**{name: look(at) for name, at in where.items()})
    seen, shown = render.exposed(agent, env)
    assert shown.obs_dim == longer
    obs = np.arange(2.0 * longer).reshape(2, longer)
    rows = Transition(obs, None, None, None, obs + 1, None)
    for name, at in where.items():
        found = getattr(seen.rep, name)(*[None] * at, rows)
        np.testing.assert_array_equal(found, [obs[:, :size], obs[:, :size] + 1])


def test_a_protocol_that_the_runs_settings_cannot_serve_is_refused(tiny):
    made = tiny("unicorn", **{"algo.objective": "classification"})
    sweep = types.SimpleNamespace(algorithm=made.algorithm)
    restored = snapshot.Restored(made.config, sweep, made.env, None, None, 3, None)
    with pytest.raises(errors.UserError, match="'unicorn' lacks with these settings: choose from"):
        render.episode(restored, 0, 0, 0, "noisy_preferences")


def test_nothing_follows_an_early_end_and_nan_is_told():
    rows = Transition(*(np.ones((5, 3)) for _ in range(6)))
    rows = rows._replace(context_reward=np.arange(5.0), next_obs=np.full((5, 3), 2.0))
    outcome = Outcome(np.float32(1), rows, np.array([1.0, 1, 1, 0, 0]))
    shown = render.cut(outcome, 2, (10.0, 3.0))
    assert shown.obs.tolist() == [[13.0, 13]] + 3 * [[16.0, 16]]
    assert shown.qpos.tolist() == [[1.0]] + 3 * [[2.0]] and shown.rewards.tolist() == [0, 1, 2]
    rows.context_reward[1] = np.nan
    with pytest.raises(errors.UserError, match="another --seed"):
        render.cut(outcome, 2, (10.0, 3.0))


# --- the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, data root, trace) of a run of two seeds from 3 and two grid points.

    The folder has what `run` leaves there and `render` reads; `trace` is what rollouts.npz holds.
    """
    root = tmp_path_factory.mktemp("render")
    with pytest.MonkeyPatch.context() as patch:  # no cache in the user's home
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(root / "cache"))
        yield make_finished(root)


def make_finished(root, *more):
    """Returns what `finished` does, of a run with some more flags, below a folder."""
    request = flags.parse(run.COMMAND, ["run", *RUN, *more, f"--out={root / 'runs'}"])
    config, folder = request.config, run.folder_of(request)
    env, data = assembly.env_of(config), collect.dataset_folder(config, root / "data")
    fields = storage.open_arrays(data, storage.shapes(6, config.behaviour, env))
    random = np.random.default_rng(0)
    for name, values in fields.items():
        values[:] = 1 if name == "mask" else random.uniform(-1, 1, values.shape)
        values.flush()
    storage.commit(data, {"identity": config_lib.data_identity(config)})
    folder.mkdir(parents=True)
    storage.write_json(folder / "config.json", run.identity(request))
    task = assembly.make_sweep(config, fields, request.points)
    storage.write_json(folder / agents.FILE, json_files.sealed(assembly.of_data(task)))
    state = jax.jit(lambda *args: sweep.init_runs(task.algorithm, *args, task.mesh))(
        task.hp, task.run_keys, task.data
    )
    carry = training.empty_carry(task, state)
    with checkpoint.Checkpoints(folder / "checkpoints") as saves:
        saves.save(4 * checkpoint.UNITS, carry, {"done": 4, "seconds": {}})
    over_runs = sweep.over_runs(task.evaluate, 2, task.mesh)
    scores = jax.jit(over_runs)(state, task.run_keys, task.tasks, task.data, jnp.int32(4))
    paths, _ = scores[config.run.protocols[0]].shown
    return folder, root / "data", np.asarray(paths)


def shown(capsys, *arguments):
    """Runs the command; returns (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main(render.COMMAND, ["render", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_writes_the_episode_of_the_figures(finished, tmp_path, capsys):
    folder, data, paths = finished
    chosen = ("--task=3", "--seed=4", "--point=1", f"--to={tmp_path}")
    code, out, err = shown(capsys, f"--run={folder}", f"--data={data}", *chosen)
    assert code == 0, err
    name = "given_context_task3_seed4_point1"
    assert {path.name for path in tmp_path.iterdir()} >= {f"{name}.html", f"{name}.gif"}
    text = (tmp_path / f"{name}.html").read_text().split('id="scene">')[1].split("</script>")[0]
    found = json.loads(text)
    config, points, _ = agents.read_config(folder)
    assert len(points) == 2 and "seed 4" in found["details"] and "=0.002" in found["details"]
    env = assembly.env_of(config)
    np.testing.assert_allclose(found["goal"], env.landmarks[3], atol=1e-4)
    position = int(np.flatnonzero(assembly.task_order(env) == 3)[0])
    expected = paths[3, position]  # runs are grid points x seeds
    np.testing.assert_allclose(found["path"], expected, atol=2e-4)
    goal = env.landmarks[3]
    rewards = -np.linalg.norm(expected[1:] - goal, axis=1)
    np.testing.assert_allclose(found["rewards"], rewards, atol=2e-4)
    assert f"return {rewards.sum():.1f}"[:-1] in out


def test_the_protocol_and_the_task_may_be_left_out_or_named(finished, tmp_path, capsys):
    folder, data, _ = finished
    arguments = (f"--run={folder}", f"--data={data}", f"--to={tmp_path}", "--nomovie")
    assert shown(capsys, *arguments, "--protocol=one_shot")[0] == 0
    (page,) = tmp_path.iterdir()
    assert page.name.startswith("one_shot_task") and "_seed3_" in page.name


def test_contexts_of_a_run_come_from_its_checkpoint(finished):
    folder = finished[0]
    z = snapshot.explored(folder, 3)
    assert z.shape[:3] == (4, 2, 3) and np.isfinite(z).all() and (folder / "explored.npz").exists()
    np.testing.assert_array_equal(snapshot.explored(folder, 3), z)  # kept
    (folder / "explored.npz").unlink()


@pytest.mark.parametrize(
    "argument,hint",
    [
        ("--task=6", "has tasks 0 to 5"),
        ("--seed=0", "has seeds 3 to 4"),
        ("--point=2", "has points 0 to 1"),
        ("--task=first", "invalid literal"),
        ("--protocol=one_shto", "did you mean 'one_shot'"),
        ("--data=/nowhere", "pass --data"),
        ("--algo=gentle", "does not use --algo"),
        ("--config.env.horizon=3", "does not use --config.env.horizon"),
        ("--nonsense=1", "nonsense"),
    ],
)
def test_bad_input_is_one_line(finished, tmp_path, capsys, argument, hint):
    folder, data, _ = finished
    arguments = {"--data": f"--data={data}", "--to": f"--to={tmp_path}", "--run": f"--run={folder}"}
    arguments[argument.partition("=")[0]] = argument
    code, _, err = shown(capsys, *arguments.values())
    assert code == 2 and hint in err and err.startswith("error: ") and err.count("\n") == 1


def test_folders_that_hold_no_run_or_no_checkpoint(finished, tmp_path, capsys):
    folder, data, _ = finished
    for where, hint in ((tmp_path, "not a run folder"), (tmp_path / "absent", "not a run folder")):
        code, _, err = shown(capsys, f"--run={where}")
        assert code == 2 and hint in err and err.count("\n") == 1
    code, _, err = shown(capsys)
    assert code == 2 and "render needs --run" in err
    shutil.copy(folder / "config.json", tmp_path)
    code, _, err = shown(capsys, f"--run={tmp_path}", f"--data={data}")
    assert code == 2 and "holds no checkpoint" in err and err.count("\n") == 1
    tree = json.loads((folder / "config.json").read_text())
    tree["train"]["of_another_version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(tree))
    code, _, err = shown(capsys, f"--run={tmp_path}")
    assert code == 2 and "another version" in err and err.count("\n") == 1


def test_an_environment_that_cannot_be_drawn_is_told(finished):
    env = registry.load("environment", "point_robot").make("ctmrl")._replace(landmarks=None)
    with pytest.raises(errors.UserError, match="figures/"):
        render.draw(env, 0, None)


def test_settings_come_back_as_they_were_written(finished):
    config, _, _ = agents.read_config(finished[0])
    tree = json.loads((finished[0] / "config.json").read_text())
    assert config_lib.to_dict(config) | {"sweep": tree["sweep"]} == tree
    assert config == config_lib.from_dict(config_lib.to_dict(config))
    assert checkpoint.fingerprint(tree) == finished[0].name
