"""What benchmarks share: their command line, the machine, its matrix-product rate, products."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import platform
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import Literal, Var

from experiments.cli import exit_codes
from experiments.host import switches
from experiments.host.computer import cores
from gentle_jax import errors, sweep

PHYSICS = ("mujoco", "mujoco-mjx", "brax")  # packages whose versions every report names


def _cpu_model():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe(torch=None):
    """Returns {"machine", "versions", "date"}. Args: torch, the module, or None where missing."""
    return {
        "machine": {
            "cpu": _cpu_model(),
            "cores": cores(),
            "device": jax.devices()[0].device_kind,
            "backend": jax.default_backend(),
            "xla_flags": switches.xla_flags(),
            "xla_options": sweep.device_options(),  # of our programs
        },
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "torch": torch.__version__ if torch else None,
            **{name: importlib.metadata.version(name) for name in PHYSICS},
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def check_writable(out):
    """Raises UserError unless the file `out` can be written, before measurements could be lost."""
    if Path(out).is_dir():
        raise errors.UserError(f"--out={out} is a folder: expected the name of a JSON file")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        existed = Path(out).exists()
        with open(out, "a"):
            pass
        if not existed:
            Path(out).unlink()  # an empty report would be a broken one
    except OSError as error:
        raise errors.UserError(f"--out={out} cannot be written: {error.strerror}") from error


def write(report, out):
    """Writes a report as JSON; a kill leaves the file as it was, or whole."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n")
    part.replace(path)


def read(path):
    """Returns a report; raises UserError if the file cannot be read or holds no JSON object."""
    try:
        report = json.loads(Path(path).read_text())
    except OSError as error:
        raise errors.UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise errors.UserError(f"{path} is not JSON ({error}): measure anew") from error
    if not isinstance(report, dict):
        raise errors.UserError(f"{path} holds no JSON object: measure anew")
    return report


def whole_numbers(flag, texts):
    """Returns the numbers of a list flag; raises UserError unless all are whole and 1 or more."""
    for text in texts:
        if not text.isdigit() or int(text) < 1:
            raise errors.UserError(
                f"--{flag} has {text!r}: expected whole numbers from 1, such as --{flag}=1,8"
            )
    return [int(text) for text in texts]


def bar_row(bars, name, measured, how, source):
    """Returns the row of one bar that the project has set itself.

    Args: bars, {name: (what, "<=" or ">=", bar, unit)}; measured, a number, or None where it is not
    known; how it was measured; source, the report that it comes from.
    """
    what, sense, bar, unit = bars[name]
    met = None
    if measured is not None:
        met = bool(measured <= bar if sense == "<=" else measured >= bar)
    return {
        "name": name,
        "what": what,
        "measured": measured,
        "sense": sense,
        "bar": bar,
        "unit": unit,
        "ratio_to_bar": None if measured is None else measured / bar,
        "met": met,
        "how": how,
        "source": source,
    }


def aligned(lines):
    """Returns lines of cells (the first is the heading) as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


@contextlib.contextmanager
def _cache_settings(**settings):
    """Sets options of JAX's persistent compilation cache, and afterwards those that there were."""
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def no_cache():
    """Context: nothing is read from the persistent compilation cache, nothing written to it."""
    return _cache_settings(jax_enable_compilation_cache=False)


@contextlib.contextmanager
def empty_cache(min_seconds=0.0):
    """Uses an empty persistent compilation cache, and afterwards the one that there was.

    Args: min_seconds, what compiles faster is not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"jax_compilation_cache_dir": folder}
        options["jax_persistent_cache_min_compile_time_secs"] = min_seconds
        with _cache_settings(jax_enable_compilation_cache=True, **options):
            yield


def command(argv, values, run, text):
    """Runs `run(values)` with the flags of a command line; returns the exit code: its own, or 0.

    Bad input is one line and code 2; --help prints `text` and the flags.
    """
    if any(word in ("-h", "--help", "-help") for word in argv[1:]):
        print(f"{text}\n{values.get_help()}")
        return exit_codes.DONE
    try:
        rest = values(argv)[1:]
        if rest:
            raise errors.UserError(f"unexpected argument {rest[0]!r}: expected only --flag=value")
        return run(values) or exit_codes.DONE
    except (errors.UserError, flags.Error) as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return exit_codes.USAGE


def seconds(call):
    """Returns the wall clock of `call()`, whose result is waited for."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def product_rate(batch, m, k, n, repeats=5):
    """Returns the best GFLOP/s of float32 products [batch, m, k] x [batch, k, n], called alone.

    Calls are queued until they take some 20 ms, so that small shapes do not measure dispatch.
    """
    keys = jax.random.split(jax.random.key(0))
    lead = () if batch == 1 else (batch,)
    left = jax.random.normal(keys[0], (*lead, m, k))
    right = jax.random.normal(keys[1], (*lead, k, n))
    multiply = jax.jit(jnp.matmul)
    flops = 2.0 * batch * m * k * n
    jax.block_until_ready(multiply(left, right))
    once = max(seconds(lambda: multiply(left, right)), 1e-7)
    calls = max(1, min(math.ceil(0.02 / once), 200))
    times = [seconds(lambda: [multiply(left, right) for _ in range(calls)]) for _ in range(repeats)]
    return calls * flops / min(times) / 1e9


def square_rate(size=0):
    """Returns GFLOP/s of a large square float32 product: 2048 on a CPU, 8192 elsewhere."""
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    return product_rate(1, size, size, size)


def jaxprs_in(params):
    """Yields the jaxprs among an equation's parameters, without their constants."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns"):
                yield part
            elif hasattr(part, "jaxpr"):
                yield part.jaxpr


def _dot_shape(eqn):
    (contract, _), (batched, _) = eqn.params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    batch = math.prod(left[i] for i in batched)
    k = math.prod(left[i] for i in contract)
    return batch, math.prod(left) // (batch * k), k, math.prod(right) // (batch * k)


def products(jaxpr, known):
    """Returns ({(batch, m, k, n): count} of a jaxpr's matrix products, [known results]).

    Args: known, one value per input: a number, or None where it is not known. Every scalar that
    follows from known numbers is computed, so a `cond` on the step's index counts the branch
    taken, and only that one; a `cond` on data counts its largest branch, a `scan` its length times
    its body, a `while` (no known length) its body once. This is what the program asks for: XLA may
    merge equal products or drop unused ones, so the work done may be less, never more.
    """
    counts, values = {}, dict(zip(jaxpr.invars, known, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values.get(atom)

    def add(inner, known, times=1):
        inside, results = products(inner, known)
        for shape, count in inside.items():
            counts[shape] = counts.get(shape, 0) + times * count
        return results

    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, list(jaxprs_in(eqn.params))
        inputs, results = [read(v) for v in eqn.invars], []
        unknown = lambda body: [None] * len(body.invars)
        if name == "dot_general":
            shape = _dot_shape(eqn)
            counts[shape] = counts.get(shape, 0) + 1
        elif name == "cond":
            if inputs[0] is None:
                inner.sort(key=lambda b: flops(products(b, unknown(b))[0]))
                branch = inner[-1]
            else:
                branch = inner[int(np.clip(int(inputs[0]), 0, len(inner) - 1))]
            results = add(branch, inputs[1:])
        elif name == "scan":
            add(inner[0], unknown(inner[0]), eqn.params["length"])
        elif inner:
            for body in inner:
                plain = len(body.invars) == len(inputs)  # a plain call: values pass through
                results = add(body, inputs if plain else unknown(body))
        elif inputs and all(v is not None and np.ndim(v) == 0 for v in inputs):
            out = eqn.primitive.bind(*inputs, **eqn.params)
            results = out if eqn.primitive.multiple_results else [out]
        for var, value in zip(eqn.outvars, results, strict=False):  # none where unknown
            if isinstance(var, Var) and np.ndim(value) == 0:
                values[var] = value
    return counts, [read(v) for v in jaxpr.outvars]


def flops(counts):
    """Returns the floating-point operations of products {(batch, m, k, n): count}."""
    return sum(2.0 * batch * m * k * n * count for (batch, m, k, n), count in counts.items())


def step_products(stage, args, indices):
    """Returns the matrix products of one step, averaged over the steps `indices` of a stage.

    Args: stage, a `types.Stage`; args, (state, data, key) of one run, arrays or shapes.
    """
    closed = jax.make_jaxpr(stage.step)(*args, jax.ShapeDtypeStruct((), jnp.int32))
    unknown = [None] * (len(closed.jaxpr.invars) - 1)
    total = {}
    for index in indices:
        for shape, count in products(closed.jaxpr, [*unknown, np.int32(index)])[0].items():
            total[shape] = total.get(shape, 0) + count / len(indices)
    return total
