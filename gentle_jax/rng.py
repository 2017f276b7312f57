"""Counter-based random keys: none is carried or saved, so any step can be replayed.

Keys name their implementation: what JAX is configured to (`JAX_DEFAULT_PRNG_IMPL`) is not asked.
"""

import zlib

import jax
from jaxtyping import Array, Key

from gentle_jax.types import Index, RandomKey

IMPLEMENTATION = "threefry2x32"


def key(seed: Index) -> RandomKey:
    """Returns the key of a seed."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def stream(key: RandomKey, name: str, index: Index = 0) -> RandomKey:
    """Returns the key of stage `name` at step `index`."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), index)


def run_keys(num_seeds: int, seed_offset: int = 0) -> Key[Array, " S"]:
    """Returns the key of every seed; seed k has the same one whatever `num_seeds` is.

    Source: docs/methods/environments.md, "Random streams".
    """
    return jax.vmap(key)(jax.numpy.arange(seed_offset, seed_offset + num_seeds))
