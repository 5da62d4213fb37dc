"""One contender in a process of its own: sets up, then does its work once for every line on standard input."""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def seconds(run: Callable[[], None], repeats: int) -> float:
    """Seconds that one of so many repetitions takes on average."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def instructions() -> str:
    """The instruction sets of this CPU on which the speed of products depends, such as "avx2 avx512f avx512_bf16"."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return " ".join(name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags)


def main() -> None:
    side, kind, case = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    out, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print stays out of the answers
    module = importlib.import_module(f"benchmarks.{side}")

    def answer(value: dict) -> None:
        print(json.dumps(value), file=out, flush=True)

    work = "train_step" if kind == "startup" else kind
    run, facts = getattr(module, work)(case)
    run()
    if kind != "startup":
        run()
    answer(facts | {"versions": module.describe()})
    for line in sys.stdin:
        if line.strip() == "rate":  # of a large product, when no other contender is busy
            answer({"matmul_rate": module.matmul_rate(case["dtype"]), "peak_bytes": module.peak_bytes()})
            continue
        answer({"seconds": seconds(run, int(line))})


if __name__ == "__main__":
    main()
