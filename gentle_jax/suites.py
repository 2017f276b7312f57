"""Suites: whose task definitions, data and test protocol a run follows (product.md sec. 2)."""

from typing import NamedTuple

from gentle_jax import errors


class Suite(NamedTuple):
    """What a suite fixes beyond what each environment file holds."""

    backbone: str
    protocol: str  # the paper's own: reported first
    normalize_obs: bool  # z-score observations with training-set statistics
    algorithm_figures: str  # prefix of the paper's tables in `experiments/reference`


SUITES = {
    "ctmrl": Suite("brac_sac", "random_then_policy", False, "ctmrl_table1"),
    "ctmrl_b": Suite("brac_sac", "random_then_policy", False, "ctmrl_table1"),
    "gentle": Suite("td3_bc", "given_context", True, "gentle_table1"),
}


def get(name):
    """Returns the Suite called `name`; raises UserError for an unknown one."""
    if name not in SUITES:
        raise errors.unknown("suite", name, SUITES)
    return SUITES[name]
