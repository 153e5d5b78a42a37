"""Trains a peer by this project's curriculum, until every stage is certified or the time is up."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from toolagent.benchmark.peers import PEERS
from toolagent.benchmark.peers.base import Peer, PeerEnvironment, PeerNetwork
from toolagent.config import load_settings
from toolagent.curriculum.rule import CurriculumState, decide
from toolagent.rollouts.certification import certify, certify_if_solved, measure

# As often as the default run does, which measures after 10 updates of 640 episodes.
MEASURE_EVERY_ENV_STEPS = 30_000
_TRIAL_S = 3.0  # with each number of threads, before training


def peer_class(name: str) -> type[Peer]:
    """The class of that row."""
    return importlib.import_module(f"toolagent.benchmark.peers.{PEERS[name][0]}").PEER


def train_peer(
    name: str, seconds: float, settings: Mapping[str, Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """What a peer comes to on the default run's task.

    Levels, the share of earlier stages, measurements and the rule that moves on are those of the
    default configuration; a stage whose measurement is faultless is certified.

    Args:
        name: of `PEERS`.
        seconds: of training, measurements and certifications included; building is not.
        settings: that differ from the peer's own.
        seed: of problems, weights and actions.

    Returns:
        A row for `peers.table`: `env_steps_per_s` while playing and learning, env steps and
        seconds until each stage was certified (None: never), and what is solved at the end.
    """
    default = load_settings("default")
    curriculum, state = default.curriculum, CurriculumState()
    kind = peer_class(name)
    chosen = {**kind.SETTINGS, **(settings or {})}

    def build() -> tuple[PeerEnvironment, Peer]:
        torch.manual_seed(seed)
        environment = PeerEnvironment(
            default.task, int(chosen["num_envs"]), seed, curriculum.earlier_stage_share
        )
        environment.vector_env.set_stage(curriculum.levels[0].stage)
        return environment, kind(environment, chosen, seed)

    threads = _choose_threads(lambda: build()[1])
    environment, peer = build()
    task = environment.task
    network = PeerNetwork(peer, task.interface).eval()
    stages, rng = curriculum.trained_stages(task.stages), np.random.default_rng((seed, 1))
    first: dict[int, tuple[int, float]] = {}  # stage -> env steps and seconds when certified
    failed: dict[int, Any] = {}
    env_steps = measured_at = iteration = 0
    training_s, solved = 0.0, False
    started = time.perf_counter()
    while not solved and time.perf_counter() - started < seconds:
        mark = time.perf_counter()
        env_steps += peer.update()
        training_s += time.perf_counter() - mark
        if env_steps - measured_at < MEASURE_EVERY_ENV_STEPS:
            continue
        measured_at, iteration = env_steps, iteration + 1
        rows = measure(network, task, stages, rng, curriculum.measure_problems)
        faultless = [row.stage for row in rows if row.faultless]
        for stage in faultless:
            if stage not in first and certify_if_solved(network, task, stage, failed):
                first[stage] = env_steps, time.perf_counter() - started
        if len(faultless) == len(stages):
            solved = all(certify_if_solved(network, task, stage, failed) for stage in stages)
        decision = decide(
            curriculum,
            state,
            env_steps=env_steps,
            iteration=iteration,
            measured={row.stage: (row.solved, row.problems) for row in rows},
        )
        if decision.state.level != state.level:
            environment.vector_env.set_stage(curriculum.levels[decision.state.level].stage)
        state = decision.state
    wall_time_s = time.perf_counter() - started
    return {
        "name": name,
        "env_steps_per_s": env_steps / training_s,
        "env_steps": env_steps,
        "wall_time_s": wall_time_s,
        "solved": solved,
        "stages": [
            {
                "stage": row.stage,
                "problems": row.problems,
                "solved": row.solved,
                "accuracy": row.accuracy,
                "first_solved_env_steps": first.get(row.stage, (None, None))[0],
                "first_solved_s": first.get(row.stage, (None, None))[1],
            }
            for row in certify(network, task, stages)
        ],
        "settings": chosen | {"torch_threads": threads},
    }


def _choose_threads(build: Callable[[], Peer]) -> int:
    """Sets torch to as many threads as a fresh peer trains fastest with: one, or all."""
    rates = {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        peer = build()
        peer.update()  # warms up
        env_steps, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < _TRIAL_S:
            env_steps += peer.update()
        rates[threads] = env_steps / elapsed
    best = max(rates, key=lambda threads: rates[threads])
    torch.set_num_threads(best)
    return best
