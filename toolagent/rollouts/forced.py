"""Episodes whose first tokens are given, and the hidden states along an episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from toolagent.models.base import AgentNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch, empty_batch
from toolagent.tasks import Task
from toolagent.vocabulary import CTX


@torch.no_grad()
def play_on(
    network: AgentNetwork, task: Task, problems: Any, forced: np.ndarray, counts: np.ndarray
) -> EpisodeBatch:
    """One episode of each problem: it begins with given tokens and goes on greedily.

    Args:
        network: on the CPU.
        task: the machine.
        problems: (B,) problems.
        forced: (B, F) tokens.
        counts: (B,) how many of them are given; the others are not looked at.
    """
    batch = empty_batch(task, problems.context, problems.stage)
    table, registers = network.step_table(), task.start(problems)
    live = np.arange(len(problems))
    encoding, hidden = network.begin(
        torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
    )
    token = torch.full((len(live),), CTX)
    for step in range(task.max_actions):
        logits, _, hidden = network.step(table, token, encoding, hidden)
        token = logits.argmax(1)
        if step < forced.shape[1]:
            given = torch.from_numpy(forced[live, step].astype(np.int64))
            token = torch.where(torch.from_numpy(counts[live] > step), given, token)
        transition = task.step(problems, registers, token.numpy())
        batch.actions[live, step] = token.numpy()
        batch.rewards[live, step] = transition.rewards
        batch.solved[live] = transition.solved
        batch.lengths[live[transition.done]] = step + 1
        going = np.flatnonzero(~transition.done)
        if not len(going):
            break
        live, registers = live[going], transition.registers.take(going)
        problems = problems.take(going)
        kept = torch.from_numpy(going)
        token, hidden = token[kept], hidden[kept]
        encoding = tuple(part[kept] for part in encoding)
    return batch


@torch.no_grad()
def hidden_states(network: AgentNetwork, problems: Any, actions: np.ndarray) -> np.ndarray:
    """(B, T, S) float32: the states that the tokens (B, T) were chosen from."""
    table = network.step_table()
    encoding, hidden = network.begin(
        torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
    )
    token, states = torch.full((len(problems),), CTX), []
    for column in actions.T:
        _, _, hidden = network.step(table, token, encoding, hidden)
        states.append(hidden.numpy().copy())
        token = torch.from_numpy(column.astype(np.int64))
    return np.stack(states, 1)
