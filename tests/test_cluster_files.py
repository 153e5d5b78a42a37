"""The files in `cluster/`, each held to the strictest check there is without a cluster."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from kubernetes_schema import faults

from toolagent.run.__main__ import command as run_command

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
RAY_UP = ["aws.yaml", "gcp.yaml", "onpremise.yaml"]
MANIFESTS = [
    "kubernetes/raycluster.yaml",
    "kubernetes/rayjob.yaml",
    "kubernetes/results.yaml",
    "kubernetes/rayservice.yaml",
]
SCRIPTS = ["slurm.sh", "submit.sh"]
OTHERS = ["Containerfile", "with_nodes.py", "README.md"]  # test_documents.py reads the last
MONITORING = [  # read and run by test_monitoring.py
    "monitoring/alerts.yml",
    "monitoring/alerts_test.yml",
    "monitoring/grafana/provisioning/dashboards/toolagent.yml",
    "monitoring/grafana/provisioning/datasources/toolagent.yml",
    "monitoring/grafana/toolagent.json",
    "monitoring/prometheus.yml",
]


def text(name):
    return (CLUSTER / name).read_text(encoding="utf-8")


def test_every_file_is_checked_here():
    there = {
        str(path.relative_to(CLUSTER))
        for path in CLUSTER.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there == {*RAY_UP, *MANIFESTS, *SCRIPTS, *OTHERS, *MONITORING}


def run_flags(content):
    """The flags of `toolagent.run` in a file's commands, those in its comments included."""
    calls = re.findall(
        r"(?:toolagent\.run|submit\.sh .*? --|sbatch cluster/slurm\.sh) (.*)",
        re.sub(r"\\\n#?\s*", "", content),
    )
    return {flag for call in calls for flag in re.findall(r"--[a-z][a-z-]+", call)}


def test_the_flags_in_commands_exist():
    known = {option for parameter in run_command.params for option in parameter.opts}
    content = "\n".join(text(name) for name in [*RAY_UP, *MANIFESTS, *SCRIPTS, "Containerfile"])
    content += documents("kubernetes/rayjob.yaml")[0]["spec"]["entrypoint"]
    used = run_flags(content)
    assert {"--num-env-runners", "--num-gpus-per-learner", "--resume"} <= used
    assert used - known == set()


# `ray up`: Ray's own validator. It leaves the cloud's own part (node_config) alone.


def ray_up_fault(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (Exception, SystemExit) as error:  # click's abort is neither ValueError nor the like
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts(name):
    assert ray_up_fault(yaml.safe_load(text(name))) is None


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_asks_for_a_token_and_keeps_the_dashboard_on_loopback(name):
    config = yaml.safe_load(text(name))
    assert any(path.endswith("/.ray/auth_token") for path in config["file_mounts"])
    for role in ("head", "worker"):
        commands = config[f"{role}_start_ray_commands"]
        assert commands[0] == "chmod 600 ~/.ray/auth_token"
        start = next(line for line in commands if "ray start" in line)
        assert "RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", RAY_UP)
def test_file_mounts_exist_in_a_checkout(name):
    mounts = yaml.safe_load(text(name))["file_mounts"].values()
    local = {path for path in mounts if not path.startswith("~")}
    assert all((ROOT / path).exists() for path in local)
    # What building the package reads: its own metadata and what goes into the wheel.
    assert local == {"toolagent", "rllib_configs", "pyproject.toml", "README.md", "LICENSE"}


# Kubernetes: the schema of the custom resource. It also holds schemas of a pod, a service and a
# volume claim, which the other manifests are checked against.


@pytest.fixture(scope="module")
def schemas():
    folder = Path(__file__).parent / "kuberay"
    result = {
        kind: json.loads((folder / f"{kind}.v1.schema.json").read_text(encoding="utf-8"))
        for kind in ("RayCluster", "RayJob", "RayService")
    }
    head = result["RayCluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    pod = head["template"]
    volume = pod["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volume["ephemeral"]["properties"]["volumeClaimTemplate"]
    names = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    result["PersistentVolumeClaim"] = {
        "type": "object",
        "properties": {**names, **claim["properties"]},
        "required": ["spec"],
    }
    result["Service"] = head["headService"]
    result["StatefulSet"] = {
        "type": "object",
        "properties": {
            **names,
            "metadata": {"type": "object"},
            "spec": {
                "type": "object",
                "required": ["selector", "template", "serviceName"],
                "properties": {
                    "serviceName": {"type": "string"},
                    "replicas": {"type": "integer"},
                    "selector": claim["properties"]["spec"]["properties"]["selector"],
                    "template": pod,
                    "volumeClaimTemplates": {"type": "array", "items": claim},
                },
            },
        },
    }
    return result


API_VERSIONS = {
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "RayService": "ray.io/v1",
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "StatefulSet": "apps/v1",
}


def documents(name):
    return list(yaml.safe_load_all(text(name)))


def ray_cluster(name):
    spec = documents(name)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_their_schemas(name, schemas):
    for manifest in documents(name):
        kind = manifest["kind"]
        assert manifest["apiVersion"] == API_VERSIONS[kind]
        assert faults(manifest, schemas[kind]) == []


def _at(manifest, *path):
    for key in path:
        manifest = manifest[key]
    return manifest


WORKER = ("spec", "workerGroupSpecs", 0)
CONTAINER = ("spec", "headGroupSpec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    "path, key, value",
    [
        (("spec",), "rayVersoin", "2.60.0"),
        (("spec", "authOptions"), "mode", "password"),
        (WORKER, "minReplicas", "0"),
        (CONTAINER, "ports", [{"name": "dashboard"}]),
        (("metadata",), "name", "Not A Name"),
    ],
)
def test_schema_catches(schemas, path, key, value):
    manifest = documents("kubernetes/raycluster.yaml")[0]
    _at(manifest, *path)[key] = value
    assert faults(manifest, schemas["RayCluster"]) != []


@pytest.mark.parametrize("name", MANIFESTS[:2])
def test_ray_clusters_on_kubernetes(name):
    spec = ray_cluster(name)
    assert spec["authOptions"] == {"mode": "token"}  # the operator makes the secret
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    # Pods are never restarted in place under autoscaler v2: the operator refuses that.
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert all("restartPolicy" not in group["template"]["spec"] for group in groups)
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]
    ]
    assert claims == [documents("kubernetes/results.yaml")[0]["metadata"]["name"]]


# Of the head: how long a stopped job may take, and how soon a node that is gone is given up.
HEAD_SETTINGS = {
    "RAY_JOB_STOP_WAIT_TIME_S": "300",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
}


@pytest.mark.parametrize("name", [*RAY_UP, *MANIFESTS[:2]])
def test_heads_wait_for_a_stopped_job_and_not_for_a_node_that_is_gone(name):
    if name in RAY_UP:
        start = yaml.safe_load(text(name))["head_start_ray_commands"][-1]
        given = dict(re.findall(r"\b(RAY_\w+)=(\S+)", start))
    else:
        (container,) = ray_cluster(name)["headGroupSpec"]["template"]["spec"]["containers"]
        given = {each["name"]: each["value"] for each in container["env"]}
    assert given.items() >= HEAD_SETTINGS.items()


@pytest.mark.parametrize("name", [*RAY_UP, "kubernetes/raycluster.yaml", "README.md"])
def test_where_jobs_are_submitted_ray_s_own_commands_find_the_cluster(name):
    lines = text(name).splitlines()
    (setting,) = (at for at, line in enumerate(lines) if "RAY_API_SERVER_ADDRESS=" in line)
    (submit,) = (at for at, line in enumerate(lines) if re.match(r"(# +)?cluster/submit.sh", line))
    (stop,) = (at for at, line in enumerate(lines) if re.match(r"(# +)?ray job stop", line))
    assert setting < submit < stop


def test_a_ray_job_is_not_retried_and_has_time_for_its_run(schemas):
    from toolagent.config import load_settings

    spec = documents("kubernetes/rayjob.yaml")[0]["spec"]
    defaults = schemas["RayJob"]["properties"]["spec"]["properties"]
    assert spec.get("backoffLimit", defaults["backoffLimit"]["default"]) == 0
    config = re.search(r"--config (\S+)", spec["entrypoint"])[1]
    runs_s = load_settings(config, ()).run.stop_time_s
    waits_s = 1800  # with_nodes.py
    assert spec["activeDeadlineSeconds"] > 2 * (waits_s + runs_s)


def rayservice():
    (manifest,) = documents("kubernetes/rayservice.yaml")
    return manifest["spec"], yaml.safe_load(manifest["spec"]["serveConfigV2"])


def test_the_service_s_cluster_asks_for_a_token_and_can_read_the_results():
    cluster = rayservice()[0]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    (group,) = cluster["workerGroupSpecs"]
    pod = group["template"]["spec"]
    claim = documents("kubernetes/results.yaml")[0]["metadata"]["name"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["readOnly"]
    (checkpoint,) = rayservice()[1]["applications"][0]["args"]["checkpoints"]
    assert checkpoint.startswith(mount["mountPath"] + "/")
    assert f"--output-dir {checkpoint}" in text("kubernetes/rayjob.yaml")


def test_the_service_s_configuration_is_one_of_ray_serve_s():
    """Serve's own schema, and the builder that it names, with the arguments that it gives."""
    from ray.serve.schema import ServeDeploySchema

    from toolagent.serve import deployment

    spec, config = rayservice()
    parsed = ServeDeploySchema.model_validate(config)
    (application,) = parsed.applications
    module, _, function = application.import_path.partition(":")
    assert module == deployment.__name__ and getattr(deployment, function)
    built = deployment.application(application.args)
    options = built._bound_deployment.ray_actor_options
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert options["num_cpus"] * application.args["num_replicas"] <= cpus * group["maxReplicas"]
    ports = {
        port["containerPort"]
        for port in group["template"]["spec"]["containers"][0]["ports"]
        if port["name"] == "serve"
    }
    assert ports == {config["http_options"]["port"]}
    assert set(config["applications"][0]) <= set(type(application).model_fields)
    config["applications"][0]["args"] = "none"
    with pytest.raises(ValueError, match="args"):
        ServeDeploySchema.model_validate(config)


def test_the_fault_tolerance_refers_to_the_redis_beside_it():
    cluster, service, redis = documents("kubernetes/raycluster.yaml")
    options = cluster["spec"]["gcsFaultToleranceOptions"]
    port = service["spec"]["ports"][0]["port"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port}"
    template = redis["spec"]["template"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    container = template["spec"]["containers"][0]
    assert container["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert container["ports"][0]["containerPort"] == port


# Placement, as the code asks: an env runner for one CPU, a GPU learner for a GPU and no CPU.


def node_types(name):
    """Name -> (CPUs, GPUs) that a node of this kind offers to Ray."""
    if name.startswith("kubernetes/"):
        spec = ray_cluster(name)
        groups = {"head": spec["headGroupSpec"]}
        groups |= {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        result = {}
        for group, given in groups.items():
            limits = given["template"]["spec"]["containers"][0]["resources"]["limits"]
            cpus = given["rayStartParams"].get("num-cpus", limits["cpu"])
            result[group] = (int(cpus), int(limits.get("nvidia.com/gpu", 0)))
        return result
    types = yaml.safe_load(text(name))["available_node_types"]
    return {
        key: (given["resources"]["CPU"], given["resources"].get("GPU", 0))
        for key, given in types.items()
    }


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", *MANIFESTS[:2]])
def test_learners_and_runners_cannot_take_each_others_place(name):
    kinds = node_types(name)
    assert all(cpus == 0 or gpus == 0 for cpus, gpus in kinds.values())
    assert kinds["head"][0] == 0 and kinds["runners"][0] > 0
    assert sum(gpus > 0 for _, gpus in kinds.values()) == 1


def test_what_actors_ask_for():
    from toolagent.config import build_algorithm_config, load_settings

    settings = load_settings(None, ("learners.num_learners=1", "learners.num_gpus_per_learner=1"))
    config = build_algorithm_config(settings)
    assert config.num_cpus_per_env_runner == 1 and config.num_gpus_per_env_runner == 0
    assert config.num_cpus_per_learner == "auto"  # RLlib: 0 with a GPU, else 1
    assert config.custom_resources_per_env_runner == {}


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", *MANIFESTS[:2]])
def test_groups_can_grow_to_what_the_commands_ask_for(name):
    asked = re.search(r"--cpus (\d+) --gpus (\d+)", text(name))
    cpus, gpus = (int(number) for number in asked.groups())
    if name.startswith("kubernetes/"):
        most = {g["groupName"]: g["maxReplicas"] for g in ray_cluster(name)["workerGroupSpecs"]}
    else:
        config = yaml.safe_load(text(name))
        types = config["available_node_types"]
        most = {key: given.get("max_workers", 0) for key, given in types.items()}
        assert sum(most.values()) <= config["max_workers"]
    most["head"] = 1
    kinds = node_types(name)
    assert sum(most[key] * kinds[key][0] for key in kinds) >= cpus
    assert sum(most[key] * kinds[key][1] for key in kinds) >= gpus


# Versions and secrets, in all files.


def test_everything_is_the_ray_that_is_tested():
    import ray

    minor = ".".join(ray.__version__.split(".")[:2])
    for name in [*RAY_UP, *MANIFESTS, "Containerfile"]:
        images = re.findall(r"rayproject/ray:(\S+)", text(name))
        versions = re.findall(r"rayVersion: (\S+)", text(name))
        assert all(tag.startswith(f"{minor}.") for tag in images), name
        assert all(version.strip('"').startswith(f"{minor}.") for version in versions), name
    assert f'"ray[default,rllib]=={minor}.*"' in (ROOT / "pyproject.toml").read_text()


SECRET = re.compile(
    r"[0-9a-f]{32}|AKIA[0-9A-Z]{16}|-----BEGIN|kind: Secret\b|"
    r"(?i:password|auth_token|secret)[ \t]*[:=][ \t]*['\"]?[A-Za-z0-9+/]{8}"
)


@pytest.mark.parametrize("name", [*RAY_UP, *MANIFESTS, *SCRIPTS, *OTHERS])
def test_no_file_holds_a_secret(name):
    assert not SECRET.search(text(name))


# Shell and container linting.


def linter(name):
    """From this environment's packages, as `pip install -e '.[dev]'` puts them there."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is missing; pip install -e '.[dev]'"
    return found


def shellcheck(content):
    arguments = [linter("shellcheck"), "--shell=bash", "--severity=info", "-"]
    return subprocess.run(arguments, input=content, capture_output=True, text=True).stdout


def hadolint(content):
    arguments = [linter("hadolint"), "--no-color", "--failure-threshold=info", "-"]
    return subprocess.run(arguments, input=content, capture_output=True, text=True).stdout


@pytest.mark.full
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_clean(name):
    assert shellcheck(text(name)) == ""
    assert os.access(CLUSTER / name, os.X_OK)
    assert "set -euo pipefail" in text(name)


@pytest.mark.full
@pytest.mark.parametrize("name", RAY_UP)
def test_commands_in_yaml_are_clean(name):
    config = yaml.safe_load(text(name))
    commands = [
        command for key in config if key.endswith("_commands") for command in config[key]
    ] + [
        command
        for kind in config.get("available_node_types", {}).values()
        for command in kind.get("worker_setup_commands", [])
    ]
    assert len(commands) >= 7
    # A venv on another machine is sourced; RAY_HEAD_IP is set by Ray.
    script = "RAY_HEAD_IP=192.0.2.1\n# shellcheck disable=SC1090,SC1091\n{\n%s\n}\n"
    script %= "\n".join(commands)
    assert shellcheck(script) == ""


@pytest.mark.full
def test_the_container_recipe_is_clean():
    assert hadolint(text("Containerfile")) == ""


def test_the_container_recipe_copies_what_there_is():
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", text("Containerfile"), flags=re.M)
    paths = [path for group in copied for path in group.split()]
    assert "cluster/with_nodes.py" in paths and all((ROOT / path).exists() for path in paths)


# submit.sh and with_nodes.py, run.


@pytest.fixture
def fake_ray(tmp_path):
    """A `ray` command that prints its arguments, first on the PATH."""
    script = tmp_path / "ray"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$RAY_AUTH_MODE" "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def submit(environment, *arguments):
    return subprocess.run(
        [CLUSTER / "submit.sh", *arguments], env=environment, capture_output=True, text=True
    )


def test_submit(fake_ray):
    environment = {k: v for k, v in fake_ray.items() if not k.startswith("RAY_")}
    done = submit(
        environment, "--cpus=3", "--gpus", "0", "--", "--seed", "1", "--output-dir", "/a b"
    )
    assert done.returncode == 0
    words = done.stdout.splitlines()
    assert words[:4] == ["token", "job", "submit", "--address"]
    assert words[4] == "http://127.0.0.1:8265"
    tail = ["python", "-m", "toolagent.run", "--seed", "1", "--output-dir", "/a b"]
    assert words[words.index("--") + 1 :] == [
        *["python", "with_nodes.py", "--cwd", "/", "--cpus", "3", "--gpus", "0", "--"],
        *tail,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected"),
        ("--cpu 3 -- --output-dir /a", "no option '--cpu' before the --"),
        ("--gpus=-1 -- --output-dir /a", "--gpus: expected a number, got '-1'"),
        ("-- --output-dir runs/a", "absolute path"),
    ],
)
def test_submit_refuses(fake_ray, arguments, message):
    done = submit(fake_ray, *arguments.split())
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_submit_says_that_ray_is_missing(tmp_path):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    (tmp_path / "bash").symlink_to(shutil.which("bash"))
    done = submit({"PATH": str(tmp_path)}, "--", "--output-dir", "/a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no command 'ray' here")


FAKE_RAY = '''
"""Stands in for Ray: writes down what is asked of it; nodes come at the second look."""
import ctypes, os, signal, sys, types
looks, asked = [0], os.environ["ASKED"]
def note(line):
    with open(asked, "a") as file:
        file.write(line + "\\n")
def request_resources(bundles):
    note("request " + " ".join(str(b) for b in bundles))
def cluster_resources():
    looks[0] += 1
    return {"CPU": 2.0, "GPU": 1.0} if looks[0] > 1 else {}
initialized = [False]
def init(**options):
    initialized[0] = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does
def shutdown():
    initialized[0] = False
    ctypes.CDLL(None).signal(signal.SIGTERM, None)  # the default again, as Ray does
def is_initialized():
    return initialized[0]
sdk = types.ModuleType("ray.autoscaler.sdk")
sdk.request_resources = request_resources
sys.modules["ray.autoscaler"] = types.ModuleType("ray.autoscaler")
sys.modules["ray.autoscaler.sdk"] = sdk
'''


@pytest.fixture
def with_nodes(tmp_path):
    """Starts with_nodes.py against a stand-in for Ray; what was asked of it is in `asked`."""
    (tmp_path / "ray.py").write_text(FAKE_RAY)
    asked = tmp_path / "asked"
    quick = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(CLUSTER)!r}]; import with_nodes; "
    quick += "with_nodes.POLL_S = 0.01; sys.exit(with_nodes.main(sys.argv[1:]))"

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-c", quick, *arguments],
            env={**os.environ, "ASKED": str(asked)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start, asked


def test_nodes_are_asked_for_before_the_command_and_let_go_after(with_nodes):
    start, asked = with_nodes
    tell = f"open({str(asked)!r}, 'a').write('command\\n'); raise SystemExit(7)"
    process = start("--cpus", "2", "--gpus", "1", "--", sys.executable, "-c", tell)
    out, err = process.communicate()
    assert (process.returncode, err) == (7, "")
    assert "waiting for nodes: 0 of 2 CPUs, 0 of 1 GPUs" in out
    assert asked.read_text().splitlines() == [
        "request {'CPU': 1} {'CPU': 1} {'GPU': 1}",
        "command",
        "request ",
    ]


def test_nodes_that_do_not_come(with_nodes):
    start, asked = with_nodes
    process = start("--cpus", "3", "--wait-s", "0.05", "--", "echo", "no")
    out, err = process.communicate()
    assert process.returncode == 1 and "no\n" not in out
    assert "error: after 0.05 s the cluster has 2 of 3 CPUs" in err
    assert asked.read_text().splitlines()[-1] == "request "


def test_a_signal_is_left_to_the_command(with_nodes):
    """The job manager signals both processes; the command must not get a second one from here."""
    start, asked = with_nodes
    script = (
        "import signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
        f"open({str(asked)!r}, 'a').write('ready\\n')\n"
        "end = time.time() + 1\n"
        "while time.time() < end: time.sleep(0.05)\n"
        "sys.exit(40 + len(got))\n"
    )
    process = start("--", sys.executable, "-c", script)
    deadline = time.time() + 60
    while not (asked.exists() and "ready" in asked.read_text()) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 40
    assert asked.read_text().splitlines()[-1] == "request "


def test_a_signal_ends_the_waiting(with_nodes):
    start, asked = with_nodes
    process = start("--cpus", "99", "--", "true")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130
    assert asked.read_text().splitlines()[-1] == "request "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cpus -1 -- true", "'-1' is no number from 0 to 100,000"),
        ("--wait-s nan -- true", "'nan' is no number of seconds"),
        ("--cpu-s 3 -- true", "--cpu-s"),
        ("--cpus 2", "required: command"),
        ("--cpus 2 -- no-such-command", "there is no command 'no-such-command'"),
    ],
)
def test_with_nodes_refuses(with_nodes, arguments, message):
    start, asked = with_nodes
    process = start(*arguments.split())
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not asked.exists()


def test_with_nodes_says_that_there_is_no_cluster(with_nodes, tmp_path):
    start, asked = with_nodes
    (tmp_path / "ray.py").write_text(
        "def init(**options):\n    raise ConnectionError('Could not find any running\\nRay')\n"
    )
    process = start("--cpus", "2", "--", "true")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    expected = "error: there is no Ray cluster to join (Could not find any running Ray)\n"
    assert err == expected and not asked.exists()
