"""Training steps/s against the number of env runners that share these cores."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from toolagent.benchmark.figures import Block, row_figures, time_split, total
from toolagent.benchmark.rows import RLlibRow, shipped_config

SIZES = (1, 2, 4, 8, 16)
REFERENCE = 2


def measure_scaling(
    cpus: float, pairs: int, seconds: float, announce: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each number of runners.

    Every size is measured in turn with the reference, 2 runners, so that a slow minute of the
    machine hits both; `relative_to_2` is the median of the ratios within the pairs.

    Args:
        cpus: of the cluster.
        pairs: of blocks, for each size.
        seconds: of a block.
        announce: is told what is going on.
    """
    announce(f"scaling: {REFERENCE} runners")
    reference = _row(REFERENCE, cpus)
    try:
        reference.block(seconds)
        reference_ids = reference.process_ids()
        rows, reference_blocks = [], []
        for size in (size for size in SIZES if size != REFERENCE):
            announce(f"scaling: {size} runners")
            row = _row(size, cpus)
            try:
                row.block(seconds)
                ids = row.process_ids()
                blocks, base = [], []
                for _ in range(pairs):
                    base.append(reference.block(seconds, ids))
                    blocks.append(row.block(seconds, reference_ids))
            finally:
                row.close()
            reference_blocks += base
            ratios = [
                one.env_steps_per_s / other.env_steps_per_s
                for one, other in zip(blocks, base, strict=True)
            ]
            rows.append(_figures(size, blocks, statistics.median(ratios)))
        rows.append(_figures(REFERENCE, reference_blocks, 1.0))
    finally:
        reference.close()
    return sorted(rows, key=lambda row: row["num_env_runners"])


def _row(size: int, cpus: float) -> RLlibRow:
    config = shipped_config("default", (f"env_runners.num_env_runners={size}",))
    # Half of the CPUs each: the reference's actors live beside the measured ones.
    return RLlibRow(f"{size} runners", config, cpus / 2)


def _figures(size: int, blocks: list[Block], relative: float) -> dict[str, Any]:
    split = time_split(total(blocks), size, 0.0)
    return row_figures(f"{size} runners", blocks) | {
        "num_env_runners": size,
        "relative_to_2": relative,
        "learner_idle_share": split["idle"],
        "sampler_idle_share": split["sampler_idle"],
    }
