"""Faults in the middle of real runs: what is killed, hangs or lies, and what comes of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import psutil
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from faulty import FaultyRun, check_ledger, cluster_of_raylets, lines_of
from small_disk import mounted

from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.training_state import newest_checkpoint

NEVER_SOLVED = ("--set", "run.stop_when_solved=false")
pytestmark = pytest.mark.timeout(1200)  # a machine with other work starts actors slowly
SOON = ("--set", "env_runners.sample_timeout_s=8.0", "--set", "run.checkpoint_every_s=2.0")

# The plain form of a test, and a longer one.
FULL_AND_SLOW = [
    pytest.param(False, marks=pytest.mark.full),
    pytest.param(True, marks=pytest.mark.slow),
]


@pytest.fixture
def faulty_run(tmp_path):
    runs = []

    def start(*arguments, **options):
        runs.append(FaultyRun(tmp_path, *arguments, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.mark.parametrize("hang", FULL_AND_SLOW)
def test_env_runners_are_killed_raise_lie_and_hang(faulty_run, hang):
    run = faulty_run(*NEVER_SOLVED, *SOON, "--stop-time-s", 550)
    run.until(lambda: any(row["next_stage"] == 2 for row in run.rows()))
    first = {line["env_runner"]: line["pid"] for line in run.played()}
    assert sorted(first) == [1, 2]

    os.kill(first[1], signal.SIGKILL)
    run.until_counted("env_runner_restarts_lifetime", 1)
    run.tell("runner-2-raise")
    run.until_counted("env_runner_restarts_lifetime", 2)
    second = {line["env_runner"]: line["pid"] for line in run.played()}
    assert set(first.values()).isdisjoint(second.values())

    if hang:
        os.kill(second[1], signal.SIGSTOP)
        run.until_counted("hung_env_runners_lifetime", 1)
        run.until_counted("env_runner_restarts_lifetime", 3)
    run.tell("runner-2-nan")
    run.until_counted("rejected_batches_lifetime", 1)
    # A new process knows nothing of the curriculum: each has been told before it played.
    new = [line for line in run.played() if line["pid"] not in first.values()]
    assert new and {line["stage"] for line in new} == {2}
    assert run.count("rejected_batches_lifetime") == 1  # the runner itself goes on
    assert len({line["identity"] for line in run.played()}) == len(run.played())

    run.until_trained()
    run.process.send_signal(signal.SIGTERM)
    before = time.monotonic()
    assert run.end() == 130, run.said()
    assert time.monotonic() - before < 60
    run.check_course()
    assert run.summary()["stopped_by"] == "interrupted"
    # A busy machine may make one hang of its own accord.
    hung = r", \d env runners? hung" if hang else r"(, \d env runners? hung)?"
    counted = rf"faults: \d env runner processes replaced{hung}, 1 fragment rejected"
    assert re.search(counted, run.said())
    # A run that goes on training may miss a problem at any moment; one that ends when all is solved
    # must get there after all that.
    run.resume("--set", "run.stop_when_solved=true")
    assert run.end() == 0, run.said()
    run.check_course()
    run.check_certified()
    run.check_quiet("(raylet)")


def learner_options(learner="FaultyLearner"):
    return ("--num-learners", 1, "--set", f"learners.learner_class=faulty:{learner}")


@pytest.mark.parametrize("hang", FULL_AND_SLOW)
def test_a_lost_learner_costs_the_way_back_to_the_last_checkpoint(faulty_run, tmp_path, hang):
    run = faulty_run(
        *(*learner_options(), *NEVER_SOLVED, *SOON, "--stop-time-s", 550),
        # Where nothing hangs on purpose, nothing may be taken for it on a busy machine.
        *("--set", f"run.learner_timeout_s={10.0 if hang else 100.0}"),
        *("--record-episodes", tmp_path / "episodes"),
        env_runners=1,
    )
    run.until_trained(1)
    run.tell("gradient-nan")
    run.until_counted("skipped_updates_lifetime", 1)
    run.until(lambda: list((run.folder / "checkpoints").glob("checkpoint_*")))
    for restarts, number in enumerate((signal.SIGKILL, signal.SIGSTOP)[: 1 + hang], 1):
        [learner] = run.actors("_WrappedExecutable")  # what RLlib makes of a learner
        os.kill(learner, number)
        run.until_counted("learner_restarts_lifetime", restarts)
        run.until_trained()
    assert run.count("skipped_updates_lifetime") == 1
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.said()
    run.check_course()
    said = run.said()
    assert "warning: 1 of 1 learners died; restart 1 of at most 3" in said
    assert "continues from checkpoint_" in said
    assert f"1 update skipped, {'2 restarts' if hang else '1 restart'} of learning" in said
    assert said.count("warning: learners have not answered for 10 s (run.learner_time") == hang
    run.check_quiet("(raylet)")
    # All that was played is recorded, before each restart and after it.
    recorded = ds.dataset(tmp_path / "episodes", format="parquet").to_table(["actions"])
    played = sum(line["env_steps"] for line in run.played())
    assert pc.sum(pc.list_value_length(recorded["actions"])).as_py() == played
    assert f"recorded {len(recorded):,} episodes" in said


@pytest.mark.slow
def test_a_learner_that_hangs_is_ended_also_while_a_checkpoint_or_a_restart_waits_for_it(
    faulty_run, monkeypatch, tmp_path
):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    run = faulty_run(
        *(*learner_options(), *NEVER_SOLVED, "--set", "run.checkpoint_every_s=1.0"),
        *("--set", "run.learner_timeout_s=3.0", "--stop-time-s", 550),
        env_runners=0,
    )
    run.until(lambda: list((run.folder / "checkpoints").glob("checkpoint_*")))
    [hangs] = run.actors("_WrappedExecutable")
    run.tell("restore-hangs")  # the learner of the first restart does
    run.tell("checkpoint-hangs")
    run.until_counted("learner_restarts_lifetime", 2)
    run.until_trained()
    run.until(lambda: hangs not in run.actors("_WrappedExecutable"))
    assert len(run.actors("_WrappedExecutable")) == 1
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.said()
    run.check_course()
    said = run.said()
    assert said.count("warning: learners have not answered for 3 s (run.learner_timeout_s)") == 2
    for restart in (1, 2):
        assert f"warning: 1 of 1 learners died; restart {restart} of at most 3" in said
    assert run.summary()["checkpoints_written"] >= 3  # before the restart and after it
    run.check_quiet("(raylet)")
    assert not list((home / "ray_results").iterdir())  # RLlib's own folders, one an algorithm


@pytest.mark.parametrize("late", FULL_AND_SLOW)
def test_learning_that_fails_again_and_again_ends_the_run_with_a_message(faulty_run, late):
    run = faulty_run(
        *(*learner_options("HopelessLearner"), *NEVER_SOLVED, *(SOON if late else ())),
        *("--set", "run.max_learner_restarts=1"),
        env_runners=0,
    )
    if late:
        run.until(lambda: list((run.folder / "checkpoints").glob("checkpoint_*")))
    run.tell("hopeless")
    assert run.end() == 1, run.said()
    said = run.said()
    assert "restart 1 of at most 1" in said
    assert ("begins anew, there is no checkpoint yet" in said) is not late
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "updates in a row were no finite numbers" in error
    advice = f"continue with --resume {run.folder}" if late else "there is no checkpoint to "
    assert f"run.max_learner_restarts is 1; {advice}" in error
    run.check_quiet("(raylet)")
    assert not run.summary_file.exists()


@pytest.mark.slow
def test_all_env_runners_hang_and_the_watchdog_says_so(faulty_run):
    run = faulty_run(
        *(*NEVER_SOLVED, "--set", "run.stall_warning_s=2.0", "--set"),
        *("env_runners.sample_timeout_s=600.0", "--stop-time-s", 550),
        env_runners=1,
    )
    run.until_trained(1)
    [runner] = run.actors("FaultyEnvRunner")
    os.kill(runner, signal.SIGSTOP)
    run.until(lambda: "warning: no update for" in run.said())
    [line] = [line for line in run.said().splitlines() if "warning: no update" in line][:1]
    assert "1 of 1 env runners alive" in line and "requests under way for up to" in line
    os.kill(runner, signal.SIGCONT)
    run.until(lambda: "goes on after" in run.said())
    # Stalled for good, an interrupt still ends it soon, with a checkpoint.
    run.until_trained(1)
    os.kill(runner, signal.SIGSTOP)
    time.sleep(1)
    run.process.send_signal(signal.SIGTERM)
    sent, written = time.monotonic(), run.folder / "checkpoints"
    run.until(lambda: list(written.glob("checkpoint_*")))
    assert time.monotonic() - sent < 15  # what the README promises
    assert run.end() == 130, run.said()
    check_ledger(run.faults, run.summary()["env_steps"])


@pytest.mark.slow
def test_an_interrupt_while_certifying_stops_at_once(faulty_run):
    run = faulty_run("--set", "run.stop_iterations=2", env_runners=0)
    run.tell("hold-certification")
    run.until_told("certifying")
    run.process.send_signal(signal.SIGINT)
    assert run.end(60) == 130, run.said()
    summary = run.summary()
    assert summary["stopped_by"] == "interrupted" and summary["env_steps"] > 0
    assert all(stage["problems"] < 1_000 for stage in summary["stages"])  # measured, and no more
    run.check_course()
    run.check_quiet()

    # The first one while training, the second while certifying.
    run.resume("--set", "run.stop_iterations=null", *NEVER_SOLVED)
    run.until_trained()
    run.process.send_signal(signal.SIGINT)
    run.until_told("certifying")
    run.process.send_signal(signal.SIGINT)
    assert run.end(60) == 130, run.said()
    assert not run.summary_file.exists()  # it was the session before's
    _, state = newest_checkpoint(run.folder / "checkpoints")
    assert state.stopped_by == "interrupted"
    assert state.iteration == run.rows()[-1]["iteration"]
    check_ledger(run.faults, state.env_steps)
    run.check_quiet()


@pytest.mark.slow
def test_an_interrupt_while_certifying_what_was_never_measured(faulty_run):
    run = faulty_run(
        *("--set", "run.stop_iterations=1", "--set", "curriculum.measure_every_iterations=2"),
        env_runners=0,
    )
    run.tell("hold-certification")
    run.until_told("certifying")
    run.process.send_signal(signal.SIGTERM)
    assert run.end(60) == 130, run.said()
    assert run.summary()["stages"] == [] and run.summary()["env_steps"] > 0
    assert (run.folder / "report.html").is_file()
    run.check_quiet()


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_and_nothing_else(faulty_run, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    with mounted(place, "size=80m"):
        run = faulty_run(*NEVER_SOLVED, *SOON, env_runners=0)
        checkpoints = run.folder / "checkpoints"
        run.until(lambda: list(checkpoints.glob("checkpoint_*")))
        filler = place / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", 0) as file:
            while True:
                file.write(bytes(2**16))
        run.until(lambda: run.said().count("warning: no checkpoint could be written") > 1)
        said = run.said()
        assert "(No space left on device); the last good one is checkpoint_" in said
        assert "warning: progress.jsonl waits to be written" in said
        good, _ = newest_checkpoint(checkpoints)
        filler.unlink()
        run.until(lambda: newest_checkpoint(checkpoints)[0] != good)
        run.until_trained()
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.said()
        run.check_course()  # not a row is missing
        assert run.count("failed_checkpoints_lifetime") > 1
        run.check_quiet()


def test_rows_that_waited_for_a_full_disk_are_void_where_learning_begins_again(tmp_path):
    with mounted(tmp_path, "size=64k"):
        folder, filler = RunFolder(tmp_path), tmp_path / "filler"
        assert folder.append_progress({"iteration": 1}) is None
        with pytest.raises(OSError, match="No space left"), filler.open("wb", 0) as file:
            while True:
                file.write(bytes(2**12))
        row = {"iteration": 2, "text": "x" * 5_000}  # more than is left of the first row's page
        assert folder.append_progress(row) == "No space left on device"
        filler.unlink()
        assert folder.cut_progress(1) == [{"iteration": 1}]
        assert folder.append_progress({"iteration": 2}) is None
        assert lines_of(folder.progress) == [{"iteration": 1}, {"iteration": 2}]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_while_starting_up_ends_the_run_and_all_that_it_started(faulty_run, number):
    run = faulty_run()
    run.until(lambda: "results in" in run.said())
    time.sleep(0.5)
    children = run.children()
    run.process.send_signal(number)
    assert run.end(60) == 130, run.said()
    run.check_quiet("(raylet)")
    run.gone(children)


@pytest.mark.slow
def test_a_preemption_while_ray_starts_ends_the_run_and_all_that_it_started(faulty_run):
    run = faulty_run()
    run.until(run.children)  # Ray's first process
    run.process.send_signal(signal.SIGTERM)
    children = []
    while run.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            children.extend(run.children())
        time.sleep(0.1)
    assert run.end(60) == 130, run.said()
    assert run.said().strip() == "" and not run.folder.exists()
    run.gone(children)


@pytest.mark.full
def test_a_second_interrupt_stops_at_once(faulty_run):
    run = faulty_run(*NEVER_SOLVED)
    run.until_trained(1)
    for child in run.actors("FaultyEnvRunner"):
        os.kill(child, signal.SIGSTOP)  # the first one would have to wait
    children = run.children()
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    assert run.end(40) == 130, run.said()
    run.check_quiet("(raylet)")
    run.gone(children)


CLOCK = '''
import os, time
real = time.time
def jumping():
    """A day ahead in one second of each three, a day behind in another."""
    return real() + 86_400 * (int(real()) % 3 - 1)
if os.environ.get("FAULTS"):
    time.time = jumping
'''


@pytest.mark.slow
def test_a_wall_clock_that_jumps_changes_nothing(faulty_run, tmp_path):
    place = tmp_path / "clock"
    place.mkdir()
    (place / "sitecustomize.py").write_text(CLOCK)
    run = faulty_run(*SOON, extra=(place,))
    assert run.end() == 0, run.said()
    run.check_course()
    run.check_certified()
    rows = run.rows()
    assert run.summary()["wall_time_s"] < 200 and rows[-1]["time_s"] < 200
    assert all(0 < row["env_steps_per_s"] < 1e7 for row in rows)
    assert not any(rows[-1][name] for name in rows[-1] if name.startswith(("env_runner_", "hung")))


@pytest.mark.slow
def test_a_node_is_lost_and_another_one_added(faulty_run, monkeypatch, tmp_path):
    with cluster_of_raylets(monkeypatch, tmp_path / "faults", head_cpus=1) as cluster:
        node = cluster.add_node(num_cpus=1, resources={"runners": 2})
        run = faulty_run(
            *(*NEVER_SOLVED, "--address", cluster.address, "--stop-time-s", 550),
            *("--set", "run.stall_warning_s=3.0", "--set", "env_runners.num_cpus_per_env_runner=0"),
            *("--set", "env_runners.custom_resources_per_env_runner={'runners': 1}"),
        )
        run.until(lambda: any(row["next_stage"] == 2 for row in run.rows()))
        first = {line["pid"] for line in run.played()}
        cluster.remove_node(node, allow_graceful=False)
        run.until(lambda: "0 of 2 env runners alive" in run.said())
        cluster.add_node(num_cpus=1, resources={"runners": 2})
        run.until_counted("env_runner_restarts_lifetime", 2)
        assert {line["stage"] for line in run.played() if line["pid"] not in first} == {2}
        run.until_trained()
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.said()
        run.check_course()
        run.check_quiet()
