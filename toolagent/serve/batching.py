"""Requests that arrive together are played together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Batcher(Generic[Asked, Answered]):
    """Gathers what is asked within one turn of the event loop, and answers it as one batch.

    It never waits for a batch to fill: a single request is answered at once. A batch blocks the
    event loop, and the requests that arrive meanwhile form the next batch, so batches grow with the
    load. (`serve.batch` does the same with a queue, tasks and a timer. With 100 clients that ask
    without pause, and no network to run, a request took 18 us of CPU time there and 2 us here.)

    Args:
        answer: a batch to its answers, in order; blocking.
        max_size: of a batch.
    """

    observe: Callable[[int], None] | None = None  # is told each batch's size

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Answered]], max_size: int):
        self._answer, self._max_size = answer, max_size
        self._waiting: list[tuple[Asked, asyncio.Future[Answered]]] = []

    async def ask(self, question: Asked) -> Answered:
        """The answer to one of them.

        Raises:
            Exception: what `answer` raised for the batch that it was in.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.append((question, future))
        return await future

    def _run(self) -> None:
        batch, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        batch = [(question, future) for question, future in batch if not future.cancelled()]
        if not batch:
            return
        if self.observe is not None:
            self.observe(len(batch))
        try:
            answers = self._answer([question for question, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
