"""Label hierarchies: giving a label gives all that lie above it.

`labels.yaml` names parents, child by child; a label may have several:

    spaniel: dog
    dog: [pet, mammal]

Labels that have none need no line. Names are read as they are written, so that 0042 is no number
and `no` is a label, not a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from ray_mlc.errors import ConfigError, first_line
from ray_mlc.labels import LabelSet, unknown_label

_SHOWN = 6
"""Labels of a cycle that an error names."""


@dataclass(frozen=True)
class Hierarchy:
    """Parents by column: E edges, those of each label together."""

    offsets: NDArray[np.int64]
    """Where each label's parents begin, shape [L + 1]."""
    parents_E: NDArray[np.int64]
    """Columns of parents."""

    @classmethod
    def of(cls, parents: Mapping[str, Sequence[str]], label_set: LabelSet) -> Hierarchy:
        """Lay out a hierarchy whose labels are all known."""
        columns = [
            [label_set.index[parent] for parent in parents.get(name, ())]
            for name in label_set.names
        ]
        offsets = np.zeros(len(label_set) + 1, np.int64)
        np.cumsum([len(found) for found in columns], out=offsets[1:])
        return cls(offsets, np.array([column for found in columns for column in found], np.int64))

    def close(self, given_NL: NDArray[np.bool_]) -> None:
        """Give the ancestors of all labels given, in place.

        One step up for all documents at a time; but for one look for them, its cost is that of the
        labels given, not of N × L.
        """
        fan_L, width = np.diff(self.offsets), given_NL.shape[1]
        rows, columns = np.nonzero(given_NL)
        below = fan_L[columns] > 0
        rows, columns = rows[below], columns[below]
        while len(columns):
            fan = fan_L[columns]
            ends = np.cumsum(fan)
            within = np.arange(ends[-1]) - np.repeat(ends - fan, fan)
            parents = self.parents_E[np.repeat(self.offsets[columns], fan) + within]
            # a parent of several labels once: diamonds would double it at every step
            cells = np.unique(np.repeat(rows, fan) * width + parents)
            rows, columns = np.divmod(cells, width)
            new = ~given_NL[rows, columns]
            given_NL[rows, columns] = True
            new &= fan_L[columns] > 0
            rows, columns = rows[new], columns[new]

    def close_cells(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `close`, where the labels given are few of very many.

        Returns:
            Row and column of each label given and of its ancestors, in their order, each once.
        """
        fan_L = np.diff(self.offsets)
        width = len(fan_L)
        every = new = np.unique(rows * width + columns)
        while len(new):
            rows, columns = np.divmod(new, width)
            fan = fan_L[columns]
            ends = np.cumsum(fan)
            within = np.arange(ends[-1]) - np.repeat(ends - fan, fan)
            parents = self.parents_E[np.repeat(self.offsets[columns], fan) + within]
            new = np.setdiff1d(np.repeat(rows, fan) * width + parents, every)
            every = np.union1d(every, new)
        rows, columns = np.divmod(every, width)
        return rows, columns


def find_cycle(parents: Mapping[str, Sequence[str]]) -> str | None:
    """A cycle of a hierarchy as `a → b → a`; None if there is none."""
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        # each of the nodes named is a parent of the next
        cycle = [str(name) for name in error.args[1]][::-1]
        shown = cycle if len(cycle) <= _SHOWN else [*cycle[: _SHOWN - 2], "…", cycle[-1]]
        return " → ".join(shown)
    return None


def read_hierarchy(path: Path, label_set: LabelSet) -> dict[str, list[str]]:
    """Parents of each label that has any, in the order of the file.

    Raises:
        ConfigError: As `read_parents`, or if the file has a label that the model does not know.
    """
    parents = read_parents(path)
    names = dict.fromkeys(name for child, above in parents.items() for name in (child, *above))
    for name in names:
        if name not in label_set.index:
            raise ConfigError(f"{path}: {unknown_label(name, label_set)}")
    return {child: above for child, above in parents.items() if above}


def read_parents(path: Path) -> dict[str, list[str]]:
    """Parents of each label that the file names, whatever labels there are.

    Raises:
        ConfigError: If the file cannot be read, is of another form, or has a label that lies above
            itself.
    """
    parents: dict[str, list[str]] = {}
    for key, value in _pairs(path):
        child = _name(key, path)
        if child in parents:
            raise ConfigError(f"{_place(path, key)}: label {child!r} has a line already")
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        parents[child] = list(
            dict.fromkeys(_name(item, path) for item in items if not _is_null(item))
        )
    if (cycle := find_cycle(parents)) is not None:
        raise ConfigError(f"{path}: a label lies above itself: {cycle}: remove one of these lines")
    return parents


def _pairs(path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of the file's mapping, as they are written."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file of label parents") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({first_line(error)})") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deep") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise ConfigError(f"{path}: not valid YAML{place}: {problem}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected lines such as `child: parent` or `child: [one, two]`")
    return list(root.value)


def _name(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise ConfigError(
            f"{_place(path, node)}: expected `child: parent` or `child: [one, two]`, where each is "
            "the name of a label"
        )
    return str(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}: line {node.start_mark.line + 1}"
