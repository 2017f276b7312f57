"""Benchmarks: measured numbers, never asserted in tests."""
