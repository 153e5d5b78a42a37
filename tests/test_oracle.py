"""What programs can do, found by search: the known answers, and a plain search beside them."""

import itertools

import numpy as np
import pytest
from program_search import best_program, shortest_lengths
from reference_machines import ANS, REFERENCES

from toolagent.tasks import get_task, oracle
from toolagent.vocabulary import names


def shortest(name, stage, **kwargs):
    return [names(p) for p in oracle.shortest_programs(get_task(name), stage, **kwargs)]


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
                    solving.append(names((*tools, ANS)))
            if solving:
                break
        assert shortest(name, stage) == solving


def solves(name, stage, digits, tools):
    machine = REFERENCES[name](stage, digits)
    for token in tools:
        machine.step(token)
    return machine.step(ANS)[3]


@pytest.mark.parametrize("name", ["tutorial", "calculator"])
def test_shortest_lengths_are_those_of_a_plain_search(name, monkeypatch):
    monkeypatch.setattr(oracle, "CHUNK", 32)  # several chunks, the last one not full
    task, rng = get_task(name), np.random.default_rng(5)
    problems = task.sample(rng, rng.integers(0, 3, 75).astype(np.int8))
    lengths = shortest_lengths(task, problems)
    assert lengths.shape == (75,) and lengths.dtype == np.int8
    expected = [
        plain_length(name, int(stage), digits)
        for stage, digits in zip(problems.stage, problems.digits, strict=True)
    ]
    assert lengths.tolist() == expected
    assert len(set(expected)) >= 4  # the sample is no special case


def plain_length(name, stage, digits):
    """Breadth first over the states that one problem's scalar machine can reach."""
    reached = {REFERENCES[name](stage, digits).state(): ()}
    for length in range(1, 8):
        if any(solves(name, stage, digits, tools) for tools in reached.values()):
            return length
        longer = {}
        for tools in reached.values():
            for token in range(11, 18):
                if token != ANS:
                    machine = REFERENCES[name](stage, digits)
                    for earlier in (*tools, token):
                        machine.step(earlier)
                    longer.setdefault(machine.state(), (*tools, token))
        reached = longer
    return 0


def test_no_problem_needs_more_than_its_stage_does():
    task = get_task("calculator")
    for stage, most in ((0, 3), (1, 4)):
        problems = task.problems(stage, 0, task.num_problems(stage))
        lengths = shortest_lengths(task, problems)
        assert lengths.min() >= 2 and lengths.max() == most
    # c = 0 makes a*b+c the product, whatever a and b; nothing else is solved by MUL ANS.
    problems = task.problems(0, 0, 1000)
    assert np.array_equal(shortest_lengths(task, problems) == 2, problems.digits[:, 2] == 0)


def test_without_memory_the_best_of_the_calculator_is_right_where_its_formula_is_by_chance():
    task = get_task("calculator")
    program, share = best_program(task, 2, max_length=6)
    # a*b+c = a*b+c-d*e where d*e = 0: 19 of the 100 pairs. `MUL ADD SUB ANS` has as many.
    assert (names(program), share) == ("MUL ADD ANS", 0.19)
    assert best_program(task, 2) == ((11, 12, 15, 11, 16, 13, 14), 1.0)


def test_the_best_the_tutorial_machine_can_do_on_its_last_stage():
    program, share = best_program(get_task("tutorial"), 2)
    # (a*b - e)*d + c = a*b+c-d*e exactly where a*b*d = a*b: d = 1, or a*b = 0.
    digits = np.indices((10,) * 5).reshape(5, -1)
    a, b, _, d, _ = digits
    assert names(program) == "MUL STO SUB MUL ADD ANS"
    assert share == ((d == 1) | (a * b == 0)).mean() == 0.271


def test_the_best_of_a_small_stage_is_the_best_of_all_programs():
    task = get_task("tutorial")
    problems = [(a, b, c, 0, 0) for a in range(10) for b in range(10) for c in range(10)]
    best = max(
        np.mean([solves("tutorial", 0, digits, tools) for digits in problems])
        for length in (1, 2)
        for tools in itertools.product([11, 12, 13, 15, 16], repeat=length - 1)
    )
    # Two tokens cannot add: only c = 0 is right.
    assert best_program(task, 0, max_length=2) == ((11, 14), best) == ((11, 14), 0.1)


@pytest.mark.parametrize("search", [oracle.shortest_programs, best_program])
def test_arguments_out_of_range_are_refused(search):
    task = get_task("calculator")
    for length in (0, 8):
        with pytest.raises(ValueError, match=rf"max_length is {length}; .* 1\.\.7 actions"):
            search(task, 0, max_length=length)
    with pytest.raises(ValueError, match=r"stages are 0\.\.2"):
        search(task, 3)


@pytest.mark.parametrize("search", [oracle.shortest_programs, best_program])
def test_a_stage_that_cannot_be_listed_is_refused(search):
    with pytest.raises(ValueError, match="stage 4 of task 'expression' cannot be listed"):
        search(get_task("expression"), 4)
