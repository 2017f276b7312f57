"""Command lines of gentle_jax; the only place that reads arguments."""
