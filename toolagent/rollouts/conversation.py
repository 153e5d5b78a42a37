"""An episode as a conversation: what the agent said to its tools, what they answered, and where
the agent copied its words from. For display only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.tasks import Task


@dataclass(frozen=True)
class Source:
    """Where a token was copied from: the place that the copying attention heads look at most.

    The weight of a place is the mean over the heads, each of which counts as much as what it finds
    adds to the logits; heads that take from them do not count.
    """

    answer: int | None  # the number of an answer, from 1; None: the prompt
    place: int  # of the token in that answer or in the prompt, from 0
    told: tuple[int, ...]  # the tokens of that answer; of the prompt, the one token
    weight: float  # 0..1

    def text(self, task: Task) -> str:
        """'answer 2: [8] 6', the token in brackets if there are several; 'prompt: B'."""
        names = [task.vocabulary.names[token] for token in self.told]
        if self.answer is None:
            return f"prompt: {names[0]}"
        if len(names) > 1:
            names[self.place] = f"[{names[self.place]}]"
        return f"answer {self.answer}: {' '.join(names)}"

    def record(self, task: Task) -> dict[str, Any]:
        """As JSON."""
        names = [task.vocabulary.names[token] for token in self.told]
        told = {"answer": self.answer, "place": self.place, "tokens": names}
        return told | {"weight": round(self.weight, 6)}


@dataclass(frozen=True)
class Turn:
    """What the agent said until it was answered, or until the episode's end."""

    first: int  # the step of its first token, from 0
    last: int
    number: int | None  # of the answer, from 1; None: there was none
    answer: tuple[int, ...]  # its tokens, without padding


def turns(task: Task, responses: Sequence[Sequence[int]]) -> list[Turn]:
    """The turns of an episode.

    Args:
        task: whose tools answered.
        responses: T steps' tokens, with or without padding.
    """
    result: list[Turn] = []
    first, count = 0, 0
    for step, response in enumerate(responses):
        told = tuple(token for token in response if token != task.vocabulary.pad_token)
        if told:
            count += 1
            result.append(Turn(first, step, count, told))
            first = step + 1
    if first < len(responses):
        result.append(Turn(first, len(responses) - 1, None, ()))
    return result


def sources(
    network: AgentNetwork,
    task: Task,
    problems: Any,
    actions: np.ndarray,
    lengths: np.ndarray,
    response: np.ndarray,
) -> list[list[Source | None]]:
    """Of B episodes and each of their steps: where its token was copied from.

    Args:
        network: on the CPU.
        task: the machine.
        problems: (B,) problems of that task.
        actions: (B, T) integers.
        lengths: (B,) the actions that count.
        response: (B, T, R) what was observed of the answers.

    Returns:
        B lists of a source a step; None where the token is not the one that is looked at most, and
        everywhere if the network does not show where it looks.
    """
    result: list[list[Source | None]] = [[None] * int(length) for length in lengths]
    weights = network.attention_weights(
        torch.from_numpy(problems.context).long(),
        torch.from_numpy(problems.stage).long(),
        torch.from_numpy(actions).long(),
        torch.from_numpy(lengths).long(),
        torch.from_numpy(response).long() if task.response_length else None,
    )
    if weights is None:
        return result
    gates = weights.gates.clamp(min=0)  # (B, T, H)
    shares = gates / gates.sum(2, keepdim=True).clamp(min=1e-9)
    looked = torch.cat([weights.context, weights.answers], 3)  # (B, T, H, L + M)
    total = (shares.unsqueeze(3) * looked).sum(2)
    most, place = (column.numpy() for column in total.max(2))
    width = problems.context.shape[1]
    tokens = np.concatenate([problems.context, weights.answer_tokens.numpy()], 1)  # (B, L + M)
    origins = weights.answer_steps.numpy(), weights.answer_places.numpy()
    padding = response == task.vocabulary.pad_token
    for row, length in enumerate(lengths.tolist()):
        numbers = {turn.last: turn for turn in turns(task, response[row, :length].tolist())}
        for step in range(length):
            at, token = int(place[row, step]), int(actions[row, step])
            if tokens[row, at] != token or most[row, step] <= 0:
                continue
            weight = float(most[row, step])
            if at < width:
                result[row][step] = Source(None, at, (token,), weight)
                continue
            answered, within = (int(origin[row, at - width]) for origin in origins)
            turn = numbers[answered]
            within -= int(padding[row, answered, :within].sum())
            result[row][step] = Source(turn.number, within, turn.answer, weight)
    return result
