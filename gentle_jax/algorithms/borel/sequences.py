"""Whole episodes out of a dataset, and the table of beliefs around its rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gentle_jax import data as data_lib
from gentle_jax.types import RandomKey, Transition


def draw_episodes(
    data: data_lib.Dataset, task_id: Int[Array, " T"], shape: tuple[int, ...], key: RandomKey
) -> Int[Array, "T ..."]:
    """Returns numbers [T, *shape] of episodes, uniform over those of a task that have rows."""
    there = jnp.cumsum(jnp.diff(data.episode_start[task_id], axis=1) > 0, axis=1)  # [T, episode]
    count = there[:, -1].reshape(-1, *(1,) * len(shape))
    draws = jax.random.uniform(key, (len(task_id), *shape))
    number = jnp.minimum(jnp.floor(draws * count).astype(jnp.int32), count - 1)
    find = jax.vmap(lambda sums, n: jnp.searchsorted(sums, n, side="right"))
    return find(there, number).astype(jnp.int32)


def rows_of(
    data: data_lib.Dataset, task_id: Int[Array, " T"], episode: Int[Array, "T N E"], horizon: int
) -> tuple[Transition, Float[Array, "T N L"]]:
    """Returns (rows [T, N, L, ...], mask): N sequences of E episodes each, L = E * horizon.

    Every episode has `horizon` slots; those after its end are masked, and hold its last row.
    """
    pick = jax.vmap(lambda start, at: start[at])
    start = data.episode_start[task_id]
    low, high = pick(start, episode)[..., None], pick(start, episode + 1)[..., None]
    slot = jnp.arange(horizon).reshape(1, 1, 1, -1)
    index = jnp.maximum(jnp.minimum(low + slot, high - 1), 0)  # [T, N, E, horizon]
    mask = (low + slot < high).astype(jnp.float32)
    flat = lambda x: x.reshape(*episode.shape[:2], -1)
    return data_lib.gather(data, task_id, flat(index)), flat(mask)


def table_size(data: data_lib.Dataset) -> int:
    """Returns how many beliefs a task has: one before each row and one after each episode."""
    return data.rows.reward.shape[1] + data.episode_start.shape[1] - 1


def in_table(
    start: Int[Array, " starts"], mask: Float[Array, "episode horizon"], size: int
) -> Int[Array, "episode posterior"]:
    """Returns where in a task's table the beliefs of each episode lie; `size` for none.

    Args: start, `episode_start` of the task; mask, of its episodes.
    """
    number = jnp.arange(mask.shape[1] + 1)[None]
    place = start[:-1, None] + jnp.arange(len(mask))[:, None] + number
    length = mask.sum(1, keepdims=True)
    return jnp.where((number <= length) & (length > 0), place, size)


def place_of(
    data: data_lib.Dataset, task_id: Int[Array, " T"], index: Int[Array, "K T B"]
) -> Int[Array, "K T B"]:
    """Returns where in the tables the belief before each row lies; that after it comes next."""
    end = data.episode_start[task_id, 1:]
    return index + (end[None, :, None] <= index[..., None]).sum(-1)
