"""CTMRL: task contexts related to each other through a codebook (AAAI'26; docs/methods/ctmrl.md).

    warmup: for each step
        descend  L_pre^spe (+ FOCAL, CLUB in the release)
        at the end of the last iterations, collect z of all training tasks
    train: for each step
        first step: codes = K-means of what was collected
        descend  L_pre^spe + L_C + L_pre^cro + L_contra (+ FOCAL, CLUB)
        move the codes towards the z that match them
        at the end of an iteration, collect z, or move the codes towards K-means of them

An iteration is num_steps / num_iterations gradient steps. The policy sees z only, never a code.
`skeleton` is what both fidelities share; `paper` and `release` read side by side are the table of
differences:

| part | fidelity=paper | fidelity=release |
|---|---|---|
| code move | Eq. 2 once per step, rate `eta` | moving average, decay 0.9, 4 calls per step |
| L_C | Eq. 3, InfoNCE of z against codes, task mean | 0.25 MSE(code, z) + code-code contrast |
| L_pre^spe | Eq. 4-6, trains encoder and decoders | decoders only (z detached) |
| L_pre^cro | Eq. 7-9, trains codes and decoders | latent cycle through the encoder |
| L_contra | Eq. 10, cosine, singletons get `num_fillers` others | bilinear frozen W, singletons 0 |
| K-means | Euclidean | dot product, unit centres |
| FOCAL, CLUB | off (the paper does not name them) | on |

Deviations, with reasons: prediction losses are mean squared errors (the paper's sum of norms grows
with the context); they are taken on the RL batch, whose reward is dense also where contexts are
sparse; collected vectors are z, since the released collection returns undefined names; codes start
from K-means, or from N(0, 1) without it, since zero codes have no cosine. In `paper` Adam moves
codes too, by its momentum also ones without a match, and a K-means centre without members moves no
code. `algo.use_codebook=False` is "no codebook at all".
"""

from gentle_jax.algorithms.ctmrl.settings import (
    DEFAULT_FIDELITY,
    FIDELITY,
    OFFERS,
    PRESETS,
    SETTINGS,
    VARIANTS,
    Config,
)
from gentle_jax.algorithms.ctmrl.skeleton import make

__all__ = [
    "DEFAULT_FIDELITY", "FIDELITY", "OFFERS", "PRESETS", "SETTINGS", "VARIANTS", "Config", "make",
]  # fmt: skip
