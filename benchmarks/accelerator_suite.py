"""Every number that needs an accelerator, by one command, given again, of ten minutes at most.

On a machine with a GPU, Python 3.11 or newer and nothing else:

    pip install -r requirements.txt "jax[cuda12]" torch && python -m benchmarks.accelerator_suite

(on a TPU "jax[tpu]"; without torch its rows stay unknown). The work is cut into pieces, each a
process of its own that writes `OUT/PIECE.json` as soon as it is done. The same command skips the
pieces that are done, so it goes on where it was killed or ran out of time; a piece is only started
if the time left is what it may need. A piece that fails is recorded with its error and tried again
by the next command. `OUT/suite.json` sums up. On a CPU, `--small` tries everything out in seconds
a piece: its numbers mean nothing.

Exit codes: 0 all pieces are done, 1 a piece failed, 2 bad input, 4 pieces were left out for lack of
time, 42 interrupted.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from benchmarks import machine
from benchmarks.parent import die_with_parent
from experiments.cli import exit_codes
from gentle_jax import errors

PIECES = {  # name: (seconds that must be left to start it, what it measures)
    "gentle": (150, "GENTLE at paper shapes: 8 seeds beside one, beside PyTorch, 200,000 steps"),
    "behaviour": (70, "data of a MuJoCo family: SAC of preset `fast`, 40 tasks"),
    "scaling": (110, "GENTLE at paper shapes, 1 to 64 runs side by side"),
    "env_step": (90, "environment steps of MJX, 512 to 65,536 simulations"),
    "precision": (80, "GENTLE at paper shapes in every `train.precision`"),
    "ctmrl": (60, "CTMRL at paper shapes: 8 seeds beside one"),
    "command": (120, "a whole run, twice: compiling, the cache, the host, memory"),
    "loops": (230, "steps with loops in command buffers, and with a flat Adam"),
}
USUAL = tuple(piece for piece in PIECES if piece != "loops")  # that one gains nothing so far
DONE, FAILED, SKIPPED = "done", "failed", "skipped"
TAIL = 20  # lines of a failed piece's output that are kept


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    names = "; ".join(f"{name}: {text}" for name, (_, text) in PIECES.items())
    define(flags.DEFINE_list, "pieces", list(USUAL), names)
    define(flags.DEFINE_float, "minutes", 10.0, "time of this command")
    define(flags.DEFINE_boolean, "small", False, "tiny sizes: for tests, the numbers mean nothing")
    define(flags.DEFINE_string, "out", "benchmarks/results/accelerator", "folder to write to")
    define(flags.DEFINE_string, "piece", "", "internal: measure this piece in this process")
    return values


def command_of(piece, args):
    """Returns the command line of the process that measures one piece."""
    own = [f"--piece={piece}", f"--out={args.out}", *(["--small"] if args.small else [])]
    return [sys.executable, "-m", "benchmarks.accelerator_suite", *own]


def finished(piece, args):
    """Returns the record of a piece that is done at this size, or None."""
    path = Path(args.out) / f"{piece}.json"
    if not path.exists():
        return None
    record = machine.read(path)
    return record if record.get("status") == DONE and record.get("small") == args.small else None


def launch(piece, args, limit):
    """Measures a piece in a process of its own; returns its record, written to its file.

    Args: limit, seconds after which it is ended.
    """
    begin = time.perf_counter()
    failure = {"piece": piece, "status": FAILED, "small": args.small}
    try:
        process = subprocess.run(
            command_of(piece, args), capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        failure |= {"error": f"took longer than {limit:.0f} s", "tail": []}
    else:
        record = finished(piece, args)
        if process.returncode == 0 and record:
            return record
        tail = (process.stderr.strip() or process.stdout.strip()).splitlines()[-TAIL:]
        reason = tail[-1] if tail else "without a word"
        failure |= {"error": f"exit code {process.returncode}: {reason}", "tail": tail}
    failure["seconds"] = time.perf_counter() - begin
    machine.write(failure, Path(args.out) / f"{piece}.json")
    return failure


def measure_all(args, launch=launch):
    """Measures the pieces in turn while there is time; returns their records, in order."""
    begin, records = time.monotonic(), []
    for piece in args.pieces:
        needed, _ = PIECES[piece]
        needed = min(needed, 30) if args.small else needed
        left = 60.0 * args.minutes - (time.monotonic() - begin)
        record = finished(piece, args)
        if record:
            print(f"{piece}: done before", flush=True)
        elif left < needed:
            reason = f"{max(left, 0):.0f} s left, may need {needed} s"
            record = {"piece": piece, "status": SKIPPED, "small": args.small, "error": reason}
            print(f"{piece}: left out, {reason}; the same command goes on with it", flush=True)
        else:
            print(f"{piece}: {PIECES[piece][1]} ...", flush=True)
            record = launch(piece, args, left)
            reason = record.get("error", "")
            print(f"{piece}: {record['status']} in {record['seconds']:.0f} s {reason}", flush=True)
        records.append(record)
        summarise(records, args)  # now, too: this process may be killed
    return records


def summarise(records, args):
    """Writes suite.json: these records, those of other pieces done before, all bars; returns it."""
    known = {record["piece"]: record for record in records}
    records = [known.get(piece) or finished(piece, args) for piece in PIECES]
    records = [record for record in records if record]
    first = next((record for record in records if record["status"] == DONE), {})
    report = {
        **{name: first.get(name, {}) for name in ("machine", "versions", "date")},
        "small": args.small,
        "pieces": records,
        "bars": [bar for record in records for bar in record.get("bars", ())],
    }
    machine.write(report, Path(args.out) / "suite.json")
    return report


def measure_one(args):
    """Measures one piece in this process and writes its file."""
    die_with_parent()
    from benchmarks import accelerator_pieces  # starts nothing in the process that waits

    begin = time.perf_counter()
    record = accelerator_pieces.measure(args.piece, args.small)
    record["seconds"] = time.perf_counter() - begin
    machine.write({"piece": args.piece, "status": DONE, **record}, f"{args.out}/{args.piece}.json")


def check(args):
    """Raises UserError for flags that nothing could be measured with."""
    for name in [*args.pieces, *([args.piece] if args.piece else [])]:
        if name not in PIECES:
            raise errors.unknown("piece", name, PIECES)
    if not args.pieces:
        raise errors.UserError("--pieces needs a value: drop the empty flag")
    if not args.minutes > 0:
        raise errors.UserError(f"--minutes is {args.minutes:g}: expected more than 0")
    machine.check_writable(Path(args.out) / "suite.json")


def interrupt(*_):
    """Ends the command and the piece that is being measured."""
    raise KeyboardInterrupt


def run(args):
    """Measures what is left to measure and sums up; returns the exit code."""
    check(args)
    if args.piece:
        return measure_one(args)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        records = measure_all(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        return exit_codes.INTERRUPTED
    for bar in summarise(records, args)["bars"]:
        verdict = {True: "met", False: "MISSED", None: "unknown"}[bar["met"]]
        print(f"{verdict}: {bar['what']}: {json.dumps(bar['measured'])}, bar {bar['sense']} "
              f"{bar['bar']:g} {bar['unit']} ({bar['how']})")  # fmt: skip
    states = [record["status"] for record in records]
    if FAILED in states:
        return exit_codes.FAILED
    return exit_codes.LEFT_OUT if SKIPPED in states else exit_codes.DONE


def main(argv):
    """Runs the command; returns the exit code."""
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
