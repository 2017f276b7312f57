"""The file of events: every phase, whole lines, what a killed process leaves behind."""

import json
import subprocess
import sys

import pytest

from experiments.runs import events
from gentle_jax import errors


def test_what_is_told_is_read(tmp_path):
    path = tmp_path / "new" / "events.jsonl"
    reader = events.Reader(path)
    assert reader.read() == []  # there is no file yet
    tell = events.writer(path)
    tell("start-up", folder="x")
    tell("training", step=3)
    first = reader.read()
    assert [event["phase"] for event in first] == ["start-up", "training"]
    assert first[0]["folder"] == "x" and first[1]["step"] == 3
    assert first[0]["time"] <= first[1]["time"]
    assert reader.read() == []
    events.writer(path)("results")  # another command goes on in the same file
    assert [event["phase"] for event in reader.read()] == ["results"]
    assert len(path.read_text().splitlines()) == 3
    events.silent("results", step=1)


def test_a_line_that_is_being_written_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = events.Reader(path)
    line = json.dumps({"time": 1.0, "phase": "compile"}) + "\n"
    with open(path, "w") as file:
        file.write(line + line[:10])
        file.flush()
        assert len(reader.read()) == 1
        file.write(line[10:])
        file.flush()
        assert len(reader.read()) == 1 and reader.read() == []


@pytest.mark.parametrize(
    "bad", ['{"time": 1, "pha', "[]", "3", "null", '{"phase": "results"}', "\x00\x00",
            '{"time": 1, "phase": "lunch"}', '{"time": "now", "phase": "results"}'],
)  # fmt: skip
def test_a_bad_line_costs_itself_only(tmp_path, bad):
    path = tmp_path / "events.jsonl"
    tell = events.writer(path)
    tell("compile")
    with open(path, "a") as file:  # a kill in the middle of a write
        file.write(bad)
    events.writer(path)("training", step=2)
    found = events.Reader(path).read()
    assert [event["phase"] for event in found] == ["compile", "training"]


WRITER = """
import sys
from experiments.runs import events
tell = events.writer(sys.argv[1])
print("ready", flush=True)
step = 0
while True:
    step += 1
    tell("training", step=step)
"""


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    reader, steps = events.Reader(path), []
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            found = []
            while len(found) < 50:
                found += reader.read()
            process.kill()
        found += reader.read()
        steps.append([event["step"] for event in found])
    for each in steps:
        assert each == list(range(1, len(each) + 1))
    events.writer(path)("results")
    assert [event["phase"] for event in reader.read()][-1] == "results"


@pytest.mark.parametrize("place", [".", "file/inside", "/proc/nope/events"])
def test_a_file_that_cannot_be_written_is_told(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match=r"cannot write to .*pass another --events"):
        events.writer(place)


def test_spans_and_what_they_add_up_to():
    line = lambda time, phase, **more: {"time": time, "phase": phase, **more}
    told = [
        line(2.0, "start-up", folder="a"), line(3.0, "compile"), line(5.0, "training", step=0),
        line(6.0, "training", step=1), line(7.0, "evaluation", step=2),
        line(8.0, "training", step=2),
    ]  # fmt: skip
    parts = events.spans(told, 1.0, 8.5)
    assert parts == [
        ("start-up", 2.0), ("compile", 2.0), ("training", 2.0), ("evaluation", 1.0),
        ("training", 0.5),
    ]  # fmt: skip
    assert events.totals(parts) == {
        "start-up": 2.0, "compile": 2.0, "training": 2.5, "evaluation": 1.0,
    }  # fmt: skip
    assert events.spans([], 1.0, 3.0) == [("start-up", 2.0)]
    assert events.steps(told) == [0, 1, 2, 2]
    assert events.of_last_program([*told, line(9.0, "start-up", folder="b")]) == [
        line(9.0, "start-up", folder="b")
    ]
    assert events.of_last_program([]) == []
