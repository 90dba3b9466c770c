"""pebble's `ProcessPool`."""

from importlib.metadata import version
from typing import Any, Callable, Iterable, Iterator, Optional

import pebble

from .adapter import FutureAdapter


class Pool(FutureAdapter):
    @staticmethod
    def version() -> str:
        return version("pebble")

    def __init__(self, workers: int, initializer: Optional[Callable] = None) -> None:
        self.pool = pebble.ProcessPool(max_workers=workers, initializer=initializer)

    def submit(
        self, f: Callable, argument: Any, callback: Optional[Callable] = None
    ) -> Any:
        future = self.pool.schedule(f, args=[argument])
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def limited(self, f: Callable, argument: Any, seconds: float) -> Any:
        return self.pool.schedule(f, args=[argument], timeout=seconds)

    def lazy(self, f: Callable, items: Iterable) -> Iterator:
        return self.pool.map(f, items).result()

    def shutdown(self) -> None:
        self.pool.close()
        self.pool.join()

    def terminate(self) -> None:
        self.pool.stop()
        self.pool.join()

    @classmethod
    def idiom(cls, workers: int, f: Callable, items: Iterable) -> None:
        with pebble.ProcessPool(max_workers=workers) as pool:
            list(pool.map(f, items).result())
