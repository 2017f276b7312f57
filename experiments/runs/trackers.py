"""Trackers of experiments beside metrics.jsonl and TensorBoard: `--track=wandb` or `mlflow`.

A tracker is a function (title, settings, kept) -> Tracker and a line of TRACKERS. The tracker's own
environment variables say where it writes (WANDB_MODE=offline, WANDB_PROJECT; MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME). track.json in the run folder keeps the tracker's name of the run, so that a
run that goes on is one run there, too.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import time
from typing import Any, NamedTuple

from gentle_jax import errors, json_files, storage

PROJECT = "gentle_jax"
FILE = "track.json"
NONE = "none"


class Tracker(NamedTuple):
    """A run at a tracker."""

    name: str  # what the tracker knows the run by
    log: Any  # ({metric: float}, step) -> None
    close: Any  # (whether the run finished) -> None


def wandb(title, settings, kept):
    """Returns the Tracker of Weights & Biases; `kept` is its id of the run, or None."""
    library = importlib.import_module("wandb")
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=kept or secrets.token_hex(8),
        name=title,
        config=settings,
        resume="allow",
        settings=library.Settings(console="off"),  # progress lines are not for it
    )
    log = lambda metrics, step: run.log(metrics, step=step)
    return Tracker(run.id, log, lambda finished: run.finish(exit_code=0 if finished else 1))


def mlflow(title, settings, kept):
    """Returns the Tracker of MLflow; `kept` is its id of the run, or None."""
    library = importlib.import_module("mlflow")
    client, name = library.MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    if kept is None:
        known = client.get_experiment_by_name(name)
        where = known.experiment_id if known else client.create_experiment(name)
        kept = client.create_run(where, run_name=title).info.run_id
        for key, value in settings.items():
            client.log_param(kept, key, value)
    else:
        client.update_run(kept, status="RUNNING")

    def log(metrics, step):
        now = int(time.time() * 1000)
        metric = library.entities.Metric
        client.log_batch(kept, [metric(k, float(v), now, step) for k, v in metrics.items()])

    end = lambda finished: client.set_terminated(kept, "FINISHED" if finished else "FAILED")
    return Tracker(kept, log, end)


TRACKERS = {"wandb": wandb, "mlflow": mlflow}


def silent(metrics, step):
    """Tracks nothing."""
    del metrics, step


def check(choice):
    """Raises UserError for a tracker that is not known or not installed."""
    if choice != NONE and choice not in TRACKERS:
        raise errors.unknown("tracker", choice, [NONE, *TRACKERS])
    found = None if choice == NONE else importlib.util.find_spec(choice)
    # without origin: a folder of that name, which wandb leaves where it ran
    if choice != NONE and (found is None or found.origin is None):
        raise errors.UserError(
            f"--track={choice} needs a package that is not installed: "
            f'pip install "gentle_jax[{choice}]" (in a checkout: pip install {choice}), or leave '
            "--track out"
        )


def flat(settings, prefix=""):
    """Returns {dotted key: text, number or truth} of nested dicts."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            found[prefix + key] = value if plain else json.dumps(value, default=str)
    return found


@contextlib.contextmanager
def tracked(choice, folder, title, settings):
    """Opens a run at a tracker; gives track({metric: float}, step), which never ends a run.

    Args: choice, of TRACKERS or NONE; folder, of the run; title, of the run there; settings, nested
    dicts. Raises UserError where the tracker refuses at the start; once the run trains, a failure
    is a warning, and the rest is not tracked.
    """
    if choice == NONE:
        yield silent
        return
    path, names = folder / FILE, {}
    # not there, or damaged: a new run at the tracker
    with contextlib.suppress(OSError, ValueError, TypeError):
        names = dict(json_files.read(path))
    try:
        tracker = TRACKERS[choice](title, flat(settings), names.get(choice))
    except Exception as error:  # of a library that is not ours: no login, no server, bad settings
        raise errors.UserError(
            f"--track={choice}: {first_line(error)}; see to it, or leave --track out"
        ) from error
    storage.write_json(path, names | {choice: tracker.name})
    live = [tracker]

    def tell(call, *args):
        try:
            if live:
                call(*args)
        except Exception as error:  # a tracker must not cost a run
            live.clear()
            print(f"\nrun: WARNING: {choice} failed ({first_line(error)}); not tracked any more")

    try:
        yield lambda metrics, step: tell(tracker.log, metrics, step)
    except BaseException:
        tell(tracker.close, False)
        raise
    tell(tracker.close, True)


def first_line(error):
    """Returns what an error says, its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
