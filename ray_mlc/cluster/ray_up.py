"""Files for Ray's cluster launcher, `ray up`: AWS, Google, and machines that are there.

The launcher pastes settings into commands that it runs over SSH, so that what stands in them was
checked before (`names`). The token is a file of whoever runs `ray up`, and is copied by it.
"""

from __future__ import annotations

from typing import Any

from ray_mlc.cluster.config import KEEP_WORKERS, KEPT_MS, ClusterConfig
from ray_mlc.cluster.gpus import GPUS, gcp_cpus
from ray_mlc.cluster.jobs import GROUP_LABEL, NO_TRAINING, NotSeenError, score_job, train_job
from ray_mlc.cluster.rendered import Rendered
from ray_mlc.errors import ConfigError
from ray_mlc.storage import scheme_of

TOKEN = "~/.ray/auth_token"
"""Where Ray looks for a token, and where `ray get-auth-token --generate` writes it."""
HEAD = "head"
DISK_GB = 200


class NoMachineError(ConfigError):
    """A cloud has no type of machine with such GPUs, as far as is known here."""


def render_ray_up(config: ClusterConfig) -> Rendered:
    """The launcher's files and the jobs to submit; a cloud without such GPUs is left out.

    Raises:
        ConfigError: If a job file is wrong, or there is nothing to mount where a folder is named.
    """
    # machines of a cloud are bare: what they mount, they are told to
    cloud = config
    if config.volume is None or config.volume.nfs is None:
        if scheme_of(config.storage.root) == "file":
            raise ConfigError(
                f"storage.root is {config.storage.root}, and volume.nfs is not set: `ray up` has "
                "nothing to mount on machines of a cloud: set it, or name a bucket"
            )
        cloud = config.model_copy(update={"volume": None})
    files: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for name, launcher in (("aws.yaml", _aws), ("gcp.yaml", _gcp)):
        try:
            files[name] = [launcher(cloud)]
        except NoMachineError as reason:
            left_out[name] = str(reason)
    files["ssh.yaml"] = [_ssh(config)]
    machines = len(config.ssh.workers)
    for name, of, count in (("cloud", cloud, None), ("ssh", config, machines)):
        for command, job_of in (("score", score_job), ("train", train_job)):
            file = f"jobs/{name}-{command}.yaml"
            try:
                job = job_of(of, machines=count)
            except NotSeenError as reason:  # by machines of a cloud, where others may see it
                left_out[file] = str(reason)
            else:
                if job is None:
                    left_out[file] = NO_TRAINING
                else:
                    files[file] = [job]
    return Rendered(files, left_out)


def _aws(config: ClusterConfig) -> dict[str, Any]:
    aws = config.aws
    provider: dict[str, Any] = {
        "type": "aws",
        "region": aws.region,
        "cache_stopped_nodes": False,
    }
    if aws.zones:
        provider["availability_zone"] = ",".join(aws.zones)

    def node(instance: str, spot: bool) -> dict[str, Any]:
        disk = {"VolumeSize": DISK_GB, "VolumeType": "gp3", "DeleteOnTermination": True}
        found: dict[str, Any] = {
            "InstanceType": instance,
            "ImageId": aws.image,
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
            # a container asks the host for its role: one hop more than the default
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        }
        if spot:
            found["InstanceMarketOptions"] = {"MarketType": "spot"}
        if aws.instance_profile is not None:
            found["IamInstanceProfile"] = {"Arn": aws.instance_profile}
        return found

    types = {HEAD: _type({"CPU": 0}, node(aws.head, False), 0, 0, HEAD)}
    if config.cpu.max:
        spec = node(aws.cpu, config.cpu.spot)
        types["cpu"] = _type({}, spec, config.cpu.min, config.cpu.max, "cpu")
    if config.gpu is not None:
        instance = aws.gpu or _instance(config, "aws")
        spec = node(instance, config.gpu.spot)
        types["gpu"] = _type({}, spec, config.gpu.min, config.gpu.max, "gpu") | _cuda(config)
    return _launcher(config, provider, {"ssh_user": "ubuntu"}, types)


def _gcp(config: ClusterConfig) -> dict[str, Any]:
    gcp = config.gcp
    provider = {
        "type": "gcp",
        "region": gcp.region,
        "availability_zone": gcp.zone,
        "project_id": gcp.project,
    }

    def node(machine: str, spot: bool, gpus: bool) -> dict[str, Any]:
        disk = {"diskSizeGb": DISK_GB, "sourceImage": gcp.image}
        boot = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}
        found: dict[str, Any] = {"machineType": machine, "disks": [boot]}
        if spot:
            found["scheduling"] = {
                "provisioningModel": "SPOT",
                "instanceTerminationAction": "DELETE",
                "onHostMaintenance": "TERMINATE",
            }
        elif gpus:
            found["scheduling"] = {"onHostMaintenance": "TERMINATE"}
        if gpus:
            found["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        if gcp.service_account is not None:
            scope = "https://www.googleapis.com/auth/cloud-platform"
            found["serviceAccounts"] = [{"email": gcp.service_account, "scopes": [scope]}]
        return found

    types = {HEAD: _type({"CPU": 0}, node(gcp.head, False, False), 0, 0, HEAD)}
    if config.cpu.max:
        resources = {"CPU": gcp_cpus(gcp.cpu) or config.cpu.cpus}
        spec = node(gcp.cpu, config.cpu.spot, False)
        types["cpu"] = _type(resources, spec, config.cpu.min, config.cpu.max, "cpu")
    if (gpu := config.gpu) is not None:
        machine = gcp.gpu or _instance(config, "gcp")
        resources = {"CPU": gcp_cpus(machine) or gpu.cpus, "GPU": gpu.count}
        types["gpu"] = _type(resources, node(machine, gpu.spot, True), gpu.min, gpu.max, "gpu")
        types["gpu"] |= _cuda(config)
    return _launcher(config, provider, {"ssh_user": "ubuntu"}, types)


def _ssh(config: ClusterConfig) -> dict[str, Any]:
    ssh = config.ssh
    provider = {"type": "local", "head_ip": ssh.head, "worker_ips": list(ssh.workers)}
    found = _launcher(
        config, provider, {"ssh_user": ssh.user, "ssh_private_key": ssh.key}, types=None
    )
    if config.gpu is not None:
        del found["docker"]["image"]
        found["docker"] |= {
            "head_image": config.images.cpu,
            "worker_image": config.images.cuda,
            "worker_run_options": ["--gpus all"],
        }
    # the head is one of the machines, and has no node type that could say so
    found["head_start_ray_commands"][-1] += " --num-cpus=0"
    return found


def _launcher(
    config: ClusterConfig,
    provider: dict[str, Any],
    auth: dict[str, str],
    types: dict[str, Any] | None,
) -> dict[str, Any]:
    """What all of the launcher's files have in common."""
    volume = config.volume
    options = [
        "--ulimit nofile=65536:65536",
        f"--env RAY_AUTH_MODE={config.auth.mode}",
        "--env RAY_USAGE_STATS_ENABLED=0",
        f"--env {KEEP_WORKERS}={KEPT_MS}",
        f"--env RAY_JOB_STOP_WAIT_TIME_S={config.jobs.stop_wait:.0f}",
        f"--env RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S={config.jobs.startup:.0f}",
    ]
    if config.storage.endpoint is not None:
        options.append(f"--env AWS_ENDPOINT_URL={config.storage.endpoint}")
    if config.storage.region is not None:
        options.append(f"--env AWS_REGION={config.storage.region}")
    if volume is not None:
        options.append(f"--volume {volume.mount}:{volume.mount}")
    found: dict[str, Any] = {
        "cluster_name": config.name,
        "provider": provider,
        "auth": auth,
        "docker": {
            "image": config.images.cpu,
            "container_name": "ray_mlc",
            "pull_before_run": config.images.pull == "Always",
            "run_options": options,
        },
        "idle_timeout_minutes": max(1, round(config.idle_timeout / 60)),
        "initialization_commands": _mount(config),
        # nothing is installed on nodes: the image has it all
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            # the dashboard, where jobs are submitted, is reached by `ray dashboard`, over SSH
            "ulimit -n 65536; ray start --head --port=6379 --object-manager-port=8076 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
    }
    if config.auth.mode == "token":
        found["file_mounts"] = {TOKEN: TOKEN}
    if types is not None:
        found["max_workers"] = sum(kind["max_workers"] for kind in types.values())
        found["head_node_type"] = HEAD
        found["available_node_types"] = types
    return found


def _type(
    resources: dict[str, int], node: dict[str, Any], low: int, high: int, group: str
) -> dict[str, Any]:
    return {
        "resources": resources,
        "labels": {GROUP_LABEL: group},
        "min_workers": low,
        "max_workers": high,
        "node_config": node,
    }


def _cuda(config: ClusterConfig) -> dict[str, Any]:
    """Run the other image; wait for a driver that is installed at the first start."""
    wait = "timeout 600 bash -c 'until nvidia-smi >/dev/null 2>&1; do sleep 5; done'"
    return {
        # these replace those of the cluster
        "initialization_commands": [*_mount(config), wait],
        "docker": {"worker_image": config.images.cuda, "worker_run_options": ["--gpus all"]},
    }


def _mount(config: ClusterConfig) -> list[str]:
    """Commands that mount the volume on a machine, which may have it already."""
    volume = config.volume
    if volume is None or volume.nfs is None:
        return []
    return [
        f"sudo mkdir -p {volume.mount}; mountpoint -q {volume.mount} || "
        f"sudo mount -t nfs4 -o nfsvers=4.1,hard {volume.nfs} {volume.mount}"
    ]


def _instance(config: ClusterConfig, cloud: str) -> str:
    """The type of machine with so many GPUs of that kind."""
    gpu = config.gpu
    assert gpu is not None
    if gpu.type == "any":
        raise NoMachineError(f"gpu.type is any: name the kind, or the machine as {cloud}.gpu")
    table = GPUS[gpu.type].aws if cloud == "aws" else GPUS[gpu.type].gcp
    if gpu.count in table:
        return table[gpu.count]
    counts = " or ".join(map(str, table)) or "no number"
    raise NoMachineError(
        f"no machine with {gpu.count} {gpu.type} is known there, but with {counts} of them: "
        f"change gpu.count, or name the machine as {cloud}.gpu"
    )
