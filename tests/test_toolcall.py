"""The task `toolcall`: its machine, its problems and what is held out of training."""

import csv
from pathlib import Path

import numpy as np

from toolagent.tasks import get_task

TASK = get_task("toolcall")
VOCABULARY = TASK.vocabulary
CASES = Path(__file__).parent / "golden" / "toolcall_cases.csv"


def tokens(text):
    return [VOCABULARY.token(name) for name in text.split()]


def told(response):
    """A response as the cases have it: '2 4', '' where nothing was answered."""
    return VOCABULARY.text(token for token in response if token != VOCABULARY.pad_token)


def play(problems, programs):
    """Every program on its problem at once: (steps, 'step:answer; ...', reward, how it ended)."""
    registers, live = TASK.start(problems), np.arange(len(problems))
    answers, ends = [[] for _ in programs], [None] * len(programs)
    for step in range(TASK.max_actions):
        going = np.array([len(programs[row]) > step for row in live], bool)
        live, problems, registers = live[going], problems.take(going), registers.take(going)
        if not len(live):
            break
        actions = np.array([programs[row][step] for row in live])
        transition = TASK.step(problems, registers, actions)
        for place, row in enumerate(live):
            if text := told(transition.response[place]):
                answers[row].append(f"{step + 1}:{text}")
            if transition.done[place]:
                how = "answered" if transition.terminated[place] else "truncated"
                ends[row] = (step + 1, transition.rewards[place], how)
        going = ~transition.done
        live, problems = live[going], problems.take(going)
        registers = transition.registers.take(going)
    return [(end, "; ".join(given)) for end, given in zip(ends, answers, strict=True)]


def test_every_recorded_case_is_repeated():
    with open(CASES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3000
    problems = TASK.pose(
        np.array([int(row["stage"]) for row in rows]),
        expression=[row["expression"] for row in rows],
        database=[row["database"] for row in rows],
    )
    played = play(problems, [tokens(row["actions"]) for row in rows])
    for row, result in zip(rows, played, strict=True):
        end = (int(row["steps"]), float(row["reward"]), row["ended"])
        assert result == (end, row["responses"]), row
