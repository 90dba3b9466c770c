"""mpi4py's side of benches/hosts/run.sh: python -m mpi4py.futures futures.py, and a ping-pong.

Prints one JSON object: empty tasks per second, with the best of several chunk sizes; with `pingpong` as its
argument, the median time of 8 bytes there and back between ranks 0 and 1, in microseconds.
"""

import json
import statistics
import sys
import time


def empty(x):
    return x


def rate():
    from mpi4py.futures import MPIPoolExecutor

    items = 300_000
    best = (0, 0)
    with MPIPoolExecutor() as executor:
        list(executor.map(empty, range(1000)))
        for chunk in (100, 1000, 10_000, 30_000):
            start = time.perf_counter()
            done = sum(1 for _ in executor.map(empty, range(items), chunksize=chunk))
            assert done == items
            best = max(best, (items / (time.perf_counter() - start), chunk))
    print(json.dumps({"rate": round(best[0]), "chunk": best[1]}))


def pingpong():
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rank, buffer, times = comm.Get_rank(), bytearray(8), []
    if rank > 1:
        return
    for _ in range(5000):
        start = time.perf_counter()
        if rank == 0:
            comm.Send(buffer, dest=1)
            comm.Recv(buffer, source=1)
        else:
            comm.Recv(buffer, source=0)
            comm.Send(buffer, dest=0)
        times.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps({"pingpong": round(statistics.median(times[500:]) * 1e6, 1)}))


if __name__ == "__main__":
    pingpong() if sys.argv[1:] == ["pingpong"] else rate()
