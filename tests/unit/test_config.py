"""Job files, options and `--set`: one decoder, errors of one line that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mlc.config import Range, ScoreJob, TrainJob, parse_duration, parse_size
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import dump_job, load_job

SCORE = {"model": "models/m", "input": "corpus", "output": "tags"}
TRAIN = {"data.train": "train.parquet", "data.validation": "validation.parquet", "output": "m"}


def score(*overrides: str) -> ScoreJob:
    return load_job(ScoreJob, options=SCORE, overrides=overrides)


def train(*overrides: str) -> TrainJob:
    return load_job(TrainJob, options=TRAIN, overrides=overrides)


def refused(*overrides: str, kind: Any = ScoreJob) -> str:
    """The message with which overrides are refused: always one line."""
    options = SCORE if kind is ScoreJob else TRAIN
    with pytest.raises(ConfigError) as caught:
        load_job(kind, options=options, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("unit.rows=4", "unknown key unit: did you mean units?"),
        ("units.row=4", "unknown key units.row: did you mean rows?"),
        ("input.txt=body", "unknown key input.txt: did you mean text?"),
        ("actors.count={mn: 1, max: 2}", "unknown key actors.count.mn: did you mean min?"),
        ("zzz=1", "unknown key zzz: expected one of kind, model, input, output"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(override: str, said: str) -> None:
    assert said in refused(override)


def test_a_decision_of_its_own_is_not_for_int8() -> None:
    assert score("decision=d.json").decision == "d.json"
    said = refused("decision=d.json", "engine.dtype=int8")
    assert "decision has no meaning with engine.dtype: int8" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("units.rows=many", "units.rows is 'many': expected 'auto' or a valid integer"),
        ("units.rows=1.5", "units.rows is 1.5: expected 'auto' or a valid integer"),
        ("units.rows=true", "units.rows is True: expected 'auto' or a valid integer"),
        ("units.rows=0", "units.rows is 0: expected 'auto' or greater than or equal to 1"),
        ("units.bytes=64XB", "units.bytes is '64XB': expected a size such as 64MiB"),
        ("units.bytes=0", "units.bytes is 0: expected greater than 0"),
        ("limits.no_progress=10q", "limits.no_progress is '10q': expected a duration such as 30s"),
        ("limits.bad_rows=-0.1", "limits.bad_rows is -0.1: expected greater than or equal to 0"),
        ("output.floor=1", "output.floor is 1: expected less than 1"),
        ("model=3", "model is 3: expected a valid string"),
        ("input.path=[]", "input.path is []: expected a path or a non-empty list of paths"),
        ("input.path=[a, '']", "expected a path or a non-empty list of paths"),
        ("output.keep=[id, 3]", "output.keep.1 is 3: expected a valid string"),
        ("output.format=wid", "expected 'auto', 'wide', 'sparse' or 'dense'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override: str, said: str) -> None:
    assert said in refused(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("actors.count=x", ("actors.count is 'x'", "'auto'", "integer")),
        ("actors.count=0", ("actors.count is 0", "'auto'", "greater than or equal to 1")),
        ("actors.count={min: 3, max: 2}", ("min is 3, expected at most max (2)",)),
        ("output.keep=id", ("output.keep is 'id'", "list", "'*'")),
        ("batching.max_batch_tokens=big", ("is 'big'", "'auto'", "integer")),
        ("batching.max_batch_tokens=7", ("is 7", "greater than or equal to 8")),
    ],
)
def test_a_union_says_all_its_branches_on_one_line(override: str, said: tuple[str, ...]) -> None:
    message = refused(override)
    for piece in said:
        assert piece in message


def test_a_union_of_the_training_job_names_the_number_too() -> None:
    message = refused("training.head_bias=x", kind=TrainJob)
    assert "'prior'" in message
    assert "number" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.pooling=max", "expected 'auto', 'cls' or 'mean'"),
        ("training.layer_decay=1.1", "expected less than or equal to 1"),
        ("training.head_warmup=1", "expected less than 1"),
        ("training.average=last", "expected 'ema'"),
        ("training.average_decay=0.9", "expected average: ema beside average_decay"),
        # special tokens are cut out of words as well
        ("training.special_tokens=[url]", "markers such as <url> that are no part of a word"),
        ("training.special_tokens=['<a b>']", "markers such as <url>"),
        ("training.special_tokens=['']", "markers such as <url>"),
        ("training.special_tokens=['<a>', '<a>']", "expected each marker once"),
        ("training.special_tokens=<url>", "expected a valid list"),
        ("tracking.mlfow=x", "did you mean mlflow?"),
        ("tracking.mlflow=' '", "expected a tracking URI such as http://host:5000, or null"),
    ],
)
def test_a_training_option_that_cannot_be_is_refused_in_words(override: str, said: str) -> None:
    assert said in refused(override, kind=TrainJob)


def test_a_tracking_uri_with_a_password_is_refused_without_it() -> None:
    message = refused("tracking.mlflow=https://me:hunter22@host/", kind=TrainJob)
    assert "MLFLOW_TRACKING_PASSWORD" in message
    assert "hunter22" not in message


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64MiB", 64 * 2**20), ("1.5 GB", 1_500_000_000), ("2kb", 2000), ("1B", 1)],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert score(f"units.bytes={text}").units.bytes == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("7", 7), ("250ms", 0.25)]
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert score(f"limits.no_progress='{text}'").limits.no_progress == seconds


@given(st.text(max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_size_is_an_integer_or_an_error(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert isinstance(size, int)


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005", "+5E-05"])
def test_a_number_in_scientific_notation_is_a_number(text: str) -> None:
    assert train(f"training.learning_rate={text}").training.learning_rate == 5e-5


def test_what_only_looks_like_a_number_stays_text() -> None:
    assert score("model=1e5b").model == "1e5b"
    assert score("input.text=e5").input.text == "e5"


def test_a_bare_path_stands_for_its_section() -> None:
    job = score()
    assert (job.input.path, job.output.path) == ("corpus", "tags")
    assert load_job(ScoreJob, options={**SCORE, "input": ["a", "b"]}).input.path == ["a", "b"]


def test_set_reaches_below_a_bare_path() -> None:
    job = score("input.text=body", "output.keep=[]")
    assert (job.input.path, job.input.text) == ("corpus", "body")
    assert (job.output.path, job.output.keep) == ("tags", [])


def test_set_below_a_plain_value_is_refused() -> None:
    assert refused("model.x=3") == "model.x: model is 'models/m', which has no keys"


@pytest.mark.parametrize("override", ["units.rows", "=3", " =3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    assert "expected section.key=value" in refused(override)


def test_an_override_that_is_no_yaml_is_refused() -> None:
    assert "not valid YAML" in refused("model=[1")


def test_the_later_source_wins(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "kind: score\nmodel: a\ninput: {path: a, text: body}\noutput: {path: a, keep: [id]}\n"
        "units: {rows: 1}\n"
    )
    job = load_job(
        ScoreJob, path, options={"input": "b", "model": None}, overrides=["units.rows=2"]
    )
    assert (job.model, job.input.path, job.units.rows) == ("a", "b", 2)
    assert job.input.text == "body"  # a path given beside the file's section leaves the section
    assert job.output.keep == ["id"]


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (score(), ScoreJob),
        (
            score(
                "actors.count={min: 0, max: 16}",
                "output.keep=[id, url]",
                "units.bytes=1.5GB",
                "limits.no_progress=2h",
                "long={policy: skip}",
                "input.text='{title}\\n\\n{körper}'",
            ),
            ScoreJob,
        ),
        (train("training.learning_rate=5e-5", "training.head_bias=-2.5"), TrainJob),
        (train("data.labels=[a, b]", "workers.count={min: 1, max: 8}"), TrainJob),
    ],
)
def test_a_dumped_job_loads_as_the_same_job(job: Any, kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(job), encoding="utf-8")
    assert load_job(kind, path) == job


def test_jobs_are_frozen_and_pools_ordered() -> None:
    job = score()
    with pytest.raises(ValueError, match="frozen"):
        job.model = "other"
    assert Range(min=2, max=2).max == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: train\n", "kind is 'train', expected 'score' here"),
        ("model: [a\nkind: score\n", "not valid YAML in line 2"),
        ("- a\n- b\n", "expected a mapping of keys"),
        ("", "expected a mapping of keys"),
        ("kind: score\ninput: i\noutput: o\n", "model is missing"),
        ("a: &x [*x]\n", "unknown key a"),
    ],
)
def test_a_broken_job_file_is_named_with_its_problem(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "night.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_job(ScoreJob, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_job_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such job file"):
        load_job(ScoreJob, tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as a job file"):
        load_job(ScoreJob, binary)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2026-99-99",
        "a: !!int x",
        "a: !!int _",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: " + "9" * 5000,
        "[" * 3000,
        "{a: " * 2000 + "1" + "}" * 2000,
    ],
    ids=lambda text: text[:20],
)
def test_what_no_yaml_library_should_trip_over_is_refused_in_one_line(
    tmp_path: Path, text: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_job(ScoreJob, job)
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_job(
            ScoreJob,
            options={"model": "m", "input": "i", "output": "o"},
            overrides=[f"units={text}"],
        )


@pytest.mark.parametrize(
    "override",
    [
        "units.bytes='" + "9" * 400 + "'",
        "units.bytes=9223372036854775808",
        "units.rows=2147483648",
        "output.k=1000000000000",
        "limits.bad_rows=.nan",
        "limits.bad_files=.inf",
        "lease.expiry=.inf",
        "limits.grace='" + "9" * 400 + "h'",
    ],
    ids=lambda text: text[:24],
)
def test_a_number_that_nothing_can_count_to_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(
            ScoreJob, options={"model": "m", "input": "i", "output": "o"}, overrides=[override]
        )
    assert override.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "units: &a [*a]",
        "units: &a {rows: *a}",
        "units: 0x" + "f" * 5000,
        "a: &a [x,x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: &d [*c,*c,*c]\nunits: [*d,*d,*d]",
        "units: " + "[" * 100 + "]" * 100,
        "units: " + "x" * 5000,
    ],
    ids=lambda text: text[:24],
)
def test_a_value_that_is_huge_or_holds_itself_is_shown_in_short(tmp_path: Path, text: str) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("model: m\ninput: i\noutput: o\n" + text)
    with pytest.raises(ConfigError) as caught:
        load_job(ScoreJob, job)
    assert len(str(caught.value)) < 600
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "found"),
    # YAML reads 22:30 as a number in base 60
    [("06:00", "06:00"), ("22:30", "22:30"), ("04:00Z", "04:00Z"), ("null", None)],
)
def test_a_time_of_day_is_read_as_it_was_written(said: str, found: str | None) -> None:
    assert score(f"limits.stop_at={said}").limits.stop_at == found


@pytest.mark.parametrize("said", ["6am", "25:00", "7", "true", "6.5", "06:60"])
def test_what_is_no_time_of_day_is_refused(said: str) -> None:
    assert "limits.stop_at is " in refused(f"limits.stop_at={said}")
