"""A network that solves its task, for tests of what comes after training, and its commands.

The network is made by imitation: cross-entropy on one fixed program a stage, which is no way to
train an agent (nothing is explored) but gives a sound network in a few seconds.
"""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import ROOT as ROOT  # where most tests take it from
from processes import own_environment
from torch.nn import functional

from toolagent.models.encoder_decoder import EncoderDecoderNetwork, EncoderDecoderOptions
from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, CTX, EOS, MUL, NUM_TOKENS, RCL, STO, SUB

PROGRAMS = (
    (MUL, ADD, ANS),
    (MUL, ADD, SUB, ANS),
    (MUL, ADD, STO, MUL, RCL, SUB, ANS),
)
torch.set_num_threads(1)  # so small a network gains nothing from more, and loses on a busy machine

UPDATES = 200
BATCH = 256


def untrained_network(seed: int = 0, embedding_size: int = 16) -> StageGRUNetwork:
    """A network with the sizes of `calculator` and `tutorial` and random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StageGRUNetwork(get_task("calculator").interface, (embedding_size,))


def untrained_expression_network(seed: int = 0, **options: Any) -> EncoderDecoderNetwork:
    """A network with the sizes of `expression`, small by default, and random weights."""
    task = get_task("expression")
    small = {"embedding_size": 8, "num_heads": 2, "num_counters": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EncoderDecoderNetwork(task.interface, EncoderDecoderOptions(**(small | options)))


@functools.cache
def trained_network(programs: tuple[tuple[int, ...], ...] = PROGRAMS) -> StageGRUNetwork:
    """A network that emits `programs[stage]` for every problem; do not change its weights."""
    task = get_task("calculator")
    network = untrained_network(embedding_size=32)
    length = max(len(program) for program in programs)
    padded = torch.tensor([[*program, *[EOS] * (length - len(program))] for program in programs])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(UPDATES):
        problems = task.sample(rng, rng.integers(0, len(programs), BATCH))
        actions = padded[problems.stage]  # (B, T)
        previous = torch.cat([torch.full((BATCH, 1), CTX), actions[:, :-1]], 1)
        encoding, hidden = network.begin(
            torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
        )
        logits, _, _ = network.unroll(previous, encoding, hidden)
        loss = functional.cross_entropy(logits.flatten(0, 1), actions.flatten(), ignore_index=EOS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def scripted_network(program: tuple[int, ...]) -> StageGRUNetwork:
    """A network that emits `program`, whatever it reads, in no time. Its GRU only holds the last
    token, so each token of the program must always be followed by the same one."""
    network = StageGRUNetwork(get_task("calculator").interface, (NUM_TOKENS,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.token_embedding.weight.copy_(torch.eye(NUM_TOKENS))
        # Update gate shut: h' = tanh(4 x), the one-hot of the previous token.
        network.gru.bias_ih_l0[NUM_TOKENS : 2 * NUM_TOKENS] = -30.0
        network.gru.weight_ih_l0[2 * NUM_TOKENS :] = 4 * torch.eye(NUM_TOKENS)
        for previous, token in zip((CTX, *program), program, strict=False):
            network.policy_head.weight[token, previous] = 50.0
    return network


def noisy_network(scale: float, seed: int = 0) -> StageGRUNetwork:
    """The trained network with Gaussian noise on its weights: right on some problems only."""
    network = copy.deepcopy(trained_network())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def run_modules(*command_lines: list[str], cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Runs `python -m ...` command lines as a user would, two at a time, in the folder `cwd`."""

    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=400,
            cwd=cwd,
            env=own_environment(),
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(run, command_lines))


def is_refusal(result: subprocess.CompletedProcess[str]) -> bool:
    """Exit code 2, nothing on stdout, and one line on stderr."""
    lines = result.stderr.splitlines()
    return (
        result.returncode == 2
        and result.stdout == ""
        and len(lines) == 1
        and lines[0].startswith("error: ")
    )
