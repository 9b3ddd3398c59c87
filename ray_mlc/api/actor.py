"""A model as a stage of somebody's own Ray Data pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.api.classifier import Classifier
from ray_mlc.api.texts import as_column
from ray_mlc.corpus.columns import did_you_mean, is_text, output_names
from ray_mlc.corpus.text import text_columns
from ray_mlc.errors import DataError
from ray_mlc.model.engines.kernels import keep_few_kernels

if TYPE_CHECKING:
    from ray_mlc.model.decisions import Decision


class ScoreActor:
    """Adds labels and scores to the batches of a Ray Data pipeline.

    For `ds.map_batches(ScoreActor, …)`: Ray makes one in each process of the pool, where it loads
    the model once and proves it on its canaries before it takes a batch. It is a plain class, and
    works without Ray as well. Its process keeps few compiled kernels, for its memory to stay level
    (`ONEDNN_PRIMITIVE_CACHE_CAPACITY` and `LRU_CACHE_CAPACITY`, if you have not set them).

    What `score` promises does not hold here: a pipeline of your own writes what it likes, and
    after a failure Ray may run a batch again. Nothing says that each row is there exactly once,
    and nothing is resumed.

    Examples:
        >>> import pyarrow as pa
        >>> from ray_mlc import ScoreActor
        >>> actor = ScoreActor("models/topics", text="{title} {body}")
        >>> batch = pa.table({"title": ["News:", None], "body": ["The bait has medolated.", None]})
        >>> tagged = actor(batch)
        >>> tagged.column_names[:4]
        ['title', 'body', 'labels', 'score_agriculture']
        >>> tagged.column_names[-4:]
        ['n_tokens', 'truncated', 'n_windows', 'status']
        >>> tagged["status"].to_pylist()
        ['ok', 'null_text']
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        text: str = "text",
        engine: str = "auto",
        dtype: str = "float32",
        device: str = "auto",
        decision: Decision | str | PathLike[str] | None = None,
        threads: int | None = None,
        format: str = "auto",
        k: int = 256,
        floor: float = 0.01,
    ) -> None:
        r"""Load the model.

        Args:
            model: Model folder, URI or hub id, as every node sees it.
            text: Column of the text, or a template over columns such as `{title}\n\n{body}`.
            engine: As in `Classifier.from_pretrained`: `auto` is the first that holds, so that
                all processes of a pool of equal machines have the same; there is no race.
            dtype: The same.
            device: The same: `auto` is the GPU that Ray gives to the actor, if it gives one.
            decision: The same.
            threads: CPU threads: give what `num_cpus` of the stage is. None: as many as the
                libraries find right, which is every core of the machine for each actor.
            format: As in `Classifier.tag`.
            k: The same.
            floor: The same.

        Raises:
            DataError: If `text` is no template.
            ModelError: If the model cannot be loaded, or does not reproduce its canaries here.
            ConfigError: If an argument is wrong.
        """
        self._text = text
        self._columns = text_columns(text)
        keep_few_kernels()
        if threads is not None:
            # read by the tokenizers when they begin their first batch
            os.environ["RAYON_NUM_THREADS"] = str(threads)
        self._form: dict[str, Any] = {"format": format, "k": k, "floor": floor}
        self._classifier = Classifier.from_pretrained(
            model, engine=engine, dtype=dtype, device=device, decision=decision, threads=threads
        )
        nothing = {name: pa.nulls(0) for name in self._columns}
        self._own = self._classifier.tag_rows(nothing, text, **self._form).column_names

    def __call__(self, batch: Any) -> Any:
        """Tag one batch.

        Args:
            batch: A `pyarrow.Table`, a `pandas.DataFrame`, or a mapping of names to NumPy arrays:
                any `batch_format` of Ray Data.

        Returns:
            The batch in the same form, with `labels`, scores, `n_tokens`, `truncated`, `n_windows`
            and `status` behind its columns, of the same types in every batch, an empty one too. A
            column of the batch that is called like one of them becomes `input_<name>`. NumPy knows
            no nulls: there a row without a text has no labels, scores of NaN and 0 tokens.

        Raises:
            DataError: If there is no such text column, or it holds something else.
        """
        names = [str(name) for name in _names(batch)]
        rows = {name: self._column(batch, name, names) for name in self._columns}
        tags = self._classifier.tag_rows(rows, self._text, **self._form)
        renamed = output_names(names, self._own)
        if isinstance(batch, pa.Table):
            return _beside_arrow(batch.rename_columns(renamed), tags)
        if isinstance(batch, Mapping):
            kept = dict(zip(renamed, batch.values(), strict=True))
            return kept | _as_numpy(tags)
        return _beside_pandas(batch, renamed, tags)

    def _column(self, batch: Any, name: str, names: Sequence[str]) -> Any:
        if name not in names:
            raise DataError(f"text: the batch has no column {name!r}{did_you_mean(name, names)}")
        column = as_column(batch[name], name)
        nested = pa.types.is_nested(column.type)
        if nested or (self._text == name and not is_text(column.type)):
            expected = "text" if self._text == name else "text or a number"
            raise DataError(f"text: column {name!r} is {column.type}, expected {expected}")
        return column


def _names(batch: Any) -> Iterable[object]:
    """Names of the columns of a batch.

    Raises:
        DataError: If it is none.
    """
    if isinstance(batch, pa.Table):
        return batch.column_names  # type: ignore[no-any-return]
    if isinstance(batch, Mapping):
        return batch.keys()
    if not hasattr(batch, "set_axis"):
        raise DataError(
            f"a batch is a pyarrow.Table, a pandas.DataFrame or a mapping of arrays, not a "
            f"{type(batch).__name__}"
        )
    return list(batch.columns)


def _beside_arrow(batch: pa.Table, tags: pa.Table) -> pa.Table:
    for name in tags.column_names:
        batch = batch.append_column(tags.schema.field(name), tags[name])
    return batch


def _beside_pandas(frame: Any, names: Sequence[str], tags: pa.Table) -> Any:
    import pandas as pd

    # Arrow's types: pandas' own would be others where a batch has a null, and objects for lists
    own = tags.to_pandas(types_mapper=pd.ArrowDtype).set_axis(frame.index)
    return pd.concat([frame.set_axis(list(names), axis=1), own], axis=1)


def _as_numpy(tags: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns as arrays whose types do not depend on what is null."""
    return {name: _array(tags[name]) for name in tags.column_names}


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        values = np.full((len(column), kind.list_size), np.nan, np.float16)
        filled = column.is_valid().to_numpy(zero_copy_only=False)
        flat = column.drop_null().combine_chunks().flatten()
        values[filled] = flat.to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
        return values
    if pa.types.is_list(kind) or pa.types.is_string(kind):
        objects = np.empty(len(column), dtype=object)
        for row, value in enumerate(column.to_pylist()):  # at once, equal lists become a matrix
            objects[row] = [] if value is None else value
        return objects
    if pa.types.is_floating(kind):
        found: NDArray[Any] = column.to_numpy(zero_copy_only=False)  # NaN for null
        return found
    return column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy()  # type: ignore[no-any-return]
