"""Dense layers and a gated recurrent unit, as plain trees of parameters.

Every layer is {"kernel": [in, out], "bias": [out]}.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import networks
from gentle_jax.types import RandomKey

Layer = dict


def init_dense(
    shapes: dict[str, tuple[int, int]], key: RandomKey, gain: float = 1.0
) -> dict[str, Layer]:
    """Returns {name: layer} of {name: (in, out)}: U(+-1 / sqrt(in)), kernels times `gain`.

    One draw serves all layers: each draw of its own takes XLA long to compile.
    """
    sizes = [(rows + 1) * columns for rows, columns in shapes.values()]
    draws = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
    parts = jnp.split(draws, list(itertools.accumulate(sizes))[:-1])
    layers = {}
    for (name, (rows, columns)), part in zip(shapes.items(), parts, strict=True):
        block = part.reshape(rows + 1, columns) * rows**-0.5
        layers[name] = {"kernel": gain * block[:-1], "bias": block[-1]}
    return layers


def dense(layer: Layer, x: Float[Array, "*rows in"], precision: str) -> Float[Array, "*rows out"]:
    """Returns x @ kernel + bias."""
    flat = networks.product(x.reshape(-1, x.shape[-1]), layer["kernel"], precision)
    return (flat + layer["bias"][None]).reshape(*x.shape[:-1], -1)


def init_gru(in_dim: int, width: int, key: RandomKey) -> dict[str, Layer]:
    """Returns the parameters of a GRU: stacked kernels orthonormal, biases 0.

    Columns are the reset gate, the update gate and the candidate, as in torch.
    """
    normal = jax.random.normal(key, (in_dim + width, 3 * width))
    return {
        name: {"kernel": networks.orthogonal(draws), "bias": jnp.zeros(3 * width)}
        for name, draws in (("input", normal[:in_dim]), ("hidden", normal[in_dim:]))
    }


def gru_step(
    params: dict[str, Layer],
    hidden: Float[Array, "*rows W"],
    inputs: Float[Array, "*rows gates"],
    precision: str,
) -> Float[Array, "*rows W"]:
    """Returns the next hidden state. Args: inputs, x by the layer `input`, [..., 3 W].

    reset, update = sigmoid(input + hidden); candidate = tanh(input + reset * (hidden's product and
    bias)); next = (1 - update) * candidate + update * hidden.
    """
    reset, update, candidate = jnp.split(inputs, 3, axis=-1)
    of_hidden = jnp.split(dense(params["hidden"], hidden, precision), 3, axis=-1)
    reset, update = jax.nn.sigmoid(reset + of_hidden[0]), jax.nn.sigmoid(update + of_hidden[1])
    return (1.0 - update) * jnp.tanh(candidate + reset * of_hidden[2]) + update * hidden
