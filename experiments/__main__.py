"""The commands: `python -m experiments` lists them, `python -m experiments NAME` runs one.

Where the package is installed, `gentle-jax` is the same program.
"""

import importlib
import os
import sys
import textwrap

from gentle_jax import errors

from .cli import command, exit_codes

NAMES = (
    "run", "collect", "evaluate", "report", "render", "reproduce", "data", "gather", "soak",
    "launch",
)  # fmt: skip
PACKAGES = ("launch",)  # commands of several files


def load(name):
    """Returns the Command of a name."""
    module = f".{name}" + ".__main__" * (name in PACKAGES)
    return importlib.import_module(module, __package__).COMMAND


def listing():
    """Returns a text: every command and what it is for."""
    lines = [f"{errors.command('COMMAND')} [flags]", ""]
    for name in NAMES:
        first, *rest = textwrap.wrap(load(name).summary, 86)
        lines += [f"  {name:<10} {first}", *(" " * 13 + more for more in rest)]
    return "\n".join([*lines, "", f"{errors.command('COMMAND')} --help lists its flags"])


def run(argv):
    """Runs the command that the first word names, or prints the list; returns the exit code."""
    words = argv[1:]
    if words and words[0] in NAMES:
        return command.main(load(words[0]), words)
    return command.guard(lambda: show(words))


def show(words):
    """Prints the list; returns the exit code. Raises UserError for any word but --help."""
    for word in words:
        if word not in command.HELP:
            raise errors.unknown("command", word, [*NAMES, "--help"])
    print(listing())
    return exit_codes.DONE


def main():
    """The program `gentle-jax`, and `python -m experiments`."""
    if os.getcwd() not in sys.path:  # modules of one's own, as `python -m` finds them
        sys.path.insert(0, os.getcwd())
    command.end(lambda: run(sys.argv))


if __name__ == "__main__":
    main()
