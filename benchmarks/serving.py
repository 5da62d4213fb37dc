"""Serving vectors on the loopback interface: throughput and latency beside transformers and sentence-transformers.

Every server runs in a process of its own with the same model, and they take turns: 1, 8 and 64 clients, each of which
sends its next sentence when the last one is answered. Then, at half of each server's measured capacity, requests arrive
at random moments (Poisson), and latency counts from the moment of arrival. Last, bertgpt alone: its resident memory
over 10,000 requests, and the answers at twice its capacity, which must be 200 or 429.

    python -m benchmarks.serving --peer_python PYTHON_WITH_TORCH_TRANSFORMERS_AND_SENTENCE_TRANSFORMERS

The peers' interpreter needs starlette, uvicorn and orjson too: pip install starlette uvicorn orjson. About 8 minutes.
"""

import argparse
import asyncio
import collections
import contextlib
import datetime
import json
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.__main__ import RESULTS, machine
from benchmarks.finetune import MODEL, sentences

CLIENTS = (1, 8, 64)
MAIN = "bertgpt"
# Name → (side of serving_app, whether the peers' interpreter runs it).
SIDES: dict[str, tuple[str, bool]] = {
    MAIN: ("batched", False),
    "bertgpt, one request at a time": ("unbatched", False),
    "bertgpt bfloat16": ("bfloat16", False),
    "transformers pipeline": ("pipeline", True),
    "sentence-transformers": ("sentence-transformers", True),
}
PATIENCE = 180.0  # seconds for a server to start


# -- client -----------------------------------------------------------------------------------------------------------


class Connection:
    """A kept-alive connection that sends one request after another and reads no more of an answer than it must."""

    def __init__(self, port: int):
        self.port = port

    async def open(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def post(self, request: bytes) -> tuple[int, bytes]:
        """(status, body)"""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        return int(head[9:12]), await self.reader.readexactly(int(length[1]) if length else 0)

    def close(self) -> None:
        self.writer.close()


def request_of(text: str) -> bytes:
    """A request to /embed."""
    body = json.dumps({"inputs": text}).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float, count: int = 10**9) -> dict:
    """Each client sends its next request when the last one is answered, for a time or a number of requests."""
    latencies: list[float] = []
    statuses: collections.Counter[int] = collections.Counter()
    end, order = time.perf_counter() + seconds, iter(range(count))

    async def client() -> None:
        connection = await Connection(port).open()
        while time.perf_counter() < end and (number := next(order, None)) is not None:
            start = time.perf_counter()
            status, _ = await connection.post(requests[number % len(requests)])
            latencies.append(time.perf_counter() - start)
            statuses[status] += 1
        connection.close()

    start = time.perf_counter()
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(client() for _ in range(clients)))
    return summary(latencies, statuses, time.perf_counter() - start)


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> dict:
    """Requests arrive at random moments, whether or not earlier ones are answered; latency counts from arrival."""
    latencies: list[float] = []
    statuses: collections.Counter[int] = collections.Counter()
    idle: list[Connection] = []

    async def one(arrival: float, request: bytes) -> None:
        connection = idle.pop() if idle else await Connection(port).open()
        status, _ = await connection.post(request)
        statuses[status] += 1
        if status == 200:
            latencies.append(time.perf_counter() - arrival)
        idle.append(connection)

    rng, start, tasks = random.Random(1), time.perf_counter(), []
    arrival = start
    async with asyncio.timeout(seconds + 90):
        while (arrival := arrival + rng.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(arrival - time.perf_counter(), 0))
            tasks.append(asyncio.ensure_future(one(arrival, requests[len(tasks) % len(requests)])))
        await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return summary(latencies, statuses, time.perf_counter() - start) | {"rate": rate}


def summary(latencies: Sequence[float], statuses: collections.Counter[int], seconds: float) -> dict[str, Any]:
    """Requests per second, and latency in milliseconds."""
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) * 1e3
    counts = {str(status): count for status, count in sorted(statuses.items())}
    return {"throughput": len(latencies) / seconds, "p50": p50, "p95": p95, "p99": p99, "statuses": counts}


# -- servers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(side: str, python: str, model: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """(process, port) of a server that answers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]), TOKENIZERS_PARALLELISM="false")
    command = [python, "-m", "benchmarks.serving_app", side, model, str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                if b" 200" in connection.recv(100):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                lines = process.stderr.read().strip().splitlines()
                raise RuntimeError((lines or [f"{side} does not answer after {PATIENCE} s"])[-1][:200])
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def resident(process: subprocess.Popen) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def compare_vectors(ports: dict[str, int], requests: Sequence[bytes]) -> dict[str, float]:
    """Largest difference of each server's numbers from those of the first one."""

    async def ask(port: int) -> np.ndarray:
        connection = await Connection(port).open()
        answers = [json.loads((await connection.post(request))[1])[0] for request in requests[:20]]
        connection.close()
        return np.array(answers)

    vectors = {name: asyncio.run(ask(port)) for name, port in ports.items()}
    first = next(iter(vectors.values()))
    return {name: float(np.abs(each - first).max()) for name, each in vectors.items()}


def measure(args: argparse.Namespace, requests: Sequence[bytes], model: str) -> dict[str, Any]:
    """The record: everything of all servers."""
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, tuple[subprocess.Popen, int]] = {}
        for name, (side, of_peer) in SIDES.items():
            if args.only and name not in args.only:
                continue
            start = time.perf_counter()
            try:
                python = args.peer_python if of_peer else sys.executable
                running[name] = stack.enter_context(server(side, python, model))
                print(f"  {name}: ready after {time.perf_counter() - start:.1f} s", file=sys.stderr)
            except (RuntimeError, OSError) as error:
                failed[name] = str(error)
                print(f"  {name}: left out: {error}", file=sys.stderr)
        ports = {name: port for name, (_, port) in running.items()}
        rows: dict[str, dict[str, Any]] = {name: {str(c): [] for c in CLIENTS} for name in ports}
        for name, error in compare_vectors(ports, requests).items():
            rows[name]["difference"] = error
        for port in ports.values():
            asyncio.run(closed_loop(port, requests, 8, args.seconds / 2))
        for turn in range(args.repeats):
            for clients in CLIENTS:
                for name, port in ports.items():
                    shifted = requests[turn * 997 % len(requests) :] + requests
                    found = asyncio.run(closed_loop(port, shifted, clients, args.seconds))
                    rows[name][str(clients)].append(found)
                    print(f"  {name}, {clients} clients: {found['throughput']:.0f}/s", file=sys.stderr, flush=True)
        for name, port in ports.items():
            capacity = statistics.median(turn["throughput"] for turn in rows[name][str(CLIENTS[-1])])
            rows[name]["half"] = asyncio.run(open_loop(port, requests, capacity / 2, 2 * args.seconds))
        if MAIN in running:
            process, port = running[MAIN]
            before = resident(process)
            asyncio.run(closed_loop(port, requests, 8, 600, args.requests))
            rows[MAIN]["memory"] = {"before": before, "after": resident(process), "requests": args.requests}
            capacity = 2 * statistics.median(turn["throughput"] for turn in rows[MAIN][str(CLIENTS[-1])])
            rows[MAIN]["twice"] = asyncio.run(open_loop(port, requests, capacity, 2 * args.seconds))
    case = {"model": MODEL, "seconds": args.seconds, "sentences": len(requests)}
    return {"case": case, "contenders": rows, "failed": failed}


def versions_of(python: str) -> dict[str, str]:
    """Versions of the packages that matter, in an interpreter."""
    names = ["jax", "torch", "transformers", "sentence-transformers", "starlette", "uvicorn"]
    code = "import importlib.metadata as m, json, sys; known = {d.name.lower(): d.version for d in m.distributions()}; "
    code += "print(json.dumps({n: known[n] for n in sys.argv[1:] if n in known}))"
    return json.loads(subprocess.run([python, "-c", code, *names], capture_output=True, text=True, timeout=60).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each server (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, help="of the memory test (default: %(default)s)")
    parser.add_argument("--peer_python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--only", nargs="+", help=f"names of servers; default: all of {', '.join(SIDES)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON (default: %(default)s)")
    args = parser.parse_args()
    from bertgpt.inference.model import resolve

    record = measure(args, [request_of(text) for text in sentences()], str(resolve(MODEL)))
    print(table.text("serving", record))
    result = {
        "kind": "serving", "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions_of(args.peer_python) | versions_of(sys.executable), "records": [record],
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "serving-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
