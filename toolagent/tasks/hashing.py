"""Fixed choices of what is held out of training: by hashing numbers, so they need no file."""

from __future__ import annotations

import numpy as np


def hashes(count: int, salt: int) -> np.ndarray:
    """(count,) float64 in 0..1: of the numbers 0..count-1, the same whatever the seed of a run.

    SplitMix64's finalizer (Steele et al. 2014, "Fast splittable pseudorandom number generators").
    """
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64)
        z += np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def chosen(count: int, share: int, salt: int) -> np.ndarray:
    """(count,) bool: of the numbers 0..count-1 exactly `share`, those with the lowest hashes."""
    result = np.zeros(count, bool)
    result[np.argsort(hashes(count, salt), kind="stable")[:share]] = True
    return result
