"""What tests of `experiments.data` share: a command run in this process."""

from experiments import data
from experiments.cli.command import main


def shown(capsys, *arguments, command=data.COMMAND):
    """Runs the command; returns (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main(command, ["command", *map(str, arguments)])
    return code, *capsys.readouterr()


def refused(capsys, *arguments, command=data.COMMAND):
    """Runs the command; returns its one line on stderr."""
    code, _, line = shown(capsys, *arguments, command=command)
    assert code == 2, line
    assert line.startswith("error: ") and line.count("\n") == 1
    return line
