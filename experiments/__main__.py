"""The commands: `python -m experiments` lists them."""

import importlib
import sys
import textwrap

from experiments.cli import command, exit_codes
from gentle_jax import errors

NAMES = ("run", "collect", "report", "render", "reproduce", "data", "gather", "soak", "launch")
PACKAGES = ("launch",)  # commands of several files


def commands():
    """Returns every Command."""
    modules = [f"experiments.{name}" + ".__main__" * (name in PACKAGES) for name in NAMES]
    return tuple(importlib.import_module(module).COMMAND for module in modules)


def listing():
    """Returns a text: every command and what it is for."""
    lines = ["python -m experiments.COMMAND [flags]", ""]
    for each in commands():
        first, *rest = textwrap.wrap(each.summary, 86)
        lines += [f"  {each.name:<10} {first}", *(" " * 13 + more for more in rest)]
    return "\n".join([*lines, "", "python -m experiments.COMMAND --help lists its flags"])


def run(argv):
    """Prints the list; returns the exit code. Raises UserError for any argument but --help."""
    for word in argv[1:]:
        if word in NAMES:
            raise errors.UserError(
                f"{word} stands alone: start it as `python -m experiments.{word}`"
            )
        if word not in command.HELP:
            raise errors.unknown("argument", word, [*NAMES, "--help"])
    print(listing())
    return exit_codes.DONE


if __name__ == "__main__":
    command.end(lambda: command.guard(lambda: run(sys.argv)))
