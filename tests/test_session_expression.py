"""A run of task `expression` as far as its stages matter: when it is solved, and its report."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
from planner import Planner, shortest, silent
from rich.console import Console
from trained import untrained_expression_network

from toolagent.checkpoints.policy import load_policy
from toolagent.checkpoints.run_files import FirstSolved, RunState
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.cli.interrupt import Interrupt
from toolagent.config import load_settings
from toolagent.curriculum import stopping
from toolagent.rollouts import certification
from toolagent.rollouts.certification import certify, measure
from toolagent.run.keeper import CheckpointKeeper
from toolagent.run.results import print_report, sample_trajectories, summarize
from toolagent.run.training import Outcome, TrainingLoop
from toolagent.tasks import get_task

EXPRESSION = get_task("expression")
LEVELS = (
    "task=expression",
    "curriculum.levels=[{stage: 2, advance_at_accuracy: 0.9}, {stage: 4}]",
    "curriculum.earlier_stage_share=0",
    "run.sample_trajectories=2",
)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(certification, "SAMPLE_SIZE", 100)


@pytest.fixture
def settings():
    return load_settings(None, LEVELS)


def up_to(operands):
    """Right on problems with so many operands or fewer, of skeletons that training draws."""

    def choose(task, problems, row):
        right = problems.stage[row] <= operands and not problems.held_out[row]
        return (shortest if right else silent)(task, problems, row)

    return Planner(choose)


def keeper_of(settings, folder):
    """Of a run that has written no checkpoint."""
    return CheckpointKeeper(settings, None, None, folder, print)


class Watched:
    """A watchdog that watches nothing."""

    def during(self, doing):
        return contextlib.nullcontext()


class Events:
    """A display that keeps what it is told."""

    def __init__(self):
        self.texts = []

    def event(self, text):
        self.texts.append(text)


def note_solved(settings, network, state, display, interrupt=None):
    """Whether the run ends after a measurement of this network."""
    measured = measure(network, EXPRESSION, (2, 4), np.random.default_rng(0), 20)
    callback = SimpleNamespace(
        network=network, task=EXPRESSION, measured=measured, settings=settings.curriculum
    )
    session = SimpleNamespace(
        settings=settings, display=display, interrupt=interrupt or Interrupt(), watchdog=Watched()
    )
    keeper = SimpleNamespace(algorithm=None, callback=callback)
    return TrainingLoop(session, keeper, state, [])._certify(True)


# When a stage is solved ------------------------------------------------------------------------


def test_a_listed_stage_is_certified_and_another_solved_on_the_sample(settings):
    state, display = RunState(env_steps=1234, time_s=5.0), Events()
    assert not note_solved(settings, up_to(1), state, display)
    assert state.first_solved == {} and display.texts == []
    assert not note_solved(settings, up_to(2), state, display)
    assert state.first_solved == {"2": FirstSolved(1234, 5.0)}
    assert display.texts == [
        "    1,234 env steps: stage 2 certified, all 300 problems solved (5.0 s)"
    ]
    state.env_steps = 2345
    assert note_solved(settings, up_to(4), state, display)
    assert state.first_solved["4"].env_steps == 2345
    assert display.texts[1:] == [
        "    2,345 env steps: stage 4 solved, all 10,000 problems of the sample (5.0 s)"
    ]


def test_what_was_solved_is_played_again_only_where_that_ends_the_run(settings, monkeypatch):
    played = []
    certify_if_solved = certification.certify_if_solved

    def noted(network, task, stage, failed):
        played.append(stage)
        return certify_if_solved(network, task, stage, failed)

    monkeypatch.setattr(stopping, "certify_if_solved", noted)
    monkeypatch.setattr(certification, "certify_if_solved", noted)
    state, display = RunState(), Events()
    go_on = load_settings(None, (*LEVELS, "run.stop_when_solved=false"))
    assert not note_solved(go_on, up_to(4), state, display)
    assert played == [2, 4] and set(state.first_solved) == {"2", "4"}
    assert not note_solved(go_on, up_to(4), state, display)
    assert played == [2, 4]
    assert note_solved(settings, up_to(4), state, display)
    assert played == [2, 4, 2, 4]


def test_what_was_failed_is_played_first(monkeypatch):
    """One of the last problems of the sample is failed, again and again."""
    monkeypatch.setattr(certification, "CHUNK", 20)
    *_, part = certification.fixed_sample(EXPRESSION, 4, "seen")
    text = EXPRESSION.read(part.context[-1:])["expression"][0]
    played, play = [], certification.play

    def noted(network, task, problems):
        played.append(len(problems))
        return play(network, task, problems)

    def all_but_one(task, problems, row):
        one = task.read(problems.context[row : row + 1])["expression"][0] == text
        return (silent if one else shortest)(task, problems, row)

    monkeypatch.setattr(certification, "play", noted)
    failed = {}
    assert not certification.certify_if_solved(Planner(all_but_one), EXPRESSION, 4, failed)
    assert sum(played) == certification.SAMPLE_SIZE
    played.clear()
    assert not certification.certify_if_solved(Planner(all_but_one), EXPRESSION, 4, failed)
    assert played == [20]
    assert certification.certify_if_solved(Planner(), EXPRESSION, 4, failed)


def test_a_signal_ends_certifying(settings):
    interrupt = Interrupt()
    interrupt.requested = True
    state = RunState()
    assert not note_solved(settings, up_to(4), state, Events(), interrupt)
    assert state.uncertified and state.first_solved == {}  # resumed, it certifies first


def test_a_faultless_measurement_is_not_enough(settings):
    """20 problems are right, one of the fixed sample is not."""
    (part,) = certification.fixed_sample(EXPRESSION, 4, "seen")
    (text,) = EXPRESSION.read(part.context[57:58])["expression"]

    def all_but_one(task, problems, row):
        one = task.read(problems.context[row : row + 1])["expression"][0] == text
        return (silent if one else shortest)(task, problems, row)

    state, display = RunState(), Events()
    assert not note_solved(settings, Planner(all_but_one), state, display)
    assert set(state.first_solved) == {"2"}


# The report -----------------------------------------------------------------------------------


@pytest.fixture
def outcome(settings, tmp_path):
    """What a run came to that solved its stages."""
    network = up_to(4)
    folder = RunFolder(tmp_path / "run")
    state = RunState(3, 4567, 8.0, {"2": FirstSolved(1234, 5.0)})
    stages = certify(network, EXPRESSION)
    return Outcome(state, "solved", stages, [], keeper_of(settings, folder), network, EXPRESSION)


def test_the_table_has_every_stage_and_says_which_were_not_trained_on(outcome, capsys):
    console = Console(width=80, markup=False, highlight=False)
    samples = sample_trajectories(outcome)
    print_report(console, outcome, samples)
    out = capsys.readouterr().out
    table = out[out.index("stage  problem") :].split("\n\n")[0]
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {
        line[7:].split("  ")[0]: line for line in lines if line[:1].isdigit() and line[1] == " "
    }
    assert list(rows) == [
        "1 operand*",  # no level's stage, and none is drawn from earlier stages
        "2 operands",
        "3 operands*",
        "4 operands",
        "5 operands*",
        "6 operands*",
        "7 operands*",
        "8 operands*",
    ]
    assert rows["2 operands"].split()[3:] == ["300/300", "100%", "100%", "100%", "1,234"]
    assert rows["4 operands"].split()[3:] == ["100/100", "100%", "100%", "100%", "-"]


def test_the_summary_has_the_shares_of_every_stage(outcome):
    summary = summarize(outcome)
    assert [stage["stage"] for stage in summary["stages"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    second, fourth = summary["stages"][1], summary["stages"][3]
    assert second == {
        "stage": 2,
        "problems": 300,
        "solved": 300,
        "accuracy": 1.0,
        "algebraically_valid": 1.0,
        "shortest": 1.0,
        "complete": True,
        "first_solved_env_steps": 1234,
        "first_solved_s": 5.0,
        "mean_reward": 1.0,
    }
    assert (fourth["accuracy"], fourth["complete"]) == (1.0, False)
    assert fourth["held_out"]["accuracy"] == 0.0
    assert fourth["first_solved_env_steps"] is None


# The checkpoint -----------------------------------------------------------------------------------


def test_a_checkpoint_says_which_stages_were_trained(settings, tmp_path):
    network = untrained_expression_network()
    callback = SimpleNamespace(
        task=EXPRESSION, refresh_network=lambda algorithm: network, measured=[]
    )
    algorithm = SimpleNamespace(get_state=lambda: {"updates": 3})
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    checkpoint = CheckpointKeeper(settings, algorithm, callback, folder, print).write(RunState())
    assert load_policy(checkpoint).metadata["trained_stages"] == [2, 4]
