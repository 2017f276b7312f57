"""SIGTERM, SIGINT, SIGHUP: save, then end with exit code 42; the same command resumes.

Anywhere a signal ends the command at once, except inside `held`, where it waits for the next
`check`: between two pieces of training or collecting there is something to save first. Periodic
checkpoints are the guarantee; signals only make the loss smaller. Output that nobody reads any more
(`run | head`) counts as a signal. Imports no more than it must: it is the first thing that
a command imports.
"""

import contextlib
import os
import signal
import threading

from ..cli import exit_codes

# not every system has the last one: the terminal was closed
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


class Preempted(BaseException):
    """The command was asked to stop. No `Exception`: nothing that mends errors may swallow it."""


class _Signals:
    """What has arrived; signals belong to the process, so there is one of these."""

    received: signal.Signals | None = None
    unread = False  # whether it is that nobody reads the output any more
    running = False  # whether `command.main` has begun, which turns Preempted into an exit code
    held = 0


def install():
    """Takes over SIGNALS; does nothing outside the main thread, which alone may.

    SIGHUP stays ignored where it is: `nohup` says so.
    """
    _handle(_receive)


def ignore():
    """Ignores them from now on: all is done, and the exit code is settled."""
    _handle(signal.SIG_IGN)


def _handle(action):
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            hang_up = number not in (signal.SIGTERM, signal.SIGINT)
            if not (hang_up and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, action)


def begin():
    """Says that a command runs, and catches Preempted."""
    install()
    _Signals.running, _Signals.received, _Signals.unread = True, None, False


def _receive(number, frame):
    del frame
    if not _Signals.running:  # still importing: there is nothing to unwind
        os._exit(exit_codes.INTERRUPTED)
    before, _Signals.received = _Signals.received, signal.Signals(number)
    impatient = before is signal.SIGINT and number == signal.SIGINT  # Ctrl-C twice: at once
    if impatient or (before is None and not _Signals.held):  # else it is being seen to
        raise Preempted(_Signals.received.name)


def unread():
    """Says that nobody reads the output any more; does what a signal does."""
    main = threading.current_thread() is threading.main_thread()
    at_once = _Signals.received is None and main and _Signals.running and not _Signals.held
    if _Signals.received is None:
        _Signals.received, _Signals.unread = signal.SIGTERM, True
    if at_once:
        check()


def requested():
    """Whether a signal has arrived."""
    return _Signals.received is not None


def is_unread():
    """Whether what has arrived is that nobody reads the output any more."""
    return _Signals.unread


@contextlib.contextmanager
def held():
    """Signals wait inside, for a `check` there or after it."""
    _Signals.held += 1
    try:
        yield
    finally:
        _Signals.held -= 1


def check():
    """Raises Preempted if a signal has arrived."""
    if requested():
        raise Preempted(_Signals.received.name)
