"""UNICORN: FOCAL's metric, and the reconstruction of transitions from z (NeurIPS'24).

    loss = focal_weight * losses.focal(z) + prediction_weight * reconstruction(s' - s, r; s, a, z)
    one Adam step on encoder and decoder

The metric bounds one side of the information between z and the task, the reconstruction the other.
`paper` is the method on CSRO's code base, where it was compared with CSRO and ER-TRL, `release` its
authors' own code; side by side they are the table of differences:

| part | fidelity=paper | fidelity=release |
|---|---|---|
| encoder | FOCAL's: mean of tanh codes | noise of a learned variance before tanh |
| context | rows, as `train.context_draw` says | one whole episode |
| decoder | one, of (s' - s) / sigma_s and standard r | two, of s' - s and of r |
| error | mean square, on the RL batch | Gaussian likelihood, on the context |
| tasks of a batch | distinct | drawn with replacement |
| weights, Z | FOCAL 10, decoder by environment; the suite's Z | FOCAL and Z by environment |

Deviations, with reasons: sigma_s, mu_r and sigma_r are of all training tasks and not of one, since
one task says little of the others; contexts of `release` lack the end flag, which tells no task.
In `release` z at test time is its mean over the noise. Source: docs/methods/unicorn.md.
"""

from gentle_jax.algorithms.unicorn.method import make
from gentle_jax.algorithms.unicorn.settings import (
    DEFAULT_FIDELITY,
    FIDELITY,
    OFFERS,
    PRESETS,
    PROTOCOL,
    SETTINGS,
    VARIANTS,
    Config,
)

__all__ = [
    "DEFAULT_FIDELITY", "FIDELITY", "OFFERS", "PRESETS", "PROTOCOL", "SETTINGS", "VARIANTS",
    "Config", "make",
]  # fmt: skip
