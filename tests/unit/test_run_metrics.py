"""What Prometheus is told of a night, and the dashboard that shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ray_mlc.runtime import metrics as module
from ray_mlc.runtime import watching
from ray_mlc.runtime.metrics import (
    METRICS,
    Metric,
    RayMetrics,
    Silent,
    open_metrics,
)
from ray_mlc.scoring.parts import Receipt
from ray_mlc.scoring.standing import Blocks, Standing, Vitals

DASHBOARD = Path(__file__).parents[2] / "cluster/grafana/ray_mlc.json"


class Kept:
    """Takes what Ray's figures take."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.values = metric, {}

    def _key(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert set(tags) == set(self.metric.labels)
        return tuple(tags[label] for label in self.metric.labels)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert self.metric.kind == "counter"
        assert value > 0  # Ray raises
        key = self._key(tags)
        self.values[key] = self.values.get(key, 0) + value

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self.metric.kind == "gauge"
        self.values[self._key(tags)] = value

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert self.metric.kind == "histogram"
        self.values.setdefault(self._key(tags), []).append(value)


@pytest.fixture
def kept() -> tuple[dict[str, Any], Callable[[Metric], Kept]]:
    made: dict[str, Any] = {}

    def make(metric: Metric) -> Kept:
        return made.setdefault(metric.name, Kept(metric))

    return made, make


def receipt(first: int, rows: int, **values: Any) -> Receipt:
    return Receipt("a.parquet", first, rows, f"a/{first:012d}.parquet", **values)


def test_a_night_is_counted(kept: Any) -> None:
    made, make = kept
    metrics = RayMetrics("out", make)
    metrics.receipts([receipt(0, 7, statuses={"ok": 5, "not_finite": 2}, seconds=2.5)])
    metrics.receipts([receipt(7, 4), receipt(11, 3, fault="read: torn")])
    metrics.receipts([])
    metrics.heard(Vitals(7, 70, 77, actors=1))
    metrics.heard(Vitals(9, 90, 99, actors=1))
    metrics.heard(Vitals(0, 0, 0))  # the pulse was lost, and begins again
    metrics.heard(Vitals(1, 10, 11))
    totals = {name: item.values.get(("out",)) for name, item in made.items()}
    assert totals["mlc_unit_seconds"] == [2.5]  # of the other nobody knows
    assert totals["mlc_rows_total"] == 11
    assert totals["mlc_units_total"] == 2
    assert totals["mlc_set_aside_rows_total"] == 3
    assert totals["mlc_bad_rows_total"] == 2
    assert totals["mlc_tokens_total"] == 100
    assert totals["mlc_padded_tokens_total"] == 110


def test_how_a_night_stands_is_told(kept: Any) -> None:
    made, make = kept
    values = dict.fromkeys(Standing.__dataclass_fields__, 0)
    values |= {"busy": 0.5, "seconds_left": None, "actors": 4, "blocks": Blocks(1, 2, 3, 4, 5)}
    RayMetrics("out", make).standing(Standing(**values))  # type: ignore[arg-type]
    assert made["mlc_actors"].values == {("out",): 4}
    assert made["mlc_actors_busy_ratio"].values == {("out",): 0.5}
    assert made["mlc_seconds_left"].values == {}
    assert made["mlc_blocks"].values[("out", "scored")] == 4
    assert len(made["mlc_blocks"].values) == 5


def test_every_figure_is_registered_once(kept: Any) -> None:
    made, make = kept
    RayMetrics("out", make)
    assert set(made) == {metric.name for metric in METRICS}
    assert len(made) == len(METRICS)


def test_a_figure_that_cannot_be_told_ends_no_night() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    metrics = RayMetrics("out", lambda _: Broken())
    metrics.receipts([receipt(0, 7, seconds=1.0)])
    metrics.heard(Vitals(7, 70, 77))


def test_without_ray_nothing_is_done_and_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(module.sys.modules, "ray", raising=False)
    assert isinstance(open_metrics("out"), Silent)
    assert "ray" not in module.sys.modules
    assert watching.open_metrics is open_metrics


def test_ray_takes_each_figure_as_it_is_defined() -> None:
    from ray.util import metrics

    for metric in METRICS:
        made = module._make(metric)
        assert type(made).__name__.lower() == metric.kind
        assert made.info["name"] == metric.name
        assert made.info["tag_keys"] == metric.labels
    assert metrics is not None


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def queries(dashboard: dict[str, Any]) -> list[str]:
    """Every query of panels and variables."""
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = dashboard["templating"]["list"]
    return found + [item["query"]["query"] for item in variables if item["type"] == "query"]


def test_the_dashboard_shows_what_is_exported_and_all_of_it(dashboard: dict[str, Any]) -> None:
    asked = set(re.findall(r"\bray_\w+", " ".join(queries(dashboard))))
    assert asked == {name for metric in METRICS for name in metric.exported}


def test_labels_in_the_dashboard_are_those_that_are_exported(dashboard: dict[str, Any]) -> None:
    labels = {label for metric in METRICS for label in metric.labels} | {"le"}
    text = " ".join(queries(dashboard))
    assert set(re.findall(r"\{(\w+)[=~!]", text)) <= labels
    for group in re.findall(r"by \(([^)]*)\)", text):
        assert set(group.split(", ")) <= labels
    shown = [target["legendFormat"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert set(re.findall(r"\{\{(\w+)\}\}", " ".join(shown))) <= labels


def test_grafana_can_import_it(dashboard: dict[str, Any]) -> None:
    """What its import asks for: a schema version, unique ids, panels that lie beside each other."""
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["title"]
    assert re.fullmatch(r"[\w-]{1,40}", dashboard["uid"])
    names = {item["name"] for item in dashboard["templating"]["list"]}
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    for panel in panels:
        assert panel["type"] in {"timeseries", "stat", "gauge"}
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for one, two in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
    own = r"\$\{?(?!__)(\w+)"
    assert set(re.findall(own, DASHBOARD.read_text(encoding="utf-8"))) == names


def test_brackets_of_the_queries_close(dashboard: dict[str, Any]) -> None:
    for query in queries(dashboard):
        for left, right in ("()", "{}", "[]"):
            assert query.count(left) == query.count(right)
