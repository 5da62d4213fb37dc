"""Reports of a preparation: report.json and report.md in the store, and lines for the terminal."""

from collections.abc import Iterator
from pathlib import Path

from bertgpt.data.store import HISTOGRAM, SPLITS
from bertgpt.io.files import json_bytes
from bertgpt.types import JsonObject

BAR = 40  # characters of the longest bar


def report_of(facts: JsonObject, chars: int, seconds: float, work: JsonObject) -> JsonObject:
    """The report of a store.

    Args:
      facts: its store.json.
      chars: characters of the documents as they were read.
      seconds: duration of the run; of several, that of the last.
      work: how the run worked (runner, processes) and what it did itself: documents, tokens and seconds.
    """
    splits = facts["splits"]
    lengths = [
        sum(shard["lengths"][k] for split in SPLITS for shard in splits[split]["shards"]) for k in range(HISTOGRAM)
    ]
    sizes = [file["bytes"] for file in facts["source"]]
    return {
        "digest": facts["digest"],
        "documents_read": facts["read"],
        "documents_kept": sum(splits[split]["documents"] for split in SPLITS),
        "dropped": facts["dropped"],
        "splits": {
            split: {unit: splits[split][unit] for unit in ("documents", "sentences", "tokens")}
            | {"shards": len(splits[split]["shards"])}
            for split in SPLITS
        },
        "lengths": {str(2**k): count for k, count in enumerate(lengths) if count},
        "bytes_in": None if None in sizes else sum(sizes),
        "chars_in": chars,
        "tokens_out": sum(splits[split]["tokens"] for split in SPLITS),
        "seconds": round(seconds, 2),
        **work,
    }


def lines_of(report: JsonObject) -> Iterator[str]:
    """The report in Markdown, line by line."""
    yield "# Token store"
    yield ""
    yield f"digest `{report['digest']}`"
    yield ""
    size = "" if report["bytes_in"] is None else f"{report['bytes_in']:,} bytes, "
    yield (
        f"{size}{report['chars_in']:,} characters in; {report['tokens_out']:,} tokens out; {report['seconds']:,.1f} s,"
        f" {report['processes'] or 'any number of'} processes, runner {report['runner']}"
    )
    if report["documents_worked"]:
        rate = max(report["seconds_worked"], 1e-9)
        yield ""
        yield (
            f"{report['documents_worked']:,} documents and {report['tokens_worked']:,} tokens in"
            f" {report['seconds_worked']:,.1f} s: {report['documents_worked'] / rate:,.0f} documents/s,"
            f" {report['tokens_worked'] / rate:,.0f} tokens/s"
        )
    yield ""
    yield "| documents | |"
    yield "|---|---:|"
    yield f"| read | {report['documents_read']:,} |"
    for reason, count in report["dropped"].items():
        yield f"| dropped: {reason} | {count:,} |"
    yield f"| kept | {report['documents_kept']:,} |"
    yield ""
    yield "| split | documents | sentences | tokens | shards |"
    yield "|---|---:|---:|---:|---:|"
    for split, part in report["splits"].items():
        yield f"| {split} | " + " | ".join(f"{count:,}" for count in part.values()) + " |"
    yield ""
    yield "Tokens of a document:"
    yield ""
    yield "```"
    most = max(report["lengths"].values(), default=1)
    for low, count in report["lengths"].items():
        yield f"{f'{int(low):,} – {2 * int(low) - 1:,}':>22} {'█' * -(-BAR * count // most)} {count:,}"
    yield "```"


def write_report(folder: Path, report: JsonObject) -> None:
    """Writes report.json and report.md."""
    for name, content in report_files(report).items():
        (folder / name).write_bytes(content)


def report_files(report: JsonObject) -> dict[str, bytes]:
    """Name → content of the files of the report."""
    return {"report.json": json_bytes(report), "report.md": ("\n".join(lines_of(report)) + "\n").encode()}


def summary_of(path: Path, report: JsonObject) -> Iterator[str]:
    """A few lines for the terminal."""
    for split, part in report["splits"].items():
        yield f"{path}/{split}: " + ", ".join(f"{count:,} {unit}" for unit, count in part.items())
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report["dropped"].items())
    yield f"read {report['documents_read']:,} documents, kept {report['documents_kept']:,}; dropped: {dropped}"
    yield f"{report['tokens_out']:,} tokens in {report['seconds']:,.1f} s; report: {path / 'report.md'}"
    yield f"digest {report['digest']}"
