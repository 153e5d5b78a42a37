"""A batch as named columns: a dataclass whose fields are arrays with the batch in front."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np


class Columns:
    """Base of dataclasses whose every field is a `np.ndarray` of shape (B, ...)."""

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))  # type: ignore[arg-type]

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """The rows of all batches, in order; a single batch is returned as it is.

        Raises:
            ValueError: there are no batches.
        """
        if not batches:
            raise ValueError("no batches to concatenate")
        if len(batches) == 1:
            return batches[0]
        names = [name for name, _ in batches[0].columns()]
        return cls(
            **{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
        )

    @classmethod
    def restored(cls, columns: Mapping[str, np.ndarray]) -> Self:
        """What `columns` returned as a batch again; older checkpoints may lack columns."""
        return cls(**columns)

    def take(self, rows: np.ndarray) -> Self:
        """The rows at the given indices (or under a boolean mask), as a new batch."""
        return type(self)(**{name: column[rows] for name, column in self.columns()})

    def put(self, rows: np.ndarray, other: Self) -> None:
        """Overwrites the rows at the given indices, in place, with those of `other`."""
        for name, column in self.columns():
            column[rows] = getattr(other, name)

    def columns(self) -> list[tuple[str, np.ndarray]]:
        """(name, array) of every column."""
        return [(name, getattr(self, name)) for name in self.__dataclass_fields__]  # type: ignore[attr-defined]
