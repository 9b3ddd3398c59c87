"""What the report of a night costs: reading parts in each form, and opening its page.

    python benchmarks/bench_report.py

One JSON line per form: processor seconds (not time: other processes do not count) of one thread
over one part of 16,384 rows, in memory, and what that is in rows a minute. Scores are made up: as a
model gives them, most near 0. Then one line for the page of a night with 1,000 labels in Chromium,
where playwright and one are installed: time to the first text, to the last plot, and the work of
the page's thread.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mlc.corpus.rows import SOURCE_TYPE
from ray_mlc.labels import LabelSet
from ray_mlc.scoring.overnight import CANDIDATES
from ray_mlc.scoring.parts import OutputSpec, label_lists, serialize, top_lists
from ray_mlc.scoring.stored import MAX_CELLS, score_columns
from ray_mlc.scoring.sums import READ_ALWAYS, Sums

ROWS = 16_384
FORMS = (("wide", 21), ("wide", 64), ("sparse", 1_000), ("sparse", 4_271), ("dense", 1_000))
K, FLOOR, THRESHOLD = 256, 0.01, 0.5


def part(output: OutputSpec) -> bytes:
    """A part of made-up scores: of few labels about one a row is given, of many as well."""
    label_set, form = output.label_set, output.format
    generator, count = np.random.default_rng(0), len(label_set)
    scores_NL = generator.beta(0.05 if count > 100 else 0.3, 3, (ROWS, count)).astype(np.float32)
    schema = output.schema
    columns: dict[str, pa.Array] = {
        "source": pa.array(["a.parquet"] * ROWS).cast(SOURCE_TYPE),
        "row": pa.array(np.arange(ROWS)),
        "labels": label_lists(scores_NL, scores_NL >= THRESHOLD, label_set.names),
        "n_tokens": pa.array(generator.integers(1, 900, ROWS).astype(np.int32)),
        "truncated": pa.array(np.zeros(ROWS, np.bool_)),
        "n_windows": pa.array(np.ones(ROWS, np.int16)),
        "status": pa.array(["ok"] * ROWS).cast(SOURCE_TYPE),
    }
    match form:
        case "wide":
            columns |= {
                f"score_{n}": pa.array(scores_NL[:, i]) for i, n in enumerate(label_set.names)
            }
        case "sparse":
            columns["top"], _ = top_lists(scores_NL, label_set.names, k=K, floor=FLOOR)
        case _:
            flat = pa.array(scores_NL.astype(np.float16).ravel())
            columns["scores"] = pa.FixedSizeListArray.from_arrays(flat, count)
    return serialize(pa.table(columns).select(schema.names), schema, {})


def read(data: bytes, output: OutputSpec) -> Sums:
    """Sum a part up, as a thread of the report does."""
    count = len(output.label_set)
    width = min(count, K) if output.format == "sparse" else count
    thresholds_L = np.full(count, THRESHOLD, np.float32)
    sums = Sums(output.label_set, thresholds_L, np.arange(min(count, CANDIDATES)))
    columns, first = [*READ_ALWAYS, *score_columns(output)], 0
    with pq.ParquetFile(io.BytesIO(data)) as file:
        for batch in file.iter_batches(MAX_CELLS // width, columns=columns, use_threads=False):
            sums.add(pa.Table.from_batches([batch]), output, first=first)
            first += len(batch)
    return sums


def measure(form: str, labels: int) -> dict[str, object]:
    """Processor seconds over one part: the median of five."""
    label_set = LabelSet(tuple(f"label {place}" for place in range(labels)))
    output = OutputSpec(pa.schema([]), label_set, form, K, FLOOR)
    data, taken = part(output), []
    for _ in range(5):
        started = time.process_time()
        sums = read(data, output)
        taken.append(time.process_time() - started)
    assert sums.rows == ROWS
    seconds = float(np.median(taken))
    return {
        "form": form,
        "labels": labels,
        "part_mb": round(len(data) / 1e6, 1),
        "cpu_s": round(seconds, 3),
        "rows_per_min_and_core": round(ROWS / seconds * 60),
    }


def open_page(folder: Path, labels: int) -> dict[str, object]:
    """Open the page of a made-up night."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.browser import opened, wait_for_plots
    from support.nights import made_up_night

    from ray_mlc.report.night import night_page

    names = [f"label {place}" for place in range(labels)]
    page = folder / "page.html"
    page.write_text(night_page(made_up_night(names), made="now", card=None, job=None))
    with opened(page) as seen:
        session = seen.page.context.new_cdp_session(seen.page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        started = time.monotonic()
        seen.page.reload()
        wait_for_plots(seen)
        seconds = time.monotonic() - started
        metrics = session.send("Performance.getMetrics")["metrics"]
        script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        paint_s = seen.page.evaluate(script) / 1000
    return {
        "page_labels": labels,
        "page_mb": round(page.stat().st_size / 1e6, 1),
        "first_text_s": round(paint_s, 2),
        "last_plot_s": round(seconds, 2),
        "work_s": round(next(i["value"] for i in metrics if i["name"] == "TaskDuration"), 2),
    }


if __name__ == "__main__":
    for form, labels in FORMS:
        print(json.dumps(measure(form, labels)), flush=True)
    with tempfile.TemporaryDirectory() as name:
        for _ in range(3):
            print(json.dumps(open_page(Path(name), 1_000)), flush=True)
