"""Compare two outputs, nights or models: what each name stands for, and the threads that read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ray_mlc.errors import DataError, ModelError
from ray_mlc.model.folder import open_model
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.threads import in_threads
from ray_mlc.scoring.compare import File, Pairing, Side, Tally, figures
from ray_mlc.scoring.gates import Gate
from ray_mlc.scoring.ledger import RUN_FILE, read_run
from ray_mlc.storage import local_path, open_storage

_NIGHT = re.compile(r"(.+)@(\d+)")


def compare(a: str, b: str, gates: Sequence[str], display: Display) -> dict[str, Any]:
    """Put two sides beside each other.

    Args:
        a: Output folder, one of its nights as `OUT@2`, or a model as `open_model` takes it.
        b: The same.
        gates: See `scoring.gates.Gate.parse`.
        display: Told about progress.

    Returns:
        `scoring.compare.figures`, and `gates`: what became of each (`Gate.judge`).

    Raises:
        ConfigError: If a gate is none.
        DataError: If a name stands for nothing, or the sides have no label in common.
        ModelError: If a model folder is not complete.
    """
    wanted = [Gate.parse(text) for text in gates]
    one, two = open_side(a), open_side(b)
    if not set(one.label_set.names) & set(two.label_set.names):
        raise DataError(f"{a} and {b} have no label in common: there is nothing to compare")
    pairing = Pairing(one, two)
    tally, files = pairing.start(), pairing.files()

    def count(file: File) -> tuple[Tally, int]:
        found = pairing.compare_file(file)
        return found, sum(counts.rows for counts in found.counts)

    with display.stage("compare", None, "rows") as stage:
        for found, rows in in_threads(count, files):
            tally.add(found)
            stage.advance(rows)
    result = figures(pairing, tally)
    return result | {"gates": [gate.judge(result["worst"]) for gate in wanted]}


def open_side(name: str) -> Side:
    """What a name stands for.

    Raises:
        DataError: If it is neither an output nor a model.
        ModelError: If it is a model folder that is not complete.
    """
    match = _NIGHT.fullmatch(name)
    path = local_path(name)
    night = None
    place = name
    if match is not None and not (path is not None and path.exists()):
        place, night = match[1], int(match[2])
    storage = open_storage(place)
    if storage.read(RUN_FILE) is not None:
        return Side.of_run(name, read_run(storage), night)
    text = f"{place}: is neither an output of score or retag, nor a model folder"
    a_folder = open_storage(name).read("config.json") is not None
    if path is None and not a_folder:
        raise DataError(text)  # all that is at a URI would be copied, to find no model in it
    try:
        # also `org/model@2`, where the hub has a revision of that name
        folder = open_model(name)
    except ModelError as error:
        if a_folder:
            raise
        raise DataError(f"{text} ({str(error).removeprefix(f'{name}: ')})") from None
    return Side.of_model(folder)
