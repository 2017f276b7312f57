"""The main job: `python -m experiments.run --algo=ctmrl --num_seeds=8`.

Makes or reuses the data, trains all seeds in one program, evaluates, prints the table, writes the
run folder; the same command resumes, and prints the table again once the run is finished.
"""

import collections
import contextlib
import threading
import time

import jax
import numpy as np

from gentle_jax import agents, assembly, checkpoint, errors, json_files, storage, training
from gentle_jax import config as config_lib
from gentle_jax import sweep as sweep_lib
from gentle_jax.protocols import base

from . import collect
from .cli import console, flags
from .cli.command import Command, start
from .host import computer, hosts, preemption
from .runs import code_identity, environments, events, grids, outputs, remote, trackers

SUMMARY = (
    "Trains and evaluates one algorithm on one task family: a whole seed sweep in one program."
)


def identity(request):
    """Returns what a run folder's name stands for: every setting, the sweep, imported data.

    Collected data follow from the settings; imported ones are known by their files alone.
    """
    meta = storage.imported(request.data)
    data = {} if meta is None else {"data": {**storage.source_of(meta), "sha256": meta["sha256"]}}
    return {**config_lib.to_dict(request.config), "sweep": list(request.points), **data}


def folder_of(request):
    """Returns the run folder: out/suite/env/algo/fingerprint."""
    run = request.config.run
    name = config_lib.fingerprint(identity(request))
    return remote.path(request.out) / run.suite / run.env / run.algorithm / name


def describe(request, folder):
    """Prints what will be done, before any work."""
    run, train = request.config.run, request.config.train
    points = len(request.points)
    chosen = " (auto)" if request.automatic else ""
    print(
        f"run: {run.algorithm} ({run.fidelity} fidelity) with {run.backbone} on {run.env}, ", end=""
    )
    print(f"suite {run.suite}, physics {run.physics}, preset {run.preset}{chosen}")
    grid = f" x {points} grid points" if points > 1 else ""
    print(
        f"run: {run.num_seeds} seeds{grid}, {train.num_steps} steps of {train.meta_batch} tasks x ",
        end="",
    )
    mesh = sweep_lib.make_mesh(points * run.num_seeds, hosts.devices())
    where = f"{1 if mesh is None else mesh.size} x {jax.devices()[0].device_kind}"
    where += f" of {jax.process_count()} processes" if hosts.several() else ""
    print(f"({train.batch_size} RL + {train.context_size} context) rows on {where}")
    print(f"run: protocols {' '.join(run.protocols)}; folder {folder}", flush=True)


class Session:
    """What one invocation keeps between chunks: files, clocks, progress. Host side only."""

    def __init__(self, request, folder, sweep, sets, tell=events.silent, track=trackers.silent):
        self.tell, self.track = tell, track
        self.request, self.folder, self.sweep, self.saves = request, folder, sweep, None
        self.seconds = dict.fromkeys(("collect", "compile", "train", "evaluate", "total"), 0.0)
        self.begin = time.perf_counter()
        self.stage = None  # the number of the stage whose progress is shown
        self.total = sum(stage.num_steps for stage in sweep.algorithm.stages)
        self.runs = sweep.runs
        self.progress = self.log = self.logged = None
        self.before = 0.0  # total seconds of earlier invocations
        self.saved = time.perf_counter()
        self.metrics, self.score, self.sets = "", "", sets  # sets: as `assembly.task_sets`
        self.lost = np.zeros(self.runs, bool)  # runs whose metrics are not finite any more

    def start(self, done):
        """Opens logs, forgetting what was logged after the checkpoint at step `done`."""
        if hosts.leader():
            self.log = outputs.MetricsLog(self.folder, done, self.labels(), self.logged)

    def labels(self):
        """Returns (seed, grid point) of every run."""
        run = self.request.config.run
        seeds = range(run.seed_offset, run.seed_offset + run.num_seeds)
        return [(seed, point) for point in self.request.points for seed in seeds]

    def on_piece(self, chunk, position, steps, seconds):
        self.seconds["train"] += seconds
        stage = self.sweep.algorithm.stages[chunk.stage]
        done = chunk.start + chunk.length - (chunk.done - position.done)
        if self.stage != chunk.stage:  # one bar for each stage: their steps cost differently
            self.close()
            self.stage = chunk.stage
            self.progress = console.Progress(stage.name, stage.num_steps, done - steps)
        rate = self.runs * steps / seconds
        self.progress.update(done, f"{rate:.0f} seed-steps/s{self.metrics}{self.score}")

    def on_chunk(self, chunk, metrics):
        stage = self.sweep.algorithm.stages[chunk.stage]
        if self.log is not None:
            self.track(self.log.write(chunk, stage.name, metrics), chunk.done)
        phase = events.EVALUATION if chunk.evaluate else events.TRAINING
        self.tell(phase, step=chunk.done)
        names = stage.shown or tuple(metrics)[:2]
        self.metrics = "  " + "  ".join(f"{k} {float(metrics[k].mean()):.3g}" for k in names)
        lost = ~np.isfinite(np.stack(list(metrics.values()))).all(0)
        for index in np.flatnonzero(lost & ~self.lost):
            seed, point = self.labels()[index]
            where = f" ({outputs.label(point)})" if point else ""
            print(
                f"\nrun: seed {seed}{where} is not finite after step {chunk.done}: its agent",
                end="",
            )
            print(" diverged; the others go on", flush=True)
        self.lost |= lost

    def close(self):
        """Ends the bar of the stage that is running."""
        if self.progress is not None:
            self.progress.close()

    def on_evaluate(self, chunk, returns, seconds):
        self.seconds["evaluate"] += seconds
        score_of = base.METRICS[self.request.config.eval.metric]
        for name, values in returns.items():
            score = score_of(values)
            means = {s: float(score[:, where].mean()) for s, where in self.sets.items()}
            self.track({f"return/{s}/{name}": mean for s, mean in means.items()}, chunk.done)
            if name == self.request.config.run.protocols[0]:
                self.score = f"  test {name} {means['test']:.2f}"

    def on_pause(self, position, carry, last):
        """Saves if it is time, or if the process is asked to stop, and then stops."""
        stop = hosts.any_of(preemption.requested())
        due = time.perf_counter() - self.saved >= self.request.save_every
        if hosts.agree(last or stop or due):
            self.save(position, carry)
        if position.scored and not last:
            self.tell(self.phase_at(position), step=position.done)
        if stop:
            self.close()
            print(f"\nrun: stopping after step {position.done} of {self.total}", flush=True)
            raise preemption.Preempted("asked to stop")

    def phase_at(self, position):
        """Returns the phase that goes on from a Position: an evaluation is several programs."""
        within = 0 < position.scored <= len(self.request.config.run.protocols)
        return events.EVALUATION if within else events.TRAINING

    def save(self, position, carry):
        """Saves a carry, in the background."""
        self.saved = time.perf_counter()
        self.seconds["total"] = self.before + self.saved - self.begin
        kept = training.to_host(self.sweep, carry)
        if hosts.leader():
            lost = np.flatnonzero(self.lost).tolist()
            meta = {**position._asdict(), "seconds": dict(self.seconds), "lost": lost}
            meta["metrics"] = self.log.digest()
            self.saves.save(checkpoint.number(position), kept, meta)

    def resume(self, meta):
        """Takes over the clocks of the invocation that was interrupted."""
        self.seconds = {**self.seconds, **meta["seconds"]}
        self.lost[meta["lost"]] = True
        self.logged = meta.get("metrics")
        self.before = self.seconds["total"]


def compile_programs(sweep, hits):
    """Compiles everything, saying what came from the cache; returns (programs, seconds)."""
    begin = time.perf_counter()

    def tell(name, program):
        thread = threading.get_ident()
        where = "from the cache" if hits.count(thread) > seen[thread] else "compiled"
        seen[thread] = hits.count(thread)
        if program.compile_seconds > 1.0:
            print(f"compile: {name} {where} in {program.compile_seconds:.1f} s", flush=True)

    seen = collections.Counter(hits)
    programs = training.compile_all(sweep, training.Hooks(on_compile=tell))
    seconds = time.perf_counter() - begin
    print(f"compile: {len(programs.all())} programs in {seconds:.1f} s, {len(hits)} from the cache")
    return programs, seconds


def check_memory(sweep, programs):
    """Prints the memory that the run takes; raises UserError if the device has less."""
    state = training.state_bytes(training.state_shapes(sweep))
    scratch = max(program.temp_bytes for program in programs.all())
    count = 1 if sweep.mesh is None else sweep.mesh.size
    parts = sweep.data.split
    data = training.state_bytes(sweep.data) / parts  # of one device
    if computer.on_accelerator():  # each device has a memory of its own
        needed = data + 2 * state / count + scratch
    else:  # all of this process
        here = -(-count // jax.process_count())
        needed = here * (data + scratch + 2 * state / count)
    free = computer.available_bytes()
    once = "once" if count == 1 else f"once on each of {count} devices"
    once = f"on each of {count} devices, a part of the tasks" if parts > 1 else once
    parts = f"data {console.megabytes(data)} {once}, state {console.megabytes(state)}"
    print(f"memory: {parts}, scratch {console.megabytes(scratch)}", end="")
    print("" if free is None else f"; {console.megabytes(free)} free", flush=True)
    if free is not None and needed > free:
        raise errors.UserError(
            f"about {console.megabytes(needed)} are needed and {console.megabytes(free)} are free: "
            f"lower --num_seeds, --config.train.batch_size or --config.train.context_size"
        )


def tell_needs(request):
    """Prints what data and states will take, before any is made; raises UserError as `check`."""
    meta = storage.imported(request.data)
    if meta:
        storage.check_revealed(meta, request.config, request.data)
    data, state = assembly.check(request.config, imported=bool(meta))
    if meta:  # as large as it is, whatever the settings say
        data = storage.stored_bytes(request.data)
    state *= len(request.points) * request.config.run.num_seeds
    text = f"memory: data about {console.megabytes(data)}, states of all runs about "
    print(f"{text}{console.megabytes(state)}, scratch is known once compiled; ", end="")
    cached = computer.cached_programs()
    print(f"compile cache: {cached} programs", flush=True)


def train(request, folder, hits, tell=events.silent, track=trackers.silent):
    """Trains from scratch or from the last checkpoint, writes the results; returns the summary.

    Args: tell, of `events`; track, of `trackers`.
    """
    code = request.fresh, request.accept_code
    fields, meta, collected = collect.ensure(
        request.config, request.data, request.save_every, tell, *code
    )
    tell("compile")
    sweep = assembly.make_sweep(
        request.config, fields, request.points, hosts.devices(), request.shard_data
    )
    env, scale = sweep.env, sweep.scale
    if hosts.leader():
        kept = training.state_shapes(sweep), training.shown_shapes(sweep)
        size = training.state_bytes(kept)
        computer.prepare_folder(folder, 4 * size + 20e6, "--out")
        storage.write_json(folder / "config.json", json_files.sealed(identity(request)))
        environments.write(folder, request.config.run, meta)
        storage.write_json(folder / agents.FILE, json_files.sealed(assembly.of_data(sweep)))
    session = Session(request, folder, sweep, assembly.task_sets(env), tell, track)
    with computer.light_compiling(request.config.run.preset):
        programs, compiled = compile_programs(sweep, hits)
    check_memory(sweep, programs)
    spent = {"collect": collected, "compile": compiled}
    with preemption.held():  # what was trained since the last save is worth one
        if hosts.leader():
            with checkpoint.Checkpoints(folder / "checkpoints") as saves:
                carry = advance(programs, saves, session, spent)
        else:
            carry = advance(programs, None, session, spent)
    if not hosts.several():  # one of several may not leave alone
        preemption.check()
    paths, mask = carry["shown"]
    trace = (paths * scale[1] + scale[0], mask)
    session.seconds["total"] = session.before + time.perf_counter() - session.begin
    if not hosts.leader():
        return None
    print("run: writing results", flush=True)
    tell("results")
    return outputs.write(request, folder, sweep, env, meta, carry, trace, session)


def advance(programs, saves, session, spent):
    """Trains from the newest checkpoint, or from the start, to the end; returns the final carry.

    Args: spent, {phase: seconds} of this invocation so far.
    """
    sweep, session.saves = session.sweep, saves
    position, kept = restore(sweep, saves, session)
    if position == training.Position():
        state = programs.init.call(sweep.hp, sweep.run_keys, sweep.data)
        carry = training.empty_carry(sweep, state)
    else:
        carry = training.to_device(sweep, kept)
        print(f"run: resuming after step {position.done} of {session.total}", flush=True)
    for phase, seconds in spent.items():
        session.seconds[phase] += seconds
    session.before += spent["collect"]  # its own clock began after it
    session.start(position.done)
    session.tell(session.phase_at(position), step=position.done)
    hooks = training.Hooks(
        on_piece=session.on_piece,
        on_chunk=session.on_chunk,
        on_evaluate=session.on_evaluate,
        on_pause=session.on_pause,
    )
    pace = training.Pace(agree=hosts.agree)
    carry = training.chunked(sweep, programs, carry, position, hooks, pace)
    session.close()
    return carry


def restore(sweep, saves, session):
    """Returns (Position, numpy carry) of the newest checkpoint, or (Position(), None).

    The leader reads it; other processes get it from there and pass saves=None.
    """
    like = training.carry_shapes(sweep)
    newest = saves.restore(like) if saves is not None else None
    position, kept = training.Position(), None
    if newest is not None:
        kept, meta = newest
        position = training.Position(meta["done"], meta["scored"])
        session.resume(meta)
    position = training.Position(*(int(x) for x in hosts.share(np.array(position, np.int32))))
    if position != training.Position() and hosts.several():
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
        kept = hosts.share(zeros if kept is None else kept)
    return position, kept


def execute(request):
    """Runs a Request to the end and returns its summary (a dict)."""
    trackers.check(request.track)
    folder = folder_of(request)
    describe(request, folder)
    if hosts.leader():
        code_identity.settle(request, folder)
    tell = events.writer(request.events) if request.events and hosts.leader() else events.silent
    tell("start-up", folder=str(folder))
    if hosts.agree((folder / "summary.json").exists()):
        if not hosts.leader():
            return {"failed_seeds": []}  # the leader tells
        print("run: finished before; printing its table (delete the folder to run again)")
        summary = outputs.read_summary(folder)
        outputs.print_table(summary, folder)
        return summary
    hits = computer.count_cache_hits()
    tell_needs(request)
    if not hosts.leader():
        train(request, folder, hits)
        return {"failed_seeds": []}
    mirror = remote.Mirror(folder)  # works in the folder itself where that is a local one
    computer.prepare_folder(mirror.local, 20e6, "--out")
    title = "/".join(folder.parts[-4:])  # suite/env/algo/fingerprint
    tracked = trackers.tracked(request.track, mirror.local, title, identity(request))
    with (
        computer.disk_may_fill(mirror.local),
        computer.alone(mirror.local),
        contextlib.ExitStack() as last,
        mirror,
    ):
        log = last.enter_context(tracked)  # closed when all that was made is safe
        summary = train(request, mirror.local, hits, tell, log)
    outputs.print_table(summary, folder)
    return summary


def run(line):
    """The command; returns its exit code."""
    computer.start(**flags.devices_of(line))
    request = flags.resolve(line, computer.on_accelerator)
    with preemption.held() if hosts.several() else contextlib.nullcontext():
        return int(hosts.agree(grids.execute(request, execute, folder_of)))


COMMAND = Command("run", SUMMARY, run, shared=flags.ALL)

if __name__ == "__main__":
    start(COMMAND)
