"""Trackers against the real thing: TensorBoard's own reader, an MLflow server, W&B offline."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from processes import free_port, kill, start_logged
from small_disk import mounted, remount

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.config import load_settings, to_yaml
from toolagent.config.documents import parse
from toolagent.errors import UserError
from toolagent.trackers import Trackers, outbox, prometheus
from toolagent.trackers.base import FINISHED, INTERRUPTED
from toolagent.trackers.group import result_files
from toolagent.trackers.metrics import flat_parameters, metrics_of, rllib_metrics

ROW = {
    "iteration": 1,
    "time_s": 0.5,
    "env_steps": 1000,
    "env_steps_per_s": 2000.0,
    "stage": 0,
    "measured": True,
    "accuracy": {"0": 0.5},
    "accuracy/stage_0": 0.5,
    "programs/stage_0_distinct": 3.0,
    "programs/stage_0_solved_length": None,
    "env_runners/a figure of [mine]": 2.0,
    "episode_return_mean": 0.25,
    "episode_len_mean": 4.0,
    "policy_loss": -0.01,
    "vf_loss": 0.2,
    "entropy": 1.5,
    "approximate_kl": 0.004,
    "clipped_share": 0.05,
    "explained_variance": None,
    "learning_rate": 0.003,
}
RESULT = {
    "env_runners": {"num_episodes": np.int64(64), "nothing": float("nan")},
    "learners": {"default_policy": {"total_loss": np.float64(0.5)}},
    "config": {"lr": 1.0},
    "date": "2026",
}
SUMMARY = {
    "env_steps": 3000,
    "wall_time_s": 1.0,
    "env_steps_per_s": 3000.0,
    "stopped_by": "env_steps",
    "stages": [{"stage": 0, "problems": 1, "solved": 1, "accuracy": 1.0}],
}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.make(to_yaml(load_settings(None)))
    folder.write_summary(SUMMARY)
    return folder


def document(*overrides):
    return parse(to_yaml(load_settings(None, overrides)), "test")


def rows(first, last):
    return [ROW | {"iteration": i, "env_steps": 1000 * i} for i in range(first, last)]


def track(folder, name, first, last, status=FINISHED, *overrides):
    with Trackers([name], folder) as trackers:
        trackers.start(document(*overrides), config_sha256="abc")
        for row in rows(first, last):
            trackers.log(row, RESULT)
        trackers.end(status, SUMMARY, result_files(folder, folder.path / "no-checkpoint"))


# Ray's metrics -----------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["Gauge", "set", "note"])
def test_no_failure_of_metrics_ends_a_run(broken, tmp_path, monkeypatch, capsys):
    class Metric:
        def __init__(self, name, description, tag_keys):
            if broken == "Gauge":
                raise ValueError("no metrics")

        def set_default_tags(self, tags):
            assert tags["run"].isascii()
            return self

        def set(self, value, tags=None):
            raise UnicodeEncodeError("ascii", "é", 0, 1, "not in range(128)")

        def inc(self, value):
            pass

    monkeypatch.setattr(prometheus, "Gauge", Metric)
    monkeypatch.setattr(prometheus, "Counter", Metric)
    with prometheus.RunMetrics(tmp_path / "né\n", "calculator", 1.0) as metrics:
        metrics.note({} if broken == "note" else ROW, 0, None)
        metrics.note_checkpoint(1.0)
    assert capsys.readouterr().err.count("warning: metrics: ") == 1


# Names -------------------------------------------------------------------------------------


def test_figures_have_the_names_that_people_expect():
    tags = metrics_of(ROW)
    assert tags["charts/episodic_return"] == 0.25 and tags["charts/episodic_length"] == 4.0
    assert tags["charts/SPS"] == 2000.0 and tags["charts/learning_rate"] == 0.003
    assert tags["losses/policy_loss"] == -0.01 and tags["losses/value_loss"] == 0.2
    assert tags["losses/entropy"] == 1.5 and tags["losses/approx_kl"] == 0.004
    assert tags["losses/clipfrac"] == 0.05 and tags["accuracy/stage_0"] == 0.5
    assert "losses/explained_variance" not in tags  # None: nothing to say
    assert rllib_metrics(RESULT) == {
        "ray/tune/env_runners/num_episodes": 64.0,
        "ray/tune/learners/default_policy/total_loss": 0.5,
    }
    flat = flat_parameters(document())
    assert flat["training.lr"] == "0.003" and flat["curriculum.levels.2.stage"] == "2"


def test_tensorboard_reads_them(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(folder, "tensorboard", 1, 4, FINISHED, "run.rllib_figures=true")
    read = EventAccumulator(str(folder.tensorboard))
    read.Reload()
    for tag in (
        "charts/episodic_return",
        "losses/policy_loss",
        "ray/tune/env_runners/num_episodes",
    ):
        assert [event.step for event in read.Scalars(tag)] == [1000, 2000, 3000]
    assert read.Scalars("charts/SPS")[0].value == 2000.0


def test_tensorboard_has_the_settings_and_rllib_s_own_figures_only_if_asked(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    task = "run.record_episodes=a|b"
    track(folder, "tensorboard", 1, 3, FINISHED, task)
    read = EventAccumulator(str(folder.tensorboard))
    read.Reload()
    assert not [tag for tag in read.Tags()["scalars"] if tag.startswith("ray/")]
    (event,) = read.Tensors("hyperparameters")
    (table,) = event.tensor_proto.string_val
    cells = [line.split("|") for line in table.decode().splitlines()]
    assert {len(line) for line in cells} == {4}  # two, whatever a value holds
    settings = {name: value for _, name, value, _ in cells}
    assert settings["training.lr"] == "0.003" and settings["config_sha256"] == "abc"
    assert settings["run.record_episodes"] == "a&#124;b"
    plugin = read.SummaryMetadata("hyperparameters").plugin_data.plugin_name
    assert plugin == "text"


@pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "in-the-same-process"])
def test_tensorboard_shows_what_comes_again_once(folder, resumed):
    """A run is at iteration 5 and goes on from 2."""
    with Trackers(["tensorboard"], folder) as first:
        first.start(document())
        for row in rows(1, 6):
            first.log(row, RESULT)
        if resumed:  # the first is killed without a word, a moment later
            deadline = time.monotonic() + 30
            while len(returns_in(folder)) < 5 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert len(returns_in(folder)) == 5
        with (
            Trackers(["tensorboard"], folder)
            if resumed
            else contextlib.nullcontext(first) as second
        ):
            if resumed:
                second.start(document())
            second.go_back(2000)
            for row in rows(3, 7):
                second.log(row | {"episode_return_mean": 0.75}, RESULT)
            second.end(FINISHED, SUMMARY, {})
        assert returns_in(folder) == [
            *((1000, 0.25), (2000, 0.25)),
            *((3000, 0.75), (4000, 0.75), (5000, 0.75), (6000, 0.75)),
        ]


def returns_in(folder):
    """(env steps, mean return) as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder.tensorboard))
    read.Reload()
    if "charts/episodic_return" not in read.Tags()["scalars"]:
        return []
    return [(event.step, event.value) for event in read.Scalars("charts/episodic_return")]


def test_a_disk_that_was_full_for_a_while_costs_tensorboard_nothing(folder, capsys):
    folder.tensorboard.mkdir(parents=True)
    with mounted(folder.tensorboard, "size=16k"), Trackers(["tensorboard"], folder) as trackers:
        trackers.start(document())
        for row in rows(1, 101):
            trackers.log(row, RESULT)
        assert 0 < len(returns_in(folder)) < 100
        remount(folder.tensorboard, "size=1m")
        trackers.log(*rows(101, 102), RESULT)
        assert [step for step, _ in returns_in(folder)] == list(range(1000, 102_000, 1000))
        trackers.end(FINISHED, SUMMARY, {})
    err = capsys.readouterr().err
    assert err.startswith("warning: tensorboard: OSError: ") and err.count("\n") == 1


def test_writing_costs_little(folder):
    many = {"env_runners": {f"figure_{i}": float(i) for i in range(150)}}
    with Trackers(["tensorboard"], folder) as trackers:
        trackers.start(document())
        started = time.process_time()
        for row in rows(1, 101):
            trackers.log(row, many)
        seconds = (time.process_time() - started) / 100
        trackers.end(FINISHED, SUMMARY, {})
    assert seconds < 0.005  # an iteration takes 300 ms and more


# MLflow ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real tracking server on a free port; its address."""
    pytest.importorskip("mlflow")
    for package in ("flask", "sqlalchemy", "alembic", "graphene"):
        pytest.importorskip(package)
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = start_logged(command, folder / "log", cwd=folder, env=environment)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 150
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        kill(process)


@pytest.fixture
def client(server, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    return MlflowClient(server)


@pytest.mark.full
def test_a_run_is_recorded_by_a_real_mlflow_server_and_a_resumed_one_goes_on(client, folder):
    track(folder, "mlflow", 1, 4, INTERRUPTED)
    run_id = json.loads((folder.path / "trackers.json").read_text())["mlflow"]
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.info.run_name == "run"
    assert run.data.params["training.lr"] == "0.003" and run.data.params["task"] == "calculator"
    assert run.data.tags["config_sha256"] == "abc"
    assert {file.path for file in client.list_artifacts(run_id)} == {"summary.json", "config.yaml"}

    track(folder, "mlflow", 4, 6, FINISHED, "run.stop_env_steps=5000")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(run_id, "losses/policy_loss")]
    assert steps == [1000, 2000, 3000, 4000, 5000]
    assert run.data.tags["resumed.run.stop_env_steps"] == "5000"
    assert run.data.metrics["summary/accuracy_stage_0"] == 1.0
    experiment = client.get_experiment_by_name("toolagent").experiment_id
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.full
def test_a_run_that_fails_is_failed_there(client, folder):
    with pytest.raises(RuntimeError), Trackers(["mlflow"], folder) as trackers:
        trackers.start(document())
        raise RuntimeError
    run_id = json.loads((folder.path / "trackers.json").read_text())["mlflow"]
    assert client.get_run(run_id).info.status == "FAILED"


@pytest.mark.full
def test_a_server_that_is_away_for_a_while_gets_everything_in_the_end(
    client, folder, monkeypatch, capsys
):
    monkeypatch.setattr(outbox, "RETRY_S", 0.2)
    with Trackers(["mlflow"], folder) as trackers:
        trackers.start(document())
        real = trackers._trackers[0]._client
        from mlflow import MlflowClient

        trackers._trackers[0]._client = MlflowClient(f"http://127.0.0.1:{free_port()}")
        started = time.monotonic()
        for row in rows(1, 4):
            trackers.log(row, RESULT)
        assert time.monotonic() - started < 2  # training does not wait
        deadline = time.monotonic() + 60
        while "warning" not in (err := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert err.count("\n") == 1 and err.startswith("warning: mlflow: ")
        trackers._trackers[0]._client = real
        trackers.end(FINISHED, SUMMARY, {})
    run_id = json.loads((folder.path / "trackers.json").read_text())["mlflow"]
    steps = [m.step for m in client.get_metric_history(run_id, "charts/SPS")]
    assert steps == [1000, 2000, 3000]
    assert capsys.readouterr().err == ""


@pytest.mark.full
def test_a_server_that_is_down_is_refused_at_the_start(folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"mlflow can't be used at http://127") as caught:
        Trackers(["mlflow"], folder).__enter__()
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert time.monotonic() - started < 20
    assert not (folder.path / "trackers.json").exists()


# Weights & Biases --------------------------------------------------------------------------


@pytest.mark.full
def test_wandb_offline_leaves_its_files_and_a_resumed_run_is_the_same(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    track(folder, "wandb", 1, 4, INTERRUPTED)
    track(folder, "wandb", 4, 6)
    identifier = json.loads((folder.path / "trackers.json").read_text())["wandb"]
    files = list((folder.path / "wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb"))
    assert len(files) >= 1
    content = b"".join(path.read_bytes() for path in files)
    assert b"losses/policy_loss" in content and b"env_steps" in content


@pytest.mark.full
def test_wandb_without_a_key_is_refused(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder.path / "none"))
    monkeypatch.setenv("HOME", str(folder.path))
    with pytest.raises(UserError, match="has no API key"):
        Trackers(["wandb"], folder).__enter__()


# What may be written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[tensorbord]", "run.trackers.0"),
        ("tensorboard", "run.trackers"),
        ("[wandb, wandb]", "run.trackers: wandb is named twice"),
    ],
)
def test_unknown_trackers_are_refused(value, message):
    with pytest.raises(UserError) as caught:
        load_settings(None, [f"run.trackers={value}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert load_settings(None, ["run.trackers=[]"]).run.trackers == []


def test_a_spoiled_record_of_trackers_is_refused(folder):
    (folder.path / "trackers.json").write_text("[1]")
    with pytest.raises(UserError, match="remove it to begin new records"):
        Trackers(["tensorboard"], folder).__enter__()
