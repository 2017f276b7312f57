"""What a table of `experiments.reproduce` is made of."""

from typing import NamedTuple


class Comparison(NamedTuple):
    """A table of one cell for each row and environment."""

    about: str  # what it compares, in one line
    rows: dict  # name -> flags of `experiments.run`
    envs: tuple
    columns: tuple = ()  # (protocol, task set), for each environment; (): each method's own
    of_env: dict = {}  # noqa: RUF012 read only; environment -> {row: flags for it alone}
    paper: str = ""  # kind of spread of a paper whose numbers stand beside ours: "ci95" or "std"
    paper_rows: tuple | None = None  # the rows that its numbers are of; None: all
    num_seeds: int = 8  # as in the paper, unless --num_seeds says otherwise


def on_gentle(rows):
    """Returns rows with the suite `gentle`."""
    return {name: (*line, "--suite=gentle") for name, line in rows.items()}
