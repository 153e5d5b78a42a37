"""What the answer to a prompt would be if a calculation of task `toolcall` came to one more."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from toolagent.tasks import get_task

TASK = get_task("toolcall")
DATABASE = [19, 3, 86, 8, 1, 48, 2, 2]


def tokens(text):
    """'ADD 12 , NEG 3 =' as tokens."""
    words = re.sub(r"(?<=\d)(?=\d)", " ", text).split()
    return [TASK.vocabulary.token(word) for word in words]


def lies_about(problems, programs):
    """What is told of episodes on the machine; the answers are observed as they are."""
    shape = (len(programs), max(map(len, programs)))
    actions = np.full(shape, TASK.vocabulary.answer_token)
    for row, program in enumerate(programs):
        actions[row, : len(program)] = program
    lengths = np.array([len(program) for program in programs])
    response, registers = [], TASK.start(problems)
    for step in range(shape[1]):
        transition = TASK.step(problems, registers, actions[:, step])
        registers = transition.registers
        response.append(transition.response)
    return TASK.lies(problems, actions, lengths, np.stack(response, 1))


@pytest.mark.parametrize(
    ("prompt", "program", "step", "told", "answer"),
    [
        ("3*B", "GET B = MUL 3 , 3 =", 7, "1 0", 10),
        ("3*B", "GET B = MUL 3 , 4 =", -1, None, None),  # not of this prompt
        ("3*B+C-7", "GET C = SUB 86 , 7 = GET B = MUL 3 , 3 =", 8, "8 0", 89),
        ("3*B+C-7", "GET C = SUB 7 , 86 =", 8, "NEG 7 8", 87),  # the negative of a part
        ("3*B+C-7", "GET C = ADD NEG 7 , 86 =", 9, "8 0", 89),
        ("9-2-3", "ADD 2 , 3 =", 4, "6", 3),
        ("9-2-3", "GET 7 SUB 9 , 3 =", 6, "7", 5),  # a refused call is none
        ("9-2*3*4", "MUL 4 , 3 =", 4, "1 3", -17),
        ("9-2*3*4", "MUL NEG 3 , 4 =", 5, "NEG 1 1", -13),
        ("9-2*3*4", "SUB 9 , 2 =", -1, None, None),
        ("3-3", "SUB 3 , 3 =", -1, None, None),  # 0 is the negative of itself
        ("2*3-3*2", "MUL 2 , 3 =", -1, None, None),  # parts of two signs
        ("2*3+3*2", "MUL 2 , 3 =", 4, "7", 13),
        ("7", "ADD 7 , 7 =", -1, None, None),
    ],
)
def test_the_prompts_value_with_one_part_replaced(prompt, program, step, told, answer):
    problems = TASK.pose(None, expression=[prompt], database=[DATABASE])
    lies = lies_about(problems, [tokens(program)])
    assert lies.step[0] == step
    if told is not None:
        shown = [token for token in lies.response[0] if token != TASK.vocabulary.pad_token]
        assert shown == tokens(told) and lies.answer[0] == answer


def test_of_the_usual_plan_the_first_part_is_replaced_in_every_stage():
    """An independent calculation: Python's, of the prompt's text."""
    problems = TASK.sample(np.random.default_rng(0), np.repeat(np.arange(9), 60))
    plans = [TASK.plan(problems, row) for row in range(len(problems))]
    lies = lies_about(problems, plans)
    expected = []
    for row, text in enumerate(TASK.read(problems.context)["expression"]):
        numbers = text
        for key, value in zip("ABCDEFGH", problems.database[row], strict=True):
            numbers = numbers.replace(key, str(value))
        product = re.search(r"\d+\*\d+", numbers)
        part = product or re.match(r"\d+[+-]\d+", numbers)
        told = numbers
        if part is not None:
            told = f"{numbers[: part.start()]}({part[0]}+1){numbers[part.end() :]}"
        expected.append(eval(told))
    there = lies.step >= 0
    assert_array_equal(lies.answer[there], np.array(expected)[there])
    few = problems.stage < 2
    assert not np.isin(problems.stage, (0, 1))[there].any() and there[~few].mean() > 0.95
