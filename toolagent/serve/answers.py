"""Turns a played episode into the JSON of the API."""

from __future__ import annotations

from typing import Any

from toolagent.rollouts.trajectory import Step, Trajectory, describe, verdict
from toolagent.serve.player import DIGITS, Answer, Question, RecordedStep
from toolagent.tasks import Task


def result_of(task: Task, question: Question, answer: Answer) -> dict[str, Any]:
    """A `schemas.Result`."""
    return _result(task, question, answer, describe(task, question.problem, 0)[1])


def _result(task: Task, question: Question, answer: Answer, posed: str) -> dict[str, Any]:
    problem = question.problem
    return {
        "stage": int(problem.stage[0]),
        "problem": posed,
        "target": int(task.target(problem)[0]),
        "program": [task.vocabulary.names[step.token] for step in answer.steps],
        "answered": answer.answered,
        "answer": answer.answer,
        "solved": answer.solved,
    }


def play_answer_of(task: Task, model: str, question: Question, answer: Answer) -> dict[str, Any]:
    """A `schemas.PlayAnswer`."""
    formula, posed = describe(task, question.problem, 0)
    result = _result(task, question, answer, posed)
    recorded = Trajectory(
        task=task,
        stage=result["stage"],
        formula=formula,
        problem=result["problem"],
        target=result["target"],
        steps=tuple(_step(step) for step in answer.steps),
        answered=answer.answered,
        answer=answer.answer,
        solved=answer.solved,
        terms=task.terms(question.problem, 0),
        computes=task.computes([step.token for step in answer.steps]),
    )
    return {
        **result,
        "model": model,
        "formula": formula,
        "verdict": verdict(recorded),
        "computes": recorded.computes,
        "steps": [_shown(task, step) for step in answer.steps],
        "reading": [_rounded(row) for row in answer.reading] or None,
    }


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, DIGITS) if isinstance(value, float) else value
        for name, value in row.items()
    }


def _shown(task: Task, step: RecordedStep) -> dict[str, Any]:
    """A `schemas.Step`; one of tools that answer also has their response, without padding."""
    names, pad = task.vocabulary.names, task.vocabulary.pad_token

    def words(response: tuple[int, ...]) -> list[str]:
        return [names[token] for token in response if token != pad]

    shown = {
        "token": names[step.token],
        "given": step.given,
        "probabilities": step.probabilities,
        "value": step.value,
        "registers": step.registers,
        "reward": round(step.reward, DIGITS),
    }
    if task.response_length:
        shown["response"] = words(step.response)
    if step.replaced is not None:
        shown["replaced"] = words(step.replaced)
    if step.source is not None:
        shown["copied_from"] = step.source.record(task)
    return shown


def _step(step: RecordedStep) -> Step:
    """As `rollouts.trajectory` has it, so that its words can be used."""
    others = [*step.probabilities]
    others[step.token] = -1.0
    runner_up = max(range(len(others)), key=others.__getitem__)
    return Step(
        token=step.token,
        probability=step.probabilities[step.token],
        runner_up=runner_up,
        runner_up_probability=others[runner_up],
        value=step.value,
        registers=step.registers,
        changed=(),
        reward=step.reward,
        response=step.response,
    )
