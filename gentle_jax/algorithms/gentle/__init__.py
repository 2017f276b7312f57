"""GENTLE: a task auto-encoder on contexts relabelled by dynamics models (AAAI'24).

Source: docs/methods/gentle.md.

    dynamics: train one ensemble (s, a) -> r (or r, s' - s) per training task
    train: for each step
        every `relabel_every` steps, for each training task (the source) and some others (targets):
            rows (s, policy's action at z) of the source, labelled by the target's ensemble
        context = 95 % relabelled rows + 5 % real rows
        descend  the error of (r or r, s') decoded from (s, a, z); only it reaches the encoder
        step of the backbone at z

| point | fidelity=release (default: what was run) | fidelity=paper |
|---|---|---|
| 1 cross-task actions | z of the task the state came from | z of the task being augmented |
| 2 relabelling policy | mean of the target policy | sample of the policy |
| 4 cross rows per task | sources at random, 3 on average | exactly 3 sources (cyclic shifts) |
| 5 context | 95 % relabelled, 5 % real | drawn from the union in proportion to its sizes |
| 8, 9 reconstruction, encoder | r only where only the reward varies | r and s'; encoder sees s' |

Deviations, with reasons: the real rows of a context come from the whole dataset, not from the
release's slowly refreshed sub-sample; rows are not sorted by ensemble spread, which has no effect;
epochs of the dynamics stage are bounded (`dynamics`). Table 2 of the paper:
`objective=contrastive`, `relabel=False`, `policy_relabel=False`; Figure 3: `num_cross_tasks` and
`own_share`.
"""

from gentle_jax.algorithms.gentle.method import make
from gentle_jax.algorithms.gentle.settings import (
    DEFAULT_FIDELITY,
    FIDELITY,
    OFFERS,
    PERIODIC,
    PRESETS,
    SETTINGS,
    VARIANTS,
    Config,
    lacks,
)

__all__ = [
    "DEFAULT_FIDELITY", "FIDELITY", "OFFERS", "PERIODIC", "PRESETS", "SETTINGS", "VARIANTS",
    "Config", "lacks", "make",
]  # fmt: skip
