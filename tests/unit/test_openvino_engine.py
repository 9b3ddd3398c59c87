from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig, ScoreJob
from ray_mlc.errors import ConfigError, ModelError
from ray_mlc.job_files import load_job
from ray_mlc.model.canaries import TOLERANCE
from ray_mlc.model.engines import openvino_convert, openvino_engine
from ray_mlc.model.engines.choose import load_classifier, resolve
from ray_mlc.model.engines.openvino_engine import MODEL_FILE
from ray_mlc.model.folder import ModelFolder, open_model

TEXTS = synthetic.documents(40, seed=6)["text"].to_pylist()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this file's tests: a conversion takes seconds."""
    folder = tmp_path_factory.getbasetemp() / "openvino-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "ray_mlc" / "openvino"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ModelFolder:
    return open_model(str(tiny_model))


needs_openvino = pytest.mark.skipif(
    not openvino_engine.available(), reason="OpenVINO is not installed"
)


@needs_openvino
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_openvino_gives_the_scores_of_float32_within_its_tolerance(
    model: ModelFolder, dtype: str, cache: Path
) -> None:
    options = {"cuda": False}
    exact = resolve(model, EngineConfig(dtype="float32"), BatchingConfig(), **options)
    exact_NL = load_classifier(model, exact).predict_proba(TEXTS)
    named = EngineConfig(name="openvino", dtype=dtype)
    chosen = resolve(model, named, BatchingConfig(max_batch_tokens=128), **options)
    assert (chosen.name, chosen.dtype, chosen.device) == ("openvino", dtype, "cpu")
    classifier = load_classifier(model, chosen)
    scores_NL = classifier.predict_proba(TEXTS)
    assert scores_NL.dtype == np.float32
    np.testing.assert_allclose(scores_NL, exact_NL, rtol=0, atol=TOLERANCE[dtype])
    # alone or in a batch, padded or not
    alone_NL = np.concatenate([classifier.predict_proba([text]) for text in TEXTS[:5]])
    np.testing.assert_allclose(alone_NL, scores_NL[:5], rtol=0, atol=TOLERANCE[dtype])
    assert [path.name for path in cache.glob(f"{model.digest[:32]}-*/*.xml")] == [MODEL_FILE]


@needs_openvino
def test_a_model_is_converted_once_however_many_ask(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[Path] = []

    def convert(folder: Path, path: Path) -> None:
        calls.append(path)
        path.write_text("converted")

    monkeypatch.setattr(openvino_convert, "convert", convert)
    with ThreadPoolExecutor(8) as pool:
        paths = list(
            pool.map(lambda _: openvino_engine.converted(model.path, model.digest), range(8))
        )
    assert len(calls) == 1
    assert len(set(paths)) == 1
    assert paths[0].read_text() == "converted"


@needs_openvino
def test_a_conversion_that_fails_leaves_nothing_and_says_what_to_do(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("No conversion rule for aten::something\nmany lines more")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino, "convert_model", fail)
    named = EngineConfig(name="openvino", dtype="float32")
    with pytest.raises(ModelError, match=r"No conversion rule .*engine.name=torch") as caught:
        resolve(model, named, BatchingConfig(), cuda=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.xml"))
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and "-2" in path.name]


@needs_openvino
def test_a_cache_that_cannot_be_written_is_named_with_a_remedy(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray_mlc").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    named = EngineConfig(name="openvino", dtype="float32")
    with pytest.raises(ModelError, match=r"set XDG_CACHE_HOME, or engine.name=torch$") as caught:
        resolve(model, named, BatchingConfig(), cuda=False)
    assert "\n" not in str(caught.value)


@needs_openvino
def test_openvino_does_not_report_its_use_to_its_makers() -> None:
    code = (
        "import sys; from ray_mlc.model.engines.openvino_engine import import_openvino; "
        "import_openvino(); from openvino.tools.ovc import telemetry_utils; "
        "print(sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


@needs_openvino
def test_an_actor_of_openvino_starts_without_pytorch_and_transformers(model: ModelFolder) -> None:
    named = EngineConfig(name="openvino", dtype="float32")
    chosen = resolve(model, named, BatchingConfig(), cuda=False)
    code = (
        "import sys; from ray_mlc.model.engines.choose import ResolvedEngine, load_classifier; "
        "from ray_mlc.model.folder import open_model; import ray_mlc.runtime.ray_data; "
        "classifier = load_classifier(open_model(sys.argv[1]), "
        "ResolvedEngine.model_validate_json(sys.argv[2]), threads=1); "
        "print(classifier.predict_proba(['a document']).shape); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(model.path), chosen.model_dump_json()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"(1, {len(model.label_set)})", "[]"]


def test_without_the_extra_a_named_openvino_is_refused_with_the_command_that_installs_it(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "available", lambda: False)
    named = EngineConfig(name="openvino", dtype="float32")
    with pytest.raises(ModelError, match=r"pip install 'ray-mlc\[openvino\]'"):
        resolve(model, named, BatchingConfig(), cuda=False)


def test_openvino_is_refused_where_actors_have_gpus_and_in_float16(model: ModelFolder) -> None:
    named = EngineConfig(name="openvino")
    with pytest.raises(ModelError, match=r"set actors.gpus=0"):
        resolve(model, named, BatchingConfig(), cuda=True)
    options = {"model": "m", "input": "i", "output": "o"}
    with pytest.raises(ConfigError, match=r"expected float32 or bfloat16 with name: openvino"):
        load_job(
            ScoreJob, options=options, overrides=["engine.name=openvino", "engine.dtype=float16"]
        )
