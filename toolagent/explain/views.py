"""What is seen under the microscope, for a terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.table import Table

from toolagent import cli
from toolagent.explain.memory import Exchange, Lying, MemoryReport
from toolagent.explain.microscope import Future, Look, percentages
from toolagent.explain.probes import ProbeReport
from toolagent.rollouts.conversation import turns
from toolagent.rollouts.trajectory import probability_text
from toolagent.tasks import Task

WIDTH = 80  # columns, of a terminal


def probability_table(looks: list[Look], task: Task) -> Table:
    """A row a step, a column for each action, in per cent: 18 are 80 columns wide. Where all
    would be wider, as many as there is room for: those that a step makes most probable."""
    names = task.vocabulary.actions
    cells = {look.number: percentages(look.step) for look in looks}
    best = np.max([look.step.probabilities for look in looks], 0)
    order = np.argsort(-best, kind="stable")
    wide = [max(map(len, column)) for column in zip(names, *cells.values(), strict=True)]
    widths = np.cumsum([2 + wide[place] for place in order])
    kept = np.sort(order[len("step") + widths <= WIDTH]).tolist()
    table = cli.table("step", *(names[place] for place in kept), right=("step", *names))
    for number, row in cells.items():
        table.add_row(str(number), *(row[place] for place in kept))
    return table


HEARD = "answered, or copied from"


def heard(look: Look, looks: list[Look], task: Task) -> str:
    """What a step was answered with, or else where its token was copied from."""
    for turn in turns(task, [other.step.response for other in looks]):
        if turn.last == look.number - 1 and turn.number is not None:
            return f"{turn.number}: {task.vocabulary.text(turn.answer)}"
    if look.source is None:
        return ""
    return f"  {look.source.text(task)} ({probability_text(look.source.weight, 2)})"


def column_width(name: str, cells: list[str]) -> int:
    """Of a column of a table, with the space in front of it."""
    return 2 + max(map(len, [name, *cells]))


def futures_table(looks: list[Look], task: Task) -> Table:
    """A row a step: what the oracle would write here, where the task has one, and what the
    runner-up would have led to."""
    names, has_oracle = task.vocabulary.names, task.defines("continuation")
    oracle = ("oracle", "to go") if has_oracle else ()
    table = cli.table(
        *("step", "token", *oracle, "runner-up", "then answers", "in"),
        right=("step", "to go", "in"),
    )
    for look in looks:
        told = ("-", "-")
        if look.oracle is not None:
            told = (names[look.oracle[0]], str(len(look.oracle)))
        table.add_row(
            str(look.number),
            names[look.step.token],
            *(told if has_oracle else ()),
            names[look.step.runner_up],
            future_text(look.instead, task),
            str(len(look.instead.tokens)),
        )
    return table


def future_text(future: Future, task: Task) -> str:
    """'12, right', '12, wrong' or 'nothing'; 'right' or 'wrong' where the answer is not known."""
    if future.answer is None:
        if future.solved:
            return "right"
        return "wrong" if future.answered and not task.defines("accumulator") else "nothing"
    return f"{future.answer}, {'right' if future.solved else 'wrong'}"


def probe_table(report: ProbeReport) -> Table:
    """A row a probe; its columns are the network, and the controls."""
    right = ("examples", "agent", "untrained", "inputs", "shuffled")
    table = cli.table("probe", *right, right=right)
    for probe in report.probes:
        scores = (probe.agent, probe.untrained, probe.inputs, probe.shuffled)
        table.add_row(probe.name, f"{probe.examples:,}", *(f"{score:.2f}" for score in scores))
    return table


def stack_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `rollouts.reading.stack_rows` for a terminal."""
    gates = ("push", "pop", "keep")
    table = cli.table("token", *gates, "depth", "written", right=(*gates, "depth"))
    for row in rows:
        shares = [f"{row[gate]:.2f}" for gate in gates]
        table.add_row(row["token"], *shares, str(row["depth"]), " ".join(row["written"]))
    return table


Rows = list[dict[str, str]]  # a row is its cells by column


def exchange_rows(report: MemoryReport) -> Rows:
    """A row for each stage and part, and for all stages together."""
    stages = list(dict.fromkeys(one.stage for one in report.exchanges))
    results = [one for one in report.exchanges if one.pairs or one.part == report.parts[0]]
    if len(stages) > 1:
        results += [report.of_part(part) for part in report.parts]
    return [
        {
            "stage": _stage(one),
            "part": one.part,
            "pairs": f"{one.pairs} of {one.drawn}",
            **_shares(one.record(), ("follows_state", "follows_machine", "neither", "control")),
        }
        for one in results
    ]


def lie_rows(report: MemoryReport) -> Rows:
    """A row for each stage in which the agent can be lied to, and for all together."""
    total = report.lying()
    results = [*report.lies, total] if total is not None and len(report.lies) > 1 else report.lies
    return [
        {
            "stage": _stage(one),
            "episodes": f"{one.episodes} of {one.drawn}",
            **_shares(one.record(), ("follows_lie", "follows_truth", "neither", "control")),
        }
        for one in results
    ]


def _stage(one: Exchange | Lying) -> str:
    return "all" if one.stage is None else str(one.stage)


def _shares(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    """Shares rounded down, as accuracies are; '-' where nothing counts."""
    return {
        cli.words(name): "-" if record[name] is None else probability_text(record[name], 3)
        for name in names
    }


def table_of(rows: Rows) -> Table:
    """The rows for a terminal."""
    columns = list(rows[0])
    table = cli.table(*columns, right=set(columns) - {"stage", "part"})
    for row in rows:
        table.add_row(*row.values())
    return table


def page(
    heading: str,
    verdict: list[str],
    looks: list[Look],
    stack: list[dict[str, Any]],
    report: ProbeReport | None,
    remembered: MemoryReport | None,
    checkpoint: str,
    task: Task,
) -> str:
    """A page in one file: no script, nothing loaded from anywhere."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        heading=heading,
        checkpoint=checkpoint,
        verdict=verdict,
        tokens=task.vocabulary.actions,
        steps=[_for_page(look, task) for look in looks],
        conversation=conversation(looks, task),
        has_oracle=task.defines("continuation"),
        registers=register_names(looks),
        stack=stack,
        report=report,
        remembered=remembered,
        exchanges=exchange_rows(remembered) if remembered else [],
        lies=lie_rows(remembered) if remembered else [],
    )


def register_names(looks: list[Look]) -> list[str]:
    """Of all registers that a step shows, in the order in which they come."""
    return list(dict.fromkeys(name for look in looks for name in look.step.registers))


def conversation(looks: list[Look], task: Task) -> list[dict[str, Any]]:
    """The turns of the episode with their steps as the page has them; none where tools answer
    nothing."""
    if not task.response_length:
        return []
    return [
        {
            "steps": [_for_page(look, task) for look in looks[turn.first : turn.last + 1]],
            "number": turn.number,
            "answer": task.vocabulary.text(turn.answer),
        }
        for turn in turns(task, [look.step.response for look in looks])
    ]


def _for_page(look: Look, task: Task) -> dict[str, Any]:
    step, vocabulary = look.step, task.vocabulary
    return {
        "number": look.number,
        "token": vocabulary.names[step.token],
        "probability": probability_text(step.probability, 3),
        "cells": [
            {"share": 0 if share != share else round(share, 3), "text": text, "chosen": index}
            for share, text, index in zip(
                step.probabilities,
                percentages(step),
                [token == step.token for token in range(vocabulary.num_actions)],
                strict=True,
            )
        ],
        "value": f"{step.value:.2f}",
        "reward": f"{step.reward:.2f}",
        "source": None if look.source is None else look.source.text(task),
        "weight": None if look.source is None else probability_text(look.source.weight, 2),
        "registers": {
            name: "-" if value is None else value for name, value in step.registers.items()
        },
        "oracle": None if look.oracle is None else vocabulary.text(look.oracle),
        "agrees": look.agrees,
        "runner_up": vocabulary.names[step.runner_up],
        "runner_up_probability": probability_text(step.runner_up_probability, 3),
        "instead": vocabulary.text(look.instead.tokens),
        "instead_text": future_text(look.instead, task),
        "instead_solved": look.instead.solved,
    }
