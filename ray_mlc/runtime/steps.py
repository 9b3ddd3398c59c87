"""What a process of a pass does: read whole units, tokenize, score, write parts.

A pass takes units through the models of one run or of several: each unit is read once, tokenized
once for each way to tokenize, scored by each model, and written to the output of each run. How the
steps lie in processes is for the runtimes to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from ray_mlc.corpus.columns import ReadSpec
from ray_mlc.corpus.rows import BLOCK_FAULT, BLOCK_UNIT_FIRST, BLOCK_UNIT_ROWS, read_block
from ray_mlc.corpus.units import Unit
from ray_mlc.errors import RayMlcError
from ray_mlc.model.classifier import Classifier, ForwardStats
from ray_mlc.model.decisions import Rules
from ray_mlc.model.engines.choose import (
    ResolvedEngine,
    digest_of_ids,
    load_classifier,
    load_tokenizer,
)
from ray_mlc.model.folder import ModelFolder, open_model
from ray_mlc.runtime import heap
from ray_mlc.scoring.bundle import bundle, unbundle
from ray_mlc.scoring.ledger import Run
from ray_mlc.scoring.parts import CommitSpec, OutputSpec, Receipt, commit_parts
from ray_mlc.scoring.score import (
    TOKEN_COLUMNS,
    score_block,
    stamp,
    stamped_schema,
    tokenize_block,
)

Progress = Callable[[int, int], None]
"""Told which model, and how many rows have been through it."""


@dataclass(frozen=True)
class ReadStep:
    """Units to one block; small, because every read of a run carries it."""

    spec: ReadSpec
    """Columns to read."""
    max_text_bytes: int
    """Longest text."""

    def __call__(self, units: Sequence[Unit]) -> pa.Table:
        """Read."""
        return read_block(units, self.spec, max_text_bytes=self.max_text_bytes)


@dataclass(frozen=True)
class Work:
    """What a process needs to do its step for one run; small, and the same for all of them."""

    model: str
    """Model folder, URI or hub id, as every node sees it."""
    digest: str
    """Digest of the model that the run is recorded for."""
    resolved: ResolvedEngine
    """The engine that the run is recorded for."""
    spec: ReadSpec
    """Columns to read."""
    max_text_bytes: int
    """Longest text."""
    policy: str
    """Long-document policy."""
    rules: Rules
    """The decision."""
    output: OutputSpec
    """What parts look like."""
    commit: CommitSpec | None
    """Where parts go; None: nowhere, because speed alone is looked at."""
    tokens: str = ""
    """Of one work of several: digest of all that its token ids depend on. Those with the same one
    share them."""

    @classmethod
    def of(cls, run: Run, folder: ModelFolder, *, holder: str | None = None) -> Work:
        """The work of a run, with the model where this command has it.

        Args:
            run: The run.
            folder: The model.
            holder: Token of the lease under which parts are committed; None: without one.
        """
        return cls(
            model=folder.location,
            digest=run.identity["model"],
            resolved=run.resolved,
            spec=run.plan.spec,
            max_text_bytes=run.identity["input.max_text_bytes"],
            policy=run.identity["long.policy"],
            rules=run.decision.rules(run.label_set),
            output=run.output,
            commit=run.commit_spec(holder=holder),
        )

    @property
    def reading(self) -> ReadStep:
        """The step that reads."""
        return ReadStep(self.spec, self.max_text_bytes)


def sharing_tokens(works: Sequence[tuple[Work, ModelFolder]]) -> list[Work]:
    """Works, told which of them share their token ids."""
    if len(works) == 1:
        return [works[0][0]]
    return [replace(work, tokens=_tokens_digest(work, folder)) for work, folder in works]


def _tokens_digest(work: Work, folder: ModelFolder) -> str:
    windows = work.resolved.windows
    # how windows are put together again concerns the scores alone
    cut = None if windows is None else (windows.overlap, windows.max_windows)
    named = [digest_of_ids(folder), work.resolved.max_tokens, cut, work.policy]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def write(scored: pa.Table, works: Sequence[Work]) -> list[list[Receipt]]:
    """A scored block to parts, for each of the works."""
    receipts = []
    for table, work in zip(unbundle(scored, len(works)), works, strict=True):
        assert work.commit is not None
        receipts.append(commit_parts(table, work.commit))
    return receipts


def _ways_to_tokenize(works: Sequence[Work]) -> list[str]:
    """`Work.tokens` without repetitions."""
    return list(dict.fromkeys(work.tokens for work in works))


class TokenizeStep:
    """Holds a tokenizer, or as many as the works need; a block's text becomes token ids."""

    def __init__(self, works: Sequence[Work]) -> None:
        """Load the tokenizers."""
        first = {work.tokens: work for work in reversed(works)}
        self._ways = [
            (
                load_tokenizer(
                    open_model(work.model),
                    max_tokens=work.resolved.max_tokens,
                    windows=work.resolved.windows,
                ),
                work.policy,
            )
            for work in (first[way] for way in _ways_to_tokenize(works))
        ]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Tokenize a block."""
        tables = [
            tokenize_block(block, tokenizer, policy=policy) for tokenizer, policy in self._ways
        ]
        shared = set(tables[0].column_names) - TOKEN_COLUMNS
        return bundle(tables, shared)


class ScoreStep:
    """Holds classifiers that have passed their canaries; token ids become labels and scores."""

    def __init__(self, works: Sequence[Work], *, threads: int | None = None) -> None:
        """Load the recorded engines and check them.

        Raises:
            RayMlcError: If a model is not the recorded one, or does not hold here.
        """
        self._works = works
        self._name = f"{socket.gethostname()} {os.getpid()}"
        self._classifiers = [classifier_of(work, threads) for work in works]
        self._ways = _ways_to_tokenize(works)
        # made of the same columns of a block, whatever the model
        self._shared = {
            *("source", "row", BLOCK_UNIT_FIRST, BLOCK_UNIT_ROWS, BLOCK_FAULT),
            *works[0].output.kept.names,
        }

    @property
    def stats(self) -> list[ForwardStats]:
        """What the forward passes of each model have cost."""
        return [classifier.stats for classifier in self._classifiers]

    @property
    def nothing(self) -> pa.Table:
        """What an empty block comes to."""
        tables = [stamped_schema(work.output).empty_table() for work in self._works]
        return bundle(tables, self._shared)

    def __call__(self, block: pa.Table, progress: Progress | None = None) -> pa.Table:
        """Score a tokenized block; `progress` is told about each forward pass."""
        return self._score(block, progress, 0.0)

    @cached_property
    def tokenize(self) -> TokenizeStep:
        """The step before, for actors that do both."""
        return TokenizeStep(self._works)

    def both(self, block: pa.Table, progress: Progress | None = None) -> pa.Table:
        """Tokenize and score a block."""
        started = time.perf_counter()
        tokenized = self.tokenize(block)
        return self._score(tokenized, progress, time.perf_counter() - started)

    def _score(self, block: pa.Table, progress: Progress | None, before_s: float) -> pa.Table:
        """Score; each model answers for its share of the seconds that came before."""
        tokenized = dict(zip(self._ways, unbundle(block, len(self._ways)), strict=True))
        tables = []
        for place, work in enumerate(self._works):
            started = time.perf_counter()
            scored = score_block(
                tokenized[work.tokens],
                self._classifiers[place],
                work.rules,
                work.output,
                progress=None if progress is None else _telling(progress, place),
            )
            seconds = time.perf_counter() - started + before_s / len(self._works)
            tables.append(stamp(scored, seconds=seconds, actor=self._name))
        heap.trim()
        return bundle(tables, self._shared)


def _telling(progress: Progress, place: int) -> Callable[[int], None]:
    return lambda rows: progress(place, rows)


def classifier_of(work: Work, threads: int | None) -> Classifier:
    """The recorded engine of a work, proven on the canaries.

    Raises:
        RayMlcError: If the model is not the recorded one, or does not hold here.
    """
    folder = open_model(work.model)
    if folder.digest != work.digest:
        raise RayMlcError(
            f"{work.model}: the files on this node differ from those that the run was started "
            f"with ({folder.digest[:12]}, recorded {work.digest[:12]})"
        )
    return load_classifier(folder, work.resolved, rules=work.rules, threads=threads)
