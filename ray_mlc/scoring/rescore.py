"""Score a sample of a run's rows again: whether the output is what the model says today.

Footers and keys prove that every row is there; only the model can prove that the scores belong to
it. The sample is read from the input and compared with its part: kept columns and statuses must be
equal, scores within the tolerance of the precision that the run is recorded for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.corpus.reading import open_parquet
from ray_mlc.corpus.rows import BLOCK_FAULT, read_block
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import ModelError, UsageError
from ray_mlc.model.canaries import MAX_FLIPS, TOLERANCE
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.engines.choose import load_classifier
from ray_mlc.model.folder import open_model
from ray_mlc.scoring.ledger import Run
from ray_mlc.scoring.retag import labels_by_scores
from ray_mlc.scoring.score import score_block, tokenize_block
from ray_mlc.scoring.stored import label_cells, score_matrix
from ray_mlc.storage import filesystem_of

UNITS = 10
"""Units that the sample is drawn from: each is read whole."""


@dataclass
class Rescored:
    """How a sample compares with what was written."""

    engine: str
    """What scored it."""
    rows: int = 0
    max_difference: float = 0.0
    """Largest absolute difference of a score."""
    tolerance: float = 0.0
    """Largest difference allowed."""
    flips: int = 0
    """Labels that come out differently."""
    cells: int = 0
    """Labels compared."""
    left_out: int = 0
    """Units whose input has changed or is gone since."""
    problems: list[str] = field(default_factory=list)
    """Sentences that name a part and what is wrong with it."""


def rescore(run: Run, parts: set[str], *, model: str | None, sample: int, seed: int) -> Rescored:
    """Score a sample again and compare.

    Args:
        run: The run.
        parts: Those of its parts that are as planned.
        model: Where the model is now; None: where it was when the run started.
        sample: Rows to score.
        seed: Seed of the sample.

    Raises:
        UsageError: If the model cannot be found, or is not the one of the run.
    """
    classifier = _load(run, model)
    engine = classifier.engine
    tolerance = max(TOLERANCE[run.resolved.dtype], TOLERANCE[engine.dtype])
    if run.output.format == "dense":
        tolerance += 2.0**-11  # what rounding to float16 may cost a number below 1
    result = Rescored(f"{engine.name} {engine.dtype} on {engine.device}", tolerance=tolerance)
    rng = np.random.default_rng(seed)
    written = np.array(
        [index for index, part in enumerate(run.part_paths) if part in parts], np.int64
    )
    chosen = np.sort(rng.permutation(written)[:UNITS])
    for unit in run.plan.units_at(chosen):
        share = rng.permutation(unit.rows)[: -(-sample // max(1, len(chosen)))]
        problem = _compare(run, unit, np.sort(share), classifier, result)
        if problem is not None:
            result.problems.append(f"{unit.part}: {problem}")
    if result.flips > MAX_FLIPS * result.cells and tolerance > TOLERANCE["float32"]:
        result.problems.append(
            f"{result.flips} of {result.cells} labels of the sample come out differently"
        )
    return result


def _load(run: Run, model: str | None) -> Classifier:
    folder = open_model(model or str(run.record["model_location"]))
    if folder.digest != run.identity["model"]:
        raise UsageError(
            f"{folder.name}: is not the model of the run ({folder.digest[:12]}, recorded "
            f"{run.identity['model'][:12]}): name the right one with --model"
        )
    rules = run.decision.rules(run.label_set)
    try:
        return load_classifier(folder, run.resolved, rules=rules)
    except ModelError:
        if run.resolved.device == "cpu":
            raise
        # a laptop may check what GPUs have written
        here = run.resolved.model_copy(update={"device": "cpu", "dtype": "float32"})
        return load_classifier(folder, here, rules=rules)


def _compare(
    run: Run, unit: Unit, rows: NDArray[np.int64], classifier: Classifier, result: Rescored
) -> str | None:
    """Compare some rows of a unit; what is wrong with them, if anything."""
    filesystem, base = filesystem_of(run.storage.uri)
    identity = run.identity
    block = read_block([unit], run.plan.spec, max_text_bytes=identity["input.max_text_bytes"])
    if block[BLOCK_FAULT][0].as_py() is not None:
        result.left_out += 1  # the input was changed or removed since; that is its owner's right
        return None
    with open_parquet(filesystem, f"{base.rstrip('/')}/{unit.part}") as file:
        written = file.read()
    written = _rows_at(written, rows)
    tokens = tokenize_block(
        _rows_at(block, rows), classifier.tokenizer, policy=identity["long.policy"]
    )
    rules = run.decision.rules(run.label_set)
    scored = score_block(tokens, classifier, rules, run.output)
    for name in (*run.output.kept.names, "status", "n_tokens", "truncated", "n_windows"):
        if not _same(written[name], scored[name]):
            return f"its column {name!r} is not what the input gives"
    try:
        given = _given(written, run)
        old_NL, new_NL = (_scores(table, run) for table in (written, scored))
    except ValueError as error:
        return str(error)
    # of a run that decides stored scores anew, these alone say which labels are right
    again = run.origin is not None
    expected = labels_by_scores(written, run.output, rules) if again else _given(scored, run)
    flips = int((given != expected).sum())
    difference = float(np.abs(old_NL - new_NL).max(initial=0.0))
    result.rows += len(rows)
    result.cells += old_NL.size
    result.flips += flips
    result.max_difference = max(result.max_difference, difference)
    if not difference <= result.tolerance:
        return f"scores differ by {difference:.2g} from the model's (limit {result.tolerance:.2g})"
    if flips and (again or not rules.near(new_NL, result.tolerance)):
        return f"{flips} labels are not those that its scores give"
    return None


def _rows_at(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Some rows of a table; Arrow's own `take` knows no views."""
    return pa.concat_tables([table.slice(0, 0), *(table.slice(row, 1) for row in rows.tolist())])


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same values, NaN and strings that are no UTF-8 included."""
    one, other = (
        item.cast(item.type.value_type) if pa.types.is_dictionary(item.type) else item
        for item in (one, other)
    )
    if one.type.equals(other.type) and one.equals(other):
        return True
    try:
        return repr(one.to_pylist()) == repr(other.to_pylist())  # Arrow says NaN ≠ NaN
    except UnicodeDecodeError:
        return False


def _given(table: pa.Table, run: Run) -> NDArray[np.bool_]:
    """Which labels each row has, shape [N, L]."""
    given_NL = np.zeros((table.num_rows, len(run.label_set)), np.bool_)
    given_NL[label_cells(table["labels"], run.label_set)] = True
    return given_NL


def _scores(table: pa.Table, run: Run) -> NDArray[np.float32]:
    """Scores of a table of output columns, shape [N, L]; what is not stored counts as `floor`."""
    unknown = run.output.floor if run.output.format == "sparse" else 0.0
    return np.nan_to_num(score_matrix(table, run.output), nan=unknown)
