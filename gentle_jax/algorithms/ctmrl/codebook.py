"""CTMRL's codebook: match, moves without gradients, K-means and when it runs.

Source: docs/methods/ctmrl.md, "Codebook" and "K-means schedule".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gentle_jax.types import Index, RandomKey, Scalar, Section, pytree

Codes = Float[Array, "N Z"]
Vectors = Float[Array, "T Z"]
Matched = Int[Array, " T"]
Weights = Float[Array, " T"]
SIZE_FLOOR = 1e-5  # Laplace smoothing of the release's cluster sizes
TINY = 1e-24  # on squared norms: the release's codes may have norms of 1e-5


@pytree
class Codebook:
    """N codes. `mean` and `size` belong to the release's moving average only."""

    codes: Float[Array, "N Z"]
    mean: Float[Array, "N Z"]  # running sum of matched z
    size: Float[Array, " N"]  # running count of matches


def unit(rows: Codes) -> Codes:
    """Returns rows scaled to norm 1; zero rows stay 0."""
    return rows / jnp.sqrt((rows**2).sum(-1, keepdims=True) + TINY)


def match(codes: Codes, z: Vectors) -> Matched:
    """Returns the code of each row: cosine argmax (Eq. 1)."""
    return jnp.argmax(unit(z) @ unit(codes).T, axis=-1)


def _sums(z, matched, weight, num_codes):
    counts = jax.ops.segment_sum(weight, matched, num_codes)
    return counts, jax.ops.segment_sum(z * weight[:, None], matched, num_codes)


def move(
    book: Codebook, z: Vectors, matched: Matched, eta: Scalar, weight: Weights | None = None
) -> Codebook:
    """Eq. 2: C <- (1 - eta) C + eta * mean of the matched z; unmatched codes stay.

    Args: weight, 0 leaves a row out.
    """
    weight = jnp.ones(z.shape[0]) if weight is None else weight
    counts, sums = _sums(z, matched, weight, book.codes.shape[0])
    target = sums / jnp.maximum(counts, 1.0)[:, None]
    rate = jnp.where(counts > 0, eta, 0.0)[:, None]
    return book.replace(codes=(1 - rate) * book.codes + rate * target)


def move_ema(book: Codebook, z: Vectors, matched: Matched, decay: Scalar) -> Codebook:
    """The release's move: exponential averages of count and sum, codes their ratio."""
    counts, sums = _sums(z, matched, jnp.ones(z.shape[0]), book.codes.shape[0])
    size = decay * book.size + (1 - decay) * counts
    mean = decay * book.mean + (1 - decay) * sums
    return Codebook(averaged(mean, size), mean, size)


def averaged(mean: Codes, size: Float[Array, " N"]) -> Codes:
    """Returns the codes of running sums and counts: their ratio, with smoothed counts."""
    total = size.sum()
    smooth = (size + SIZE_FLOOR) / (total + size.shape[0] * SIZE_FLOOR) * total
    return mean / jnp.maximum(smooth, SIZE_FLOOR)[:, None]


def lloyd(
    points: Vectors, valid: Weights, centres: Codes, unit_norm: bool, iterations: int = 10
) -> tuple[Codes, Float[Array, " N"]]:
    """Returns (centres, counts) after some iterations of K-means on the valid rows.

    Counts are those of the last assignment; an empty cluster keeps its centre. unit_norm=True is
    the release: assignment by dot product, centres normalised after averaging. False is Euclidean.
    """

    def body(_, carry):
        centres, _ = carry
        score = points @ centres.T
        score = score if unit_norm else score - 0.5 * (centres**2).sum(-1)
        counts, sums = _sums(points, jnp.argmax(score, axis=-1), valid, centres.shape[0])
        new = sums / jnp.maximum(counts, 1.0)[:, None]
        new = unit(new) if unit_norm else new
        return jnp.where(counts[:, None] > 0, new, centres), counts

    return jax.lax.fori_loop(0, iterations, body, (centres, jnp.zeros(centres.shape[0])))


def kmeans(
    points: Vectors, valid: Weights, num_codes: int, key: RandomKey, unit_norm: bool
) -> tuple[Codes, Float[Array, " N"]]:
    """Returns `lloyd` from random distinct valid rows."""
    noise = jax.random.uniform(key, valid.shape)
    _, first = jax.lax.top_k(jnp.where(valid > 0, noise, -1.0), num_codes)
    return lloyd(points, valid, points[first], unit_norm)


def from_centres(centres: Codes, counts: Float[Array, " N"]) -> Codebook:
    """Returns the book that K-means starts: codes and running sums are the centres."""
    return Codebook(centres, jnp.copy(centres), counts)


def refresh_schedule(num_iterations: int) -> tuple[int, tuple[int, int], int]:
    """Returns (first, warmup, period): when codes start, vectors count, K-means runs.

    first: VQ is on from this iteration (f >= 0.3). warmup: (from, to) of the iterations whose end
    is collected for K-means (0.2 < f < 0.3; at least one). period: after `first`, K-means runs at
    the end of every period-th iteration on the vectors of the period - 1 before it.
    """
    first = next(i for i in range(num_iterations + 1) if i * 10 >= 3 * num_iterations)
    first = max(first, 1)
    collected = [i for i in range(first) if 2 * num_iterations < 10 * i < 3 * num_iterations]
    warmup = (collected[0], first) if collected else (first - 1, first)
    return first, warmup, max(num_iterations // 20, 1) + 1


# The functions of the schedule. Section is hp["algo"]; an index counts gradient steps.
Refresh = Callable[[Codebook, Codes, Float[Array, " N"], Section], Codebook]
Collect = Callable[[Codebook, Vectors, Section], Codebook]
Bag = Float[Array, "rows Z"]
Start = Callable[[Codebook, Bag, RandomKey, Index], Codebook]
AllVectors = Callable[[], Vectors]
After = Callable[[Codebook, Bag, AllVectors, RandomKey, Index, Section], tuple[Codebook, Bag]]


class Rules(NamedTuple):
    """What collection and K-means do to codes; `paper` and `release` differ here."""

    unit_norm: bool  # see `lloyd`
    refresh: Refresh  # (book, centres, counts, hp)
    collect: Collect | None  # at every end of an iteration


class Periodic(NamedTuple):
    """Collection and K-means around gradient steps; `step` counts them and has no run axis."""

    start: Start  # K-means before the first step with codes
    after_warmup: After
    after_train: After  # with codes on: collection or a K-means refresh


def make_periodic(
    schedule: tuple, per_iteration: int, num_tasks: int, num_codes: int, rules: Rules
) -> Periodic:
    """Returns the Periodic of a `refresh_schedule`.

    Args: per_iteration, gradient steps; num_tasks, vectors per collection; rules, a Rules.
    `vectors() -> [num_tasks, Z]` is only called when due.
    """
    first, warmup, period = schedule

    def centres(bag, collections, key):
        valid = (jnp.arange(bag.shape[0]) < collections * num_tasks).astype(jnp.float32)
        return kmeans(bag, valid, num_codes, key, rules.unit_norm)

    def put(bag, z, slot):
        return jax.lax.dynamic_update_slice_in_dim(bag, z, slot * num_tasks, 0)

    def start(book, bag, key, step):
        run = lambda: from_centres(*centres(bag, warmup[1] - warmup[0], key))
        return jax.lax.cond(step == first * per_iteration, run, lambda: book)

    def after_warmup(book, bag, vectors, key, step, hp):
        del key, hp
        iteration, end = step // per_iteration, (step + 1) % per_iteration == 0
        due = end & (iteration >= warmup[0]) & (iteration < warmup[1])
        collect = lambda: put(bag, vectors(), iteration - warmup[0])
        return book, jax.lax.cond(due, collect, lambda: bag)

    def after_train(book, bag, vectors, key, step, hp):
        since, end = step // per_iteration - first, (step + 1) % per_iteration == 0
        refresh_due = end & (since > 0) & (since % period == 0)
        collect_due = end & (since > 0) & ~refresh_due

        def collect():
            z = vectors()
            moved = book if rules.collect is None else rules.collect(book, z, hp)
            # what is collected in an iteration without a place in the bag only moves codes
            slot = jnp.maximum(since % period - 1, 0)
            return moved, jnp.where(collect_due, put(bag, z, slot), bag)

        due = collect_due if rules.collect is None else end
        book, bag = jax.lax.cond(due, collect, lambda: (book, bag))
        refresh = lambda: rules.refresh(book, *centres(bag, period - 1, key), hp)
        return jax.lax.cond(refresh_due, refresh, lambda: book), bag

    return Periodic(start, after_warmup, after_train)
