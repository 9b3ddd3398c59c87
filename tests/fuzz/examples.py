"""What the long form draws from: corpora and job texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from fuzz.corpora import CorpusRecipe, corpora
from fuzz.jobs import corpus_settings, job_texts
from fuzz.runs import run_corpus, run_job_text


@dataclass(frozen=True)
class CorpusExample:
    """A random corpus, scored with random settings."""

    recipe: CorpusRecipe
    settings: tuple[str, ...]
    rare: int

    def run(self, model: Path) -> str:
        """What came of it."""
        outcome = run_corpus(
            self.recipe,
            self.settings,
            model=model,
            readers=self.rare == 19,
            again=self.rare in (1, 2, 3),
        )
        return f"corpus: {outcome}"


@dataclass(frozen=True)
class JobExample:
    """A random job text, run if it is valid."""

    text: bytes
    overrides: tuple[str, ...]

    def run(self, model: Path) -> str:
        """What came of it."""
        return f"job: {run_job_text(self.text, self.overrides, model=model)}"


Example = CorpusExample | JobExample
CORPUS_EXAMPLES = st.builds(
    CorpusExample, corpora(), corpus_settings().map(tuple), st.integers(0, 19)
)
JOB_EXAMPLES = st.builds(JobExample, *job_texts())
EXAMPLES: st.SearchStrategy[Example] = st.one_of(CORPUS_EXAMPLES, CORPUS_EXAMPLES, JOB_EXAMPLES)
