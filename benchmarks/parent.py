"""What a process does that others start: it ends when they are gone. Imports no JAX."""

import os
import threading
import time

from experiments.cli import exit_codes


def die_with_parent():
    """Ends this process when the one that started it is gone: nothing holds a device then."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(exit_codes.FAILED)

    threading.Thread(target=watch, daemon=True).start()
