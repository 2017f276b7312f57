"""Suites: the publication whose tasks, data and test protocol a run follows.

Source: docs/methods/environments.md, "Suites".
"""

from typing import NamedTuple

from gentle_jax import errors, registry


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


def backbone(suite: str, env: str, preset: str) -> str:
    """Returns the backbone of a run that names none: the suite's.

    An environment whose `BACKBONES` has the preset goes before: at that preset's sizes the suite's
    backbone does not learn there.
    """
    of_env = getattr(registry.load("environment", env), "BACKBONES", {})
    return of_env.get(preset, get(suite).backbone)
