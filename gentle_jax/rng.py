"""Counter-based random keys: none is carried or saved, so any step can be replayed."""

import zlib

import jax


def stream(key, name, index=0):
    """Returns the key of stage `name` at step `index`.

    Args: key, a typed key; name, a string; index, an int or a traced int32 scalar.
    """
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), index)


def run_keys(num_seeds, seed_offset=0):
    """Returns keys [S]; seed k has the same key whatever `num_seeds` is (product.md sec. 8)."""
    return jax.vmap(jax.random.key)(jax.numpy.arange(seed_offset, seed_offset + num_seeds))
