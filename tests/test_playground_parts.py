"""The playground's parts, without Ray: the player against `play`, batches, problems, the guard."""

import asyncio

import numpy as np
import pytest
import torch
from trained import noisy_network, untrained_expression_network

from toolagent.checkpoints.policy import Policy
from toolagent.errors import UserError
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import answers as answers_of
from toolagent.rollouts.trajectory import trajectory
from toolagent.serve.agents import named
from toolagent.serve.batching import Batcher
from toolagent.serve.guard import host_of
from toolagent.serve.player import Player, Question
from toolagent.serve.problems import Refused, example_of, first_example, keys_of, question_of
from toolagent.serve.schemas import requests_of
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ANS, NUM_TOKENS, STO

CALCULATOR = get_task("calculator")


def player(network, task_name, tmp_path):
    return Player(Policy(network.eval(), get_task(task_name), {}, tmp_path))


def asked_of(task, **fields):
    """A problem as the API has checked it."""
    return requests_of(task, keys_of(task)).problem(**fields)


def questions(problems):
    return [Question(problems.take(np.array([row]))) for row in range(len(problems))]


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_every_problem_of_a_stage_is_played_as_play_does(scale, tmp_path):
    task = get_task("calculator")
    network = noisy_network(scale)
    problems = task.problems(0, 0, 1000)
    batch = play(network, task, problems)
    answered = player(network, "calculator", tmp_path).answer(questions(problems))
    expected = [batch.actions[row, : batch.lengths[row]].tolist() for row in range(len(problems))]
    assert [[step.token for step in one.steps] for one in answered] == expected
    assert [one.solved for one in answered] == batch.solved.tolist()
    assert [one.answer for one in answered] == answers_of(task, problems, batch)


def test_expressions_of_different_lengths_are_played_together_as_alone(tmp_path):
    task, network = get_task("expression"), untrained_expression_network(3)
    problems = task.sample(np.random.default_rng(0), np.array([1, 8, 3, 5, 2, 8], np.int8))
    one = player(network, "expression", tmp_path)
    asked = questions(problems)
    together = one.answer(asked)
    for question, answer in zip(asked, together, strict=True):
        (alone,) = one.answer([question])
        assert [s.token for s in alone.steps] == [s.token for s in answer.steps]
        assert np.allclose(
            [s.probabilities for s in alone.steps],
            [s.probabilities for s in answer.steps],
            atol=1e-5,
        )


def test_steps_are_those_of_the_recorded_trajectory(tmp_path):
    task, network = get_task("calculator"), noisy_network(0.1)
    problem = task.pose(np.array([2]), digits=np.array([[3, 4, 5, 6, 7]]))
    recorded = trajectory(network, task, problem)
    (answer,) = player(network, "calculator", tmp_path).answer([Question(problem)])
    assert answer.solved == recorded.solved and answer.answered == recorded.answered
    for step, expected in zip(answer.steps, recorded.steps, strict=True):
        assert step.token == expected.token and not step.given
        assert len(step.probabilities) == NUM_TOKENS
        assert sum(step.probabilities) == pytest.approx(1, abs=1e-5)
        assert step.probabilities[step.token] == pytest.approx(expected.probability, abs=1e-5)
        assert step.value == pytest.approx(expected.value, abs=1e-5)
        assert step.registers == expected.registers
        assert step.reward == pytest.approx(expected.reward)


@pytest.mark.parametrize("at", range(4))
def test_given_tokens_stand_first_and_the_rest_is_greedy_behind_them(at, tmp_path):
    """Against a plain loop: the network's own `unroll` over the program so far, then argmax."""
    task, network = get_task("calculator"), noisy_network(0.1)
    problem = task.pose(np.array([2]), digits=np.array([[3, 4, 5, 6, 7]]))
    one = player(network, "calculator", tmp_path)
    (original,) = one.answer([Question(problem)])
    given = (*(step.token for step in original.steps[:at]), STO)
    (answer,) = one.answer([Question(problem, given)])
    program = [step.token for step in answer.steps]
    assert tuple(program[: len(given)]) == given
    assert [step.given for step in answer.steps] == [n < len(given) for n in range(len(program))]
    with torch.no_grad():
        encoding, hidden = network.begin(
            torch.from_numpy(problem.context), torch.from_numpy(problem.stage)
        )
        previous = torch.tensor([[10, *program[:-1]]])
        logits, _, _ = network.unroll(previous, encoding, hidden)
    assert program[len(given) :] == logits[0, len(given) :].argmax(1).tolist()


def test_what_is_asked_in_one_turn_is_one_batch():
    sizes = []

    def answer(batch):
        sizes.append(len(batch))
        return [2 * number for number in batch]

    async def ask():
        batcher = Batcher(answer, 4)
        batcher.observe = lambda size: sizes.append(-size)
        alone = await batcher.ask(21)
        return alone, await asyncio.gather(*map(batcher.ask, range(10)))

    assert asyncio.run(ask()) == (42, [2 * number for number in range(10)])
    assert sizes == [-1, 1, -4, 4, -4, 4, -2, 2]


def test_a_fault_reaches_everybody_in_the_batch_and_nobody_after_it():
    def answer(batch):
        if 0 in batch:
            raise ArithmeticError("zero")
        return batch

    async def ask():
        batcher = Batcher(answer, 8)
        faults = await asyncio.gather(*map(batcher.ask, (0, 1)), return_exceptions=True)
        return faults, await batcher.ask(2)

    faults, after = asyncio.run(ask())
    assert [type(fault) for fault in faults] == [ArithmeticError] * 2 and after == 2


def test_who_gave_up_is_not_played():
    played = []

    async def ask():
        batcher = Batcher(lambda batch: played.extend(batch) or batch, 8)
        gone = asyncio.ensure_future(batcher.ask("gone"))
        there = asyncio.ensure_future(batcher.ask("there"))
        await asyncio.sleep(0)  # both have asked; the batch runs in the next turn
        gone.cancel()
        return await there

    assert asyncio.run(ask()) == "there"
    assert "there" in played


@pytest.mark.parametrize(
    "asked, reason",
    [
        ({"digits": [3, 4]}, "2 numbers; expected 3"),
        ({"stage": 2, "digits": [3, 4, 5]}, "3 numbers; stage 2, a*b+c-d*e, shows 5"),
        ({"stage": 3, "digits": [3, 4, 5]}, "no stage 3; its stages are 0..2"),
        ({}, "'digits' is missing"),
        ({"digits": [1, 2, 3], "given": ["ANS", "1"]}, "'1' comes after ANS"),
        ({"digits": [1, 2, 3], "given": ["MUL"] * 8}, "8 tokens; an episode of this problem has 7"),
    ],
)
def test_no_question(asked, reason):
    with pytest.raises(Refused) as refused:
        question_of(CALCULATOR, asked_of(CALCULATOR, **asked))
    assert reason in str(refused.value)


@pytest.mark.parametrize("asked, stage", [([1, 2, 3], 0), ([1, 2, 3, 4], 1), ([1, 2, 3, 4, 5], 2)])
def test_the_number_of_digits_tells_the_stage(asked, stage):
    question = question_of(CALCULATOR, asked_of(CALCULATOR, digits=asked))
    assert question.problem.stage.tolist() == [stage]
    every = question_of(CALCULATOR, asked_of(CALCULATOR, stage=0, digits=[1, 2, 3, 4, 5]))
    assert every.problem.stage.tolist() == [0]


@pytest.mark.parametrize("name", ["calculator", "tutorial", "expression"])
def test_an_example_can_be_asked(name):
    task, rng = get_task(name), np.random.default_rng(0)
    for stage in [*task.stages, None]:
        drawn = example_of(task, stage, rng)
        question = question_of(task, asked_of(task, **drawn))
        assert question.problem.stage.tolist() == [drawn["stage"]]
        assert stage in (None, drawn["stage"])
    with pytest.raises(Refused):
        example_of(task, 99, rng)


@pytest.mark.parametrize(
    "header, host",
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("evil.example:8000", "evil.example"),
        ("127.0.0.1:8000@evil.example", None),
        ("127.0.0.1:", "127.0.0.1"),
        ("[evil]:80", None),
        ("", None),
        (":80", None),
    ],
)
def test_host_of_a_header(header, host):
    assert host_of(header) == host


@pytest.mark.parametrize(
    "given, names",
    [
        (["runs/a", "./runs/b/", "c"], ["runs/a", "runs/b", "c"]),
        (["old one=runs/a", "runs/b"], ["old one", "runs/b"]),
        (["runs/lr=1", "x=y"], ["runs/lr=1", "x=y"]),  # the second one is a folder
        (["/home/me/runs/a", "x=/home/me/runs/a"], ["a", "x"]),
        (["/r/a/x", "s3://bucket/b/x", "../y"], ["a/x", "b/x", "{parent}/y"]),
        ({"x=": "/r/a", "y/z": "b"}, ["x=", "y/z"]),
    ],
)
def test_agents_are_called_what_was_typed(given, names, tmp_path, monkeypatch):
    """And nobody is told where on the machine they are."""
    (tmp_path / "here" / "x=y").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert [*named(given)] == [name.format(parent=tmp_path.name) for name in names]
    folders = given.values() if isinstance(given, dict) else given
    for text, folder in zip(folders, named(given).values(), strict=True):
        assert text in (folder, f"old one={folder}", f"x={folder}")


def test_names_are_different_and_not_empty():
    assert named(["a=~/x"])["a"].endswith("/x") and "~" not in named(["a=~/x"])["a"]
    for given in (["x=a", "x=b"], ["=a"], ["a="], [" =a"]):
        with pytest.raises(UserError, match="NAME=FOLDER"):
            named(given)
    for given in (["a", "./a"], ["/x/y", "/x/y"]):
        with pytest.raises(UserError, match="twice"):
            named(given)


def test_answering_ends_the_program(tmp_path):
    task = get_task("calculator")
    problem = task.pose(np.array([0]), digits=np.array([[3, 4, 5, 0, 0]]))
    (answer,) = player(noisy_network(0.0), "calculator", tmp_path).answer(
        [Question(problem, (ANS,))]
    )
    assert [step.token for step in answer.steps] == [ANS]
    assert answer.answered and answer.answer is None and not answer.solved


@pytest.mark.parametrize("trained, stage", [(None, 4), ([2, 4, 6], 4), ([1, 3], 3), ([6], 6)])
def test_the_page_opens_with_a_problem_that_was_trained_on(trained, stage):
    task = get_task("toolcall")
    example = first_example(task, trained)
    assert example["stage"] == stage and (example["expression"] == "B*C") == (stage == 4)
    question = question_of(task, asked_of(task, **example))
    assert question.problem.stage.tolist() == [stage]
