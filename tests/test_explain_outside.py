"""`python -m toolagent.explain` of tasks and networks of other modules (`strangers.py`)."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import strangers
from refusals import refusal

from toolagent import cli
from toolagent.explain.__main__ import command
from toolagent.explain.views import HEARD
from toolagent.rollouts.trajectory import one_line, trajectory, verdict
from toolagent.tasks import get_task


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    for task in ("Bells", "Lifts", "Questions"):
        strangers.save_untrained(folder / task, task)
    return folder


def explain(*arguments):
    return cli.main(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize("task", ["Bells", "Lifts", "Questions"])
def test_every_view_of_an_outside_task_says_the_same(task, checkpoints, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("html", "parquet", "json")}
    flags = [text for name, file in files.items() for text in (f"--{name}", file)]
    named = f"strangers:{task}"
    assert explain(checkpoints / task, "--task", named, "--stage", 0, *flags) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert "empty register" not in shown and ("oracle" in shown) == (task == "Lifts")
    document = json.loads(files["json"].read_text())
    table = pq.read_table(files["parquet"]).to_pylist()
    page = files["html"].read_text()
    assert page.count("<li>") == len(table) == len(document["steps"])
    assert ("no right program begins like this" in page) <= (task == "Lifts")
    at = 0
    for row, step in zip(table, document["steps"], strict=True):
        assert row["token"] == step["token"] and row["response"] == step["response"]
        at += {"UP": 1, "LIFT": 3}.get(step["token"], 0)
        told = [f"F{min(at, 9)}", "NONE"] if task == "Questions" else []
        assert step["response"] == told
        shown_registers = {"at": at, "door": "open" if at else None} if task == "Lifts" else {}
        assert step["registers"] == shown_registers == row.get("registers", {})
    # The elevator of `Questions` answers every action: a turn a step.
    assert (HEARD in shown) == (task == "Questions") == ("conversation" in document)
    turns = len(table) if task == "Questions" else 0
    assert page.count('<li class="turn">') == turns == len(document.get("conversation", ()))


def test_the_flag_of_an_outside_task_poses_its_problem(checkpoints, monkeypatch, capfd):
    asked = [checkpoints / "Lifts", "--task", "strangers:Lifts"]
    assert explain(*asked, "--goal_floor", 7) == 0
    assert "F7 = 7" in capfd.readouterr().out
    monkeypatch.chdir(checkpoints)
    refusal(capfd, "explain", [*asked, "--goal_floor", 12], ["--goal_floor: floors are 0..9"])
    refusal(capfd, "explain", [*asked, "--digits", "1,2,3"], ["is posed by --goal_floor"])
    refusal(capfd, "explain", [*asked, "--goal_flor", 1], ["did you mean '--goal_floor'"])
    asked = [checkpoints / "Bells", "--task", "strangers:Bells"]
    refusal(capfd, "explain", [*asked, "--goal_floor", 1], ["can't be given problems"])
    refusal(capfd, "explain", [*asked, "--probes"], ["--probes", "bells"])


def test_a_solved_episode_is_right_also_where_the_answer_is_not_told(tmp_path):
    """Also where less than 1 is paid for it."""
    bells = get_task("strangers:Bells")
    words = set()
    for seed in range(40):
        strangers.save_untrained(tmp_path / str(seed), "Bells", strangers.Recurrent, seed)
        network = strangers.loaded(tmp_path / str(seed), "Bells", "Recurrent")
        for floor in range(4):
            problems = bells.floors(np.zeros(1, np.int8), np.array([floor]))
            recorded = trajectory(network, bells, problems)
            says = verdict(recorded)
            words.add((recorded.answered, recorded.solved))
            if recorded.answered:
                assert says.startswith("answered: right" if recorded.solved else "answered: wrong")
                assert one_line(recorded).endswith("right" if recorded.solved else f"not {floor}")
    assert words >= {(True, True), (True, False)}
