"""Networks as `(init, apply)` pairs: pure functions of plain trees of parameters."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gentle_jax.types import RandomKey


class Network(NamedTuple):
    """A pure network: `init(key) -> params`, `apply(params, *inputs) -> [..., out]`.

    Inputs are [..., F_i] with the same leading axes; leading axes are rows, in order. An input with
    fewer rows, such as z [T, Z] beside obs [T * B, F] or [T, B, F], has one for each of T equal
    groups of consecutive rows: it is multiplied once per group, not once per row.
    """

    init: Callable[[RandomKey], PyTree]
    apply: Callable[..., Float[Array, "... out"]]


def _scaled(bound):
    return lambda draws: bound * draws


def _constant(value):
    return lambda draws: jnp.full_like(draws, value)


def _fan_out(draws):
    """U(+-1/sqrt(width out)): both releases read the wrong dimension."""
    return draws * draws.shape[1] ** -0.5


def _he(draws):
    """U(+-sqrt(6 / width in)), which keeps the size of signals between ReLU layers."""
    return draws * (6.0 / draws.shape[0]) ** 0.5


def _swish_normal(draws):
    """N(0, (1/(2 sqrt(fan in)))^2): the release's truncation never binds."""
    return draws * (0.5 * draws.shape[0] ** -0.5)


def orthogonal(draws: Float[Array, "in out"]) -> Float[Array, "in out"]:
    """A uniformly random matrix with orthonormal rows or columns, by Gram-Schmidt of normal draws.

    No library function: those call LAPACK, and on a CPU two batched LAPACK calls of one program can
    take all threads of XLA's pool while they wait for that same pool: the program then hangs for
    good.
    """
    tall = draws if draws.shape[0] >= draws.shape[1] else draws.T
    count = tall.shape[1]

    def orthonormalise(i, columns):
        done = jnp.arange(count) < i
        vector = columns[:, i]
        for _ in range(2):  # a second pass removes what rounding left
            vector -= columns @ jnp.where(done, columns.T @ vector, 0.0)
        return columns.at[:, i].set(vector / jnp.sqrt((vector**2).sum()))

    columns = jax.lax.fori_loop(0, count, orthonormalise, tall)
    return columns if tall is draws else columns.T


class _Style(NamedTuple):
    """Activation and initialisation: independent draws, and what turns them into parameters."""

    activation: Callable
    draw: Callable  # (key, shape) -> independent draws
    hidden: tuple  # two functions, draws -> kernel [in, out] and draws -> bias [out]
    last: tuple


_symmetric = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
_HIDDEN = {"rlkit": (_fan_out, _constant(0.1)), "he": (_he, jnp.zeros_like)}
_STYLES = {
    "rlkit": _Style(jax.nn.relu, _symmetric, _HIDDEN["rlkit"], (_scaled(3e-3),) * 2),
    "policy": _Style(jax.nn.relu, _symmetric, _HIDDEN["rlkit"], (_scaled(1e-3),) * 2),
    "orthogonal": _Style(jax.nn.relu, jax.random.normal, *((orthogonal, jnp.zeros_like),) * 2),
    "swish": _Style(jax.nn.swish, jax.random.normal, *((_swish_normal, jnp.zeros_like),) * 2),
}
# Numbers are drawn in multiples of it: networks of about one size then share what XLA compiles, and
# XLA's loops over an odd count can be several times slower on a CPU.
_BLOCK = 1024


def mlp(
    in_dim: int,
    width: int,
    depth: int,
    out_dims: int | tuple[int, ...],
    style: str = "rlkit",
    squash: bool = False,
    hidden_init: str = "rlkit",
    precision: str = "float32",
) -> Network:
    """Returns a Network that concatenates its inputs along the last axis.

    Args: in_dim, sum of the inputs' sizes; width and depth of the hidden layers; out_dims, an int
    or a tuple (one head each); style, the initialisation: `rlkit`, `policy`, `orthogonal` or
    `swish` (docs/methods/backbones.md, "Initialisation"); squash, tanh on the output; hidden_init,
    "he" replaces the hidden layers' initialisation of the first two styles, which shrinks signals
    of small inputs by some 0.4 a layer; precision, of
    `config.PRECISIONS`, that of the matrix products: parameters and outputs are float32 in any.

    Parameters are {"Dense_0": {"kernel": [in, out], "bias": [out]}, ...}, hidden layers first, then
    heads.
    """
    heads = out_dims if isinstance(out_dims, tuple) else (out_dims,)
    look = _STYLES[style]
    if style in ("rlkit", "policy"):
        look = look._replace(hidden=_HIDDEN[hidden_init])

    def init(key):
        return _init(key, look, (in_dim, *(width,) * depth), heads)

    def apply(params, *inputs):
        layers = [params[f"Dense_{i}"] for i in range(depth)]
        last = [params[f"Dense_{depth + i}"] for i in range(len(heads))]
        layers.append(jax.tree.map(lambda *parts: jnp.concatenate(parts, -1), *last))
        layers[-1] |= {"kernel": _turned(layers[-1]["kernel"])}
        out = _forward(layers, inputs, look.activation, precision)
        return jnp.tanh(out) if squash else out

    return Network(init, apply)


def _init(key, style, widths, heads):
    """Returns parameters from one draw for all of them. Args: widths, of the input and all layers.

    XLA takes 0.03 to 0.2 s to compile a draw, or a key for one: those for each array were four
    fifths of what the initialisation of a run took to compile.
    """
    shapes = [(size + 1, width) for size, width in itertools.pairwise(widths)]
    depth = len(shapes)
    shapes += [(widths[-1] + 1, size) for size in heads]
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    draws = style.draw(key, (-(-ends[-1] // _BLOCK) * _BLOCK,))
    params = {}
    for i, (part, shape) in enumerate(zip(jnp.split(draws, ends)[:-1], shapes, strict=True)):
        kernel, bias = style.hidden if i < depth else style.last
        block = part.reshape(shape)  # [in + 1, out]: the last row is the bias
        params[f"Dense_{i}"] = {"kernel": kernel(block[:-1]), "bias": bias(block[-1])}
    return params


def product(
    x: Float[Array, "rows in"],
    kernel: Float[Array, "in out"],
    precision: str = "float32",
    wide: bool = False,
) -> Float[Array, "rows out"]:
    """Returns x @ kernel in float32; `bfloat16` rounds it once more unless `wide`."""
    if precision != "bfloat16":
        how = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.HIGH
        return jnp.dot(x, kernel, precision=how)
    narrow = jnp.bfloat16
    kind = jnp.float32 if wide else narrow  # a product of narrow results is faster, both ways
    out = jnp.dot(x.astype(narrow), kernel.astype(narrow), preferred_element_type=kind)
    return out.astype(jnp.float32)


def _forward(layers, inputs, activation, precision):
    """Returns [..., out] for inputs as `Network` describes them.

    Rows are flat: on a CPU a weight gradient that contracts two axes takes some three times as
    long.
    """
    lead = max((x.shape[:-1] for x in inputs), key=lambda axes: (math.prod(axes), len(axes)))
    x = _first(layers[0], inputs, math.prod(lead), precision)
    for layer in layers[1:]:
        wide = layer is layers[-1]
        x = product(activation(x), layer["kernel"], precision, wide) + layer["bias"][None]
    return x.reshape(lead + x.shape[-1:])


def _turned(kernel):
    """The kernel, so that its gradient is computed as [out, in] and turned afterwards.

    With few outputs that is ten times as fast on a CPU; the barrier keeps XLA from undoing it.
    """
    return jax.lax.optimization_barrier(kernel.T).T


def _first(layer, inputs, num_rows, precision):
    """Returns the first layer [num_rows, width]: one product for all inputs of as many rows."""
    ends = list(itertools.accumulate((x.shape[-1] for x in inputs), initial=0))
    parts = {}  # rows -> inputs [rows, F_i] and their rows of the kernel
    for x, begin, end in zip(inputs, ends, ends[1:], strict=False):
        rows = math.prod(x.shape[:-1])
        if num_rows % max(rows, 1):
            raise ValueError(f"{rows} rows of one input do not divide {num_rows} of another")
        group = parts.setdefault(rows, ([], []))
        group[0].append(x.reshape(rows, end - begin))
        group[1].append(layer["kernel"][begin:end])
    out = layer["bias"][None]
    for rows in sorted(parts):  # fewest first: what a group of rows shares is added to it
        columns, kernels = parts[rows]
        rows_out = product(jnp.concatenate(columns, 1), jnp.concatenate(kernels), precision)
        groups = rows_out.reshape(out.shape[0], -1, out.shape[1])
        out = (groups + out[:, None]).reshape(rows_out.shape)
    return out


def ensemble(network: Network, size: int) -> Network:
    """Returns `network` with a leading member axis [size] on parameters and outputs.

    An accelerator takes the members side by side. On a CPU two 64-wide critics cost 5 % of a step
    less apart: side by side, XLA merges their first layers and then transposes the result.
    """

    def init(key):
        return jax.vmap(network.init)(jax.random.split(key, size))

    def apply(params, *inputs):
        if jax.default_backend() != "cpu":
            return jax.vmap(lambda p: network.apply(p, *inputs))(params)
        member = lambda i: jax.tree.map(lambda p: p[i], params)
        return jnp.stack([network.apply(member(i), *inputs) for i in range(size)])

    return Network(init, apply)
