"""Shows one episode: `python -m experiments.render --run=RUN_FOLDER --task=3`.

Restores the newest checkpoint, also while the run trains, runs a protocol once on a task with the
key of the run's own rollouts, and writes its last scored episode as an HTML page that needs no
network and as a GIF (mp4 too where ffmpeg is installed). Only protocols that read stored data need
the dataset. Physics states come from the same program that acts: see `exposed`.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import (
    agents,
    assembly,
    errors,
    evaluation,
    needs,
    physics,
    registry,
    rng,
)
from gentle_jax import data as data_lib
from gentle_jax.types import Offline

from . import collect
from .cli.command import Command, start
from .host import computer
from .runs import remote, snapshot
from .show import movies, offscreen, scene

SUMMARY = "Writes one episode of a trained agent as a page for the browser and as a moving picture."
EXTRA = (
    ("run", str, "", "the run folder"),
    ("task", int, None, "task id of the environment; default: the first test task"),
    ("seed", int, None, "one of the run's seeds; default: its first"),
    ("point", int, 0, "grid point of a run with --sweep, counted from 0"),
    ("to", str, "", "folder of the files; default: the folder `renders` of the run"),
    ("movie", bool, True, "write the GIF (and mp4) beside the page"),
)


class Episode(NamedTuple):
    """One episode of N steps; nothing follows its end."""

    obs: np.ndarray  # [N + 1, obs_dim], in the environment's units, the start first
    qpos: np.ndarray  # [N + 1, nq], nq = 0 without physics
    rewards: np.ndarray  # [N], as reported


def exposed(algorithm, env):
    """Returns (Algorithm, Env) that do the same, with qpos behind every observation.

    The agent sees the first obs_dim numbers only, whoever calls it, so any protocol runs as it is
    and its recorded rows hold the physics states too. Nothing is added without physics.
    """
    if env.system is None:
        return algorithm, env
    rep, rl = algorithm.rep, algorithm.rl
    visible = lambda obs: obs[..., : env.obs_dim]
    longer = lambda obs, state: jnp.concatenate([obs, state.qpos])

    def reset(task, key):
        state, obs = env.reset(task, key)
        return state, longer(obs, state)

    def step(task, state, action):
        state, out = env.step(task, state, action)
        return state, out._replace(obs=longer(out.obs, state))

    def over(function, at):
        """`function` with its own part of the rows, its argument number `at`; None stays None."""
        shorter = lambda rows: rows._replace(obs=visible(rows.obs), next_obs=visible(rows.next_obs))
        blind = lambda *args: function(*args[:at], shorter(args[at]), *args[at + 1 :])
        return function and blind

    size = env.obs_dim + env.system.c_model.nq
    blind = rl._replace(
        act=lambda state, obs, z, key: rl.act(state, visible(obs), z, key),
        mode=lambda state, obs, z: rl.mode(state, visible(obs), z),
    )
    rep = rep._replace(
        extend=over(rep.extend, 2),
        observe=over(rep.observe, 2),
        predict_reward=over(rep.predict_reward, 2),
        uncertainty=over(rep.uncertainty, 2),
        encode=over(rep.encode, 1),
    )
    shown = env._replace(obs_dim=size, reset=reset, step=step, relabel=over(env.relabel, 1))
    return algorithm._replace(rep=rep, rl=blind), shown


def choose(config, points, env, asked):
    """Returns (run index, seed, task id, protocol's name); raises UserError for what is not there.

    Args: asked, the own flags of the command line with "protocol", a list.
    """
    run = config.run
    seeds = range(run.seed_offset, run.seed_offset + run.num_seeds)
    seed = seeds[0] if asked["seed"] is None else asked["seed"]
    task = int(env.test_ids[0]) if asked["task"] is None else asked["task"]
    tasks = range(collect.num_tasks(env))
    for name, given, allowed in (
        ("seed", seed, seeds), ("task", task, tasks), ("point", asked["point"], range(len(points))),
    ):  # fmt: skip
        if given not in allowed:
            raise errors.UserError(
                f"--{name} is {given}: this run has {name}s {allowed[0]} to {allowed[-1]}"
            )
    if len(asked["protocol"]) > 1:
        raise errors.UserError("--protocol is given more than once: one episode is shown, name one")
    protocol = (asked["protocol"] or run.protocols)[0]
    needs.check((protocol,), run.algorithm, run.env)
    return asked["point"] * run.num_seeds + seed - seeds[0], seed, task, protocol


def episode(restored, index, seed, task, protocol):
    """Returns the Episode that a protocol scores last, for run `index` on task id `task`.

    The key is that of the evaluation's first repeat: with the run's first protocol it is the
    episode of its `rollouts.npz`, up to how XLA compiles one task instead of all. Raises UserError
    for a protocol whose needs the run's settings do not meet.
    """
    config, env, order = restored.config, restored.env, assembly.task_order(restored.env)
    position = int(np.flatnonzero(order == task)[0])
    algorithm = restored.sweep.algorithm
    chosen = registry.load("protocol", protocol).make(config.eval, env)
    needs.check_built({protocol: chosen}, config.run.algorithm, env, algorithm.rep)
    algorithm, seen = exposed(algorithm, env)
    run_key = rng.run_keys(1, seed)[0]
    keys = evaluation.task_keys(run_key, protocol, restored.done, len(order))
    key = evaluation.repeat_keys(keys[position], config.eval.num_repeats)[0]
    host = lambda tree: jax.tree.map(np.asarray, tree)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[index], restored.state)
    taken = lambda ids: host(data_lib.take_tasks(restored.offline, ids))
    offline = Offline(taken(np.array([position])), taken(np.arange(len(env.train_ids))))
    this_task = jax.tree.map(lambda leaf: leaf[task], env.tasks)

    def run(state, this_task, offline, key):
        outcome = chosen.run(algorithm, state, seen, this_task, offline, key)
        return jax.tree.map(lambda leaf: leaf[-1], outcome)

    last = host(jax.jit(run)(state, this_task, offline, key))
    return cut(last, env.obs_dim, restored.scale)


def cut(outcome, obs_dim, scale):
    """Returns the Episode of an Outcome of `exposed`, up to its end; UserError if not finite."""
    steps = int(outcome.mask.sum())
    path = np.concatenate([outcome.rows.obs[:1], outcome.rows.next_obs])[: steps + 1]
    rewards = outcome.rows.context_reward[:steps]
    if not (np.isfinite(path).all() and np.isfinite(rewards).all()):
        raise errors.UserError(
            "this run diverged, its episode is not finite: choose another --seed"
        )
    mean, std = scale
    return Episode(path[:, :obs_dim] * std + mean, path[:, obs_dim:], rewards)


def describe(restored, seed, task, protocol, point):
    """Returns (title, details) of a page."""
    run, env = restored.config.run, restored.env
    kind = "test" if task in env.test_ids else "training"
    values = zip(env.parameter_names, env.parameters[task], strict=True)
    facts = [f"{kind} task {task}", *(f"{name} {value:.3g}" for name, value in values)]
    facts += [f"seed {seed}", f"step {restored.done}"]
    facts += [f"{key}={value:g}" for key, value in point.items()]
    if env.system is not None:
        facts.append(f"{run.physics} physics")
    return f"{run.algorithm} on {run.env}, {protocol}", ", ".join(facts)


def draw(env, task, shown):
    """Returns (scene, make_movie), make_movie(frames) -> (`draw` of `movies.write`, "" or why not).

    Args: task, its id; shown, an Episode. Raises UserError for what nobody can see.
    """
    goal = None if env.landmarks is None else np.asarray(env.landmarks[task], np.float64)
    if env.system is None:
        if goal is None:
            raise errors.UserError(
                f"{env.name} has neither physics nor a plane to draw: see the run's figures/"
            )
        path = shown.obs[:, :2].astype(np.float64)
        content = scene.of_plane(path, goal)
        return content | {"goal": goal}, lambda frames: (movies.plane(path, goal, frames), "")
    system = env.system
    this_task = jax.tree.map(lambda leaf: leaf[task], env.tasks)
    model = physics.c_model_of(system, physics.fields_of(system, this_task))
    bodies = scene.poses(model, shown.qpos, system.torso)
    camera = scene.camera_of(model, bodies)
    content = scene.of_bodies(bodies, camera, system.dt)

    def make_movie(frames):
        view = (camera["azimuth"], camera["elevation"], camera["distance"])
        images, why = offscreen.render(model, shown.qpos[frames], system.torso, view)
        return (None if images is None else movies.pictures(images)), why

    return content | {"goal": goal}, make_movie


def write(target, env, task, shown, texts, movie):
    """Writes `target`.html and its moving pictures; returns their paths.

    Args: texts, from `describe`; movie, whether the pictures are wanted.
    """
    content, make_movie = draw(env, task, shown)
    content |= {"title": texts[0], "details": texts[1], "rewards": shown.rewards}
    html = target.with_name(f"{target.name}.html")
    whole = html.with_name(f".{html.name}.partial")
    whole.write_text(scene.page(content), encoding="utf-8")
    whole.replace(html)  # pages of `report` read it
    if not movie:
        return [html]
    stride = movies.stride_of(content["dt"])
    frames = list(range(0, len(shown.rewards) + 1, stride))
    show, why_not = make_movie(frames)
    if show is None:
        print(f"render: no moving picture, no graphics library works here ({why_not})")
        return [html]
    title = f"{texts[0]}: {texts[1]}"
    pause = stride * content["dt"]
    return [html, *movies.write(target, frames, shown.rewards, pause, show, title)]


def run(line):
    """The command."""
    computer.start()
    asked = line.own | {"protocol": line.shared["protocol"]}
    if remote.is_remote(asked["run"]):
        raise errors.UserError(
            f"--run is {asked['run']}: pass a folder of this machine (copy the run there)"
        )
    folder = pathlib.Path(asked["run"])
    config, points, _ = agents.read_config(folder)
    index, seed, task, protocol = choose(config, points, assembly.env_of(config), asked)
    restored = snapshot.restore(folder, [protocol], line.shared["data"])
    to = pathlib.Path(asked["to"] or folder / "renders")
    computer.prepare_folder(to, 20e6, "--to")
    print(f"render: step {restored.done}, seed {seed}, task {task}, {protocol}", flush=True)
    shown = episode(restored, index, seed, task, protocol)
    texts = describe(restored, seed, task, protocol, points[asked["point"]])
    target = to / f"{protocol}_task{task}_seed{seed}_point{asked['point']}"
    for path in write(target, restored.env, task, shown, texts, asked["movie"]):
        print(f"render: {path}")
    print(f"render: {len(shown.rewards)} steps, return {shown.rewards.sum():.2f}", flush=True)


COMMAND = Command(
    "render",
    SUMMARY,
    run,
    own=EXTRA,
    shared=("protocol", "data"),
    needed=("run",),
    texts=(("protocol", "one test protocol; default: the run's first"),),
)

if __name__ == "__main__":
    start(COMMAND)
