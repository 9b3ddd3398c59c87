"""Read a run's output with DuckDB, Polars, `datasets` and pyarrow, and compare what they say.

    python benchmarks/check_readers.py OUTPUT

Prints rows, rows per source, labels per row and the largest disagreement on the mean of a score;
exits 1 if anything differs.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as pads
from datasets import load_dataset


def main(output: str) -> int:
    paths = sorted(str(path) for path in Path(output).rglob("*.parquet"))
    table = pads.dataset(paths).to_table()
    names = [name for name in table.column_names if name.startswith("score_")]
    seen: dict[str, tuple[dict[str, int], list[float]]] = {}
    sources = Counter(table["source"].to_pylist())
    seen["pyarrow"] = (
        dict(sources),
        [float(np.nanmean(table[name].to_numpy().astype(np.float64))) for name in names],
    )
    files = f"read_parquet('{output}/**/*.parquet')"
    means = ", ".join(f'avg("{name}"::DOUBLE)' for name in names)
    seen["duckdb"] = (
        dict(duckdb.sql(f"SELECT source, count(*) FROM {files} GROUP BY 1").fetchall()),
        list(duckdb.sql(f"SELECT {means} FROM {files}").fetchall()[0]),
    )
    frame = pl.read_parquet(f"{output}/**/*.parquet")
    counts = frame.group_by("source").len()
    seen["polars"] = (
        {str(source): count for source, count in counts.iter_rows()},
        list(frame.select([pl.col(name).cast(pl.Float64).mean() for name in names]).row(0)),
    )
    rows = load_dataset("parquet", data_files=paths, split="train", cache_dir="build/datasets")
    seen["datasets"] = (
        dict(Counter(rows["source"])),
        [
            float(np.nanmean(np.array(rows.with_format("numpy")[name], np.float64)))
            for name in names
        ],
    )
    counted, mean = seen["pyarrow"]
    agree = all(other == counted for other, _ in seen.values())
    spread = max(
        abs(one - two) for _, other in seen.values() for one, two in zip(mean, other, strict=True)
    )
    labels = [len(row) for row in table["labels"].to_pylist() if row is not None]
    result = {
        "rows": {reader: sum(counts.values()) for reader, (counts, _) in seen.items()},
        "per_source": counted,
        "sources_agree": agree,
        "largest_difference_of_a_mean": spread,
        "labels_per_row": float(np.mean(labels)),
        "statuses": dict(Counter(table["status"].to_pylist())),
        "columns": len(table.column_names),
    }
    print(json.dumps(result))
    return 0 if agree and spread < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
