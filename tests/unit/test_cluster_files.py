"""`ray-mlc cluster render`: the files in `cluster/` are its output, and nobody's work is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from support.cli import run
from support.manifests import KINDS, ROOT, VARIANTS, cluster, documents, rendered

from ray_mlc.cluster.config import ClusterConfig
from ray_mlc.cluster.jobs import score_job
from ray_mlc.config import ScoreJob, TrainJob
from ray_mlc.job_files import load_job


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_in_the_repository_are_what_the_defaults_give(kind: str) -> None:
    folder = ROOT / "cluster" / kind
    found = {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }
    texts = rendered(kind)
    assert set(found) == set(texts)
    for name, text in texts.items():
        # `ray-mlc cluster render KIND --overwrite` brings them up to date
        assert found[name] == text, f"cluster/{kind}/{name} is not what is rendered"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_what_is_rendered_reads_back_as_it_was_meant(kind: str, variant: tuple[str, ...]) -> None:
    texts = rendered(kind, *variant)
    assert texts
    for name, text in texts.items():
        assert text.endswith("\n")
        assert not re.search(r"[ \t]\n", text), f"{name}: white space at the end of a line"
        assert "&id0" not in text
    for found in documents(kind, *variant).values():
        for document in found:
            assert isinstance(document, dict)
            assert "None" not in str(document)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_the_rendered_jobs_are_jobs(variant: tuple[str, ...], tmp_path: Path) -> None:
    for kind in KINDS:
        found = [one for some in documents(kind, *variant).values() for one in some]
        texts = [yaml.safe_dump(one) for one in found if one.get("kind") in JOBS]
        for one in found:
            texts += one["data"].values() if one.get("kind") == "ConfigMap" else ()
        assert texts
        for text in texts:
            (tmp_path / "job.yaml").write_text(text)
            load_job(JOBS[yaml.safe_load(text)["kind"]], tmp_path / "job.yaml")


JOBS = {"score": ScoreJob, "train": TrainJob}


@pytest.mark.parametrize("text", ["1e3", "1.5E-7", "0o17", "y", "N", "yes", "0x1f"])
def test_a_text_that_other_parsers_take_for_a_number_is_quoted(text: str) -> None:
    # go-yaml reads `1e3` as a number where PyYAML sees a text, and Kubernetes refuses the label
    base = rendered("kuberay", f"labels={{team: '{text}'}}")["base.yaml"]
    assert f"team: '{text}'" in base


def test_files_are_written_once_and_replaced_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "cluster", "render", "kuberay") == 0
    first = capsys.readouterr()
    assert "written cluster/kuberay/raycluster.yaml" in first.out
    assert first.err.count("kubectl apply") == 2
    assert "placeholders, to be set: images.cpu, images.cuda, storage.root" in first.err

    assert run(monkeypatch, "cluster", "render", "kuberay") == 0
    assert "written" not in capsys.readouterr().out

    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    assert run(monkeypatch, "cluster", "render", "kuberay", "--set", "cpu.max=3") == 2
    said = capsys.readouterr()
    assert "is there and differs" in said.err
    assert said.out == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before

    replace = ("--set", "cpu.max=3", "--overwrite")
    assert run(monkeypatch, "cluster", "render", "kuberay", *replace) == 0
    out = capsys.readouterr().out
    assert "written cluster/kuberay/raycluster.yaml" in out
    assert "unchanged cluster/kuberay/jobs/train.yaml" in out


def test_a_config_file_and_settings_make_one_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("kind: cluster\nname: tags\ngpu: {max: 2}\n")
    options = ("--config", str(tmp_path / "c.yaml"), "--set", "gpu.type=T4", "--output", "-")
    assert run(monkeypatch, "cluster", "render", "kuberay", *options) == 0
    streams = capsys.readouterr()
    found = {one["metadata"]["name"]: one for one in yaml.safe_load_all(streams.out)}
    groups = {one["groupName"]: one for one in found["tags"]["spec"]["workerGroupSpecs"]}
    assert groups["gpu"]["maxReplicas"] == 2
    assert "Tesla-T4" in str(groups["gpu"])
    assert "kubectl" not in streams.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "kuberray"], "kind is 'kuberray', expected kuberay, ray-up, slurm"),
        (["render", "kuberay", "--config", "none.yaml"], "none.yaml: there is no such"),
        (["render", "kuberay", "--config", "score.yaml"], "kind is 'score', expected 'cluster'"),
        (["render", "kuberay", "--set", "jobs.score=none.yaml"], "none.yaml: there is no such"),
        (["render", "kuberay", "--output", "a-file/x"], "cannot be"),
        (["render", "ray-up", "--output", "-"], "add --only, such as aws.yaml"),
        (["render", "ray-up", "--only", "azure.yaml"], "expected one of aws.yaml, gcp.yaml"),
        (
            ["render", "ray-up", "--set", "gpu.type=A10G", "--only", "gcp.yaml"],
            "no machine with 1 A10G is known there",
        ),
        (
            ["render", "ray-up", "--set", "storage.root=/mnt/ray-mlc/x"],
            "volume.nfs is not set",
        ),
        (
            ["render", "kuberay", "--set", "storage.identity=me@x.iam.gserviceaccount.com"],
            "expected an IAM role's ARN with s3://",
        ),
    ],
)
def test_a_wrong_command_says_so_in_one_line_and_writes_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.yaml").write_text("kind: score\n")
    (tmp_path / "a-file").write_text("")
    assert run(monkeypatch, "cluster", *arguments) == 2
    streams = capsys.readouterr()
    lines = [line for line in streams.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert streams.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "score.yaml"]


def test_a_cloud_without_such_gpus_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--set", "gpu.type=A10G", "--output", str(tmp_path))
    assert run(monkeypatch, "cluster", "render", "ray-up", *options) == 0
    assert "left out gcp.yaml: no machine with 1 A10G" in capsys.readouterr().err
    assert (tmp_path / "aws.yaml").is_file()
    assert not (tmp_path / "gcp.yaml").exists()


def test_the_schema_explains_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "config", "schema", "cluster") == 0
    schema = json.loads(capsys.readouterr().out)
    for section in [schema, *schema["$defs"].values()]:
        for name, field in section["properties"].items():
            assert field.get("description"), name
        assert section["additionalProperties"] is False


def test_a_cluster_file_with_every_default_reads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("kind: cluster\ngpu: null\n")
    assert run(monkeypatch, "config", "render", str(tmp_path / "c.yaml")) == 0
    (tmp_path / "d.yaml").write_text(capsys.readouterr().out)
    assert load_job(ClusterConfig, tmp_path / "d.yaml") == cluster("gpu=null")


@pytest.mark.parametrize(
    ("gpu", "pool", "cpus", "most"),
    [
        ("gpu.count=2", "tokenizers", 4, 9),  # one CPU of each node for reading
        ("gpu.count=2", "tokenizers", 1, 3),
        ("gpu=null", "actors", 4, 12),
        ("gpu=null", "actors", 64, 24),  # each actor holds the model
    ],
)
def test_work_on_cpus_grows_with_the_group(gpu: str, pool: str, cpus: int, most: int) -> None:
    config = cluster(gpu, "cpu.max=3", f"cpu.cpus={cpus}")
    found = score_job(config)[pool]
    assert found["count"] == {"min": 1, "max": most}
    assert found["labels"] == {"ray-mlc.io/group": "cpu"}
    assert "count" not in score_job(config, machines=2).get(pool, {})
