"""The interface of a pool for the cases: `Adapter`.

An adapter maps these operations to the pool's own, and adds nothing to them: no
time limit, no retry, no repair that the pool does not have itself.
"""

from abc import ABC, abstractmethod
from typing import Any, Callable, Iterable, Iterator, Optional


class NoSuchFeature(Exception):
    """The pool does not support it."""


class Adapter(ABC):
    """A running pool."""

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Returns the version of the pool's library."""

    @abstractmethod
    def __init__(self, workers: int, initializer: Optional[Callable] = None) -> None:
        """Starts the pool."""

    @abstractmethod
    def submit(
        self, f: Callable, argument: Any, callback: Optional[Callable] = None
    ) -> Any:
        """Calls `f(argument)` in a worker; the callback gets the handle or the result."""

    @abstractmethod
    def ready(self, handle: Any, seconds: float) -> bool:
        """Waits for a result or an error, with a limit."""

    @abstractmethod
    def result(self, handle: Any) -> Any:
        """Returns the result of a finished task, or raises its error."""

    @abstractmethod
    def lazy(self, f: Callable, items: Iterable) -> Iterator:
        """Returns an iterator over results, by the call of the pool that reads the least input."""

    def limited(self, f: Callable, argument: Any, seconds: float) -> Any:
        """Like `submit`, with a time limit."""
        raise NoSuchFeature

    @abstractmethod
    def shutdown(self) -> None:
        """Shuts the pool down in order, and waits for its end."""

    @abstractmethod
    def terminate(self) -> None:
        """Ends the pool at once, by its hardest call."""

    @classmethod
    @abstractmethod
    def idiom(cls, workers: int, f: Callable, items: Iterable) -> None:
        """Runs the program of the pool's documentation: a `with` and a map."""


class FutureAdapter(Adapter):
    """The common part of pools with `concurrent.futures.Future`."""

    def ready(self, handle: Any, seconds: float) -> bool:
        # Not by `concurrent.futures.wait`, which is not woken by a cancellation.
        try:
            handle.result(seconds)
        except BaseException:
            pass
        return handle.done()

    def result(self, handle: Any) -> Any:
        return handle.result(0)
