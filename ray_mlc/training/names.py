"""Names that stand for label ids: a list by position, or a mapping by id.

A list says all names there are, so an id beyond it is an error. A mapping may leave ids out: they
stay what they are, and are counted.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_mlc.errors import DataError

Names = Sequence[str] | Mapping[str, str]
"""Names by position, or by id."""
_FILES = (".json", ".txt")


class Naming:
    """Gives ids their names, and keeps two ids from becoming one label."""

    def __init__(self, names: Names) -> None:
        """Check the names.

        Raises:
            DataError: If there is none, one is blank, or a list names one twice.
        """
        self.is_list = not isinstance(names, Mapping)
        pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
        self._name_of = {str(id): name for id, name in pairs}
        if not self._name_of:
            raise DataError("names is empty: expected a name for each label")
        self._names: set[str] = set()
        for id, name in self._name_of.items():
            if not name.strip():
                raise DataError(f"names: the name of {id} is blank")
            if self.is_list and name in self._names:
                raise DataError(f"names has {name!r} twice: two ids would become one label")
            self._names.add(name)
        self._id_of: dict[str, str] = {}
        self.unnamed: set[str] = set()
        """Ids met that the mapping does not name."""

    def check_any_named(self) -> None:
        """Refuse names of something else: a mapping that has none of the ids met.

        Raises:
            DataError: If there were ids, and each stayed what it was.
        """
        if self.unnamed and len(self.unnamed) == len(self._id_of):
            first = min(self.unnamed)
            raise DataError(
                f"names has none of the {len(self.unnamed)} ids of the labels, such as {first!r}: "
                f"it has {next(iter(self._name_of))!r}"
            )

    def __len__(self) -> int:
        return len(self._name_of)

    def __contains__(self, id: str) -> bool:
        return id in self._name_of

    def __call__(self, id: str) -> str | None:
        """The name of an id; the id where a mapping has none, None where a list has none.

        What is one of a list's names already stays as it is.

        Raises:
            DataError: If the name is that of another id.
        """
        name = self._name_of.get(id)
        if name is None and self.is_list:
            if id not in self._names:
                return None
            name = id  # a name already
        elif name is None:
            self.unnamed.add(id)
            name = id
        other = self._id_of.setdefault(name, id)
        if other != id:
            raise DataError(
                f"names has {name!r} for both {other!r} and {id!r}: two ids would become one label"
            )
        return name


def parse_names(option: str, *, language: str = "en") -> Names:
    """Names as the command line takes them: a file of them, or names separated by commas.

    Args:
        option: What was given. Ends in `.json` or `.txt`, or is the path of an existing file: a
            JSON list, a JSON mapping of id to name (or to names by language, as EuroVoc's
            descriptors are published), or one name a line.
        language: Which name to take where there are several.

    Raises:
        DataError: If the file cannot be read or holds something else.
    """
    path = Path(option).expanduser()
    if not option.lower().endswith(_FILES) and not path.is_file():
        names = [name.strip() for name in option.split(",")]
        if not all(names):
            raise DataError(f"names {option!r}: a name between two commas is blank")
        return names
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{option}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{option}: not valid UTF-8: save the file as UTF-8") from None
    if text.lstrip()[:1] not in ("[", "{"):
        lines = text.rstrip().splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise DataError(f"{option}: line {number} is blank: expected one name a line")
        return [line.strip() for line in lines]
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{option}: line {error.lineno} is not JSON ({error.msg})") from None
    if isinstance(value, list):
        return [_name(option, f"item {index}", item) for index, item in enumerate(value)]
    return {
        id: _name(option, repr(id), _of_language(option, id, item, language))
        for id, item in value.items()
    }


def _of_language(option: str, id: str, item: Any, language: str) -> Any:
    if not isinstance(item, Mapping):
        return item
    if language not in item:
        near = difflib.get_close_matches(language, item, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"{option}: {id!r} has no name in language {language!r}: {hint}it has "
            f"{', '.join(map(str, list(item)[:30]))}"
        )
    return item[language]


def _name(option: str, where: str, item: Any) -> str:
    if not isinstance(item, str):
        raise DataError(f"{option}: {where} is {item!r}, expected a name")
    return item
