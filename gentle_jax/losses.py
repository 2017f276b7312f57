"""Loss functions: small, pure, over one meta batch; callers map them over runs."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gentle_jax.types import Scalar

NORM_FLOOR = 1e-8  # guards cosines of zero vectors


def focal(z: Float[Array, "T Z"], task_id: Int[Array, " T"]) -> Float[Array, ""]:
    """FOCAL's inverse-distance metric loss, without its weight.

    pos = sum_{same task} sqrt(d + 1e-3) / (n_pos + 1e-3), neg = sum_{other} 1/(d + 0.1) /
    (n_neg + 1e-3), d = mean over Z of squared differences, pairs i < j (docs/methods/focal.md,
    "Distance loss").
    """
    chex.assert_rank([z, task_id], [2, 1])
    distance = ((z[:, None] - z[None]) ** 2).mean(-1)
    pair = jnp.triu(jnp.ones_like(distance), 1)
    same = pair * (task_id[:, None] == task_id[None])
    other = pair - same
    # the root's slope is infinite only at -1e-3, so masked entries cannot make NaN gradients
    pos = (same * jnp.sqrt(distance + 1e-3)).sum() / (same.sum() + 1e-3)
    neg = (other / (distance + 0.1)).sum() / (other.sum() + 1e-3)
    return pos + neg


def expectile(error: Float[Array, " N"], share: Scalar) -> Float[Array, ""]:
    """IQL's asymmetric squares, mean over rows: |share - 1(error < 0)| error^2 (its Eq. 5).

    Args: error, target minus prediction; share, the expectile: above 0.5 the prediction rises
    above the mean.
    """
    weight = jnp.where(error < 0, 1.0 - share, share)
    return (weight * error**2).mean()


RowCodes = Float[Array, "T C Z"]  # one of each context transition


def club_bound(z: RowCodes, mean: RowCodes, variance: RowCodes) -> Float[Array, ""]:
    """CLUB upper bound of I(z; (s, a)) of codes, given p(z | s, a); in O(C).

    mean_{i,j} (z_j - mu_i)^2 / var_i - mean_t (z_t - mu_t)^2 / var_t, pairs within a task, mean
    over Z and tasks (docs/methods/csro.md, "Bound"). The pair term uses
    mean_j (z_j - mu_i)^2 = mean_j z_j^2 - 2 mu_i mean_j z_j + mu_i^2.
    """
    chex.assert_equal_shape([z, mean, variance])
    first = z.mean(1, keepdims=True)
    second = (z**2).mean(1, keepdims=True)
    all_pairs = (second - 2 * mean * first + mean**2) / variance
    matched = (z - mean) ** 2 / variance
    return (all_pairs - matched).mean()


def club_bound_pairs(z: RowCodes, mean: RowCodes, variance: RowCodes) -> Float[Array, ""]:
    """`club_bound` from all C^2 pairs, as released: a reference, and O(C^2) in memory."""
    pairs = (z[:, None] - mean[:, :, None]) ** 2 / variance[:, :, None]  # [T, i, j, Z]
    matched = (z - mean) ** 2 / variance
    return pairs.mean() - matched.mean()


def club_likelihood(z: RowCodes, mean: RowCodes, variance: RowCodes) -> Float[Array, ""]:
    """Negative log-likelihood, up to a constant, of CLUB's network; mean over every axis."""
    return ((z - mean) ** 2 / (2 * variance) + 0.5 * jnp.log(variance)).mean()


def cosine(a: Float[Array, "N Z"], b: Float[Array, "M Z"]) -> Float[Array, "N M"]:
    """Cosine of all pairs of rows; zero rows give 0."""
    unit = lambda x: x / jnp.sqrt((x**2).sum(-1, keepdims=True) + NORM_FLOOR)
    return unit(a) @ unit(b).T


def code_contrast(
    z: Float[Array, "T Z"],
    codes: Float[Array, "N Z"],
    matched: Int[Array, " T"],
    temperature: Scalar,
) -> Float[Array, ""]:
    """CTMRL Eq. 3: InfoNCE of z against the codes; `matched` are the labels.

    The mean over the batch instead of the paper's sum: free of the meta-batch size.
    """
    log_p = jax.nn.log_softmax(cosine(z, codes) / temperature, axis=-1)
    return -jnp.take_along_axis(log_p, matched[:, None], axis=-1).mean()


def info_nce(
    query: Float[Array, "Q Z"],
    positive: Float[Array, "Q Z"],
    negatives: Float[Array, "Q N Z"],
    temperature: Scalar,
) -> Float[Array, ""]:
    """InfoNCE with negatives of each query's own, mean over queries.

    -log [e^(q.k / tau) / (e^(q.k / tau) + sum_n e^(q.n / tau))] of codes of length 1
    (docs/methods/corro.md, "Losses").
    """
    chex.assert_equal_shape([query, positive])
    own = (query * positive).sum(-1, keepdims=True)
    others = (query[:, None] * negatives).sum(-1)
    logits = jnp.concatenate([own, others], axis=1) / temperature
    return -jax.nn.log_softmax(logits, axis=-1)[:, 0].mean()


def standard_kl(
    mean: Float[Array, "*rows Z"], log_variance: Float[Array, "*rows Z"]
) -> Float[Array, "*rows"]:
    """KL of N(mean, exp(log_variance)) from N(0, I), summed over Z."""
    return 0.5 * (jnp.exp(log_variance) + mean**2 - 1.0 - log_variance).sum(-1)


Views = Float[Array, "task Z"]  # z of one context of each training task
Groups = Int[Array, " task"]


def group_contrast(
    anchor: Views,
    positive: Views,
    group: Groups,
    num_groups: int,
    filler: Bool[Array, "task task"],
    temperature: Scalar,
) -> Float[Array, ""]:
    """CTMRL Eq. 10: InfoNCE between two views of each task among the tasks of the same code.

    Args: group, the code of each task; filler, extra negatives for tasks that are alone in their
    group (the paper's M). Mean over the tasks of a code, then over non-empty codes. Sign and
    denominators as in Eq. 10.
    """
    same = group[:, None] == group[None]
    alone = same.sum(1, keepdims=True) == 1
    allowed = same | (alone & filler)
    logits = jnp.where(allowed, cosine(anchor, positive) / temperature, -jnp.inf)
    row_loss = -jnp.diagonal(jax.nn.log_softmax(logits, axis=-1))
    size = jax.ops.segment_sum(jnp.ones_like(row_loss), group, num_groups)
    mean = jax.ops.segment_sum(row_loss, group, num_groups) / jnp.maximum(size, 1.0)
    return mean.sum() / jnp.maximum((size > 0).sum(), 1)


def bilinear_group_contrast(
    anchor: Float[Array, "N Z"],
    positive: Float[Array, "N Z"],
    group: Int[Array, " N"],
    num_groups: int,
    matrix: Float[Array, "Z Z"],
) -> Float[Array, ""]:
    """The release's Eq. 10: logits z' W z^T, summed over codes, singletons give 0.

    `matrix` is frozen (docs/methods/ctmrl.md, "Losses"). Rows of a group share one softmax.
    """
    same = group[:, None] == group[None]
    logits = jnp.where(same, anchor @ matrix @ positive.T, -jnp.inf)
    row_loss = -jnp.diagonal(jax.nn.log_softmax(logits, axis=-1))
    size = jax.ops.segment_sum(jnp.ones_like(row_loss), group, num_groups)
    return (jax.ops.segment_sum(row_loss, group, num_groups) / jnp.maximum(size, 1.0)).sum()


def dual_kl(c_policy: Float[Array, " N"], c_data: Float[Array, " N"]) -> Float[Array, " N"]:
    """BRAC's dual estimate of KL(policy | data) per row: 1 + log(sp(c_pi) + 1e-8) - sp(c_data)."""
    return 1.0 + jnp.log(jax.nn.softplus(c_policy) + 1e-8) - jax.nn.softplus(c_data)


def value_penalty(c_mixed: Float[Array, " N"]) -> Float[Array, ""]:
    """mean max(|c| - 1, 0)^2: what every release calls a gradient penalty.

    Source: docs/methods/backbones.md, "BRAC-SAC".
    """
    return jnp.mean(jnp.maximum(jnp.sqrt(1e-8 + c_mixed**2) - 1.0, 0.0) ** 2)


def mse(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean squared error over every axis."""
    chex.assert_equal_shape([a, b])
    return jnp.mean((a - b) ** 2)
