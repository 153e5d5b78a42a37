"""The pods of a Ray cluster of `cluster/kubernetes/`, started by podman as KubeRay's operator would
have Kubernetes start them.

The templates are the manifest's. Added is what the operator adds: the command `ray start` with the
group's parameters and limits, /dev/shm of the size of the memory, the token and the head's name.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Any

import yaml
from containers import IMAGE, Containers, wait_for
from processes import ROOT

HEAD, REDIS = "10.88.0.201", "10.88.0.202"
TOKEN, PASSWORD = "0123456789abcdef" * 4, "fedcba9876543210" * 4
BYTES = {"Gi": 2**30, "Mi": 2**20}
# What the operator has the kubelet ask (KubeRay's constants, `BaseWgetHealthCommand`).
ASK = "wget --tries 1 -T 10 -q -O- http://localhost:{port}/{path}"
PROBES = {
    "head": [(52365, "api/local_raylet_healthz"), (8265, "api/gcs_healthz")],
    "runners": [(52365, "api/local_raylet_healthz")],
}


def entrypoint(manifest: dict[str, Any], cpus: int, runners: int) -> str:
    """The RayJob's, with sizes of this machine and no GPU, as its header tells."""
    line = manifest["spec"]["entrypoint"]
    for before, after in (
        ("--cpus 32 --gpus 1", f"--cpus {cpus} --gpus 0"),
        ("--num-env-runners 32", f"--num-env-runners {runners}"),
        ("--num-gpus-per-learner 1", "--num-gpus-per-learner 0"),
    ):
        assert line.count(before) == 1
        line = line.replace(before, after)
    return line


class Cluster:
    """A manifest's head, workers and Redis.

    Args:
        size: of a worker: {'cpu': ..., 'memory': ...}.
    """

    def __init__(self, containers: Containers, name: str, size: dict[str, str]):
        self._containers = containers
        text = (ROOT / "cluster" / "kubernetes" / name).read_text()
        documents = list(yaml.safe_load_all(text.replace("REGISTRY/toolagent:0.1", IMAGE)))
        self.manifest, self._others = documents[0], documents[1:]
        self.spec = self.manifest["spec"].get("rayClusterSpec", self.manifest["spec"])
        groups = {group["groupName"]: group for group in self.spec["workerGroupSpecs"]}
        for resources in groups["runners"]["template"]["spec"]["containers"][0][
            "resources"
        ].values():
            resources.update(size)
        self._groups = groups | {"head": self.spec["headGroupSpec"]}
        self._service = f"{self.manifest['metadata']['name']}-head-svc"
        (claim,) = yaml.safe_load_all((ROOT / "cluster/kubernetes/results.yaml").read_text())
        self.results = containers.volume(claim["metadata"]["name"])
        self.results.chmod(0o2775)  # as Kubernetes does for fsGroup
        os.chown(self.results, 0, 1000)
        self._running: dict[str, str] = {}

    def start_head(self) -> None:
        environment, password = {"RAY_ADDRESS": "127.0.0.1:6379"}, {}
        if "gcsFaultToleranceOptions" in self.spec:
            environment["RAY_REDIS_ADDRESS"] = self.spec["gcsFaultToleranceOptions"]["redisAddress"]
            environment["REDIS_PASSWORD"] = PASSWORD
            password["redis-password"] = "$REDIS_PASSWORD"
            environment["RAY_external_storage_namespace"] = "toolagent-test"
        parameters = {
            **password,
            "head": "true",
            "dashboard-host": "0.0.0.0",
            # The operator's autoscaler is a container of its own, which asks Kubernetes.
            "no-monitor": "true",
        }
        self._start("head", environment, parameters, HEAD)
        wait_for(lambda: "success" in self.inside("head", self._probe(*PROBES["head"][1])))

    def start_worker(self, group: str) -> None:
        environment = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
        self._start(group, environment, {"address": f"{self._service}:6379"}, None)

    def start_redis(self, base: str) -> None:
        """The manifest's StatefulSet, with Debian's Redis in place of Redis's image."""
        (stateful,) = [each for each in self._others if each["kind"] == "StatefulSet"]
        template = stateful["spec"]["template"]["spec"]
        (container,) = template["containers"]
        user = template["securityContext"]["runAsUser"]
        self._containers.build_redis(base)
        self._running["redis"] = "toolagent-test-redis"
        self._containers.start(
            "toolagent-test-redis",
            *("--ip", REDIS, "--user", f"{user}:{user}", "--tmpfs", "/data:mode=1777"),
            *("--env", f"REDIS_PASSWORD={PASSWORD}", "--entrypoint", container["command"][0]),
            *("localhost/toolagent-test-redis", *container["command"][1:], *container["args"]),
        )

    def submit(self, name: str, line: str) -> None:
        """As KubeRay's submitter does, in a container with its limits."""
        address = f"http://{self._service}:8265"
        job = f"--address {address} --submission-id {name}"
        command = (
            f"if ! ray job status --address {address} {name} >/dev/null 2>&1 ; "
            f"then ray job submit {job} --no-wait -- {line} ; fi ; "
            f"ray job logs --address {address} --follow {name}"
        )
        self._containers.start(
            name,
            *("--cpus", "1", "--memory", "1g", *self._common()),
            *(IMAGE, "/bin/bash", "-ce", "--", command),
        )

    def inside(self, group: str, line: str) -> str:
        """What a command in that pod says."""
        name = self._running[group]
        return self._containers.podman("exec", name, "bash", "-c", line, check=False)

    def env_runners(self, group: str) -> int:
        found = self.inside(group, "grep -lz ^ray::BatchedEnvRunner /proc/[0-9]*/cmdline | wc -l")
        return int(found.splitlines()[-1])

    def probes(self) -> list[tuple[str, str]]:
        return [(group, self._probe(*probe)) for group in PROBES for probe in PROBES[group]]

    def _probe(self, port: int, path: str) -> str:
        return ASK.format(port=port, path=path)

    def kill_head(self) -> None:
        self._containers.podman("rm", "--force", "--time", "0", self._running.pop("head"))

    def end(self) -> None:
        for name in self._running.values():
            self._containers.podman("rm", "--force", "--time", "0", name)

    def _common(self) -> list[str]:
        return [
            *("--add-host", f"{self._service}:{HEAD}", "--add-host", f"toolagent-redis:{REDIS}"),
            *("--env", "RAY_AUTH_MODE=token", "--env", f"RAY_AUTH_TOKEN={TOKEN}"),
        ]

    def _start(
        self,
        group: str,
        environment: dict[str, str],
        parameters: dict[str, str],
        address: str | None,
    ) -> None:
        given = copy.deepcopy(self._groups[group])
        template = given["template"]["spec"]
        (container,) = template["containers"]
        limits = container["resources"]["limits"]
        memory = _bytes(limits["memory"])
        parameters = {
            "block": "true",
            "dashboard-agent-listen-port": "52365",
            "memory": str(memory),
            "metrics-export-port": "8080",
            "num-cpus": str(limits["cpu"]),
            **parameters,
            **given["rayStartParams"],
        }
        flags = " ".join(
            f"--{key}" if value == "true" else f"--{key}={value}"
            for key, value in parameters.items()
        )
        environment = environment | {
            each["name"]: each["value"] for each in container.get("env", []) if "value" in each
        }
        volumes = {each["name"]: each for each in template.get("volumes", [])}
        mounts = []
        for mount in container.get("volumeMounts", []):
            claim = volumes[mount["name"]]["persistentVolumeClaim"]["claimName"]
            mounts += ["--volume", f"{claim}:{mount['mountPath']}"]
        group_of_files = template.get("securityContext", {}).get("fsGroup")
        name = f"toolagent-test-{group}"
        self._containers.start(
            name,
            *("--cpus", str(limits["cpu"]), "--memory", str(memory), "--shm-size", str(memory)),
            *(("--group-add", str(group_of_files)) if group_of_files else ()),
            *(("--ip", address) if address else ()),
            *(part for key, value in environment.items() for part in ("--env", f"{key}={value}")),
            *(*self._common(), *mounts, container["image"]),
            *("/bin/bash", "-c", "--", f"ulimit -n 65536; ray start {flags}"),
        )
        self._running[group] = name


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", text).groups()
    return int(number) * BYTES[unit]
