"""A pool of Python's, driven by the bench: `python3 -c … Pool|ProcessPoolExecutor WORKERS`.

Each line on standard input is an order, each line on standard output its answer: seconds by this
process's own clock. The pool is started once; only the order `start` times the start of another.
"""

import json
import math
import multiprocessing
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory


def identity(x):
    return x


class Pool:
    def __init__(self, workers):
        self.pool = multiprocessing.Pool(workers)

    def submit(self, function, argument):
        return self.pool.apply_async(function, (argument,))

    def call(self, function, argument):
        return self.pool.apply(function, (argument,))

    def result(self, handle):
        return handle.get()

    def map(self, function, items):
        return self.pool.map(function, items)

    def end(self):
        self.pool.terminate()


class Executor:
    def __init__(self, workers):
        self.workers = workers
        self.pool = ProcessPoolExecutor(workers)

    def submit(self, function, argument):
        return self.pool.submit(function, argument)

    def call(self, function, argument):
        return self.pool.submit(function, argument).result()

    def result(self, handle):
        return handle.result()

    def map(self, function, items):
        # By default it sends one item per message, which would take minutes. These are the chunks of Pool.
        chunk = max(1, -(-len(items) // (4 * self.workers)))
        return list(self.pool.map(function, items, chunksize=chunk))

    def end(self):
        self.pool.shutdown()


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def singles(pool, calls):
    handles = [pool.submit(identity, i) for i in range(calls)]
    for handle in handles:
        pool.result(handle)


def fill(queue, messages, go):
    go.wait()
    for i in range(messages):
        queue.put(i)


def drain(messages):
    queue, go = multiprocessing.Queue(), multiprocessing.Event()
    producer = multiprocessing.Process(target=fill, args=(queue, messages, go))
    producer.start()

    def work():
        go.set()
        for _ in range(messages):
            queue.get()

    seconds = timed(work)
    producer.join()
    return seconds


def last_of(name):
    memory = shared_memory.SharedMemory(name)
    numbers = memory.buf.cast("d")
    last = numbers[-1]
    numbers.release()
    memory.close()
    return last


def share(pool, numbers, calls):
    memory = shared_memory.SharedMemory(create=True, size=8 * numbers)
    try:
        times = [timed(lambda: pool.call(last_of, memory.name)) for _ in range(calls)]
    finally:
        memory.close()
        memory.unlink()
    return statistics.median(times)


def start(kind):
    started = []

    def work():
        started.append(kind(2))
        started[0].call(identity, 1)

    seconds = timed(work)
    started[0].end()
    return seconds


def answer(pool, order):
    what = order["do"]
    if what == "call":
        times = [timed(lambda: pool.call(identity, 1)) for _ in range(order["calls"])]
        return statistics.median(times)
    if what == "singles":
        return timed(lambda: singles(pool, order["calls"]))
    if what == "roots":
        return timed(lambda: pool.map(math.sqrt, range(order["from"], order["to"])))
    if what == "echo":
        content = bytes(order["bytes"])
        return timed(lambda: pool.call(identity, content))
    if what == "sleep":
        return timed(lambda: pool.map(time.sleep, order["seconds"]))
    if what == "sleep_in_order":
        return timed(lambda: list(pool.pool.imap(time.sleep, order["seconds"])))
    if what == "queue":
        return drain(order["messages"])
    if what == "shared":
        return share(pool, order["numbers"], order["calls"])
    if what == "start":
        return start(type(pool))
    raise ValueError(what)


def main():
    pool = {"Pool": Pool, "ProcessPoolExecutor": Executor}[sys.argv[1]](int(sys.argv[2]))
    pool.call(identity, 0)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "version":
            reply = {"version": platform.python_version()}
        else:
            reply = {"seconds": answer(pool, order)}
        print(json.dumps(reply), flush=True)
    pool.end()


main()
