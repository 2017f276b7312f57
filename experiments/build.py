"""To be removed: `gentle_jax.assembly`."""

from gentle_jax.assembly import *  # noqa: F403
