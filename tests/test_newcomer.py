"""`benchmarks.newcomer`: what it counts, with commands that are only noted."""

import json

import pytest

from benchmarks import newcomer


class Noting(newcomer.Newcomer):
    """Notes what it should run; `data` and `run` print what the commands do."""

    said = "results: runs/a\nimported data: data/imported_1\n0.5\n"

    def python(self, *words):
        if "tasks" in words:
            (self.clone / "mine.csv").write_text("set,goal[0]\ntest,0.5\n")
        with open(self.outside / "noted", "a") as file:
            file.write(json.dumps(words) + "\n")
        return ("0.5" if words[0] == "-c" else self.said), 2.0


@pytest.fixture
def person(tmp_path):
    made = Noting(tmp_path / "clone", tmp_path / "outside")
    for folder in made:
        folder.mkdir()
    return made


def test_every_task_has_its_row_and_its_bar(person):
    told = []
    rows = newcomer.rows_of(person, told.append)
    assert rows == told and {row["task"] for row in rows} == set(newcomer.BARS)
    assert all(row["met"] for row in rows)  # of lines and commands; the seconds are noted ones
    counts = {row["task"]: row["measured"] for row in rows if row["unit"] == "lines"}
    assert counts["load an agent and act"] == 4 and counts["Gymnasium loop"] == 5
    assert 10 < counts["own method outside of the repository"] <= 25  # the README's
    noted = [json.loads(line) for line in (person.outside / "noted").read_text().splitlines()]
    assert sum("experiments.data" in words for words in noted) == 1 + len(newcomer.FORMATS)
    moved = (person.clone / "mine.csv").read_text()
    assert moved == "set,goal[0]\ntest,0.45\n"


def test_a_bar_that_is_missed_is_told(person, capsys, monkeypatch):
    monkeypatch.setitem(newcomer.BARS, "load an agent and act", ("lines", 3))
    rows = newcomer.rows_of(person, newcomer.show)
    assert not rows[0]["met"]
    assert "load an agent and act: 4 lines (bar 3: MISSED), 2.0 s" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys, tmp_path):
    assert newcomer.main(["x", f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: --out=")
