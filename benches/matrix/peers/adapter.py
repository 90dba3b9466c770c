"""What every pool has to offer for the cases: `Adapter`.

An adapter maps these operations to the pool's own, and adds nothing to them: no
time limit, no retry, no repair that the pool does not have itself.
"""

from abc import ABC, abstractmethod
from typing import Any, Callable, Iterable, Iterator, Optional


class NoSuchFeature(Exception):
    """The pool has nothing of the kind."""


class Adapter(ABC):
    """A running pool."""

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Of the pool's library."""

    @abstractmethod
    def __init__(self, workers: int, initializer: Optional[Callable] = None) -> None:
        """Starts it."""

    @abstractmethod
    def submit(
        self, f: Callable, argument: Any, callback: Optional[Callable] = None
    ) -> Any:
        """Calls `f(argument)` in a worker; the callback gets the handle or the result."""

    @abstractmethod
    def ready(self, handle: Any, seconds: float) -> bool:
        """Waits for a result or an error, for so long at most."""

    @abstractmethod
    def result(self, handle: Any) -> Any:
        """The result of what is ready, or raises its error."""

    @abstractmethod
    def lazy(self, f: Callable, items: Iterable) -> Iterator:
        """Results as an iterator, in the way of the pool that reads the least input."""

    def limited(self, f: Callable, argument: Any, seconds: float) -> Any:
        """As `submit`, for a task that must not take longer."""
        raise NoSuchFeature

    @abstractmethod
    def shutdown(self) -> None:
        """Ends the pool in order, and waits for it."""

    @abstractmethod
    def terminate(self) -> None:
        """Ends the pool at once, in the hardest way that it has."""

    @classmethod
    @abstractmethod
    def idiom(cls, workers: int, f: Callable, items: Iterable) -> None:
        """The program that the pool's documentation shows: a `with` and a map."""


class FutureAdapter(Adapter):
    """The part that pools with `concurrent.futures.Future` have in common."""

    def ready(self, handle: Any, seconds: float) -> bool:
        # Not with `concurrent.futures.wait`, which sleeps through a cancellation.
        try:
            handle.result(seconds)
        except BaseException:
            pass
        return handle.done()

    def result(self, handle: Any) -> Any:
        return handle.result(0)
