"""Run folders that are not on a local disk: `--out=gs://bucket/runs`, any URL of `etils.epath`.

Object stores have no appending, no renaming and no locks, so a run works in a local folder that is
mirrored to its URL: in the background after every checkpoint, and whole at the end. `mirror.json`
is written last each time and names the files of a consistent state, from which another machine
resumes. There is no lock between machines: never give one command to two of them at once.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import threading
import time

from etils import epath

from gentle_jax import config as config_lib
from gentle_jax import errors

from ..host import computer

# scheme -> the package that reads and writes it
CLIENTS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
STATE, LAST = "mirror.json", ("summary.json",)
DAMAGED = "checkpoints_damaged"  # where `gentle_jax.checkpoint` moves those that cannot be read
PRIVATE = (".lock", ".write_test", ".snapshot", "checkpoints", DAMAGED, STATE)
KEPT = 2  # checkpoints at the URL: a damaged newest one falls back to the one before
EVERY = 2.0  # seconds between looks for a new checkpoint
TRIES, PAUSE = 3, 5.0  # of the last upload, seconds between


def is_remote(text):
    """Whether a path is a URL rather than a folder of this machine."""
    return "://" in str(text)


def path(text, used=True):
    """Returns a path: pathlib's here, epath's for a URL; raises UserError for one of no use.

    Args: used, whether this process will read or write there.
    """
    text = str(text)
    if not is_remote(text):
        return pathlib.Path(text)
    scheme = text.partition("://")[0]
    if scheme not in CLIENTS:
        known = ", ".join(f"{name}://" for name in CLIENTS)
        raise errors.UserError(
            f"{text} is of an unknown kind ({scheme}://): expected a folder, or one of {known}"
        )
    if used and not installed(CLIENTS[scheme]):
        raise errors.UserError(
            f"{scheme}:// needs the package {CLIENTS[scheme]}: install it with "
            f"`python -m pip install {CLIENTS[scheme]}`, or pass a folder"
        )
    return epath.Path(text)


def installed(package):
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def copy_tree(local, folder, last=()):
    """Copies the files of a local folder into another one, here or not.

    Args: last, names of files that are copied after all the others, in this order.
    """
    paths = sorted(path for path in local.rglob("*") if path.is_file())
    names = [path.relative_to(local).as_posix() for path in paths]
    for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
        copy_file(local / name, folder / name)


def copy_file(source, target):
    """Copies one file, here or not; makes the target's folder, which object stores do not have."""
    if isinstance(target, pathlib.Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def move_tree(folder, target, first=()):
    """Moves the files of a folder at a URL into another one there: none goes before all are copied.

    Args: first, names of files that go before the others, in this order.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in files_below(folder))
    for name in names:
        copy_file(folder / name, target / name)
    for name in sorted(names, key=lambda name: first.index(name) if name in first else len(first)):
        (folder / name).unlink()


def files_below(folder):
    """Yields the files below a folder, here or not."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def work_folder(folder):
    """Returns the local folder in which this machine works for a URL; UserError without a home."""
    home = computer.cache_folder()
    if home is None:
        raise errors.UserError(
            f"a run at {folder} works in a local folder first, and there is no home folder: set "
            f"XDG_CACHE_HOME to a folder of this machine"
        )
    return home / "work" / config_lib.fingerprint(str(folder))


def steps_in(local):
    """Returns the steps of the whole checkpoints in a run folder, oldest first."""
    folder = local / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def mark_of(local, step):
    """Returns what tells a checkpoint from another one of that step, None where there is none."""
    try:
        stat = (local / "checkpoints" / str(step)).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def files_in(local):
    """Returns the names of what belongs to a run beside its checkpoints, summary.json last."""
    paths = (path.relative_to(local) for path in local.rglob("*") if path.is_file())
    names = [n.as_posix() for n in paths if n.parts[0] not in PRIVATE and n.suffix != ".tmp"]
    return sorted(names, key=lambda name: (name in LAST, name))


class Mirror:
    """A run folder's local working folder and its URL; without a URL it does nothing.

    As a context it fetches what is at the URL, uploads every new checkpoint, and leaves all of the
    run there. Holds the thread that uploads, hence a class.
    """

    def __init__(self, folder):
        self.target = folder if is_remote(folder) else None
        self.local = pathlib.Path(folder) if self.target is None else work_folder(folder)
        self._sent, self._lock = {}, threading.Lock()
        # checkpoints at the URL: {step: files} and {step: mark}; every file of one, also of others
        self._steps, self._marks, self._there = {}, {}, set()
        self._stop, self._thread = threading.Event(), None

    def __enter__(self):
        if self.target is not None:
            self._check()
            print(f"run: working in {self.local}, mirrored to {self.target}", flush=True)
            self._pull()
            self.push()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def push(self):
        """Uploads what is there now and not yet at the URL."""
        with self._lock:
            if self.target is not None:
                self._sync()

    def __exit__(self, kind, error, trace):
        """Uploads the rest; a finished run's working folder is removed then."""
        if self.target is None:
            return
        self._stop.set()
        self._thread.join()
        for attempt in range(TRIES):
            try:
                self.push()
                break
            except Exception as failure:  # each store has errors of its own
                if attempt < TRIES - 1:
                    time.sleep(PAUSE)
                    continue
                text = f"cannot write to {self.target} ({brief(failure)}): the run is kept in "
                text += f"{self.local}, the same command uploads it"
                if kind is None:
                    raise errors.UserError(text) from None
                print(f"run: {text}")
        if kind is None:
            shutil.rmtree(self.local, ignore_errors=True)

    def _watch(self):
        """Uploads after every new checkpoint, until the context ends."""
        failed = False
        while not self._stop.wait(EVERY):
            if not failed and self._new_step() is None:
                continue
            try:
                self.push()
                failed = False
            except Exception as failure:  # the store may be back later
                if not failed:
                    print(f"run: cannot write to {self.target} ({brief(failure)}), going on")
                failed = True

    def _check(self):
        """Raises UserError unless the URL can be written to."""
        try:
            probe = self.target / ".write_test"
            probe.write_bytes(b"x")
            probe.unlink()
        except Exception as failure:  # each store has errors of its own
            raise errors.UserError(
                f"cannot write to {self.target} ({brief(failure)}): pass another --out"
            ) from None

    def _pull(self):
        """Makes the working folder what the URL has, unless it is ahead of it."""
        listing = self.target / STATE
        listed = listing.exists()
        state = json.loads(listing.read_text()) if listed else {"files": [], "steps": {}}
        self._steps = {int(step): names for step, names in state["steps"].items()}
        self._there = {name for names in self._steps.values() for name in names}
        self._sent = {STATE: state} if listed else {}
        if listed and max(steps_in(self.local), default=-1) > max(self._steps, default=-1):
            return
        for entry in self.local.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for name in [*state["files"], *sorted(self._there)]:
            copy_file(self.target / name, self.local / name)
        self._marks = {step: mark_of(self.local, step) for step in self._steps}

    def _new_step(self):
        """Returns the newest checkpoint's step if it is not at the URL as it is here, else None."""
        newest = max(steps_in(self.local), default=None)
        mark = None if newest is None else mark_of(self.local, newest)
        return None if mark is None or self._marks.get(newest) == mark else newest

    def _sync(self):
        """Uploads the newest checkpoint, then all that changed, then the list of it."""
        newest = self._new_step()
        if newest is not None:
            self._replace(newest)
        names = files_in(self.local)  # after the checkpoint: metrics must reach as far
        for name in names:
            stat = (self.local / name).stat()
            seen = (stat.st_size, stat.st_mtime_ns)
            if self._sent.get(name) != seen:
                copy_file(self.local / name, self.target / name)
                self._sent[name] = seen
        self._write_state(names)
        named = {name for names in self._steps.values() for name in names}
        for name in sorted(self._there - named):  # those of a sync that failed too
            (self.target / name).unlink(missing_ok=True)
            self._there.remove(name)

    def _replace(self, newest):
        """Uploads a checkpoint, and drops those that it makes superfluous from the list."""
        mark, steps = mark_of(self.local, newest), steps_in(self.local)
        aside = lambda step: step not in steps and (self.local / DAMAGED / str(step)).exists()
        kept = {k: v for k, v in self._steps.items() if k < newest and not aside(k)}
        if newest in self._steps:  # set aside as damaged, and saved again: never half of each
            self._steps = kept
            self._write_state(self._sent[STATE]["files"])
        names = self._upload_step(newest)
        self._steps = dict(sorted({**kept, newest: names}.items())[-KEPT:])
        self._marks[newest] = mark

    def _write_state(self, names):
        """Writes what is at the URL. Args: names, of files beside the checkpoints."""
        state = {"files": names, "steps": {str(k): v for k, v in self._steps.items()}}
        if self._sent.get(STATE) != state:
            (self.target / STATE).write_text(json.dumps(state))
            self._sent[STATE] = state

    def _upload_step(self, step):
        """Uploads a checkpoint; returns its files. Orbax may delete it in the meantime."""
        snapshot = self.local / ".snapshot"
        shutil.rmtree(snapshot, ignore_errors=True)
        source = self.local / "checkpoints" / str(step)
        shutil.copytree(source, snapshot, copy_function=_link)
        files = sorted(path for path in snapshot.rglob("*") if path.is_file())
        names = []
        for file in files:
            names.append(f"checkpoints/{step}/{file.relative_to(snapshot).as_posix()}")
            self._there.add(names[-1])
            copy_file(file, self.target / names[-1])
        shutil.rmtree(snapshot)
        return names


def _link(source, target):
    """Hard-links a file, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def brief(failure):
    """Returns an exception as a few words."""
    lines = str(failure).splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0][:120]}"
