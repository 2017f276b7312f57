"""What a run does and since when, for programs: `--events=FILE` gets a JSON line for each event.

A line is {"time": seconds since 1970, "phase": one of PHASES, ...}. The phase goes on until the
next line. Lines of `start-up` have "folder", the run folder of the program that begins; those of
`collection` have "compile_seconds" of the programs that collect; those of `training` and
`evaluation` have "step", the training steps that are done (the first one after a `start-up`: the
step that the run goes on from). Several commands may append to one file, one after the other.
"""

import json
import os
import pathlib
import time

from gentle_jax import errors

TRAINING, EVALUATION = "training", "evaluation"
PHASES = ("start-up", "collection", "compile", TRAINING, EVALUATION, "results")


def silent(phase, **more):
    """Tells nobody: the `tell` of a run without --events."""
    del phase, more


def writer(path):
    """Returns `tell`, a function (phase, **more) that appends a line to a file at once.

    Raises UserError for a file that cannot be written.
    """
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")  # a process was killed in the middle of a line
    except OSError as error:
        raise errors.UserError(
            f"cannot write to {path}: {error.strerror or error}; pass another --events"
        ) from None

    def tell(phase, **more):
        line = json.dumps({"time": time.time(), "phase": phase, **more}) + "\n"
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode())  # one call: a line is there, or it is not

    return tell


def _ends_a_line(file):
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


class Reader:
    """Reads a file of events while it grows. Holds a position in it, hence a class."""

    def __init__(self, path):
        self.path, self.position = pathlib.Path(path), 0

    def read(self):
        """Returns the events since the last call; lines that are cut or bad are left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                text = file.read()
        except FileNotFoundError:  # nothing was told yet
            return []
        lines = text[: text.rfind(b"\n") + 1]  # the rest is still being written
        self.position += len(lines)
        return [event for line in lines.splitlines() if (event := parse(line)) is not None]


def parse(line):
    """Returns the event of a line, or None for a line that is none."""
    try:
        event = json.loads(line)
        known = event["phase"] in PHASES and isinstance(event["time"], int | float)
    except (ValueError, TypeError, KeyError):
        return None
    return event if known else None


def spans(events, begin, end):
    """Returns [(phase, seconds)] from `begin` to `end`, times as in events; the first: start-up."""
    parts, phase, since = [], "start-up", begin
    for event in events:
        if event["phase"] != phase:
            parts.append((phase, event["time"] - since))
            phase, since = event["phase"], event["time"]
    return [*parts, (phase, max(end - since, 0.0))]


def totals(parts):
    """Returns {phase: seconds} of spans: a phase may come several times."""
    seconds_in = {}
    for phase, seconds in parts:
        seconds_in[phase] = seconds_in.get(phase, 0.0) + seconds
    return seconds_in


def of_last_program(events):
    """Returns the events since the last program of a queue began."""
    starts = [i for i, event in enumerate(events) if "folder" in event]
    return events[starts[-1] :] if starts else events


def steps(events):
    """Returns the training steps that events tell, in order."""
    return [event["step"] for event in events if "step" in event]
