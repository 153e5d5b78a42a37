"""`python -m toolagent.explain` and the trajectories behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trained import (
    PROGRAMS,
    noisy_network,
    scripted_network,
    trained_network,
    untrained_network,
)

from toolagent import cli
from toolagent.checkpoints.policy import save_policy
from toolagent.explain.__main__ import command
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import describe, one_line, probability_text, trajectory, verdict
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, CTX, MUL, STO, SUB

CALCULATOR, TUTORIAL = get_task("calculator"), get_task("tutorial")


def pose(task, stage, *digits):
    return task.pose(np.array([stage]), digits=np.array([digits]))


def explained(programs, stage, *digits, task=CALCULATOR):
    """The trajectory of a network that emits `programs[stage]`."""
    # With a token that occurs twice only training makes one, which takes seconds.
    network = trained_network() if programs is PROGRAMS else scripted_network(programs[stage])
    return trajectory(network, task, pose(task, stage, *digits))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint_000001"
    save_policy(folder, trained_network(), "calculator")
    return folder


# The record --------------------------------------------------------------------------------


def test_the_registers_after_every_token_are_the_machines():
    recorded = explained(PROGRAMS, 2, 3, 4, 5, 6, 7)
    assert recorded.tokens == PROGRAMS[2]
    registers = [tuple(step.registers.values()) for step in recorded.steps]
    assert registers == [  # acc, mem, latch, cursor
        (12, None, None, 2),
        (17, None, None, 3),
        (None, 17, None, 3),
        (42, 17, None, 5),
        (17, None, 42, 5),
        (-25, None, None, 5),
        (-25, None, None, 5),
    ]
    assert recorded.steps[2].changed == ("acc", "mem")
    assert recorded.steps[-1].changed == ()
    assert (recorded.answer, recorded.target, recorded.solved) == (-25, -25, True)
    assert recorded.reward == pytest.approx(1.12)
    assert recorded.subgoals == ("a*b+c-d*e",)


@pytest.mark.parametrize("task", [CALCULATOR, TUTORIAL], ids=lambda task: task.name)
@pytest.mark.parametrize(
    "network", [lambda: untrained_network(2), lambda: noisy_network(0.4)], ids=["random", "noisy"]
)
def test_a_trajectory_is_the_episode_that_play_plays(network, task):
    """Tokens and rewards are `play`'s; probabilities and values those of the rollout's step."""
    network, rng = network(), np.random.default_rng(5)
    for stage in (0, 1, 2):
        problems = task.sample(rng, np.array([stage]))
        batch, recorded = play(network, task, problems), trajectory(network, task, problems)
        length = int(batch.lengths[0])
        assert recorded.tokens == tuple(batch.actions[0, :length])
        np.testing.assert_allclose(
            [step.reward for step in recorded.steps], batch.rewards[0, :length], rtol=1e-6
        )
        assert recorded.solved == batch.solved[0]
        table = network.step_table()
        token = CTX
        encoding, hidden = network.begin(
            torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
        )
        for step in recorded.steps:
            logits, value, hidden = network.step(table, torch.tensor([token]), encoding, hidden)
            probabilities = logits[0].softmax(0)
            order = probabilities.argsort(descending=True)
            assert [step.token, step.runner_up] == order[:2].tolist()
            assert step.probability == pytest.approx(float(probabilities[order[0]]), abs=1e-5)
            assert step.runner_up_probability == pytest.approx(
                float(probabilities[order[1]]), abs=1e-5
            )
            assert step.value == pytest.approx(float(value[0]), abs=1e-5)
            token = step.token


def test_one_problem_at_a_time():
    with pytest.raises(ValueError, match="one problem, not of 2"):
        trajectory(trained_network(), CALCULATOR, CALCULATOR.problems(0, 0, 2))


def test_a_problem_is_described_by_formula_and_numbers():
    assert describe(CALCULATOR, pose(CALCULATOR, 1, 3, 4, 5, 6, 7), 0) == ("a*b+c-d", "3*4+5-6")


# In words ----------------------------------------------------------------------------------

SHORT = ((MUL, ANS), (MUL, ADD, ANS), (MUL, ADD, SUB, ANS))
SILENT = ((ANS,), (MUL, STO, ANS), (MUL,) * 7)


@pytest.mark.parametrize(
    ("programs", "stage", "digits", "words"),
    [
        (PROGRAMS, 0, (3, 4, 5, 0, 0), "answers 17 = 3*4+5: right"),
        (
            SHORT,
            0,
            (3, 4, 5, 0, 0),
            "answers 12, the target is 17: wrong; 12 is a*b",
        ),
        (SHORT, 1, (1, 1, 0, 1, 0), "answers 1, the target is 0: wrong; 1 is a*b and a*b+c"),
        (SHORT, 2, (3, 4, 5, 6, 7), "answers 11, the target is -25: wrong; 11 is a*b+c-d"),
        (SILENT, 0, (3, 4, 5, 0, 0), "answered with an empty register: wrong; the target is 17"),
        (SILENT, 1, (3, 4, 5, 6, 0), "answered with an empty register: wrong; the target is 11"),
        (SILENT, 2, (3, 4, 5, 6, 7), "no answer in 7 actions: wrong; the target is -25"),
    ],
)
def test_the_verdict_says_why(programs, stage, digits, words):
    assert verdict(explained(programs, stage, *digits)) == words


def test_an_answer_that_is_nothing_is_said_to_be():
    assert verdict(explained(((MUL, SUB, ANS),), 0, 3, 4, 5, 0, 0)) == (
        "answers 7, the target is 17: wrong; 7 is no part of the problem"
    )


def test_the_tutorials_slip_is_named():
    """Its reward checks the target one stage behind: a*b is paid for, a*b+c is not."""
    assert verdict(explained(SHORT, 0, 3, 4, 5, 0, 0, task=TUTORIAL)) == (
        "answers 12, the target is 17: wrong; 12 is a*b, which this task's reward takes for right"
    )
    assert verdict(explained(PROGRAMS, 0, 3, 4, 5, 0, 0, task=TUTORIAL)) == (
        "answers 17 = 3*4+5: right, but this task's reward checks another target"
    )


def test_terms_with_digits_that_are_not_shown_are_no_explanation():
    """Stage 0 shows neither d nor e: 12 = 3*4 is not called d*e where d*e=12, too."""
    assert explained(SHORT, 0, 3, 4, 5, 3, 4).subgoals == ("a*b",)


def test_a_trajectory_on_one_line():
    line = one_line(explained(PROGRAMS, 2, 3, 4, 5, 6, 7))
    assert line.startswith("3*4+5-6*7: MUL[0.")
    for part in ("] acc=12 -> ADD[", "] mem=17 -> MUL[", "] acc=17 latch=42 -> SUB[", "]  right"):
        assert part in line
    assert "cursor" not in line and "\n" not in line
    assert one_line(explained(SHORT, 0, 3, 4, 5, 0, 0)).endswith("]  wrong: 12, not 17")
    assert one_line(explained(SILENT, 0, 3, 4, 5, 0, 0)).endswith("]  wrong: empty register")
    assert one_line(explained(SILENT, 2, 3, 4, 5, 6, 7)).endswith("]  wrong: no answer")


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, "1.00"), (0.9999, "0.99"), (0.004, "0.00"), (0.0, "0.00"), (float("nan"), "nan")],
)
def test_a_probability_is_rounded_down(probability, text):
    assert probability_text(probability, 2) == text


# The command -------------------------------------------------------------------------------


def run(*arguments):
    return cli.main(command, [str(argument) for argument in arguments])


def test_by_default_the_last_stage_is_explained(checkpoint, capsys):
    assert run(checkpoint) == 0
    shown = capsys.readouterr().out
    assert "stage 2: a*b+c-d*e = 3*4+5-6*7 = -25" in shown
    assert "answers -25 = 3*4+5-6*7: right" in shown
    assert "its program is the shortest" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80


@pytest.mark.parametrize("digits", ["9,8,7", " 9, 8 ,7", "9,8,7,6,5"])
def test_digits_are_those_shown_or_all_five(digits, checkpoint, capsys):
    assert run(checkpoint, "--stage", 0, "--digits", digits) == 0
    assert "a*b+c = 9*8+7 = 79" in capsys.readouterr().out


def test_the_widest_table_fits_80_columns(tmp_path, capsys):
    """Five-digit registers."""
    save_policy(tmp_path, scripted_network((MUL,) * 7), "calculator")
    assert run(tmp_path, "--digits", "9,9,9,9,9") == 0
    shown = capsys.readouterr().out
    assert "59049" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 78  # room for a longer value
    assert "shortest program for every problem of this stage: MUL ADD STO MUL RCL SUB ANS" in shown


def test_where_no_program_exists_it_is_said(tmp_path, capsys):
    save_policy(tmp_path, trained_network(), "tutorial")
    assert run(tmp_path) == 0
    assert "no program of up to 7 tokens solves every problem" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", 3], "has no stage 3; its stages are 0..2"),
        (["--digits", "1,2,3,4"], "4 numbers; stage 2, a*b+c-d*e, shows 5"),
        (["--digits", "1,2,3,4,"], "'' is no number"),
        (["--expression", "(3+4)*2"], "is posed by --digits"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, words, checkpoint, capsys):
    assert run(checkpoint, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err
