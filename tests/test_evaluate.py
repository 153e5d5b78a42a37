"""`python -m toolagent.evaluate`: counts, answers, and everything a user can get wrong."""

from __future__ import annotations

import json
import os

import gymnasium as gym
import pytest
import torch
from trained import (
    noisy_network,
    scripted_network,
    trained_network,
)

from toolagent import cli
from toolagent.checkpoints.policy import save_policy
from toolagent.errors import UserError
from toolagent.evaluate.__main__ import answer_problems, command
from toolagent.evaluate.problem_files import read_problems
from toolagent.rollouts.certification import certify_stage
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import answers
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ANS, CTX, MUL, VOCABULARY

CALCULATOR = get_task("calculator")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint that solves all problems of `calculator`."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint_000001"
    save_policy(folder, trained_network(), "calculator")
    return folder


def run(*arguments):
    return cli.main(command, [str(argument) for argument in arguments])


def scalar_episode(network, env, stage, digits):
    """The greedy episode, one step at a time: (tokens, answer, solved)."""
    observation, info = env.reset(options={"stage": stage, "digits": digits})
    context = torch.from_numpy(observation["context"])[None]
    encoding, hidden = network.begin(context, torch.tensor([stage]))
    token, tokens, done = CTX, [], False
    terminated = False
    while not done:
        with torch.no_grad():
            logits, _, hidden = network.unroll(torch.tensor([[token]]), encoding, hidden)
            token = int(logits[0, 0].argmax())
        tokens.append(token)
        _, _, terminated, truncated, info = env.step(token)
        done = terminated or truncated
    return tokens, info["acc"] if terminated else None, info["solved"]


# Counting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", ["calculator", "tutorial"])
def test_counts_and_answers_are_those_of_a_scalar_loop(task_name):
    network, task = noisy_network(0.4, 1), get_task(task_name)
    env = gym.make(f"toolagent/{task_name.capitalize()}-v0").unwrapped
    problems = task.problems(0, 0, 1000)
    episodes = [
        scalar_episode(network, env, 0, [int(d) for d in digits]) for digits in problems.digits
    ]
    assert certify_stage(network, task, 0).solved == sum(solved for _, _, solved in episodes)
    _, answered = answer_problems(network, task, problems)
    assert [answer.tokens for answer in answered] == [
        [VOCABULARY.names[token] for token in tokens] for tokens, _, _ in episodes
    ]
    assert [(answer.answer, answer.solved) for answer in answered] == [
        (value, solved) for _, value, solved in episodes
    ]


def test_no_answer_and_an_empty_register_are_none():
    problems = CALCULATOR.problems(0, 0, 3)
    empty = scripted_network((ANS,))
    assert answers(CALCULATOR, problems, play(empty, CALCULATOR, problems)) == [None] * 3
    silent = scripted_network((MUL,) * 7)
    assert answers(CALCULATOR, problems, play(silent, CALCULATOR, problems)) == [None] * 3


# The command -------------------------------------------------------------------------------


def test_all_problems_are_counted_and_shown(checkpoint, tmp_path, capsys):
    assert run(checkpoint, "--json", tmp_path / "result.json") == 0
    shown = capsys.readouterr().out
    assert "solved 111,000/111,000" in shown
    certified, plans = shown.split("solved 111,000/111,000")
    assert certified.count("100%") == 3
    # The fixture imitates the shortest plans, so all of its programs are as short as they can be.
    assert plans.count("100%") == 3 and "MUL ADD STO MUL RCL SUB ANS" in plans
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "task": "calculator",
        "stages": [
            {"stage": stage, "problems": count, "solved": count, "accuracy": 1.0}
            for stage, count in enumerate((1_000, 10_000, 100_000))
        ],
    }
    assert os.listdir(tmp_path) == ["result.json"]


def test_given_problems_are_answered_in_their_order(checkpoint, tmp_path, capsys):
    file = tmp_path / "problems.csv"
    file.write_text("stage,a,b,c,d,e\n2,3,4,5,6,7\n0,9,9,9,,\n\n 0 , 1,2,3,4,5\n", "utf-8-sig")
    assert run(checkpoint, "--problems", file, "--json", tmp_path / "out.json") == 0
    assert "solved 3/3" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result) == ["task", "stages", "answers"]
    assert result["stages"] == [
        {"stage": 0, "problems": 2, "solved": 2, "accuracy": 1.0},
        {"stage": 2, "problems": 1, "solved": 1, "accuracy": 1.0},
    ]
    assert result["answers"] == [
        {
            "problem": "3*4+5-6*7",
            "tokens": ["MUL", "ADD", "STO", "MUL", "RCL", "SUB", "ANS"],
            "answer": -25,
            "solved": True,
        },
        {"problem": "9*9+9", "tokens": ["MUL", "ADD", "ANS"], "answer": 90, "solved": True},
        {"problem": "1*2+3", "tokens": ["MUL", "ADD", "ANS"], "answer": 5, "solved": True},
    ]


def test_columns_may_come_in_any_order(tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("e,stage,a,b,c,d\n5,2,1,2,3,4\n")
    problems = read_problems(file, CALCULATOR)
    assert problems.digits.tolist() == [[1, 2, 3, 4, 5]]
    assert problems.stage.tolist() == [2]


def test_many_problems_are_played_in_parts(tmp_path):
    """More than one chunk, stages mixed: the order of the file holds."""
    rows = [(n % 3, *(int(d) for d in f"{n:05d}")) for n in range(10_000)]
    file = tmp_path / "problems.csv"
    lines = (",".join(map(str, row)) for row in rows)
    file.write_text("stage,a,b,c,d,e\n" + "\n".join(lines))
    problems = read_problems(file, CALCULATOR)
    stages, answered = answer_problems(trained_network(), CALCULATOR, problems)
    assert [answer.answer for answer in answered] == CALCULATOR.target(problems).tolist()
    assert sum(row.solved for row in stages) == 10_000


HEADER = b"stage,a,b,c,d,e\n"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 1, "empty"),
        (HEADER, 2, "no problem after the header"),
        (b"stage,a,b,c,d\n0,1,2,3,4\n", 1, "no column 'e'"),
        (b"stage,a,b,c,d,e,stgae\n", 1, "unknown column 'stgae'; did you mean 'stage'?"),
        (b"stage,a,b,c,d,e,e\n", 1, "column 'e' occurs 2 times"),
        (HEADER + b"0,1,2,3,,\n0,1,x,3,,\n", 3, "b: 'x' is no number; expected a whole one"),
        (HEADER + "0,٣,2,3,,\n".encode(), 2, "is no number; expected a whole one"),
        (HEADER + b"0,1,2,3,,\n0,1,12,3,,\n", 3, "digits are integers 0..9"),
        (HEADER + b"7,1,2,3,4,5\n", 2, "stage is '7'; task 'calculator' has stages 0, 1, 2"),
        (HEADER + b"1,1,2,3,,\n", 2, "d is empty; stage 1 shows a, b, c, d"),
        (HEADER + b"0,1,2\n", 2, "3 values; expected 6"),
        (HEADER + b'0,1,2,3,4,"5\n', 2, "not CSV"),
        (HEADER + b"0,1,2,3,4,\xff\n", 2, "not UTF-8"),
    ],
)
def test_a_faulty_problem_file_is_refused_with_its_line(content, line, words, tmp_path):
    file = tmp_path / "problems.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_problems(file, CALCULATOR)
    message = str(caught.value)
    assert message.startswith(f"{file}, line {line}: ")
    assert words in message
    assert len(message) < len(str(file)) + 200


def test_a_device_as_json_file_stays_a_device(checkpoint, tmp_path, capsys):
    problems = tmp_path / "problems.csv"
    problems.write_text("stage,a,b,c,d,e\n0,1,2,3,,\n")
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    for target in (os.devnull, tmp_path / "link.json"):
        assert run(checkpoint, "--problems", problems, "--json", target) == 0
    assert not os.path.isfile(os.devnull)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "file.json").read_text())["task"] == "calculator"


# As a user runs it -------------------------------------------------------------------------
