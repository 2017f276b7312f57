"""Kills a sweep again and again and compares what is left: `python -m experiments.soak --kills=20`.

The command runs `experiments.run` once without interruption, data collection included, then in
folders of its own while it ends the process at random moments with SIGTERM or SIGKILL and gives
the same command again. A run that ends before the kills are used up is followed by another one in
a new folder. Data and results must be those of the uninterrupted run, bit by bit. What it cost is
told as goodput: the share of the time that went into work that was kept.
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import sys

import jax
import numpy as np

from gentle_jax import errors, storage

from .cli import exit_codes, flags
from .cli.command import Command, start
from .host import computer
from .runs import events, same_bits
from .runs.attempts import IDLE, KINDS, Process, until
from .show import tables

SUMMARY = "Kills a sweep at random moments, resumes it, and compares it with an uninterrupted one."
EXTRA = (
    ("kills", int, 20, "how often"),
    ("soak_seed", int, 0, "of the moments, and of their order"),
    ("kinds", str, "term,kill", "signals to take turns with: " + " ".join(KINDS)),
    ("to", str, "soak", "folder of everything that is written"),
)
REFUSED = (
    *((name, "it has folders of its own below --to") for name in ("data", "out", "events")),
    ("multihost", "it ends one process at a time; leave it out"),
)


class Moments:
    """Draws moments: each phase in turn, in random order, uniform within its usual length."""

    def __init__(self, seed, totals):
        self.random, self.round = random.Random(seed), []
        self.usual = {"results": 1.0} | totals

    def draw(self, data_made):
        """Returns (phase, seconds spent in it); `data_made`: nothing is left to be collected."""
        if not [phase for phase in self.round if phase != "collection" or not data_made]:
            self.round += self.random.sample(events.PHASES, len(events.PHASES))
        able = [phase for phase in self.round if phase != "collection" or not data_made]
        self.round.remove(able[0])
        return able[0], self.random.uniform(0.0, self.usual.get(able[0], 1.0))

    def learn(self, totals):
        """Takes over how long a process was in phases, {phase: seconds}, the newest half."""
        for phase, seconds in totals.items():
            known = self.usual.get(phase, seconds)
            self.usual[phase] = 0.5 * (known + seconds)


def soak(command, kills, seed, kinds, to, tell=print):
    """Runs everything below the folder `to`; returns what soak.json holds.

    Args: command, the words of a command that takes --data, --out, --events; kinds, of KINDS.
    """
    to = pathlib.Path(to).absolute()
    (to / "logs").mkdir(parents=True, exist_ok=True)
    process = Process(command, to / "plain", to / "logs" / "plain.log")
    plain = process.finish()
    if plain.code not in (exit_codes.DONE, exit_codes.DIVERGED):
        raise errors.UserError(
            f"the uninterrupted run ended with code {plain.code}: see {to / 'logs' / 'plain.log'}"
        )
    productive = productive_seconds(to / "plain" / "out", process.events)
    tell(f"soak: uninterrupted, {plain.seconds:.1f} s, of which {productive:.1f} s of work")
    moments, attempts, turn = Moments(seed, usual_of(process, plain)), [], random.Random(seed + 1)
    count, root, number, failures, pending = 0, None, 0, [], []
    while count < kills or root is not None:
        if root is None:
            number += 1
            root = to / f"root_{number}"
        process = Process(command, root, to / "logs" / f"{root.name}.log")
        try:
            due = count < kills and until(process, moments.draw(data_made(root)))
            pending = pending or turn.sample(kinds, len(kinds))
            attempt = process.finish(pending[0] if due else "")
        finally:
            if process.child.poll() is None:
                process.child.kill()
        moments.learn(usual_of(process, attempt))
        attempts.append(attempt)
        if attempt.kind:
            pending.pop(0)
            count += 1
            tell(
                f"soak: {count}/{kills} {attempt.kind} in {attempt.phase} of {attempt.root}, "
                f"code {attempt.code} after {attempt.dying:.2f} s"
            )
        wrong = wrong_end(attempt, plain.code)
        failures += wrong
        if wrong and not attempt.kind:
            break  # a run that fails by itself would do so for ever
        if attempt.code == plain.code:
            tell(f"soak: {root.name} finished")
            root = None
    return {"command": list(command)} | judge(to, attempts, plain, productive, failures)


def usual_of(process, attempt):
    """Returns {phase: seconds} of the phases that a process went through from end to end."""
    totals = events.totals(process.spans())
    if not attempt.kind:
        return totals
    if attempt.resumed is None:
        return {}
    return {phase: totals[phase] for phase in IDLE if phase in totals}  # it came to train after


def data_made(root):
    """Whether nothing is left to be collected below a root."""
    return any((root / "data").rglob("meta.json"))


def wrong_end(attempt, good):
    """Returns a line if a process ended as it must not. Args: good, the code of a finished run."""
    allowed = {"term": (exit_codes.INTERRUPTED, good), "kill": (-signal.SIGKILL, good), "": (good,)}
    if attempt.code in allowed[attempt.kind] or too_early(attempt):
        return []
    after = f"after {attempt.kind} in {attempt.phase}" if attempt.kind else "by itself"
    return [f"{attempt.root}: code {attempt.code} {after}, expected {allowed[attempt.kind]}"]


def too_early(attempt):
    """Whether SIGTERM came before the program could hear it: Python itself was still starting."""
    return attempt.silent and attempt.kind == "term" and attempt.code == -signal.SIGTERM


def productive_seconds(out, events):
    """Returns the seconds of collecting, training and evaluation below `out`, without compiling.

    Args: events, the events of the process.
    """
    total = 0.0
    for path in pathlib.Path(out).rglob("summary.json"):
        seconds = json.loads(path.read_text())["seconds"]
        total += seconds["collect"] + seconds["train"] + seconds["evaluate"]
    return total - sum(event.get("compile_seconds", 0.0) for event in events)


def count_lost(attempts):
    """Fills in the training steps that each attempt lost: what it logged, less where the next
    one that came to train went on. Steps after the last log line are not known, and not counted.
    """
    for i, attempt in enumerate(attempts):
        where = (attempt.root, attempt.folder)
        later = [a for a in attempts[i + 1 :] if (a.root, a.folder) == where]
        later = [a for a in later if a.resumed is not None]
        if attempt.kind and attempt.resumed is not None and later and attempt.reached is not None:
            attempt.lost = max(attempt.reached - later[0].resumed, 0)


def judge(to, attempts, plain, productive, failures):
    """Compares every finished root with the uninterrupted run; returns what soak.json holds."""
    count_lost(attempts)
    finished = sorted({a.root for a in attempts if a.code == plain.code})
    differ, compared = [], 0
    for root in finished:
        for name, judge_one in (("data", same_bits.datasets), ("out", same_bits.runs)):
            unequal, number = judge_one(to / "plain" / name, to / root / name)
            differ += [f"{root}/{name}/{line}" for line in unequal]
            compared += number
    wall = sum(a.seconds for a in attempts)
    last = [a.reached for a in attempts if a.reached]
    per_step = plain_seconds_per_step(to / "plain" / "out")
    lost = sum(a.lost for a in attempts)
    starts = [a.idle for a in attempts if a.resumed is not None]
    spent = {
        "wall": wall,
        "productive": productive * len(finished),
        "start_up_and_compile": sum(a.idle for a in attempts),
        "lost_work": lost * per_step,
        "shutdown": sum(a.dying for a in attempts if a.kind == "term"),
    }
    spent["rest"] = wall - sum(seconds for name, seconds in spent.items() if name != "wall")
    return {
        "equal": bool(finished) and compared > 0 and not differ and not failures and bool(last),
        "differences": differ,
        "failures": failures,
        "kills": sum(bool(a.kind) for a in attempts),
        "finished_roots": finished,
        "compared_folders": compared,
        "goodput": spent["productive"] / wall if wall else 0.0,
        "seconds": {name: round(seconds, 3) for name, seconds in spent.items()},
        "seconds_per_resume": float(np.median(starts)) if starts else None,
        "steps_lost": lost,
        "uninterrupted": {"seconds": plain.seconds, "productive": productive},
        "attempts": [dataclasses.asdict(a) | {"early": too_early(a)} for a in attempts],
        "environment": computer.environment(),
    }


def plain_seconds_per_step(out):
    """Returns the seconds that a training step of all runs takes, the mean of runs below `out`."""
    each = []
    for path in pathlib.Path(out).rglob("summary.json"):
        last = (path.parent / "metrics.jsonl").read_text().splitlines()[-1]
        each.append(json.loads(path.read_text())["seconds"]["train"] / json.loads(last)["step"])
    return float(np.mean(each)) if each else 0.0


def report(results):
    """Returns the text of a soak: a line for each kill, where the time went, the verdict."""
    heading = ["kill", "root", "signal", "phase", "code", "ended after", "step", "steps lost"]
    killed = [a for a in results["attempts"] if a["kind"]]
    lines = [
        [str(i), a["root"], a["kind"], a["phase"], str(a["code"]), f"{a['dying']:.2f} s"]
        + [str(a["reached"]) if a["resumed"] is not None else "-", str(a["lost"])]
        for i, a in enumerate(killed, 1)
    ]
    spent, wall = results["seconds"], max(results["seconds"]["wall"], 1e-9)
    shares = ", ".join(
        f"{name.replace('_', ' ')} {spent[name]:.1f} s ({spent[name] / wall:.0%})"
        for name in ("start_up_and_compile", "lost_work", "shutdown", "rest")
    )
    resume = results["seconds_per_resume"]
    count = collections.Counter((a["phase"], a["kind"]) for a in killed)
    fell = ", ".join(f"{phase} {kind} {n}" for (phase, kind), n in sorted(count.items()))
    early = sum(a["early"] for a in killed)
    text = [
        tables.plain_grid([heading, *lines], 4),
        f"fell into: {fell}",
        f"goodput {results['goodput']:.3f}: {spent['productive']:.1f} s of work in {wall:.1f} s; "
        f"badput: {shares}",
        f"a resume takes {resume:.1f} s before it trains (median)" if resume else "no resume",
        *[f"{early} SIGTERM came before the program could hear it, and lost nothing"] * bool(early),
        *(f"failure: {line}" for line in results["failures"]),
        *(f"differs: {line}" for line in results["differences"]),
        f"{results['compared_folders']} datasets and runs of {len(results['finished_roots'])} "
        f"interrupted roots compared: {'all bit-equal' if results['equal'] else 'NOT in order'}",
    ]  # fmt: skip
    return "\n".join(text)


def asked_of(line):
    """Returns the own flags of a Line, --kinds as a list; raises UserError for what cannot be."""
    asked = line.own | {"kinds": line.own["kinds"].split(",")}
    for kind in asked["kinds"]:
        if kind not in KINDS:
            raise errors.unknown("--kinds", kind, KINDS)
    if asked["kills"] < 1:
        raise errors.UserError(f"--kills is {asked['kills']}: expected at least 1")
    flags.resolve(line)  # what `run` would refuse
    if (pathlib.Path(asked["to"]) / "plain").exists():
        raise errors.UserError(
            f"{asked['to']} holds an earlier soak: delete it, or pass another --to"
        )
    return asked


def run(line):
    """The command; returns its exit code, FAILED if anything is not as it would be otherwise."""
    # an accelerator is for the runs, not for this process
    jax.config.update("jax_platforms", "cpu")
    asked = asked_of(line)
    to = pathlib.Path(asked["to"])
    computer.prepare_folder(to, 100e6, "--to")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # a kill must not harm the user's own
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(to.absolute() / "cache")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    command = [sys.executable, "-u", "-m", f"{__package__}.run", *line.words]
    outcome = soak(command, asked["kills"], asked["soak_seed"], asked["kinds"], to)
    storage.write_json(to / "soak.json", outcome)
    print("\n" + report(outcome) + f"\nresults: {to / 'soak.json'}", flush=True)
    return exit_codes.DONE if outcome["equal"] else exit_codes.FAILED


COMMAND = Command(
    "soak",
    SUMMARY,
    run,
    own=EXTRA,
    shared=flags.but(*(name for name, _ in REFUSED)),
    refused=REFUSED,
)

if __name__ == "__main__":
    start(COMMAND)
