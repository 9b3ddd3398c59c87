"""A night in figures is what its rows say, for any night, in every form, whole or not."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.nights import made_up_night

from ray_mlc.config import ScoreJob
from ray_mlc.errors import UsageError
from ray_mlc.model.folder import ModelInfo
from ray_mlc.runtime.local import LocalBackend
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.score import score
from ray_mlc.scoring.figures import Training, night_figures
from ray_mlc.scoring.ledger import Run, read_run
from ray_mlc.scoring.overnight import night_of, texts_of
from ray_mlc.scoring.sums import NEAR
from ray_mlc.storage import open_storage

MakeJob = Callable[..., ScoreJob]
NOTHING = Training(None, None, None)


def run_at(output: Path) -> Run:
    return read_run(open_storage(str(output)))


def figures_of(output: Path, night: int = 1, training: Training = NOTHING) -> dict[str, Any]:
    found = night_figures(run_at(output), night, training)
    json.dumps(found, allow_nan=False)  # plain data
    return found


@pytest.fixture(scope="module")
def two_nights(
    tiny_corpus: Path, score_job: MakeJob, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two nights, 240 and 160 rows; the second file of the second is cut in half."""
    folder = tmp_path_factory.mktemp("nights")
    corpus = Path(shutil.copytree(tiny_corpus, folder / "in"))
    allowed = ("limits.bad_files=1", "limits.bad_rows=1")
    job = score_job(corpus, folder / "out", *allowed)
    score(job, LocalBackend(), Display(quiet=True))
    table = pq.read_table(corpus / "part-00001.parquet")
    pq.write_table(pa.concat_tables([table, table]), corpus / "tuesday.parquet")
    data = (corpus / "part-00000.parquet").read_bytes()
    (corpus / "broken.parquet").write_bytes(data[: len(data) // 2])
    score(job, LocalBackend(), Display(quiet=True), add_new=True)
    return folder / "out"


@pytest.mark.parametrize(
    "form",
    [(), ("output.format=sparse", "output.k=3", "output.floor=0.3"), ("output.format=dense",)],
)
def test_figures_are_those_of_the_rows(
    form: tuple[str, ...],
    tiny_corpus: Path,
    tmp_path: Path,
    score_locally: Any,
    read_output: Callable[[Path], pa.Table],
) -> None:
    output = tmp_path / "out"
    score_locally(tiny_corpus, output, *form)
    found, table = figures_of(output), read_output(output)
    assert found["state"] == "complete"
    assert found["rows"] == {"planned": 240, "written": 240, "set_aside": 0, "missing": 0}
    statuses = Counter(table["status"].to_pylist())
    assert found["statuses"] == dict(statuses)
    scored = statuses["ok"]
    given = Counter(name for row in table["labels"].to_pylist() for name in row or ())
    for label in found["labels"]:
        assert label["given"] == given[label["label"]]
        assert label["rate"] == pytest.approx(given[label["label"]] / scored)
        assert label["interval"][0] <= label["rate"] <= label["interval"][1]
        assert (label["training"], label["before"]) == (None, None)
    assert sum(found["labels_per_row"]) == scored
    assert found["truncated"] == pc.sum(table["truncated"]).as_py()
    assert sum(found["lengths"]["counts"][0]) == table["n_tokens"].drop_null().length()
    assert [item["written"] for item in found["by_file"]] == [80, 80, 80]
    for label, counts in zip(found["labels"], found["scores"]["counts"], strict=True):
        assert sum(counts) == label["stored"]
        if "top" in table.column_names:
            tops = (item for row in table["top"].to_pylist() for item in row or ())
            assert label["stored"] == sum(item["label"] == label["label"] for item in tops)
        else:
            assert label["stored"] == scored
    # rows that are named as uncertain are those of the output
    keys = zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True)
    place = {key: at for at, key in enumerate(keys)}
    for cell in found["uncertain"]:
        assert abs(cell["score"] - cell["threshold"]) <= NEAR + 1e-6
        row = table.slice(place[cell["source"], cell["row"]], 1).to_pylist()[0]
        stored = row.get(f"score_{cell['label']}")
        if "top" in row:
            stored = next(i["score"] for i in row["top"] if i["label"] == cell["label"])
        if "scores" in row:
            names = [label["label"] for label in found["labels"]]
            stored = row["scores"][names.index(cell["label"])]
        assert cell["score"] == pytest.approx(stored, abs=1e-6)
    assert found["uncertain"]


def test_what_goes_together_is_counted(
    tiny_run: Path, read_output: Callable[[Path], pa.Table]
) -> None:
    together = figures_of(tiny_run)["together"]
    rows = [set(row or ()) for row in read_output(tiny_run)["labels"].to_pylist()]
    names = together["labels"]
    for one, first in enumerate(names):
        for two, second in enumerate(names):
            assert together["both"][one][two] == sum({first, second} <= row for row in rows)
    counts = np.diag(together["both"])
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)


def test_a_night_holds_its_own_rows_and_knows_the_one_before(two_nights: Path) -> None:
    first, second = (figures_of(two_nights, night) for night in (1, 2))
    assert (first["rows"]["written"], second["rows"]["written"]) == (240, 160)
    assert first["before"] is None
    assert second["before"]["night"] == 1
    assert second["before"]["statuses"] == first["statuses"]
    for before, label in zip(first["labels"], second["labels"], strict=True):
        assert label["before"] == before["rate"]
        assert label["before_interval"] == before["interval"]
        assert (label["from_before"] > 0) == (label["rate"] > before["rate"])
    assert {item["source"] for item in second["by_file"]} == {"broken.parquet", "tuesday.parquet"}
    assert {cell["source"] for cell in second["uncertain"]} == {"tuesday.parquet"}
    assert len(second["lengths"]["counts"]) == 2


def test_what_was_set_aside_is_named_in_its_night(two_nights: Path) -> None:
    assert figures_of(two_nights, 1)["set_aside"] == []
    [item] = figures_of(two_nights, 2)["set_aside"]
    assert (item["source"], item["first_row"], item["rows"]) == ("broken.parquet", None, None)
    assert item["reason"].startswith("footer: ")
    assert figures_of(two_nights, 2)["files"]["set_aside"] == 1


def test_rates_of_training_are_those_of_a_model_with_the_same_labels(tiny_run: Path) -> None:
    names = list(run_at(tiny_run).label_set.names)
    rates = [(place + 1) / 100 for place in range(len(names))]
    data = {"train": {"rows": 500}, "lengths": {"cut": 0.25}}
    info = ModelInfo(labels=names, label_rates=rates, training={"data": data})
    found = figures_of(tiny_run, training=Training.of(info, names))
    assert [label["training"] for label in found["labels"]] == rates
    assert found["training"] == {"rows": 500, "cut": 0.25}
    for label in found["labels"]:
        assert (label["from_training"] > 0) == (label["rate"] > label["training"])
    assert Training.of(info, names[::-1]) == NOTHING
    assert Training.of(None, names) == NOTHING


def test_a_run_that_is_not_done_says_what_is_missing(tiny_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(tiny_run, tmp_path / "out"))
    (output / "_SUCCESS").unlink()
    first, *others = sorted(output.glob("part-00001/*.parquet"))
    rows = pq.read_metadata(first).num_rows
    for part in others:
        part.unlink()
    found = figures_of(output)
    assert found["state"] == "incomplete"
    left = 80 - rows
    assert found["rows"] == {
        "planned": 240,
        "written": 240 - left,
        "set_aside": 0,
        "missing": left,
    }
    assert found["by_file"][0] == {
        "source": "part-00001.parquet",
        "planned": 80,
        "written": rows,
        "set_aside": 0,
        "missing": left,
    }


def test_nothing_written_gives_figures_all_the_same(tiny_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(tiny_run, tmp_path / "out"))
    for part in output.glob("*/*.parquet"):
        part.unlink()
    found = figures_of(output)
    assert (found["scored"], found["rows"]["missing"]) == (0, 240)


def test_a_part_that_cannot_be_read_is_named_and_in_no_figure(
    tiny_run: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(tiny_run, tmp_path / "out"))
    parts = sorted(output.glob("part-00001/*.parquet"))
    lost = sum(pq.read_metadata(part).num_rows for part in parts[:2])
    parts[0].write_bytes(b"PAR1")
    pq.write_table(pa.table({"a": [1]}), parts[1])
    found = figures_of(output)
    assert sum(found["statuses"].values()) == 240 - lost
    assert len(found["problems"]) == 2
    assert "000000000000.parquet: cannot be read (" in found["problems"][0]
    assert found["problems"][1].endswith(": is not a part of this run")


def test_time_and_actor_of_every_unit_are_known(two_nights: Path) -> None:
    speed = figures_of(two_nights, 1)["speed"]
    [actor] = speed["by_actor"]
    assert (actor["rows"], actor["units"]) == (240, len(list(two_nights.glob("part-*/*.parquet"))))
    assert actor["tokens"] == sum(speed["steps"]["tokens"])
    assert sum(speed["steps"]["tokens_by_actor"][actor["actor"]]) == actor["tokens"]
    speeds = [unit["tokens_per_s"] for unit in speed["slowest"]]
    assert speeds == sorted(speeds)
    assert speeds[0] <= speed["median"]
    assert sum(unit["seconds"] for unit in speed["slowest"]) <= actor["seconds"] + 1e-6


def test_parts_without_time_or_actor_are_no_obstacle(tiny_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(tiny_run, tmp_path / "out"))
    for part in output.glob("*/*.parquet"):
        table, metadata = pq.read_table(part, partitioning=None), pq.read_metadata(part).metadata
        footer = json.loads(metadata[b"ray_mlc"])
        del footer["receipt"]["actor"], footer["receipt"]["seconds"]
        with pq.ParquetWriter(part, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"ray_mlc": json.dumps(footer)})
    speed = figures_of(output)["speed"]
    assert (speed["by_actor"], speed["slowest"], speed["median"]) == ([], [], None)
    assert sum(speed["steps"]["rows"]) == 240


def test_a_night_that_is_not_there_is_refused(tiny_run: Path, two_nights: Path) -> None:
    with pytest.raises(UsageError, match="there is no night 2: the run has only night 1"):
        night_of(run_at(tiny_run), 2)
    with pytest.raises(UsageError, match="no night 0: the run has nights 1 to 2"):
        night_of(run_at(two_nights), 0)
    assert night_of(run_at(two_nights), None) == 2


def test_texts_come_from_the_input_unless_it_has_changed(
    two_nights: Path, tiny_corpus: Path
) -> None:
    run = run_at(two_nights)
    cells = figures_of(two_nights, 1)["uncertain"]
    texts = texts_of(run, [(cell["unit"], cell["place"]) for cell in cells])
    assert len(texts) == len({(cell["unit"], cell["place"]) for cell in cells})
    for cell in cells:
        table = pq.read_table(tiny_corpus / cell["source"])
        assert texts[cell["unit"], cell["place"]] == table["text"][cell["row"]].as_py()
    input_ = two_nights.parent / "in"
    moved = (input_ / "part-00000.parquet").rename(two_nights.parent / "away.parquet")
    left = texts_of(run, [(cell["unit"], cell["place"]) for cell in cells])
    assert set(left) == {
        (cell["unit"], cell["place"]) for cell in cells if cell["source"] != "part-00000.parquet"
    }
    moved.rename(input_ / "part-00000.parquet")


def test_made_up_nights_of_other_tests_have_what_real_ones_have(two_nights: Path) -> None:
    real, made_up = figures_of(two_nights, 2), made_up_night(["a", "b"])
    for section in ("rows", "files", "before", "scores", "together", "lengths", "speed"):
        assert made_up[section].keys() == real[section].keys(), section
    for section in ("labels", "by_file", "uncertain"):
        assert made_up[section][0].keys() == real[section][0].keys()
    for key in ("by_actor", "slowest"):
        assert made_up["speed"][key][0].keys() == real["speed"][key][0].keys()
    assert made_up.keys() == real.keys()
    assert made_up["used"].keys() == real["used"].keys()
