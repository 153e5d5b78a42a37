"""Pickles that leave a mark when they are opened, planted where somebody might open them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


# What RLlib, Tune and torch write as pickles, and our own files' names with a pickle in them.
PICKLES = (
    "class_and_ctor_args.pkl",
    "algorithm_state.pkl",
    "state.pkl",
    "rllib_checkpoint.json",
    "learner_group/class_and_ctor_args.pkl",
    "learner_group/learner/state.pkl",
    "learner_group/learner/rl_module/default_policy/module_state.pkl",
    "env_runner/state.pkl",
    "tuner.pkl",
    "trainable.pkl",
    "model.pkl",
    "model.pt",
    "model.pth",
    "policy.pkl",
    "run.pkl",
    ".metadata",
)


def plant(folder: Path, mark: Path, names: Iterable[str] = PICKLES) -> None:
    """Bombs below the folder; torch.load would set them off too, in its own format."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(Bomb(mark)))
    torch.save(Bomb(mark), folder / "weights.pt")
