"""Offline meta-RL algorithms behind the `Algorithm` contract."""
