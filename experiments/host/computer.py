"""This machine: compile cache, versions, memory, free space."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import tempfile
import threading
import time

import jax

import gentle_jax
from gentle_jax import errors, presets

from . import hosts, switches

try:
    import fcntl
except ImportError:  # not on this system: two processes in one folder are not noticed
    fcntl = None

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "orbax-checkpoint", "mujoco",
            "mujoco-mjx", "brax")  # fmt: skip
TRIES = 1000  # to lock the file that is at a path
PAUSE = 1.0  # seconds between looks at a folder that another process has


def start(multihost=False, require="", deterministic=False):
    """Sets JAX up for a command and starts it: switches, compilation cache, a device for each core.

    Args: multihost, whether to join the other processes of `--multihost`; require, the kind of
    device that there must be, as `--require`; deterministic, as `--deterministic`. Raises UserError
    for what is not there.
    """
    if deterministic:
        switches.make_deterministic()
    switches.pin()
    enable_compile_cache()
    use_all_cores()
    if multihost:
        hosts.start()
    switches.start_backend()
    switches.require(require)


def enable_compile_cache():
    """Turns on JAX's persistent compilation cache, unless the user has set one up."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = cache_folder()
    if folder is None:
        print("compile: there is no home folder, so nothing is kept: set XDG_CACHE_HOME to one")
        return
    try:
        probe(folder / "xla")
    except OSError as error:
        what = f"{folder} cannot be written ({error.strerror})"
        print(f"compile: {what}, so nothing is kept: set XDG_CACHE_HOME to a folder that can")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_folder():
    """Returns the folder of what may be kept between commands, None where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # others mean nothing, by the convention that names the variable
        home = os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home) / "gentle_jax" if os.path.isabs(home) else None


def use_all_cores():
    """Makes every CPU core a device of JAX, so that runs are split over cores as over GPUs.

    Does nothing where JAX has started, or where XLA_FLAGS or JAX_NUM_CPU_DEVICES ask for a number
    of devices. Two cores with a device each train eight runs 1.2 times as fast as one device with
    two threads.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or os.environ.get("JAX_NUM_CPU_DEVICES"):
        return
    with contextlib.suppress(RuntimeError):  # raised once JAX has started
        jax.config.update("jax_num_cpu_devices", cores())


def cores():
    """Returns the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def light_compiling(preset):
    """Within it XLA does less for programs of a preset that compile for longer than they run.

    On CPUs only: of other devices nothing was measured.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    short = preset in presets.COMPILED_LIGHTLY and jax.default_backend() == "cpu"
    jax.config.update("jax_disable_most_optimizations", before or short)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def count_cache_hits():
    """Returns a list that grows with every program that JAX takes from the cache.

    Each entry is the thread that compiled it: several programs compile at once.
    """
    hits = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(threading.get_ident())

    jax.monitoring.register_event_listener(listen)
    return hits


def cached_programs():
    """Returns how many programs the compilation cache holds."""
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir or "")
    return len(list(folder.glob("*-cache"))) if folder.is_dir() else 0


def on_accelerator():
    """Whether JAX's default device is not a CPU."""
    return jax.default_backend() != "cpu"


def environment():
    """Returns versions, devices, switches and commit: what a result depends on beside its config.

    The commit is None where the code is in no repository of ours: then the version says it.
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": f"{device.platform}: {device.device_kind}",
        "device_count": jax.device_count(),
        "processor": switches.processor(),
        "jax_config": switches.recorded(),
        "xla_flags": switches.xla_flags(),
        "version": gentle_jax.__version__,
        "commit": _commit(),
    }


def _commit(here=pathlib.Path(__file__)):
    """Returns the commit of the repository whose root is ours; None in any other one, or in none.

    Args: here, this file, which tells where our root is.
    """
    root = here.resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=plain
        )
        top, commit = process.stdout.splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return commit if pathlib.Path(top).resolve() == root else None


def available_bytes():
    """Returns the memory that is free on the device, or None where it cannot be known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(sizes[0]) * 1024 if sizes else None


def peak_bytes():
    """Returns the peak memory of the device (GPU, TPU) or of this process (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(
        stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    )


def probe(path):
    """Creates a folder and writes a file there, which is gone afterwards; raises OSError."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path, prefix=".write_test") as file:  # a file of its own
        file.write(b"x" * 4096)


def prepare_folder(path, needed_bytes, flag):
    """Creates a folder and checks that it can be written and has room; raises UserError if not."""
    path = pathlib.Path(path)
    try:
        probe(path)
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise errors.UserError(
            f"cannot write to {path}: {error.strerror or error}; pass another {flag}"
        ) from None
    if free < needed_bytes:
        raise errors.UserError(
            f"{path} has {free / 1e6:.0f} MB free, about {needed_bytes / 1e6:.0f} MB are needed: "
            f"make room, or pass another {flag}"
        )


@contextlib.contextmanager
def alone(folder, waiting=""):
    """Holds a folder for this process; raises UserError while another one works in it.

    Args: waiting, a sentence: instead of the error it is printed, and the other one waited for.
    """
    path = pathlib.Path(folder) / ".lock"
    with _locked(path, waiting) as file:
        try:
            yield  # the end of the process frees the lock, whatever ends it
        finally:
            if _is_at(file, path):  # else the folder was moved, and another may be in its place
                path.unlink()


@contextlib.contextmanager
def _locked(path, waiting):
    """Yields the open file at `path`, locked; waits for another process, or raises UserError.

    Who leaves removes the file. A lock of a file that is not there any more holds nothing: whoever
    comes next makes a new one. So what was locked must be what is at the path.
    """
    moved, told = 0, False
    while True:
        with _opened(path) as file:
            free = _lock(file)
            if not _is_at(file, path) and moved < TRIES - 1:  # at last: files without numbers
                moved += 1
                continue
            if free:
                yield file
                return
        if not waiting:
            raise errors.UserError(
                f"another process works in {path.parent}: wait until it ends, or change a setting"
            )
        if not told:
            print(waiting, flush=True)
        told = True
        time.sleep(PAUSE)


def _opened(path):
    """Returns the open file of a lock; raises UserError where its folder is gone."""
    try:
        return open(path, "w")
    except FileNotFoundError:
        raise errors.UserError(
            f"{path.parent} is gone, another process has moved it: give the command again"
        ) from None


def _lock(file):
    """Locks a file, or returns False if another process has. True where there are no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _is_at(file, path):
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk_may_fill(folder):
    """Turns whatever a full disk raises into a UserError that names the folder being written."""
    try:
        yield
    except errors.UserError:
        raise  # it has been told already, perhaps of another folder
    except Exception as error:  # libraries wrap the system's error in types of their own
        if full_disk(error):
            raise errors.UserError(
                f"no space left in {folder}: make room and give the same command again, it resumes "
                f"from the last checkpoint"
            ) from error
        raise


def full_disk(error):
    """Whether an exception, or one that it came from, says that there is no space left."""
    while error is not None:
        text = str(error)
        if getattr(error, "errno", None) in (27, 28, 122) or "No space left" in text:
            return True
        if "RESOURCE_EXHAUSTED" in text and "disk" in text.lower():
            return True
        error = error.__cause__ or error.__context__
    return False
