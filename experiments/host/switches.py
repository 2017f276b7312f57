"""What JAX is told: switches that numbers depend on are pinned, or recorded with every result.

Users set them by variables of the environment (`JAX_DEFAULT_PRNG_IMPL`, `XLA_FLAGS`, ...), often
for another program. Those that no result of ours could survive are set back, and that is said.
"""

import os
import platform

import jax

from gentle_jax import errors

# other values give other random numbers, or other types: a run could not be resumed or compared
PINNED = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_numpy_dtype_promotion": "standard",
}
# these change bits, and may be wanted: they are recorded, and compared when a run goes on
RECORDED = (
    *PINNED, "jax_enable_x64", "jax_default_matmul_precision", "jax_disable_jit",
    "jax_disable_most_optimizations", "jax_optimization_level", "jax_exec_time_optimization_effort",
    "jax_allow_f16_reductions", "jax_compiler_enable_remat_pass", "jax_softmax_custom_jvp",
    "jax_use_direct_linearize", "jax_use_shardy_partitioner",
)  # fmt: skip
ACCELERATORS = ("gpu", "tpu")  # what `--require` may ask for
# of XLA: the same bits from every process on the same kind of GPU; other devices do so anyway
DETERMINISTIC = (
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_autotune_level=0",
    "--xla_gpu_enable_triton_gemm=false",  # untuned, XLA's own matrix kernels are slow
)
HARMLESS = ("--xla_dump_",)  # flags of XLA that change no number, and name folders
VECTORS = ("amx_tile", "avx512f", "avx2", "avx", "sve", "asimd")  # the widest first


def pin():
    """Sets what numbers depend on, and says what was asked for instead; UserError for 64 bits."""
    if jax.config.jax_enable_x64:
        raise errors.UserError(
            "JAX_ENABLE_X64 is on: data and training are in float32 here; unset it"
        )
    for name, wanted in PINNED.items():
        if name in jax.config.values and _plain(name) != wanted:
            print(f"jax: {name.upper()}={_plain(name)} is not used: results are made with {wanted}")
            jax.config.update(name, wanted)
    if not os.environ.get("JAX_DEFAULT_MATMUL_PRECISION"):  # GPUs and TPUs would round physics too
        jax.config.update("jax_default_matmul_precision", "highest")


def make_deterministic():
    """Adds DETERMINISTIC to XLA_FLAGS, which XLA reads when it starts; the last word counts.

    Raises UserError where XLA_FLAGS names a file of flags, which XLA reads instead.
    """
    words = [word for word in os.environ.get("XLA_FLAGS", "").split() if word not in DETERMINISTIC]
    if words and not words[0].startswith("--"):
        raise errors.UserError(
            f"XLA_FLAGS names the file {words[0]}, and --deterministic adds flags of XLA: write "
            f"those of the file into XLA_FLAGS instead"
        )
    os.environ["XLA_FLAGS"] = " ".join([*words, *DETERMINISTIC])


def recorded():
    """Returns {switch: value} that results depend on, those of RECORDED that this JAX has."""
    names = (name for name in RECORDED if name in jax.config.values)
    return {name.removeprefix("jax_"): _plain(name) for name in names}


def _plain(name):
    """Returns the value of a switch as JSON has it: some are members of an Enum."""
    value = jax.config.values[name]
    return getattr(value, "value", value)


def xla_flags():
    """Returns the words of XLA_FLAGS that may change numbers, sorted."""
    words = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(sorted(word for word in words if not word.startswith(HARMLESS)))


def start_backend():
    """Starts JAX's devices; raises UserError where those that are asked for are not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error) or "its plugin is not installed").splitlines()[0][:160]
        raise errors.UserError(
            f"JAX could not start its devices (JAX_PLATFORMS={asked!r}): {reason}; install the JAX "
            f"of this machine's accelerator, or unset JAX_PLATFORMS"
        ) from None


def require(kind):
    """Raises UserError unless JAX's default device is of a kind, of ACCELERATORS; "" is any."""
    if not kind:
        return
    if kind not in ACCELERATORS:
        raise errors.unknown("--require", kind, ACCELERATORS)
    there = jax.default_backend()
    if there != kind:
        raise errors.UserError(
            f"--require={kind}: JAX's device here is a {there} ({device_text()}): look for the "
            f"{kind.upper()} and its JAX on this machine, or leave --require out"
        )


def device_text():
    """Returns the devices as text, for tables: their kind decides the last bits of a result."""
    device = jax.devices()[0]
    of_cpu = f" ({processor()})" if device.platform == "cpu" else ""
    return f"{jax.device_count()} x {device.device_kind}{of_cpu}"


def processor():
    """Returns the kind of CPU core as text: XLA compiles for it."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    words = (fields.get("flags") or fields.get("Features") or "").split()
    parts = [fields.get("model name") or platform.machine()]
    parts += [f"model {fields['model']}"] if "model" in fields else []
    return ", ".join(parts + [name for name in VECTORS if name in words][:1])
