"""How a night stands while it works, for its own terminal and for whoever asks from elsewhere."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.cli import run

from ray_mlc.config import ScoreJob
from ray_mlc.errors import StorageError
from ray_mlc.runtime import watching as watching_module
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display, Shown
from ray_mlc.runtime.score import score
from ray_mlc.scoring import standing as module
from ray_mlc.scoring.lease import LEASE_FILE, Owner, hold_lease
from ray_mlc.scoring.nights import to_json
from ray_mlc.scoring.standing import (
    PROGRESS_FILE,
    Blocks,
    Crew,
    Pace,
    Standing,
    Vitals,
    ends_at,
    published,
    read_progress,
)
from ray_mlc.storage import Storage, open_storage

MakeJob = Callable[..., ScoreJob]


def fed(pace: Pace, *points: tuple[float, float]) -> list[float | None]:
    """Speed after each point of time and total work."""
    speeds = []
    for now_s, work in points:
        pace.note(work, now_s)
        speeds.append(pace.per_s)
    return speeds


def test_a_steady_speed_is_found_and_the_expected_one_forgotten() -> None:
    pace = Pace(50.0)
    speeds = fed(pace, *((float(second), 10.0 * second) for second in range(1200)))
    assert speeds[0] == 50
    assert all(a >= b for a, b in pairwise(speeds) if a and b)
    assert speeds[-1] == pytest.approx(10, rel=0.02)


def test_units_in_lumps_make_no_jumps() -> None:
    """A unit of 100 every ten seconds: the time left neither jumps at the start nor later."""
    pace = Pace(10.0)
    speeds = fed(pace, *((float(second), 100.0 * (second // 10)) for second in range(600)))
    assert min(speed for speed in speeds if speed is not None) > 7
    assert max(speed for speed in speeds if speed is not None) < 11
    late = [speed for speed in speeds[300:] if speed is not None]
    assert max(late) < 1.06 * min(late)


def test_without_an_expectation_no_speed_is_claimed_at_first() -> None:
    pace = Pace()
    speeds = fed(pace, (0.0, 0.0), (1.0, 1000.0), (9.0, 1000.0), (20.0, 2000.0))
    assert speeds == [None, None, None, pytest.approx(100, rel=0.03)]


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    pace = Pace(10.0)
    fed(pace, *((float(second), 10.0 * second) for second in range(3600)))
    slow = fed(pace, *((3600.0 + second, 36000.0 + 2 * second) for second in range(1200)))
    assert slow[-1] == pytest.approx(2, rel=0.1)


def looked(*, actors: int = 2, times: int = 20, **blocks: int) -> Crew:
    crew = Crew()
    for _ in range(times):
        crew.look(Vitals(actors=actors, blocks=Blocks(**blocks)))
    return crew


@pytest.mark.parametrize(
    ("blocks", "tokenizers", "stage"),
    [
        ({"scoring": 2, "waiting": 4}, False, "scoring"),
        ({"scoring": 1, "reading": 1}, False, "reading"),
        ({"scoring": 0, "waiting": 3, "scored": 4}, False, "writing"),
        ({"scoring": 1, "waiting": 3}, True, "tokenizing"),
        ({"scoring": 1, "waiting": 3}, False, None),
        ({"scoring": 1}, False, None),
    ],
)
def test_what_waits_on_what_is_told(
    blocks: dict[str, int], tokenizers: bool, stage: str | None
) -> None:
    assert looked(**blocks).waits_for(2, tokenizers=tokenizers) == stage


def test_one_process_is_not_said_to_wait() -> None:
    crew = Crew()
    crew.look(Vitals(5, actors=1))
    assert (crew.busy, crew.waits_for(1, tokenizers=False)) == (None, None)


NOON = datetime.datetime(2026, 11, 24, 12, 0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(90, "12:01"), (11 * 3600, "23:00"), (13 * 3600, "2026-11-25 01:00")],
)
def test_the_end_has_a_date_when_it_is_not_today(seconds: float, said: str) -> None:
    assert ends_at(seconds, NOON) == said


STANDING = Standing(
    rows_planned=1000,
    rows_done=250,
    units_planned=10,
    units_done=2,
    rows_set_aside=3,
    rows_bad=1,
    rows_per_s=50.0,
    tokens_per_s=4200.0,
    padding=0.0123,
    actors_ready=2,
    actors=2,
    busy=0.5,
    waits_for="reading",
    blocks=Blocks(1, 0, 1, 0, 2),
    seconds=5.0,
    seconds_left=15.0,
)


def test_a_standing_is_said_in_two_lines() -> None:
    assert STANDING.lines() == [
        "4,200 tokens/s, padding 1.2% · 2 of 2 actors ready, 50% busy: they wait for reading · "
        "3 rows set aside, 1 bad",
        "blocks: 1 being read, 0 wait for an actor, 1 being scored, 2 to be written",
    ]
    alone = replace(STANDING, busy=None, waits_for=None, blocks=None, rows_bad=0, padding=None)
    assert alone.lines() == ["4,200 tokens/s · 2 of 2 actors ready · 3 rows set aside"]
    json.dumps(STANDING.to_dict())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_night_is_seen_from_elsewhere_while_it_works_and_not_after_it(storage: Storage) -> None:
    with hold_lease(storage, expiry_s=5) as lease:
        with published(storage, STANDING.to_dict, token=lease.token, every_s=0.01):
            wait_for(lambda: storage.read(PROGRESS_FILE))
            found = read_progress(storage)
            assert found is not None
            assert (found["phase"], found["blocks"]["writing"]) == ("scoring", 2)
        assert storage.read(PROGRESS_FILE) is None
    assert read_progress(storage) is None


def leave(storage: Storage, **values: Any) -> None:
    """The file of a night that was killed."""
    content = {"token": "t", "number": 3, "at": "2020-01-01T00:00:00Z", **STANDING.to_dict()}
    storage.put(PROGRESS_FILE, to_json({**content, **values}))


def lease_of(storage: Storage, **values: Any) -> None:
    owner = replace(Owner.this_process(), **{"token": "t", "host": "elsewhere", **values})
    storage.put(LEASE_FILE, owner.to_bytes())


def test_the_file_of_a_killed_night_is_not_believed(storage: Storage) -> None:
    fresh = {"at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    leave(storage, **fresh)
    assert read_progress(storage) is None  # nobody holds the lease
    lease_of(storage, token="another")
    assert read_progress(storage) is None
    here = Owner.this_process()
    lease_of(storage, host=here.host, pid=here.pid, started=here.started - 1)
    assert read_progress(storage) is None  # the process is gone
    lease_of(storage)
    assert read_progress(storage) is not None
    leave(storage)  # an old one of another host: it does not change any more
    assert read_progress(storage, wait_s=0.1) is None
    storage.put(PROGRESS_FILE, b"{")
    assert read_progress(storage) is None


def test_a_clock_that_is_wrong_hides_no_night(storage: Storage) -> None:
    lease_of(storage)
    leave(storage, at="2099-01-01T00:00:00Z")
    later = threading.Timer(0.2, leave, [storage], {"at": "2099-01-01T00:00:05Z", "number": 4})
    later.start()
    found = read_progress(storage, wait_s=5)
    later.join()
    assert found is not None
    assert found["number"] == 4


def test_a_store_that_refuses_costs_the_file_and_nothing_else(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Event()

    def refuse(*_: object) -> None:
        tried.set()
        raise StorageError("full")

    monkeypatch.setattr(type(storage), "put", refuse)
    with published(storage, STANDING.to_dict, token=None, every_s=0.01):
        assert tried.wait(60)
    assert storage.read(PROGRESS_FILE) is None


def test_the_file_of_who_took_over_stays(storage: Storage) -> None:
    taken = {**STANDING.to_dict(), "token": "another"}
    with published(storage, lambda: taken, token="t", every_s=0.01):
        wait_for(lambda: storage.read(PROGRESS_FILE))
    assert json.loads(storage.read(PROGRESS_FILE) or b"{}")["token"] == "another"


class Seen(LocalBackend):
    """Looks at the output, as somebody else, when the first unit is done."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def process(self, *args: Any, **options: Any) -> Iterator[Any]:
        for count, receipts in enumerate(super().process(*args, **options)):
            yield receipts
            if count == 1:
                self._look()


def test_status_shows_a_night_at_work(
    tiny_corpus: Path,
    tmp_path: Path,
    score_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(watching_module, "COUNT_EVERY_S", 0.0)
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    out = tmp_path / "out"

    def fast(*args: Any, **options: Any) -> Any:
        return published(*args, **{**options, "every_s": 0.01})

    monkeypatch.setattr(watching_module, "published", fast)

    def look() -> None:
        wait_for(lambda: b'"phase": "scoring"' in (storage.read(PROGRESS_FILE) or b""))
        wait_for(lambda: json.loads(storage.read(PROGRESS_FILE) or b"{}")["units_done"] >= 1)
        assert run(monkeypatch, "status", str(out)) == 0
        assert run(monkeypatch, "status", str(out), "--json") == 0

    storage = open_storage(str(out))
    leave(storage)  # of a command that was killed
    score(score_job(tiny_corpus, out), Seen(look), Display(quiet=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("unfinished: ")
    assert lines[1].startswith("now: ")
    for said in ("rows/s", "tokens/s", "1 of 1 actors", "0 rows set aside"):
        assert said in lines[1]
    now = json.loads("\n".join(lines[2:]))["now"]
    assert now["rows_planned"] == 240
    assert 0 < now["rows_done"] < 240
    assert now["tokens_per_s"] > 0
    assert storage.read(PROGRESS_FILE) is None
    assert run(monkeypatch, "status", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out)["now"] is None


def test_programs_get_a_line_of_json_for_everything_that_is_said(
    tiny_corpus: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray_mlc.runtime import progress

    monkeypatch.setattr(watching_module, "COUNT_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "JSON_EVERY_S", 0.0)
    words = ["score", "--model", str(tiny_model), "--input", str(tiny_corpus), "--local"]
    words += ["--output", str(tmp_path / "out"), "--progress", "json", "--json"]
    words += ["--set", "engine.dtype=float32", "--set", "units.rows=30"]
    assert run(monkeypatch, *words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"]["written"] == 240
    events = [json.loads(line) for line in said.err.splitlines()]
    assert {event["event"] for event in events} >= {"doing", "said", "progress", "done"}
    scoring = [event for event in events if event.get("stage") == "score"]
    assert [event["done"] for event in scoring] == sorted(event["done"] for event in scoring)
    assert scoring[-1]["event"] == "done"
    assert scoring[-1]["done"] == scoring[-1]["total"] == 240
    assert scoring[-2]["actors_ready"] == 1
    assert "tokens_per_s" in scoring[-2]


def test_no_progress_keeps_the_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(progress="none")
    with display.doing("opening"), display.stage("score", 3, "rows") as stage:
        stage.doing("loading")
        stage.advance(3, shown=Shown(["fast"]))
    display.say("a note")
    assert capsys.readouterr().err == "a note\n"


def test_what_work_says_of_itself_is_in_the_log_until_it_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_mlc.runtime import progress

    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    shown = Shown(["2 actors", "blocks"], {}, per_second=7.0, seconds_left=100.0)
    with Display(progress="plain").stage("score", 300, "rows") as stage:
        stage.advance(100, shown=shown)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == ("score: 100 of 300 rows (33%), 7.0 rows/s, 2 min left; 2 actors · blocks")
    assert "actors" not in lines[-1]


def test_a_terminal_shows_it_below_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(progress="rich").stage("score", 300, "rows") as stage:
        stage.advance(100, shown=Shown(["2 actors [ready]", "blocks"]))
        stage._bar.refresh()  # type: ignore[union-attr]
        lines = capsys.readouterr().err.splitlines()
    assert any("2 actors [ready]" in line for line in lines)
    assert any("blocks" in line for line in lines)
