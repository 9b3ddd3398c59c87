"""Manifests for the KubeRay operator, as data: nothing is pasted into text.

A RayCluster that stays (a head without tasks on an on-demand node, groups that grow from what
`min` says) is what the nightly CronJob submits to; a RayJob brings a cluster of its own and takes
it away. GPU nodes and spot nodes are found by whatever label the platform puts on them: one
manifest does for GKE, EKS, AKS and others.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from ray_mlc.cluster.config import (
    GIB,
    KEEP_WORKERS,
    KEPT_MS,
    ClusterConfig,
    CpuGroupConfig,
    GpuGroupConfig,
    HeadConfig,
)
from ray_mlc.cluster.gpus import GPUS
from ray_mlc.cluster.jobs import GROUP_LABEL, NO_TRAINING, score_job, train_job
from ray_mlc.cluster.rendered import Rendered
from ray_mlc.errors import ConfigError
from ray_mlc.storage import scheme_of

Manifest = dict[str, Any]
JOBS = "/etc/ray-mlc"
"""Where the job files are in every container that needs them."""
DASHBOARD_PORT = 8265
USER = 1000
"""User and group id of the images, see `cluster/Dockerfile`."""
SPOT_NODES = (
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
"""Labels of nodes that may be taken away, by platform."""
SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
"""Taints that platforms put on them."""
NOT_REPEATED = [2, 3, 4]
"""Exit codes of `ray-mlc` that another attempt would not change."""


def render_kuberay(config: ClusterConfig) -> Rendered:
    """The manifests.

    `kubectl apply -f FOLDER` takes those at the top: the cluster and its nightly job. Those in
    `jobs/` start at once when they are applied.

    Raises:
        ConfigError: If a job file is wrong, or the identity does not fit the bucket.
    """
    score = score_job(config)
    train = train_job(config)
    files: dict[str, list[Manifest]] = {
        "base.yaml": _base(config, {"score": score, **({"train": train} if train else {})}),
        "raycluster.yaml": [_ray_cluster(config)],
        "nightly-cronjob.yaml": [_cron_job(config)],
        "jobs/score.yaml": [_ray_job(config, "score")],
    }
    left_out = {}
    if train:
        files["jobs/train.yaml"] = [_ray_job(config, "train")]
    else:
        left_out["jobs/train.yaml"] = NO_TRAINING
    files["jobs/nightly-raycronjob.yaml"] = [_ray_cron_job(config)]
    return Rendered(files, left_out)


def _base(config: ClusterConfig, jobs: dict[str, Manifest]) -> list[Manifest]:
    account: Manifest = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(config, config.name),
    }
    if annotations := _identity_annotations(config):
        account["metadata"]["annotations"] = annotations
    texts = {
        f"{name}.yaml": yaml.safe_dump(job, sort_keys=False, allow_unicode=True)
        for name, job in jobs.items()
    }
    base = [
        account,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(config, f"{config.name}-jobs"),
            "data": texts,
        },
    ]
    volume = config.volume
    if volume is not None and volume.create:
        spec: Manifest = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": quantity(volume.size)}},
        }
        if volume.storage_class is not None:
            spec["storageClassName"] = volume.storage_class
        base.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": _metadata(config, volume.claim),
                "spec": spec,
            }
        )
    return base


def _ray_cluster(config: ClusterConfig) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(config, config.name),
        "spec": _cluster_spec(config, _groups(config, "score")),
    }


def _ray_job(config: ClusterConfig, command: str) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(config, f"{config.name}-{command}"),
        "spec": _job_spec(config, command, f"ray-mlc {command} {JOBS}/{command}.yaml"),
    }


def _ray_cron_job(config: ClusterConfig) -> Manifest:
    nightly = config.nightly
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(config, f"{config.name}-nightly"),
        "spec": {
            "schedule": nightly.schedule,
            "timeZone": nightly.time_zone,
            "suspend": nightly.suspend,
            "jobTemplate": _job_spec(config, "score", f"ray-mlc nightly {JOBS}/score.yaml"),
        },
    }


def _job_spec(config: ClusterConfig, command: str, entrypoint: str) -> Manifest:
    """A RayJob's spec. KubeRay pastes the entrypoint into a shell: there is nothing to quote."""
    jobs = config.jobs
    return {
        "entrypoint": entrypoint,
        "submissionMode": "K8sJobMode",
        # each retry is a new cluster, and the same command: it continues
        "backoffLimit": jobs.attempts - 1,
        "activeDeadlineSeconds": _seconds(jobs.deadline),
        "preRunningDeadlineSeconds": _seconds(jobs.startup),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _seconds(jobs.keep),
        # the submitter only follows the log: one whose connection broke picks it up again
        "submitterConfig": {"backoffLimit": 10},
        "submitterPodTemplate": {"spec": _submitter(config, "submitter")},
        "rayClusterSpec": _cluster_spec(config, _groups(config, command)),
    }


def _cron_job(config: ClusterConfig) -> Manifest:
    """The nightly of plain Kubernetes: it submits to the cluster that stays, and follows."""
    nightly, jobs = config.nightly, config.jobs
    pod = _submitter(config, "submit")
    pod["containers"][0] |= {
        "command": ["ray-mlc"],
        "args": [
            *("jobs", "submit", f"{JOBS}/score.yaml", "--follow", "--add-new"),
            *("--address", f"http://{config.name}-head-svc:{DASHBOARD_PORT}"),
        ],
        "env": _auth_variables(config),
        "volumeMounts": [{"name": "jobs", "mountPath": JOBS, "readOnly": True}],
    }
    pod["volumes"] = [_jobs_volume(config)]
    failures = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "submit", "operator": "In", "values": NOT_REPEATED},
        },
        # a pod whose node goes away is no failed attempt: the next one attaches to the job
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(config, f"{config.name}-nightly"),
        "spec": {
            "schedule": nightly.schedule,
            "timeZone": nightly.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _seconds(nightly.start_within),
            "suspend": nightly.suspend,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 7,
            "jobTemplate": {
                "metadata": {"labels": _labels(config)},
                "spec": {
                    "backoffLimit": jobs.attempts - 1,
                    "activeDeadlineSeconds": _seconds(jobs.deadline),
                    "podFailurePolicy": {"rules": failures},
                    "template": {"metadata": {"labels": _labels(config)}, "spec": pod},
                },
            },
        },
    }


def _groups(config: ClusterConfig, command: str) -> list[Manifest]:
    """Worker groups: training has no tokenizers of its own."""
    groups = []
    if config.cpu.max and (command == "score" or config.gpu is None):
        groups.append(_group(config, "cpu", config.cpu))
    if config.gpu is not None:
        groups.append(_group(config, "gpu", config.gpu))
    return groups


def _cluster_spec(config: ClusterConfig, groups: list[Manifest]) -> Manifest:
    auth: Manifest = {"mode": config.auth.mode}
    if config.auth.secret is not None:
        auth["secretName"] = config.auth.secret
    head = _pod(config, "head", config.head)
    container = head["containers"][0]
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": DASHBOARD_PORT},
        {"name": "metrics", "containerPort": 8080},
    ]
    container["env"] += [
        # Ray kills a stopped job after three seconds otherwise
        _variable("RAY_JOB_STOP_WAIT_TIME_S", str(_seconds(config.jobs.stop_wait))),
        # nodes of a group that is empty come in minutes, not in one
        _variable("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_seconds(config.jobs.startup))),
    ]
    return {
        "rayVersion": config.ray_version,
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": _seconds(config.idle_timeout),
            "imagePullPolicy": config.images.pull,
            "resources": _resources({"cpu": "500m", "memory": "1Gi"}),
            "securityContext": _container_security(),
        },
        "headGroupSpec": {
            # no task on the node whose loss ends everything
            "rayStartParams": {"num-cpus": "0"},
            "template": {"metadata": {"labels": _labels(config)}, "spec": head},
        },
        "workerGroupSpecs": groups,
    }


def _group(config: ClusterConfig, name: str, group: CpuGroupConfig | GpuGroupConfig) -> Manifest:
    return {
        "groupName": name,
        "replicas": group.min,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "labels": {GROUP_LABEL: name},
        "rayStartParams": {},
        "template": {
            "metadata": {"labels": _labels(config)},
            "spec": _pod(config, "worker", group),
        },
    }


def _pod(
    config: ClusterConfig, kind: str, node: HeadConfig | CpuGroupConfig | GpuGroupConfig
) -> Manifest:
    """The pod of a Ray node: its resources, where it may be, and what it mounts."""
    amounts: Manifest = {"cpu": str(node.cpus), "memory": quantity(node.memory)}
    mounts: list[Manifest] = [{"name": "cache", "mountPath": "/home/ray/.cache"}]
    volumes: list[Manifest] = [{"name": "cache", "emptyDir": {}}]
    if kind == "head":
        mounts.append({"name": "jobs", "mountPath": JOBS, "readOnly": True})
        volumes.append(_jobs_volume(config))
    else:
        # logs, and objects that do not fit into memory; on the head KubeRay brings its own
        mounts.append({"name": "ray", "mountPath": "/tmp/ray"})
        volumes.append({"name": "ray", "emptyDir": {}})
    if config.volume is not None:
        mounts.append({"name": "shared", "mountPath": config.volume.mount})
        claim = {"claimName": config.volume.claim}
        volumes.append({"name": "shared", "persistentVolumeClaim": claim})
    gpus = isinstance(node, GpuGroupConfig)
    if isinstance(node, GpuGroupConfig):
        amounts["nvidia.com/gpu"] = str(node.count)
    container: Manifest = {
        "name": f"ray-{kind}",
        "image": config.images.cuda if gpus else config.images.cpu,
        "imagePullPolicy": config.images.pull,
        "resources": _resources(amounts),
        "env": _variables(config),
        "volumeMounts": mounts,
        "securityContext": _container_security(),
    }
    if config.storage.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": config.storage.secret}}]
    pod = {
        **_pod_basics(config),
        "affinity": {"nodeAffinity": _node_affinity(node)},
        "containers": [container],
        "volumes": volumes,
        # the autoscaler in the head's pod asks Kubernetes for pods; nobody else does
        "automountServiceAccountToken": kind == "head",
    }
    if node.node_selector:
        pod["nodeSelector"] = dict(node.node_selector)
    if tolerations := _tolerations(node):
        pod["tolerations"] = tolerations
    return pod


def _submitter(config: ClusterConfig, name: str) -> Manifest:
    """A pod that submits a job and follows it, on a node that stays."""
    return {
        **_pod_basics(config),
        "affinity": {"nodeAffinity": _node_affinity(config.head)},
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": name,
                "image": config.images.cpu,
                "imagePullPolicy": config.images.pull,
                "resources": _resources({"cpu": "500m", "memory": "1Gi"}),
                "securityContext": _container_security(),
            }
        ],
    }


def _pod_basics(config: ClusterConfig) -> Manifest:
    basics: Manifest = {
        "serviceAccountName": config.name,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if config.images.pull_secret is not None:
        basics["imagePullSecrets"] = [{"name": config.images.pull_secret}]
    return basics


def _node_affinity(node: HeadConfig | CpuGroupConfig | GpuGroupConfig) -> Manifest:
    """Which nodes a pod may be on, whatever the platform.

    Terms of `nodeSelectorTerms` are alternatives, expressions of one term hold together.
    """
    if isinstance(node, HeadConfig) or not node.spot:
        kept = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_NODES]
        affinity: Manifest = {}
    else:
        kept = []
        affinity = {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "preference": {
                        "matchExpressions": [{"key": key, "operator": "In", "values": [value]}]
                    },
                }
                for key, value in SPOT_NODES
            ]
        }
    terms = [{"matchExpressions": [*kind, *kept]} for kind in _gpu_expressions(node)]
    if any(term["matchExpressions"] for term in terms):
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    return affinity


def _gpu_expressions(node: HeadConfig | CpuGroupConfig | GpuGroupConfig) -> list[list[Manifest]]:
    """For each way to tell the kind of GPU, the expressions that do; one empty where any does."""
    if not isinstance(node, GpuGroupConfig) or node.type == "any":
        return [[]]
    gpu = GPUS[node.type]
    named = {
        "nvidia.com/gpu.product": gpu.products,
        "cloud.google.com/gke-accelerator": gpu.gke,
        "karpenter.k8s.aws/instance-gpu-name": (gpu.aws_name,) if gpu.aws_name else (),
        "eks.amazonaws.com/instance-gpu-name": (gpu.aws_name,) if gpu.aws_name else (),
    }
    return [
        [{"key": key, "operator": "In", "values": list(values)}]
        for key, values in named.items()
        if values
    ]


def _tolerations(node: HeadConfig | CpuGroupConfig | GpuGroupConfig) -> list[Manifest]:
    found: list[Manifest] = []
    if isinstance(node, GpuGroupConfig):
        found.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if not isinstance(node, HeadConfig) and node.spot:
        found += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in SPOT_TAINTS
        ]
    return found


def _variables(config: ClusterConfig) -> list[Manifest]:
    found = [_variable("RAY_USAGE_STATS_ENABLED", "0"), _variable(KEEP_WORKERS, str(KEPT_MS))]
    if config.storage.endpoint is not None:
        found.append(_variable("AWS_ENDPOINT_URL", config.storage.endpoint))
    if config.storage.region is not None:
        found.append(_variable("AWS_REGION", config.storage.region))
    return found


def _auth_variables(config: ClusterConfig) -> list[Manifest]:
    """What a client needs to be let in; KubeRay gives it to Ray's own pods."""
    if config.auth.mode == "disabled":
        return [_variable("RAY_AUTH_MODE", "disabled")]
    secret = {"name": config.auth.secret or config.name, "key": "auth_token"}
    return [
        _variable("RAY_AUTH_MODE", "token"),
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
    ]


def _identity_annotations(config: ClusterConfig) -> dict[str, str]:
    """How a platform lets pods act as an account that may use the bucket."""
    identity = config.storage.identity
    if identity is None:
        return {}
    scheme = scheme_of(config.storage.root)
    ways = {
        "s3": (
            "eks.amazonaws.com/role-arn",
            r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+",
            "an IAM role's ARN",
        ),
        "gs": (
            "iam.gke.io/gcp-service-account",
            r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com",
            "a service account's address",
        ),
        "az": (
            "azure.workload.identity/client-id",
            r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            "a client id",
        ),
    }
    if scheme not in ways:
        raise ConfigError("storage.identity is set: expected a bucket as storage.root with it")
    key, pattern, expected = ways[scheme]
    if re.fullmatch(pattern, identity) is None:
        raise ConfigError(
            f"storage.identity is {identity}: expected {expected} with {config.storage.root}"
        )
    return {key: identity}


def _labels(config: ClusterConfig) -> dict[str, str]:
    found = {"app.kubernetes.io/part-of": "ray-mlc", **config.labels}
    if config.storage.identity is not None and scheme_of(config.storage.root) == "az":
        found["azure.workload.identity/use"] = "true"
    return found


def _metadata(config: ClusterConfig, name: str) -> Manifest:
    return {"name": name, "namespace": config.namespace, "labels": _labels(config)}


def _jobs_volume(config: ClusterConfig) -> Manifest:
    return {"name": "jobs", "configMap": {"name": f"{config.name}-jobs"}}


def _variable(name: str, value: str) -> Manifest:
    return {"name": name, "value": value}


def _resources(amounts: dict[str, str]) -> Manifest:
    """Requests and limits alike: Ray counts on what it was told that it has."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _seconds(duration: float) -> int:
    return math.ceil(duration)


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them: `16Gi`, `512Mi`, `1500`."""
    for unit, factor in (("Gi", GIB), ("Mi", 2**20)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
