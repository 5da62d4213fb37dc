"""Where a training step spends its time on an accelerator: the kernels that take longest.

    python -m benchmarks.profile bert_base --batch 256 --length 128 --out profile.json

Traces a few steps with jax's profiler and adds up the events of the device by name. Needs nothing beside jax.
"""

import argparse
import collections
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.profiler import ProfileData

from benchmarks.ours import train_step

STEPS = 3


def kernels(folder: Path) -> Mapping[str, tuple[float, int]]:
    """Name of a kernel, without its number → (milliseconds, launches) of a trace."""
    found: dict[str, tuple[float, int]] = collections.defaultdict(lambda: (0.0, 0))
    for path in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if line.name.startswith(("XLA Modules", "Steps", "Framework", "Source", "XLA TraceMe", "XLA Ops")):
                    continue
                for event in line.events:
                    name = re.sub(r"[._]\d+", "", event.name)
                    spent, count = found[name]
                    found[name] = spent + event.duration_ns / 1e6, count + 1
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Traces one case and prints its kernels, the longest first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--target", type=int, default=114, help="tokens of a target, for T5")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention_dropout", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(args)
    case = {name: value for name, value in vars(options).items() if name not in ("top", "out")}
    run, _ = train_step(case)
    for _ in range(3):
        run()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                run()
        wall = 1e3 * (time.perf_counter() - start) / STEPS
        found = kernels(Path(folder))
    rows = sorted(((spent / STEPS, count // STEPS, name) for name, (spent, count) in found.items()), reverse=True)
    busy = sum(row[0] for row in rows)
    print(f"{jax.devices()[0].device_kind}: {case}: {wall:.1f} ms a step with the profiler, {busy:.1f} ms of kernels")
    for spent, count, name in rows[: options.top]:
        print(f"{spent:8.3f} ms {spent / max(busy, 1e-9):6.1%} {count:5d}  {name[:110]}")
    if options.out:
        facts = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "case": case, "wall_ms": wall}
        records = [{"ms": spent, "launches": count, "name": name[:200]} for spent, count, name in rows[:40]]
        options.out.write_text(json.dumps(facts | {"busy_ms": busy, "kernels": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
