"""Progress: silent when quick, one line on a terminal, few lines in a log, never in the way."""

import io
import logging

import pytest

from fewbit import progress
from fewbit.progress import Meter, Progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def walk(clock, stream, seconds: float, total: int = 10, show: bool = True) -> list[int]:
    seen = []
    for item in track(range(total), "blocks", total, show, stream):
        seen.append(item)
        clock[0] += seconds
    return seen


def test_quick_work_shows_nothing_and_loses_nothing(clock):
    stream = Terminal()
    assert walk(clock, stream, 0.1) == list(range(10))
    assert stream.getvalue() == ""


def test_a_terminal_gets_one_rewritten_line(clock):
    stream = Terminal()
    walk(clock, stream, 61.0, total=3)
    assert stream.getvalue() == (
        "\r\x1b[Kblocks: 1/3, 2:02 left\r\x1b[Kblocks: 2/3, 1:01 left\r\x1b[Kblocks: 3/3 in 3:03\n"
    )


def test_a_log_gets_whole_lines_but_seldom(clock):
    stream = io.StringIO()
    walk(clock, stream, 4.0)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "blocks: 3/10, 0:28 left",
        "blocks: 6/10, 0:16 left",
        "blocks: 9/10, 0:04 left",
        "blocks: 10/10 in 0:40",
    ]


def test_the_time_left_is_that_of_all_phases(clock):
    stream = io.StringIO()
    with Meter("job", stream=stream) as meter:
        meter.expect("saving", seconds=30)
        meter.expect("drawing", work=100)
        meter.expect("solving", work=200)
        meter.begin("drawing", 4)
        for done in (1, 2, 3, 4):
            clock[0] += 10
            meter.reach(done)
        meter.begin("solving", 2)
        clock[0] += 100
        meter.reach(1)
        clock[0] += 100
        meter.reach(2)
        meter.begin("saving", 1)
        clock[0] += 20
        meter.reach(1)
    assert stream.getvalue().splitlines() == [
        "job, drawing: 1/4, 2:20 left",  # 3 · 10 s, 80 s for twice the work, 30 s of saving
        "job, drawing: 2/4, 2:10 left",
        "job, drawing: 3/4, 2:00 left",
        "job, solving: 0/2, 1:50 left",
        "job, solving: 1/2, 2:10 left",  # as measured
        "job, saving: 0/1, 0:30 left",
        "job, saving: 1/1 in 4:20",
    ]


def test_what_an_earlier_run_has_done_is_not_taken_for_quick_work(clock):
    stream = io.StringIO()
    with Meter(stream=stream) as meter:
        meter.begin("blocks", 10)
        for done in range(1, 9):
            clock[0] += 2
            meter.reach(done, found=True)
        clock[0] += 60
        meter.reach(9)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "blocks: 5/10"  # nothing is known yet
    assert lines[-2] == "blocks: 9/10, 1:00 left"


def test_a_line_that_is_cut_short_is_ended(clock):
    stream = Terminal()
    steps = track(range(3), "blocks", 3, stream=stream)
    for _ in range(2):
        next(steps)
        clock[0] += 30
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert stream.getvalue().endswith("left\n")


def test_not_shown_is_not_shown(clock):
    stream = Terminal()
    assert walk(clock, stream, 100.0, show=False) == list(range(10))
    assert stream.getvalue() == ""


def test_it_goes_to_standard_error(clock, capsys):
    walk(clock, None, 20.0, total=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "blocks: 2/2" in captured.err


def test_nothing_to_do(clock):
    stream = Terminal()
    assert walk(clock, stream, 1.0, total=0) == []
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (7325, "2:02:05")],
)
def test_the_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_a_callback_is_told_every_step_and_nothing_is_shown(clock):
    told, stream = [], io.StringIO()
    with Meter("job", show=False, stream=stream, tell=told.append) as meter:
        meter.expect("solving", work=20)
        meter.expect("drawing", work=10)
        meter.begin("drawing", 2)
        clock[0] += 10
        meter.reach(1)
        clock[0] += 10
        meter.reach(2)
    assert told == [
        Progress("job", "drawing", 0.0, 2, 0.0, None),
        Progress("job", "drawing", 1, 2, 10.0, 50.0),
        Progress("job", "drawing", 2, 2, 20.0, 40.0),
    ]
    assert stream.getvalue() == ""


def test_a_logger_can_route_it_and_is_silent_until_then(clock, caplog, capfd):
    with caplog.at_level(logging.INFO, "fewbit"):
        walk(clock, io.StringIO(), 6.0, total=4, show=False)
    assert [record.message for record in caplog.records] == [
        "blocks: 0/4",
        "blocks: 2/4, 0:12 left",
    ]
    assert {record.name for record in caplog.records} == {"fewbit"}
    logging.getLogger("fewbit").warning("nobody listens")
    assert "nobody listens" not in capfd.readouterr().err
