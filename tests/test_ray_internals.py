"""`toolagent.cluster.ray_internals` is the one file that touches Ray's private parts, and each of
its entries is still needed: these tests fail where a version of Ray has a public way, or another
private one.
"""

import ast
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
from processes import WAIT_S, own_environment

from toolagent.cluster import ray_internals

PACKAGE = Path(ray_internals.__file__).parents[1]
# A module with a private part in its name, or a private attribute of an object of Ray's.
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._[a-z]|\bray(\.\w+)* import _\w|\bray\.core\.generated|"
    r"(?<!\bself)\._(worker_manager|remote_args|get_backend_config|weights_seq_no|storage|logdir)\b"
)
ENTRIES = {
    "actor_manager",
    "learner_manager",
    "weights_number",
    "TemporaryLogFolder",
    "spread_env_runners",
    "learner_backend",
    "loopback_only",
    "lean_node",
    "start_dashboard",
    "dashboard_address",
    "own_sigterm_handler",
    "shut_down_beside",
    "cpus_that_ray_sees",
    "keep_replicas_on_loopback",
    "control_service",
    "node_ids_here",
    "deprecated_default",
    "trial_without_values",
}


def test_no_other_file_touches_ray_s_private_parts():
    found = {
        str(path.relative_to(PACKAGE)): _private(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
        if path != Path(ray_internals.__file__)
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_tune_makes_trials_from_the_space_alone(tmp_path):
    from ray.tune.experiment import Experiment, config_parser

    assert not [name for name in dir(config_parser) if "trial" in name and name[0] != "_"]
    experiment = Experiment("search", "PPO", config={"lr": 1}, storage_path=str(tmp_path))
    trial = ray_internals.trial_without_values(
        experiment.spec, config_parser._make_parser(), "first"
    )
    assert (trial.trial_id, trial.config) == ("first", {})


def test_every_entry_is_tested_here():
    public = {
        name
        for name, value in vars(ray_internals).items()
        if getattr(value, "__module__", None) == ray_internals.__name__ and name[0] != "_"
    }
    assert public == ENTRIES


def _private(text):
    return [line.strip() for line in text.splitlines() if PRIVATE.search(line)]


def test_rllib_s_groups_have_no_public_way_to_their_actors(cluster):
    from ray.rllib.core.learner.learner_group import LearnerGroup
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    for group in (LearnerGroup, EnvRunnerGroup):
        public = [name for name in dir(group) if not name.startswith("_")]
        assert not [name for name in public if "actor" in name]
    assert not [name for name in dir(LearnerGroup) if "healthy" in name and name[0] != "_"]


def test_the_managers_of_an_algorithm_and_its_log_folder(cluster, tmp_path, monkeypatch):
    """One algorithm for several entries: building one takes seconds."""
    from toolagent.config import build_algorithm_config, load_settings
    from toolagent.curriculum.callback import CurriculumCallback

    home = tmp_path / "ray_results"
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(home))
    overrides = [
        "env_runners={num_env_runners: 1, num_envs_per_env_runner: 4}",
        "training={train_batch_size_per_learner: 20, minibatch_size: 10, num_epochs: 1}",
    ]
    config = build_algorithm_config(load_settings("ppo", overrides))
    with ray_internals.spread_env_runners():
        algorithm = config.build_algo()
    try:
        manager = ray_internals.actor_manager(algorithm.env_runner_group)
        assert ray.get(manager.actors()[1].ping.remote()) == "pong"
        assert ray_internals.learner_manager(algorithm) is None  # there is a local one only
        strategy = algorithm.env_runner_group._remote_args["scheduling_strategy"]
        assert strategy == "SPREAD"
        assert any(isinstance(callback, CurriculumCallback) for callback in algorithm.callbacks)
        numbers = algorithm.env_runner_group.foreach_env_runner(ray_internals.weights_number)
        assert all(type(number) is int for number in numbers)
        assert not home.exists()
        folder = algorithm.logdir
        assert os.path.isdir(folder)
    finally:
        algorithm.stop()
    del algorithm
    assert not os.path.exists(folder)


def test_rllib_makes_its_log_folder_at_home(tmp_path, monkeypatch):
    from ray.tune import Trainable

    class Plain(Trainable):
        pass

    class Ours(ray_internals.TemporaryLogFolder, Trainable):
        pass

    home = tmp_path / "ray_results"
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(home))
    assert not Path(Ours().logdir).is_relative_to(home)
    assert not home.exists()
    assert Path(Plain().logdir).is_relative_to(home)


def test_rllib_has_no_options_for_placing_env_runners_and_for_the_backend():
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    for method in (AlgorithmConfig.env_runners, AlgorithmConfig.learners):
        names = inspect.signature(method).parameters
        assert not [n for n in names if re.search("schedul|placement|backend|process_group", n)]


def test_learners_join_by_the_backend_that_is_given():
    from ray.rllib.core.learner import learner_group
    from ray.rllib.core.learner.torch.torch_learner import TorchLearner

    ours = object()
    with ray_internals.learner_backend(lambda: ours):
        assert learner_group._get_backend_config(TorchLearner) is ours
    assert learner_group._get_backend_config(TorchLearner) is not ours
    # It is asked by the group, and nobody passes the group another one.
    assert "_get_backend_config(" in inspect.getsource(learner_group.LearnerGroup.__init__)


SIGTERM = """
import contextlib, os, signal, sys
from toolagent.cluster.ray_internals import own_sigterm_handler, shut_down_beside
import ray
from ray._private import utils
calls = []
real = utils.set_sigterm_handler
utils.set_sigterm_handler = lambda handler: calls.append(handler) or real(handler)
signal.signal(signal.SIGTERM, lambda *_: None)
with own_sigterm_handler() if sys.argv[1] == "ours" else contextlib.nullcontext():
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(len(calls))
if sys.argv[1] == "ours":
    ending = shut_down_beside()
    assert ending.is_alive() and not ray.is_initialized()
    os.kill(os.getpid(), signal.SIGTERM)
    ending.join()
with own_sigterm_handler() if sys.argv[1] == "ours" else contextlib.nullcontext():
    ray.shutdown()
if sys.argv[1] == "ours":
    os.kill(os.getpid(), signal.SIGTERM)  # ends it where `ray.shutdown()` has the last word
"""


@pytest.mark.slow
@pytest.mark.parametrize(("handler", "calls"), [("ray's", "1"), ("ours", "0")])
def test_ray_init_takes_sigterm_unless_it_is_kept(handler, calls):
    assert _run([sys.executable, "-c", SIGTERM, handler]).split()[-1] == calls


def _run(command):
    """What it prints on stdout."""
    return subprocess.run(
        command, env=own_environment(), capture_output=True, text=True, timeout=WAIT_S, check=True
    ).stdout


def test_a_replica_s_port_is_opened_on_all_interfaces():
    from ray.serve._private import replica

    assert "[::]" in inspect.getsource(replica)
    assert "add_port_to_grpc_server(" in inspect.getsource(replica)


def test_the_control_service_tells_version_and_nodes(cluster):
    address = ray.get_runtime_context().gcs_address
    with ray_internals.control_service(address) as (service, messages):
        assert service.CheckAlive(messages.CheckAliveRequest(), timeout=5).ray_version
        reply = service.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=5)
    ids = {node.node_id.hex() for node in reply.node_info_list}
    assert ids == {ray.get_runtime_context().get_node_id()}
    assert ids <= ray_internals.node_ids_here()


@pytest.mark.slow
def test_ray_reads_the_switch_for_clusters_at_its_import(monkeypatch):
    from ray._private import ray_constants, services, worker

    monkeypatch.setattr(worker, "_global_node", None)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr(services, "node_ip_address_from_perspective", lambda _: "192.0.2.1")
    assert services.get_node_ip_address() == "192.0.2.1"
    with ray_internals.loopback_only():
        assert services.get_node_ip_address() in ("127.0.0.1", "::1")


def test_ray_offers_the_cpus_that_it_sees_whatever_the_affinity():
    offered = (
        "import ray; ray.init('local', include_dashboard=False, log_to_driver=False); "
        "print(ray.cluster_resources()['CPU'])"
    )
    out = _run(["taskset", "-c", "0", sys.executable, "-c", offered])
    assert float(out.split()[-1]) == ray_internals.cpus_that_ray_sees()


def test_the_default_of_deprecated_arguments_has_no_public_name():
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    defaults = [
        parameter.default
        for _, method in inspect.getmembers(AlgorithmConfig, inspect.isfunction)
        for parameter in inspect.signature(method).parameters.values()
    ]
    assert ray_internals.deprecated_default() in defaults


def test_a_handler_of_nobody_is_left_to_ray(monkeypatch):
    from ray._private import utils

    real = utils.set_sigterm_handler
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    with ray_internals.own_sigterm_handler():
        assert utils.set_sigterm_handler is real


def test_the_dashboard_s_packages_are_those_that_ray_looks_for():
    from ray.dashboard import optional_deps

    tree = ast.parse(Path(str(optional_deps.__file__)).read_text(encoding="utf-8"))
    names = [
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    ]
    names += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} == set(ray_internals._DASHBOARD_PACKAGES)


@pytest.mark.slow
def test_a_lean_node_starts_what_is_of_use_and_does_not_wait_for_its_dashboard():
    from toolagent.cluster.ray_session import Preload, ray_session

    with ray_session(None, dashboard=True, preload=Preload(1, ("wave",))) as cluster:

        @ray.remote
        class Actor:
            def imported(self):
                return "wave" in sys.modules

        actor = Actor.remote()
        assert ray.get(actor.imported.remote())
        raylet = next(c for c in psutil.Process().children() if c.name() == "raylet")
        assert len(raylet.children()) == 3  # two of them agents
        assert "--listen-port=0" in " ".join(raylet.cmdline())  # free, whatever else runs here
        children = [" ".join(child.cmdline()) for child in psutil.Process().children()]
        assert not [line for line in children if "monitor.py" in line or "dashboard.py" in line]
        told = []
        cluster.tell_of_dashboard(told.append)
        children = psutil.Process().children()
        (dashboard,) = [child for child in children if "dashboard.py" in str(child.cmdline())]
        assert dashboard.nice() == min(19, psutil.Process().nice() + 10)
        host, _, port = str(cluster.dashboard.result(WAIT_S)).rpartition(":")
        socket.create_connection((host, int(port))).close()
        assert told[0] == f"Ray dashboard: http://{host}:{port}"
    with ray_session(None, dashboard=False) as cluster:
        assert cluster.dashboard.result(0) is None
        assert not [c for c in psutil.Process().children() if "dashboard.py" in str(c.cmdline())]


def test_ray_waits_for_a_dashboard_without_an_option():
    parameters = inspect.signature(ray.init).parameters
    assert not [name for name in parameters if re.search("wait|monitor|nice", name)]
