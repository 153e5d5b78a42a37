"""Explorers that play greedily but for one to three consecutive steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from toolagent.rollouts.explorers import ExplorersStep, certain

FIRST_CHOICES = 4  # every other detour takes one of the policy's most probable tokens only
LONGEST = 3  # steps


@dataclass(frozen=True)
class Detours:
    """E greedy episodes, in groups, each with one detour of up to three steps.

    At its detour's steps an episode takes the policy's n-th choice (0 being the most probable
    token), everywhere else the first. A *group* makes the same detour on problems of the same
    structure with other numbers: what it does is one plan, tried on several problems. A plan that
    is right by coincidence is right on few of them.
    """

    start: torch.Tensor  # (E,) int64: the detour's first step
    choices: torch.Tensor  # (E, LONGEST) int64: which choice at each of its steps

    def __len__(self) -> int:
        return len(self.start)

    def log_probabilities(self, step: ExplorersStep) -> torch.Tensor:
        """(n, A): all on the token that the episode takes (see `Explorers`)."""
        rows = torch.from_numpy(step.rows)
        since = step.number - self.start[rows]  # (n,)
        on_detour = (since >= 0) & (since < LONGEST)
        choice = self.choices[rows].gather(1, since.clamp(0, LONGEST - 1).unsqueeze(1))
        choice = choice * on_detour.unsqueeze(1)  # (n, 1)
        by_probability = step.logits.argsort(1, descending=True)  # (n, A)
        return certain(by_probability.gather(1, choice).squeeze(1), step.logits.shape[1])


def draw_detours(
    rng: np.random.Generator, longest: np.ndarray, group_size: int, num_actions: int
) -> Detours:
    """One detour for each group.

    Args:
        rng: the stream to draw from.
        longest: (groups,) the most actions its problem allows; a detour begins before the last.
        group_size: episodes in a group.
        num_actions: A.
    """
    groups = len(longest)
    # Half stay with what the policy thinks likely, half may do anything: a policy that has
    # learned to stop early thinks nothing likely of what it should do instead.
    widest = np.where(rng.random(groups) < 0.5, min(FIRST_CHOICES, num_actions), num_actions)
    choices = rng.integers(0, widest[:, None], (groups, LONGEST))
    choices[:, 0] = rng.integers(1, widest)  # not 0, or it would be none
    steps = rng.integers(1, LONGEST + 1, groups)
    choices[np.arange(LONGEST) >= steps[:, None]] = 0
    start = rng.integers(0, np.maximum(longest - 1, 1))
    return Detours(
        torch.from_numpy(np.repeat(start, group_size)),
        torch.from_numpy(np.repeat(choices, group_size, axis=0)),
    )
