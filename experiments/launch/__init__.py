"""Batch jobs of a sweep: `python -m experiments.launch --target=jobset --num_runs=256 ...`."""
