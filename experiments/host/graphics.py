"""MuJoCo's graphics library (`MUJOCO_GL`) is for pictures only: it is kept from all else.

`import mujoco` fails where the variable has a wrong value, or names a library that is not there.
Commands need no graphics but for the process of `show.offscreen`, which is given it.
"""

import os
import sys

NAME, ASIDE = "MUJOCO_GL", "GENTLE_JAX_MUJOCO_GL"
NEEDS_IT = __package__.replace("host", "show") + ".offscreen"


def set_aside():
    """Hides the user's choice from `import mujoco`, before that."""
    if NAME in os.environ and NEEDS_IT not in sys.orig_argv:
        os.environ[ASIDE] = os.environ.pop(NAME)


def chosen():
    """Returns the user's choice, "" where there is none."""
    return os.environ.get(ASIDE) or os.environ.get(NAME, "")
