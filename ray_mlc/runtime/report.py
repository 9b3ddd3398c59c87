"""The report of a night: look at its parts, find model and job, write one page.

`ray-mlc report` makes it of any output, also of a run that is under way; `score` leaves one at its
end. That one is a comfort: whatever goes wrong with it is said, and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ray_mlc.config import ScoreJob
from ray_mlc.errors import RayMlcError, first_line
from ray_mlc.model.folder import CARD_FILE, INFO_FILE, ModelFolder, ModelInfo, open_model
from ray_mlc.report.findings import findings
from ray_mlc.report.night import night_page
from ray_mlc.runtime.interrupt import Deadline
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.report_files import check_replaceable
from ray_mlc.runtime.threads import in_threads
from ray_mlc.scoring.figures import Training, night_figures
from ray_mlc.scoring.ledger import JOB_FILE, SUMMARY_FILE, Run, read_run
from ray_mlc.scoring.nights import last_report, report_path
from ray_mlc.scoring.overnight import night_of, texts_of
from ray_mlc.storage import (
    OBJECT_STORES,
    Storage,
    join,
    local_path,
    open_storage,
    scheme_of,
    write_file,
)


def report_night(
    output: str,
    display: Display,
    *,
    night: int | None = None,
    to: Path | None = None,
    texts: bool | None = None,
    folder: ModelFolder | None = None,
) -> dict[str, Any]:
    """Write the report of a night.

    Args:
        output: Output folder of `score`.
        display: Where progress is shown.
        night: Its number; None: the last one.
        to: HTML file; None: beside the night's plan, below the output.
        texts: Whether texts of uncertain rows are read from the input and shown; None: what the
            job says that started the run.
        folder: The model, where it is known; None: it is looked for where the run found it.

    Returns:
        The figures (`scoring.figures.night_figures`), `findings` in words, and `report`, where the
        page is.

    Raises:
        UsageError: If there is no run, or no such night.
        ConfigError: If `to` is a file that is no report.
        StorageError: If the output cannot be read, or the page not be written.
    """
    storage = open_storage(output)
    run = read_run(storage)
    number = night_of(run, night)
    if to is not None:
        check_replaceable(to, display)
    model = _model_of(run, folder, display)
    job = storage.read(JOB_FILE)
    figures = _figures(run, number, model, display)
    if texts if texts is not None else _asked_for_texts(job):
        with display.doing("reading texts of uncertain rows"):
            shown = texts_of(run, [(cell["unit"], cell["place"]) for cell in figures["uncertain"]])
    else:
        shown = None
    page = night_page(
        figures,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        card=model.card,
        job=None if job is None else job.decode(errors="replace"),
        texts=shown,
    ).encode()
    if to is None:
        storage.put(report_path(number), page)
        place = join(output, report_path(number))
    else:
        write_file(to, page)
        place = str(to)
    said = [{"finding": finding, "to_do": to_do} for finding, to_do in findings(figures)]
    return {**figures, "findings": said, "report": place}


def _figures(run: Run, number: int, model: _Model, display: Display) -> dict[str, Any]:
    training = Training.of(model.info, run.label_set.names)
    with display.stage("report", None, "parts") as stage:
        stage.doing(f"looking at the parts of night {number}")
        return night_figures(run, number, training, spread=in_threads, progress=stage.advance)


@contextmanager
def leaving_a_report(
    job: ScoreJob, folder: ModelFolder, display: Display, *, deadline: Deadline | None
) -> Iterator[None]:
    """Leave a report of the night that the block has ended, if the job wants one.

    After the run was accounted for, be it a success or not, and at `limits.stop_at`: who stops a
    run by hand does not wait for it. A block that found nothing to do leaves the earlier one.
    """
    if not job.report.at_end:
        yield
        return
    storage = open_storage(job.output.path)
    before = storage.read(SUMMARY_FILE)
    try:
        yield
    except RayMlcError as error:
        late = deadline is not None and time.monotonic() >= deadline.at_s
        accounted = storage.read(SUMMARY_FILE) != before  # of several runs, another may be at fault
        if accounted or (late and type(error) is RayMlcError):
            _leave(job, folder, display)
        raise
    if storage.read(SUMMARY_FILE) != before or last_report(storage) is None:
        _leave(job, folder, display)


def _leave(job: ScoreJob, folder: ModelFolder, display: Display) -> None:
    try:
        found = report_night(job.output.path, display, texts=job.report.texts, folder=folder)
    except Exception as error:  # whatever it is, the night is over and stands as it is
        display.say(
            f"warning: the report of this night could not be made ({first_line(error)}): the "
            f"output is not touched by that; `ray-mlc report {job.output.path}` tries again"
        )
    else:
        display.say(f"report: {found['report']}")


def place_of_report(output: str) -> str | None:
    """Where the report of a run's last night is; None if there is none."""
    path = last_report(open_storage(output))
    return None if path is None else join(output, path)


@dataclass(frozen=True)
class _Model:
    """What a model's folder says of it."""

    info: ModelInfo | None = None
    card: str | None = None


def _model_of(run: Run, folder: ModelFolder | None, display: Display) -> _Model:
    """What the folder of the run's model says, if it is found and still holds that model."""
    location = str(run.record["model_location"])
    try:
        if folder is None:
            path = local_path(location)
            if scheme_of(location) in OBJECT_STORES:
                return _of_storage(open_storage(location))
            if path is None or not path.is_dir():
                display.say(f"note: the model {location} is not here: no training rates, no card")
                return _Model()
            folder = open_model(location)
        if folder.digest != run.identity["model"]:
            display.say(
                f"note: {location} is not the model of the run any more: no training rates, no card"
            )
            return _Model()
        card = folder.path / CARD_FILE
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    except (RayMlcError, OSError, ValidationError) as error:
        display.say(f"note: the model's folder cannot be read ({first_line(error)})")
        return _Model()
    return _Model(folder.info, text)


def _of_storage(storage: Storage) -> _Model:
    """Two small files of a model on an object store: the weights stay there."""
    info, card = storage.read(INFO_FILE), storage.read(CARD_FILE)
    return _Model(
        None if info is None else ModelInfo.model_validate_json(info),
        None if card is None else card.decode(errors="replace"),
    )


def _asked_for_texts(job: bytes | None) -> bool:
    """Whether the job that started the run wants texts in reports."""
    try:
        tree = yaml.safe_load(job or b"")
    except yaml.YAMLError:
        return False
    section = tree.get("report") if isinstance(tree, Mapping) else None
    return isinstance(section, Mapping) and section.get("texts") is True
