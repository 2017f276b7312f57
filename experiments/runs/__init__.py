"""Run folders: what is in them, where they are, grids and interruptions of runs."""
