"""A trained model for texts that lie in memory: notebooks, services, small tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from os import PathLike, fspath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_mlc.api.texts import as_texts
from ray_mlc.config import OutputConfig
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import section
from ray_mlc.model import classifier as loaded
from ray_mlc.model.decisions import Decision, read_decision
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.scoring.parts import OutputSpec, resolve_format
from ray_mlc.scoring.texts import score_rows, tag_rows

SHOWN = 20
"""Labels that a notebook shows of a model."""
_TEXT = "texts"


class Classifier:
    """A model folder, loaded and checked, with its decision.

    Scores and labels are those of `score` and of `ray-mlc predict`: the same tokenizer, batches and
    decision. It holds no texts between calls. One thread at a time.

    Examples:
        >>> from ray_mlc import Classifier
        >>> classifier = Classifier.from_pretrained("models/topics")
        >>> classifier
        Classifier('models/topics': 12 labels, torch float32 on cpu, at most 32 tokens)
        >>> classifier.classes_[:3]
        array(['agriculture', 'climate', 'culture'], dtype=object)

        A row of scores for each text; a missing or blank one has none:

        >>> scores = classifier.predict_proba(["The bait has medolated.", None, "  "])
        >>> scores.shape, scores.dtype
        ((3, 12), dtype('float32'))
        >>> np.isnan(scores).all(axis=1)
        array([False,  True,  True])

        The labels that the decision gives, best first, and all of it as the columns of `score`:

        >>> classifier.predict(["The bait has medolated.", None])
        [['culture', 'transport', 'sport'], []]
        >>> tags = classifier.tag(["The bait has medolated.", None])
        >>> tags.select(["n_tokens", "truncated", "status"]).to_pylist()[1]
        {'n_tokens': None, 'truncated': None, 'status': 'null_text'}
    """

    def __init__(self, folder: ModelFolder, classifier: loaded.Classifier) -> None:
        """Put a model folder and what was loaded of it together; see `from_pretrained`."""
        self._folder = folder
        self._loaded = classifier
        self._rules = folder.info.decision.rules(folder.label_set)
        self._policy = str(folder.long(None).policy)

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        engine: str = "auto",
        dtype: str = "float32",
        device: str = "auto",
        decision: Decision | str | PathLike[str] | None = None,
        threads: int | None = None,
    ) -> Classifier:
        """Load a model, and prove on its canaries that it scores as it should.

        Args:
            model: Model folder, URI of one, or hub id with an optional `@revision`.
            engine: `torch`, `openvino`, or `auto`: the first that holds, usually PyTorch.
            dtype: `float32`: exact, the same everywhere. Or `bfloat16`, `float16`, `int8` (if
                `ray-mlc quantize` has made it), or `auto`: the fastest that holds.
            device: `cpu`, `cuda`, or `auto`: a GPU if there is one.
            decision: How scores become labels, or the file of one, as `ray-mlc thresholds --output`
                writes it; None: what the model folder says.
            threads: CPU threads; None: the library's default.

        Raises:
            ModelError: If there is no such model, or it cannot run as asked.
            ConfigError: If an argument is none of what is said above, or the decision does not
                fit the model.
        """
        from ray_mlc.runtime.evaluate import load_here

        folder = open_model(fspath(model))
        if decision is not None:
            if dtype == "int8":
                raise ConfigError(
                    "decision has no meaning with dtype int8, which was measured at the model "
                    "folder's own: leave it out, or fit it there and quantize again"
                )
            if not isinstance(decision, Decision):
                decision = read_decision(fspath(decision), folder.label_set)
            decision.check(folder.label_set)
            folder = folder.with_decision(decision)
        found = load_here(folder, dtype=dtype, device=device, engine=engine, threads=threads)
        return cls(folder, found)

    @property
    def classes_(self) -> NDArray[np.object_]:
        """Names of the labels in the order of the columns of `predict_proba`, shape [L]."""
        return np.array(self._folder.label_set.names, dtype=object)

    @property
    def decision(self) -> Decision:
        """How scores become labels: thresholds, calibration, hierarchy, fall-back."""
        return self._folder.info.decision

    def predict_proba(self, texts: Iterable[object]) -> NDArray[np.float32]:
        """Scores of N texts.

        Args:
            texts: A list, a pandas or polars Series, a NumPy or an Arrow array. None and NaN are
                no text.

        Returns:
            Sigmoids of the logits, uncalibrated, shape [N, L]; a row of NaN where a text is
            missing, blank or could not be scored: `tag` says which.

        Raises:
            DataError: If there is something else than texts among them.
        """
        rows = {_TEXT: as_texts(texts)}
        return score_rows(rows, _TEXT, self._loaded, self._rules, policy=self._policy)

    def predict(self, texts: Iterable[object]) -> list[list[str]]:
        """Labels of N texts, as the decision gives them, best score first.

        Arguments and errors as for `predict_proba`. A text without a label has an empty list, and
        so has one that is missing, blank or could not be scored: `tag` tells them apart.
        """
        return [labels or [] for labels in self.tag(texts)["labels"].to_pylist()]

    def tag(
        self,
        texts: Iterable[object],
        *,
        format: str = "auto",
        k: int = 256,
        floor: float = 0.01,
    ) -> pa.Table:
        """Labels, scores and status of N texts, as the columns that `score` writes.

        Args:
            texts: As for `predict_proba`.
            format: `wide` (a column for each label), `sparse` (the best ones as a list), `dense`
                (one list of all, float16), or `auto`: wide up to 64 labels, sparse above.
            k: Most labels of a row in the sparse form.
            floor: Smallest score in the sparse form.

        Returns:
            `labels`, the scores, `n_tokens`, `truncated`, `n_windows` and `status`, row for row;
            `.to_pandas()` makes a DataFrame of it. Null where a text could not be scored.
        """
        return self.tag_rows({_TEXT: as_texts(texts)}, _TEXT, format=format, k=k, floor=floor)

    def tag_rows(
        self,
        rows: Mapping[str, pa.Array],
        text: str,
        *,
        format: str = "auto",
        k: int = 256,
        floor: float = 0.01,
    ) -> pa.Table:
        """As `tag`, for columns from which `text`, a name or a template, makes the texts."""
        # a path is needed, but nothing is written
        asked = {"path": ".", "format": format, "k": k, "floor": floor}
        config, label_set = section(OutputConfig, asked), self._folder.label_set
        form = resolve_format(config.format, label_set)
        output = OutputSpec(pa.schema([]), label_set, form, config.k, config.floor)
        return tag_rows(rows, text, self._loaded, self._rules, output, policy=self._policy)

    def __repr__(self) -> str:
        return f"Classifier({self._folder.name!r}: {', '.join(self._facts().values())})"

    def _repr_html_(self) -> str:
        """A table for notebooks: what is loaded, and the labels with their thresholds."""
        facts = {"model": self._folder.name, **self._facts()}
        metrics = self._folder.info.metrics.get("decision") or {}
        if isinstance(value := metrics.get("f1_micro"), float):
            facts["validation"] = f"micro-F1 {value:.4f}"
        names = self._folder.label_set.names
        thresholds = zip(names[:SHOWN], self._rules.thresholds_L, strict=False)
        shown = ", ".join(f"{name} ≥ {value:.3f}" for name, value in thresholds)
        if len(names) > SHOWN:
            shown += f", and {len(names) - SHOWN:,} more"
        facts["given from"] = shown
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table><tbody>{rows}</tbody></table>"

    def _facts(self) -> dict[str, str]:
        engine, tokenizer = self._loaded.engine, self._loaded.tokenizer
        count = len(self._folder.label_set)
        tokens = f"at most {tokenizer.max_tokens} tokens"
        if tokenizer.windows is not None:
            tokens += f" in each of {tokenizer.windows.max_windows} windows"
        return {
            "labels": f"{count:,} label{'s' if count != 1 else ''}",
            "engine": f"{engine.name} {engine.dtype} on {engine.device}",
            "tokens": tokens,
        }
