"""What protocols need of an environment or an algorithm, and which of them can run.

A protocol's module names its needs in `NEEDS`; modules of environments and algorithms name what
they have in `OFFERS`. A protocol whose needs are not offered is left out of the default list, and
refused where it is asked for. A name that is not in FEATURES may be used too: whoever offers it has
it. A context is no need: an algorithm without one runs everywhere, as a floor for the others.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gentle_jax import errors, registry
from gentle_jax.types import Env, Protocol, Representation


class Feature(NamedTuple):
    """Something that not all have."""

    kind: str  # the table of `registry` whose entries may have it
    there: Callable[[Env, Representation], bool]  # whether the bundles have it: OFFERS are claims


FEATURES = {
    "relabel": Feature("environment", lambda env, rep: env.relabel is not None),
    "predict_reward": Feature("algorithm", lambda env, rep: rep.predict_reward is not None),
    "uncertainty": Feature("algorithm", lambda env, rep: rep.uncertainty is not None),
}


def able(algorithm: str, env: str) -> tuple[str, ...]:
    """Returns the names of the protocols that can run. Args: names of the registry."""
    return tuple(name for name in registry.PROTOCOLS if not _lacking(name, algorithm, env))


def served(protocols: Iterable[str], algorithm: str, config: Any) -> tuple[str, ...]:
    """Returns the protocols that do not need what an algorithm's `lacks` takes back.

    Args: algorithm, its name; config, its Config.
    """
    lacks = getattr(registry.load("algorithm", algorithm), "lacks", lambda config: ())(config)
    return tuple(name for name in protocols if not {*needs_of(name)} & {*lacks})


def check(protocols: Iterable[str], algorithm: str, env: str) -> None:
    """Raises UserError for a protocol that is unknown or whose needs are not offered."""
    for name in protocols:
        missing = _lacking(name, algorithm, env)
        if missing:
            raise _refusal(name, missing[0], _without(missing[0], algorithm, env), algorithm, env)


def check_built(
    protocols: dict[str, Protocol], algorithm: str, env: Env, representation: Representation
) -> None:
    """Raises UserError for a need that these bundles, with their settings, lack.

    Needs are those of a protocol's module and of its settings. Args: protocols, {name: Protocol};
    algorithm, its name.
    """
    for name, protocol in protocols.items():
        for need in (*needs_of(name), *protocol.needs):
            feature = FEATURES.get(need)
            if feature is not None and not feature.there(env, representation):
                who = _without(need, algorithm, env.name) + " with these settings"
                change = _change(need, need in protocol.needs, feature.kind)
                raise _refusal(name, need, who, algorithm, env.name, change)


def needs_of(protocol: str) -> tuple[str, ...]:
    """Returns what a protocol needs."""
    return tuple(getattr(registry.load("protocol", protocol), "NEEDS", ()))


def offers_of(kind: str, name: str) -> tuple[str, ...]:
    """Returns what an entry of the registry offers. Args: kind, "environment" or "algorithm"."""
    return tuple(getattr(registry.load(kind, name), "OFFERS", ()))


def _lacking(protocol, algorithm, env):
    """Returns what a protocol needs and neither algorithm nor environment offers."""
    offered = offers_of("algorithm", algorithm) + offers_of("environment", env)
    return [need for need in needs_of(protocol) if need not in offered]


def _without(need, algorithm, env):
    """Returns, in words, who lacks a need."""
    names = {"algorithm": f"algorithm {algorithm!r}", "environment": f"environment {env!r}"}
    if need in FEATURES:
        return f"{names[FEATURES[need].kind]} lacks"
    return f"both {names['algorithm']} and {names['environment']} lack"


def _change(need, by_settings, kind):
    """Returns, in words, which settings to change. Args: by_settings, the protocol's own ask."""
    if by_settings:
        return f"; or change the eval.* setting that asks for {need!r} (such as eval.quantifier)"
    section = {"algorithm": "algo", "environment": "env"}[kind]
    return f"; or leave out the --config.{section}.* setting that takes {need!r} away"


def _refusal(protocol, need, who, algorithm, env, change=""):
    """Returns the UserError. Args: change, what else helps."""
    others = [
        name for name in able(algorithm, env) if need not in needs_of(name) and name != protocol
    ]
    return errors.UserError(
        f"protocol {protocol!r} needs {need!r}, which {who}: choose from "
        f"{', '.join(others)}{change}"
    )
