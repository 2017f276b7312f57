"""Errors that a user caused and can mend: one line, shown without a traceback, exit code 2."""

import difflib
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

SCRIPT = "gentle-jax"  # the program that an installed package brings


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed and what to do."""


def unknown(kind: str, given: Any, allowed: Iterable) -> UserError:
    """Returns a UserError for a name outside `allowed`, with the nearest match."""
    allowed = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    expected = f"expected one of {', '.join(allowed)}" if allowed else "there is none; leave it out"
    return UserError(f"unknown {kind} {given!r}: {hint}{expected}")


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says; the name of its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def command(name: str) -> str:
    """Returns how a user starts the command `name` here: installed, or from a checkout."""
    checkout = pathlib.Path(__file__).parents[1] / "experiments" / "__main__.py"
    installed = pathlib.Path(sys.argv[0]).stem == SCRIPT or not checkout.is_file()
    return f"{SCRIPT} {name}" if installed else f"python -m experiments.{name}"
