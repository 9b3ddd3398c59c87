"""From Python on a Ray that is the caller's own: the page's examples, and nothing left changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.documents import blocks, lay_out, run
from support.models import LIGHT_ENGINE

from ray_mlc import Classifier, ScoreActor, score, synthetic, verify

pytestmark = pytest.mark.ray
PAGE = Path(__file__).parents[2] / "docs/python.md"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_blocks_of_the_page_that_need_ray_run(
    ray_local: Any,
    tiny_model: Path,
    tiny_tfidf: Path,
    tiny_corpus: Path,
    tiny_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lay_out(tmp_path, model=tiny_model, words=tiny_tfidf, corpus=tiny_corpus, encoder=tiny_encoder)
    monkeypatch.chdir(tmp_path)
    # actors start in the folder in which Ray was started
    absolute = [
        (line, code.replace('"models/topics"', repr(str(tmp_path / "models/topics"))))
        for line, code in blocks(PAGE, ray=True)
    ]
    assert len(absolute) == 2
    run(PAGE, [*blocks(PAGE, ray=False)[:1], *absolute])
    assert Classifier.from_pretrained("models/new").predict([None]) == [[]]


def test_a_run_joins_the_ray_that_is_there_and_leaves_its_settings_alone(
    ray_local: Any, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from ray.data import DataContext

    before = str(vars(DataContext.get_current()))
    score(
        model=tiny_model,
        input=tiny_corpus,
        output=tmp_path / "out",
        quiet=True,
        units={"rows": 100},
        engine={"name": LIGHT_ENGINE, "dtype": "float32"},
        batching={"max_batch_tokens": 4096},
        actors={"count": 1},
    )
    assert ray_local.is_initialized()
    assert str(vars(DataContext.get_current())) == before
    assert verify(tmp_path / "out").holds


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pandas", "numpy"])  # the page has pyarrow
def test_blocks_without_a_label_and_with_one_are_one_table(
    form: str, ray_local: Any, tiny_model: Path
) -> None:
    import ray
    from ray.data import ActorPoolStrategy

    texts = synthetic.documents(2, seed=9)["text"].to_pylist()
    rows = [[texts[0], None], [None, None], [" ", texts[1]]]
    tables = [pa.table({"text": pa.array(some, pa.string())}) for some in rows]
    tagged = ray.data.from_arrow(tables).map_batches(
        ScoreActor,
        fn_constructor_kwargs={"model": os.fspath(tiny_model), "threads": 1},
        batch_format=form,
        batch_size=2,
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    found = {row["text"]: row for row in tagged.take_all()}
    expected = Classifier.from_pretrained(tiny_model).predict(texts)
    assert [list(found[text]["labels"]) for text in texts] == expected
    assert found[" "]["status"] == "empty"
