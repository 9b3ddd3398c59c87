"""The typed config of a cluster: one tree from which every manifest and script follows.

A cluster has a head that computes nothing, a group of CPU nodes that read and tokenize, and a
group of GPU nodes that score and train; without GPUs the CPU nodes do it all. Secrets are named,
never written: this tree and what is rendered from it may be committed.
"""

from __future__ import annotations

import posixpath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_mlc.cluster.gpus import GpuType
from ray_mlc.cluster.names import (
    AbsolutePath,
    CloudName,
    ClusterName,
    DnsLabel,
    DnsName,
    Endpoint,
    HomePath,
    HostName,
    ImageReference,
    LabelKey,
    LabelValue,
    Location,
    NfsExport,
    RayVersion,
    Schedule,
    SecretName,
    TimeZone,
    Word,
)
from ray_mlc.config import Duration, Section, Size
from ray_mlc.errors import ConfigError
from ray_mlc.storage import refuse_credentials, scheme_of

GIB = 2**30
RAY_VERSION = "2.60.0"
"""What `constraints.txt` installs into the images; a test holds them equal."""
IMAGE = "registry.example.com/ray-mlc:0.1.0"
"""A placeholder: no registry has it."""
BUCKET = "s3://example-bucket/ray-mlc"
"""A placeholder as well."""

KEEP_WORKERS = "RAY_idle_worker_killing_time_threshold_ms"
"""Read by each node. Ray ends processes that are idle for a second beyond one per core; actors hold
the cores here, so that reads and writes would each begin with the start of a Python."""
KEPT_MS = 300_000

Nodes = Annotated[int, Field(ge=0, le=10_000)]
Cpus = Annotated[int, Field(ge=1, le=1024)]
Labels = dict[LabelKey, LabelValue]


class ImagesConfig(Section):
    """What the nodes run: two targets of one build of `cluster/Dockerfile`."""

    cpu: ImageReference = f"{IMAGE}-cpu"
    """Image of the head and of CPU nodes, with a tag or a digest."""
    cuda: ImageReference = f"{IMAGE}-cuda"
    """Image of GPU nodes; of the same version."""
    pull: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When Kubernetes asks the registry."""
    pull_secret: SecretName | None = None
    """Secret with the registry's credentials."""


class StorageConfig(Section):
    """Where corpora and results are, and who may read and write them."""

    root: Location = BUCKET
    """Bucket, or folder below `volume.mount`, that holds `corpus/` and gets `tags/`."""
    endpoint: Endpoint | None = None
    """URL of an S3 server that is not Amazon's, such as MinIO."""
    region: Word | None = None
    """Region of the bucket, where it cannot be found out."""
    secret: SecretName | None = None
    """Secret whose keys become environment variables, such as AWS_ACCESS_KEY_ID; null: the nodes
    or `identity` have access."""
    identity: CloudName | None = None
    """Instead of a Secret: the IAM role's ARN (AWS), the service account's address (Google), or the
    client id (Azure) that pods act as."""

    @field_validator("root")
    @classmethod
    def _reachable(cls, root: str) -> str:
        refuse_credentials(root)
        if scheme_of(root) not in ("file", "s3", "gs", "az"):
            raise ValueError("expected s3://, gs://, az:// or a folder below volume.mount")
        return root.rstrip("/")

    @model_validator(mode="after")
    def _one_way(self) -> StorageConfig:
        if self.secret is not None and self.identity is not None:
            raise ValueError("expected a secret or an identity, not both")
        return self


class VolumeConfig(Section):
    """A shared file system that all nodes mount; training writes its model there."""

    mount: AbsolutePath = "/mnt/ray-mlc"
    """Where every node sees it."""
    claim: DnsName = "ray-mlc"
    """PersistentVolumeClaim on Kubernetes."""
    create: bool = True
    """Whether the claim is rendered too; false: it exists."""
    size: Size = 100 * GIB
    """What the claim asks for."""
    storage_class: DnsName | None = None
    """StorageClass that can be mounted by many nodes (ReadWriteMany); null: the default one."""
    nfs: NfsExport | None = None
    """Server and folder, such as `fs-0123.efs.us-west-2.amazonaws.com:/`, which `ray up` mounts on
    machines of a cloud; null: they have no volume."""


class JobsConfig(Section):
    """What is run, and how often and how long it is tried."""

    score: str | None = None
    """Job file to tag with; null: from `storage.root`/corpus to `storage.root`/tags."""
    train: str | None = None
    """Job file to train with; null: from `storage.root`/examples to the volume."""
    attempts: int = Field(default=3, ge=1, le=20)
    """How often a job is started in all; each attempt continues where the last one stopped."""
    deadline: Duration = 12 * 3600.0
    """After which a RayJob is ended, done or not. What the CronJob has submitted goes on: a night
    is ended by the score job's `limits.stop_at`."""
    startup: Duration = 30 * 60.0
    """How long nodes may take to come and images to be pulled before the cluster is given up."""
    keep: Duration = 10 * 60.0
    """How long a job's cluster stays after it, to look at."""
    stop_wait: Duration = 120.0
    """How long a stopped job may take to finish what is in flight: `limits.grace` and a minute."""

    @model_validator(mode="after")
    def _ordered(self) -> JobsConfig:
        if self.deadline <= self.startup:
            raise ValueError("expected a deadline longer than startup")
        return self


class NightlyConfig(Section):
    """When the score job is run again for what arrived since, and verified: `ray-mlc nightly`."""

    schedule: Schedule = "0 22 * * *"
    """Five fields of cron."""
    time_zone: TimeZone = "Etc/UTC"
    """Time zone of `schedule`."""
    start_within: Duration = 3600.0
    """A start that is later than so is left out until the next night."""
    suspend: bool = False
    """Keep it, but start nothing."""


class AuthConfig(Section):
    """Who may talk to Ray: whoever may can run any code on it."""

    mode: Literal["token", "disabled"] = "token"
    """Ray's token authentication."""
    secret: SecretName | None = None
    """Secret with the key `auth_token`; null: KubeRay makes one, named like the cluster."""


class HeadConfig(Section):
    """The node of Ray's control plane and of the jobs' drivers; it gets no tasks."""

    cpus: Cpus = 4
    """CPUs."""
    memory: Size = 16 * GIB
    """Memory."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of Kubernetes nodes to be on."""


class CpuGroupConfig(Section):
    """Nodes without GPUs: they read, tokenize and write, and score where there are no others."""

    min: Nodes = 0
    """Nodes that are always there."""
    max: Nodes = 8
    """Most nodes."""
    cpus: Cpus = 8
    """CPUs of a node."""
    memory: Size = 32 * GIB
    """Memory of a node."""
    spot: bool = True
    """Whether they may be taken away at short notice, for less money."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of Kubernetes nodes to be on."""

    @model_validator(mode="after")
    def _ordered(self) -> CpuGroupConfig:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, expected at most max ({self.max})")
        return self


class GpuGroupConfig(Section):
    """Nodes with GPUs: they score and train."""

    type: GpuType = "L4"
    """What kind; `any`: whatever there is."""
    count: int = Field(default=1, ge=1, le=16)
    """GPUs of a node."""
    min: Nodes = 0
    """Nodes that are always there."""
    max: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Most nodes."""
    cpus: Cpus = 7
    """CPUs of a node; one or two fewer than the machine has, for what Kubernetes itself runs."""
    memory: Size = 28 * GIB
    """Memory of a node."""
    spot: bool = True
    """Whether they may be taken away at short notice, for less money."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of Kubernetes nodes to be on."""

    @model_validator(mode="after")
    def _ordered(self) -> GpuGroupConfig:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, expected at most max ({self.max})")
        return self


class AwsConfig(Section):
    """Where and on what `ray up` starts nodes at AWS."""

    region: Word = "us-west-2"
    """Region."""
    zones: list[Word] = Field(default_factory=list)
    """Availability zones, in the order in which they are tried; none: any."""
    image: CloudName = (
        "resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
        "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    )
    """AMI with Docker and NVIDIA's driver, or the SSM parameter that says which."""
    head: Word = "m7i.xlarge"
    """Instance type of the head."""
    cpu: Word = "m7i.2xlarge"
    """Instance type of CPU nodes."""
    gpu: Word | None = None
    """Instance type of GPU nodes; null: the one with `gpu.count` GPUs of `gpu.type`."""
    instance_profile: CloudName | None = None
    """Instance profile (its ARN) that may use the bucket; null: the one that Ray makes."""


class GcpConfig(Section):
    """Where and on what `ray up` starts nodes at Google."""

    project: DnsName = "example-project"
    """Project id."""
    region: Word = "us-central1"
    """Region."""
    zone: Word = "us-central1-a"
    """Availability zone."""
    image: CloudName = (
        "projects/deeplearning-platform-release/global/images/family/"
        "common-cu129-ubuntu-2204-nvidia-580"
    )
    """Boot image with Docker and NVIDIA's driver."""
    head: Word = "n2-standard-4"
    """Machine type of the head."""
    cpu: Word = "n2-standard-8"
    """Machine type of CPU nodes; it ends in the number of its CPUs."""
    gpu: Word | None = None
    """Machine type of GPU nodes; null: the one with `gpu.count` GPUs of `gpu.type`."""
    service_account: CloudName | None = None
    """Service account that may use the bucket; null: the one that Ray makes."""


class SshConfig(Section):
    """Machines that are there, and how `ray up` reaches them."""

    user: Word = "ubuntu"
    """User; may use Docker."""
    key: HomePath = "~/.ssh/id_ed25519"
    """Private key on the machine that runs `ray up`."""
    head: HostName = "192.0.2.10"
    """Address of the head."""
    workers: list[HostName] = Field(default=["192.0.2.11", "192.0.2.12"], min_length=1)
    """Addresses of the others."""

    @field_validator("workers")
    @classmethod
    def _once(cls, workers: list[str]) -> list[str]:
        if len(set(workers)) < len(workers):
            raise ValueError("expected each address once")
        return workers


class SlurmConfig(Section):
    """What a Slurm job asks for; its nodes are those of `gpu`, or of `cpu` where there is none."""

    nodes: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Nodes; the first one is the head too."""
    time: Duration = 8 * 3600.0
    """Time limit; the job is put back into the queue before it, and goes on."""
    partition: Word | None = None
    """Partition; null: the default one."""
    account: Word | None = None
    """Account; null: the default one."""
    activate: AbsolutePath | None = "/shared/ray-mlc/.venv/bin/activate"
    """Script that brings `ray` and `ray-mlc` into the PATH of every node; null: they are there."""
    scratch: AbsolutePath = "/tmp"
    """Local disk of a node; a short path, or Ray's sockets do not fit."""
    stop_before: Duration = 300.0
    """How long before the time limit work is stopped: longer than `limits.grace`."""
    restarts: int = Field(default=10, ge=0, le=1000)
    """How often the job puts itself back into the queue."""

    @model_validator(mode="after")
    def _ordered(self) -> SlurmConfig:
        if self.time < self.stop_before + 60:
            raise ValueError("expected a time at least a minute longer than stop_before")
        if len(self.scratch) > 40:
            raise ValueError("expected a scratch of at most 40 characters")
        return self


class ClusterConfig(Section):
    """A cluster: `ray-mlc cluster render`."""

    kind: Literal["cluster"] = "cluster"
    """What the file is."""
    name: ClusterName = "ray-mlc"
    """Name of the cluster; what belongs to it is named after it."""
    namespace: DnsLabel = "ray-mlc"
    """Kubernetes namespace; it exists."""
    labels: Labels = Field(default_factory=dict)
    """Labels on everything that is made in Kubernetes, such as `team` or a cost center."""
    ray_version: RayVersion = RAY_VERSION
    """Version of Ray in the images."""
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    """What the nodes run."""
    storage: StorageConfig = Field(default_factory=StorageConfig)
    """Where corpora and results are."""
    volume: VolumeConfig | None = Field(default_factory=VolumeConfig)
    """Shared file system; null: none, and no training."""
    jobs: JobsConfig = Field(default_factory=JobsConfig)
    """What is run."""
    nightly: NightlyConfig = Field(default_factory=NightlyConfig)
    """When it is run."""
    auth: AuthConfig = Field(default_factory=AuthConfig)
    """Who may talk to Ray."""
    head: HeadConfig = Field(default_factory=HeadConfig)
    """The head."""
    cpu: CpuGroupConfig = Field(default_factory=CpuGroupConfig)
    """Nodes without GPUs."""
    gpu: GpuGroupConfig | None = Field(default_factory=GpuGroupConfig)
    """Nodes with GPUs; null: none."""
    idle_timeout: Duration = 300.0
    """How long a node is idle before it is given back."""
    aws: AwsConfig = Field(default_factory=AwsConfig)
    """`ray up` at AWS."""
    gcp: GcpConfig = Field(default_factory=GcpConfig)
    """`ray up` at Google."""
    ssh: SshConfig = Field(default_factory=SshConfig)
    """`ray up` on machines that are there."""
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)
    """Slurm."""

    @model_validator(mode="after")
    def _whole(self) -> ClusterConfig:
        if self.gpu is None and self.cpu.max < 1:
            raise ConfigError("cpu.max is 0 and gpu is null: a cluster needs nodes that work")
        root, mount = self.storage.root, self.volume.mount if self.volume else None
        if scheme_of(root) == "file" and not is_below(root, mount):
            raise ConfigError(
                f"storage.root is {root}: expected a bucket, or a folder below volume.mount"
                + (f" ({mount})" if mount else "")
                + ": other nodes do not see a local path"
            )
        return self


def is_below(path: str, mount: str | None) -> bool:
    """Whether a path is a mounted folder or in it, also where it goes up and down."""
    return mount is not None and f"{posixpath.normpath(path)}/".startswith(f"{mount}/")
