"""A run in a process of its own, which phase it is in, and its end by a signal: for `soak`."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

KINDS = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
GRACE = 180.0  # seconds that a process has to end after SIGTERM
TRAINING = "training or evaluation"  # they take turns, and no output tells when
PHASES = ("start-up", "collection", "compile", TRAINING, "results")
IDLE = ("start-up", "compile")  # nothing is gained in them
# what a line of output says about the phase that begins with it; the first match counts
SIGNS = (
    (r"data: making", "compile"),  # of the programs that collect
    (r"data: compiled", "collection"),
    (r"collect: (\d+)/\1\b", "compile"),
    (r"data: (reusing|taking)", "compile"),
    (r"compile: \d+ programs", TRAINING),
    (r"run: writing results", "results"),
    (r"compile:", "compile"),
    (r"grid: program", "start-up"),
)
FOLDER = r"^run: protocols .*; folder (.*)$"


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
    reached: int | None = None  # the last training step that it logged
    lost: int = 0  # training steps that a later attempt had to do again
    silent: bool = False  # whether it had said nothing when the signal came


class Process:
    """A run in a process of its own, and what it has told so far. Holds a thread, hence a class."""

    def __init__(self, command, root, log):
        self.root = pathlib.Path(root)
        roots = [f"--data={self.root / 'data'}", f"--out={self.root / 'out'}"]
        self.phase, self.spans, self.lines = "start-up", [], []
        self.begin = self.since = time.monotonic()
        self.child = subprocess.Popen(
            [*command, *roots],
            cwd=pathlib.Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self.reader.start()

    def _read(self, log):
        with open(log, "a") as file, self.child.stdout as told:
            for line in told:
                file.write(line)
                file.flush()
                self.lines.append(line)
                found = next((phase for sign, phase in SIGNS if re.match(sign, line)), None)
                if found and found != self.phase and self.phase != "ending":
                    self._enter(found)

    def _enter(self, phase):
        now = time.monotonic()
        self.spans.append((self.phase, now - self.since))
        self.phase, self.since = phase, now

    def folder(self):
        """Returns the run folder that is worked in, or None before there is one."""
        told = [re.search(FOLDER, line) for line in self.lines[:]]
        told = [pathlib.Path(found[1].strip()) for found in told if found]
        return told[-1] if told else None

    def reached(self):
        """Returns the last training step that was logged, None before the first."""
        folder = self.folder()
        return None if folder is None else last_step(folder / "metrics.jsonl")

    def finish(self, kind=""):
        """Sends the signal of that kind, waits for the end; returns the Attempt."""
        phase, told, silent = "", time.monotonic(), False
        if kind and self.child.poll() is None:
            phase, silent = self.phase, not self.lines
            self._enter("ending")
            self.child.send_signal(KINDS[kind])
        else:
            kind = ""
        try:
            self.child.wait(GRACE if kind else None)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        end = time.monotonic()
        self.reader.join()
        self._enter("ending")
        return Attempt(
            root=self.root.name, kind=kind, phase=phase, code=self.child.returncode,
            folder=self.folder().name if self.folder() else "",
            seconds=end - self.begin, dying=end - told if kind else 0.0,
            idle=sum(seconds for phase, seconds in self.spans if phase in IDLE),
            resumed=resumed_at(self.lines), reached=self.reached(), silent=silent,
        )  # fmt: skip


def last_step(path):
    """Returns the step of the last whole line of metrics.jsonl, or None without one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 65_536, 0))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1])["step"]
    except (OSError, ValueError, IndexError, KeyError):
        return None


def resumed_at(lines):
    """Returns the training step that a process went on from; None if it did not come to train."""
    resumed, compiled = None, False
    for line in lines:
        if re.search(FOLDER, line):  # a queue's next program
            resumed, compiled = None, False
        found = re.match(r"run: resuming after step (\d+)", line)
        compiled = compiled or bool(re.match(r"compile: \d+ programs", line))
        if found:
            resumed = int(found[1])
        elif compiled and resumed is None and re.match(r"\w+: \d+/\d+, ", line):
            resumed = 0  # its first progress
    return resumed


def until(process, moment):
    """Waits for a moment (phase, share of its usual length in seconds); False if it never came."""
    phase, seconds = moment
    entered = None
    while process.child.poll() is None:
        if entered is None and process.phase == phase:
            entered = time.monotonic()
        if entered is not None and time.monotonic() - entered >= seconds:
            return True
        time.sleep(0.005)
    return False
