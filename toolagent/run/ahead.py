"""What is done while the main thread waits for other processes: imports above all."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable

from toolagent.phases import phase

# What a run cannot be configured without: RLlib, with torch, takes some seconds.
FOR_TRAINING = ("toolagent.cluster.rllib_import", "toolagent.run.execution")
# What the processes of env runners and learners are made with.
FOR_ACTORS = (
    *("toolagent.cluster.rllib_import", "toolagent.learning.algorithm"),
    "toolagent.rollouts.env_runner",
)
# What the report at the end is made with.
FOR_RESULTS = ("jinja2", "matplotlib.backends.backend_svg", "matplotlib.figure")


def import_ahead(
    names: tuple[str, ...], then: Callable[[], object] = lambda: None
) -> threading.Thread:
    """Imports the modules in a thread, which is returned, and calls a function there behind them.

    What fails is left to who needs it: it fails there again.

    Until the thread has ended, nothing else may be imported that imports each other with these
    modules, as the parts of RLlib do: two threads would each wait for the other, and Python then
    hands out modules that are not complete. `ray.init()` imports parts of Ray's core, which know
    nothing of its libraries.
    """

    def work() -> None:
        for name in names:
            with contextlib.suppress(Exception), phase(f"import {name}"):
                importlib.import_module(name)
        with contextlib.suppress(Exception):
            then()

    thread = threading.Thread(target=work, name="import-ahead", daemon=True)
    thread.start()
    return thread
