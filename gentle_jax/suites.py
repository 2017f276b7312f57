"""Suites: the publication whose tasks, data and test protocol a run follows.

Source: docs/methods/environments.md, "Suites".
"""

from typing import NamedTuple

from gentle_jax import errors


class Suite(NamedTuple):
    """What a suite fixes beyond what each environment file holds."""

    backbone: str
    protocol: str  # the paper's own: reported first
    normalize_obs: bool  # z-score observations with training-set statistics


SUITES = {
    "ctmrl": Suite("brac_sac", "random_then_policy", False),
    "ctmrl_b": Suite("brac_sac", "random_then_policy", False),
    "gentle": Suite("td3_bc", "given_context", True),
}


def get(name: str) -> Suite:
    """Returns the Suite called `name`; raises UserError for an unknown one."""
    if name not in SUITES:
        raise errors.unknown("suite", name, SUITES)
    return SUITES[name]
