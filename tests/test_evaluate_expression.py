"""`python -m toolagent.evaluate` on task `expression`: samples, judgements, problem files."""

from __future__ import annotations

import json

import pytest
from planner import Planner, shortcut, shortest, silent, sums_only

from toolagent import cli
from toolagent.checkpoints.policy import Policy
from toolagent.errors import UserError
from toolagent.evaluate.__main__ import command
from toolagent.evaluate.problem_files import read_problems
from toolagent.rollouts import certification
from toolagent.tasks import get_task

EXPRESSION = get_task("expression")


@pytest.fixture
def evaluate(monkeypatch, tmp_path, capsys):
    """Evaluates a network that no checkpoint holds; returns (exit code, stdout, stderr, JSON)."""
    monkeypatch.setattr(certification, "SAMPLE_SIZE", 50)

    def run(choose, *arguments, metadata=None):
        policy = Policy(Planner(choose), EXPRESSION, metadata or {}, tmp_path / "checkpoint")
        monkeypatch.setattr("toolagent.evaluate.__main__.load_policy", lambda *_, **code: policy)
        file = tmp_path / "out.json"
        file.unlink(missing_ok=True)
        flags = ["checkpoint", "--json", str(file), *map(str, arguments)]
        code = cli.main(command, flags)
        document = json.loads(file.read_text()) if file.exists() else None
        return code, *capsys.readouterr(), document

    return run


# All stages ----------------------------------------------------------------------------------


def test_a_perfect_agent_is_reported_to_be_one(evaluate):
    code, out, err, document = evaluate(shortest)
    assert (code, err) == (0, "")
    assert list(document) == ["task", "stages"]
    assert [row["stage"] for row in document["stages"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["problems"] for row in document["stages"]] == [10, 300, 18_000] + [50] * 5
    for row in document["stages"]:
        perfect = {"solved": row["problems"], "accuracy": 1.0}
        perfect |= {"algebraically_valid": 1.0, "shortest": 1.0}
        assert perfect.items() <= row.items()
        assert row["complete"] == (row["stage"] < 4)
        if row["stage"] < 4:
            assert "held_out" not in row
        else:
            assert row["held_out"] == {"problems": 50, "solved": 50, **perfect}
    assert "solved 18,310/18,310 (every problem of stages 1, 2, 3)" in out
    assert "sample, not on all problems:\n50 seen, and below them 50 held out" in out
    assert out.count("100%") == 3 * (8 + 5)
    assert "not trained" not in out and "shortest plan" not in out
    table = out[out.index("stage ") : out.index("\n\nsolved")]
    assert max(map(len, table.splitlines())) <= 80
    assert sum(line.startswith("         held out") for line in table.splitlines()) == 5


def test_stages_that_were_not_trained_on_are_marked(evaluate):
    _, out, _, document = evaluate(silent, metadata={"trained_stages": [1, 2, 3]})
    assert document["trained_stages"] == [1, 2, 3]
    assert "* not trained on" in out
    assert "3 operands " in out and "3 operands*" not in out
    assert "4 operands*" in out and "held out*" in out
    _, out, _, document = evaluate(silent, metadata={"trained_stages": None})
    assert "*" not in out and "trained_stages" not in document


# Given problems -------------------------------------------------------------------------------


def test_given_expressions_are_answered_in_their_order(evaluate, tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("expression\n( 3 + 4 ) * 2\n0*(1*(2+9))\n7\n\n1-2-3\n")
    code, out, _, document = evaluate(shortcut, "--problems", file)
    assert code == 0 and "solved 4/4 (the problems in" in out
    assert list(document) == ["task", "stages", "depths", "answers"]
    assert [(row["stage"], row["problems"]) for row in document["stages"]] == [
        (1, 1),
        (3, 2),
        (4, 1),
    ]
    assert [row["algebraically_valid"] for row in document["stages"]] == [1.0, 1.0, 0.0]
    assert document["answers"] == [
        {
            "problem": "(3+4)*2",
            "tokens": ["3", "4", "ADD", "2", "MUL", "ANS"],
            "answer": 14,
            "solved": True,
            "algebraically_valid": True,
            "shortest": True,
        },
        {
            "problem": "0*(1*(2+9))",
            "tokens": ["0", "ANS"],
            "answer": 0,
            "solved": True,
            "algebraically_valid": False,
            "shortest": False,
        },
        {
            "problem": "7",
            "tokens": ["7", "ANS"],
            "answer": 7,
            "solved": True,
            "algebraically_valid": True,
            "shortest": True,
        },
        {
            "problem": "1-2-3",
            "tokens": ["1", "2", "SUB", "3", "SUB", "ANS"],
            "answer": -4,
            "solved": True,
            "algebraically_valid": True,
            "shortest": True,
        },
    ]


def test_given_expressions_are_counted_by_depth_too(evaluate, tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("expression\n3+4\n(2-1)*(3-4)\n((2*3))*(1)\n5*(2-(4-3))\n1-(2+(3))\n")
    code, out, _, document = evaluate(sums_only, "--problems", file)
    counts = [(row["depth"], row["problems"]) for row in document["depths"]]
    assert counts == [(0, 1), (1, 1), (2, 3)]
    answers = [answer["solved"] for answer in document["answers"]]
    solved = [sum(answers[:1]), sum(answers[1:2]), sum(answers[2:])]
    assert [row["solved"] for row in document["depths"]] == solved and solved[0] == 1
    assert code == 0 and out.splitlines()[-1].split()[:2] == ["2", "3"]


def test_wrong_answers_and_none_are_counted_as_wrong(evaluate, tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("expression\n2*2\n3*4\n")
    _, _, _, document = evaluate(sums_only, "--problems", file)
    assert [answer["answer"] for answer in document["answers"]] == [4, 7]
    assert [answer["solved"] for answer in document["answers"]] == [True, False]
    assert not any(answer["algebraically_valid"] for answer in document["answers"])
    _, out, _, document = evaluate(silent, "--problems", file)
    assert [answer["answer"] for answer in document["answers"]] == [None, None]
    assert "solved 0/2" in out


def test_a_stage_column_may_be_there_in_any_place_and_must_agree(tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text("stage,expression\n2,3+4\n 1 , 5\n", "utf-8-sig")
    assert read_problems(file, EXPRESSION).stage.tolist() == [2, 1]
    file.write_text("expression,stage\n3+4,2\n5,1\n")
    problems = read_problems(file, EXPRESSION)
    assert problems.stage.tolist() == [2, 1] and problems.target.tolist() == [7, 5]


HEADER = b"expression\n"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 1, "empty; expected the header expression"),
        (HEADER, 2, "no problem after the header"),
        (b"expresion\n3+4\n", 1, "did you mean 'expression'?"),
        (HEADER + b"3+4\n3+\n", 3, "expected a digit or '(' at the end"),
        (HEADER + b"3+4\n\n\n(3+4\n", 5, "a '(' without its ')'"),
        (HEADER + b"__import__('os').system('true')\n", 2, "not understood"),
        (HEADER + b"3+4,2\n", 2, "2 values; expected 1: expression"),
        (HEADER + b"3+\xff\n", 2, "not UTF-8"),
        (b"expression,stage\n3+4,3\n", 2, "is of stage 2"),
        (b"expression,stage\n3+4,9\n", 2, "stage is '9'"),
    ],
)
def test_a_faulty_file_of_expressions_is_refused_with_its_line(content, line, words, tmp_path):
    file = tmp_path / "problems.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_problems(file, EXPRESSION)
    message = str(caught.value)
    assert message.startswith(f"{file}, line {line}: ")
    assert words in message
    assert len(message) < len(str(file)) + 250 and "\n" not in message


# As a user runs it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "3"], "--size: only with --reasoning-gym"),
        (["--problems", "good.csv", "--reasoning-gym", "chain_sum"], "can't be given with"),
    ],
)
def test_a_wrong_command_line_is_refused_before_any_work(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("toolagent.evaluate.__main__.load_policy", lambda *_: pytest.fail("worked"))
    assert cli.main(command, ["checkpoint", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert words in captured.err
