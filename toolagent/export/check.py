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
from toolagent.vocabulary import Vocabulary

SAMPLE_SIZE = 10_000  # where the problems can't be listed
CHUNK = 1_000
PLAYER = "player.py"


@dataclass(frozen=True)
class Comparison:
    """How many problems get exactly the checkpoint's greedy tokens."""

    problems: int
    complete: bool  # all there are; else a fixed sample of all stages and splits
    identical: dict[str, int]  # problems by artefact
    # Problems on which the player's answer is the machine's; None where it has no machine.
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
    begin, step, episode = (_session(folder / name) for name in (BEGIN, STEP, EPISODE))
    player = load_player(folder)
    card, weights = player.load(folder)
    numpy_network = player.Network(weights, card)
    identical: dict[str, int] = dict.fromkeys((WEIGHTS_FILE, STEP, EPISODE, PLAYER), 0)
    start, pad, names = (
        task.vocabulary.start_token,
        task.vocabulary.pad_token,
        task.vocabulary.names,
    )
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

        tokens, lengths = map(np.asarray, episode.run(None, asked))
        written = player.play(numpy_network, card, asked["context"], asked["stage"])
        onnx_logits = _onnx_logits(begin, step, asked, batch, start)
        difference = max(difference, float(np.abs(onnx_logits - logits)[counts].max()))
        others = {
            WEIGHTS_FILE: _programs(play(exported, task, problems)),
            STEP: _greedy(begin, step, asked, task.action_limit(problems.stage), task.vocabulary),
            EPISODE: [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)],
            PLAYER: written,
        }
        for name, theirs in others.items():
            identical[name] += sum(a == b for a, b in zip(programs, theirs, strict=True))
        if player.answer is not None:
            shown = [[names[n] for n in row if n != pad] for row in problems.context.tolist()]
            programs_shown = [[names[n] for n in row] for row in written]
            right_answers += sum(
                player.answer(context, stage, program) == answer
                for context, stage, program, answer in zip(
                    shown,
                    problems.stage.tolist(),
                    programs_shown,
                    answers(task, problems, batch),
                    strict=True,
                )
            )
    complete = all(task.num_problems(stage) is not None for stage in task.stages)
    answers_identical = None if player.answer is None else right_answers
    return Comparison(total, complete, identical, answers_identical, margin, difference)


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


def _onnx_logits(begin: Any, step: Any, asked: dict, batch: EpisodeBatch, start: int) -> np.ndarray:
    """(B, T, A) of the step graph along the actions that were played."""
    state, result = _onnx_begin(begin, asked), []
    previous = np.full(len(batch), start)
    for column in batch.actions.T.astype(np.int64):
        logits, _, hidden = step.run(None, {"previous_token": previous, **state})
        state["hidden"], previous = hidden, column
        result.append(logits)
    return np.stack(result, 1)


def _greedy(
    begin: Any, step: Any, asked: dict, limits: np.ndarray, vocabulary: Vocabulary
) -> list[list[int]]:
    """Programs written with the step graph alone."""
    state, token = _onnx_begin(begin, asked), np.full(len(limits), vocabulary.start_token)
    written = []
    for _ in range(int(limits.max())):
        logits, _, state["hidden"] = step.run(None, {"previous_token": token, **state})
        token = logits.argmax(1)
        written.append(token)
    answer = vocabulary.answer_token
    ended = np.stack([*written, np.full_like(token, answer)], 1) == answer
    lengths = np.minimum(ended.argmax(1) + 1, limits)
    rows = np.stack(written, 1)
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
