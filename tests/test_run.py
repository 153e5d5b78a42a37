"""`python -m toolagent.run`, from the command line to the files it leaves: short, whole runs."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time

import processes
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from processes import end, listening_addresses, wait_for
from traces import check_trace, extent

from toolagent.checkpoints.policy import load_policy
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.training_state import list_checkpoints, newest_checkpoint
from toolagent.errors import UserError

QUICK = ("--set", "run.dashboard=false", "--set", "run.sample_trajectories=1")
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
PROBLEMS = [1_000, 10_000, 100_000]


start = functools.partial(processes.start, "toolagent.run")


def run(*arguments, cwd, code=0):
    return end(start(*arguments, cwd=cwd), code)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def listening(process):
    """The addresses on which the run and all that it started accept connections."""
    main = psutil.Process(process.pid)
    return listening_addresses([main, *main.children(recursive=True)])


def wait_for_rows(process, folder):
    """Waits until the run has three rows of progress, or has ended."""
    progress = folder / "progress.jsonl"
    wait_for(
        lambda: process.poll() is not None or (progress.is_file() and len(rows_of(folder)) >= 3)
    )


def check_folder(folder, task, seed=0, besides=()):
    """Every file of a run's folder, and that they agree with each other."""
    expected = {
        *("config.yaml", "progress.jsonl", "tensorboard", "checkpoints"),
        *("learning_curve.png", "summary.json", "environment.json", "behaviour.json"),
        *("report.html", *besides),
    }
    assert {path.name for path in folder.iterdir()} == expected
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert any(path.name.startswith("events.") for path in (folder / "tensorboard").iterdir())
    rows, summary = rows_of(folder), summary_of(folder)
    check_rows(rows)
    check_summary(summary, task, seed)
    assert summary["env_steps"] == rows[-1]["env_steps"]
    assert summary["wall_time_s"] == rows[-1]["time_s"]
    assert summary["iterations"] == rows[-1]["iteration"]
    checkpoint = folder / summary["checkpoint"]
    assert checkpoint == list_checkpoints(folder / "checkpoints")[-1]
    policy = load_policy(checkpoint, expected_task=task)
    assert policy.metadata["env_steps"] == summary["env_steps"]
    assert policy.metadata["seed"] == seed
    assert policy.metadata["stages"] == [
        {key: stage[key] for key in ("stage", "problems", "solved", "accuracy")}
        for stage in summary["stages"]
    ]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["task"], config["seed"]) == (task, seed)
    return summary


def plain(row):
    return [name for name in row if "/" not in name]


def check_rows(rows):
    nothing = {"env_steps": 0, "time_s": 0.0}
    for before, after in itertools.pairwise([nothing, *rows]):
        # Whatever was done beside training takes its time in the rate too.
        seconds = after["time_s"] - before["time_s"]
        steps = after["env_steps"] - before["env_steps"]
        assert after["env_steps_per_s"] == pytest.approx(steps / seconds)
    for before, after in itertools.pairwise(rows):
        assert after["iteration"] == before["iteration"] + 1
        assert after["env_steps"] > before["env_steps"]
        assert after["time_s"] > before["time_s"]
        assert after["stage"] == before["next_stage"]
        assert (after["stage"] != before["stage"]) == (before["curriculum_event"] is not None)
    assert rows[0]["iteration"] == 1
    assert rows[0].pop("accuracy_at_start")
    for row in rows:
        # Stages have columns in the iterations that measured them.
        assert plain(row) == plain(rows[0])
        assert row["env_steps_per_s"] > 0
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))


def check_summary(summary, task, seed):
    assert summary["task"] == task
    assert summary["seed"] == seed
    assert summary["env_steps"] > 0
    assert summary["env_steps_per_s"] == pytest.approx(
        summary["env_steps"] / summary["wall_time_s"]
    )
    assert summary["stopped_by"] in ("solved", "env_steps", "time", "iterations", "interrupted")
    assert [stage["stage"] for stage in summary["stages"]] == [0, 1, 2]
    assert [stage["problems"] for stage in summary["stages"]] == PROBLEMS
    for stage in summary["stages"]:
        assert 0 <= stage["solved"] <= stage["problems"]
        assert stage["accuracy"] == stage["solved"] / stage["problems"]
        first, seconds = stage["first_solved_env_steps"], stage["first_solved_s"]
        assert (first is None) == (seconds is None)
        assert first is None or 0 < first <= summary["env_steps"]


# Whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A finished run of the tutorial config, and what it printed."""
    cwd = tmp_path_factory.mktemp("tutorial")
    out = run("--config", "tutorial", "--seed", 1, "--output-dir", "a/run", *QUICK, cwd=cwd)
    return cwd / "a" / "run", out


@pytest.mark.full
def test_the_tutorial_config_keeps_the_tutorials_schedule(tutorial):
    folder, out = tutorial
    summary = check_folder(folder, "tutorial", seed=1)
    assert summary["stopped_by"] == "iterations"
    rows = rows_of(folder)
    assert [row["stage"] for row in rows] == [0] * 30 + [1] * 20 + [2] * 10
    assert [row["iteration"] for row in rows if row["measured"]] == list(range(5, 61, 5))
    assert "the tutorial prints the mean reward and calls it accuracy" in out
    # What it does not learn, it does not learn here either.
    assert all(stage["accuracy"] < 0.25 for stage in summary["stages"])
    assert all("mean_reward" in stage for stage in summary["stages"])


def test_an_interrupted_run_can_be_resumed_and_records_its_episodes(tmp_path):
    folder, episodes = tmp_path / "run", tmp_path / "episodes"
    process = start(
        *("--output-dir", folder, "--record-episodes", episodes, "--seed", 3, *QUICK),
        # Neither checkpoints nor the signal nor the limit wait for the end of an iteration.
        *("--set", "training.updates_per_iteration=1000000"),
        *("--set", "run.checkpoint_every_s=0.5", "--set", "run.keep_checkpoints=1"),
        cwd=tmp_path,
    )
    wait_for(lambda: process.poll() is not None or list_checkpoints(folder / "checkpoints"))
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    out = end(process, 130)
    assert "--resume" in out
    interrupted = check_folder(folder, "calculator", seed=3)
    assert (interrupted["stopped_by"], interrupted["iterations"]) == ("interrupted", 1)
    check_recorded(episodes, interrupted["env_steps"])

    seconds = interrupted["wall_time_s"] + 1
    began = time.time()
    out = run("--resume", folder, "--stop-time-s", seconds, "--profile", cwd=tmp_path)
    check_profile(folder, out, began)
    assert f"at {interrupted['env_steps']:,} env steps" in out
    profile = ("profile.txt", "profile.json")
    resumed = check_folder(folder, "calculator", seed=3, besides=profile)
    assert (resumed["stopped_by"], resumed["iterations"]) == ("time", 1)
    assert resumed["env_steps"] > interrupted["env_steps"]
    assert seconds <= resumed["wall_time_s"] < seconds + 5


def check_profile(folder, out, began):
    """`began` is the wall clock's when the command was called."""
    assert (folder / "profile.txt").read_text() in out
    processes = check_trace(json.loads((folder / "profile.json").read_text()))
    assert set(processes) == {"driver with learner", "env runner 1"}
    driver, runner = processes["driver with learner"], processes["env runner 1"]
    phases = {event["name"] for event in driver}
    assert {"training", "update", "forward", "losses", "backward", "optimizer"} <= phases
    assert {"next batch", "publish weights", "ending Ray", "writing the results"} <= phases
    # The time of the whole process, as far as anybody outside can tell.
    written = (folder / "profile.json").stat().st_mtime
    assert sum(extent(driver)) / 1e6 == pytest.approx(written - began, rel=0.05, abs=0.5)
    # The clocks are one: it was played between the begin and the end of the training.
    played = [event for event in runner if event["name"] == "play a fragment"]
    training = next(event for event in driver if event["name"] == "training")
    assert training["ts"] < played[0]["ts"]
    assert played[-1]["ts"] < training["ts"] + training["dur"]


def check_recorded(episodes, env_steps):
    files = sorted(episodes.glob("task=calculator/*.parquet"))
    assert files and len(files) == sum(path.is_file() for path in episodes.rglob("*"))
    table = pq.read_table(episodes)
    assert {"stage", "digits", "actions", "rewards", "solved"} <= set(table.column_names)
    rows = table.slice(0, 2000).to_pylist()
    for row in rows:
        assert row["stage"] in (0, 1, 2) and isinstance(row["stage"], int)
        assert len(row["digits"]) == 5 and set(row["digits"]) <= set(range(10))
        assert 1 <= len(row["actions"]) == len(row["rewards"]) <= 7
        assert set(row["actions"]) <= set(range(18))
        assert isinstance(row["solved"], bool)
    # Recorded is what was sampled: what was learned from, and what was under way at the end.
    assert sum(map(len, table["actions"].to_pylist())) >= 0.9 * env_steps


@pytest.mark.full
def test_a_run_outlives_its_terminal_on_one_cpu_in_a_folder_of_any_name(tmp_path):
    cpu = min(os.sched_getaffinity(0))
    program = [sys.executable, "-m", "toolagent.run"]
    options = ["--config", "tutorial", "--num-env-runners", "1", *QUICK]
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        ["taskset", "-c", str(cpu), "setsid", "--ctty", *program, *options, "--output-dir", "né"],
        cwd=tmp_path,
        env=processes.own_environment(),
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        # The tests may themselves be under nohup.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(terminal)
    wait_for_rows(process, tmp_path / "né")
    os.close(controller)  # SIGHUP to the run and to all that it started; writing is EIO
    assert process.wait(processes.WAIT_S) == 130
    interrupted = check_folder(tmp_path / "né", "tutorial")
    assert interrupted["stopped_by"] == "interrupted"
    environment = json.loads((tmp_path / "né" / "environment.json").read_text())
    assert environment["sessions"][0]["cluster"]["cpus"] == environment["sessions"][0]["cores"] == 1

    (tmp_path / "né").rename(tmp_path / "$ñ$")
    limit = f"run.stop_iterations={interrupted['iterations'] + 2}"
    resumed = shlex.join([*program, "--resume", "$ñ$", "--set", limit])
    done = subprocess.run(
        ["bash", "-c", f"{resumed} | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=processes.own_environment(),
        capture_output=True,
        timeout=processes.WAIT_S,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert check_folder(tmp_path / "$ñ$", "tutorial")["stopped_by"] == "iterations"


CALLBACKS_OF_A_USER = """
import os
from ray.rllib.callbacks.callbacks import RLlibCallback

class Mine(RLlibCallback):
    def on_train_result(self, *, result, **kwargs):
        print("mine:", result["training_iteration"], file=open("mine.txt", "a"))

    def on_environment_created(self, *, env_runner, **kwargs):
        print(env_runner.worker_index, file=open(os.path.join(HERE, "runners.txt"), "a"))

HERE = os.path.dirname(__file__)
"""


@pytest.mark.full
def test_weights_can_be_carried_over_and_a_terminated_run_leaves_a_checkpoint(tutorial, tmp_path):
    source, _ = tutorial
    folder = tmp_path / "run"
    (tmp_path / "mine.py").write_text(CALLBACKS_OF_A_USER)
    process = start(
        *("--config", "tutorial", "--init-from", source, "--output-dir", folder, *QUICK),
        *("--set", "run.stop_iterations=null", "--set", "curriculum.measure_every_iterations=1"),
        *("--set", "training.lr=0.0", "--set", "run.dashboard=true", "--num-learners", 2),
        *("--set", "callbacks.callbacks_class=mine:Mine", "--num-env-runners", 1),
        cwd=tmp_path,
    )
    wait_for_rows(process, folder)
    # All interfaces would be what torch's store for the remote learners' group listens on.
    addresses = listening(process)
    assert addresses and addresses <= LOOPBACK
    process.send_signal(signal.SIGTERM)
    end(process, 130)
    summary = check_folder(folder, "tutorial")
    assert summary["stopped_by"] == "interrupted"
    # With a learning rate of 0 the agent is still the one that it was started from.
    solved = [stage["solved"] for stage in summary["stages"]]
    assert solved == [stage["solved"] for stage in summary_of(source)["stages"]]
    # The user's callbacks are called beside the run's own, where they belong.
    iterations = range(1, summary["iterations"] + 1)
    assert (tmp_path / "mine.txt").read_text() == "".join(f"mine: {i}\n" for i in iterations)
    assert "1\n" in (tmp_path / "runners.txt").read_text()


@pytest.mark.slow
def test_sixteen_runners_share_the_cpus(tmp_path):
    check_sharing(16, tmp_path)


def check_sharing(runners, tmp_path):
    out = run(
        *("--num-env-runners", runners, "--stop-env-steps", 10_000, "--output-dir", "run", *QUICK),
        # Where the machine has other work, as many may well take a minute to start.
        *("--set", "env_runners.num_envs_per_env_runner=64", "--set", "run.stall_warning_s=600"),
        cwd=tmp_path,
    )
    check_folder(tmp_path / "run", "calculator")
    lines = [line for line in out.splitlines() if f"{runners} env runners share" in line]
    assert len(lines) == (1 if len(os.sched_getaffinity(0)) < runners else 0)


@pytest.mark.full
def test_stock_ppo_runs_and_records(tmp_path):
    out = run(
        *("--config", "ppo", "--stop-env-steps", 2_000, "--output-dir", "run", *QUICK),
        *("--record-episodes", "episodes", "--set", "env_runners.num_env_runners=1"),
        *("--set", "training.train_batch_size_per_learner=1024"),
        cwd=tmp_path,
    )
    assert "algorithm PPO" in out
    assert check_folder(tmp_path / "run", "calculator")["stopped_by"] == "env_steps"
    check_recorded(tmp_path / "episodes", 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stock_ppo_certifies_stages_0_and_1_within_five_minutes(tmp_path):
    out = run("--config", "ppo", "--output-dir", "run", cwd=tmp_path)
    print(out)
    summary = check_folder(tmp_path / "run", "calculator")
    assert summary["stopped_by"] == "solved"
    assert [stage["solved"] for stage in summary["stages"]][:2] == [1_000, 10_000]
    assert summary["wall_time_s"] < 300


# The folder --------------------------------------------------------------------------------


def test_a_torn_last_line_of_progress_is_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for iteration in (1, 2, 3):
        folder.append_progress({"iteration": iteration})
    with folder.progress.open("a") as file:
        file.write('{"iterat')
    assert [row["iteration"] for row in folder.cut_progress(2)] == [1, 2]
    assert [row["iteration"] for row in rows_of(tmp_path)] == [1, 2]


def test_incomplete_checkpoints_are_no_checkpoints(tmp_path):
    (tmp_path / ".checkpoint_000002.partial").mkdir()
    (tmp_path / "checkpoint_000001").mkdir()  # no policy.json
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(UserError, match="no complete checkpoint"):
        newest_checkpoint(tmp_path)


def test_default_folders_never_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda text: text.replace("-%Y%m%d-%H%M%S", "-now"))
    paths = []
    for _ in range(3):
        folder = RunFolder.new(None, "calculator")
        folder.make("task: calculator\n")
        paths.append(str(folder.path))
    assert paths == ["runs/calculator-now", "runs/calculator-now-2", "runs/calculator-now-3"]
