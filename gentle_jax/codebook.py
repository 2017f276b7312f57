"""CTMRL's codebook: cosine match, moves without gradients, K-means (ctmrl_suite.md sec. 3)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import losses

EMA_FLOOR = 1e-5  # Laplace smoothing of the release's cluster sizes


@struct.dataclass
class Codebook:
    """N codes. `mean` and `size` belong to the release's moving average only."""

    codes: jax.Array  # [N, Z]
    mean: jax.Array  # [N, Z], running sum of matched z
    size: jax.Array  # [N], running count of matches


def match(codes, z):
    """Returns the code of each row: cosine argmax (Eq. 1), z [T, Z] -> [T] int32."""
    return jnp.argmax(losses.cosine(z, codes), axis=-1)


def _sums(z, matched, weight, num_codes):
    counts = jax.ops.segment_sum(weight, matched, num_codes)
    return counts, jax.ops.segment_sum(z * weight[:, None], matched, num_codes)


def move(book, z, matched, eta, weight=None):
    """Eq. 2: C <- (1 - eta) C + eta * mean of the matched z; unmatched codes stay.

    Args: z [T, Z]; matched [T]; weight [T], 0 leaves a row out.
    """
    weight = jnp.ones(z.shape[0]) if weight is None else weight
    counts, sums = _sums(z, matched, weight, book.codes.shape[0])
    target = sums / jnp.maximum(counts, 1.0)[:, None]
    rate = jnp.where(counts > 0, eta, 0.0)[:, None]
    return book.replace(codes=(1 - rate) * book.codes + rate * target)


def move_ema(book, z, matched, decay, weight=None):
    """The release's move: exponential averages of count and sum, codes their ratio."""
    weight = jnp.ones(z.shape[0]) if weight is None else weight
    counts, sums = _sums(z, matched, weight, book.codes.shape[0])
    size = decay * book.size + (1 - decay) * counts
    mean = decay * book.mean + (1 - decay) * sums
    total = size.sum()
    smooth = (size + EMA_FLOOR) / (total + size.shape[0] * EMA_FLOOR) * total
    return Codebook(mean / jnp.maximum(smooth, EMA_FLOOR)[:, None], mean, size)


def kmeans(points, valid, num_codes, key, unit_norm, iterations=10):
    """Returns (centres [N, Z], counts [N]) of Lloyd's algorithm on the valid rows.

    Starts at random distinct rows; an empty cluster keeps its centre. unit_norm=True is the
    release: assignment by dot product, centres normalised after averaging. False is Euclidean.
    """
    noise = jax.random.uniform(key, valid.shape)
    _, first = jax.lax.top_k(jnp.where(valid > 0, noise, -1.0), num_codes)
    centres = points[first]

    def assign(centres):
        score = points @ centres.T
        return jnp.argmax(score if unit_norm else score - 0.5 * (centres**2).sum(-1), axis=-1)

    def body(_, centres):
        counts, sums = _sums(points, assign(centres), valid, num_codes)
        new = sums / jnp.maximum(counts, 1.0)[:, None]
        if unit_norm:
            new = new / jnp.sqrt((new**2).sum(-1, keepdims=True) + losses.NORM_FLOOR)
        return jnp.where(counts[:, None] > 0, new, centres)

    centres = jax.lax.fori_loop(0, iterations, body, centres)
    return centres, _sums(points, assign(centres), valid, num_codes)[0]


def refresh_schedule(num_iterations):
    """Returns (first, warmup, period): when codes start, vectors count, K-means runs.

    first: VQ is on from this iteration (f >= 0.3). warmup: (from, to) of the iterations whose end
    is collected for K-means (0.2 < f < 0.3; at least one). period: after `first`, K-means runs at
    the end of every period-th iteration on the vectors of the period - 1 before it
    (sec. 3.2 point 1).
    """
    first = next(i for i in range(num_iterations + 1) if i * 10 >= 3 * num_iterations)
    first = max(first, 1)
    collected = [i for i in range(first) if 2 * num_iterations < 10 * i < 3 * num_iterations]
    warmup = (collected[0], first) if collected else (first - 1, first)
    return first, warmup, max(num_iterations // 20, 1) + 1


class Periodic(NamedTuple):
    """Collection and K-means around gradient steps; `step` counts them and has no run axis."""

    start: Any  # (book, bag, key, step) -> book: K-means before the first step with codes
    after_warmup: Any  # (book, bag, vectors, key, step, move) -> (book, bag)
    after_train: Any  # the same, with codes on: collection or a K-means refresh


def make_periodic(schedule, per_iteration, num_tasks, unit_norm, move_collected):
    """Returns the Periodic of a `refresh_schedule`.

    Args: per_iteration, gradient steps; num_tasks, vectors per collection; unit_norm, see `kmeans`;
    move_collected, whether collected vectors also move the codes (the release's extra call).
    `vectors() -> [num_tasks, Z]` is only called when due; `move(book, z, matched, weight) -> book`.
    """
    first, warmup, period = schedule

    def centres(bag, collections, num_codes, key):
        valid = (jnp.arange(bag.shape[0]) < collections * num_tasks).astype(jnp.float32)
        return kmeans(bag, valid, num_codes, key, unit_norm)

    def put(bag, found, slot):
        return jax.lax.dynamic_update_slice_in_dim(bag, found, slot * num_tasks, 0)

    def start(book, bag, key, step):
        def run(book):
            found, counts = centres(bag, warmup[1] - warmup[0], book.codes.shape[0], key)
            return Codebook(found, jnp.copy(found), counts)

        return jax.lax.cond(step == first * per_iteration, run, lambda b: b, book)

    def after_warmup(book, bag, vectors, key, step, move):
        del key, move
        iteration, end = step // per_iteration, (step + 1) % per_iteration == 0
        due = end & (iteration >= warmup[0]) & (iteration < warmup[1])
        collect = lambda bag: put(bag, vectors(), iteration - warmup[0])
        return book, jax.lax.cond(due, collect, lambda bag: bag, bag)

    def after_train(book, bag, vectors, key, step, move):
        since, end = step // per_iteration - first, (step + 1) % per_iteration == 0
        refresh_due = end & (since > 0) & (since % period == 0)
        collect_due = end & (since > 0) & ~refresh_due

        def collect(book, bag):
            found = vectors()
            if move_collected:
                book = move(book, found, match(book.codes, found), jnp.ones(num_tasks))
            return book, put(bag, found, since % period - 1)

        def refresh(book):
            found, counts = centres(bag, period - 1, book.codes.shape[0], key)
            return move(book, found, match(book.codes, found), (counts > 0).astype(jnp.float32))

        book, bag = jax.lax.cond(collect_due, collect, lambda *same: same, book, bag)
        return jax.lax.cond(refresh_due, refresh, lambda b: b, book), bag

    return Periodic(start, after_warmup, after_train)
