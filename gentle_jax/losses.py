"""Loss functions: small, pure, over one meta batch; callers map them over runs."""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gentle_jax import cholesky
from gentle_jax.types import Scalar

NORM_FLOOR = 1e-8  # guards cosines of zero vectors
COVARIANCE_FLOOR = 1e-5  # added to the diagonal of sample covariances


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
    same = (query * positive).sum(-1, keepdims=True)
    others = (query[:, None] * negatives).sum(-1)
    logits = jnp.concatenate([same, others], axis=1) / temperature
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


def gaussian_entropy(actions: Float[Array, "T B A"]) -> Float[Array, " T"]:
    """Entropy of the normal distribution with the sample covariance of each task's actions.

    H = 0.5 log det(2 pi e S), S = sum_b (a_b - mean)(a_b - mean)^T / (B - 1) + 1e-5 I
    (docs/methods/er_trl.md, "Losses").
    """
    _, rows, size = actions.shape
    centred = actions - actions.mean(1, keepdims=True)
    covariance = jnp.einsum("tbi,tbj->tij", centred, centred) / (rows - 1)
    covariance += COVARIANCE_FLOOR * jnp.eye(size)[None]
    return 0.5 * (size * math.log(2 * math.pi * math.e) + cholesky.log_det(covariance))


Logits = Float[Array, "*rows"]


def discrimination(real: Logits, generated: Logits) -> Float[Array, ""]:
    """A discriminator's binary cross-entropy: label 1 for real rows, 0 for generated ones."""
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(generated).mean()


def deception(generated: Logits) -> Float[Array, ""]:
    """A generator's binary cross-entropy: what it makes should be labelled 1."""
    return jax.nn.softplus(-generated).mean()


def gaussian_nll(
    target: Float[Array, "*shape"],
    mean: Float[Array, "*shape"],
    log_variance: Float[Array, "*shape"],
) -> Float[Array, ""]:
    """Twice a normal distribution's negative log-likelihood, up to a constant, mean over all axes.

    (x - mean)^2 / variance + log variance (docs/methods/unicorn.md, "Losses").
    """
    chex.assert_equal_shape([target, mean, log_variance])
    return ((target - mean) ** 2 * jnp.exp(-log_variance) + log_variance).mean()


def cross_entropy(logits: Float[Array, "T N"], label: Int[Array, " T"]) -> Float[Array, ""]:
    """Cross-entropy of N classes, mean over rows."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, label[:, None], axis=-1).mean()


def dual_kl(c_policy: Float[Array, " N"], c_data: Float[Array, " N"]) -> Float[Array, " N"]:
    """BRAC's dual estimate of KL(policy | data) per row: 1 + log(sp(c_pi) + 1e-8) - sp(c_data)."""
    return 1.0 + jnp.log(jax.nn.softplus(c_policy) + 1e-8) - jax.nn.softplus(c_data)


def value_penalty(c_mixed: Float[Array, " N"]) -> Float[Array, ""]:
    """mean max(|c| - 1, 0)^2: what every release calls a gradient penalty.

    Source: docs/methods/backbones.md, "BRAC-SAC".
    """
    return jnp.mean(jnp.maximum(jnp.sqrt(1e-8 + c_mixed**2) - 1.0, 0.0) ** 2)


def preference(
    first: Float[Array, " *pairs"], second: Float[Array, " *pairs"], better: Bool[Array, " *pairs"]
) -> Float[Array, ""]:
    """Cross-entropy of sigmoid(first - second) against whether the first is better; mean.

    Args: first, second, predicted returns of two fragments (docs/methods/anole.md, "Losses").
    """
    chex.assert_equal_shape([first, second, better])
    logit = first - second
    return jnp.mean(jax.nn.softplus(logit) - better * logit)


def mse(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean squared error over every axis."""
    chex.assert_equal_shape([a, b])
    return jnp.mean((a - b) ** 2)
