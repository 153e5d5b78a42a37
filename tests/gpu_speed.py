"""What a GPU makes of the pipeline, in under 10 minutes: `python tests/gpu_speed.py --json FILE`.

Three parts, each written to FILE as soon as it is measured, for a machine with a GPU may be had for
a short while only:

- `learner`: env steps/s of the product's RLlib learner, over the size of its batch;
- `pipeline`: env steps/s of the whole pipeline, 1 to 15 env runners on CPUs and a learner on the
  GPU, without exploration, and with it for the most runners;
- `update`: env steps/s of the bare update (forward, loss, backward, clipping, Adam), over the size
  of its batch: as it is, compiled, and replayed from a CUDA graph.

Where a part can't be measured (no Ray, say) its reason is written and the others go on. Without a
GPU it is a dry run, with `--dry-run` a tiny one: it shows that the script works, not how fast
anything is. The aim is 4 million env steps/s with one H200 and 16 cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from toolagent.learning.losses import actor_critic_loss  # noqa: E402
from toolagent.models.network import StageGRUNetwork  # noqa: E402
from toolagent.rollouts.play import play  # noqa: E402
from toolagent.tasks import get_task  # noqa: E402

COLUMNS = (
    *("context", "stage", "actions", "lengths", "rewards", "log_probabilities"),
    "response",  # empty: this task's tools answer nothing
)
LOSS = SimpleNamespace(  # the options of `ToolAgentConfig` that the loss reads
    gamma=1.0,
    lambda_=1.0,
    clip_param=0.2,
    advantage_estimator="gae",
    normalize_advantages=True,
    vf_loss_coeff=0.5,
    entropy_coeff=0.01,
    replay_coeff=0.5,
)
SIZES = (640, 2_560, 10_240, 40_960, 163_840)  # episodes of an update
RUNNERS = (1, 2, 4, 8, 12, 15)
EPISODES_PER_RUNNER = 4_096  # of each, in an update
PRECISIONS = {"": "highest", ", TF32": "high"}  # of float32 matrix products


def episodes(network: StageGRUNetwork, size: int) -> dict[str, np.ndarray]:
    """What a learner is given of that many episodes of all stages, none of them replayed."""
    rng = np.random.default_rng(0)
    task = get_task("calculator")
    problems = task.sample(rng, rng.integers(0, task.num_stages, size).astype(np.int8))
    batch = play(network, task, problems, torch.Generator().manual_seed(0))
    columns = {name: getattr(batch, name) for name in COLUMNS}
    weight, replayed = np.ones(size, np.float32), np.zeros(size, bool)
    return columns | {"entropy_weight": weight, "replayed": replayed}


class Update:
    """One update after another on the same batch, with the product's network and losses.

    Args:
        network: on the device.
        columns: tensors on the device.
        cells: the GRU written out, step by step, for a compiler to fuse; else the network's own.
        backend: of `torch.compile`; None: not compiled.
    """

    def __init__(
        self,
        network: StageGRUNetwork,
        columns: dict[str, torch.Tensor],
        cells: bool = False,
        backend: str | None = None,
    ):
        self.network, self.columns = network, columns
        on_gpu = columns["actions"].is_cuda
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=1e-3, capturable=on_gpu, fused=on_gpu or None
        )
        loss = self._loss_of_cells if cells else self._loss_of_network
        self.loss = torch.compile(loss, backend=backend, dynamic=False) if backend else loss

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()

    def captured(self) -> Callable[[], None]:
        """The same update, replayed from a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # gradients and moments are made before the capture
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay

    def _loss_of_network(self) -> torch.Tensor:
        columns = self.columns
        names = ("context", "stage", "actions", "lengths")
        return self._loss(*self.network.unroll_episodes(*(columns[name] for name in names)))

    def _loss_of_cells(self) -> torch.Tensor:
        network, gru = self.network, self.network.gru_weights
        tokens, _ = network.shifted(self.columns["actions"])
        hidden = network.initial_hidden(self.columns["context"], self.columns["stage"])
        table = functional.linear(network.token_embedding.weight, gru.weight_ih, gru.bias_ih)
        outputs = []
        for inputs in functional.embedding(tokens.long(), table).unbind(1):  # (B, 3D) each
            reset, update, new = inputs.chunk(3, 1)
            own = functional.linear(hidden, gru.weight_hh, gru.bias_hh)
            own_reset, own_update, own_new = own.chunk(3, 1)
            update = torch.sigmoid(update + own_update)
            new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
            hidden = new + update * (hidden - new)
            outputs.append(hidden)
        stacked = torch.stack(outputs, 1)  # (B, T, D)
        return self._loss(network.logits(stacked), network.values(stacked))

    def _loss(self, logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return actor_critic_loss(logits, values, self.columns, LOSS)[0]


def rate(call: Callable[[], object], env_steps: int, seconds: float) -> float:
    """Env steps/s of a call that learns from `env_steps`, after some that are not counted."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        call()
    wait()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(5):
            call()
        wait()
        calls += 5
    return calls * env_steps / (time.perf_counter() - started)


def update_rate(
    columns: dict[str, torch.Tensor], seconds: float, captured: bool, **options: object
) -> float:
    """Env steps/s of one form of the bare update, from a fresh network."""
    network = StageGRUNetwork(get_task("calculator").interface).to(columns["actions"].device)
    update = Update(network, columns, **options)
    env_steps = int(columns["lengths"].sum())
    return rate(update.captured() if captured else update, env_steps, seconds)


def update_rows(sizes: tuple[int, ...], seconds: float, backend: str) -> Iterator[dict]:
    """The bare update, in all its forms."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task = get_task("calculator")
    for size in sizes:
        played = episodes(StageGRUNetwork(task.interface), size)
        columns = {name: torch.from_numpy(column).to(device) for name, column in played.items()}
        for suffix, precision in PRECISIONS.items():
            torch.set_float32_matmul_precision(precision)
            for form, options in {
                "plain": {},
                "cells, compiled": {"cells": True, "backend": backend},
            }.items():
                for captured in (False, True) if device == "cuda" else (False,):
                    name = f"{form}{', CUDA graph' if captured else ''}{suffix}"

                    measured = functools.partial(
                        update_rate, columns, seconds, captured=captured, **options
                    )
                    yield row(measured, form=name, episodes=size)


def learner_rows(sizes: tuple[int, ...], seconds: float) -> Iterator[dict]:
    """The product's learner, in this process."""
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.learner.training_data import TrainingData
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    from toolagent.config import build_algorithm_config, load_settings
    from toolagent.envs.spaces import action_space, observation_space

    task = get_task("calculator")
    config = build_algorithm_config(load_settings("default", gpu_settings()))
    spaces = {DEFAULT_MODULE_ID: (observation_space(task), action_space(task))}
    group = config.build_learner_group(spaces=spaces)
    for size in sizes:
        columns = episodes(StageGRUNetwork(task.interface), size)
        env_steps = int(columns["lengths"].sum())
        module_batch = {DEFAULT_MODULE_ID: SampleBatch(columns)}
        batch = MultiAgentBatch(module_batch, env_steps=env_steps)

        def update(batch=batch) -> None:
            group.update(training_data=TrainingData(batch=batch), timesteps={})

        yield row(functools.partial(rate, update, env_steps, seconds), episodes=size)
    group.shutdown()


def pipeline_rows(runners: tuple[int, ...], episodes: int, seconds: float) -> Iterator[dict]:
    """The whole pipeline; its actors and learner are stopped after each row."""
    from toolagent.benchmark import PIPELINE_ROWS
    from toolagent.benchmark.rows import RLlibRow, shipped_config
    from toolagent.cluster.ray_session import ray_session

    with ray_session(None, dashboard=False) as session:
        plans = [(number, "plain_runners") for number in runners]
        for number, name in (*plans, (runners[-1], "batched_runners")):
            overrides = (
                *PIPELINE_ROWS[name],
                *gpu_settings(),
                f"env_runners.num_env_runners={number}",
                f"env_runners.num_envs_per_env_runner={episodes}",
                f"training.episodes_per_update={episodes * number}",
            )

            def measured(overrides=overrides) -> float:
                measured_row = RLlibRow("row", shipped_config("default", overrides), session.cpus)
                try:
                    measured_row.warm_up(seconds / 4)
                    return measured_row.block(seconds).env_steps_per_s
                finally:
                    measured_row.close()

            yield row(measured, env_runners=number, row=name)


def gpu_settings() -> tuple[str, ...]:
    """The learner in the driver, on the GPU if there is one."""
    return (f"learners.num_gpus_per_learner={int(torch.cuda.is_available())}",)


def row(measure: Callable[[], float], **known: object) -> dict:
    """What is known of a measurement, and its env steps/s or why there are none.

    Whatever goes wrong with one must not cost the others: the machine may be gone afterwards.
    """
    try:
        return known | {"env_steps_per_s": measure()}
    except Exception as fault:
        return known | {"failed": f"{type(fault).__name__}: {fault}"[:300]}


def main(arguments: list[str]) -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--parts", default="learner,pipeline,update", help="in this order")
    parser.add_argument("--limit-s", type=float, default=540.0, help="begin nothing after that")
    parser.add_argument("--dry-run", action="store_true", help="tiny, to see that it works")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    small = given.dry_run
    sizes = (64,) if small else SIZES
    parts = {
        "learner": lambda: learner_rows(sizes, 0.05 if small else 2.0),
        "pipeline": lambda: pipeline_rows(
            (1,) if small else RUNNERS,
            64 if small else EPISODES_PER_RUNNER,
            0.2 if small else 6.0,
        ),
        "update": lambda: update_rows(
            sizes, 0.05 if small else 1.0, "eager" if small else "inductor"
        ),
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    result: dict = {"gpu": gpu, "torch": torch.__version__}
    started = time.perf_counter()
    for name in given.parts.split(","):
        result[name] = []
        try:
            for measured in parts[name]():
                result[name].append(measured)
                figure = measured.get("env_steps_per_s")
                known = {key: value for key, value in measured.items() if key != "env_steps_per_s"}
                print(
                    name, known, "" if figure is None else f"{figure:,.0f} env steps/s", flush=True
                )
                given.json.write_text(json.dumps(result, indent=2) + "\n")
                if time.perf_counter() - started > given.limit_s:
                    print(f"{name}: {given.limit_s:g} s are over; nothing more is measured")
                    return 0
        except Exception as fault:
            result[name].append({"failed": f"{type(fault).__name__}: {fault}"[:300]})
            print(name, "failed:", fault, flush=True)
            given.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
