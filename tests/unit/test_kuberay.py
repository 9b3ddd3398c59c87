"""Manifests for KubeRay: its schemas, its operator's rules, and what they are there for."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from support.manifests import ROOT, VARIANTS, documents

from ray_mlc.cluster.kuberay import quantity

CRDS = ROOT.parent / "shared" / "kuberay-crds"
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
VARIANT = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


def manifests(*overrides: str) -> list[dict[str, Any]]:
    """All manifests of a cluster."""
    return [one for found in documents("kuberay", *overrides).values() for one in found]


def of_kind(kind: str, *overrides: str) -> list[dict[str, Any]]:
    """Manifests of one kind."""
    return [one for one in manifests(*overrides) if one["kind"] == kind]


def cluster_specs(*overrides: str) -> Iterator[dict[str, Any]]:
    """The spec of every RayCluster that there will be."""
    for one in manifests(*overrides):
        if one["kind"] == "RayCluster":
            yield one["spec"]
        elif one["kind"] == "RayJob":
            yield one["spec"]["rayClusterSpec"]
        elif one["kind"] == "RayCronJob":
            yield one["spec"]["jobTemplate"]["rayClusterSpec"]


def job_specs(*overrides: str) -> Iterator[dict[str, Any]]:
    """The spec of every RayJob that there will be."""
    for one in manifests(*overrides):
        if one["kind"] in ("RayJob", "RayCronJob"):
            yield one["spec"].get("jobTemplate", one["spec"])


def pods(*overrides: str) -> Iterator[dict[str, Any]]:
    """The spec of every pod that there will be."""
    for spec in cluster_specs(*overrides):
        yield spec["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])
    for spec in job_specs(*overrides):
        yield spec["submitterPodTemplate"]["spec"]
    for one in of_kind("CronJob", *overrides):
        yield one["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def closed(schema: Any) -> Any:
    """A schema that forbids what it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    names_all = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    if names_all and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """What checks manifests of a kind of KubeRay's."""
    path = CRDS / f"ray.io_{RAY_KINDS[kind]}.v1.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent: KubeRay's schemas are not part of the repository")
    schema = closed(json.loads(path.read_text())["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    # Kubernetes' own, which the schema of a custom resource leaves open
    schema["properties"]["metadata"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 253},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    return jsonschema.Draft202012Validator(schema)


@VARIANT
def test_every_manifest_of_ray_fits_the_operators_schema(variant: tuple[str, ...]) -> None:
    found = [one for one in manifests(*variant) if one["kind"] in RAY_KINDS]
    assert {one["kind"] for one in found} == set(RAY_KINDS)
    for one in found:
        errors = [f"{list(e.path)}: {e.message}" for e in validator(one["kind"]).iter_errors(one)]
        assert errors == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "shutdownAfterJobFinshes"), True),
        (("spec", "backoffLimit"), "3"),
        (("spec", "preRunningDeadlineSeconds"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokn"),
        (("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "submitterPodTemplate", "spec", "restartpolicy"), "Never"),
        (("metadata", "label"), {}),
    ],
)
def test_the_schema_as_it_is_used_here_sees_mistakes(path: tuple[str, ...], value: object) -> None:
    (score,) = [one for one in of_kind("RayJob") if one["metadata"]["name"].endswith("score")]
    wrong = copy.deepcopy(score)
    node = wrong
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert list(validator("RayJob").iter_errors(wrong))


@VARIANT
def test_plain_kubernetes_kinds_fit_its_schemas(variant: tuple[str, ...]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = [one for one in manifests(*variant) if one["kind"] not in RAY_KINDS]
    assert {"ServiceAccount", "ConfigMap", "CronJob"} <= {one["kind"] for one in found}
    for one in found:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    cron = copy.deepcopy(next(one for one in found if one["kind"] == "CronJob"))
    cron["spec"]["concurrencyPolicyy"] = "Forbid"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(cron, kubernetes_validate.latest_version(), strict=True)


# --- rules that no schema holds: CEL of the CRDs, and the operator's own validation


@VARIANT
def test_rules_of_a_rayjob_hold(variant: tuple[str, ...]) -> None:
    for spec in job_specs(*variant):
        # deletionRules and legacy policies exclude each other, and both exclude shutdown
        assert "deletionStrategy" not in spec
        assert spec["shutdownAfterJobFinishes"] is True  # else a ttl is refused
        assert spec["ttlSecondsAfterFinished"] >= 0
        assert spec["backoffLimit"] >= 0
        assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
        assert "clusterSelector" not in spec
        assert spec["submissionMode"] == "K8sJobMode"  # SidecarMode refuses a submitter's template
        assert "managedBy" not in spec


@VARIANT
def test_rules_of_a_raycluster_hold(variant: tuple[str, ...]) -> None:
    for spec in cluster_specs(*variant):
        if spec["authOptions"]["mode"] == "token":
            assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for group in groups:
            assert group["template"]["spec"]["containers"]
            # autoscaler v2: a pod is one Ray node, and is never started again as another
            assert group["template"]["spec"]["restartPolicy"] == "Never"
            assert "labels" not in group["rayStartParams"]
            assert not (group["rayStartParams"] and group.get("resources"))
        variables = groups[0]["template"]["spec"]["containers"][0]["env"]
        assert "RAY_enable_autoscaler_v2" not in [one["name"] for one in variables]
        names = [group["groupName"] for group in spec["workerGroupSpecs"]]
        assert len(set(names)) == len(names) > 0
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_names_leave_room_for_what_kuberay_adds() -> None:
    for one in manifests(f"name={'n' * 30}"):
        name = one["metadata"]["name"]
        longest = {"RayJob": 47, "RayCronJob": 47 - len("-29000000"), "CronJob": 52}
        assert len(name) <= longest.get(one["kind"], 63)
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)


# --- what the manifests are there for


@VARIANT
def test_no_secret_is_written_and_every_named_one_is_a_reference(variant: tuple[str, ...]) -> None:
    assert not of_kind("Secret", *variant)
    for pod in pods(*variant):
        for container in pod["containers"]:
            for one in container.get("env", ()):
                if "TOKEN" in one["name"] or "SECRET" in one["name"] or "KEY" in one["name"]:
                    assert set(one) == {"name", "valueFrom"}


@VARIANT
def test_every_pod_is_unprivileged_and_says_what_it_needs(variant: tuple[str, ...]) -> None:
    seen = list(pods(*variant))
    assert len(seen) >= 5
    for pod in seen:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            mounted = {one["name"] for one in container.get("volumeMounts", ())}
            assert mounted == {one["name"] for one in pod.get("volumes", ())}


@VARIANT
def test_everything_that_is_named_is_there(variant: tuple[str, ...]) -> None:
    found = manifests(*variant)
    named = {(one["kind"], one["metadata"]["name"]) for one in found}
    assert len(named) == len(found)
    assert len({one["metadata"]["namespace"] for one in found}) == 1
    for pod in pods(*variant):
        assert ("ServiceAccount", pod["serviceAccountName"]) in named
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in named
            claim = volume.get("persistentVolumeClaim")
            if claim and "volume.create=false" not in variant:
                assert ("PersistentVolumeClaim", claim["claimName"]) in named


def test_the_head_stays_and_computes_nothing_while_groups_come_and_go() -> None:
    (spec, *_) = cluster_specs()
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    terms = head["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert all(one["operator"] == "NotIn" for term in terms for one in term["matchExpressions"])
    assert "tolerations" not in head["template"]["spec"]
    cpu, gpu = spec["workerGroupSpecs"]
    assert (cpu["groupName"], gpu["groupName"]) == ("cpu", "gpu")
    assert cpu["minReplicas"] == gpu["minReplicas"] == 0
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in str(cpu)
    keys = {one["key"] for one in gpu["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= keys
    assert cpu["template"]["spec"]["containers"][0]["image"].endswith("-cpu")
    assert gpu["template"]["spec"]["containers"][0]["image"].endswith("-cuda")


def test_nodes_on_demand_are_kept_off_spot_nodes_whatever_their_gpu() -> None:
    (spec, *_) = cluster_specs("gpu.spot=false")
    affinity = spec["workerGroupSpecs"][1]["template"]["spec"]["affinity"]["nodeAffinity"]
    assert "preferredDuringSchedulingIgnoredDuringExecution" not in affinity
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert len(terms) > 1
    for term in terms:  # alternatives: each has to keep them off by itself
        assert [one["operator"] for one in term["matchExpressions"]].count("NotIn") == 5


def test_jobs_ask_for_groups_that_are_there() -> None:
    for overrides in VARIANTS.values():
        (base,) = of_kind("ConfigMap", *overrides)
        job = yaml.safe_load(base["data"]["score.yaml"])
        (spec, *_) = cluster_specs(*overrides)
        labels = [group["labels"] for group in spec["workerGroupSpecs"]]
        for stage in ("actors", "tokenizers"):
            wanted = job.get(stage, {}).get("labels")
            assert wanted is None or wanted in labels


def test_a_retry_runs_the_same_command_so_that_it_continues() -> None:
    for spec in job_specs("jobs.attempts=4"):
        assert spec["backoffLimit"] == 3
        # KubeRay pastes it into a shell twice: plain words only
        assert re.fullmatch(r"ray-mlc (score|train|nightly) [\w/.-]+", spec["entrypoint"])
        mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert "/etc/ray-mlc" in [one["mountPath"] for one in mounts["volumeMounts"]]
    (cron,) = of_kind("RayCronJob")
    assert cron["spec"]["jobTemplate"]["entrypoint"] == "ray-mlc nightly /etc/ray-mlc/score.yaml"


def test_the_nightly_never_runs_twice_and_tells_bad_luck_from_bad_config() -> None:
    (cron,) = of_kind("CronJob", "nightly.time_zone=Europe/Berlin", "nightly.schedule=30 1 * * MON")
    spec = cron["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert (spec["schedule"], spec["timeZone"]) == ("30 1 * * MON", "Europe/Berlin")
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 2
    fail, ignore = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert fail["onExitCodes"]["containerName"] == container["name"]
    assert fail["onExitCodes"]["values"] == [2, 3, 4]
    assert ignore["action"] == "Ignore"
    assert container["args"][:2] == ["jobs", "submit"]
    assert {"--follow", "--add-new", "--address"} <= set(container["args"])
    (cluster,) = of_kind("RayCluster")
    assert container["args"][-1] == f"http://{cluster['metadata']['name']}-head-svc:8265"
    token = {one["name"]: one for one in container["env"]}["RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["name"] == cluster["metadata"]["name"]


def test_the_cluster_and_its_clients_name_one_token() -> None:
    overrides = ("auth.secret=ray-token",)
    assert all(
        spec["authOptions"]["secretName"] == "ray-token" for spec in cluster_specs(*overrides)
    )
    (cron,) = of_kind("CronJob", *overrides)
    assert "'name': 'ray-token', 'key': 'auth_token'" in str(cron)


def test_what_starts_by_itself_when_the_folder_is_applied_starts_nothing_twice() -> None:
    # `kubectl apply -f FOLDER` does not go into folders below it
    top = {name: found for name, found in documents("kuberay").items() if "/" not in name}
    kinds = sorted(one["kind"] for found in top.values() for one in found)
    assert kinds == [
        "ConfigMap",
        "CronJob",
        "PersistentVolumeClaim",
        "RayCluster",
        "ServiceAccount",
    ]


def test_without_a_volume_there_is_no_claim_and_no_training() -> None:
    found = documents("kuberay", "volume=null")
    assert "jobs/train.yaml" not in found
    assert not of_kind("PersistentVolumeClaim", "volume=null")
    assert "persistentVolumeClaim" not in str(found)


@pytest.mark.parametrize(
    ("overrides", "annotation"),
    [
        (VARIANTS["Amazon's identity"], "eks.amazonaws.com/role-arn"),
        (VARIANTS["Google's identity"], "iam.gke.io/gcp-service-account"),
        (VARIANTS["Azure's identity"], "azure.workload.identity/client-id"),
    ],
)
def test_an_identity_is_told_in_the_platforms_words(
    overrides: tuple[str, ...], annotation: str
) -> None:
    (account,) = of_kind("ServiceAccount", *overrides)
    assert list(account["metadata"]["annotations"]) == [annotation]


@pytest.mark.parametrize(
    ("size", "text"), [(16 * 2**30, "16Gi"), (3 * 2**29, "1536Mi"), (1_500_000_001, "1500000001")]
)
def test_a_size_is_written_exactly(size: int, text: str) -> None:
    assert quantity(size) == text
