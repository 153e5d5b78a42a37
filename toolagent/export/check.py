"""Plays every exported form of an agent on the same problems and compares the tokens.

Other batch sizes and other libraries round differently, so logits differ in their last digits. If
the logits of the two best tokens differ by less, the choice between them is arbitrary. Both are
measured: the margin between the two best tokens, and the largest difference of the logits.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from toolagent.checkpoints.policy import WEIGHTS_FILE, load_policy
from toolagent.export.graphs import BEGIN, EPISODE, STEP
from toolagent.models.base import AgentNetwork, as_responses
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import answers
from toolagent.tasks import Task

SAMPLE_SIZE = 10_000  # where the problems can't be listed
CHUNK = 1_000
PLAYER = "player.py"


@dataclass(frozen=True)
class Comparison:
    """How many problems get exactly the checkpoint's greedy tokens."""

    problems: int
    complete: bool  # all there are; else a fixed sample of all stages and splits
    identical: dict[str, int]  # problems by artefact
    # Problems on which the player's answers, the tools' and the agent's, are the machine's; None
    # where it has no machine.
    answers_identical: int | None
    smallest_margin: float  # between the two best logits, over all steps
    largest_difference: float  # between the logits of torch and of the ONNX step, over all steps

    @property
    def all_identical(self) -> bool:
        """No artefact differs on any problem."""
        counts = (*self.identical.values(), self.answers_identical)
        return all(count in (self.problems, None) for count in counts)

    def record(self) -> dict[str, Any]:
        """As the model card shows it."""
        return asdict(self)


def compare(network: AgentNetwork, task: Task, folder: Path) -> Comparison:
    """Compares the exported files with the network that they were exported from."""
    exported = load_policy(folder).network
    graphs = {file.name: _session(file) for file in sorted(folder.glob("*.onnx"))}
    begin, step, episode = (graphs.get(name) for name in (BEGIN, STEP, EPISODE))
    player = load_player(folder)
    card, weights = player.load(folder)
    numpy_network = player.Network(weights, card)
    has_machine = (player.Tools if task.response_length else player.answer) is not None
    artefacts = (WEIGHTS_FILE, STEP, *([EPISODE] if episode else []), PLAYER)
    identical: dict[str, int] = dict.fromkeys(artefacts, 0)
    total, right_answers, margin, difference = 0, 0, np.inf, 0.0
    for problems in checked_problems(task):
        batch = play(network, task, problems)
        total += len(batch)
        programs = _programs(batch)
        asked = {
            "context": problems.context.astype(np.int64),
            "stage": problems.stage.astype(np.int64),
        }
        logits = _logits(network, problems, batch)
        best, second = np.sort(logits, -1)[:, :, [-1, -2]].transpose(2, 0, 1)
        counts = np.arange(batch.actions.shape[1]) < batch.lengths[:, None]
        margin = min(margin, float((best - second)[counts].min()))

        onnx_logits = _onnx_logits(begin, step, asked, batch, task)
        difference = max(difference, float(np.abs(onnx_logits - logits)[counts].max()))
        tools = [Machine(task, problems)] if task.response_length else []
        written = player.play(numpy_network, card, asked["context"], asked["stage"], *tools)
        others = {
            WEIGHTS_FILE: _programs(play(exported, task, problems)),
            STEP: _greedy(begin, step, asked, Machine(task, problems)),
            PLAYER: written,
        }
        if episode is not None:
            tokens, lengths = map(np.asarray, episode.run(None, asked))
            others[EPISODE] = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
        for name, theirs in others.items():
            identical[name] += sum(a == b for a, b in zip(programs, theirs, strict=True))
        if has_machine:
            right_answers += _same_answers(player, task, problems, batch, written)
    complete = all(task.num_problems(stage) is not None for stage in task.stages)
    answers_identical = right_answers if has_machine else None
    return Comparison(total, complete, identical, answers_identical, margin, difference)


class Machine:
    """A task's machine as the tools behind B exported agents.

    Args:
        task: has the machine.
        problems: (B,).
    """

    def __init__(self, task: Task, problems: Any):
        self.task, self.size = task, len(problems)
        self._problems, self._registers = problems, task.start(problems)
        self._live = np.arange(self.size)

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """What (B,) tokens are answered with, (B, R) int64, None where tools answer nothing; and
        (B,) bool, which episodes are over."""
        transition = self.task.step(self._problems, self._registers, tokens[self._live])
        response, answered = self.task.no_response(self.size), self.task.response_of(transition)
        if response is not None:
            response[self._live] = answered
            response = response.astype(np.int64)
        going = ~transition.done
        self._live, self._problems = self._live[going], self._problems.take(going)
        self._registers = transition.registers.take(going)
        over = np.ones(self.size, bool)
        over[self._live] = False
        return response, over


def _same_answers(
    player: Any, task: Task, problems: Any, batch: EpisodeBatch, written: list[list[int]]
) -> int:
    """On how many problems the player's machine does with what it wrote what the task's does."""
    names, pad = task.vocabulary.names, task.vocabulary.pad_token

    def text(tokens: list[int]) -> list[str]:
        return [names[token] for token in tokens if token != pad]

    same, unseen = 0, task.unseen(problems)
    for row, answer in enumerate(answers(task, problems, batch)):
        context, program = text(problems.context[row].tolist()), [names[n] for n in written[row]]
        if not task.response_length:
            same += player.answer(context, int(problems.stage[row]), program) == answer
            continue
        tools = player.Tools(context, *(column[row].tolist() for column in unseen.values()))
        told = [tools(token)[0] for token in program]
        expected = [text(response) for response in batch.response[row].tolist()]
        same += told == expected[: len(program)] and tools.answer == answer
    return same


def checked_problems(task: Task) -> Iterator[Any]:
    """All problems in parts; or a fixed sample of every stage and split if they can't be listed."""
    if all(task.num_problems(stage) is not None for stage in task.stages):
        for stage in task.stages:
            total = task.num_problems(stage) or 0
            for start in range(0, total, CHUNK):
                yield task.problems(stage, start, min(start + CHUNK, total))
        return
    kinds = [(stage, split) for stage in task.stages for split in task.splits_of(stage)]
    rng = np.random.default_rng(np.random.SeedSequence(0xE7B0, spawn_key=(0,)))
    for number, (stage, split) in enumerate(kinds):
        count = SAMPLE_SIZE * (number + 1) // len(kinds) - SAMPLE_SIZE * number // len(kinds)
        yield task.sample(rng, np.full(count, stage, np.int8), split)


def load_player(folder: Path) -> Any:
    """The module `player.py` of an exported folder: this project's own file, just written."""
    spec = importlib.util.spec_from_file_location("exported_player", folder / PLAYER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(file), options, ["CPUExecutionProvider"])


def _programs(batch: EpisodeBatch) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(batch.actions, batch.lengths, strict=True)]


@torch.no_grad()
def _logits(network: AgentNetwork, problems: Any, batch: EpisodeBatch) -> np.ndarray:
    """(B, T, A) logits of the played steps, 0 after the end of an episode."""
    logits, _ = network.unroll_episodes(
        torch.from_numpy(problems.context),
        torch.from_numpy(problems.stage),
        torch.from_numpy(batch.actions),
        torch.from_numpy(batch.lengths),
        as_responses(batch.response),
    )
    return logits.numpy()


def _onnx_begin(session: Any, asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden state and encoding; a network that does not look at the stage has no input for it."""
    wanted = {put.name for put in session.get_inputs()}
    values = session.run(None, {name: asked[name] for name in wanted})
    return dict(zip([put.name for put in session.get_outputs()], values, strict=True))


def _onnx_logits(begin: Any, step: Any, asked: dict, batch: EpisodeBatch, task: Task) -> np.ndarray:
    """(B, T, A) of the step graph along the actions that were played."""
    state, result = _onnx_begin(begin, asked), []
    observed = _nothing_yet(task, len(batch))
    for place, column in enumerate(batch.actions.T.astype(np.int64)):
        logits, _, state["hidden"] = step.run(None, {**state, **observed})
        observed["previous_token"] = column
        if task.response_length:
            observed["response"] = batch.response[:, place].astype(np.int64)
        result.append(logits)
    return np.stack(result, 1)


def _nothing_yet(task: Task, size: int) -> dict[str, np.ndarray]:
    """What the step graph takes at the first step besides the state."""
    observed = {"previous_token": np.full(size, task.vocabulary.start_token)}
    if (response := task.no_response(size)) is not None:
        observed["response"] = response.astype(np.int64)
    return observed


def _greedy(begin: Any, step: Any, asked: dict, machine: Machine) -> list[list[int]]:
    """Programs written with the step graph alone."""
    state, written = _onnx_begin(begin, asked), []
    observed = _nothing_yet(machine.task, machine.size)
    over, lengths = np.zeros(machine.size, bool), np.zeros(machine.size, np.int64)
    while not over.all():
        logits, _, state["hidden"] = step.run(None, {**state, **observed})
        token = logits.argmax(1)
        written.append(token)
        lengths += ~over
        response, over = machine(token)
        observed["previous_token"] = token
        if response is not None:
            observed["response"] = response
    rows = np.stack(written, 1)
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
