"""Results as Markdown: one table for each kind and case, ratios to the peer's best."""

import json
import statistics
from pathlib import Path
from typing import Any

README = Path(__file__).parent / "README.md"
START, END = "<!-- results -->\n", "<!-- end -->\n"
UNITS = dict.fromkeys(("train_step", "finetune", "inference"), "tokens/s") | {"decode": "new tokens/s", "startup": "s"}


def text(kind: str, record: dict[str, Any]) -> str:
    """The table of one case."""
    if kind == "data":
        return data_text(record)
    if kind == "serving":
        return serving_text(record)
    if kind == "edge":
        from benchmarks.edge import text as edge_text

        return edge_text(record)
    rows = record["contenders"]
    rate = {name: row.get("tokens_per_second", 1 / row["seconds"]) for name, row in rows.items()}
    best_peer = max((value for name, value in rate.items() if not name.startswith("bertgpt")), default=None)
    case = ", ".join(f"{key} {value}" for key, value in record["case"].items())
    last = {"train_step": "of its matmul rate", "inference": "of its matmul rate", "decode": "weights read, GB/s"}
    lines = [
        f"**{kind}**: {case}", "",
        f"| | {UNITS[kind]} | against the peer's best | {last.get(kind, 'range')} |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in rows.items():
        value = f"{row['seconds']:.1f}" if kind == "startup" else f"{row['tokens_per_second']:,.0f}"
        if kind == "decode":
            extra = f"{row['weight_bytes_per_second'] / 1e9:.1f}"
        elif "matmul_utilisation" not in row:
            extra = f"{min(row['all_seconds']):.1f}–{max(row['all_seconds']):.1f} s"
        else:
            extra = f"{row['matmul_utilisation']:.0%} of {row['matmul_rate'] / 1e9:,.0f} GFLOP/s"
        ratio = "–" if best_peer is None else f"{rate[name] / best_peer:.2f}×"
        lines.append(f"| {name} | {value} | {ratio} | {extra} |")
    lines += [f"| {name} | did not run: {why} | | |" for name, why in record["failed"].items()]
    return "\n".join(lines) + "\n"


def data_text(record: dict[str, Any]) -> str:
    """The table of one case of benchmarks/data.py."""
    case = dict(record["case"])
    work = case.pop("work")
    settings = ", ".join(f"{key} {value}" for key, value in case.items())
    unit, yardstick, digits = {
        "masking": ("M tokens/s", "transformers' collator at its best", 1),
        "tokenising": ("MB/s", "the library at its best", 2),
    }[work]
    lines = [
        f"**{work}**: {settings}" if settings else f"**{work}**", "",
        f"| | {unit} | range | against {yardstick} |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in record["contenders"].items():
        low, high = min(row["all_rates"]) / 1e6, max(row["all_rates"]) / 1e6
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}×"
        lines.append(f"| {name} | {row['rate'] / 1e6:.{digits}f} | {low:.{digits}f}–{high:.{digits}f} | {ratio} |")
    lines += [f"| {name} | did not run: {why} | | |" for name, why in record["failed"].items()]
    return "\n".join(lines) + "\n"


def serving_text(record: dict[str, Any]) -> str:
    """The tables of benchmarks/serving.py: of every server, and of what only bertgpt is asked."""
    rows = record["contenders"]

    def middle(row: dict[str, Any], clients: int, key: str) -> float:
        return statistics.median(turn[key] for turn in row[str(clients)])

    lines = [
        "**serving**: one sentence a request; latency p50 / p95 / p99 in ms", "",
        "| | 1 client: requests/s | latency | 8 clients | latency | 64 clients | latency | half load | p99 / p50 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in rows.items():
        cells = []
        for clients in (1, 8, 64):
            latency = " / ".join(f"{middle(row, clients, key):.1f}" for key in ("p50", "p95", "p99"))
            cells += [f"{middle(row, clients, 'throughput'):.0f}", latency]
        half = row["half"]
        cells += [" / ".join(f"{half[key]:.1f}" for key in ("p50", "p95", "p99")), f"{half['p99'] / half['p50']:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"| {name} | did not run: {why} | | | | | | | |" for name, why in record["failed"].items()]
    main = rows.get("bertgpt", {})
    if main:
        best = {
            n: middle(main, 64, "throughput") / middle(r, 64, "throughput") for n, r in rows.items() if n != "bertgpt"
        }
        lines += ["", "At 64 clients bertgpt answers " + ", ".join(f"{r:.2f}× {n}" for n, r in best.items()) + "."]
        memory, twice = main["memory"], main["twice"]
        change = memory["after"] / memory["before"] - 1
        lines.append(
            f"Resident memory changes by {change:+.1%} over {memory['requests']:,} requests"
            f" ({memory['after'] / 2**20:,.0f} MiB). At twice the capacity, answers by status: "
            + ", ".join(f"{status}: {count:,}" for status, count in twice["statuses"].items())
            + f"; p99 of those that are answered {twice['p99']:,.0f} ms."
        )
    return "\n".join(lines) + "\n"


def write(folder: Path) -> Path:
    """Puts the tables of all results in the folder into README.md."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        facts = ", ".join(f"{key} {value}" for key, value in {**result["machine"], **result["versions"]}.items())
        parts.append(f"### {result['kind']}, {result['date']}\n\n{facts}\n")
        parts += [text(result["kind"], record) for record in result["records"]]
    before, _, rest = README.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    README.write_text(before + START + "\n" + "\n".join(parts) + "\n" + END + after, encoding="utf-8")
    return README
