"""The same preparation on Apache Beam, for text that outgrows one machine: Dataflow, Flink, Spark, or this machine.

Every step calls the functions of `pipeline`, and whatever depends on the order of documents uses their location (file,
block, number in the block). So the store has the same bytes as after a local run, on any runner.

Each file is read by one worker; all later steps are distributed by block. Data exchanged between workers: blocks (once,
or twice with near duplicates), 8 bytes per document, and with near duplicates its signature once per band. The output
may be any path that Beam's file systems can write, such as gs://; store.json is written last.
"""

import contextlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bertgpt.data.sources.text import resolve
from bertgpt.data.store import SPLITS, shard_name, store_facts, write_shard
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.io.files import json_bytes, publish, remove_tree
from bertgpt.io.locks import lock
from bertgpt.prepare import blocks
from bertgpt.prepare.filters import Preparation
from bertgpt.prepare.near_duplicates import band_keys, bucket_duplicates
from bertgpt.prepare.pipeline import new_store, remove_partials, same_id, source_facts
from bertgpt.prepare.report import report_files, report_of
from bertgpt.types import JsonObject, UserError

# What Beam passes between steps. Beam derives encoders from annotations and would split named tuples into columns; with
# Any it pickles them.
Element = Any


def prepare_with_beam(
    source: str, tokenizer: Tokenizer, path: str, settings: Preparation, flags: Sequence[str] = ()
) -> JsonObject:
    """Prepares the documents of `source` as a store at `path`, like `pipeline.prepare`; returns its store.json.

    Args:
      source: a path of one or several files.
      tokenizer: splits documents into tokens.
      path: a directory or URL. Workers on other machines must be able to write there, and to read `source`.
      settings: as in `pipeline.prepare`.
      flags: Beam pipeline options, such as --runner=DataflowRunner; none: the direct runner, on this machine.

    Raises:
      UserError: apache-beam is not installed, `path` exists, or a source file is bad.
    """
    try:
        from apache_beam.io.filesystems import FileSystems
    except ImportError:
        raise UserError("Apache Beam is not installed; pip install 'bertgpt[beam]'") from None
    if "://" in path:
        if FileSystems.exists(f"{path}/store.json"):
            raise UserError(f"{path}: exists already")
        return _run(source, tokenizer, path, settings, flags)
    out = new_store(path)
    busy = f"{out}: another process is preparing this store"
    with lock(out.with_name(f".{out.name}.lock"), busy, wait=False):
        remove_partials(out, None)
        if os.path.lexists(out):
            raise UserError(f"{out}: exists already")
        partial = out.absolute().with_name(f".{out.name}.beam.partial")
        try:
            facts = _run(source, tokenizer, str(partial), settings, flags)
            publish(partial, out)
        finally:
            remove_tree(partial)
    return facts


def _run(source: str, tokenizer: Tokenizer, out: str, settings: Preparation, flags: Sequence[str]) -> JsonObject:
    import apache_beam as beam
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    start = time.perf_counter()
    files = source_facts(resolve(source))
    with _complaints():
        try:
            pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
        except ValueError as error:  # an unknown runner, or a missing option
            raise UserError(f"Apache Beam: {' '.join(str(error).split())}") from None
        build(pipeline, [file["file"] for file in files], tokenizer, out, settings)
        pipeline.run().wait_until_finish()
    with FileSystems.open(f"{out}/outcome.json") as file:
        outcome = json.loads(file.read())
    FileSystems.delete([f"{out}/outcome.json"])
    shards = {(split, number): facts for split, number, facts in outcome["shards"]}
    dropped = Counter({"duplicate": 0, "empty": 0} | ({"near_duplicate": 0} if settings.near_duplicates else {}))
    dropped.update(outcome["dropped"])
    more = {
        "settings": settings.describe(),
        "source": [{"file": file["file"], "bytes": file["bytes"]} for file in files],
        "read": outcome["read"],
        "dropped": {reason: dropped[reason] for reason in sorted(dropped)},
    }
    facts = store_facts(shards, tokenizer, blocks.id_dtype(tokenizer), more)
    seconds = time.perf_counter() - start
    work = {
        "runner": "beam",
        "processes": None,
        "documents_worked": outcome["read"],
        "tokens_worked": sum(facts["splits"][split]["tokens"] for split in SPLITS),
        "seconds_worked": round(seconds, 2),
    }
    report = report_files(report_of(facts, outcome["chars"], seconds, work))
    for name, content in (report | {"store.json": json_bytes(facts)}).items():
        with FileSystems.create(f"{out}/{name}") as file:
            file.write(content)
    return facts


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    """Restores UserErrors of workers: they arrive with the name of the step, or as text in an error of the runner."""
    workers_log = logging.getLogger("apache_beam.runners.common")  # it would print a traceback for each
    level = workers_log.level
    workers_log.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError as error:
        raise UserError(str(error).partition(" [while running ")[0]) from None
    except Exception as error:
        found = re.findall(r"UserError: (.+?)(?= \[while running |\\n|\n|$)", str(error))
        if not found:
            raise
        raise UserError(found[-1]) from None
    finally:
        workers_log.setLevel(level)


def build(pipeline: Any, files: Sequence[str], tokenizer: Tokenizer, out: str, settings: Preparation) -> None:
    """Adds the preparation to a Beam pipeline, which writes shards and outcome.json under `out`."""
    import apache_beam as beam
    from apache_beam.pvalue import AsSingleton

    worked = (
        pipeline
        | "files" >> beam.Create(list(enumerate(files)))
        | "spread files" >> beam.Reshuffle()
        | "read" >> beam.FlatMap(_read, settings)
        | "spread blocks" >> beam.Reshuffle()
        | "tokenise" >> beam.Map(_work, settings, tokenizer)
    )
    if settings.id_field is not None:
        _ = (
            worked
            | "ids" >> beam.FlatMap(_ids)
            | "same id" >> beam.GroupByKey()
            | "each id once" >> beam.Map(_check_id, list(files))
        )
    equal = worked | "hashes" >> beam.FlatMap(_hashes) | "same hash" >> beam.GroupByKey()
    duplicates = equal | "later of equals" >> beam.FlatMap(_all_but_first)
    merged = (
        (worked, duplicates) | "unite duplicates" >> beam.CoGroupByKey() | "duplicates" >> beam.Map(_drop, "duplicate")
    )
    if settings.near_duplicates is not None:
        near = (
            merged
            | "bands" >> beam.FlatMap(_bands, settings.near_duplicates)
            | "same band" >> beam.GroupByKey()
            | "later of similar" >> beam.FlatMap(_similar, settings.near_duplicates)
            | "once" >> beam.Distinct()
        )
        merged = (
            (merged, near)
            | "unite near duplicates" >> beam.CoGroupByKey()
            | "near duplicates" >> beam.Map(_drop, "near_duplicate")
        )
    merged = merged | "without tokens" >> beam.Map(_drop_empty)
    before = (
        merged
        | "tokens" >> beam.Map(_tokens)
        | "all tokens" >> beam.combiners.ToList()
        | "tokens before" >> beam.Map(_tokens_before)
    )
    shards = (
        merged
        | "cut" >> beam.FlatMap(_cut, AsSingleton(before), settings.shard_tokens)
        | "same shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write, out, blocks.id_dtype(tokenizer).name)
        | "all shards" >> beam.combiners.ToList()
    )
    counts = merged | "counts" >> beam.Map(_counts) | "all counts" >> beam.combiners.ToList()
    _ = (
        pipeline
        | "outcome" >> beam.Create([out])
        | "write outcome" >> beam.Map(_write_outcome, AsSingleton(shards), AsSingleton(counts))
    )


# -- the steps. A block is passed as (location, (Block, keep, dropped)) ------------------------------------------------


def _read(file: Element, settings: Preparation) -> Element:
    number, name = file
    for block, sources in enumerate(blocks.cut_blocks(blocks.read_sources(name, settings), settings)):
        yield (number, block), sources


def _work(element: Element, settings: Preparation, tokenizer: Tokenizer) -> Element:
    location, sources = element
    block = blocks.make_block(sources, settings, tokenizer)
    return location, (block, np.ones(len(block.hashes), bool), block.dropped)


def _ids(element: Element) -> Element:
    location, (block, _, _) = element
    for i, (name, line) in enumerate(zip(block.ids, block.lines, strict=True)):
        yield name, (*location, i, line)


def _check_id(element: Element, files: list[str]) -> Element:
    name, locations = element
    first, *others = sorted(locations)
    if others:
        same_id(*((name, f"{files[location[0]]}:{location[3]}") for location in (first, others[0])))


def _hashes(element: Element) -> Element:
    location, (block, _, _) = element
    for i, key in enumerate(block.hashes):
        yield key.tobytes(), (*location, i)


def _all_but_first(element: Element) -> Element:
    _, locations = element
    first = min(locations)
    for *location, i in locations:
        if (*location, i) != first:
            yield tuple(location), i


def _drop(element: Element, reason: str) -> Element:
    """Merges a block with the numbers of its documents to drop."""
    location, (worked, numbers) = element
    [(block, keep, dropped)] = worked
    numbers = list(numbers)
    keep = keep.copy()  # Beam elements must not be modified
    keep[numbers] = False
    return location, (block, keep, dict(Counter(dropped) + Counter({reason: len(numbers)})))


def _bands(element: Element, threshold: float) -> Element:
    location, (block, keep, _) = element
    for band, keys in enumerate(band_keys(block.signatures, threshold)):
        for i in np.flatnonzero(keep).tolist():
            yield (band, keys[i].tobytes()), ((*location, i), block.signatures[i])


def _similar(element: Element, threshold: float) -> Element:
    _, members = element
    for *location, i in bucket_duplicates(members, threshold):
        yield tuple(location), i


def _drop_empty(element: Element) -> Element:
    location, (block, keep, dropped) = element
    full = keep & (block.token_counts > 0)
    return location, (block, full, dict(Counter(dropped) + Counter({"empty": int((keep & ~full).sum())})))


def _tokens(element: Element) -> Element:
    """Tokens of the block in each split."""
    location, (block, keep, _) = element
    return location, np.bincount(block.splits[keep], block.token_counts[keep], len(SPLITS)).astype(np.int64)


def _tokens_before(counts: Element) -> Element:
    """Location of each block → tokens of each split in the blocks before it."""
    counts = sorted(counts, key=lambda item: item[0])
    tokens = np.array([count for _, count in counts])
    return {location: before for (location, _), before in zip(counts, np.cumsum(tokens, axis=0) - tokens, strict=True)}


def _cut(element: Element, before: Element, shard_tokens: int) -> Element:
    location, (block, keep, _) = element
    shards = blocks.shards_of(keep, block.splits, block.token_counts, shard_tokens, before[location])
    for split in range(len(SPLITS)):
        mine = keep & (block.splits == split)
        for shard in np.unique(shards[mine]).tolist():
            yield (split, shard), (location, block.take(mine & (shards == shard)))


def _write(element: Element, out: str, dtype: str) -> Element:
    from apache_beam.io.filesystems import FileSystems

    (split, number), pieces = element
    folder = f"{out}/{SPLITS[split]}/{shard_name(number)}"
    ordered = (piece for _, piece in sorted(pieces, key=lambda item: item[0]))
    facts = write_shard(lambda name: FileSystems.create(f"{folder}/{name}"), ordered, np.dtype(dtype))
    return SPLITS[split], number, facts


def _counts(element: Element) -> Element:
    _, (block, _, dropped) = element
    return block.read, block.chars, dropped


def _write_outcome(out: str, shards: Iterable[Element], counts: Iterable[Element]) -> Element:
    from apache_beam.io.filesystems import FileSystems

    dropped: Counter[str] = Counter()
    for _, _, reasons in counts:
        dropped.update(reasons)
    outcome = {
        "shards": sorted(shards, key=lambda item: item[:2]),
        "dropped": dropped,
        "read": sum(count[0] for count in counts),
        "chars": sum(count[1] for count in counts),
    }
    with FileSystems.create(f"{out}/outcome.json") as file:
        file.write(json.dumps(outcome).encode())
