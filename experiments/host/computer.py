"""This machine: compile cache, versions, memory, free space."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import threading

import jax

from experiments.host import hosts
from gentle_jax import errors

try:
    import fcntl
except ImportError:  # not on this system: two processes in one folder are not noticed
    fcntl = None

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "orbax-checkpoint", "mujoco",
            "mujoco-mjx", "brax")  # fmt: skip


def start(multihost=False):
    """Sets JAX up for a command, before it starts: compilation cache, a device for each core.

    Args: multihost, whether to join the other processes of `--multihost`.
    """
    enable_compile_cache()
    use_all_cores()
    if not os.environ.get("JAX_DEFAULT_MATMUL_PRECISION"):  # GPUs and TPUs would round physics too
        jax.config.update("jax_default_matmul_precision", "highest")
    if multihost:
        hosts.start()


def enable_compile_cache():
    """Turns on JAX's persistent compilation cache, unless the user has set one up."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    jax.config.update("jax_compilation_cache_dir", os.path.join(home, "gentle_jax", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_all_cores():
    """Makes every CPU core a device of JAX, so that runs are split over cores as over GPUs.

    Does nothing where JAX has started, or where XLA_FLAGS asks for a number of devices. Two cores
    with a device each train eight runs 1.2 times as fast as one device with two threads.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # raised once JAX has started
        jax.config.update("jax_num_cpu_devices", cores())


def cores():
    """Returns the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    """Returns versions, device and commit: what a result depends on beside its config."""
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
        "commit": _commit(),
    }


def _commit():
    here = pathlib.Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None


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


def prepare_folder(path, needed_bytes, flag):
    """Creates a folder and checks that it can be written and has room; raises UserError if not."""
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write_test"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
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
def alone(folder):
    """Holds a folder for this process; raises UserError while another one works in it."""
    path = pathlib.Path(folder) / ".lock"
    with open(path, "w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.UserError(
                f"another process works in {folder}: wait until it ends, or change a setting"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield  # the end of the process frees the lock, whatever ends it
        finally:
            path.unlink(missing_ok=True)


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
