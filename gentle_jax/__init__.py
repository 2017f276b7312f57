"""gentle_jax: offline meta-reinforcement learning as pure functions over pytrees."""

__version__ = "0.1.0"
