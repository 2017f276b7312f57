"""The papers' equations in NumPy with plain loops, written apart from gentle_jax.losses.

Equation numbers are those of the papers; the rest is in docs/methods. Everything is float64.
"""

import math

import numpy as np


def focal(z, task_id):
    """Inverse-distance metric loss over pairs i < j."""
    pos, neg, n_pos, n_neg = 0.0, 0.0, 0, 0
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            delta = sum((a - b) ** 2 for a, b in zip(z[i], z[j], strict=True)) / len(z[i])
            if task_id[i] == task_id[j]:
                pos, n_pos = pos + math.sqrt(delta + 1e-3), n_pos + 1
            else:
                neg, n_neg = neg + 1.0 / (delta + 0.1), n_neg + 1
    return pos / (n_pos + 1e-3) + neg / (n_neg + 1e-3)


def club_bound(z, mean, variance):
    """CLUB's bound from every pair (i, j) of one task, mean over pairs, Z and tasks."""
    tasks, rows, dims = z.shape
    pairs = matched = 0.0
    for t in range(tasks):
        for k in range(dims):
            for i in range(rows):
                matched += (z[t, i, k] - mean[t, i, k]) ** 2 / variance[t, i, k]
                for j in range(rows):
                    pairs += (z[t, j, k] - mean[t, i, k]) ** 2 / variance[t, i, k]
    return pairs / (tasks * dims * rows**2) - matched / (tasks * dims * rows)


def club_likelihood(z, mean, variance):
    """Gaussian negative log-likelihood without its constant."""
    total = 0.0
    for x, m, v in zip(z.ravel(), mean.ravel(), variance.ravel(), strict=True):
        total += (x - m) ** 2 / (2 * v) + 0.5 * math.log(v)
    return total / z.size


def cos(a, b):
    """Cosine of two vectors; the floor of 1e-8 sits under both roots."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norm_a = math.sqrt(sum(x * x for x in a) + 1e-8)
    return dot / (norm_a * math.sqrt(sum(y * y for y in b) + 1e-8))


def _cross_entropy(logits, label):
    return -(logits[label] - math.log(sum(math.exp(x) for x in logits)))


def code_contrast(z, codes, matched, temperature):
    """Eq. 3, mean over the batch."""
    total = 0.0
    for row, n in zip(z, matched, strict=True):
        total += _cross_entropy([cos(row, c) / temperature for c in codes], n)
    return total / len(z)


def group_contrast(anchor, positive, group, filler, temperature):
    """Eq. 10: InfoNCE within each code, fillers for singletons, mean over non-empty codes."""
    per_code = []
    for code in sorted(set(group)):
        members = [k for k in range(len(group)) if group[k] == code]
        total = 0.0
        for k in members:
            columns = list(members)
            if len(members) == 1:
                columns += [m for m in range(len(group)) if m != k and filler[k][m]]
            logits = [cos(anchor[k], positive[m]) / temperature for m in columns]
            total += _cross_entropy(logits, columns.index(k))
        per_code.append(total / len(members))
    return sum(per_code) / len(per_code)


def bilinear_group_contrast(anchor, positive, group, matrix):
    """The release's Eq. 10: logits anchor W positive, summed over codes."""
    total = 0.0
    for code in sorted(set(group)):
        members = [k for k in range(len(group)) if group[k] == code]
        inner = 0.0
        for i, k in enumerate(members):
            inner += _cross_entropy([anchor[k] @ matrix @ positive[m] for m in members], i)
        total += inner / len(members)
    return total


def gaussian_entropy(actions):
    """0.5 log det(2 pi e S) of one task's actions [B, A], S the sample covariance + 1e-5 I."""
    rows, size = actions.shape
    mean = [sum(a[i] for a in actions) / rows for i in range(size)]
    covariance = np.zeros((size, size))
    for a in actions:
        for i in range(size):
            for j in range(size):
                covariance[i, j] += (a[i] - mean[i]) * (a[j] - mean[j]) / (rows - 1)
    covariance += 1e-5 * np.eye(size)
    return 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * covariance))


def softplus(x):
    """log(1 + e^x)."""
    return math.log(1.0 + math.exp(x))


def dual_kl(c_policy, c_data):
    """The dual estimate, docs/methods/backbones.md, "BRAC-SAC"; per row."""
    return np.array(
        [
            1.0 + math.log(softplus(p) + 1e-8) - softplus(d)
            for p, d in zip(c_policy, c_data, strict=True)
        ]
    )


def value_penalty(values):
    """The penalty on the critic's value, docs/methods/backbones.md, "BRAC-SAC"."""
    return sum(max(math.sqrt(1e-8 + v * v) - 1.0, 0.0) ** 2 for v in values) / len(values)


def match(codes, z):
    """Eq. 1: the code of the largest cosine."""
    return [int(np.argmax([cos(row, c) for c in codes])) for row in z]


def move(codes, z, matched, eta):
    """Eq. 2 with the mean of a code's matches; codes without one stay."""
    new = codes.astype(float).copy()
    for n in range(len(codes)):
        own = [z[i] for i in range(len(z)) if matched[i] == n]
        if own:
            new[n] = (1 - eta) * codes[n] + eta * np.mean(own, 0)
    return new


def move_ema(mean, size, z, matched, decay):
    """The move of the release. Returns (codes, mean, size)."""
    num_codes = len(size)
    new_mean, new_size = np.zeros_like(mean), np.zeros(num_codes)
    for n in range(num_codes):
        own = [z[i] for i in range(len(z)) if matched[i] == n]
        new_size[n] = decay * size[n] + (1 - decay) * len(own)
        new_mean[n] = decay * mean[n] + (1 - decay) * sum(own, np.zeros(mean.shape[1]))
    total = new_size.sum()
    smooth = [(s + 1e-5) / (total + num_codes * 1e-5) * total for s in new_size]
    return new_mean / np.array(smooth)[:, None], new_mean, new_size


def mlp(params, x, hidden):
    """A ReLU network with `hidden` hidden layers; further Dense layers are heads, concatenated."""
    layers = [params[f"Dense_{i}"] for i in range(len(params))]
    for layer in layers[:hidden]:
        x = np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0.0)
    heads = [x @ np.asarray(h["kernel"]) + np.asarray(h["bias"]) for h in layers[hidden:]]
    return np.concatenate(heads, -1)
