"""Makes behaviour data: `python -m experiments.collect --env=point_robot --suite=ctmrl`.

Online SAC for all tasks in one compiled program; the same command resumes from a checkpoint, which
is taken every `--save_every` seconds, and when the command is asked to stop.
"""

import dataclasses
import functools
import pathlib
import shutil
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import (
    assembly,
    checkpoint,
    errors,
    evaluation,
    rng,
    storage,
    sweep,
    task_tables,
    training,
)
from gentle_jax import behaviour as behaviour_lib
from gentle_jax import config as config_lib
from gentle_jax.envs import base

from .cli import console, flags
from .cli.command import Command, start
from .host import computer, hosts, preemption
from .runs import data_code, environments, events

SUMMARY = "Trains one SAC agent per task and stores episodes along training, as a dataset on disk."
RETURNS = ("behaviour_return", "expert_return", "random_return", "reference_return")


def num_tasks(env):
    """Returns how many tasks an Env holds."""
    return jax.tree.leaves(env.tasks)[0].shape[0]


def dataset_folder(config, root):
    """Returns the dataset's folder: `root` itself if it holds one, else a folder below it.

    One that is being made again in the place of another counts.
    """
    root = pathlib.Path(root)
    if storage.is_complete(root) or (root / data_code.PROGRESS).is_dir():
        return root
    return storage.folder_of(root, config)


def ensure(config, root, save_every=30, tell=events.silent, fresh=False, accept_code=False):
    """Returns (fields, meta, seconds spent) of the config's dataset, making it if it is absent.

    Args: save_every, seconds between checkpoints while it is made; tell, of `events`; fresh and
    accept_code, what is done with data of other code. Raises UserError for these without either.
    """
    folder = dataset_folder(config, root)
    waiting = f"data: another process makes {folder}: waiting for it"
    if hosts.leader():
        data_code.settle(config, folder, fresh, accept_code, waiting)
    hosts.agree(0)  # the others look only after the leader has settled it
    hosts.wait_for(lambda: storage.is_complete(folder), f"it makes {folder}")
    if storage.is_complete(folder):
        fields, meta = storage.load(folder, config)
        print(f"data: reusing {folder} (checksums agree)", flush=True)
        source = storage.source_of(meta)
        if source:
            made_in = meta["identity"]["physics"]
            known = "unknown to us" if made_in == "imported" else made_in
            print(f"data: imported from {source['format']}, its physics is {known};", end=" ")
            print(f"evaluation uses this run's ({config.run.physics})", flush=True)
            if storage.misfit_of(meta):
                print(f"data: WARNING: {storage.misfit_of(meta)}", flush=True)
            fields, meta = part_of(fields, meta, config)
        return fields, meta, 0.0
    env = assembly.env_of(config)
    wanted = storage.shapes(num_tasks(env), config.behaviour, env)
    size = storage.num_bytes(wanted)
    missing = 1.2 * size - storage.stored_bytes(folder)
    computer.prepare_folder(folder, missing + 3 * state_bytes(config, env), "--data")
    steps, tasks = config.behaviour.num_steps, num_tasks(env)
    light = computer.light_compiling(config.run.preset)
    with computer.disk_may_fill(folder), computer.alone(folder, waiting), light:
        begin = time.perf_counter()
        if not storage.is_complete(folder):
            print(f"data: making {folder}: {tasks} tasks x {steps} steps of SAC,", end=" ")
            print(f"physics {config.run.physics}, {console.megabytes(size)}", flush=True)
            _collect(config, env, folder, wanted, save_every, tell)
    fields, meta = storage.load(folder, config)
    return fields, meta, time.perf_counter() - begin


def whole_family(config):
    """Returns a config with all tasks and steps of its environment: presets may take fewer."""
    sizes = dataclasses.replace(config.env, num_train=0, num_test=0, horizon=0)
    return dataclasses.replace(config, env=sizes)


def part_of(fields, meta, config):
    """Returns (fields, meta) of the tasks and steps that a run takes of a whole imported family.

    Returns in meta become those of the part, and of the run's physics.
    """
    whole = assembly.env_of(whole_family(config))
    kept, _, _ = base.kept_tasks(whole, config.env)
    num_tasks, _, _, steps = fields["mask"].shape
    length = min(config.env.horizon or steps, steps)
    if num_tasks != len(whole.parameters):
        return fields, meta  # another family's: told later
    if (len(kept), length) != (num_tasks, steps):
        print(f"data: taking {len(kept)} of its {num_tasks} tasks, {length} of {steps} steps each")
        fields = {name: values[kept][:, :, :, :length] for name, values in fields.items()}
        meta = meta | {name: np.asarray(meta[name])[..., kept].tolist() for name in RETURNS}
    changed = {}
    env = assembly.env_of(config)
    if length < steps:  # returns of whole episodes say nothing about shorter ones
        changed["behaviour_return"] = changed["expert_return"] = returns_of(fields).tolist()
        changed["reference_return"] = reference_of(env, returns_of(fields)[-1])
    if length < steps or meta["identity"]["random_physics"] != config.run.physics:
        print("data: measuring the random policy as this run tests", flush=True)
        changed["random_return"] = random_of(config, env)
    return fields, meta | changed


def returns_of(fields):
    """Returns [level, task]: the mean return of the episodes that are there."""
    mask = np.asarray(fields["mask"])
    totals = (np.asarray(fields["context_reward"], np.float64) * mask).sum(-1)
    return (totals.sum(-1) / np.maximum((mask[..., 0] > 0).sum(-1), 1)).T


def reference_of(env, best):
    """Returns [task], the returns that normalize: the known optimum, else `best` [task]."""
    known = best if env.optimal_return is None else env.optimal_return(1000)
    return np.asarray(known).tolist()


def random_of(config, env):
    """Returns [task]: the random policy's mean returns."""
    mesh = sweep.make_mesh(num_tasks(env))
    count, key = config.eval.random_episodes, rng.key(0)
    return np.asarray(evaluation.random_returns(env, count, key, mesh)).tolist()


def _collect(config, env, folder, wanted, save_every, tell):
    """Trains, stores each level, checkpoints after it; leaves a finished dataset in `folder`."""
    settings = config.behaviour
    mesh = sweep.make_mesh(num_tasks(env))
    collector = behaviour_lib.make(env, settings, mesh)
    keys = sweep.place(behaviour_lib.task_keys(settings, num_tasks(env)), mesh)
    agents = (sweep.place(env.tasks, mesh), keys)  # the last task again where devices are left over
    state = jax.eval_shape(collector.init, *agents)
    check_memory(training.state_bytes(state), storage.num_bytes(wanted) / settings.num_levels, mesh)
    tell("compile")
    begin = time.perf_counter()
    programs = compile_programs(collector, agents, state, mesh)
    seconds = time.perf_counter() - begin
    print(f"data: compiled in {seconds:.1f} s", flush=True)
    tell("collection", compile_seconds=seconds)
    if not storage.fits(folder, wanted):  # the levels that the checkpoint counts are not all there
        shutil.rmtree(folder / data_code.PROGRESS, ignore_errors=True)
    arrays = storage.open_arrays(folder, wanted)
    with preemption.held(), checkpoint.Checkpoints(folder / data_code.PROGRESS) as saves:
        saver = Saver(saves, num_tasks(env), save_every, data_code.of(config), folder)
        carry = _advance(settings, programs, arrays, saver, state, agents, mesh)
    preemption.check()
    _finish(config, env, folder, carry, saver.code)


def compile_programs(collector, agents, state, mesh):
    """Returns the Collector's functions as compiled Programs. Args: agents, (tasks, keys)."""
    step, sharding = jax.ShapeDtypeStruct((), jnp.int32), sweep.run_sharding(mesh)
    state = training.on_devices(state, sharding)
    build = functools.partial(sweep.compile_program, out_sharding=sharding)
    jobs = [
        functools.partial(build, collector.init, agents),
        functools.partial(build, collector.advance, (*agents, state, step, step), (2,)),
        functools.partial(build, collector.episodes, (*agents, state, step)),
    ]
    return behaviour_lib.Collector(*sweep.together(jobs))


def state_bytes(config, env):
    """Returns the bytes of all agents and replay buffers: of a checkpoint, up to three of them."""
    keys = behaviour_lib.task_keys(config.behaviour, num_tasks(env))
    collector = behaviour_lib.make(env, config.behaviour)
    return training.state_bytes(jax.eval_shape(collector.init, env.tasks, keys))


def check_memory(state, episodes, mesh):
    """Prints what collecting takes on the device; raises UserError if there is not as much.

    Args: state, bytes of agents and replay buffers; episodes, bytes of one level's episodes; mesh,
    the devices that both are split over.
    """
    needed = state + 2 * episodes
    if computer.on_accelerator():
        needed /= 1 if mesh is None else mesh.size
    else:
        needed += state + episodes  # what is saved is copied within the same memory
    free = computer.available_bytes()
    text = f"memory: agents and replay buffers {console.megabytes(state)}"
    print(text, "" if free is None else f"({console.megabytes(free)} free)", flush=True)
    if free is not None and needed > free:
        raise errors.UserError(
            f"collecting takes about {console.megabytes(needed)} and {console.megabytes(free)} are "
            f"free: lower --config.behaviour.replay_rows, --config.env.num_train or "
            f"--config.behaviour.episodes_per_level"
        )


class Saver:
    """Keeps checkpoints of a collection: every so many seconds, and when it is asked to stop."""

    def __init__(self, saves, num_tasks, every, code, folder):
        self.folder = folder
        self.levels = []  # the hash of each level that is stored
        self.environment = computer.environment()
        self.code = code  # as `data_code.of` has it; what it goes on from may add to it
        self.saves, self.num_tasks, self.every = saves, num_tasks, every
        self.saved = time.perf_counter()

    def resume(self, meta, arrays, count):
        """Takes over what a checkpoint says; UserError unless its levels are stored as they were.

        Args: count, how many levels are stored.
        """
        self.levels = [storage.level_hash(arrays, level) for level in range(count)]
        known = meta.get("levels", self.levels)  # a version that kept no hashes
        altered = [level for level in range(count) if known[level] != self.levels[level]]
        if altered:
            raise errors.UserError(
                f"level {altered[0]} of the unfinished data in {self.folder} was altered on disk: "
                f"delete the folder to make them anew"
            )
        self.code = data_code.extended(meta, self.code)
        environments.tell(meta.get("environment", {}), self.environment, "data")

    def pause(self, done, carry, last=False):
        """Saves if it is time; raises Preempted, after saving, if a signal has arrived."""
        stop = preemption.requested()
        if last or stop or time.perf_counter() - self.saved >= self.every:
            kept = carry | {"state": sweep.fetch(carry["state"], self.num_tasks)}
            more = {"levels": list(self.levels), "environment": self.environment}
            self.saves.save(done, kept, {"steps": done, **more, **self.code})
            self.saved = time.perf_counter()
        if stop:
            print(f"\ndata: stopping after step {done}", flush=True)
            preemption.check()


def _advance(settings, programs, arrays, saver, state, agents, mesh):
    """Trains from the newest checkpoint, or from the start, storing levels; returns the carry."""
    count = saver.num_tasks
    blank = np.full((settings.num_levels, count), np.nan, np.float32)
    cut = lambda s: jax.ShapeDtypeStruct((count, *s.shape[1:]), s.dtype)
    newest = saver.saves.restore(
        {"state": jax.tree.map(cut, state), "sampled": blank, "scored": blank}
    )
    if newest is None:
        done, carry = 0, {"sampled": blank.copy(), "scored": blank.copy()}
        carry["state"] = programs.init.call(*agents)
    else:
        carry, done = jax.tree.map(np.copy, newest[0]), newest[1]["steps"]
        carry["state"] = sweep.place(carry["state"], mesh)
        stored = sum(step <= done for step in behaviour_lib.levels(settings))
        saver.resume(newest[1], arrays, stored)
        print(f"data: resuming after step {done} of {settings.num_steps}", flush=True)
    at_level = {step: level for level, step in enumerate(behaviour_lib.levels(settings))}
    progress, shown = console.Progress("collect", max(at_level), done), ""
    pace, copies = training.Pace(), settings.num_envs
    for at in pieces(at_level, done, copies):
        while done < at:  # pieces of some seconds
            size, begin = pace.size(0, (at - done) // copies) * copies, time.perf_counter()
            span = np.int32(done), np.int32(size)
            carry["state"], loss = programs.advance.call(*agents, carry["state"], *span)
            jax.block_until_ready(loss)
            pace.took(0, size // copies, time.perf_counter() - begin)
            done += size
            progress.update(done, shown)
            if done < at:
                saver.pause(done, carry)
        if at in at_level:
            level = at_level[at]
            episodes = programs.episodes.call(*agents, carry["state"], np.int32(at))
            fields, sampled, scored = sweep.fetch(episodes, count)
            check_finite(fields, at)
            storage.write_level(arrays, level, fields)
            saver.levels.append(storage.level_hash(arrays, level))
            carry["sampled"][level], carry["scored"][level] = sampled, scored
            shown = f"sampled {sampled.mean():.2f}  deterministic {scored.mean():.2f}"
        saver.pause(done, carry, done == max(at_level))
    progress.close()
    return carry


def check_finite(fields, at):
    """Raises UserError if the episodes of step `at` hold what no agent should learn from."""
    for name, values in fields.items():
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
        if len(bad):
            raise errors.UserError(
                f"after {at} steps {name} of task {bad[0]} is not finite: its agent diverged; pass "
                f"a lower --config.behaviour.lr, or another --config.behaviour.seed or --physics"
            )


def pieces(levels, done, multiple=1, count=20):
    """Returns the steps after `done` to stop at: every level, and even intervals between.

    Args: multiple, what every step must be a multiple of.
    """
    every = max(-(-max(levels) // (count * multiple)), 1) * multiple
    return sorted({*levels, *(n for n in range(every, max(levels), every))} - {*range(done + 1)})


def _finish(config, env, folder, carry, code):
    """Writes meta.json: identity, code, tasks, returns that normalize; removes the checkpoint."""
    scored = carry["scored"]
    meta = {
        "identity": config_lib.data_identity(config),
        **code,
        "tasks": {name: np.asarray(leaf).tolist() for name, leaf in env.tasks.items()},
        "train_ids": env.train_ids.tolist(),
        "test_ids": env.test_ids.tolist(),
        **task_tables.meta_of(config),
        "levels": behaviour_lib.levels(config.behaviour),
        "behaviour_return": carry["sampled"].tolist(),  # [level][task], sampled episodes
        "expert_return": scored.tolist(),  # [level][task], deterministic episodes
        "random_return": random_of(config, env),  # [task]
        "reference_return": reference_of(env, scored[-1]),  # [task]
        "environment": computer.environment(),
    }
    storage.commit(folder, meta)
    for name in (data_code.PROGRESS, f"{data_code.PROGRESS}_damaged"):
        shutil.rmtree(folder / name, ignore_errors=True)


def run(line):
    """The command."""
    computer.start(**flags.devices_of(line))
    request = flags.resolve(line, computer.on_accelerator)
    _, meta, seconds = ensure(
        request.config,
        request.data,
        request.save_every,
        fresh=request.fresh,
        accept_code=request.accept_code,
    )
    last = np.array(meta["expert_return"])[-1]
    print(f"data: {len(last)} tasks, last level's deterministic return {last.mean():.2f}", end=" ")
    print(f"(reference {np.mean(meta['reference_return']):.2f}), {seconds:.0f} s")
    each = "  ".join(f"{task}: {score:.1f}" for task, score in enumerate(last))
    print(textwrap.fill(f"data: per task  {each}", 100, subsequent_indent="    "))


COMMAND = Command(
    "collect",
    SUMMARY,
    run,
    # what `config.data_identity` depends on; the sizes of `--preset` do not depend on the algorithm
    shared=(
        "suite", "env", "tasks", "preset", "physics", "multihost", "require", "deterministic",
        "save_every", "fresh", "accept_code", "data", "config.env", "config.behaviour",
        "config.eval.random_episodes",
    ),
    texts=(
        ("fresh", "put data of other code aside and make them anew; the same code resumes"),
        ("accept_code", "go on with data that other code began, or take what it made"),
    ),
)  # fmt: skip

if __name__ == "__main__":
    start(COMMAND)
