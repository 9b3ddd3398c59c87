"""Files for `ray up`: Ray's own validator takes them, and they say what they are there for."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.manifests import VARIANTS, cluster, documents

from ray_mlc.cluster.render import render

VARIANT = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
CLOUDS = ("aws.yaml", "gcp.yaml")


def launchers(*overrides: str) -> dict[str, dict[str, Any]]:
    """The launcher's files of a cluster."""
    found = documents("ray-up", *overrides)
    return {name: one for name, (one,) in found.items() if "/" not in name}


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """A file as Ray completes and checks it before it starts anything."""
    # Ray's own, and private: only a test leans on it
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(whole)
    return whole


@VARIANT
def test_rays_validator_takes_every_file(variant: tuple[str, ...]) -> None:
    found = launchers(*variant)
    assert {"aws.yaml", "ssh.yaml"} <= set(found)
    for name, config in found.items():
        whole = prepared(config)
        # what is not said here Ray takes from its own examples: nothing of that may be left
        assert not any(
            "pip install" in command
            for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")
            for command in whole[key]
        ), name
        assert whole["docker"]["container_name"] == "ray_mlc"


@pytest.mark.parametrize(
    ("key", "value"), [("cluster_nam", "x"), ("max_workers", -1), ("head_node_type", "none")]
)
def test_rays_validator_as_it_is_used_here_sees_mistakes(key: str, value: object) -> None:
    with pytest.raises(Exception, match=r".+"):
        prepared({**launchers()["aws.yaml"], key: value})


@VARIANT
def test_groups_have_the_sizes_that_were_asked_for(variant: tuple[str, ...]) -> None:
    for name in set(CLOUDS) & set(launchers(*variant)):
        config = launchers(*variant)[name]
        types = config["available_node_types"]
        assert config["max_workers"] == sum(one["max_workers"] for one in types.values())
        head = types[config["head_node_type"]]
        assert head["resources"] == {"CPU": 0}
        assert head["max_workers"] == 0
        assert "spot" not in str(head).lower()
        for group in set(types) - {config["head_node_type"]}:
            assert types[group]["labels"] == {"ray-mlc.io/group": group}


def test_spot_is_said_in_each_clouds_words_and_only_where_it_was_asked_for() -> None:
    types = launchers("cpu.spot=false")["aws.yaml"]["available_node_types"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["cpu"]["node_config"]
    types = launchers("cpu.spot=false")["gcp.yaml"]["available_node_types"]
    assert types["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in types["cpu"]["node_config"]


@pytest.mark.parametrize(
    ("overrides", "aws", "gcp"),
    [
        (("gpu.type=T4", "gpu.count=4"), "g4dn.12xlarge", None),
        (("gpu.type=L4",), "g6.2xlarge", "g2-standard-8"),
        (("gpu.type=H100", "gpu.count=8"), "p5.48xlarge", "a3-highgpu-8g"),
        (("gpu.type=A100",), None, "a2-highgpu-1g"),
        (("gpu.type=any", "aws.gpu=g5.xlarge"), "g5.xlarge", None),
    ],
)
def test_machines_follow_from_kind_and_number_of_gpus(
    overrides: tuple[str, ...], aws: str | None, gcp: str | None
) -> None:
    found = launchers(*overrides)
    for name, key, machine in (("aws", "InstanceType", aws), ("gcp", "machineType", gcp)):
        assert (f"{name}.yaml" in found) is (machine is not None)
        if machine:
            types = found[f"{name}.yaml"]["available_node_types"]
            assert types["gpu"]["node_config"][key] == machine


@VARIANT
def test_the_token_travels_as_a_file_and_stands_in_none(variant: tuple[str, ...]) -> None:
    for config in launchers(*variant).values():
        token = "auth.mode=disabled" not in variant
        mode = "token" if token else "disabled"
        assert f"--env RAY_AUTH_MODE={mode}" in config["docker"]["run_options"]
        assert ("~/.ray/auth_token" in config.get("file_mounts", {})) is token
        # nobody outside reaches the port where jobs are submitted
        assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@VARIANT
def test_options_of_docker_are_words_that_a_shell_leaves_alone(variant: tuple[str, ...]) -> None:
    for config in launchers(*variant).values():
        for option in config["docker"]["run_options"]:
            flag, value = option.split(" ")  # Ray pastes them into a command
            assert re.fullmatch("--[a-z]+", flag)
            assert shlex.quote(value) == value


def test_a_volume_is_mounted_on_bare_machines_before_the_container_starts() -> None:
    for name, config in launchers(*VARIANTS["NFS for all"]).items():
        whole = prepared(config)
        of_type = [
            one.get("initialization_commands", whole["initialization_commands"])
            for one in whole["available_node_types"].values()
        ]
        for commands in [whole["initialization_commands"], *of_type]:
            assert any("mount -t nfs4" in command for command in commands), name
        assert "--volume /mnt/ray-mlc:/mnt/ray-mlc" in whole["docker"]["run_options"]


def test_without_one_clouds_read_the_model_from_the_bucket() -> None:
    found = documents("ray-up")
    assert found["jobs/cloud-score.yaml"][0]["model"].startswith("s3://")
    assert "jobs/cloud-train.yaml" not in found
    assert "/mnt/ray-mlc" not in str([found[name] for name in CLOUDS])
    # machines that are there are presumed to have it
    assert found["jobs/ssh-train.yaml"][0]["output"].startswith("/mnt/ray-mlc/")


def test_a_job_on_the_volume_is_left_out_for_machines_that_mount_none(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("{model: /mnt/ray-mlc/m, input: s3://b/c, output: s3://b/t}")
    files, left_out = render("ray-up", cluster(f"jobs.score={job}"))
    assert "/mnt/ray-mlc/m is a local path" in left_out["jobs/cloud-score.yaml"]
    assert {"aws.yaml", "jobs/ssh-score.yaml"} <= set(files)
