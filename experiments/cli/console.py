"""What the user sees while work goes on: a bar on a terminal, plain lines elsewhere."""

import errno
import os
import sys
import time

from tqdm import tqdm

from ..host import preemption

GONE = (errno.EPIPE, errno.EIO)  # the reader has ended, the terminal was closed
PLAIN_SECONDS = 15.0  # between lines when output is not a terminal


class Output:
    """A stream of text whose reader may go away: the rest is dropped. Stands for it, hence a class.

    Args: lost, called once when that is noticed.
    """

    def __init__(self, stream, lost):
        self._stream, self._lost = stream, lost

    def write(self, text):
        """Writes, or drops; returns the length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self):
        """Flushes, or drops."""
        self._attempt(self._stream.flush)

    def _attempt(self, action):
        try:
            action()
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)  # what is buffered must go somewhere
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._lost()

    def __getattr__(self, name):
        return getattr(self._stream, name)


def protect():
    """Makes output safe: characters that it cannot encode, and readers that end before it does."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = Output(sys.stdout, preemption.unread)
    if sys.stderr is not None:
        sys.stderr = Output(sys.stderr, lambda: None)


class Progress:
    """One phase's progress: `update(done, text)`. A terminal gets a bar with ETA, else lines."""

    def __init__(self, name, total, done=0):
        self.name, self.total, self.begin = name, total, time.perf_counter()
        self.first, self.shown = done, 0.0
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=name, leave=True) if terminal else None

    def update(self, done, text=""):
        """Shows that `done` of `total` steps are finished, and a few numbers."""
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        if now - self.shown < PLAIN_SECONDS and done < self.total:
            return
        self.shown = now
        left = (now - self.begin) / max(done - self.first, 1) * (self.total - done)
        print(f"{self.name}: {done}/{self.total}, {left:.0f} s left  {text}", flush=True)

    def close(self):
        """Ends the phase."""
        if self.bar is not None:
            self.bar.close()


def megabytes(count):
    """Returns a byte count for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
