"""`multiprocessing.Pool`, with the platform's default start method."""

import multiprocessing
import platform
from typing import Any, Callable, Iterable, Iterator, Optional

from .adapter import Adapter


class Pool(Adapter):
    @staticmethod
    def version() -> str:
        return f"Python {platform.python_version()}"

    def __init__(self, workers: int, initializer: Optional[Callable] = None) -> None:
        self.pool = multiprocessing.Pool(workers, initializer)

    def submit(
        self, f: Callable, argument: Any, callback: Optional[Callable] = None
    ) -> Any:
        return self.pool.apply_async(f, (argument,), callback=callback)

    def ready(self, handle: Any, seconds: float) -> bool:
        handle.wait(seconds)
        return handle.ready()

    def result(self, handle: Any) -> Any:
        return handle.get(0)

    def lazy(self, f: Callable, items: Iterable) -> Iterator:
        return self.pool.imap(f, items)

    def shutdown(self) -> None:
        self.pool.close()
        self.pool.join()

    def terminate(self) -> None:
        self.pool.terminate()
        self.pool.join()

    @classmethod
    def idiom(cls, workers: int, f: Callable, items: Iterable) -> None:
        with multiprocessing.Pool(workers) as pool:
            pool.map(f, items, chunksize=1)
