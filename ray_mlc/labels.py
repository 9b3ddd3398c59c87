"""The label set: names in column order, and the two forms in which labels travel.

Labels travel as names (`list<string>` columns, what users see) or as ragged column indices (what
training and metrics compute on). Dense multi-hot rows `targets_NL` are made per batch only:
57,000 documents × 4,271 labels would be a gigabyte.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ray_mlc.errors import DataError


@dataclass(frozen=True)
class LabelSet:
    """Label names in column order.

    Raises:
        DataError: If there is no label, a name is empty or not a string, or a name is there twice.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("the label set is empty: at least one label is needed")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"label {name!r} is not a name: expected a non-empty string")
        twice = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if twice:
            raise DataError(f"label {twice[0]!r} is named {self.names.count(twice[0])} times")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """Column of each name."""
        return {name: column for column, name in enumerate(self.names)}

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """One name per label that stays unique after case folding, for `score_<label>` columns.

        SQL engines such as DuckDB fold the case of column names, so `Spam` and `spam` would clash:
        the second becomes `spam_2`.
        """
        return tuple(unique_when_folded(self.names))


def unique_when_folded(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """`names` with `_2`, `_3`, … added where one equals an earlier (or `taken`) one after folding.

    Names that are unique as they stand keep themselves, whatever the order.
    """
    names = list(names)
    used = {name.casefold() for name in taken}
    own = Counter(name.casefold() for name in names)
    reserved = used | set(own)
    result: list[str] = []
    for name in names:
        candidate = name
        if name.casefold() in used:
            number = 2
            while (candidate := f"{name}_{number}").casefold() in reserved | used:
                number += 1
        used.add(candidate.casefold())
        result.append(candidate)
    return result


def listed(names: Sequence[str], *, most: int | None = None) -> str:
    """Labels in one line, with commas between; those are quoted that would not be told apart.

    Args:
        names: In this order.
        most: How many are named; the others are counted. None: all are.
    """
    shown = names if most is None else names[:most]
    more = f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else ""
    return ", ".join(quoted(name) for name in shown) + more


def quoted(name: str) -> str:
    """A label as a list shows it: as it is, or in quotes where a list would garble it."""
    plain = name.isprintable() and name == name.strip() and not any(mark in name for mark in ',"')
    return name if plain else json.dumps(name, ensure_ascii=False)


def unknown_label(name: str, label_set: LabelSet) -> str:
    """What to say of a label that `label_set` lacks, with the nearest that it has."""
    # most near misses are of case or white space, which difflib does not see as such
    alike = {other.casefold().strip(): other for other in reversed(label_set.names)}
    near = [alike[key]] if (key := name.casefold().strip()) in alike else []
    near = near or difflib.get_close_matches(name, label_set.names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected labels as {label_set.names[0]!r}"
    return f"label {name!r} is not among the {len(label_set)} of the model: {hint}"
