"""What a benchmark tells: a JSON line on the terminal, and in a file if asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def tell(line: Mapping[str, Any], output: Path | None) -> None:
    """Print a line, and append it to `output`."""
    text = json.dumps(line)
    print(text, flush=True)
    if output:
        with output.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
