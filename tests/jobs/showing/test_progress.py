import io
import json

import pytest
from rich.console import Console

from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.receipts import Receipt
from promptmill.jobs.showing.progress import JsonLines, Tally, Terminal, duration, facts

SIZES = Sizes(2, 1.0, 0.0, 1, 0.25, 0.0, 0.25)


def receipt(kept=1, rejected=3, failed=0, scores=(20.0, 22.0, 25.5)):
    errors = {"non_finite": failed} if failed else {}
    counts = {"requests": 1, "kept": kept, "rejected": rejected, "failed": failed}
    return Receipt("000000-00000", 0, errors, scores if kept or rejected else None, {"denoise": 1.5}, **counts)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (12, "12 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (4 * 3600 + 600, "4 h 10 min"),
        (12 * 86400, "12 days"),
        (5000 * 86400, "5,000 days"),
    ],
)
def test_durations_are_said_in_the_units_people_use(seconds, said):
    assert duration(seconds) == said


def test_before_anything_is_rendered_there_is_no_rate_and_no_score():
    assert facts(Tally(4000)) == "0/4,000 images · 0 kept, 0 failed"


def test_the_live_line_says_rate_time_left_counts_and_scores():
    tally = Tally(100, before=20)
    tally.loaded = 1000.0
    tally.add(receipt())
    tally.add(receipt(kept=1, rejected=2, failed=1, scores=(18.25, 20.0, 21.0)))
    tally.last = 1004.0
    # Eight in four seconds; 72 are left.
    assert facts(tally) == "28/100 images · 2.00/s · 36 s left · 2 kept, 1 failed in this run · score 18.2 … 25.5"


def test_a_unit_without_scores_leaves_best_and_worst_alone():
    tally = Tally(8)
    tally.add(receipt())
    tally.add(receipt(kept=0, rejected=0, failed=4))
    assert (tally.worst, tally.best, tally.errors, tally.settled) == (20.0, 25.5, {"non_finite": 4}, 8)


def test_phases_follow_each_other_and_add_up(monkeypatch):
    tally = Tally(4, began=10.0)
    tally.connected, tally.loaded, tally.last = 16.0, 30.0, 70.0
    monkeypatch.setattr("time.monotonic", lambda: 71.5)
    assert tally.seconds() == {"starting Ray": 6.0, "loading models": 14.0, "rendering": 40.0, "publishing": 1.5}
    assert Tally(4, began=70.0).seconds() == {"starting Ray": 1.5}


def test_a_terminal_shows_each_phase_and_the_figures():
    console = Console(file=io.StringIO(), force_terminal=True, width=160, record=True)
    shown = Terminal(Tally(8), console)
    with shown:
        for step, said in (
            (lambda: shown.say("starting Ray"), "starting Ray"),
            (lambda: shown.ready(SIZES), "loading 2 generators, 1 scorers"),
            (lambda: shown.loaded(), "rendering"),
            (lambda: shown.skipped(4), "4/8 images"),
            (lambda: shown.unit(receipt()), "8/8 images"),
            (lambda: shown.stopping(3), "stopping: finishing 3 units in flight; Ctrl-C again stops at once"),
        ):
            step()
            shown._progress.refresh()
            assert said in console.export_text()
    assert "1 kept, 0 failed in this run · score 20.0 … 25.5" in console.file.getvalue()


def test_json_lines_say_the_last_unit_whenever_it_comes():
    stream = io.StringIO()
    with JsonLines(Tally(8), stream) as shown:
        shown.ready(SIZES)
        shown.loaded()
        shown.loaded()
        for _ in range(2):
            shown.unit(receipt())
        shown.stopping(3)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["ready", "loaded", "progress", "progress", "stopping"]
    last = events[-2]
    assert (last["settled"], last["kept"], last["failed"], last["best"], last["eta_s"]) == (8, 2, 0, 25.5, 0.0)
