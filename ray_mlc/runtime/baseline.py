"""The figures that an encoder has to beat, and the TF-IDF model that has them as a model folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_mlc.config import LongConfig
from ray_mlc.errors import ConfigError, ModelError, StorageError, first_line
from ray_mlc.evaluation.evaluate import evaluate_scores_at, validation_metrics
from ray_mlc.evaluation.metrics import dummy_scores, evaluate_scores
from ray_mlc.evaluation.thresholds import Thresholds, fit_thresholds
from ray_mlc.model.canaries import record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.decisions import Rules, decide
from ray_mlc.model.distribution import ScoreCounts
from ray_mlc.model.engines.tfidf_engine import tfidf_classifier
from ray_mlc.model.folder import INFO_FILE, ModelInfo, open_model, read_info, write_tfidf_folder
from ray_mlc.model.tfidf import MAX_TOKENS, TfidfModel, is_tfidf
from ray_mlc.runtime.evaluate import load_here
from ray_mlc.runtime.progress import Display
from ray_mlc.runtime.session import usable_cores
from ray_mlc.runtime.thresholds import OBJECTIVE, measured_on
from ray_mlc.scoring.identity import versions
from ray_mlc.training.baselines import fit_tfidf, max_features_for
from ray_mlc.training.examples import Examples, annotated_rows, read_examples
from ray_mlc.training.provenance import about_examples

_LIBRARIES = ("scipy",)
"""What the fit depends on besides."""


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """How the model is fitted; see `training.baselines.fit_tfidf`."""

    C: float
    min_df: int
    max_features: int | None
    seed: int
    """Of the parts of the validation examples on which thresholds are held out."""


def fit_baseline(
    train: str,
    validation: str,
    test: Sequence[str],
    output: Path,
    *,
    text: str,
    labels: str | Sequence[str],
    settings: BaselineSettings,
    display: Display,
) -> dict[str, Any]:
    """Fit TF-IDF with logistic regression, save it, and measure it beside the dummy.

    A model that is in `output` already, from the same examples and settings, is measured only.

    Args:
        train: Examples to learn from.
        validation: Examples that thresholds are fitted on.
        test: Examples to measure on; none: the validation examples, each with thresholds that were
            fitted on others.
        output: Model folder to write.
        text: Column, or template, of the text.
        labels: Column or columns of the labels.
        settings: How it is fitted.
        display: Told about progress.

    Returns:
        `model`, `features`, `labels`, `unlearned` (labels without a positive), `n`, `measured_on`
        (`test` or `validation`), `examples`, `threshold` (the one for all labels), `seconds`, and
        the metrics `dummy`, `at_half`, `one_threshold` and `decision` (one per label, which the
        folder keeps).

    Raises:
        ConfigError: If `output` cannot be a model folder.
        ModelError: If it holds another model.
        DataError: If the examples cannot be used.
    """
    started = time.monotonic()
    if not 0 < settings.C < math.inf:
        raise ConfigError(f"--C is {settings.C:g}, expected a number above 0")
    _check_output(output)
    learn, held_out, measured = _read(train, validation, test, text, labels, display)
    fingerprint = _fingerprint(learn, held_out, settings)
    classifier, model = _classifier(learn, output, fingerprint, settings, display)
    scores_NL = _scores(classifier, held_out, "validation", display)
    with display.stage("thresholds", None, "fits") as stage:
        fits: dict[str, Thresholds] = {}
        for name, per_label in (("one_threshold", False), ("decision", True)):
            fits[name] = fit_thresholds(
                held_out.targets_NL(),
                scores_NL,
                objective=OBJECTIVE,
                per_label=per_label,
                seed=settings.seed,
            )
            stage.advance(1)
    if fits["decision"].shrinkage == np.inf:
        display.say(
            "note: by cross-validation, thresholds of the labels' own are worth nothing here: all "
            "labels share one"
        )
    if model is not None:
        info = ModelInfo(
            kind="tfidf",
            labels=list(held_out.label_set.names),
            decision=fits["decision"].decision(held_out.label_set, OBJECTIVE),
            long=LongConfig(policy="truncate", max_tokens=MAX_TOKENS),
            metrics=_validation_metrics(
                held_out, scores_NL, fits["decision"], learn, validation, seed=settings.seed
            ),
            training={
                "fingerprint": fingerprint,
                "train": train,
                "validation": validation,
                "data": {
                    "train": about_examples(train, learn),
                    "validation": about_examples(validation, held_out),
                },
                "train_rows": len(learn),
                "validation_rows": len(held_out),
                "features": len(model.vocabulary),
                "settings": asdict(settings),
                "versions": versions() | {name: version(name) for name in _LIBRARIES},
            },
            label_rates=learn.label_rates().tolist(),
        )
        counts = ScoreCounts.of(scores_NL, decide(scores_NL, Rules(fits["decision"].own_L)))
        _write(output, model, info, classifier, counts, display)
    if measured is not None:
        scores_NL = _scores(classifier, measured, "test", display)
        given = {name: decide(scores_NL, Rules(fit.own_L)) for name, fit in fits.items()}
    else:
        given = {name: _held_out(fit) for name, fit in fits.items()}
    return {
        "model": str(output),
        "features": len(classifier.tokenizer.vocabulary),
        "labels": len(held_out.label_set),
        "unlearned": int(np.count_nonzero(learn.label_counts() == 0)),
        "n": len(measured or held_out),
        "measured_on": "test" if measured is not None else "validation",
        "examples": list(test) or [validation],
        "threshold": fits["one_threshold"].all_labels,
        **_figures(measured or held_out, scores_NL, given, learn.label_rates()),
        "seconds": round(time.monotonic() - started, 3),
    }


def _check_output(output: Path) -> None:
    """Find out before the work that nothing could be written.

    Raises:
        ConfigError: If it is a file, or a folder that holds something else.
        StorageError: If it cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file, expected a folder to write")
    # one that was cut off while it was written may be written again
    ours = (output / INFO_FILE).is_file() or is_tfidf(output)
    if output.is_dir() and any(output.iterdir()) and not ours:
        raise ConfigError(
            f"--output {output}: is not empty, and holds no baseline: name another folder"
        )
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise StorageError(f"--output {output}: cannot be written: name another folder")


def _read(
    train: str,
    validation: str,
    test: Sequence[str],
    text: str,
    labels: str | Sequence[str],
    display: Display,
) -> tuple[Examples, Examples, Examples | None]:
    """Examples to learn from, to fit thresholds on, and to measure on if there are such.

    The first two have one label set; the last may have more labels, at its end.
    """
    with display.stage("read", None, "examples") as stage:
        found: list[Examples] = []
        for paths in ([train], [validation], list(test)):
            if paths:
                known = found[-1].label_set if found else None
                data = read_examples(paths, text=text, labels=labels, label_set=known)
                found.append(annotated_rows(data, paths[0]))
                stage.advance(len(data))
    # labels that only validation has: the model gets a column for them, and misses them
    learn = replace(found[0], label_set=found[1].label_set)
    counts_L = learn.label_counts()
    if never := [name for name, n in zip(learn.label_set.names, counts_L, strict=True) if not n]:
        display.say(
            f"note: {len(never)} label(s) are in no training row, such as {never[0]!r}: they are "
            "never given"
        )
    measured = found[2] if test else None
    if measured and (unknown := measured.label_set.names[len(learn.label_set) :]):
        display.say(
            f"note: {len(unknown)} label(s) of the test examples are unknown to the model, such as "
            f"{unknown[0]!r}: every one of them counts as a miss"
        )
    return learn, found[1], measured


def _classifier(
    learn: Examples, output: Path, fingerprint: str, settings: BaselineSettings, display: Display
) -> tuple[Classifier, TfidfModel | None]:
    """What scores, and the model to be written; None if it is there already.

    Raises:
        ModelError: If another one is there.
    """
    info = read_info(output)
    if info is not None:
        if info.training.get("fingerprint") != fingerprint:
            raise ModelError(
                f"{output}: holds a model that was made from other data or settings: choose "
                "another --output, or remove it"
            )
        display.say(f"{output} is fitted already: same data and settings")
        return load_here(open_model(str(output)), dtype="float32", device="cpu"), None
    labels = len(learn.label_set)
    display.say(f"{len(learn):,} training examples, {labels:,} labels: reading the words")
    with display.stage("fit", labels, "labels") as stage:
        model = fit_tfidf(
            learn.texts.to_pylist(),
            learn.targets_N,
            labels,
            C=settings.C,
            min_df=settings.min_df,
            max_features=settings.max_features,
            workers=usable_cores(),
            progress=stage.advance,
        )
    size = len(model.vocabulary)
    if settings.max_features is None and size == max_features_for(labels):
        display.say(
            f"note: {size:,} words and pairs were kept, those of the most documents: there is no "
            f"room for more with {labels:,} labels (--max-features)"
        )
    return tfidf_classifier(model, learn.label_set), model


def _scores(
    classifier: Classifier, data: Examples, name: str, display: Display
) -> NDArray[np.float32]:
    with display.stage(name, len(data), "examples") as stage:
        return classifier.predict_proba(data.texts.to_pylist(), progress=stage.advance)


def _held_out(fit: Thresholds) -> NDArray[np.bool_]:
    assert fit.held_out_NL is not None  # there is at least one example
    return fit.held_out_NL


def _validation_metrics(
    data: Examples,
    scores_NL: NDArray[np.float32],
    fit: Thresholds,
    learn: Examples,
    validation: str,
    *,
    seed: int,
) -> dict[str, Any]:
    """`ModelInfo.metrics`, as `ray-mlc thresholds` leaves them."""
    given = {"decision": decide(scores_NL, Rules(fit.own_L)), "decision_held_out": _held_out(fit)}
    found = validation_metrics(
        data.targets_NL(), scores_NL, given, rates_L=learn.label_rates(), seed=seed
    )
    return found | {"measured_on": measured_on([validation], len(data), fit, per_label=True)}


def _write(
    output: Path,
    model: TfidfModel,
    info: ModelInfo,
    classifier: Classifier,
    validation: ScoreCounts,
    display: Display,
) -> None:
    with display.stage("canaries", None, "texts") as stage:
        canaries = record_canaries(classifier)
        stage.advance(len(canaries.texts))
    try:
        write_tfidf_folder(output, model=model, info=info, canaries=canaries, validation=validation)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written ({first_line(error)})") from None


def _figures(
    data: Examples,
    scores_NL: NDArray[np.float32],
    given: Mapping[str, NDArray[np.bool_]],
    rates_L: NDArray[np.float64],
) -> dict[str, dict[str, float | None]]:
    """Metrics of the dummy, at 0.5 and of each decision; labels unknown to the model are missed."""
    targets_NL = data.targets_NL()
    wider = ((0, 0), (0, targets_NL.shape[1] - scores_NL.shape[1]))
    scores_NL = np.pad(scores_NL, wider)
    dummy_NL = dummy_scores(np.pad(rates_L, wider[1]), len(targets_NL))
    return {
        "dummy": evaluate_scores_at(targets_NL, dummy_NL, np.float32(0.5)),
        "at_half": evaluate_scores_at(targets_NL, scores_NL, np.float32(0.5)),
        **{
            name: evaluate_scores(targets_NL, scores_NL, np.pad(given_NL, wider))
            for name, given_NL in given.items()
        },
    }


def _fingerprint(learn: Examples, held_out: Examples, settings: BaselineSettings) -> str:
    """Digest of data and settings: the name of the model."""
    digest = hashlib.sha256()
    digest.update(json.dumps([asdict(settings), learn.label_set.names]).encode())
    for data in (learn, held_out):
        for text in data.texts.to_pylist():
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(np.packbits(data.annotated).tobytes())
        for cells in (data.positives, data.unannotated):
            if cells is not None:
                digest.update(pc.list_value_length(cells).to_numpy().tobytes())
                digest.update(cells.flatten().to_numpy().tobytes())
    return digest.hexdigest()
