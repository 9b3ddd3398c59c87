"""Progress that tests can look at."""

from __future__ import annotations

from ray_mlc.runtime.progress import Display


class Spoken(Display):
    """Keeps what is said, and shows nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
