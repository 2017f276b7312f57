"""Offline data on the device: flat rows per task, and jitted samplers of indices.

The dataset is one argument of every program, shared by all runs: never mapped over, never copied
per seed. Every device has a copy, or, where that is too large, some of the tasks (`split`). Rows of
an episode are contiguous, episodes of a behaviour level too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Num

from gentle_jax import errors
from gentle_jax.config import TrainConfig
from gentle_jax.types import HostArray, RandomKey, Statistics, Transition, pytree

Ids = Int[Array, " ids"] | Int[HostArray, " ids"]
FRAGMENT = 64  # steps of a fragment, in a horizon that is as long
DEVICES = "runs"  # the mesh axis that runs, and a split dataset, lie along


@pytree
class Dataset:
    """Rows of several tasks; every sampler draws with replacement."""

    rows: Transition  # leaves [task, row, ...]; rows past the last episode are never drawn
    episode_start: jax.Array  # [task, episode + 1] int32, the last entry is the number of rows
    level_episodes: int = struct.field(pytree_node=False)  # episodes of one behaviour level
    num_levels: int = struct.field(pytree_node=False)
    rows_of: jax.Array | None = None  # [task], where in `rows` a task lies; None: in this order
    split: int = struct.field(pytree_node=False, default=1)  # devices that `rows` is split over
    # behaviour levels (first, end) that rows are drawn from; None: all
    rl_levels: tuple | None = struct.field(pytree_node=False, default=None)  # of backbones
    context_levels: tuple | None = struct.field(pytree_node=False, default=None)

    def partition(self) -> "Dataset":
        """Returns the PartitionSpec of every part: what `sweep` shards a shared argument by."""
        rows = PartitionSpec(DEVICES) if self.split > 1 else PartitionSpec()
        copied = PartitionSpec()
        rows_of = None if self.rows_of is None else copied
        return self.replace(rows=rows, episode_start=copied, rows_of=rows_of)

    def unsplit(self) -> "Dataset":
        """Returns the same Dataset marked as whole: to trace a step outside of a mesh."""
        return self.replace(split=1)


def from_episodes(
    fields: dict[str, np.ndarray],
    mask: Num[HostArray, "task level episode step"],
    timeout_is_terminal: bool,
) -> Dataset:
    """Packs episodes [task, level, episode, step, ...] into a numpy Dataset.

    Args: fields, of a Transition (`terminal` for true ends); mask, 1 for real steps;
    timeout_is_terminal, whether the last row
    of every episode ends the Bellman target (both releases: docs/methods/data.md, "End flags").
    """
    num_tasks, num_levels, num_episodes, _ = mask.shape
    lengths = mask.sum(-1).astype(np.int32)  # [task, level, episode]
    # empty episodes (files that an import lacks) come last in their level: `context_batch`
    lengths = np.take_along_axis(lengths, np.argsort(lengths == 0, axis=-1, kind="stable"), -1)
    lengths = lengths.reshape(num_tasks, -1)  # [task, episode]
    start = np.concatenate([np.zeros((num_tasks, 1), np.int32), lengths.cumsum(1)], 1)
    terminal = np.array(fields["terminal"], np.float32)
    if timeout_is_terminal:
        last = np.maximum(mask.sum(-1).astype(int) - 1, 0)
        np.put_along_axis(terminal, last[..., None], 1.0, axis=-1)
    columns = {**fields, "terminal": terminal}
    keep = mask.reshape(num_tasks, -1) > 0
    size = int(start[:, -1].max())

    def pack(array):
        flat = np.asarray(array, np.float32).reshape((num_tasks, -1) + array.shape[4:])
        if keep.all():
            return flat
        packed = np.zeros((num_tasks, size) + flat.shape[2:], np.float32)
        for task in range(num_tasks):  # ragged: episodes may have ended early
            packed[task, : start[task, -1]] = flat[task][keep[task]]
        return packed

    rows = Transition(**{name: pack(columns[name]) for name in Transition._fields})
    return Dataset(rows, start.astype(np.int32), num_episodes, num_levels)


def shapes(wanted: dict[str, tuple]) -> Dataset:
    """Returns the Dataset of shapes of full episodes. Args: wanted, {field: shape} of storage."""
    num_tasks, num_levels, num_episodes, steps = wanted["reward"]
    lead = (num_tasks, num_levels * num_episodes * steps)
    rows = {
        name: jax.ShapeDtypeStruct(lead + wanted[name][4:], jnp.float32)
        for name in Transition._fields
    }
    start = jax.ShapeDtypeStruct((num_tasks, num_levels * num_episodes + 1), jnp.int32)
    return Dataset(Transition(**rows), start, num_episodes, num_levels)


def take_tasks(dataset: Dataset, ids: Ids) -> Dataset:
    """Returns the Dataset of some tasks, in the order of `ids`: a copy of their rows."""
    return jax.tree.map(lambda x: x[ids], dataset)


def view_tasks(dataset: Dataset, ids: Ids) -> Dataset:
    """Returns the Dataset of some tasks without copying rows. Args: ids, which may be traced."""
    rows_of = ids if dataset.rows_of is None else dataset.rows_of[ids]
    return dataset.replace(episode_start=dataset.episode_start[ids], rows_of=rows_of)


def split_tasks(dataset: Dataset, num_devices: int) -> Dataset:
    """Returns a numpy Dataset whose rows can be split by task over devices: padded with zeros.

    Inside `jax.shard_map` every device then holds some tasks' rows, and `gather` fetches what it
    draws from where it lies.
    """
    if num_devices == 1:
        return dataset
    missing = -dataset.episode_start.shape[0] % num_devices

    def pad(leaf):
        return np.concatenate([leaf, np.zeros((missing, *leaf.shape[1:]), leaf.dtype)])

    return dataset.replace(rows=jax.tree.map(pad, dataset.rows), split=num_devices)


def statistics(
    dataset: Dataset, num_tasks: int | None = None
) -> tuple[Float[HostArray, " obs"], Float[HostArray, " obs"]]:
    """Returns (mean, std) of current observations (docs/methods/data.md, "Normaliser").

    Args: num_tasks, of the first tasks only; None: of all.
    """
    mean, variance = _moments(dataset, dataset.rows.obs, num_tasks)
    return mean, np.sqrt(variance + np.float32(1e-8))


def summary(dataset: Dataset, num_train: int) -> Statistics:
    """Returns the Statistics of the first tasks' observations and dense rewards."""
    obs_mean, obs_variance = _moments(dataset, dataset.rows.obs, num_train)
    mean, variance = _moments(dataset, dataset.rows.reward, num_train)
    return Statistics(obs_mean, np.sqrt(obs_variance), float(mean), float(np.sqrt(variance)))


def no_summary(obs_dim: int) -> Statistics:
    """Returns the Statistics that stand for those of data which are not there yet: 0 and 1."""
    return Statistics(np.zeros(obs_dim, np.float32), np.ones(obs_dim, np.float32), 0.0, 1.0)


def _moments(dataset, column, num_tasks):
    """Returns (mean, variance) of a column over the rows of the first tasks, without padding.

    Sums are float64: those of millions of float32 rows would lose most of their digits.
    """
    ends = np.asarray(dataset.episode_start)[:num_tasks, -1]
    tasks = [np.asarray(column[task])[:end] for task, end in enumerate(ends)]
    total = lambda of: sum(of(rows).sum(0, dtype=np.float64) for rows in tasks)
    mean = total(lambda rows: rows) / ends.sum()
    variance = total(lambda rows: (rows - mean) ** 2) / ends.sum()
    return np.float32(mean), np.float32(variance)


def normalize(
    dataset: Dataset, mean: Float[HostArray, " obs"], std: Float[HostArray, " obs"]
) -> Dataset:
    """Returns the Dataset with z-scored obs and next_obs."""
    rows = dataset.rows
    scaled = rows._replace(obs=(rows.obs - mean) / std, next_obs=(rows.next_obs - mean) / std)
    return dataset.replace(rows=scaled)


def append(dataset: Dataset, columns: Float[HostArray, "task P"]) -> Dataset:
    """Returns the Dataset with P numbers of its task behind every obs and next_obs."""
    num_rows = dataset.rows.reward.shape[1]
    behind = np.repeat(columns[:, None], num_rows, axis=1)
    longer = lambda obs: np.concatenate([obs, behind], -1)
    rows = dataset.rows
    rows = rows._replace(obs=longer(rows.obs), next_obs=longer(rows.next_obs))
    return dataset.replace(rows=rows)


def task_sampler(
    meta_batch: int, num_tasks: int, task_draw: str
) -> Callable[[RandomKey], Int[Array, " T"]]:
    """Returns draw(key) -> task ids [meta_batch]; distinct ones where possible and asked for."""
    if task_draw == "distinct" and meta_batch == num_tasks:
        return lambda key: jnp.arange(num_tasks)
    if task_draw == "distinct" and meta_batch < num_tasks:
        return lambda key: jax.random.permutation(key, num_tasks)[:meta_batch]
    return lambda key: jax.random.randint(key, (meta_batch,), 0, num_tasks)


def _uniform_rows(low, high, shape, key):
    """Draws integers in [low, high) with traced bounds; high > low."""
    draw = low + jnp.floor(jax.random.uniform(key, shape) * (high - low)).astype(jnp.int32)
    return jnp.minimum(draw, high - 1)  # float32 rounding may reach `high`


def gather(dataset: Dataset, task_id: Int[Array, " T"], index: Int[Array, "T ..."]) -> Transition:
    """Returns rows `index` of tasks `task_id`: leaves [T, *rows, ...]."""
    at = task_id if dataset.rows_of is None else dataset.rows_of[task_id]
    at = at.reshape(at.shape + (1,) * (index.ndim - 1))
    if dataset.split == 1:
        return jax.tree.map(lambda x: x[at, index], dataset.rows)
    # every device asks all for its rows; each answers from its tasks, with zeros elsewhere
    at, index = jax.lax.all_gather((at, index), DEVICES)
    size = dataset.rows.reward.shape[0]
    at = at - jax.lax.axis_index(DEVICES) * size
    here = (at >= 0) & (at < size)

    def exchange(x):
        rows = x[jnp.where(here, at, 0), index]
        answers = here.reshape(here.shape + (1,) * (rows.ndim - here.ndim))
        rows = jnp.where(answers, rows, 0.0)
        return jax.lax.psum_scatter(rows, DEVICES, scatter_dimension=0)

    return jax.tree.map(exchange, dataset.rows)


def levels_of(text: str, num_levels: int, name: str) -> tuple[int, int] | None:
    """Returns the behaviour levels (first, end) that a setting names, None for all of them.

    Args: text, "FIRST:END" counted from 0, or "". Raises UserError for levels that are not there.
    """
    if not text:
        return None
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end) <= num_levels):
        raise errors.UserError(
            f"{name} is {text}: expected FIRST:END with 0 <= FIRST < END <= {num_levels}, the "
            f"number of behaviour levels; pass --config.{name}={num_levels - 1}:{num_levels} for "
            f"the last one"
        )
    return int(first), int(end)


def draw_rows(
    dataset: Dataset, task_id: Int[Array, " T"], size: int, key: RandomKey
) -> Int[Array, "T size"]:
    """Returns numbers of rows that backbones learn from, uniform over those of each task."""
    return _draw(dataset, task_id, size, key, dataset.rl_levels)


def context_rows(
    dataset: Dataset, task_id: Int[Array, " T"], size: int, key: RandomKey
) -> Transition:
    """Returns a Transition with leaves [T, size, ...], uniform over rows that contexts are of."""
    drawn = _draw(dataset, task_id, size, key, dataset.context_levels)
    return gather(dataset, task_id, drawn)


def num_context_rows(dataset: Dataset, task_id: Int[Array, " T"]) -> Int[Array, " T"]:
    """Returns how many rows of each task contexts are drawn from."""
    begin, end = _bounds(dataset, task_id, dataset.context_levels)
    return end - begin


def _draw(dataset, task_id, size, key, levels):
    """Returns row numbers [T, size], uniform over the rows of some levels of each task."""
    begin, end = _bounds(dataset, task_id, levels)
    begin = begin if levels is None else begin[:, None]
    return _uniform_rows(begin, end[:, None], (task_id.shape[0], size), key)


def _bounds(dataset, task_id, levels):
    """Returns (first row, end) of some levels of each task; the first is 0 where they are all."""
    if levels is None:
        return 0, dataset.episode_start[task_id, -1]
    low, high = (level * dataset.level_episodes for level in levels)
    return dataset.episode_start[task_id, low], dataset.episode_start[task_id, high]


def fragment_steps(wanted: int, horizon: int, name: str) -> int:
    """Returns the steps of a fragment; raises UserError for more than one horizon.

    Args: wanted, 0 for FRAGMENT or one horizon, what is shorter; name, of the setting.
    """
    if wanted > horizon:
        raise errors.UserError(
            f"{name} is {wanted}: expected at most {horizon}, the horizon; pass "
            f"--config.{name}={horizon}, or 0 for up to {FRAGMENT}"
        )
    return wanted or min(FRAGMENT, horizon)


def fragments(
    dataset: Dataset, task_id: Int[Array, " T"], count: int, steps: int, key: RandomKey
) -> tuple[Transition, Float[Array, "T count steps"]]:
    """Returns (consecutive rows of one stored episode, leaves [T, count, steps, ...]; mask).

    Episodes are drawn in proportion to their rows; of a shorter one all rows, then mask 0.
    """
    k_row, k_offset = jax.random.split(key)
    start = dataset.episode_start[task_id]  # [T, episode + 1]
    row = _draw(dataset, task_id, count, k_row, dataset.context_levels)
    search = lambda one, rows: jnp.searchsorted(one, rows, side="right") - 1
    episode = jax.vmap(search)(start, row)
    begin, end = (jnp.take_along_axis(start, at, 1) for at in (episode, episode + 1))
    spare = jnp.maximum(end - begin - steps, 0)
    first = begin + _uniform_rows(0, spare + 1, row.shape, k_offset)
    slot, end = first[..., None] + jnp.arange(steps), end[..., None]
    rows = gather(dataset, task_id, jnp.minimum(slot, end - 1))
    return rows, (slot < end).astype(jnp.float32)


def whole_episodes(
    dataset: Dataset, horizon: int, key: RandomKey
) -> tuple[Transition, Float[Array, " steps"]]:
    """Draws whole episodes of a Dataset of one task, in time order, until they have H rows.

    Returns (Transition [2 H - 1, ...], mask). Uniform over the episodes that have rows, with
    replacement; one longer than H is cut.
    """
    start = dataset.episode_start[0]
    length = jnp.minimum(jnp.diff(start), horizon)
    there = length > 0
    if dataset.context_levels is not None:
        level = jnp.arange(length.shape[0]) // dataset.level_episodes
        there &= (level >= dataset.context_levels[0]) & (level < dataset.context_levels[1])
    score = jnp.where(there, 0.0, -jnp.inf)
    drawn = jax.random.categorical(key, score, shape=(horizon,))  # each has at least one row
    end = jnp.cumsum(length[drawn])
    slot = jnp.arange(2 * horizon - 1)
    which = jnp.minimum(jnp.searchsorted(end, slot, side="right"), horizon - 1)
    step = slot - end[which] + length[drawn[which]]
    row = start[drawn[which]] + jnp.minimum(step, length[drawn[which]] - 1)
    rows = gather(dataset, jnp.zeros(1, jnp.int32), row[None])
    enough = end[jnp.argmax(end >= horizon)]
    return jax.tree.map(lambda x: x[0], rows), (slot < enough).astype(jnp.float32)


def context_batch(
    dataset: Dataset,
    task_id: Int[Array, " T"],
    size: int,
    key: RandomKey,
    draw: str,
    num_levels: int = 1,
) -> Transition:
    """Returns a context, a Transition with leaves [T, size, ...].

    `draw`: "uniform" over all rows of a task (both releases); "level", rows of `num_levels`
    behaviour levels, drawn per task; "episodes", whole episodes of such levels, one after another,
    the last one cut. The papers never say; at test time a context comes from one or two policies,
    not from a history.
    """
    if draw == "uniform":
        return context_rows(dataset, task_id, size, key)
    k_level, k_mix, k_row = jax.random.split(key, 3)
    num_tasks = task_id.shape[0]
    starts = dataset.episode_start[task_id]  # [T, episode + 1]
    per_level = dataset.level_episodes
    bounds = dataset.context_levels or (0, dataset.num_levels)
    levels = jax.random.randint(k_level, (num_tasks, num_levels), *bounds)

    def first_episodes(count, key):
        """The first episode [T, count] of one of the task's levels, picked per column."""
        pick = jax.random.randint(key, (num_tasks, count), 0, num_levels)
        return jnp.take_along_axis(levels, pick, 1) * per_level

    at = lambda index: jnp.take_along_axis(starts, index, 1)
    if draw == "level":
        first = first_episodes(size, k_mix)
        low, high = at(first), at(first + per_level)
        return gather(dataset, task_id, _uniform_rows(low, high, (num_tasks, size), k_row))
    # as many episodes as there are rows are drawn, since one may have a single row; those that do
    # where episodes have the mean length come first, from keys of their own
    length = max(dataset.rows.reward.shape[1] // (starts.shape[1] - 1), 1)  # mean, rounded down
    count = -(-size // length)
    first = first_episodes(count, k_mix)
    draw = jax.random.randint(k_row, (num_tasks, count), 0, per_level)
    if count < size:
        more = [jax.random.fold_in(k, 1) for k in (k_mix, k_row)]
        first = jnp.append(first, first_episodes(size - count, more[0]), axis=1)
        others = jax.random.randint(more[1], (num_tasks, size - count), 0, per_level)
        draw = jnp.append(draw, others, axis=1)
    there = (jnp.diff(starts, axis=1) > 0).reshape(num_tasks, -1, per_level).sum(-1)  # of a level
    filled = jnp.take_along_axis(there, first // per_level, 1)
    episode = first + draw * filled // per_level  # `draw` itself where no episode is empty
    low, high = at(episode), at(episode + 1)
    end = jnp.cumsum(high - low, axis=1)  # in the context
    slot = jnp.arange(size)
    which = jax.vmap(lambda ends: jnp.searchsorted(ends, slot, side="right"))(end)
    which = jnp.minimum(which, size - 1)
    pick = lambda x: jnp.take_along_axis(x, which, 1)
    last = jnp.maximum(pick(high), pick(low) + 1) - 1  # short of rows: the last one again
    return gather(dataset, task_id, jnp.minimum(pick(high) - (pick(end) - slot), last))


def context_of(
    dataset: Dataset, task_id: Int[Array, " T"], train: TrainConfig, key: RandomKey
) -> Transition:
    """Returns `context_batch` with the size and draw of a TrainConfig."""
    return context_batch(
        dataset, task_id, train.context_size, key, train.context_draw, train.context_levels
    )
