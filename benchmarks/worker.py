"""One contender in a process of its own: sets up, then does its work once for every line on standard input."""

import importlib
import json
import sys
import time


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
        repeats = int(line)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        answer({"seconds": (time.perf_counter() - start) / repeats})


if __name__ == "__main__":
    main()
