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
    close: Any  # (how it ended, of ENDS) -> None


ENDS = FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


def wandb(title, settings, kept):
    """Returns the Tracker of Weights & Biases; `kept` is its id of the run, or None."""
    library = importlib.import_module("wandb")
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=kept or secrets.token_hex(8),
        name=title,
        config=settings,
        resume="allow",
        reinit="create_new",  # programs of a grid are runs of one process
        settings=library.Settings(console="off"),  # progress lines are not for it
    )

    def close(how):
        if how == STOPPED:
            run.mark_preempting()
        run.finish(exit_code=0 if how == FINISHED else 1)

    return Tracker(run.id, lambda metrics, step: run.log(metrics, step=step), close)


def mlflow(title, settings, kept):
    """Returns the Tracker of MLflow; `kept` is its id of the run, or None."""
    library = importlib.import_module("mlflow")
    client = library.MlflowClient()
    if kept is not None and not _is_known(library, client, kept):
        print(f"run: MLflow does not know run {kept} any more: it gets another one", flush=True)
        kept = None
    if new := kept is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        where = known.experiment_id if known else client.create_experiment(name)
        kept = client.create_run(where, run_name=title).info.run_id
        params = [library.entities.Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(params), 100):  # as many as it takes at once
            client.log_batch(kept, params=params[first : first + 100])
    else:
        client.update_run(kept, status="RUNNING")
    logged = {}  # metric -> the last step that is there

    def is_news(name, step):
        if name not in logged:  # a run that goes on repeats what came after its checkpoint
            there = [] if new else client.get_metric_history(kept, name)
            logged[name] = max((one.step for one in there), default=-1)
        return step > logged[name]

    def log(metrics, step):
        now = int(time.time() * 1000)
        metric = library.entities.Metric
        news = {name: value for name, value in metrics.items() if is_news(name, step)}
        client.log_batch(kept, [metric(k, float(v), now, step) for k, v in news.items()])
        logged.update(dict.fromkeys(news, step))

    status = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}
    return Tracker(kept, log, lambda how: client.set_terminated(kept, status[how]))


def _is_known(library, client, name):
    """Whether MLflow has a run that was not deleted."""
    try:
        return client.get_run(name).info.lifecycle_stage == "active"
    except library.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


TRACKERS = {"wandb": wandb, "mlflow": mlflow}


def silent(metrics, step):
    """Tracks nothing."""
    del metrics, step


def check(choice):
    """Raises UserError for a tracker that is not known or not installed."""
    if choice == NONE:
        return
    if choice not in TRACKERS:
        raise errors.unknown("tracker", choice, [NONE, *TRACKERS])
    found = importlib.util.find_spec(choice)
    # without origin: a folder of that name, which wandb leaves where it ran
    if found is None or found.origin is None:
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
            f"--track={choice}: {errors.first_line(error)}; see to it, or leave --track out"
        ) from error
    storage.write_json(path, names | {choice: tracker.name})
    live = [tracker]

    def tell(call, *args):
        try:
            if live:
                call(*args)
        except Exception as error:  # a tracker must not cost a run
            live.clear()
            why = errors.first_line(error)
            print(f"\nrun: WARNING: {choice} failed ({why}); not tracked any more")
            with contextlib.suppress(Exception):
                tracker.close(FAILED)

    try:
        yield lambda metrics, step: tell(tracker.log, metrics, step)
    except BaseException as error:
        tell(tracker.close, FAILED if isinstance(error, Exception) else STOPPED)
        raise
    tell(tracker.close, FINISHED)
