"""`concurrent.futures.ProcessPoolExecutor`, with the platform's default start method."""

import platform
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable, Iterable, Iterator, Optional

from .adapter import FutureAdapter


class Pool(FutureAdapter):
    @staticmethod
    def version() -> str:
        return f"Python {platform.python_version()}"

    def __init__(self, workers: int, initializer: Optional[Callable] = None) -> None:
        self.pool = ProcessPoolExecutor(workers, initializer=initializer)

    def submit(
        self, f: Callable, argument: Any, callback: Optional[Callable] = None
    ) -> Any:
        future = self.pool.submit(f, argument)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def lazy(self, f: Callable, items: Iterable) -> Iterator:
        return self.pool.map(f, items)

    def shutdown(self) -> None:
        self.pool.shutdown()

    def terminate(self) -> None:
        # Python 3.14 has a call for this. For older versions, this does the same by hand.
        if hasattr(self.pool, "kill_workers"):
            return self.pool.kill_workers()
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()

    @classmethod
    def idiom(cls, workers: int, f: Callable, items: Iterable) -> None:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(f, items))
