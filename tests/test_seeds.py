"""`run --seeds`: which seeds, how their processes are started and stopped, what is said of them."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import signal
import sys
import threading
import time

import numpy as np
import processes
import pytest
import refusals
from rich.console import Console
from scipy import stats

from toolagent.checkpoints.run_folder import holds_seeds
from toolagent.errors import UserError
from toolagent.report.statistics import Estimate, interquartile_mean
from toolagent.run import seeds as several
from toolagent.run.seeds import seeds_of

# Which seeds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("0,3,7", [0, 3, 7]), ("0-2, 7", [0, 1, 2, 7]), ("5", [5])],
)
def test_seeds_are_ranges_and_lists(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "4-0", "0,0", "0-3,2", "0-99999", "9" * 25, "1;2", "1.5"]
)
def test_what_are_no_seeds_is_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        seeds_of(text)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--seeds 0-1 --seed 3", "--seed: "),
        ("--seeds 0-1 --resume x", "--resume: "),
        ("--seeds 0-1 --profile", "--profile: "),
        ("--seeds 0-1 --output-dir s3://b/c", "--output-dir s3://b/c"),
        ("--seeds 0-1 --set training.lr=x", "training.lr"),
        ("--seeds 0-1 --output-dir full", "--resume full"),
        ("--resume full --config default", "--config"),
        ("--resume full --set seed=x", "seed"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, capfd, line, named):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "seeds.json").write_text('{"seeds": [0]}')
    (tmp_path / "full" / "base.yaml").write_text("task: calculator\n")
    monkeypatch.chdir(tmp_path)
    refusals.refusal(capfd, "run", line.split(), [named])


# Their processes -----------------------------------------------------------------------------

# Writes when it begins and ends, and how many signals came.
STUB = """
import signal, sys, time
folder, seconds, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
count = 0
def stop(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, stop)
with open(f"{folder}/begun", "w") as file:
    file.write(repr(time.time()))
print("error: it is broken" if code else "fine", flush=True)
end = time.time() + seconds
while time.time() < end and not count:
    time.sleep(0.01)
time.sleep(0.1)
open(f"{folder}/ended", "w").write(f"{time.time()} {count}")
sys.exit(130 if count else code)
"""


def stubs(tmp_path, *plans):
    runs = []
    for seed, (seconds, code) in enumerate(plans):
        folder = tmp_path / f"seed_{seed}"
        folder.mkdir()
        command = [sys.executable, "-c", STUB, str(folder), str(seconds), str(code)]
        runs.append(several._Run(seed, folder, tmp_path / f"seed_{seed}.log", command))
    (tmp_path / "seeds.json").write_text(json.dumps({"seeds": list(range(len(plans)))}))
    return runs


def carry_out(tmp_path, runs, at_once):
    stream = io.StringIO()
    console = Console(file=stream, width=80, markup=False, highlight=False)
    return several._carry_out(tmp_path, runs, at_once, console), stream.getvalue()


def span(run):
    begun = float((run.folder / "begun").read_text())
    return begun, float((run.folder / "ended").read_text().split()[0])


def test_as_many_run_at_once_as_are_allowed(tmp_path):
    runs = stubs(tmp_path, *[(0.2, 0)] * 4)
    code, _ = carry_out(tmp_path, runs, 2)
    assert code == 0
    spans = [span(run) for run in runs]
    most = max(sum(a <= begun < b for a, b in spans) for begun, _ in spans)
    assert most == 2


@pytest.mark.parametrize(("codes", "code"), [((0, 1, 0), 1), ((2, 0, 0), 2), ((0, 0), 0)])
def test_one_exit_code_and_a_line_for_each_that_failed(tmp_path, codes, code, capfd):
    runs = stubs(tmp_path, *[(0, code) for code in codes])
    assert carry_out(tmp_path, runs, 1)[0] == code
    failed = [seed for seed, code in enumerate(codes) if code]
    lines = capfd.readouterr().err.splitlines()
    assert [line[:13] for line in lines] == [f"error: seed {seed}" for seed in failed]
    assert all("it is broken" in line for line in lines)
    # What one is refused for, all are: the others were not started.
    begun = [(run.folder / "begun").exists() for run in runs]
    assert begun == [True] + [code != 2] * (len(codes) - 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_once_and_says_how_to_go_on(tmp_path, number):
    runs = stubs(tmp_path, *[(30, 0)] * 3)

    def interrupt():
        processes.wait_for(lambda: all((run.folder / "begun").exists() for run in runs[:2]))
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    code, shown = carry_out(tmp_path, runs, 2)
    assert code == 130
    assert f"continue with python -m toolagent.run --resume {tmp_path}" in shown
    assert [(run.folder / "ended").read_text().split()[1] for run in runs[:2]] == ["1", "1"]
    assert not (runs[2].folder / "begun").exists()


# Their figures -------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_is_that_of_scipy(runs):
    """`rliable` takes `scipy.stats.trim_mean(scores, 0.25, axis=None)`."""
    scores = np.random.default_rng(runs).random((7, runs))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=1))
    table = scores.T  # (runs, stages)
    assert Estimate.of(table).iqm == pytest.approx(stats.trim_mean(table, 0.25, axis=None))


def test_the_interval_is_that_of_all_bootstrap_samples():
    """Of three runs of two stages all 27 x 27 stratified samples can be listed."""
    table = np.array([[0.1, 0.5], [0.4, 0.7], [0.6, 0.95]])
    draws = list(itertools.product(range(3), repeat=3))
    means = [
        stats.trim_mean([*table[list(first), 0], *table[list(second), 1]], 0.25)
        for first in draws
        for second in draws
    ]
    exact = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    found = Estimate.of(table)
    assert [found.low, found.high] == pytest.approx(exact, abs=0.02)
    assert found.low <= found.iqm <= found.high


def test_a_stage_that_too_many_never_solve_takes_for_ever():
    found = Estimate.of([[100.0], [120.0], [math.inf], [140.0], [130.0]])
    assert (found.median, found.iqm) == (130.0, 130.0)  # the middle three
    assert math.isinf(found.high)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["interval"][1] is None
    assert math.isinf(Estimate.of([[1.0], [math.inf], [math.inf]]).median)


# The whole command ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_seeds_are_trained_stopped_resumed_and_compared(tmp_path):
    small = ["--set", "env_runners.num_env_runners=0", "--set", "run.dashboard=false"]
    small += ["--set", "rl_module.model_config.embedding_size=32"]
    process = processes.start(
        "toolagent.run",
        *("--seeds", "3,5", "--output-dir", "out", "--stop-env-steps", "20000", *small),
        cwd=tmp_path,
    )
    folder = tmp_path / "out"
    processes.wait_for(lambda: (folder / "seed_3" / "config.yaml").exists())
    process.send_signal(signal.SIGINT)
    out = processes.end(process, 130)
    assert "continue with python -m toolagent.run --resume out" in out
    assert holds_seeds(folder)
    out = processes.end(processes.start("toolagent.run", "--resume", "out", cwd=tmp_path), 0)
    summary = json.loads((folder / "summary.json").read_text())
    for seed in (3, 5):
        own = json.loads((folder / f"seed_{seed}" / "summary.json").read_text())
        # A signal may have come when the limit was reached.
        assert own["seed"] == seed and own["stopped_by"] in ("env_steps", "interrupted")
        assert summary["seeds"][str(seed)]["env_steps"] == own["env_steps"]
    runs = [json.loads((folder / f"seed_{s}" / "summary.json").read_text()) for s in (3, 5)]
    shares = [run["stages"][0]["solved"] / run["stages"][0]["problems"] for run in runs]
    assert summary["accuracy"]["0"]["median"] == pytest.approx(np.median(shares))
    assert "IQM" in out and (folder / "report.html").is_file()
    _, err = processes.output_of(processes.start("toolagent.run", "--resume", "out", cwd=tmp_path))
    assert "nothing is left to do" in err
