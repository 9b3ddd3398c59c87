"""What rendering makes, before it is written anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rendered:
    """Files by their path in the output folder."""

    files: Mapping[str, Sequence[dict[str, Any]] | str]
    """YAML documents of a file, or its whole text."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Files that this config gives no reason for, and why."""
