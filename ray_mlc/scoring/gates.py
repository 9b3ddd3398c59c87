"""Limits on a comparison, as `compare --gate` takes them: `agreement>=0.9`, `psi<=0.2`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_mlc.errors import ConfigError

DIRECTIONS = {
    "agreement": ">=",
    "psi": "<=",
    "js": "<=",
    "rate_change": "<=",
    "rate_ratio": "<=",
}
"""What may be limited, and how: the share of rows on both sides that have the same labels; and of
the label that is worst the population stability index, the Jensen-Shannon divergence, and by how
much its rate differs, as a difference of shares of rows or as how many times the smaller."""
_FORM = re.compile(r"\s*([A-Za-z_ -]+?)\s*(<=|>=|==|=|<|>)\s*([-+.\deE]+)\s*(%?)\s*")
_SHARES = ("agreement", "js", "rate_change")


@dataclass(frozen=True)
class Gate:
    """A limit on one figure."""

    name: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read `agreement>=0.9`, `agreement>=90%` or `psi<=0.2`.

        Raises:
            ConfigError: If the figure is unknown, limited from the wrong side, or the number none.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(f"--gate {text}: expected a limit such as agreement>=0.9 or psi<=0.2")
        name, sign, number, percent = match.groups()
        if name not in DIRECTIONS:
            near = difflib.get_close_matches(name.lower(), DIRECTIONS, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"expected one of {', '.join(DIRECTIONS)}"
            )
            raise ConfigError(f"--gate {text}: unknown figure {name}: {hint}")
        if sign != DIRECTIONS[name]:
            raise ConfigError(
                f"--gate {text}: expected {name}{DIRECTIONS[name]}{number}{percent}: it is good "
                f"where it is {'high' if DIRECTIONS[name] == '>=' else 'low'}"
            )
        try:
            limit = float(number) / (100 if percent else 1)
        except ValueError:
            raise ConfigError(f"--gate {text}: {number} is not a number") from None
        if not 0 <= limit <= (1 if name in _SHARES else 1e9):
            raise ConfigError(
                f"--gate {text}: expected a number from 0 {'to 1' if name in _SHARES else 'on'}"
            )
        return cls(name, limit)

    def __str__(self) -> str:
        return f"{self.name}{DIRECTIONS[self.name]}{self.limit:g}"

    def judge(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Whether it holds.

        Args:
            figures: Value of each figure, and `label`, where it is of one; a figure that is None
                could not be had, and no limit on it holds.

        Returns:
            `gate`, `value` (null: there is none), `label`, `holds`, and `why` in a few words.
        """
        found = figures.get(self.name) or {"value": None, "why": "it is not known"}
        value, label = found["value"], found.get("label")
        if value is None:
            holds, why = False, found["why"]
        else:
            high = DIRECTIONS[self.name] == ">="
            holds = bool(value >= self.limit if high else value <= self.limit)
            why = f"{value:.4f}" + (f" of {label}" if label is not None else "")
        return {"gate": str(self), "value": value, "label": label, "holds": holds, "why": why}
