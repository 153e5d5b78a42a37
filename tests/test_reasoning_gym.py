"""Problems of the package reasoning-gym: what is posed, what is passed over, whose score it is."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from planner import Planner, shortest, silent
from trained import untrained_network

from toolagent import cli
from toolagent.checkpoints.policy import Policy, save_policy
from toolagent.errors import UserError
from toolagent.evaluate import reasoning_gym
from toolagent.evaluate.__main__ import command
from toolagent.evaluate.reasoning_gym import DATASETS, draw, score
from toolagent.installation import install_command
from toolagent.tasks import get_task

EXPRESSION = get_task("expression")


# Without the package -----------------------------------------------------------------------------


class Source:
    """A dataset that asks the given questions, over and over."""

    def __init__(self, questions):
        self.questions = questions

    def __getitem__(self, index):
        return {"question": self.questions[index % len(self.questions)], "answer": "0"}


@pytest.fixture
def asking(monkeypatch):
    """Puts a package in place that asks the given questions."""

    def put(*questions):
        made = []

        def create_dataset(name, **config):
            made.append(config)
            return Source(questions)

        package = SimpleNamespace(create_dataset=create_dataset)
        monkeypatch.setattr(reasoning_gym, "_package", lambda: package)
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0")
        return made

    return put


def test_what_cannot_be_posed_is_passed_over_and_counted(asking):
    made = asking(
        "Calculate 3 + -4.",
        "Calculate ( 3 + 4 ) * 2.",
        "Calculate -3 * 2.",
        "Calculate ( -3 + 2 ).",
        "Calculate 3 - - 4.",
        f"Calculate {'(' * 20}3{')' * 20}.",
        "Calculate 3 - 4 * 2.",
    )
    drawn = draw(EXPRESSION, "basic_arithmetic", 14, 5)
    texts = EXPRESSION.read(drawn.problems.context)["expression"].tolist()
    assert texts == ["(3+4)*2", "3-4*2"] * 7
    assert drawn.passed_over == {"negative numbers": 7 * 4, "too many parentheses": 7}
    assert drawn.drawn == Counter(dict.fromkeys(range(2, 9), 7))
    assert [(config["min_terms"], config["max_terms"]) for config in made] == [
        (operands, operands) for operands in range(2, 9)
    ]
    for config in made:
        assert (config["seed"], config["min_digits"], config["max_digits"]) == (5, 1, 1)
        assert config["operators"] == ["+", "-", "*"]


@pytest.mark.parametrize(
    "question",
    [
        "Calculate 3 / 4.",
        "Calculate __import__('os').system('true').",
        "Calculate 3 + 4",
    ],
)
def test_a_question_in_other_words_is_refused_and_never_run(question, asking):
    asking(question)
    with pytest.raises(UserError, match=r"reasoning-gym 0\.0 asks in other words"):
        draw(EXPRESSION, "basic_arithmetic", 7, 0)


def test_it_gives_up_where_nothing_can_be_posed(asking):
    asking("Calculate -3 + 4.")
    with pytest.raises(UserError, match="only 0 of 5,000 problems of basic_arithmetic"):
        draw(EXPRESSION, "basic_arithmetic", 7, 0)


def test_sizes_that_do_not_divide_are_shared_out(asking):
    asking("Calculate 3 + 4.")
    drawn = draw(EXPRESSION, "basic_arithmetic", 10, 0)
    assert list(drawn.drawn.values()) == [2, 2, 2, 1, 1, 1, 1]
    assert len(draw(EXPRESSION, "basic_arithmetic", 1, 0).entries) == 1


def refusal(capsys, *arguments):
    assert cli.main(command, [str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as if it were not installed
    policy = Policy(Planner(), EXPRESSION, {}, "checkpoint")
    monkeypatch.setattr("toolagent.evaluate.__main__.load_policy", lambda *_, **__: policy)
    message = refusal(capsys, "checkpoint", "--reasoning-gym", "chain_sum")
    assert "not installed" in message
    assert install_command("reasoning-gym") in message


def test_what_does_not_fit_is_refused(monkeypatch, capsys, tmp_path):
    save_policy(tmp_path, untrained_network(), "calculator")
    message = refusal(capsys, tmp_path, "--reasoning-gym", "chain_sum")
    assert "task 'calculator' is posed by digits" in message
    policy = Policy(Planner(), EXPRESSION, {}, tmp_path)
    monkeypatch.setattr("toolagent.evaluate.__main__.load_policy", lambda *_, **__: policy)
    message = refusal(capsys, tmp_path, "--reasoning-gym", "chain_sums")
    assert "did you mean 'chain_sum'?" in message


# With the package -------------------------------------------------------------------------------


@pytest.fixture
def package():
    return pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", list(DATASETS))
def test_the_packages_answers_are_the_tasks_targets(name, package):
    """So precedence is read alike, and the right answer scores 1; the invariant of the package."""
    drawn = draw(EXPRESSION, name, 350, 7)
    targets = drawn.problems.target.tolist()
    assert [int(entry["answer"]) for entry in drawn.entries] == targets
    assert np.bincount(drawn.problems.stage)[2:].tolist() == [50] * 7
    right, none = score(drawn, targets), score(drawn, [None] * 350)
    assert (right.mean_score, none.mean_score) == (1.0, 0.0)
    assert [row.operands for row in right.operands] == [2, 3, 4, 5, 6, 7, 8]
    assert all(row.mean_score == 1.0 for row in right.operands)
    wrong = score(drawn, [target + 1 for target in targets])
    assert 0 <= wrong.mean_score < 0.1  # part of a point where '10' is answered and '1' is right


@pytest.mark.parametrize("name", list(DATASETS))
def test_the_seed_decides_which_problems(name, package):
    def drawn(seed):
        problems = draw(EXPRESSION, name, 70, seed).problems
        return EXPRESSION.read(problems.context)["expression"].tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_score_and_the_restriction_are_reported_together(
    package, monkeypatch, tmp_path, capsys
):
    def half(task, problems, row):
        return (shortest if problems.stage[row] <= 3 else silent)(task, problems, row)

    folder = tmp_path / "checkpoint"
    policy = Policy(Planner(half), EXPRESSION, {"trained_stages": [1, 2, 3]}, folder)
    monkeypatch.setattr("toolagent.evaluate.__main__.load_policy", lambda *_, **__: policy)
    file = tmp_path / "out.json"
    flags = ["--reasoning-gym", "basic_arithmetic", "--size", "70", "--seed", "3"]
    assert cli.main(command, [str(folder), *flags, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    document = json.loads(file.read_text())
    result = document["reasoning_gym"]
    assert result["dataset"] == "basic_arithmetic"
    assert (result["size"], result["seed"]) == (70, 3)
    assert result["config"] == {
        "min_terms": 2,
        "max_terms": 8,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+", "-", "*"],
        "allow_parentheses": True,
        "allow_negation": False,
    }
    assert result["mean_score"] == pytest.approx(2 / 7)
    assert [row["mean_score"] for row in result["operands"]] == [1, 1, 0, 0, 0, 0, 0]
    assert [row["problems"] for row in result["operands"]] == [10] * 7
    assert result["drawn"] == 70 + sum(result["passed_over"].values())
    shares = [10 / row["drawn"] for row in result["operands"][:2]]
    assert result["mean_score_of_all_drawn"] == pytest.approx(sum(shares) / 7)
    assert [row["accuracy"] for row in document["stages"]] == [1, 1, 0, 0, 0, 0, 0]
    for words in (
        "basic_arithmetic, seed 3: mean score 0.286 on 70 problems",
        "single digits, + - *, parentheses, 2 to 8 operands in equal parts",
        "can't be posed and were passed over: negative numbers",
        "(each of them counted as wrong: mean score ",
        "* not trained on",
    ):
        assert words in out
    assert max(map(len, out[out.index("operands ") :].splitlines()[:10])) <= 80
    assert cli.main(command, [str(tmp_path), "--reasoning-gym", "chain_sum"]) == 0
    out = capsys.readouterr().out
    assert "on 500 problems" in out and "every problem drawn can be posed" in out
