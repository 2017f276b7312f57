"""To be removed: `gentle_jax.presets`."""

from gentle_jax.presets import *  # noqa: F403
