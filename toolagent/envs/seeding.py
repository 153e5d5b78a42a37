"""The stream of problems that belongs to a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils import seeding


def problem_stream(seed: Any, mixed_in: tuple[int, ...]) -> tuple[np.random.Generator, int]:
    """The random stream of a seed, and the seed as a plain integer.

    Args:
        seed: a non-negative integer, Python's or NumPy's.
        mixed_in: further integers of the seed; without any the stream is Gymnasium's own.

    Raises:
        gymnasium.error.Error: the seed is not a non-negative integer.
    """
    seed = int(seed) if isinstance(seed, np.integer) else seed
    stream, _ = seeding.np_random(seed)
    if mixed_in:
        stream = np.random.default_rng(np.random.SeedSequence([seed, *mixed_in]))
    return stream, seed
