"""With and without in turns: what something costs, on a machine whose speed drifts."""

from __future__ import annotations

import statistics
from collections.abc import Callable


def paired_ratios(
    block: Callable[[bool], float], pairs: int, warm_up: Callable[[], object]
) -> list[float]:
    """How much faster `block(True)` is than the `block(False)` beside it, for each pair.

    Args:
        block: runs for a while, with it or without, and gives the steps/s.
        pairs: of blocks; neither kind is always the first.
        warm_up: called once, before.
    """
    warm_up()
    ratios = []
    for pair in range(pairs):
        order = (True, False) if pair % 2 else (False, True)
        measured = {on: block(on) for on in order}
        ratios.append(measured[True] / measured[False])
    return ratios


def described(ratios: list[float]) -> str:
    """Median, quartiles and number."""
    low, median, high = statistics.quantiles(ratios)
    return f"median {median:.3f}, quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs of blocks"
