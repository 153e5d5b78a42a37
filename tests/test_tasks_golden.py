"""Recorded episodes of each machine: every column, through the machine and the env.

`tutorial_rewards.csv` and `calculator_rewards.csv` hold 4,000 cases each, `expression_rewards.csv`
3,000. The last is written by `python tests/golden/make_expression_rewards.py`, which plays the
scalar machine of `reference_machines` and nothing of the package.
"""

import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import toolagent  # noqa: F401  (registers the ids)
from toolagent.envs import env_id
from toolagent.tasks import get_task

FOLDER = Path(__file__).parent / "golden"


NAMES = ["tutorial", "calculator", "expression"]


def cases(name):
    with open(FOLDER / f"{name}_rewards.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (3000 if name == "expression" else 4000)
    for row in rows:
        if name == "expression":
            row["problem"] = {"expression": row["expression"]}
        else:
            digits = [int(row[letter]) for letter in "abcde"]
            row["problem"] = {"stage": int(row["stage"]), "digits": digits}
        row["actions"] = [int(token) for token in row["actions"].split()]
        row["reward"] = float(row["reward"])
        row["steps"] = int(row["steps"])
        # What the machine would answer with at the end; the tutorial's file does not tell.
        answer = row.get("acc", row.get("top"))
        row["answer"] = int(answer) if answer else None
        row["solved"] = bool(int(row.get("solved", 0)))
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_the_batched_machine_repeats_every_case(name):
    rows, task = cases(name), get_task(name)
    given = {key: np.array([row["problem"][key] for row in rows]) for key in rows[0]["problem"]}
    problems = task.pose(given.pop("stage", None), **given)
    registers = task.start(problems)
    rewards, steps = np.zeros(len(rows)), np.zeros(len(rows), int)
    solved = np.zeros(len(rows), bool)
    values, filled = task.accumulator(registers)
    values, filled = values.copy(), filled.copy()
    live = np.arange(len(rows))
    for step in range(max(len(row["actions"]) for row in rows)):
        # An episode that is over, or whose recorded actions are used up, takes no more.
        going = np.array([len(rows[row]["actions"]) > step for row in live], bool)
        live, problems, registers = live[going], problems.take(going), registers.take(going)
        transition = task.step(
            problems, registers, np.array([rows[row]["actions"][step] for row in live], int)
        )
        rewards[live] += transition.rewards
        steps[live] += 1
        solved[live] = transition.solved
        values[live], filled[live] = task.accumulator(transition.registers)
        going = ~transition.done
        live, problems = live[going], problems.take(going)
        registers = transition.registers.take(going)

    np.testing.assert_allclose(rewards, [row["reward"] for row in rows], rtol=0, atol=1e-9)
    assert steps.tolist() == [row["steps"] for row in rows]
    if name != "tutorial":
        assert solved.tolist() == [row["solved"] for row in rows]
        final = [int(v) if f else None for v, f in zip(values, filled, strict=True)]
        assert final == [row["answer"] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_the_gymnasium_env_repeats_a_sample_of_the_cases(name):
    env = gym.make(env_id(name)).unwrapped
    for row in cases(name)[::8]:
        _, info = env.reset(options=row["problem"])
        total, steps, done = 0.0, 0, False
        for action in row["actions"]:
            if done:
                break
            _, reward, terminated, truncated, info = env.step(action)
            total, steps, done = total + reward, steps + 1, terminated or truncated
        assert total == pytest.approx(row["reward"], abs=1e-9)
        assert steps == row["steps"]
        if name != "tutorial":
            assert info["acc"] == row["answer"]
            assert info.get("solved", False) == row["solved"]
