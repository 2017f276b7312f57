"""What a command is, its `--help`, and how it starts and ends."""

import errno
import logging
import os
import sys
import textwrap
from collections.abc import Callable
from typing import NamedTuple

from gentle_jax import errors

from ..host import hosts, preemption
from . import console, described, exit_codes, flags

HELP = ("--help", "-h", "--helpfull", "-help")
# what the system says of a folder that a user named and that cannot be what it should be
UNUSABLE_PATH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


class Command(NamedTuple):
    """One command, `python -m experiments.NAME`: what it is for and the flags that it reads."""

    name: str
    summary: str  # sentences for --help and the list of commands
    function: Callable[[flags.Line], int | None] | None  # returns the exit code; None is DONE
    own: tuple = ()  # flags of this command, as in flags.GROUPS
    shared: tuple = ()  # names of the flags in flags.ALL that it takes
    refused: tuple = ()  # (name, why and what to do instead) of flags worth a word of their own
    needed: tuple = ()  # flags without which it can do nothing
    texts: tuple = ()  # (name, help, default included) of shared flags that mean less here
    elsewhere: bool = False  # whether shared flags are for other machines
    resumes: bool = True  # whether the command goes on where it was interrupted
    parts: tuple = ()  # Commands NAME PART, the first word chooses; then there is no function


def entries_of(command):
    """Returns {group: flags as in flags.GROUPS} that a command takes, its own last."""
    texts, groups = {name: (name, None, None, text) for name, text in command.texts}, {}
    for group, entries in flags.GROUPS.items():
        taken = [texts.get(entry[0], entry) for entry in entries if entry[0] in command.shared]
        groups |= {group: taken} if taken else {}
    return groups | ({"this command": list(command.own)} if command.own else {})


def flag_lines(command, entries):
    """Returns the lines of --help that list flags."""
    lines = []
    for name, _, default, text in entries:
        shown = "" if default in ("", None, []) else f" [{default}]"
        must = " (needed)" if name in command.needed else ""
        first, *rest = textwrap.wrap(text + shown + must, 74)
        lines += [f"  --{name:<12} {first}", *(" " * 17 + more for more in rest)]
    return lines


def settings_lines(command):
    """Returns the lines of --help on `--config`, none where the command takes no setting."""
    places = [name.removeprefix("config.") for name in command.shared if name.startswith("config.")]
    sections = [place for place in places if "." not in place]
    keys = [f"--config.{place}=VALUE" for place in places if "." in place]
    if not places:
        return []
    text = f"any setting: --config.SECTION.KEY=VALUE with SECTION one of {' '.join(sections)}"
    text += "".join(f", and {key}" for key in keys)
    text += "; every key and value of a run is in its config.json. Unknown: an error."
    return ["", *textwrap.wrap(text, 92)]


def help_text(command):
    """Returns --help: what a command does and the flags that it takes, two screens at most."""
    if command.parts:
        lines = [f"{errors.command(command.name)} COMMAND [flags]", ""]
        lines += textwrap.wrap(command.summary, 100)
        lines += ["", "commands:"]
        lines += [f"  {word_of(part):<8} {part.summary}" for part in command.parts]
        for part in command.parts:
            entries = [entry for group in entries_of(part).values() for entry in group]
            lines += ["", f"{word_of(part)}:", *flag_lines(part, entries)]
        return "\n".join(lines)
    lines = [f"{errors.command(command.name)} [flags]", ""]
    lines += textwrap.wrap(command.summary, 100)
    for group, entries in entries_of(command).items():
        lines += ["", f"{group}:", *flag_lines(command, entries)]
    return "\n".join(lines + settings_lines(command))


def word_of(part):
    """Returns the word that chooses a part of a command."""
    return part.name.split()[-1]


def run(command, argv):
    """Reads a command line and runs the command, or prints its help; returns the exit code.

    Raises UserError for what is wrong with the command line.
    """
    parts = {word_of(part): part for part in command.parts}
    asked = any(word in HELP for word in argv[1:])
    if len(argv) > 1 and argv[1] in parts:
        return run(parts[argv[1]], [argv[0], *argv[2:]])
    if asked or (parts and len(argv) < 2):
        print(help_text(command))
        if flags.takes(command, "config.algo") and described.asked(argv[1:]):
            words = [word for word in argv if word not in HELP]
            print("\n".join(described.lines(command, words)))
        return exit_codes.DONE
    if parts:
        raise errors.unknown("command", argv[1], parts)
    return command.function(flags.read(command, argv)) or exit_codes.DONE


def guard(function, resumes=True):
    """Returns what a function returns, or the exit code of what ended it, which is told.

    Args: resumes, as in Command.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save at info level
    try:
        preemption.begin()
        code = function()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.USAGE
    except OSError as error:
        if error.errno not in UNUSABLE_PATH:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot use{where}: {error.strerror}; pass another folder", file=sys.stderr)
        return exit_codes.USAGE
    except (KeyboardInterrupt, preemption.Preempted):
        unread = ": nobody reads the output any more" if preemption.is_unread() else ""
        if resumes:
            text = f"interrupted{unread}; the same command resumes from the last checkpoint"
            print(text, file=sys.stderr)
        elif not unread:
            print("interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED


def main(command, argv=None):
    """Runs a command; returns its exit code. User errors become one line on stderr."""
    return guard(lambda: run(command, sys.argv if argv is None else argv), command.resumes)


def start(command):
    """Runs a command and ends the process with its exit code."""
    end(lambda: main(command))


def end(function):
    """Ends the process with the exit code that a function returns."""
    console.protect()
    try:
        code = function()
        preemption.ignore()
    except preemption.Preempted:  # in the moment between
        code = exit_codes.INTERRUPTED
    # at once: threads that compile, or other processes that are waited for, would hold it up
    if code == exit_codes.INTERRUPTED or (code and hosts.joined()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    sys.exit(code)
