from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_mlc import synthetic
from ray_mlc.config import BatchingConfig, EngineConfig, LongConfig
from ray_mlc.errors import ModelError
from ray_mlc.model.canaries import TOLERANCE, record_canaries
from ray_mlc.model.classifier import Classifier
from ray_mlc.model.encoder import load_classifier_model, output_layer
from ray_mlc.model.engines import choose, openvino_engine
from ray_mlc.model.engines.choose import ResolvedEngine, load_classifier, resolve
from ray_mlc.model.engines.protocol import Engine, OutOfMemoryError, pad
from ray_mlc.model.engines.torch_engine import TorchEngine
from ray_mlc.model.folder import CANARIES_FILE, HISTORY_FILE, INFO_FILE, ModelFolder, open_model
from ray_mlc.model.tokenization import Ragged, Tokenizer

TEXTS = synthetic.documents(30, seed=6)["text"].to_pylist()
AUTO = EngineConfig(), BatchingConfig()


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tiny model as another program would have saved it: without our files."""
    path = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("plain") / "model"))
    for file in (INFO_FILE, CANARIES_FILE, HISTORY_FILE):
        (path / file).unlink()
    return open_model(str(path))


@pytest.fixture(scope="module")
def steep(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model whose scores bfloat16 moves: logits of a hundred, rounded to a half."""
    path = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("steep") / "model"))
    scale_head(path, 40)
    canaries = record_canaries(classifier_of(open_model(str(path)), "float32"))
    (path / CANARIES_FILE).write_text(canaries.model_dump_json())
    return open_model(str(path))


def scale_head(path: Path, factor: float) -> None:
    weights = load_file(path / "model.safetensors")
    weights["classifier.weight"] *= factor
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def recorded(dtype: str = "float32", device: str = "cpu", **changes: int) -> ResolvedEngine:
    sizes = {"max_batch_tokens": 1024, "max_tokens": 32, **changes}
    return ResolvedEngine(name="torch", device=device, dtype=dtype, **sizes)


def classifier_of(model: ModelFolder, dtype: str) -> Classifier:
    tokenizer = Tokenizer.load(model.path)
    engine = TorchEngine.load(model.path, pad_id=tokenizer.pad_id, device="cpu", dtype=dtype)
    return Classifier(model.label_set, tokenizer, engine, 1024)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_coarser_precision_is_near_float32_but_not_equal(plain: ModelFolder, dtype: str) -> None:
    exact_NL = classifier_of(plain, "float32").predict_proba(TEXTS)
    scores_NL = classifier_of(plain, dtype).predict_proba(TEXTS)
    assert scores_NL.dtype == np.float32
    difference = np.abs(scores_NL - exact_NL).max()
    assert 0 < difference <= TOLERANCE[dtype]


def test_logits_are_float32_at_every_precision(plain: ModelFolder) -> None:
    for dtype in ("float32", "bfloat16"):
        logits_BL = classifier_of(plain, dtype).engine.logits([np.array([2, 9, 3], np.int32)])
        assert (logits_BL.dtype, logits_BL.shape) == (np.float32, (1, 12))


def test_padding_is_masked() -> None:
    ids = [np.array([2, 3], np.int32), np.array([2, 7, 9, 3], np.int32)]
    input_ids_BT, mask_BT = pad(ids, 5)
    assert input_ids_BT.tolist() == [[2, 3, 5, 5], [2, 7, 9, 3]]
    assert mask_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_auto_takes_bfloat16_where_the_hardware_has_it_and_the_canaries_hold(
    plain: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # word pieces are learned anew in each session, and not quite the same ones: on some models a
    # random head lets bfloat16 flip a label more than the limit allows
    monkeypatch.setattr("ray_mlc.model.canaries.MAX_FLIPS", 0.2)
    monkeypatch.setitem(TOLERANCE, "bfloat16", 0.5)
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            "ray_mlc.model.engines.torch_engine.cpu_has_bfloat16", lambda has=has: has
        )
        resolved = resolve(plain, *AUTO, cuda=False)
        assert (resolved.dtype, resolved.device) == (expected, "cpu")
        assert resolved.max_batch_tokens == choose.CPU_BATCH_TOKENS
        assert "largest score difference" in resolved.canaries


def test_auto_falls_back_to_float32_where_bfloat16_moves_scores(
    steep: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray_mlc.model.engines.torch_engine.cpu_has_bfloat16", lambda: True)
    # where the processor has no bfloat16, OpenVINO takes float32 for it
    monkeypatch.setattr(openvino_engine, "available", lambda: False)
    resolved = resolve(steep, *AUTO, cuda=False)
    assert resolved.dtype == "float32"
    assert "bfloat16 does not hold on the canaries" in caplog.text


@pytest.mark.skipif(not openvino_engine.available(), reason="OpenVINO is not installed")
@pytest.mark.parametrize(
    ("speeds", "winner"), [([100.0, 200.0], "openvino"), ([200.0, 100.0], "torch")]
)
def test_of_the_engines_that_hold_the_fastest_on_the_sample_is_taken_and_recorded(
    plain: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    speeds: list[float],
    winner: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "openvino-cache"))
    monkeypatch.setattr("ray_mlc.model.canaries.MAX_FLIPS", 0.2)
    monkeypatch.setitem(TOLERANCE, "bfloat16", 0.5)
    monkeypatch.setattr("ray_mlc.model.engines.torch_engine.cpu_has_bfloat16", lambda: True)
    raced: list[list[str]] = []

    def race(engines: list[Engine], ids: Ragged, **_: object) -> list[float]:
        raced.append([engine.name for engine in engines])
        assert len(ids) == len(TEXTS)
        return speeds

    monkeypatch.setattr(choose, "race", race)
    named = BatchingConfig(max_batch_tokens=512)
    options = {"cuda": False, "sample": lambda **_: TEXTS}
    resolved = resolve(plain, EngineConfig(), named, **options)
    assert raced == [["torch", "openvino"]]
    assert (resolved.name, resolved.dtype, resolved.max_batch_tokens) == (winner, "bfloat16", 512)
    assert [trial.tokens_per_s for trial in resolved.trials] == speeds
    assert "torch bfloat16 " in (choose.describe_trials(resolved) or "")
    assert ResolvedEngine.model_validate(resolved.model_dump()) == resolved


def test_batch_sizes_are_tried_on_the_sample_unless_one_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(tiny_model))
    exact = EngineConfig(dtype="float32")
    options = {"cuda": False, "sample": lambda **_: TEXTS}
    resolved = resolve(model, exact, BatchingConfig(), **options)
    tried = [trial.max_batch_tokens for trial in resolved.trials]
    assert len(tried) > 1
    assert tried == list(choose.BUDGETS["cpu"][: len(tried)])
    assert resolved.max_batch_tokens in tried
    named = resolve(model, exact, BatchingConfig(max_batch_tokens=99), **options)
    assert (named.max_batch_tokens, len(named.trials)) == (99, 1)  # nothing is left to try


@pytest.mark.parametrize("error", [IndexError("index out of range"), OutOfMemoryError("too much")])
def test_a_sample_over_which_the_engine_fails_is_no_reason_to_stop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> list[float]:
        raise error

    monkeypatch.setattr(choose, "race", fail)
    options = {"cuda": False, "sample": lambda **_: TEXTS}
    exact = EngineConfig(dtype="float32")
    resolved = resolve(open_model(str(tiny_model)), exact, BatchingConfig(), **options)
    assert (resolved.name, resolved.documents_per_s) == ("torch", None)


@pytest.mark.parametrize("error", [ImportError("libtbb.so"), PermissionError("/.cache")])
def test_an_engine_that_cannot_be_loaded_loses_the_race(
    plain: ModelFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("ray_mlc.model.canaries.MAX_FLIPS", 0.2)
    monkeypatch.setitem(TOLERANCE, "bfloat16", 0.5)
    monkeypatch.setattr("ray_mlc.model.engines.torch_engine.cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(openvino_engine, "available", lambda: True)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "load", fail)
    options = {"cuda": False, "sample": lambda **_: TEXTS}
    resolved = resolve(plain, EngineConfig(), BatchingConfig(), **options)
    assert (resolved.name, resolved.dtype) == ("torch", "bfloat16")
    assert str(error) in resolved.trials[1].verdict


def test_a_sample_that_cannot_be_tokenized_is_no_reason_to_stop(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = resolve(
        open_model(str(tiny_model)),
        EngineConfig(dtype="float32"),
        BatchingConfig(),
        cuda=False,
        sample=lambda **_: [7],  # type: ignore[list-item]
    )
    assert resolved.max_batch_tokens == choose.CPU_BATCH_TOKENS
    assert choose.describe_trials(resolved) is None


@pytest.mark.skipif(not openvino_engine.available(), reason="OpenVINO is not installed")
@pytest.mark.parametrize(("asked", "raced"), [("auto", 2), ("float32", 1)])
def test_float32_is_raced_where_it_is_what_the_hardware_has_and_exact_where_it_is_asked_for(
    plain: ModelFolder, monkeypatch: pytest.MonkeyPatch, asked: str, raced: int
) -> None:
    monkeypatch.setattr("ray_mlc.model.engines.torch_engine.cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(choose, "TRIAL_S", 0.02)
    options = {"cuda": False, "sample": lambda **_: TEXTS}
    found = resolve(
        plain, EngineConfig(dtype=asked), BatchingConfig(max_batch_tokens=512), **options
    )
    names = [trial.name for trial in found.trials]
    assert (found.dtype, names) == ("float32", ["torch", "openvino"][:raced])


def test_a_named_precision_that_does_not_hold_is_refused_with_a_remedy(steep: ModelFolder) -> None:
    engine = EngineConfig(name="torch", dtype="bfloat16")
    with pytest.raises(ModelError, match=r"set engine.dtype=float32") as caught:
        resolve(steep, engine, BatchingConfig(), cuda=False)
    assert "\n" not in str(caught.value)


def test_other_weights_are_refused_by_resolve_and_by_every_actor(folder: Path) -> None:
    model = open_model(str(folder))
    chosen = resolve(model, EngineConfig(dtype="float32"), BatchingConfig(), cuda=False)
    assert load_classifier(model, chosen).predict_proba(["a"]).shape == (1, 12)
    scale_head(folder, 1.05)
    with pytest.raises(ModelError, match="does not reproduce the canaries"):
        resolve(model, EngineConfig(dtype="float32"), BatchingConfig(), cuda=False)
    with pytest.raises(ModelError, match="does not reproduce the canaries here"):
        load_classifier(model, chosen)


def test_a_run_with_fewer_tokens_than_the_model_takes_still_proves_itself(
    tiny_model: Path, plain: ModelFolder
) -> None:
    for model in (open_model(str(tiny_model)), plain):
        resolved = resolve(
            model,
            EngineConfig(dtype="float32"),
            BatchingConfig(),
            cuda=False,
            long=LongConfig(max_tokens=8),
        )
        assert resolved.max_tokens == 8
        classifier = load_classifier(model, resolved)
        assert classifier.tokenizer.max_tokens == 8
        assert classifier.stats.padded_tokens == 0  # the canaries are not the corpus's cost


def test_a_plain_folder_without_a_limit_of_its_own_takes_the_jobs(
    plain: ModelFolder, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(plain.path, tmp_path / "model"))
    file = path / "tokenizer_config.json"
    content = json.loads(file.read_text())
    del content["model_max_length"]
    file.write_text(json.dumps(content))
    model = open_model(str(path))
    assert resolve(model, *AUTO, cuda=False, long=LongConfig(max_tokens=16)).max_tokens == 16
    with pytest.raises(ModelError, match=r"set long.max_tokens"):
        resolve(model, *AUTO, cuda=False)


def test_more_tokens_than_the_encoder_has_positions_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"long.max_tokens is 65, but the encoder has 64 posit"):
        resolve(open_model(str(tiny_model)), *AUTO, cuda=False, long=LongConfig(max_tokens=65))


def test_a_budget_below_one_document_is_refused(tiny_model: Path) -> None:
    batching = BatchingConfig(max_batch_tokens=31)
    with pytest.raises(ModelError, match=r"max_batch_tokens is 31, expected at least max_tokens"):
        resolve(open_model(str(tiny_model)), EngineConfig(), batching, cuda=False)


def test_a_named_budget_and_threads_are_taken(tiny_model: Path) -> None:
    resolved = resolve(
        open_model(str(tiny_model)),
        EngineConfig(dtype="float32"),
        BatchingConfig(max_batch_tokens=77),
        cuda=False,
        threads=1,
    )
    assert resolved.max_batch_tokens == 77
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_recorded_for_cuda_is_refused_without_a_gpu(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="recorded for CUDA, but the process sees no GPU"):
        load_classifier(open_model(str(tiny_model)), recorded(device="cuda"))


def test_weights_that_lack_the_head_are_refused_by_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["classifier.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack 'classifier.bias'"):
        load_classifier(open_model(str(folder)), recorded())


def test_a_cut_off_weights_file_is_one_line(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="the model cannot be loaded") as caught:
        load_classifier(open_model(str(folder)), recorded())
    assert "\n" not in str(caught.value)


def test_the_engine_runs_the_weights_of_the_folder(tiny_model: Path) -> None:
    model = load_classifier_model(tiny_model)
    ids = torch.tensor([[2, 30, 31, 3]])
    with torch.no_grad():
        expected_BL = model.eval()(input_ids=ids).logits.numpy()
    engine = TorchEngine.load(tiny_model, pad_id=0, device="cpu", dtype="float32")
    ours_BL = engine.logits([ids[0].numpy().astype(np.int32)])
    np.testing.assert_allclose(ours_BL, expected_BL, rtol=1e-5)
    assert output_layer(model, 12) is model.classifier
