"""CORRO: an encoder of transitions by InfoNCE with generated negatives (ICML'22).

Source: docs/methods/corro.md.

    cvae: for each step
        (s, a, r, s') ~ rows of training tasks
        code ~ q(s, a, r, s')
        descend  kl_weight * KL(q | N(0, I)) + mse(s') + mse(r)      of decoder(s, a, code)
    contrast: for each step
        q, k = E1 of two rows of a task;  n = E1 of (s, a) of q with another (s', r)
        descend  -log [ e^(q.k / tau) / (e^(q.k / tau) + sum_n e^(q.n / tau)) ]
    train: for each step
        z = sum_t softmax_t(u . E1(x_t) + b) E1(x_t);  E1 stays as it is
        step of the backbone at z;  (u, b) descend the critics' loss

Another (s', r) is decoder(s, a, N(0, I)) with `negatives=generative`, (s', r + noise) with
`reward`; `none` takes random rows of random tasks. These two skip the stage `cvae`. Only the
released code was read: there is one fidelity.

Deviations, with reasons: the CVAE sees training tasks only (the release's sees the test tasks: a
leak), rows are drawn with replacement, every task equally often; rates of all stages end at
`train.final_lr` of what they were, as elsewhere; contexts are those of the suite, not one whole
episode; z is 0 before any row.
"""

from gentle_jax.algorithms.corro.method import make
from gentle_jax.algorithms.corro.settings import PRESETS, PROTOCOL, SETTINGS, VARIANTS, Config

__all__ = ["PRESETS", "PROTOCOL", "SETTINGS", "VARIANTS", "Config", "make"]
