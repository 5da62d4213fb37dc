"""Runs one kind of benchmark: every contender in its own process, taking turns; writes JSON, prints a table."""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import finetune, table
from benchmarks.cases import CASES, CONTENDERS, LARGE, LARGE_PAGES, ON_CPU, Case
from benchmarks.worker import instructions

RESULTS = Path(__file__).parent / "results"
BLOCK_SECONDS = 2.0  # a turn lasts about this long


class Contender:
    """A worker process."""

    def __init__(self, side: str, kind: str, case: Case, python: str, cache: str):
        environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        environment |= LARGE_PAGES if side == "ours" else {}  # as the command line does
        environment |= case.get("environment", {})
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", side, kind, json.dumps(case)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.facts: dict[str, Any] = {}
        self.setup_seconds = 0.0
        self.repeats = 1
        self.seconds: list[float] = []

    def wait(self) -> None:
        """Waits until it has set up."""
        self.facts = self._answer()
        self.setup_seconds = time.perf_counter() - self.start

    def rate(self) -> None:
        """Measures the rate of a large matrix product, and reads the memory that was used."""
        print("rate", file=self.process.stdin, flush=True)
        self.facts |= self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            lines = self.process.stderr.read().strip().splitlines()
            errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
            raise RuntimeError((errors or lines or ["it ended without a word"])[-1][:200])
        return json.loads(line)

    def turn(self) -> float:
        print(self.repeats, file=self.process.stdin, flush=True)
        return self._answer()["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(
    kind: str,
    case: Case,
    repeats: int,
    peer_python: str,
    cache: str,
    only: list[str] | None = None,
    together: bool = False,
) -> dict[str, Any]:
    """Median seconds of each contender, or of those named, over interleaved turns.

    `together`: they set up at the same time, which is for machines with many cores; their turns never overlap.
    """
    started: dict[str, Contender] = {}
    contenders: dict[str, Contender] = {}
    failed: dict[str, str] = {}

    def ready(name: str) -> None:
        try:
            started[name].wait()
            contenders[name] = started[name]
            print(f"  {name}: ready after {started[name].setup_seconds:.1f} s", file=sys.stderr, flush=True)
        except (RuntimeError, OSError) as error:
            failed[name] = str(error)
            print(f"  {name}: left out: {error}", file=sys.stderr, flush=True)

    for name, (side, settings) in CONTENDERS[kind].items():
        if only and name not in only:
            continue
        if only is None and name not in ON_CPU and kind == "train_step":
            continue
        python = sys.executable if side == "ours" else peer_python
        started[name] = Contender(side, kind, case | settings, python, cache)
        if not together:
            ready(name)
    for name in started:
        if together:
            ready(name)
    for contender in contenders.values():
        contender.rate()
        contender.repeats = max(1, round(BLOCK_SECONDS / contender.turn()))
    for _ in range(repeats):
        for contender in contenders.values():
            contender.seconds.append(contender.turn())
    # The work that bertgpt counts is that of all, where all do the same.
    useful = (
        {} if kind == "finetune" else next(c.facts for c in contenders.values() if {"flops", "bytes"} & c.facts.keys())
    )
    rows = {}
    for name, contender in contenders.items():
        contender.close()
        seconds = statistics.median(contender.seconds)
        rows[name] = {
            "seconds": seconds, "all_seconds": contender.seconds,
            "tokens_per_second": contender.facts["tokens"] / seconds,
            "matmul_rate": contender.facts["matmul_rate"], "setup_seconds": contender.setup_seconds,
            "peak_bytes": contender.facts["peak_bytes"],
        }  # fmt: skip
        if "flops" in useful:
            rows[name]["matmul_utilisation"] = useful["flops"] / seconds / contender.facts["matmul_rate"]
        if "bytes" in useful:
            width = 0.5 if "bfloat16" in name else 1.0  # against float32
            rows[name]["weight_bytes_per_second"] = width * useful["bytes"] / seconds
    versions = {key: value for c in contenders.values() for key, value in c.facts["versions"].items()}
    return {"case": case, "contenders": rows, "failed": failed, "versions": versions}


def measure_startup(case: Case, repeats: int, peer_python: str) -> dict[str, Any]:
    """Seconds from the start of the process to the end of the first update."""
    rows: dict[str, Any] = {name: {"all_seconds": []} for name in CONTENDERS["startup"]}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as warm:
        for turn in range(repeats + 1):  # the first fills the caches and does not count
            for name, (side, settings) in CONTENDERS["startup"].items():
                with tempfile.TemporaryDirectory() as cold:
                    cache = cold if settings.get("cold") else warm
                    python = sys.executable if side == "ours" else peer_python
                    contender = Contender(side, "startup", case | settings, python, cache)
                    contender.wait()
                    contender.close()
                    versions |= contender.facts["versions"]
                if turn:
                    rows[name]["all_seconds"].append(contender.setup_seconds)
    for row in rows.values():
        row["seconds"] = statistics.median(row["all_seconds"])
    return {"case": case, "contenders": rows, "failed": {}, "versions": versions}


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model, "cores": os.cpu_count(), "instructions": instructions(), "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("kind", choices=[*CASES, "table"])
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--peer_python", default=sys.executable, help="interpreter that has torch and transformers")
    parser.add_argument("--large", action="store_true", help="shapes for an accelerator")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON (default: %(default)s)")
    parser.add_argument("--case", type=int, help="only this one of the cases, from 0")
    parser.add_argument("--only", nargs="+", help="names of contenders; default: all")
    parser.add_argument("--together", action="store_true", help="contenders set up at the same time")
    args = parser.parse_args()
    if args.kind == "table":
        print(table.write(args.out))
        return
    records = []
    chosen = (LARGE if args.large else CASES)[args.kind]
    with tempfile.TemporaryDirectory() as cache:
        for case in chosen if args.case is None else [chosen[args.case]]:
            print(f"{args.kind} {case}", file=sys.stderr)
            files = finetune.prepare(Path(cache)) if args.kind == "finetune" else {}
            if args.kind == "startup":
                records.append(measure_startup(case, args.repeats, args.peer_python))
            else:
                peer = args.peer_python
                found = measure(args.kind, case | files, args.repeats, peer, cache, args.only, args.together)
                records.append(found | {"case": case})
            print(table.text(args.kind, records[-1]))
    versions = records[0]["versions"]
    result = {
        "kind": args.kind, "date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions,
        "records": records,
    }  # fmt: skip
    device = versions.get("device", "cpu").lower().replace(" ", "_")
    name = f"{args.kind}-{device}" + ("" if args.case is None else f"-{args.case}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
