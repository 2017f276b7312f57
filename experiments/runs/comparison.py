"""What a table of `experiments.reproduce` is made of."""

from typing import NamedTuple


class Axis(NamedTuple):
    """What rows of a table are along, for its figure: curves over some values."""

    name: str
    at: dict  # row -> (curve, its value as text), values in their order


class Comparison(NamedTuple):
    """A table of one cell for each row and environment."""

    about: str  # what it compares, in one line
    rows: dict  # name -> flags of `experiments.run`
    envs: tuple
    columns: tuple = ()  # (protocol, task set), for each environment; (): each method's own
    of_env: dict = {}  # noqa: RUF012 read only; environment -> {row: flags for it alone}
    paper: str = ""  # kind of spread of a paper whose numbers stand beside ours: "ci95" or "std"
    paper_rows: tuple | None = None  # the rows that its numbers are of; None: all
    # row -> (file of `experiments/papers`, {its column: value}) where settings do not say which
    paper_of: dict = {}  # noqa: RUF012 read only
    contexts: int = 0  # of each test task, collected by the policies: how well tasks are recognized
    axis: Axis | None = None  # of a figure beside the table
    num_seeds: int = 8  # as in the paper, unless --num_seeds says otherwise


def on_gentle(rows):
    """Returns rows with the suite `gentle`."""
    return {name: (*line, "--suite=gentle") for name, line in rows.items()}


def levels(num_steps, first, every, number, episodes):
    """Returns the flags of behaviour data: agents at `number` levels, `every` steps apart."""
    names = ("num_steps", "first_level", "level_every", "num_levels", "episodes_per_level")
    values = (num_steps, first, every, number, episodes)
    pairs = zip(names, values, strict=True)
    return tuple(f"--config.behaviour.{name}={value}" for name, value in pairs)
