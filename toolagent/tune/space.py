"""What a search draws from: one distribution for each key of the configuration.

In YAML a distribution is a mapping with one entry, its name and its arguments. Names and meaning
are Ray Tune's:

| written                     | drawn                                                  |
|-----------------------------|--------------------------------------------------------|
| `{choice: [a, b, ...]}`     | one of the values; with `search: grid`, each in turn   |
| `{uniform: [low, high]}`    | a number                                               |
| `{loguniform: [low, high]}` | a number, evenly on a logarithmic scale                |
| `{quniform: [low, high, q]}`| a multiple of q, high included                         |
| `{randint: [low, high]}`    | an integer from low to high - 1                        |
| `{lograndint: [low, high]}` | the same, evenly on a logarithmic scale                |
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    model_serializer,
    model_validator,
)

from toolagent.config.source import shown

CHOICE = "choice"
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Distribution(BaseModel):
    """One entry of a search space: exactly one of these fields is given."""

    model_config = STRICT

    choice: list[Any] = []
    uniform: list[float] = []
    loguniform: list[PositiveFloat] = []
    quniform: list[float] = []
    randint: list[int] = []
    lograndint: list[PositiveInt] = []

    @model_validator(mode="before")
    @classmethod
    def _is_one(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(
                f"expected a distribution such as {{uniform: [0, 1]}}, got {shown(value)}"
            )
        return value

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.arguments:
            raise ValueError(f"{self.kind}: expected a list of values, got []")
        if self.kind == CHOICE:
            seen = [json.dumps(value, sort_keys=True) for value in self.arguments]
            for value, text in zip(self.arguments, seen, strict=True):
                if seen.count(text) > 1:
                    raise ValueError(f"choice: holds {shown(value)} more than once")
            return self
        wanted = "[low, high, step]" if self.kind == "quniform" else "[low, high]"
        if len(self.arguments) != len(wanted.split(",")):
            raise ValueError(f"{self.kind}: expected {wanted}, got {shown(self.arguments)}")
        low, high, *step = self.arguments
        if low >= high:
            raise ValueError(f"the range from {low} to {high} is empty; low must be below high")
        if step:
            _check_step(low, high, *step)
        return self

    @model_serializer
    def _as_written(self) -> dict[str, list[Any]]:
        return {self.kind: self.arguments}

    @property
    def kind(self) -> str:
        """The name of the distribution."""
        return next(iter(self.model_fields_set))

    @property
    def arguments(self) -> list[Any]:
        """The choices, or the ends of the range (and the step)."""
        return getattr(self, self.kind)

    @property
    def extremes(self) -> list[Any]:
        """Values that must all be possible: every choice, or both ends of a range."""
        if self.kind == CHOICE:
            return self.arguments
        low, high = self.arguments[:2]
        return [low, high - 1 if isinstance(high, int) else high]

    def domain(self, grid: bool = False) -> Any:
        """As Ray Tune wants it."""
        from ray import tune

        if grid:
            return tune.grid_search(self.arguments)
        if self.kind == CHOICE:
            return tune.choice(self.arguments)
        return getattr(tune, self.kind)(*self.arguments)


def value_text(value: Any) -> str:
    """A setting as a trial's name shows it: numbers in four digits, the rest as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def short_names(keys: list[str]) -> dict[str, str]:
    """Key -> its last part, or the whole of it where another ends alike.

    Of keys joined by commas, the first gives the name.
    """
    firsts = {key: parts_of(key)[0] for key in keys}
    lasts = Counter(first.rpartition(".")[2] for first in firsts.values())
    names = {}
    for key, first in firsts.items():
        last = first.rpartition(".")[2]
        names[key] = last if lasts[last] == 1 else first
    return names


def parts_of(key: str) -> list[str]:
    """The configuration's keys in a key of the space, which may join several with commas."""
    return [part.strip() for part in key.split(",")]


def _check_step(low: float, high: float, step: float) -> None:
    if step <= 0 or step > high - low:
        raise ValueError(f"the step {step} must be above 0 and at most {high - low:g}")
    for end in (low, high):  # Ray Tune rounds to multiples of the step, so only these are drawn
        steps = end / step
        if not math.isfinite(steps) or abs(steps - round(steps)) > 1e-9:
            raise ValueError(f"{end} is no multiple of the step {step}")
