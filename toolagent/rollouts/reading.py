"""What a network with a stack of its own states does with it while it reads, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toolagent.models.base import AgentNetwork
from toolagent.models.call_stack import CallStackNetwork
from toolagent.tasks import Task

_ACTIONS = ("push", "pop", "keep")  # the columns of the gates
_OPEN = 0.5  # a slot that is open further is written


def stack_rows(
    network: AgentNetwork, task: Task, problems: Any, written: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each token of one problem's context; none for a network without a stack.

    Args:
        network: of the agent.
        task: of the problem.
        problems: one.
        written: the tokens of the program, one a step.

    Returns:
        `token`; `push`, `pop` and `keep`, the gates, 0..1; `depth`, the entries of the stack behind
        the token if the largest gate decides; `written`, the actions that the token's slots are
        written as, in order; and `steps`, the numbers of these, from 1.
    """
    if not isinstance(network, CallStackNetwork):
        return []
    trace = network.stack_trace(torch.from_numpy(problems.context))
    slots = network.options.slots_per_token
    names, rows, depth = task.vocabulary.names, [], 0
    shown = problems.context[0][problems.context[0] != task.vocabulary.pad_token]
    for place, token in enumerate(shown.tolist()):
        gates = trace.gates[0, place].tolist()
        depth = max(0, depth + (1, -1, 0)[gates.index(max(gates))])
        steps = []
        for slot in range(slots):
            step = int(trace.weights[0, place * slots + slot].argmax())
            if trace.opened[0, place, slot] > _OPEN and step < len(written):
                steps.append(step)
        rows.append(
            {
                "token": names[token],
                **dict(zip(_ACTIONS, gates, strict=True)),
                "depth": depth,
                "written": [names[written[step]] for step in steps],
                "steps": [step + 1 for step in steps],
            }
        )
    return rows
