"""loky's executor, one for the case rather than the reusable one."""

from typing import Any, Callable, Iterable, Iterator, Optional

import loky

from .adapter import FutureAdapter


class Pool(FutureAdapter):
    @staticmethod
    def version() -> str:
        return loky.__version__

    def __init__(self, workers: int, initializer: Optional[Callable] = None) -> None:
        self.pool = loky.ProcessPoolExecutor(workers, initializer=initializer)

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
        self.pool.shutdown(kill_workers=True)

    @classmethod
    def idiom(cls, workers: int, f: Callable, items: Iterable) -> None:
        with loky.ProcessPoolExecutor(workers) as pool:
            list(pool.map(f, items))
