"""torch's compiler is loaded by who compiles something, and by nobody else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_MADE = "__dynamo_disable"  # where torch keeps what its compiler made of a function
_adam_step = torch.optim.Adam.step
_tell_compiler_too = torch.use_deterministic_algorithms


def load_compiler_late() -> None:
    """Keeps torch from loading its compiler in a process that compiles nothing.

    It takes longer to load than torch itself, and in every process of a run it would be loaded only
    to be told something: by the methods of an optimizer, what it must not compile; by
    `torch.use_deterministic_algorithms`, with which RLlib seeds, that it must be deterministic too.
    Both wait here until somebody else has loaded it. torch has no option for that.
    """
    if _COMPILER in sys.modules:
        return
    methods = vars(torch.optim.Optimizer).values()
    for function in [method.__wrapped__ for method in methods if hasattr(method, "__wrapped__")]:
        setattr(function, _MADE, _until_loaded(function))
    torch.optim.Adam.step = _step
    torch.use_deterministic_algorithms = _use_deterministic_algorithms


def _until_loaded(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            made = sys.modules[_COMPILER].disable(function, wrapping=False)
            setattr(function, _MADE, made)
            return made(*args, **kwargs)
        return function(*args, **kwargs)

    return called


def _step(self: torch.optim.Adam, closure: Any = None) -> Any:
    if _COMPILER in sys.modules:
        return _adam_step(self, closure)
    with torch.set_grad_enabled(self.defaults["differentiable"]):
        return _adam_step.__wrapped__(self, closure)  # type: ignore[attr-defined]


def _use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    if _COMPILER in sys.modules:
        _tell_compiler_too(mode, warn_only=warn_only)
        return
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(mode))  # read when it is loaded
    torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")
