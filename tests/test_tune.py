"""`python -m toolagent.tune`, from the command line to the files it leaves: small searches."""

from __future__ import annotations

import csv
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import processes
import pytest
import yaml
from processes import ROOT, own_environment

from toolagent.checkpoints.policy import load_policy
from toolagent.config import load_settings
from toolagent.report.sources import groups_of, read_source
from toolagent.tune.folder import SearchFolder
from toolagent.tune.rows import rows_of

SMALL = {
    "env_runners.num_env_runners": 0,
    "env_runners.num_envs_per_env_runner": 128,
    "training.episodes_per_update": 128,
    "rl_module.model_config.embedding_size": 32,
    "run.dashboard": False,
    "run.checkpoint_every_s": 2.0,
}
LR = {"training.lr": {"loguniform": [1e-3, 1e-2]}}
pytestmark = pytest.mark.timeout(1800)


def write(folder, **entries):
    document = {"settings": SMALL, "space": LR, "num_samples": 2} | entries
    document.setdefault("trial", {"max_env_steps": 20_000, "max_time_s": 30.0})
    (folder / "search.yaml").write_text(yaml.safe_dump(document))


start = functools.partial(processes.start, "toolagent.tune")
end = functools.partial(processes.end, timeout=600)


def tune(*arguments, cwd, code=0):
    return end(start(*arguments, cwd=cwd), code)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def wait_for_results(process, folder, number):
    """Waits until so many trials have results."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = [f for f in folder.glob("trials/*/result.json") if f.stat().st_size]
        if len(found) >= number:
            return
        time.sleep(0.1)


def check_folder(folder, trials):
    summary = summary_of(folder)
    assert len(summary["trials"]) == trials
    best = summary["best"]
    assert best == summary["trials"][best["number"] - 1] | {"config": "best_config.yaml"}
    settings = load_settings(folder / best["config"])
    for key, value in best["settings"].items():
        section, name = key.split(".")
        assert settings.sections[section][name] == value
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["status"] for row in rows] == [trial["status"] for trial in summary["trials"]]
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    policy = load_policy(folder / best["checkpoint"], expected_task="calculator")
    assert policy.metadata["env_steps"] == best["env_steps"]
    return summary


@pytest.mark.full
def test_a_search_with_asha_ends_with_a_config_that_runs(tmp_path):
    write(tmp_path, scheduler="asha", num_samples=1, seeds=2)
    out = tune("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    summary = check_folder(tmp_path / "out", trials=4)
    assert summary["stopped_by"] == "completed"
    assert summary["failed"] == 0
    # Nothing is certified in so few steps, so the base is what is recommended.
    assert "nothing was certified" in out or "nothing beat the base" in out
    assert summary["best"]["settings"] == {} and summary["beats_base"] is False
    assert not (tmp_path / "out" / "importance.png").exists()
    assert load_settings(tmp_path / "out" / "best_config.yaml") == load_settings(
        tmp_path / "out" / "base.yaml"
    )
    assert [trial["seed"] for trial in summary["trials"]] == [0, 1, 0, 1]
    base, drawn = summary["trials"][:2], summary["trials"][2:]
    assert all(trial["settings"] == {} for trial in base)
    assert all(trial["folder"].startswith("trials/base,seed=") for trial in base)
    (lr,) = {trial["settings"]["training.lr"] for trial in drawn}
    assert all(trial["folder"].startswith(f"trials/lr={lr:.4g},") for trial in drawn)
    # `report` takes it.
    assert len(groups_of([read_source(tmp_path / "out")])) == 2
    run = [sys.executable, "-m", "toolagent.run", "--config", "out/best_config.yaml"]
    run += ["--stop-env-steps", "2000", "--output-dir", "run"]
    subprocess.run(run, cwd=tmp_path, env=own_environment(), check=True, capture_output=True)


@pytest.mark.full
def test_a_limit_does_not_wait_for_the_end_of_an_iteration(tmp_path):
    settings = SMALL | {"training.updates_per_iteration": 1_000_000}
    write(tmp_path, settings=settings, num_samples=1)
    tune("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    for trial in check_folder(tmp_path / "out", trials=2)["trials"]:
        assert trial["status"] == "env_steps" and 20_000 <= trial["env_steps"] < 25_000


@pytest.mark.slow
def test_a_failed_trial_is_reported_with_its_cause_and_has_no_score(tmp_path):
    space = {
        "training.explorer_share": {"choice": [0.0, 0.2]},
        "training.replay_coeff": {"choice": [0.5, 0.0]},  # explorers need replay
    }
    base = yaml.safe_load((ROOT / "rllib_configs" / "default.yaml").read_text())
    base["training"]["explorer_share"] = 0.0
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    write(
        tmp_path,
        base="base.yaml",
        space=space,
        search="grid",
        num_samples=1,
        trial={"max_env_steps": 5000, "max_time_s": 30.0},
    )
    out = tune("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    summary = check_folder(tmp_path / "out", trials=5)
    (failed,) = [trial for trial in summary["trials"] if trial["status"] == "failed"]
    assert summary["failed"] == 1
    assert failed["settings"] == {
        "training.explorer_share": 0.2,
        "training.replay_coeff": 0.0,
    }
    assert failed["score"] is None
    assert "explorer_share needs replay_coeff above 0" in failed["error"]
    assert f"trial {failed['number']} failed: " in out
    for lost in (tmp_path / "out" / failed["folder"]).glob("error.*"):
        lost.unlink()  # what Tune says of the trial counts, not the files about it
    rows = rows_of(SearchFolder(tmp_path / "out"))
    assert [row.status for row in rows] == [trial["status"] for trial in summary["trials"]]


@pytest.mark.slow
def test_a_search_in_which_every_trial_failed_does_not_end_with_0(tmp_path):
    space = {
        "training.explorer_share": {"choice": [0.2]},
        "training.replay_coeff": {"choice": [0.0]},  # explorers need replay
    }
    base = yaml.safe_load((ROOT / "rllib_configs" / "default.yaml").read_text())
    base["training"]["explorer_share"] = 0.0
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    # PBT, which does not try the base: that one would come to a result.
    write(tmp_path, base="base.yaml", space=space, scheduler="pbt", num_samples=2)
    process = start("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    _, err = processes.output_of(process)
    assert process.returncode == 1
    assert err.startswith("error: no trial came to a result")
    assert summary_of(tmp_path / "out")["failed"] == 2


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_search_that_was_moved_and_copied_goes_on_where_it_is(tmp_path):
    nothing_is_learned = {"training.lr": {"loguniform": [1e-9, 1e-8]}}
    limits = {"max_env_steps": 100_000_000, "max_time_s": 8.0}
    write(tmp_path, space=nothing_is_learned, trial=limits, num_samples=3, trials_at_once=1)
    begun = tmp_path / "s"
    process = start("--config", "search.yaml", "--output-dir", "s", cwd=tmp_path)
    wait_for_results(process, begun, 2)
    os.killpg(process.pid, signal.SIGINT)
    end(process, 130)
    assert summary_of(begun)["stopped_by"] == "interrupted"
    copy = tmp_path / "t v \u00e9" / str(begun).lstrip("/")  # ends with the path it comes from
    shutil.copytree(begun, copy)
    moved = tmp_path / "-moved"
    begun.rename(moved)
    before = files_in(moved)

    # The clock is this process's. The search is not over, and says how it goes on.
    resume = ["--resume", str(copy.relative_to(tmp_path))]
    out, err = processes.output_of(start(*resume, "--stop-time-s", "0.5", cwd=tmp_path))
    summary = summary_of(copy)
    assert summary["stopped_by"] == "time"
    assert "unfinished" in [trial["status"] for trial in summary["trials"]]
    says = "the time is up; continue with python -m toolagent.tune "
    command = shlex.split(out.splitlines()[-1].removeprefix(says))
    assert command == resume
    assert err.startswith("error: no trial came to a result in this session")  # nothing trained

    out = tune(*command, cwd=tmp_path)
    summary = check_folder(copy, trials=4)
    assert (summary["stopped_by"], summary["failed"]) == ("completed", 0)
    # The base learns.
    assert [trial["status"] for trial in summary["trials"][1:]] == ["seconds"] * 3
    for trial in summary["trials"]:
        assert (copy / trial["checkpoint"] / "policy.json").is_file()
    next_config = next(line for line in out.splitlines() if line.startswith("next: "))
    assert shlex.split(next_config)[-1] == str(copy.relative_to(tmp_path) / "best_config.yaml")
    assert not begun.exists()
    assert files_in(moved) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_search_is_resumed_after_ctrl_c_and_after_a_kill(tmp_path, number):
    write(tmp_path, num_samples=3, trials_at_once=1)
    process = start("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    wait_for_results(process, tmp_path / "out", 2)
    os.killpg(process.pid, number)
    if number == signal.SIGINT:
        assert "continue with python -m toolagent.tune --resume out" in end(process, 130)
        assert summary_of(tmp_path / "out")["stopped_by"] == "interrupted"
    else:
        process.communicate()
    tune("--resume", "out", cwd=tmp_path)
    summary = check_folder(tmp_path / "out", trials=4)
    assert summary["stopped_by"] == "completed"
    assert all(trial["status"] == "env_steps" for trial in summary["trials"])


@pytest.mark.slow
def test_optuna_searches(tmp_path):
    pytest.importorskip("optuna")
    write(tmp_path, search="optuna", num_samples=3)
    tune("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    assert check_folder(tmp_path / "out", trials=4)["search"] == "optuna"


@pytest.mark.slow
def test_pbt_replaces_the_worst_by_copies_of_the_best(tmp_path):
    write(
        tmp_path,
        scheduler="pbt",
        objective="accuracy",
        space={"training.lr": {"choice": [1e-6, 5e-3]}},
        num_samples=2,
        pbt={"interval_share": 0.2, "quantile_fraction": 0.5},
        trial={"max_env_steps": 60_000, "max_time_s": 60.0},
    )
    tune("--config", "search.yaml", "--output-dir", "out", cwd=tmp_path)
    assert check_folder(tmp_path / "out", trials=2)["failed"] == 0


@pytest.mark.slow
def test_a_search_ends_when_its_time_is_up(tmp_path):
    nothing_is_learned = {"training.lr": {"loguniform": [1e-9, 1e-8]}}
    write(tmp_path, space=nothing_is_learned, trial={"max_env_steps": 100_000_000})
    tune("--config", "search.yaml", "--output-dir", "out", "--stop-time-s", "20", cwd=tmp_path)
    assert summary_of(tmp_path / "out")["stopped_by"] == "time"
