"""Tag texts that lie in memory: the columns of `score` beside rows that somebody else holds.

The steps are those of a run: the text is made, tokenized, batched and decided by the same code, so
that a notebook and a night give one answer. There are no units here, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.corpus.rows import (
    BLOCK_FAULT,
    BLOCK_STATUS,
    BLOCK_TEXT,
    BLOCK_UNIT_FIRST,
    BLOCK_UNIT_ROWS,
    SOURCE_TYPE,
    make_text,
)
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules
from ray_mlc.scoring.parts import OutputSpec
from ray_mlc.scoring.score import MAX_CELLS, score_block, tokenize_block

MAX_TEXT_BYTES = 64 * 2**20
"""A longer text is `too_long`, as by default in a run."""
_OF_A_FILE = ("source", "row")
"""Output columns that say where in the input a row is: there is no file here."""


def tag_rows(
    rows: pa.Table | Mapping[str, pa.Array],
    text: str,
    classifier: Classifier,
    rules: Rules,
    output: OutputSpec,
    *,
    policy: str,
    max_text_bytes: int = MAX_TEXT_BYTES,
) -> pa.Table:
    """Labels and scores of N rows.

    Args:
        rows: The text columns; others may be there.
        text: Column name or template.
        classifier: Texts to scores.
        rules: The decision.
        output: In which form scores are given; its kept columns play no part.
        policy: Long-document policy: `truncate`, `windows` or `skip`.
        max_text_bytes: Longest text.

    Returns:
        A table of `tagged_schema(output)`, row for row. Null labels and scores where a row could
        not be scored; its `status` says why.
    """
    block = _tokens(rows, text, classifier, policy, max_text_bytes)
    if not block.num_rows:
        return tagged_schema(output).empty_table()
    scored = score_block(block, classifier, rules, output)
    return scored.select(tagged_schema(output).names).cast(tagged_schema(output))


def score_rows(
    rows: pa.Table | Mapping[str, pa.Array],
    text: str,
    classifier: Classifier,
    rules: Rules,
    *,
    policy: str,
    max_text_bytes: int = MAX_TEXT_BYTES,
) -> NDArray[np.float32]:
    """Scores of N rows, shape [N, L]; NaN where a row could not be scored.

    Arguments as for `tag_rows`.
    """
    block = _tokens(rows, text, classifier, policy, max_text_bytes)
    label_set = classifier.label_set
    wide = OutputSpec(pa.schema([]), label_set, "wide", 1, 0.0)
    names = [f"score_{name}" for name in label_set.column_names]
    scores_NL = np.empty((block.num_rows, len(label_set)), np.float32)
    some = max(1, MAX_CELLS // len(label_set))
    for low in range(0, len(scores_NL), some):  # columns of all rows would hold them twice
        scored = score_block(block.slice(low, some), classifier, rules, wide)
        for column, name in enumerate(names):
            values = scored[name].to_numpy(zero_copy_only=False)
            scores_NL[low : low + some, column] = values
    return scores_NL


def tagged_schema(output: OutputSpec) -> pa.Schema:
    """Schema of what `tag_rows` returns: a run's own columns, statuses as plain strings.

    A dictionary of six words would have to be made the same wherever such tables meet.
    """
    return pa.schema(
        [
            pa.field(item.name, pa.string()) if item.name == "status" else item
            for item in output.schema
            if item.name not in (*output.kept.names, *_OF_A_FILE)
        ]
    )


def _tokens(
    rows: pa.Table | Mapping[str, pa.Array],
    text: str,
    classifier: Classifier,
    policy: str,
    max_text_bytes: int,
) -> pa.Table:
    """The block of token ids that a read and a tokenizing step of a run would make."""
    values, status = make_text(rows, text, max_text_bytes=max_text_bytes)
    count = len(values)
    block = pa.table(
        {
            "source": pa.nulls(count, SOURCE_TYPE),
            "row": pa.array(np.arange(count)),
            BLOCK_TEXT: values,
            BLOCK_STATUS: pa.array(status),
            BLOCK_UNIT_FIRST: pa.array(np.zeros(count, np.int64)),
            BLOCK_UNIT_ROWS: pa.array(np.full(count, count, np.int32)),
            BLOCK_FAULT: pa.nulls(count, pa.string()),
        }
    )
    return tokenize_block(block, classifier.tokenizer, policy=policy)
