"""What the columns of well-known data sets mean, and which of their files are which split.

jigsaw: Toxic Comment Classification Challenge (Jigsaw and Google, Kaggle 2018), as the CSV files
of its archive: `train.csv` has six 0/1 columns; those of `test.csv` came later, in
`test_labels.csv`, where -1 says that a row was not used for scoring.

go_emotions: GoEmotions (Demszky et al., ACL 2020), as `google-research-datasets/go_emotions` on the
hub or its Parquet files: `simplified` lists integers, `raw` has a 0/1 column per emotion, a row per
rater, and a mark where the rater found the text too unclear to decide.

multi_eurlex: MultiEURLEX (Chalkidis et al., EMNLP 2021), as the hub's conversion of
`coastalcph/multi_eurlex` to Parquet (EuroVoc level 1 only), or as the published archive
`multi_eurlex.tar.gz` with a JSONL file per split, all languages and levels in each line.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ray_mlc.errors import DataError
from ray_mlc.training.eurovoc import DOMAINS, MICROTHESAURI
from ray_mlc.training.names import Names
from ray_mlc.training.sources import TAR, SourceFile

PRESETS = ("jigsaw", "go_emotions", "multi_eurlex")

TOXICITY = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
# fmt: off
EMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion",
    "curiosity", "desire", "disappointment", "disapproval", "disgust", "embarrassment",
    "excitement", "fear", "gratitude", "grief", "joy", "love", "nervousness", "optimism", "pride",
    "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)
LANGUAGES = (
    "en", "da", "de", "nl", "sv", "bg", "cs", "hr", "pl", "sk", "sl", "es", "fr", "it", "pt", "ro",
    "et", "fi", "hu", "lt", "lv", "el", "mt",
)
# fmt: on
_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_EURLEX_FILES = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
EURLEX_ARCHIVE = "hf://datasets/coastalcph/multi_eurlex/data/multi_eurlex.tar.gz"


@dataclass(frozen=True)
class Layout:
    """What the columns of a source mean."""

    text: str = "text"
    """Column or template."""
    labels: str | tuple[str, ...] = "labels"
    id: str | None = "id"
    names: Names | None = None
    unclear: str | None = None
    """0/1 column that is 1 where nobody could decide any label of the row."""
    skip_null_text: bool = False
    """Whether rows without a text are left out."""


@dataclass(frozen=True)
class Preset:
    """A well-known data set."""

    name: str
    level: int = 1
    """EuroVoc level of MultiEURLEX."""
    language: str = "en"
    """Language of MultiEURLEX."""

    @classmethod
    def named(
        cls, name: str | None, *, level: int | None = None, language: str | None = None
    ) -> Preset | None:
        """The preset of a name, with its options; None for no name.

        Raises:
            DataError: If there is no such preset, or an option is not one of its.
        """
        if name is None:
            if level is not None:
                raise DataError("level is of the preset multi_eurlex: name it as the preset")
            return None
        if name not in PRESETS:
            raise DataError(f"preset {name!r}: {_near(name, PRESETS)}")
        if name != "multi_eurlex":
            for option, value in (("level", level), ("language", language)):
                if value is not None:
                    raise DataError(f"{option} is of the preset multi_eurlex: leave it out here")
            return cls(name)
        if level not in (None, 1, 2, 3):
            raise DataError(f"level {level}: expected 1, 2 or 3")
        if language is not None and language not in LANGUAGES:
            raise DataError(f"language {language!r}: {_near(language, LANGUAGES)}")
        return cls(name, level or 1, language or "en")

    def subset(self, subset: str | None) -> str | None:
        """The subset of a hub data set: the one asked for, else the preset's."""
        if self.name == "multi_eurlex":
            if subset not in (None, self.language):
                raise DataError(f"subset {subset!r}: MultiEURLEX has one for each language")
            return self.language
        if self.name == "go_emotions":
            return subset or "simplified"
        return subset

    def layout(self, source: str, have: Sequence[str] | None, *, own_labels: bool = True) -> Layout:
        """What the columns of a source mean.

        Args:
            source: For messages.
            have: Its columns, fields of structs as `text.en`, those of a file of labels included;
                None where they are not known yet.
            own_labels: Whether the labels are the preset's, and not other columns.

        Raises:
            DataError: If this form of the data set lacks the labels.
        """
        if self.name == "jigsaw":
            unlabelled = have is not None and not set(TOXICITY) & set(have)
            if own_labels and unlabelled and "comment_text" in (have or ()):
                raise DataError(
                    f"{source}: there are no labels: name test_labels.csv beside test.csv, or pass "
                    "the folder or archive that has both"
                )
            return Layout("comment_text", TOXICITY)
        if self.name == "go_emotions":
            if have is None or "labels" in have or EMOTIONS[0] not in have:
                return Layout(names=EMOTIONS)
            # such rows have zeros for all emotions: the rater chose none
            unclear = "example_very_unclear" if "example_very_unclear" in have else None
            return Layout(labels=EMOTIONS, unclear=unclear)
        return self._eurlex(source, have, own_labels=own_labels)

    def _eurlex(self, source: str, have: Sequence[str] | None, *, own_labels: bool) -> Layout:
        names: dict[str, str] | None = {1: DOMAINS, 2: MICROTHESAURI}.get(self.level)
        is_struct = have is None or any(name.startswith("text.") for name in have)
        text = f"text.{self.language}" if is_struct else "text"
        labels = f"eurovoc_concepts.level_{self.level}"
        if have is not None and "labels" in have and labels not in have:
            if self.level != 1 and own_labels:
                raise DataError(
                    f"{source}: the hub's Parquet has level 1 only: pass the published archive, "
                    f"{EURLEX_ARCHIVE} or a copy of it"
                )
            labels = "labels"
            # integers that the file itself does not name
            names = {**DOMAINS, **{str(i): name for i, name in enumerate(DOMAINS.values())}}
        return Layout(text, labels, "celex_id", names, skip_null_text=True)

    def choose(
        self, source: str, files: Sequence[SourceFile], *, split: str | None, subset: str | None
    ) -> tuple[list[SourceFile], list[SourceFile]]:
        """The files of a split, and those that have its labels, if these are apart.

        Args:
            source: For messages.
            files: All files of the data set, or one that is taken as it is.
            split: Which split; None: the only one.
            subset: Folder of the files, where they are in several.

        Raises:
            DataError: If the split is not there, or there are several and none is asked for.
        """
        wanted = None if split is None else _SPLITS.get(split, split)
        if self.name == "jigsaw":
            return _jigsaw_files(source, files, wanted)
        if self.name == "multi_eurlex" and any(file.format == TAR for file in files):
            return [_of_tar(file, wanted) for file in files], []
        folder = self.subset(subset)
        within = [file for file in files if folder in _elements(source, file)]
        if subset is not None and not within:
            raise DataError(f"{source}: there is no folder {subset!r} in it, the subset asked for")
        return _of_split(source, within or list(files), wanted), []


def _jigsaw_files(
    source: str, files: Sequence[SourceFile], split: str | None
) -> tuple[list[SourceFile], list[SourceFile]]:
    labels = [file for file in files if _stem(file) == "test_labels"]
    texts = [file for file in files if _stem(file) in ("train", "test")]
    if not texts:
        return list(files), []  # by other names, and complete in themselves
    if len(files) > 1 or split is not None:
        texts = _of_split(source, texts, split)
    for found in (texts, labels):
        if len(found) > 1:
            raise DataError(f"{found[0].name}: and {found[1].name}: one is enough, name it")
    return texts, [] if _stem(texts[0]) == "train" else labels


def _of_split(source: str, files: Sequence[SourceFile], split: str | None) -> list[SourceFile]:
    by_split: dict[str, list[SourceFile]] = {}
    for file in files:
        by_split.setdefault(_split_of(source, file), []).append(file)
    if split is None:
        if len(by_split) > 1:
            names = ", ".join(_in_order(by_split))
            raise DataError(f"{source}: name a split: it has {names}")
        return list(files)
    if split not in by_split:
        if list(by_split) == [""] and len(files) == 1:
            return list(files)  # a single file by another name
        near = _near(split, _in_order(by_split))
        raise DataError(f"{source}: there is no split {split!r}: {near}")
    return by_split[split]


def _in_order(splits: Collection[str]) -> list[str]:
    return [split for split in dict.fromkeys(_SPLITS.values()) if split in splits]


def _of_tar(file: SourceFile, split: str | None) -> SourceFile:
    """The archive of MultiEURLEX, with the file of a split asked for."""
    if file.members:
        return file
    if split is None:
        raise DataError(f"{file.name}: name a split: it has {', '.join(_EURLEX_FILES)}")
    if split not in _EURLEX_FILES:
        raise DataError(
            f"{file.name}: there is no split {split!r}: {_near(split, list(_EURLEX_FILES))}"
        )
    return replace(file, members=(_EURLEX_FILES[split],))


def _elements(source: str, file: SourceFile) -> list[str]:
    """Folders and name of a file below the source."""
    shown = file.name.removeprefix(source.rstrip("/") + "/") if file.name != source else file.name
    return shown.split("/")


def _split_of(source: str, file: SourceFile) -> str:
    """The split that a file's path names, its own name first; empty if none."""
    for element in reversed(_elements(source, file)):
        for word in re.split(r"[-_. 0-9]+", element.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _stem(file: SourceFile) -> str:
    return posixpath.basename(file.inner_name).split(".")[0].lower()


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}expected {', '.join(known)}" if known else "no file is named after a split"
