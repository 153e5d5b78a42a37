"""Makes what callbacks remember part of an Algorithm's checkpoint."""

from __future__ import annotations

from typing import Any


class CallbackStateMixin:
    """For Algorithms: callbacks with `get_state`/`set_state` are saved and restored with them.

    RLlib's checkpoints hold weights, optimizers, metrics and counters, and nothing of callbacks.
    """

    callbacks: Any

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state plus `callbacks`: class name -> its state."""
        state = super().get_state(*args, **kwargs)  # type: ignore[misc]
        return state | {
            "callbacks": {
                type(callback).__name__: callback.get_state() for callback in self._stateful()
            }
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_state`; callbacks get the algorithm too, to apply what they hold."""
        super().set_state(state)  # type: ignore[misc]
        for callback in self._stateful():
            saved = state.get("callbacks", {}).get(type(callback).__name__)
            if saved is not None:
                callback.set_state(saved, self)

    def _stateful(self) -> list[Any]:
        callbacks = self.callbacks if isinstance(self.callbacks, list) else [self.callbacks]
        return [callback for callback in callbacks if hasattr(callback, "get_state")]
