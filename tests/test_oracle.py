"""What programs can do, found by search: the known answers, and a plain search beside them."""

import itertools

import numpy as np
import pytest
from reference_machines import REFERENCES

from toolagent.tasks import get_task, oracle
from toolagent.tasks.tokens import ADD, ANS, MUL, STO, SUB, VOCABULARY


def shortest(name, stage, **kwargs):
    return [VOCABULARY.text(p) for p in oracle.shortest_programs(get_task(name), stage, **kwargs)]


def test_the_calculator_has_exactly_one_shortest_program_a_stage():
    assert shortest("calculator", 0) == ["MUL ADD ANS"]
    assert shortest("calculator", 1) == ["MUL ADD SUB ANS"]
    assert shortest("calculator", 2) == ["MUL ADD STO MUL RCL SUB ANS"]


def test_no_program_solves_the_last_stage_of_the_tutorial():
    assert shortest("tutorial", 0) == ["MUL ADD ANS"]
    assert shortest("tutorial", 1) == ["MUL ADD SUB ANS", "MUL SUB ADD ANS"]
    assert shortest("tutorial", 2) == []


def test_a_limit_below_the_shortest_program_leaves_none():
    assert shortest("calculator", 2, max_length=6) == []
    assert shortest("calculator", 1, max_length=4) == ["MUL ADD SUB ANS"]
    assert shortest("calculator", 1, max_length=3) == []


def test_no_program_is_lost_or_let_through_when_the_probes_are_too_few(monkeypatch):
    # On 0*0+0-0 nearly everything is right: each false survivor comes back as a counterexample.
    monkeypatch.setattr(oracle, "_probes", lambda task, stage, size: task.problems(stage, 0, 1))
    assert shortest("calculator", 0) == ["MUL ADD ANS"]
    assert shortest("calculator", 1) == ["MUL ADD SUB ANS"]
    assert shortest("tutorial", 1) == ["MUL ADD SUB ANS", "MUL SUB ADD ANS"]


@pytest.mark.parametrize("name", ["tutorial", "calculator"])
def test_all_programs_of_up_to_four_tokens_one_by_one(name):
    """No pruning at all, and the scalar machine: what is left over are the oracle's programs."""
    rng = np.random.default_rng(0)
    for stage in (0, 1):
        problems = rng.integers(0, 10, (200, 5)).tolist()
        solving = []
        for length in (1, 2, 3, 4):
            for tools in itertools.product([3, 10, 11, 12, 13, 15, 16, 17], repeat=length - 1):
                if all(solves(name, stage, digits, tools) for digits in problems):
                    solving.append(VOCABULARY.text((*tools, ANS)))
            if solving:
                break
        assert shortest(name, stage) == solving


def solves(name, stage, digits, tools):
    machine = REFERENCES[name](stage, digits)
    for token in tools:
        machine.step(token)
    return machine.step(ANS)[3]


def test_what_the_documented_program_solves_of_the_tutorial_s_last_stage():
    task = get_task("tutorial")
    problems = task.problems(2, 0, task.num_problems(2))
    registers = task.start(problems)
    for token in (MUL, STO, SUB, MUL, ADD, ANS):
        transition = task.step(problems, registers, np.full(len(problems), token))
        registers = transition.registers
    # (a*b - e)*d + c = a*b+c-d*e exactly where a*b*d = a*b: d = 1, or a*b = 0.
    a, b, _, d, _ = problems.digits.T.astype(int)
    assert np.array_equal(transition.solved, (d == 1) | (a * b == 0))
    assert transition.solved.mean() == 0.271


def test_arguments_out_of_range_are_refused():
    task = get_task("calculator")
    for length in (0, 8):
        with pytest.raises(ValueError, match=rf"max_length is {length}; .* 1\.\.7 actions"):
            oracle.shortest_programs(task, 0, max_length=length)
    with pytest.raises(ValueError, match=r"stages are 0\.\.2"):
        oracle.shortest_programs(task, 3)


def test_a_stage_that_cannot_be_listed_is_refused():
    with pytest.raises(ValueError, match="stage 4 of task 'expression' cannot be listed"):
        oracle.shortest_programs(get_task("expression"), 4)
