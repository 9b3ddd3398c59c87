"""The config of a cluster: near misses are named, and nothing harmful gets into a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.manifests import ROOT, cluster, rendered

from ray_mlc.cluster.config import RAY_VERSION, ClusterConfig
from ray_mlc.cluster.gpus import GPUS, GpuType, gcp_cpus
from ray_mlc.errors import ConfigError
from ray_mlc.job_files import load_job

HOSTILE = (
    "$(touch /tmp/x)",
    "`id`",
    "a; rm -rf ~",
    "a b",
    "a\nb",
    "a\n",
    "a'b",
    'a"b',
    "a&b",
    "a|b",
    "{{ x }}",
    "*x",
    "!!python/object:os.system",
    "-rf",
    "--privileged",
    "../..",
    "ä",
    "",
    "x" * 4000,
)
TEXTS = (
    "kind",
    "name",
    "namespace",
    "ray_version",
    "images.cpu",
    "images.cuda",
    "images.pull",
    "images.pull_secret",
    "storage.root",
    "storage.endpoint",
    "storage.region",
    "storage.secret",
    "storage.identity",
    "volume.mount",
    "volume.claim",
    "volume.storage_class",
    "volume.nfs",
    "nightly.schedule",
    "nightly.time_zone",
    "auth.mode",
    "auth.secret",
    "gpu.type",
    "aws.region",
    "aws.image",
    "aws.head",
    "aws.cpu",
    "aws.gpu",
    "aws.instance_profile",
    "gcp.project",
    "gcp.region",
    "gcp.zone",
    "gcp.image",
    "gcp.head",
    "gcp.cpu",
    "gcp.gpu",
    "gcp.service_account",
    "ssh.user",
    "ssh.key",
    "ssh.head",
    "slurm.partition",
    "slurm.account",
    "slurm.activate",
    "slurm.scratch",
)
"""Every key whose value is a text that is rendered; a test holds the list complete."""
READ_HERE = {"jobs.score", "jobs.train"}
"""Files that are read when rendering: their names are in no manifest."""


def refused(*overrides: str) -> str:
    """The message with which settings are refused: always one line."""
    with pytest.raises(ConfigError) as caught:
        cluster(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_value(key: str, value: object) -> None:
    """Set a key to a value past YAML."""
    load_job(ClusterConfig, options={key: value})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gpus.max=4", "unknown key gpus: did you mean gpu?"),
        ("gpu.tpye=L4", "unknown key gpu.tpye: did you mean type?"),
        ("nightly.timezone=UTC", "unknown key nightly.timezone: did you mean time_zone?"),
        ("storage.bucket=s3://b", "unknown key storage.bucket: expected one of root, endpoint"),
        ("gpu.type=L5", "gpu.type is 'L5': expected 'T4', 'L4'"),
        ("gpu.max='4'", "gpu.max is '4': expected a valid integer"),
        ("gpu.min=9", "min is 9, expected at most max (4)"),
        ("cpu.max=-1", "cpu.max is -1: expected greater than or equal to 0"),
        ("cpu={max: 0}", None),
        ("name=9lives", "name is '9lives': expected a DNS-1123 label that begins with a letter"),
        (f"name={'n' * 31}", "at most 30 characters"),
        ("namespace=a.b", "namespace is 'a.b': expected a DNS-1123 label"),
        ("ray_version=2.59.0", "expected a Ray from 2.60 to before 2.64"),
        ("images.cpu=ray-mlc", "expected an image with a tag or a digest"),
        ("images.cpu='r.io/x@sha256:abc'", "expected an image with a tag or a digest"),
        ("nightly.schedule='@daily'", "expected five fields of cron"),
        ("nightly.schedule=0 25 * * *", "expected 0 to 23, a range, a list or * as hour"),
        ("nightly.schedule=0 5-1 * * *", "as hour"),
        ("nightly.schedule='*/0 * * * *'", "as minute"),
        ("nightly.schedule=TZ=UTC 0 1 * * *", "expected five fields of cron"),
        ("nightly.time_zone=Europe/Berlinn", "expected a time zone such as Europe/Berlin"),
        ("jobs.deadline=10m", "expected a deadline longer than startup"),
        ("storage.root=/data", "storage.root is /data: expected a bucket, or a folder below"),
        ("storage.root=/mnt/ray-mlcx/y", "folder below volume.mount (/mnt/ray-mlc)"),
        ("storage.root=hf://datasets/x", "expected s3://, gs://, az://"),
        ("slurm.time=2m", "expected a time at least a minute longer than stop_before"),
        ("ssh.workers=[]", "ssh.workers is []"),
        ("ssh.workers=[10.0.0.1, 10.0.0.1]", "expected each address once"),
        ("labels={'a b': c}", "expected a Kubernetes label key"),
        ("labels={a: 'b c'}", "expected a Kubernetes label value"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(override: str, said: str | None) -> None:
    if said is None:
        cluster(override)
    else:
        assert said in refused(override)


def test_a_cluster_without_nodes_is_refused() -> None:
    assert "a cluster needs nodes that work" in refused("cpu.max=0", "gpu=null")


def test_a_secret_and_an_identity_exclude_each_other() -> None:
    assert "not both" in refused("storage.secret=s", "storage.identity=arn:aws:iam::1:role/x")


@pytest.mark.parametrize("key", ["storage.secret", "auth.secret", "images.pull_secret"])
def test_a_token_in_place_of_a_secrets_name_is_refused_and_not_repeated(key: str) -> None:
    token = "0123456789abcdef" * 4
    said = refused(f"{key}='{token}'")
    assert "looks like a token" in said
    assert token not in said


def test_credentials_in_the_root_are_refused_and_not_repeated() -> None:
    assert "topsecret" not in refused("storage.root=s3://AKIAXXXX:topsecret@bucket/x")
    assert "topsecret" not in refused("storage.root=s3://b/x?aws_secret_access_key=topsecret")


def leaves(section: type, prefix: str = "") -> set[str]:
    """Dotted keys of texts in a config."""
    found = set()
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and hasattr(kind, "model_fields")]
        if inner:
            found |= leaves(inner[0], f"{prefix}{name}.")
        elif not re.search("list|dict", repr(field.annotation)) and (
            "str" in repr(field.annotation) or "Literal" in repr(field.annotation)
        ):
            found.add(f"{prefix}{name}")
    return found


def test_every_text_of_the_config_is_tried_with_hostile_values() -> None:
    assert leaves(ClusterConfig) - READ_HERE == set(TEXTS)


@pytest.mark.parametrize("key", TEXTS)
def test_no_text_that_means_something_to_a_shell_is_accepted(key: str) -> None:
    for value in HOSTILE:
        if value == "../.." and key == "ssh.key":
            continue
        with pytest.raises(ConfigError) as caught:
            with_value(key, value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "items"),
    [("ssh.workers", HOSTILE), ("aws.zones", HOSTILE)],
)
def test_nor_in_a_list(key: str, items: tuple[str, ...]) -> None:
    for value in items:
        with pytest.raises(ConfigError):
            with_value(key, [value])


@pytest.mark.parametrize(
    "key", ["labels", "cpu.node_selector", "gpu.node_selector", "head.node_selector"]
)
def test_nor_in_a_label(key: str) -> None:
    for value in HOSTILE:
        with pytest.raises(ConfigError):
            with_value(key, {value: "x"})
        if value:  # a label may be empty
            with pytest.raises(ConfigError):
                with_value(key, {"x": value})


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEXTS), st.text(max_size=20))
def test_any_text_is_refused_or_free_of_what_shells_and_yaml_read(key: str, value: str) -> None:
    try:
        with_value(key, value)
    except ConfigError:
        return
    assert value.isascii()
    assert value.isprintable()
    allowed = "* ,/-" if key == "nightly.schedule" else "~/=" if "key" in key else "="
    assert not set(value) - set(allowed) & set(" '\"`$&|;<>(){}[]*?!#\\\t~,")


@pytest.mark.parametrize("kind", ["kuberay", "ray-up", "slurm"])
def test_a_job_files_texts_stay_data(kind: str, tmp_path: Path) -> None:
    # what a job may say is wider than what a cluster may: it is only ever dumped as YAML
    import yaml

    job = tmp_path / "it's $(id); job.yaml"
    evil = "{title}\n---\nkind: Secret\n$(id) `id` {{ x }}"
    job.write_text(
        yaml.safe_dump(
            {
                "kind": "score",
                "model": "s3://b/m",
                "input": {"path": "s3://b/c/", "text": evil},
                "output": "s3://b/t/",
            }
        )
    )
    texts = rendered(kind, f"jobs.score={yaml.safe_dump(str(job))}")
    name = {"kuberay": "base.yaml", "ray-up": "jobs/cloud-score.yaml", "slurm": "score.yaml"}[kind]
    found = list(yaml.safe_load_all(texts[name]))
    inner = yaml.safe_load(found[1]["data"]["score.yaml"]) if kind == "kuberay" else found[0]
    assert inner["input"]["text"] == evil
    assert not any(one.get("kind") == "Secret" for one in found)
    assert not any("$(id)" in text for other, text in texts.items() if other.endswith(".sbatch"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{model: ./m, input: s3://b/c, output: s3://b/t}", "model: ./m is a local path"),
        ("{model: s3://b/m, input: /data/c, output: s3://b/t}", "/data/c is a local path"),
        ("{model: s3://b/m, input: s3://b/c, output: tags}", "output: tags is a local path"),
        (
            "{model: s3://b/m, input: s3://b/c, output: /mnt/ray-mlc/../../t}",
            "/mnt/ray-mlc/../../t is a local path",
        ),
        (
            "{model: s3://b/m, input: s3://b/c, output: s3://b/t, decision: d.json}",
            "decision: d.json is a local path",
        ),
        (
            "{model: s3://b/m, input: s3://b/c, output: s3://b/t, ray: {address: auto}}",
            "ray.address is set",
        ),
        ("{model: s3://b/m, inptu: s3://b/c, output: s3://b/t}", "did you mean input?"),
    ],
)
def test_a_job_that_works_on_one_machine_only_is_refused(
    text: str, said: str, tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        rendered("kuberay", f"jobs.score={job}")


def test_a_mounted_path_and_a_name_of_the_hub_are_seen_by_every_node(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("{model: me/tagger, input: /mnt/ray-mlc/c, output: /mnt/ray-mlc/t}")
    assert "/mnt/ray-mlc/c" in rendered("kuberay", f"jobs.score={job}")["base.yaml"]


def test_a_training_whose_model_goes_to_a_bucket_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("{kind: train, data: {train: s3://b/t, validation: s3://b/v}, output: s3://b/m}")
    with pytest.raises(ConfigError, match="a model is written to a folder"):
        rendered("kuberay", f"jobs.train={job}")


def test_the_version_of_ray_is_the_one_that_the_images_install() -> None:
    assert f"ray=={RAY_VERSION}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_every_kind_of_gpu_is_in_the_table() -> None:
    assert set(GPUS) | {"any"} == set(GpuType.__args__)  # type: ignore[attr-defined]


def test_every_google_machine_in_the_table_says_its_cpus() -> None:
    machines = [machine for gpu in GPUS.values() for machine in gpu.gcp.values()]
    assert machines
    assert all(gcp_cpus(machine) for machine in machines)
    assert gcp_cpus("a2-highgpu-4g") == 48
    assert gcp_cpus("custom") is None
