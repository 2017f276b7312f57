"""A run in a process of its own, which phase it is in, and its end by a signal: for `soak`."""

import dataclasses
import pathlib
import signal
import subprocess
import time

from ..cli.program import ROOT
from . import events as events_lib

KINDS = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
GRACE = 180.0  # seconds that a process has to end after SIGTERM
IDLE = ("start-up", "compile")  # nothing is gained in these phases


@dataclasses.dataclass
class Attempt:
    """One process, from its start to its end."""

    root: str
    kind: str = ""  # of the signal; "" if it ended by itself
    phase: str = ""  # where the signal fell
    folder: str = ""  # the run folder that it worked in at last
    code: int = 0
    seconds: float = 0.0
    idle: float = 0.0  # seconds of start-up and compilation
    dying: float = 0.0  # seconds from the signal to the end
    resumed: int | None = None  # the training step it went on from; None: it did not get there
    reached: int | None = None  # the last training step that it told
    lost: int = 0  # training steps that a later attempt had to do again
    silent: bool = False  # whether it had told nothing when the signal came


class Process:
    """A run in a process of its own, and the events that it has told so far."""

    def __init__(self, command, root, log):
        """Starts a command that takes --data, --out and --events. Args: log, gets its output."""
        self.root = pathlib.Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / "events.jsonl"
        path.unlink(missing_ok=True)  # of the attempt before
        self.reader, self.events = events_lib.Reader(path), []
        words = [f"--data={self.root / 'data'}", f"--out={self.root / 'out'}", f"--events={path}"]
        self.begin, self.told, self.ended = time.time(), None, None
        with open(log, "ab") as file:
            self.child = subprocess.Popen(
                [*command, *words],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def spans(self):
        """Returns [(phase, seconds)] so far; `ending` is what follows a signal."""
        self.events += self.reader.read()
        end = self.ended or time.time()
        if self.told is None:
            return events_lib.spans(self.events, self.begin, end)
        before = [event for event in self.events if event["time"] < self.told]
        parts = events_lib.spans(before, self.begin, self.told)
        return [*parts, ("ending", end - self.told)]

    def finish(self, kind=""):
        """Sends the signal of that kind, waits for the end; returns the Attempt."""
        phase, silent = "", False
        if kind and self.child.poll() is None:
            phase = self.spans()[-1][0]
            silent, self.told = not self.events, time.time()
            self.child.send_signal(KINDS[kind])
        else:
            kind = ""
        try:
            self.child.wait(GRACE if kind else None)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.ended = time.time()
        parts = events_lib.totals(self.spans())
        last = events_lib.of_last_program(self.events)
        steps = events_lib.steps(last)
        return Attempt(
            root=self.root.name, kind=kind, phase=phase, code=self.child.returncode,
            folder=pathlib.Path(last[0]["folder"]).name if last else "",
            seconds=sum(parts.values()), dying=parts.get("ending", 0.0),
            idle=sum(parts.get(name, 0.0) for name in IDLE),
            resumed=steps[0] if steps else None, reached=steps[-1] if steps else None,
            silent=silent,
        )  # fmt: skip


def until(process, moment):
    """Waits for a moment (phase, seconds spent in it); False if it never came."""
    phase, seconds = moment
    while process.child.poll() is None:
        parts = process.spans()
        if parts[-1][0] == phase and events_lib.totals(parts)[phase] >= seconds:
            return True
        time.sleep(0.005)
    return False
