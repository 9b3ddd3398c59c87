"""The model card: what a stranger must know of a model folder, written from what is in it.

Names of labels and paths may hold any character: they stand in code spans, which Markdown takes for
what they are. No text of a document is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ray_mlc.config import TrainingConfig
from ray_mlc.errors import redact
from ray_mlc.model.decisions import Decision
from ray_mlc.model.tfidf import VOCABULARY_FILE

if TYPE_CHECKING:
    from ray_mlc.model.folder import ModelInfo

Form = Literal["hub", "onnx", "openvino"]
"""What a folder holds a model as: a checkpoint, or a graph that other runtimes load."""
LABELS_SHOWN = 300
"""Labels that are named; all of them are in `config.json`."""
FILES_SHOWN = 12
"""Files of examples that are named; all of them are in `ray_mlc.json`."""
NAMED = 6
"""Labels that stand for many."""
FEW = 10
"""Training examples below which a label is hardly learned."""
_METRICS = {
    "f1_micro": ("f1", "F1, micro"),
    "f1_macro": ("f1", "F1, macro"),
    "average_precision_macro": ("average_precision", "average precision, macro"),
    "roc_auc_micro": ("roc_auc", "ROC-AUC, micro"),
}
"""Figures that the hub gets, and the names that it has for them."""
_ALWAYS = frozenset(
    [
        "epochs",
        "batch_size",
        "learning_rate",
        "head_learning_rate",
        "max_tokens",
        "loss",
        "pooling",
        "dtype",
        "best_metric",
        "seed",
    ]
)  # settings that are named even where they are the defaults
_SEES = {
    "cls": "the first token's last hidden state",
    "mean": "the mean of all last hidden states",
}


def model_card(info: ModelInfo, *, pooling: str | None, form: Form = "hub", note: str = "") -> str:
    """The folder's README.md.

    Args:
        info: Content of `ray_mlc.json`.
        pooling: `cls` or `mean` for a folder that only ray_mlc loads.
        form: What the folder holds the model as.
        note: A sentence on that.
    """
    tfidf = info.kind == "tfidf"
    sections = {
        "Use": _usage(info, pooling) if form == "hub" else _graph_usage(form, note),
        "Labels from scores": _decision(info),
        "Figures": _figures(info),
        "Long texts": _long_texts(info),
        "Data": _data(info),
        "Training": _tfidf_training(info) if tfidf else _training(info),
        "Limits": _limits(info),
        "Labels": _labels(info.labels),
        "Versions": _versions(info),
    }
    lines = ["# Multi-label text classifier", "", _origin(info)]
    for title, words in sections.items():
        if words:
            lines += ["", f"## {title}", "", *words]
    return f"---\n{_front(info, pooling, form)}\n---\n" + "\n".join(lines) + "\n"


def _front(info: ModelInfo, pooling: str | None, form: Form) -> str:
    """What the hub reads: YAML, as its own library writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    plain = pooling is None and info.kind == "encoder"
    library = form if form != "hub" else "transformers" if plain else "ray_mlc"
    about = _measured_on(info)
    name = _stem(about["examples"]) or "validation"
    held_out = "decision_held_out" in info.metrics
    metrics = info.metrics.get("decision_held_out" if held_out else "decision", {})
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type="custom",  # of no data set on the hub, which would be linked
            dataset_name=name,
            dataset_split="validation",
            metric_type=kind,
            metric_name=f"{title}, {'held out of the fit' if held_out else 'at the decision'}",
            metric_value=round(metrics[key], 4),
        )
        for key, (kind, title) in _METRICS.items()
        if isinstance(metrics.get(key), float)
    ]
    data = ModelCardData(
        library_name=library,
        pipeline_tag="text-classification",
        tags=["ray_mlc", "multi-label-classification"],
        base_model=info.training.get("base_model"),
        model_name="multi-label text classifier" if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _stem(paths: Sequence[str]) -> str:
    """What examples are called: their file's name, after that of its folder."""
    if not paths:
        return ""
    *_, folder, file = ["", *redact(paths[0]).partition("?")[0].rstrip("/").split("/")]
    return f"{folder}/{file.partition('.')[0]}".strip("/")


def _origin(info: ModelInfo) -> str:
    origin, labels = info.training, f"{len(info.labels):,} labels"
    made = f"ray_mlc {origin.get('versions', {}).get('ray-mlc', '')}".strip()
    rows = _count(origin.get("train_rows"))
    if info.kind == "tfidf":
        return (
            f"TF-IDF with a logistic regression of each of {labels}: a baseline, fitted with "
            f"{made} on {rows} examples. A token is a word, or a pair of words, that the model "
            "knows."
        )
    return (
        f"{labels[0].upper()}{labels[1:]}. Fine-tuned with {made} from "
        f"{code(redact(str(origin.get('encoder', 'an encoder'))))} on {rows} examples; epoch "
        f"{origin.get('best_epoch', '?')} of {origin.get('epochs', '?')} was kept."
    )


# --- how it is used


def _usage(info: ModelInfo, pooling: str | None) -> list[str]:
    ours = ["```bash", 'ray-mlc predict FOLDER "a text"']
    ours += ["ray-mlc score --model FOLDER --input CORPUS --output TAGS", "```"]
    if info.kind == "tfidf":
        return ["Only ray_mlc runs it (transformers refuses it), on CPUs:", "", *ours]
    if pooling is not None:
        return [
            f"Its head sees {_SEES[pooling]} and nothing else. transformers has no class for that: "
            "only ray_mlc loads this folder, and `pipeline` refuses it.",
            "",
            *ours,
        ]
    lines = [
        "```python",
        "from transformers import pipeline",
        'classify = pipeline("text-classification", model=FOLDER, top_k=None)',
        'classify("a text", truncation=True)',
        "```",
        "",
        "That gives the score of every label. Which of them are given is the decision's: "
        "`pipeline` knows nothing of it"
        + (", and reads the first window only" if info.long.windows else "")
        + ".",
        "",
    ]
    return lines + ours


_SESSIONS = {
    "onnx": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession(f"{FOLDER}/model.onnx")',
        'logits = session.run(["logits"], inputs)[0]',
    ),
    "openvino": (
        "import openvino",
        # OpenVINO rounds to bfloat16 by itself where the processor has it
        'exact = {"INFERENCE_PRECISION_HINT": "f32"}\n'
        'model = openvino.Core().compile_model(f"{FOLDER}/openvino_model.xml", "CPU", exact)',
        "logits = model(inputs)[0]",
    ),
}
"""By form: how a graph is loaded and run."""


def _graph_usage(form: Form, note: str) -> list[str]:
    """How to run a graph without ray_mlc, as lines of the card."""
    library, load, run = _SESSIONS[form]
    return [
        f"The model as a graph, in float32. {note} `ray_mlc.json` has labels and thresholds:",
        "",
        "```python",
        "import json",
        "from pathlib import Path",
        "",
        "import numpy as np",
        library,
        "from transformers import AutoTokenizer",
        "",
        load,
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        'info = json.loads(Path(f"{FOLDER}/ray_mlc.json").read_text())',
        "",
        'texts = ["a text", "another one"]',
        'batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")',
        'inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}',
        run,
        "scores = 1 / (1 + np.exp(-logits))  # a row for each text, a column for each label",
        'decision = info["decision"]',
        "thresholds = [",
        '    decision["per_label"].get(label, decision["threshold"]) for label in info["labels"]',
        "]",
        "given = scores >= np.array(thresholds)",
        "```",
        "",
        "That is thresholds alone, of a text's first window: parents, fall-back and windows, where "
        "the model has them, are for ray_mlc to add.",
    ]


def _decision(info: ModelInfo) -> list[str]:
    """The decision in words."""
    decision = info.decision
    about = _measured_on(info)
    lines = [
        "A score is the sigmoid of one label's logit. A label is given from "
        f"{decision.threshold:.4f} on{_own_thresholds(decision)}."
    ]
    if decision.objective is None:
        lines.append("The threshold was not fitted: it is the default.")
    else:
        on = f"{_count(about['documents'])} validation examples" if about["documents"] else ""
        lines.append(
            f"Fitted for {code(decision.objective)} on {on or 'validation'}{_shrunk(about)}."
        )
    if decision.fallback is not None:
        floor = f" scored at least {decision.fallback_floor:g}" if decision.fallback_floor else ""
        lines.append(f"A text without any gets its {decision.fallback} best{floor}.")
    if decision.hierarchy:
        lines.append(
            f"{len(decision.hierarchy):,} labels have others above them, which come with them, "
            "whatever their scores."
        )
    lines.append(_calibration(info))
    return [" ".join(lines)]


def _own_thresholds(decision: Decision) -> str:
    if not decision.per_label:
        return ", whichever it is"
    values = decision.per_label.values()
    return (
        f", {len(values):,} labels from thresholds of their own between {min(values):.4f} and "
        f"{max(values):.4f}"
    )


def _shrunk(about: Mapping[str, Any]) -> str:
    """How a label's own threshold was found."""
    if not about.get("per_label"):
        return ""
    shrinkage = about.get("shrinkage")
    if about.get("one_is_best"):
        return "; by cross-validation, thresholds of the labels' own are worth nothing there"
    if shrinkage is None:
        return ""
    return (
        f"; a label with n positives has its own threshold to n / (n + {shrinkage:g}), the one for "
        "all to the rest (by cross-validation)"
        if shrinkage
        else "; each label has its own, undiluted (by cross-validation)"
    )


def _calibration(info: ModelInfo) -> str:
    calibration = info.decision.calibration
    if calibration is None:
        return "Scores are not calibrated: 0.8 does not mean that four of five are right."
    error = info.metrics.get("calibration", {}).get("error", {})
    before, after = (error.get(name, {}).get("ece") for name in ("before", "held_out"))
    return (
        f"A calibration ({calibration.method}) turns scores into probabilities: expected "
        f"calibration error {_cell(after)} held out, {_cell(before)} without it. It changes no "
        "label, and no score in `score`'s output."
    )


# --- what it can


def _figures(info: ModelInfo) -> list[str]:
    metrics = info.metrics
    if not metrics.get("at_half"):
        return []
    about = _measured_on(info)
    columns = {
        "dummy": "dummy",
        "at_half": "at 0.5",
        "decision": "at the decision",
        "decision_held_out": "the same, on documents held out of its fit",
    }
    ends = metrics.get("intervals", {})
    shown = {key: title for key, title in columns.items() if key in metrics}
    head = ["validation"]
    for key, title in shown.items():
        head += [title, "95 % interval"] if key in ends else [title]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in metrics["at_half"]:
        cells = [name]
        for key in shown:
            cells.append(_cell(metrics[key].get(name)))
            if key in ends:
                pair = ends[key].get(name)
                cells.append("–" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    words = []
    if about["documents"]:
        words.append(f"On {_count(about['documents'])} examples, {_spans(about['examples'])}.")
    if "dummy" in metrics:
        words.append("The dummy gives every document the label rates of the training data.")
    if ends:
        words.append("Intervals: bootstrap over documents; another training would vary as well.")
    chosen = "The decision was" if info.kind == "tfidf" else "Epoch and decision were"
    less = "; those held out do so less" if "decision_held_out" in shown else ""
    words.append(
        f"{chosen} chosen on these examples, so figures flatter{less}. What it does on others, "
        "`ray-mlc evaluate` says."
    )
    return [*lines, "", " ".join(words)]


def _long_texts(info: ModelInfo) -> list[str]:
    long, windows = info.long, info.long.windows
    unit = "words and pairs" if info.kind == "tfidf" else "tokens"
    if windows is None:
        return [f"Texts beyond {_count(long.max_tokens)} {unit} are cut{_share_cut(info)}."]
    words = (
        f"Longer texts are read in windows of {_count(long.max_tokens)} tokens, {windows.overlap} "
        f"of them shared with the next and {windows.max_windows} at most{_share_cut(info)}. The "
        f"logits of the windows are joined by `{windows.aggregate}`."
    )
    tried = info.training.get("windows") or {}
    values = {how: value for how, value in tried.get("values", {}).items() if value is not None}
    if len(values) > 1:
        others = ", ".join(
            f"{_cell(value)} by `{how}`" for how, value in values.items() if how != tried["chosen"]
        )
        words += (
            f" That was chosen on validation: {tried['metric']} "
            f"{_cell(values.get(tried['chosen']))}, against {others}."
        )
    return [words]


def _share_cut(info: ModelInfo) -> str:
    cut = info.training.get("data", {}).get("lengths", {}).get("cut")
    return "" if cut is None else f" (of the training texts {cut:.1%} were)"


# --- where it comes from


def _data(info: ModelInfo) -> list[str]:
    data = info.training.get("data", {})
    lines = []
    for split in ("train", "validation"):
        if (about := data.get(split)) is None:
            if (paths := info.training.get(split)) is not None:
                rows = _count(info.training.get(f"{split}_rows"))
                lines.append(f"- {split}: {rows} rows of {_spans(_listed(paths))}")
            continue
        odd = f", {about['without_labels']:,} of them without a label"
        odd += f", {about['undecided']:,} single labels undecided" if about["undecided"] else ""
        lines.append(f"- {split}: {about['rows']:,} rows{odd}")
        lines += [
            f"    - {code(file['name'])}, {file['bytes']:,} bytes, SHA-256 `{file['sha256'][:16]}…`"
            for file in about["files"][:FILES_SHOWN]
        ]
        if (more := len(about["files"]) - FILES_SHOWN) > 0:
            lines.append(f"    - and {more:,} more files, in `ray_mlc.json`")
    return lines


def _training(info: ModelInfo) -> list[str]:
    settings = info.training.get("settings")
    if not settings:
        return []
    usual = TrainingConfig().model_dump(mode="json")
    lines = [
        f"- {code(key)}: {code(json.dumps(value, ensure_ascii=False))}"
        for key, value in settings.items()
        if key in _ALWAYS or value != usual.get(key)
    ]
    return [*lines, "", "All others are ray_mlc's defaults."]


def _tfidf_training(info: ModelInfo) -> list[str]:
    origin, settings = info.training, info.training.get("settings", {})
    return [
        f"{_count(origin.get('features'))} words and pairs of words; "
        f"C {settings.get('C', '?')}, seed {settings.get('seed', '?')}.",
        "",
        f"`{VOCABULARY_FILE}` holds words and pairs that at least {settings.get('min_df', '?')} of "
        "the training texts have, as they stand there: think of that before you publish it.",
    ]


def _limits(info: ModelInfo) -> list[str]:
    data = info.training.get("data", {})
    train = data.get("train", {})
    lines = []
    if scripts := train.get("scripts"):
        named = ", ".join(
            f"{name.capitalize()} {share:.1%}" for name, share in list(scripts.items())[:NAMED]
        )
        lines.append(
            f"- Letters seen in training, of a sample of the texts, by script: {named}. Nobody "
            "looked which languages these are; of others the model knows what its encoder knows."
            if info.kind == "encoder"
            else f"- Letters seen in training, of a sample of the texts, by script: {named}. Words "
            "that were not seen count for nothing."
        )
    if lengths := data.get("lengths"):
        lines.append(
            f"- Lengths seen, in tokens: half of the texts have up to {lengths['p50']:,}, 99 % up "
            f"to {lengths['p99']:,}, the longest {lengths['longest']:,}."
        )
    if positives := train.get("positives"):
        padded = [*positives, *[0] * (len(info.labels) - len(positives))]
        counted = list(zip(info.labels, padded, strict=True))
        never = [name for name, count in counted if not count]
        few = [name for name, count in counted if 0 < count < FEW]
        if never:
            lines.append(
                f"- Never seen in training: {len(never):,} of {len(counted):,} labels, "
                f"{_some(never)}. Their scores mean nothing."
            )
        if few:
            lines.append(
                f"- Fewer than {FEW} training examples: {len(few):,} of {len(counted):,} labels, "
                f"{_some(few)}. They are hardly learned, and their figures are noise."
            )
    if not info.long.windows:
        lines.append("- What stands beyond the cut of a long text is not read.")
    if info.decision.calibration is None:
        lines.append("- Scores are no probabilities; compare them within a label, not across.")
    return lines


def _labels(names: Sequence[str]) -> list[str]:
    shown = ", ".join(code(name) for name in names[:LABELS_SHOWN])
    more = len(names) - LABELS_SHOWN
    return [f"{shown} and {more:,} more, in `config.json`" if more > 0 else shown]


def _versions(info: ModelInfo) -> list[str]:
    found = info.training.get("versions", {})
    return [", ".join(f"{name} {version}" for name, version in found.items())] if found else []


def _measured_on(info: ModelInfo) -> dict[str, Any]:
    """The examples of the figures: those that `thresholds` was given, or those of the training."""
    about = info.metrics.get("measured_on")
    if about is not None:
        return dict(about)
    examples = _listed(info.training.get("validation", []))
    return {"documents": info.training.get("validation_rows"), "examples": examples}


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def _spans(paths: Sequence[str]) -> str:
    return ", ".join(code(redact(path)) for path in paths)


def _some(names: Sequence[str]) -> str:
    named = ", ".join(code(name) for name in names[:NAMED])
    return named if len(names) <= NAMED else f"such as {named}"


def code(text: str) -> str:
    """Any text as a code span of Markdown, on one line; not for tables, where `|` ends a cell."""
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if not line.strip() or line[0] in " `" or line[-1] in " `" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–"
