"""What `explain` shows beside the trajectory: the oracle's way on, other futures, probes, files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trained import PROGRAMS, noisy_network, trained_network, untrained_network

from toolagent import cli
from toolagent.checkpoints.policy import save_policy
from toolagent.explain.__main__ import command
from toolagent.explain.microscope import look_at
from toolagent.explain.probes import ridge, run_probes
from toolagent.rollouts.play import GivenTokens, play
from toolagent.rollouts.trajectory import trajectory
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, EOS, MUL, NUM_TOKENS, STO, SUB

CALCULATOR, EXPRESSION = get_task("calculator"), get_task("expression")


def runs(task, problems, program):
    """Whether a program solves each problem, run on the task's machine."""
    registers = task.start(problems)
    for token in program:
        transition = task.step(problems, registers, np.full(len(problems), token))
        registers = transition.registers
        if transition.done.all():
            break
    return transition.solved


def test_the_oracle_goes_on_from_any_state_of_the_calculator():
    problems = CALCULATOR.pose(np.array([2]), digits=[[3, 4, 5, 6, 7]])
    for length in range(7):
        assert CALCULATOR.continuation(problems, 0, PROGRAMS[2][:length]) == PROGRAMS[2][length:]
    assert CALCULATOR.continuation(problems, 0, (ADD,)) is None  # seven tokens are needed
    first = CALCULATOR.pose(np.array([0]), digits=[[3, 4, 5, 0, 0]])
    assert CALCULATOR.continuation(first, 0, (EOS, MUL)) == (ADD, ANS)
    assert CALCULATOR.continuation(first, 0, (MUL, MUL)) is None


@pytest.mark.parametrize(
    ("text", "tokens", "rest"),
    [
        ("(3+4)*2", (), (3, 4, ADD, 2, MUL, ANS)),
        ("(3+4)*2", (3, EOS, 4), (ADD, 2, MUL, ANS)),
        ("(3+4)*2", (9, 3, 4), (ADD, 2, MUL, ANS)),  # what lies below does no harm
        ("(3+4)*2", (9, 9, 3), None),  # out of actions
        ("(3+4)*2", (3, 4, MUL), None),
        ("1-2", (2, 1), (2, SUB, ANS)),  # as above: the 2 is left over
        ("1-2", (EOS, 2, 1), None),  # 2-1 can't be turned round in two actions
    ],
)
def test_the_oracle_goes_on_from_any_stack(text, tokens, rest):
    problems = EXPRESSION.pose(None, expression=[text])
    assert EXPRESSION.continuation(problems, 0, tokens) == rest


@pytest.mark.parametrize("text", ["3-(4+2)*5", "2*3-4*5", "9-(8-7-6)", "3-(5-3)", "4*(2-1)*3"])
def test_continuations_of_expressions_are_found_where_a_plain_search_finds_them(text):
    """An independent search over all ways to go on; any digits stand for variables."""
    problems = EXPRESSION.pose(None, expression=[text])
    plan = EXPRESSION.plan(problems, 0)
    digits = sorted(token for token in plan if token < 10)
    rng = np.random.default_rng(0)
    for _ in range(6):
        order = list(rng.permutation(digits))
        prefix = tuple(int(d) for d in order[:2]) + ((ADD,) if rng.random() < 0.5 else ())
        rest = list((np.array(order[2:])).astype(int))
        length = len(digits) + len(digits) - 1 - len(prefix)
        pool = rest + [t for t in (ADD, SUB, MUL) for _ in range(length - len(rest))]
        tried = set(itertools.permutations(pool, length))
        right = [p for p in tried if sorted(t for t in p if t < 10) == sorted(rest)]
        programs = np.array([[*prefix, *p, ANS] for p in right])
        repeated = problems.take(np.zeros(len(programs), np.int64))
        lengths = np.full(len(programs), programs.shape[1])
        valid = EXPRESSION.judge(repeated, programs, lengths)["algebraically_valid"]
        found = EXPRESSION.continuation(problems, 0, prefix)
        if found is None or len(found) != length + 1:
            assert not valid.any(), (prefix, programs[valid][:3])
        else:
            assert valid.any()
            mine = np.array([[*prefix, *found]])
            judged = EXPRESSION.judge(problems, mine, np.array([mine.shape[1]]))
            assert judged["algebraically_valid"].all()


def test_forced_tokens_are_played_and_the_rest_is_greedy():
    network, problems = trained_network(), CALCULATOR.problems(2, 500, 510)
    greedy = play(network, CALCULATOR, problems)
    free = play(network, CALCULATOR, problems, chooser=GivenTokens(np.zeros((10, 0), int)))
    assert (free.actions == greedy.actions).all() and (free.lengths == greedy.lengths).all()
    assert (free.solved == greedy.solved).all()
    given = np.where(np.arange(10) % 2, ANS, GivenTokens.FREE)[:, None]
    forced = play(network, CALCULATOR, problems, chooser=GivenTokens(given))
    assert forced.lengths.tolist() == [int(n) if row % 2 == 0 else 1
                                       for row, n in enumerate(greedy.lengths)]  # fmt: skip


def test_a_look_is_what_a_fresh_episode_with_that_token_would_be():
    network = noisy_network(0.2)
    problems = CALCULATOR.pose(np.array([2]), digits=[[3, 4, 5, 6, 7]])
    recorded = trajectory(network, CALCULATOR, problems)
    looks = look_at(network, CALCULATOR, problems, recorded)
    for row, look in enumerate(looks):
        assert len(look.step.probabilities) == NUM_TOKENS
        assert sum(look.step.probabilities) == pytest.approx(1, abs=1e-5)
        assert look.step.probabilities[look.step.token] == pytest.approx(look.step.probability)
        start = (*recorded.tokens[:row], look.step.runner_up)
        assert look.instead.tokens[: row + 1] == start
        assert runs(CALCULATOR, problems, look.instead.tokens)[0] == look.instead.solved
        with torch.no_grad():  # the hidden state is the one that the logits come from
            logits = network.logits(torch.tensor(look.hidden))
        assert int(logits.argmax()) == look.step.token


def test_ridge_recovers_a_linear_rule_and_nothing_from_noise():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(600, 5)), rng.normal(size=(5, 1))
    y = x @ weights + 3
    assert np.abs(ridge(x[:400], y[:400], x[400:]) - y[400:]).max() < 0.05
    noise = rng.normal(size=(600, 1))
    error = ((ridge(x[:400], noise[:400], x[400:]) - noise[400:]) ** 2).mean()
    assert error > 0.8 * noise[400:].var()


def test_probes_find_what_a_hidden_state_holds_and_not_what_it_lacks():
    report = run_probes(trained_network(), CALCULATOR)
    probes = {probe.name: probe for probe in report.probes}
    assert set(probes) == {"accumulated value", "stored value", "next operand", "machine status"}
    for name in ("accumulated value", "stored value", "next operand"):
        assert abs(probes[name].shuffled) < 0.1 and probes[name].agent < 0.6
    assert probes["next operand"].inputs > 0.95  # the digit stands in the context
    assert probes["machine status"].agent > probes["machine status"].shuffled + 0.3
    assert "in reverse order" in report.notes[1]
    problems = CALCULATOR.problems(2, 0, 4)
    states = untrained_network().hidden_states(
        problems.context, problems.stage, np.full((4, 3), STO)
    )
    assert states.shape == (4, 3, 16)


def test_the_files(tmp_path, capsys):
    save_policy(tmp_path / "checkpoint", trained_network(), "calculator")
    files = {name: tmp_path / f"out.{name}" for name in ("html", "parquet", "json")}
    flags = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    asked = [str(tmp_path / "checkpoint"), "--digits", "3,4,5,6,7", *flags]
    assert cli.main(command, asked) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[1:])) <= 80
    table = pq.read_table(files["parquet"]).to_pylist()
    assert [row["token"] for row in table] == ["MUL", "ADD", "STO", "MUL", "RCL", "SUB", "ANS"]
    assert [row["registers"]["acc"] for row in table] == [12, 17, None, 42, 17, -25, -25]
    assert table[2]["oracle"] == ["STO", "MUL", "RCL", "SUB", "ANS"]
    assert len(table[0]["probabilities"]) == 18 and len(table[0]["hidden"]) == 32
    document = json.loads(files["json"].read_text())
    assert document["solved"] and document["answer"] == -25
    assert [step["registers"] for step in document["steps"]] == [row["registers"] for row in table]
    page = files["html"].read_text()
    assert page.count("<li>") == 7 and "MUL ADD STO MUL RCL SUB ANS" in page
    assert "http" not in page and "<script" not in page
    wrong = [str(tmp_path / "checkpoint"), "--html", str(tmp_path)]
    assert cli.main(command, wrong) == 2
    assert "is a folder" in capsys.readouterr().err
