"""`python -m toolagent.explain` on task `expression`."""

from __future__ import annotations

import numpy as np
import pytest
from planner import (
    Planner,
    empty_handed,
    shortcut,
    shortest,
    silent,
    sums_only,
    wasteful,
)
from trained import untrained_expression_network, untrained_network

from toolagent import cli
from toolagent.checkpoints.policy import Policy, save_policy
from toolagent.explain.__main__ import command
from toolagent.rollouts.trajectory import trajectory, verdict
from toolagent.tasks import get_task

EXPRESSION = get_task("expression")


def explained(choose, text):
    return trajectory(Planner(choose), EXPRESSION, EXPRESSION.pose(None, expression=[text]))


@pytest.fixture
def explain(monkeypatch, capsys, tmp_path):
    """Explains a network that no checkpoint holds; returns what is shown."""

    def run(choose, *arguments, trained_stages=None):
        metadata = {"trained_stages": trained_stages}
        policy = Policy(Planner(choose), EXPRESSION, metadata, tmp_path)
        monkeypatch.setattr("toolagent.explain.__main__.load_policy", lambda *_, **__: policy)
        assert cli.main(command, ["checkpoint", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


def test_the_stack_and_mem_after_every_token_are_the_machines():
    recorded = explained(shortest, "(3+4)*2")
    assert [step.registers for step in recorded.steps] == [
        {"stack": stack, "mem": None} for stack in ("3", "3 4", "7", "7 2", "14", "14")
    ]
    assert recorded.steps[0].changed == ("stack",)
    assert [step.reward for step in recorded.steps] == [0, 0, 0, 0, 0, 1]
    assert (recorded.answer, recorded.target, recorded.solved) == (14, 14, True)
    assert recorded.judged == {"algebraically_valid": True, "shortest": True}
    assert recorded.computes == "(3+4)*2"
    # One logit is 10 and 17 are 0.
    assert all(step.probability == pytest.approx(0.99923, abs=1e-5) for step in recorded.steps)


@pytest.mark.parametrize(
    ("choose", "words", "computes", "judged"),
    [
        (shortest, "answers 14 = (3+4)*2: right", "(3+4)*2", (True, True)),
        (wasteful, "answers 14 = (3+4)*2: right", "(3+4)*2", (True, False)),
        (sums_only, "answers 9, the target is 14: wrong", "3+4+2", (False, False)),
        (empty_handed, "answered with an empty register: wrong; the target is 14", None, None),
        (silent, "no answer in 7 actions: wrong; the target is 14", None, None),
    ],
)
def test_the_verdict_says_why(choose, words, computes, judged):
    recorded = explained(choose, "(3+4)*2")
    assert verdict(recorded) == words
    assert recorded.computes == computes
    assert tuple(recorded.judged.values()) == (judged or (False, False))


# The command ---------------------------------------------------------------------------------


def test_by_default_one_expression_is_explained(explain):
    out = explain(shortest)
    assert "stage 3: (3+4)*2 = 14" in out
    assert "answers 14 = (3+4)*2: right" in out
    assert "its program computes (3+4)*2; algebraically valid: yes, shortest: yes" in out
    assert "shortest program: 3 4 ADD 2 MUL ANS" in out
    assert "training drew" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_a_right_answer_that_is_a_shortcut_is_shown_to_be_one(explain):
    out = explain(shortcut, "--expression", "0 * (1*(2+9))")
    assert "stage 4: 0*(1*(2+9)) = 0" in out
    assert "answers 0 = 0*(1*(2+9)): right" in out
    assert "its program computes 0; algebraically valid: no, shortest: no" in out
    assert "shortest program: 0 1 2 9 ADD MUL MUL ANS" in out


def test_a_stage_alone_shows_a_problem_of_it_always_the_same(explain):
    for stage in range(1, 9):
        out = explain(shortest, "--stage", stage)
        assert f"stage {stage}: " in out and ": right" in out
        assert explain(shortest, "--stage", stage) == out
    assert max(map(len, out.splitlines()[1:])) <= 90


def test_a_stage_may_be_named_beside_an_expression_of_it(explain):
    assert "= 14" in explain(shortest, "--stage", 3, "--expression", "(3+4)*2")


def test_it_is_said_where_training_drew_no_such_problem(explain):
    assert "training drew" not in explain(shortest, "--stage", 4, trained_stages=[1, 2, 3, 4])
    out = explain(shortest, "--stage", 5, trained_stages=[1, 2, 3, 4])
    assert "5 operands: training drew no such problem" in out
    problems = EXPRESSION.sample(np.random.default_rng(0), np.array([4]), "held_out")
    (text,) = EXPRESSION.read(problems.context)["expression"]
    out = explain(shortest, "--expression", text, trained_stages=[1, 2, 3, 4])
    assert "held out: training drew no such problem" in out


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_policy(folder / "expression", untrained_expression_network(), "expression")
    save_policy(folder / "calculator", untrained_network(), "calculator")
    return folder


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("expression", ["--digits", "3,4,5"], "task 'expression' is posed by --expression"),
        ("expression", ["--stage", 0], "has no stage 0; its stages are 1..8"),
        ("expression", ["--stage", 2, "--expression", "(3+4)*2"], "is of stage 3"),
        ("expression", ["--expression", "3+\n4\x1b[31m"], "not understood"),
        ("calculator", ["--expression", "(3+4)*2"], "task 'calculator' is posed by --digits"),
    ],
)
def test_a_wrong_command_line_is_refused(task, arguments, words, checkpoints, capsys):
    assert cli.main(command, [str(checkpoints / task), *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err
