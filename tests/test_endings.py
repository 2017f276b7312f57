"""How output and signals end a command: one line, the right code, and what was done is saved."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from experiments.cli import command, console, exit_codes
from experiments.host import graphics, preemption
from experiments.show import offscreen


def run(function):
    """Runs a command of its own; returns its exit code."""
    return command.main(command.Command("x", "", function), ["x"])


def unread(function):
    """Returns (exit code, stderr) of a command whose stdout has no reader any more."""
    reader, writer = os.pipe()
    os.close(reader)
    told = io.TextIOWrapper(io.BytesIO())
    with pytest.MonkeyPatch.context() as patch, open(writer, "w") as broken:
        patch.setattr(sys, "stdout", broken)
        patch.setattr(sys, "stderr", told)
        console.protect()
        code = run(function)
    told.flush()
    return code, told.buffer.getvalue().decode()


def test_a_command_whose_output_nobody_reads_ends_in_one_line():
    after = []

    def function(line):
        print("much", flush=True)
        after.append(line)

    code, err = unread(function)
    assert code == exit_codes.INTERRUPTED and not after
    assert err.count("\n") == 1 and "nobody reads the output any more" in err
    # short output is missed only at the end
    code, err = unread(lambda line: print("short"))
    assert code == exit_codes.INTERRUPTED and err.count("\n") == 1


def test_what_is_held_is_saved_first():
    steps = []

    def function(line):
        with preemption.held():
            for step in range(3):
                print("step", step, flush=True)
                steps.append(step)
                if preemption.requested():
                    break
        preemption.check()

    code, err = unread(function)
    assert code == exit_codes.INTERRUPTED and steps == [0] and err.count("\n") == 1


def test_other_errors_of_output_are_not_hidden(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        console.Output(Full(), lambda: None).write("x")


def test_characters_that_stdout_cannot_encode_are_written_as_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    console.protect()
    assert run(lambda line: print("results: rüns/\udcff")) == exit_codes.DONE
    assert raw.getvalue() == b"results: r\\xfcns/\\udcff\n"


@pytest.mark.parametrize("name,told", [("run", 1), ("report", 0)])
def test_a_program_whose_reader_has_ended_tells_it_in_one_line_if_it_resumes(name, told):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", "--help"], stdout=writer, text=True,
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(writer)
    assert ended.returncode == exit_codes.INTERRUPTED
    assert ended.stderr.count("\n") == ended.stderr.count("nobody reads") == told


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_saves_as_sigterm_does(handlers, capsys):
    saved = []
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run below nohup

    def function(line):
        with preemption.held():
            for _ in range(2):  # the shell and the system may both send it
                os.kill(os.getpid(), signal.SIGHUP)
            saved.append(preemption.requested())
        preemption.check()

    assert run(function) == exit_codes.INTERRUPTED and saved == [True]
    assert capsys.readouterr().err.startswith("interrupted; the same command resumes")


def test_a_command_below_nohup_goes_on(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run(lambda line: os.kill(os.getpid(), signal.SIGHUP)) == exit_codes.DONE
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_graphics_library_is_for_pictures_only(monkeypatch):
    monkeypatch.setenv(graphics.NAME, "nonsense")
    monkeypatch.setenv(graphics.ASIDE, "")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", graphics.NEEDS_IT, "a"])
    graphics.set_aside()
    assert os.environ[graphics.NAME] == "nonsense"  # the process that draws
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.render"])
    graphics.set_aside()
    assert graphics.NAME not in os.environ and graphics.chosen() == "nonsense"
    tried = []
    monkeypatch.setattr(offscreen, "_try", lambda library, _: tried.append(library) or "no")
    monkeypatch.setattr(offscreen.mujoco, "mj_saveModel", lambda *_: None)
    pictures, why = offscreen.render(None, [], 0, ())
    assert pictures is None and tried == ["nonsense"] and why == "nonsense: no"
