"""The checkpoints that are served: their names, their players, and what the API says about them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from toolagent.checkpoints.policy import Policy, load_policy
from toolagent.checkpoints.storage import is_uri
from toolagent.errors import UserError
from toolagent.rollouts.trajectory import shown_registers
from toolagent.serve.batching import Batcher
from toolagent.serve.player import Answer, Player, Question
from toolagent.serve.problems import first_example, main_fields
from toolagent.serve.schemas import Model, Models, Stage
from toolagent.tasks import Task

MAX_BATCH = 32  # a batch of expressions this size takes some 10 ms, which others wait for
MAX_CHECKPOINTS = 8


class Agents:
    """One player and one batcher for each checkpoint, by name; all of one task.

    Args:
        policies: by what the agents are called.
    """

    def __init__(self, policies: Mapping[str, Policy]):
        self.task: Task = next(iter(policies.values())).task
        self.policies = dict(policies)
        self.batchers: dict[str, Batcher[Question, Answer]] = {
            name: Batcher(Player(policy).answer, MAX_BATCH)
            for name, policy in self.policies.items()
        }

    @property
    def default(self) -> str:
        """The name of the agent that plays if a request names none."""
        return next(iter(self.policies))

    @functools.cached_property
    def info(self) -> Models:
        """The task and the checkpoints, as `GET /api/models` shows them."""
        task = self.task
        several = task.can_be_posed and len(task.fields[0].columns) > 1
        trained = self.policies[self.default].metadata.get("trained_stages")
        start = shown_registers(task, task.start(task.example()), 0)
        return Models(
            task=task.name,
            posed_by=main_fields(task),
            tells_stage=task.problem_tells_stage,
            example=first_example(task, trained),
            tokens=list(task.vocabulary.actions),
            observed=list(task.vocabulary.observed),
            response_length=task.response_length,
            registers=list(start),
            start=start,
            stages=[
                Stage(
                    stage=stage,
                    formula=task.formula(stage),
                    digits=len(task.shown_columns(stage)) if several else None,
                    actions=int(task.action_limit(np.array([stage]))[0]),
                )
                for stage in task.stages
            ],
            models=[_describe(name, policy) for name, policy in self.policies.items()],
        )


def load_agents(
    checkpoints: Mapping[str, str] | Sequence[str],
    task: str | None = None,
    network: str | None = None,
) -> dict[str, Policy]:
    """The checkpoints to be served, by what their agents are called.

    Args:
        checkpoints: as in `named`.
        task: the user's word for a task of another module (`load_policy`).
        network: the same of a network.

    Raises:
        UserError: none or too many of them, an unsound one, one twice, or two of different tasks.
    """
    if not 1 <= len(checkpoints) <= MAX_CHECKPOINTS:
        raise UserError(f"{len(checkpoints)} checkpoints; expected 1 to {MAX_CHECKPOINTS}")
    folders = named(checkpoints)
    policies = {
        name: load_policy(folder, task=task, network=network) for name, folder in folders.items()
    }
    first, *others = policies.values()
    for policy in others:
        if type(policy.task) is not type(first.task):
            raise UserError(
                f"{first.place} is of task '{first.task.name}' and {policy.place} of task "
                f"'{policy.task.name}'; only checkpoints of one task can be compared"
            )
    places = [place_of(policy) for policy in policies.values()]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"the checkpoint {place} is given twice")
    return policies


def place_of(policy: Policy) -> str:
    """Where a policy can be loaded from again, whatever the present folder is."""
    return policy.uri or str(policy.folder.resolve())


def named(checkpoints: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """The folders of checkpoints, by what their agents are called.

    Args:
        checkpoints: folders by name, or a sequence of 'NAME=FOLDER' and of folders. An agent is
            called as its folder is written: 'runs/first'. Of one that is not below the present
            folder it is the shortest ending that no other has ('/home/me/runs/first' is 'first'):
            visitors see the name, and not where the files are.

    Raises:
        UserError: two are the same or have the same name, or a name is empty.
    """
    if isinstance(checkpoints, Mapping):
        given: list[tuple[str | None, str]] = [*checkpoints.items()]
    else:
        given = [_split(text) for text in checkpoints]
    places = [folder if is_uri(folder) else os.path.realpath(folder) for _, folder in given]
    names = [_written(folder) if name is None else name for name, folder in given]
    endings = _endings([folder for name, (_, folder) in zip(names, given, strict=True) if not name])
    names = [name or next(endings) for name in names]
    for name, place, (_, folder) in zip(names, places, given, strict=True):
        if names.count(name) > 1 and places.count(place) > 1:
            raise UserError(f"the checkpoint {folder} is given twice")
        if names.count(name) > 1:
            raise UserError(f"two agents are called '{name}'; write NAME=FOLDER for one of them")
    return dict(zip(names, (folder for _, folder in given), strict=True))


def _split(text: str) -> tuple[str | None, str]:
    """'NAME=FOLDER' as (name, folder); a folder, which may have a '=' in its own name, as
    (None, folder)."""
    name, equals, folder = text.partition("=")
    if not equals or "/" in name or os.path.exists(text):
        return None, text
    if not name.strip() or not folder:
        raise UserError(f"'{text}': expected NAME=FOLDER, or a folder")
    return name.strip(), os.path.expanduser(folder)


def _written(folder: str) -> str:
    """A folder below the present one as it is written; '' for any other."""
    path = PurePosixPath(os.path.normpath(folder))
    outside = is_uri(folder) or path.is_absolute() or path.parts[:1] in ((), ("..",))
    return "" if outside else str(path)


def _endings(folders: Sequence[str]) -> Iterator[str]:
    """The shortest endings of paths that differ: 'first'; 'a/first' and 'b/first'."""
    parts = [PurePosixPath(f if is_uri(f) else os.path.abspath(f)).parts for f in folders]
    length = 1
    while len({part[-length:] for part in parts}) < len(set(parts)):
        length += 1
    return iter(["/".join(part[-length:]) for part in parts])


def _describe(name: str, policy: Policy) -> Model:
    told: dict[str, Any] = policy.metadata
    return Model(
        name=name,
        network=type(policy.network).__name__,
        parameters=sum(parameter.numel() for parameter in policy.network.parameters()),
        env_steps=told.get("env_steps"),
        iteration=told.get("iteration"),
        seed=told.get("seed"),
        trained_stages=told.get("trained_stages"),
        accuracies=told.get("stages") or [],
    )
