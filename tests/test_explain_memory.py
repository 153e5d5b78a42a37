"""`explain --memory`: networks whose memory is known by construction are seen for what they are."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from answering import PeekTask
from trained import scripted_network, untrained_network

from toolagent import cli
from toolagent.checkpoints.policy import Policy
from toolagent.envs import register_task
from toolagent.explain.__main__ import command
from toolagent.explain.memory import ALL, run_memory
from toolagent.models.base import AgentNetwork, InitialState
from toolagent.tasks import get_task, tokens
from toolagent.tasks.toolcall import written
from toolagent.tasks.toolcall_machine import ANS, COMMA, EQUALS, FIRST_KEY, GET, MUL, NEG

register_task(PeekTask)
TASK, TOOLCALL = PeekTask(), get_task("toolcall")
LOOK, SAY, NONE = 3, 4, 5
FIRST, SECOND = -1, -2  # in a script: the digit that is noted, or that is being observed


class Scripted(AgentNetwork):
    """Writes a script. What it is told stands in the state twice, and it reads one of the two."""

    script = (LOOK, 0, FIRST, SECOND, SAY)
    parts: ClassVar = {"clock": slice(0, 1), "used": slice(1, 3), "unused": slice(3, 5)}

    def __init__(self):
        super().__init__(TASK.interface)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @property
    def state_parts(self):
        return self.parts

    def begin(self, context, stage):
        return InitialState((context,), torch.zeros(len(context), 5))

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        assert responses is not None
        logits = []
        for step in range(previous_tokens.shape[1]):
            seen = responses[:, step].float()
            told = (seen != NONE).all(1, keepdim=True)
            notes = torch.where(told, seen.repeat(1, 2), hidden[:, 1:])
            token = self.token(hidden[:, 0].long(), notes, told.squeeze(1), encoding[0])
            hidden = torch.cat([hidden[:, :1] + 1, notes], 1)
            logits.append(torch.nn.functional.one_hot(token, 5).float())
        return torch.stack(logits, 1), torch.zeros(previous_tokens.shape), hidden

    def token(self, clock, notes, told, context):
        script = torch.tensor(self.script)[clock.clamp(max=len(self.script) - 1)]
        first, second = notes[:, 0].long(), notes[:, 1].long()
        return torch.where(script == FIRST, first, torch.where(script == SECOND, second, script))


class AsksAgain(Scripted):
    """Looks again before it writes a digit: it remembers nothing but how far it is."""

    script = (LOOK, 0, LOOK, FIRST, LOOK, SECOND, SAY)


class Mixes(Scripted):
    """Reads one digit from each of the two parts."""

    parts: ClassVar = {"used": slice(0, 2), "unused": slice(2, 5)}


class Hesitates(Scripted):
    """Looks twice, with a token between where the first digit is not 0: episodes of two lengths."""

    def token(self, clock, notes, told, context):
        scripts = torch.tensor(
            [(LOOK, LOOK, 0, FIRST, SECOND, SAY, SAY), (LOOK, 0, LOOK, 0, FIRST, SECOND, SAY)]
        )
        script = scripts[(notes[:, 0] > 0).long(), clock.clamp(max=6)]
        first, second = notes[:, 0].long(), notes[:, 1].long()
        return torch.where(script == FIRST, first, torch.where(script == SECOND, second, script))


class OneDigit(Scripted):
    """Stage 0: writes the digit that is asked for while it is observed, then answers."""

    def token(self, clock, notes, told, context):
        digit = notes.gather(1, context[:, :1].long()).squeeze(1).long()
        return torch.where(clock == 0, LOOK, torch.where(clock == 1, digit, SAY))


class Caller(AgentNetwork):
    """Does a prompt of task `toolcall` as its `plan` does, with the answers that it was told."""

    parts: ClassVar = {"written": slice(0, 1), "answers": slice(1, 12)}

    def __init__(self):
        super().__init__(TOOLCALL.interface)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @property
    def state_parts(self):
        return self.parts

    def begin(self, context, stage):
        return InitialState((context,), torch.zeros(len(context), 12))

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        assert responses is not None
        context = encoding[0].tolist()
        logits = torch.zeros(*previous_tokens.shape, TOOLCALL.vocabulary.num_actions)
        states = [[int(value) for value in state] for state in hidden.tolist()]
        for step in range(previous_tokens.shape[1]):
            for row, response in enumerate(responses[:, step].tolist()):
                state = states[row]
                told = [token for token in response if token <= NEG]
                if told:
                    size = int("".join(str(token) for token in told if token < NEG))
                    state[2 + state[1]] = -size if told[0] == NEG else size
                    state[:2] = 0, state[1] + 1
                call = next_call(context[row], state[2 : 2 + state[1]])
                logits[row, step, call[min(state[0], len(call) - 1)]] = 1
                state[0] += 1
        return logits, torch.zeros(previous_tokens.shape), torch.tensor(states).float()


def next_call(context, answers):
    """The tokens of the call after so many answers: `GET` for each key, products, sums, `ANS`."""
    shown = [token for token in context if token != TOOLCALL.vocabulary.pad_token]
    keys = list(dict.fromkeys(token for token in shown[0::2] if token >= FIRST_KEY))
    if len(answers) < len(keys):
        return (GET, keys[len(answers)], EQUALS)
    known = dict(zip(keys, answers, strict=False))
    values, operators = [known.get(token, token) for token in shown[0::2]], shown[1::2]
    for result in answers[len(keys) :]:
        place = next_place(operators)
        values[place : place + 2] = [result]
        del operators[place]
    if not operators:
        return (ANS, *written(values[0]), EQUALS)
    place = next_place(operators)
    first, second = values[place : place + 2]
    return (operators[place], *written(first), COMMA, *written(second), EQUALS)


def next_place(operators):
    return operators.index(MUL) if MUL in operators else 0


def shares(exchange):
    record = exchange.record()
    return tuple(record[name] for name in ("follows_state", "follows_machine", "control"))


def test_the_part_that_is_read_is_followed_and_no_other():
    report = run_memory(Scripted(), TASK, [1])
    assert report.parts == (ALL, "clock", "used", "unused")
    assert shares(report.of_part(ALL)) == shares(report.of_part("used")) == (1, 0, 1)
    assert shares(report.of_part("clock")) == shares(report.of_part("unused")) == (0, 1, 1)
    # Two pairs of digits of nine are the same in a ninth of the pairs.
    assert 420 < report.of_part(ALL).pairs < 470
    every_stage = run_memory(Scripted(), TASK)
    assert every_stage.exchanges[-4:] == report.exchanges  # the same pairs every time
    (lying,) = report.lies
    assert lying.record() | {"drawn": 0} == {
        "drawn": 0,
        "episodes": 1000,
        "follows_lie": 1,
        "follows_truth": 0,
        "neither": 0,
        "control": 1,
    }


def test_where_a_memory_is_in_two_parts_neither_of_them_alone_decides():
    report = run_memory(Mixes(), TASK, [1])
    assert shares(report.of_part(ALL)) == (1, 0, 1)
    state, machine, control = shares(report.of_part("used"))
    # One digit is the other episode's; it follows one of the two where the other digit is equal.
    assert 0.15 < state < 0.35 and 0.15 < machine < 0.35 and control == 1


def test_who_asks_again_follows_the_machine_and_believes_no_lie():
    report = run_memory(AsksAgain(), TASK, [1])
    assert shares(report.of_part(ALL)) == (0, 1, 1)
    lying = report.lying().record()
    assert (lying["follows_lie"], lying["follows_truth"], lying["control"]) == (0, 1, 1)


def test_each_episode_is_exchanged_at_its_own_step():
    report = run_memory(Hesitates(), TASK, [1])
    assert shares(report.of_part(ALL)) == (1, 0, 1)
    assert report.of_part(ALL).pairs > 420
    (example,) = [note for note in report.notes if "for example" in note]
    assert example.endswith(("before step 4", "before step 5"))


def test_where_the_previous_token_tells_the_answer_no_pair_counts():
    report = run_memory(OneDigit(), TASK, [0])
    assert report.of_part(ALL).pairs == 0
    assert shares(report.of_part(ALL)) == (None, None, None)
    assert report.lying().episodes > 300 and report.lying().record()["follows_lie"] == 1


def test_the_calculators_registers_hold_what_matters_and_not_its_network():
    report = run_memory(
        scripted_network((tokens.MUL, tokens.ADD, tokens.ANS)), get_task("calculator"), [0]
    )
    assert report.parts == (ALL,) and shares(report.of_part(ALL)) == (0, 1, 1)
    assert report.of_part(ALL).pairs > 450
    assert report.lies == [] and "registers" in report.notes[1]


def test_of_calls_it_is_the_answers_of_the_database_that_are_carried_and_lies_believed():
    stages = (1, 2, 4, 6)
    report = run_memory(Caller(), TOOLCALL, stages, drawn=30)
    for stage in stages:
        pairs = report.of_part(ALL, stage).pairs
        assert pairs == 0 if stage == 2 else pairs > 10  # nothing is hidden in stage 2
        for part in (ALL, "answers") if pairs else ():
            assert shares(report.of_part(part, stage)) == (1, 0, 1)
        if pairs:
            assert shares(report.of_part("written", stage)) == (0, 1, 1)
    assert [one.stage for one in report.lies] == [2, 4, 6]
    for lying in report.lies:
        record = lying.record()
        assert record["follows_lie"] >= 0.95 and record["control"] == 1 and lying.episodes > 30


# The command ---------------------------------------------------------------------------------


@pytest.fixture
def explain(monkeypatch, tmp_path):
    """Explains a network that no checkpoint holds."""

    def run(network, *arguments, task=TASK):
        policy = Policy(network, task, {}, tmp_path / "checkpoint")
        monkeypatch.setattr("toolagent.explain.__main__.load_policy", lambda *_, **__: policy)
        return cli.main(command, ["checkpoint", "--memory", *map(str, arguments)])

    return run


def test_the_command_shows_and_writes_it(explain, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("html", "json")}
    flags = [text for name, file in files.items() for text in (f"--{name}", file)]
    assert explain(Scripted(), "--stage", 1, *flags) == 0
    shown = capsys.readouterr().out
    document, page = json.loads(files["json"].read_text()), files["html"].read_text()
    for part, state, machine in ((ALL, 1, 0), ("used", 1, 0), ("unused", 0, 1)):
        measured = document["memory"][part]
        assert (measured["follows_state"], measured["follows_machine"]) == (state, machine)
        assert measured["control"] == 1 and [*measured["stages"]] == ["1"]
    assert document["lie"]["follows_lie"] == 1
    (row,) = [line for line in shown.splitlines() if " unused " in line]
    assert row.split() == ["1", "unused", *row.split()[2:5], "0.000", "1.000", "0.000", "1.000"]
    assert max(map(len, shown.split("exchanged")[1].splitlines()[:6])) <= 80
    assert page.count('<td class="left">unused</td>') == 1 and page.startswith("<!doctype")
    for note in document["memory_notes"]:
        assert note in shown


def test_an_agent_that_solves_nothing_has_no_pairs_that_count(explain, capsys):
    assert explain(untrained_network(), "--stage", 0, task=get_task("calculator")) == 0
    assert "no pair counts" in capsys.readouterr().out


def test_a_task_that_tells_no_answers_is_refused(explain, monkeypatch, capsys):
    monkeypatch.delattr(PeekTask, "accumulator")
    assert explain(Scripted()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "--memory: not for task 'peek'" in captured.err
