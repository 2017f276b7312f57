"""What the user sees while work goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

PLAIN_SECONDS = 15.0  # between lines when output is not a terminal


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
