"""torch's threads in a program that has other work for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Inside, torch computes with one thread; networks this small gain nothing from more, and lose
    on a busy machine. The program's own number is restored."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
