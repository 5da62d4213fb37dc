"""From raw text to a token store: read → clean → filter → drop duplicates → split → tokenise → shards.

There are two passes. First every block of documents is tokenised independently (`blocks.make_block`), by any number of
processes, and saved. Then duplicates are found over the hashes and signatures of all documents, which determines the
shard of each document, and the shards are written, again by all processes. Both passes depend only on the data and the
settings, and so do the bytes of the store. A document that turns out to be a duplicate of one in another block has
already been tokenised: that is the cost of reading the text once.

Work in progress lies in .NAME.FINGERPRINT.partial beside the store. Blocks and shards are written there atomically, so
running the same command again after an interruption resumes. Other text, settings or another tokenizer have another
fingerprint and start from the beginning. The finished store is renamed to its path.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from bertgpt.data.sources.text import IN_MEMORY, Items, facts, resolve
from bertgpt.data.store import SPLITS, VERSION, find_store, read_facts, shard_name, store_facts, write_shard
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.io.directories import make_directory, new_directory
from bertgpt.io.files import CannotWrite, publish, read_json, remove_tree, write_atomic, write_json
from bertgpt.io.locks import lock
from bertgpt.io.paths import url_of
from bertgpt.io.retry import Unfinished
from bertgpt.prepare import blocks, workers
from bertgpt.prepare.filters import Preparation, hash_of
from bertgpt.prepare.near_duplicates import StoredSignatures
from bertgpt.prepare.report import report_of, write_report
from bertgpt.types import JsonObject, UserError

log = logging.getLogger(__name__)
EVERY = 2.0  # seconds between log lines
FINGERPRINT = 16  # hexadecimal digits


def prepare(
    source: str | os.PathLike[str] | Items | Callable[[], Items],
    tokenizer: Tokenizer,
    path: Path,
    settings: Preparation,
    *,
    processes: int = 1,
    wait: bool = False,
) -> JsonObject:
    """Prepares the documents of `source` as a store at `path` and returns the content of its store.json.

    Args:
      source: whatever `read_documents` takes. Documents in memory have no identity by which an interrupted run could
        recognise them, so preparing them does not resume.
      tokenizer: splits documents into tokens.
      path: the directory of the store.
      settings: cleaning, filters, splits and sizes.
      processes: number of worker processes; 1: only this process, with the tokenizer's own threads.
      wait: if another process is preparing a store at `path`, wait for it and use its store; otherwise an error.

    Raises:
      UserError: `path` exists, another process is preparing it, or a source file is bad. Bad text on disk removes
        the work in progress; after any other interruption the next run resumes.
    """
    path = new_store(path)
    busy = f"{path}: another process is preparing this store"
    with lock(path.with_name(f".{path.name}.lock"), busy, wait):
        if os.path.lexists(path):
            remove_partials(path, None)
            if wait:
                return read_facts(path)
            raise UserError(f"{path}: exists already")
        if isinstance(source, str | os.PathLike):
            files, items = source_facts(resolve(os.fspath(source))), None
            identity = [files, settings.describe(), tokenizer.hash, VERSION]
        else:
            files, items = [{"file": IN_MEMORY, "bytes": None}], source
            identity = [secrets.token_hex()]
        fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:FINGERPRINT]
        partial = path.with_name(f".{path.name}.{fingerprint}.partial")
        remove_partials(path, partial)
        try:
            return _prepare(files, items, tokenizer, path, settings, processes, partial)
        except Unfinished:
            raise
        except OSError as error:
            raise CannotWrite(f"{error.filename or path}: cannot be written: {error.strerror}") from None
        except UserError:
            if not any("://" in file["file"] for file in files):  # errors of remote files may be transient
                remove_tree(partial)
            raise


def is_prepared_copy(path: Path, source: str, tokenizer: Tokenizer, settings: Preparation) -> bool:
    """Whether the local copy of a URL holds this store already, because it was prepared but not uploaded completely.

    Another store is removed from the local copy; a path on a file system is left alone.

    Raises:
      UserError: there is a store at the URL.
    """
    if url_of(path) is None:
        return False
    if find_store(path) is not None:
        raise UserError(f"{path}: exists already; name a new folder")
    facts = read_facts(path, update=False) if (path / "store.json").exists() else {}
    files = [{"file": file["file"], "bytes": file["bytes"]} for file in source_facts(resolve(source))]
    wanted = {"tokenizer": tokenizer.hash, "settings": settings.describe(), "source": files}
    # Settings are compared as JSON, which has no tuples.
    if {name: facts.get(name) for name in wanted} == json.loads(json.dumps(wanted)):
        return True
    remove_tree(path)
    return False


def new_store(path: str | Path) -> Path:
    """The path of a store to make, whose parent directory exists afterwards.

    Raises:
      UserError: it names no new folder, such as . or /.
    """
    path = Path(path)
    if not path.name or path.name == "..":
        raise UserError(f"{path}: exists already; name a new folder")
    make_directory(path.parent)
    return path


def source_facts(files: list[str]) -> list[JsonObject]:
    """Name, size and modification time of each file, as JSON."""
    return [{"file": file} | facts(file) for file in files]


def remove_partials(path: Path, but: Path | None) -> None:
    """Removes the work in progress of other settings, except `but`. The lock on `path` ensures that no run uses it."""
    made_here = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{{FINGERPRINT}}}|beam)\.partial")
    for entry in path.parent.iterdir():
        if made_here.fullmatch(entry.name) and entry.name != (but and but.name):
            remove_tree(entry)


def _prepare(
    files: list[JsonObject],
    items: Items | Callable[[], Items] | None,
    tokenizer: Tokenizer,
    path: Path,
    settings: Preparation,
    processes: int,
    partial: Path,
) -> JsonObject:
    start = time.perf_counter()
    for folder in ("blocks", "shards", "store"):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    work = Work(tokenizer, settings, partial, tuple(file["file"] for file in files))
    progress = Progress()
    tasks = _missing_blocks(work, items, progress)
    if processes == 1:  # the tokenizer's threads need no interpreter: they and a cleaning thread work at once
        tasks = workers.ahead(task._replace(documents=blocks.clean_block(task.documents, settings)) for task in tasks)
    workers.run_all(save_one_block, work, tasks, processes, progress.add)
    progress.close()
    plan = make_plan(work)
    workers.run_all(save_one_shard, work, plan.shards, processes, lambda _: None)
    shards = {(s.split, s.number): read_json(_shard_facts(partial, s)) for s in plan.shards}
    more = {
        "settings": settings.describe(),
        "source": [{"file": file["file"], "bytes": file["bytes"]} for file in files],
        "read": plan.read,
        "dropped": plan.dropped,
    }
    content = store_facts(shards, tokenizer, blocks.id_dtype(tokenizer), more)
    for split in SPLITS:
        (partial / "store" / split).mkdir(exist_ok=True)
    write_json(partial / "store" / "store.json", content)
    done = {"runner": "local", "processes": processes} | progress.facts()
    write_report(partial / "store", report_of(content, plan.chars, time.perf_counter() - start, done))
    publish(partial / "store", path)
    remove_tree(partial)
    return content


class Work(NamedTuple):
    """What all tasks share."""

    tokenizer: Tokenizer
    settings: Preparation
    partial: Path
    files: tuple[str, ...]


class Progress:
    """Counts what this run has processed, and logs it at intervals."""

    def __init__(self):
        self.documents = self.tokens = self.chars = self.kept_blocks = 0
        self.start = time.perf_counter()
        self.seconds = 0.0
        self.said = self.start - EVERY

    def add(self, counts: tuple[int, int, int]) -> None:
        self.documents += counts[0]
        self.tokens += counts[1]
        self.chars += counts[2]
        if time.perf_counter() - self.said >= EVERY:
            self.said = time.perf_counter()
            self._say()

    def close(self) -> None:
        self.seconds = time.perf_counter() - self.start
        if self.documents:
            self._say()

    def facts(self) -> JsonObject:
        return {
            "documents_worked": self.documents,
            "tokens_worked": self.tokens,
            "seconds_worked": round(self.seconds, 2),
        }

    def _say(self) -> None:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        log.info(
            "prepare: %s documents, %s tokens (%s documents/s, %s tokens/s)",
            *(f"{count:,}" for count in (self.documents, self.tokens)),
            *(f"{count / seconds:,.0f}" for count in (self.documents, self.tokens)),
        )


# -- the first pass: blocks -------------------------------------------------------------------------------------------


class BlockTask(NamedTuple):
    file: int
    number: int
    documents: list[blocks.Source] | blocks.Texts


def _block_path(partial: Path, file: int, number: int) -> Path:
    return partial / "blocks" / f"{file:06d}-{number:06d}.npz"


def _count_path(partial: Path, file: int) -> Path:
    """The file that holds the number of blocks of a source file, written once it has been read to its end."""
    return partial / "blocks" / f"{file:06d}.count"


def _missing_blocks(work: Work, items: Items | Callable[[], Items] | None, progress: Progress) -> Iterator[BlockTask]:
    """The blocks that are not saved yet. Source files whose blocks are all saved are not read again."""
    known = {entry.name for entry in os.scandir(work.partial / "blocks")}
    progress.kept_blocks = sum(name.endswith(".npz") for name in known)
    if progress.kept_blocks:
        log.info("prepare: resuming; %s blocks are done", f"{progress.kept_blocks:,}")
    for file, name in enumerate(work.files):
        count = _count_path(work.partial, file)
        if count.name in known and all(
            _block_path(work.partial, file, number).name in known for number in range(int(count.read_text()))
        ):
            continue
        number = 0
        documents = blocks.read_sources(name if items is None else items, work.settings)
        for number, sources in enumerate(blocks.cut_blocks(documents, work.settings)):
            if _block_path(work.partial, file, number).name not in known:
                yield BlockTask(file, number, sources)
        write_atomic(count, str(number + 1).encode())


def save_one_block(work: Work, task: BlockTask) -> tuple[int, int, int]:
    """Makes and saves one block: (documents, tokens, characters)."""
    texts = task.documents
    if isinstance(texts, list):
        texts = blocks.clean_block(texts, work.settings)
    block = blocks.encode_block(texts, work.tokenizer)
    blocks.save_block(_block_path(work.partial, task.file, task.number), block)
    return block.read, len(block.tokens), block.chars


# -- in between: the shard of each document ---------------------------------------------------------------------------


class ShardTask(NamedTuple):
    """One shard: which documents of which blocks, in order."""

    split: str
    number: int
    parts: list[tuple[Path, Bool[np.ndarray, " N"]]]


class Plan(NamedTuple):
    shards: list[ShardTask]
    dropped: dict[str, int]
    read: int
    chars: int


def make_plan(work: Work) -> Plan:
    """Which documents are kept, and the shard of each.

    Takes 17 bytes of memory per document, and as much again for each of two sorted copies. The signatures of near
    duplicates (about 700 bytes per document) stay on disk.

    Raises:
      UserError: two documents have the same id.
    """
    paths = sorted((work.partial / "blocks").glob("*.npz"))
    dropped: Counter[str] = Counter({"duplicate": 0, "empty": 0})
    notes = []
    signs = StoredSignatures(work.partial / "signatures") if work.settings.near_duplicates else None
    read = chars = 0
    ids = []
    for path in paths:
        note = blocks.load_notes(path)
        dropped.update(note["dropped"])
        read, chars = read + note["read"], chars + note["chars"]
        notes.append((note["hashes"], note["splits"], note["token_counts"]))
        if work.settings.id_field is not None:
            ids.append(np.array([hash_of(i) for i in note["ids"]], np.uint64))
        if signs is not None:
            signs.add(note["signatures"], work.settings.near_duplicates)
    check_ids(ids, work, paths)
    hashes, splits, tokens = (np.concatenate(column) for column in zip(*notes, strict=True))
    keep = blocks.first_of_each(hashes)
    dropped["duplicate"] += int((~keep).sum())
    if signs is not None:
        near = signs.near_duplicates(np.flatnonzero(keep), work.settings.near_duplicates)
        dropped["near_duplicate"] = int(near.sum())
        keep &= ~near
    dropped["empty"] += int((keep & (tokens == 0)).sum())
    keep &= tokens > 0
    shards = blocks.shards_of(keep, splits, tokens, work.settings.shard_tokens)
    ends = np.cumsum([len(note[0]) for note in notes])
    tasks = []
    for index, split in enumerate(SPLITS):
        mine = np.flatnonzero(keep & (splits == index))
        for number in np.unique(shards[mine]).tolist():
            documents = mine[shards[mine] == number]
            block_of = np.searchsorted(ends, documents, side="right")
            parts = []
            for block in np.unique(block_of).tolist():
                mask = np.zeros(len(notes[block][0]), bool)
                mask[documents[block_of == block] - (ends[block] - len(mask))] = True
                parts.append((paths[block], mask))
            tasks.append(ShardTask(split, number, parts))
    return Plan(tasks, {reason: dropped[reason] for reason in sorted(dropped)}, read, chars)


def check_ids(ids: list[np.ndarray], work: Work, paths: list[Path]) -> None:
    """Raises UserError if two documents have the same id; `ids` holds hashes of the ids of each block, uint64 [R]."""
    if not ids:
        return
    hashes = np.concatenate(ids)
    order = np.argsort(hashes, kind="stable")
    twins = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    ends = np.cumsum([len(part) for part in ids])
    for first, second in sorted((int(order[twin]), int(order[twin + 1])) for twin in twins):
        places = []
        for document in (first, second):
            block = int(np.searchsorted(ends, document, side="right"))
            note = blocks.load_notes(paths[block])
            at = document - int(ends[block]) + len(ids[block])
            file = work.files[int(paths[block].name.split("-")[0])]
            places.append((note["ids"][at], f"{file}:{note['lines'][at]}"))
        same_id(*places)


def same_id(first: tuple[str, str], second: tuple[str, str]) -> None:
    """Raises UserError if two documents, each (id, location), have the same id; equal hashes may be chance."""
    if first[0] == second[0]:
        raise UserError(f"{second[1]}: has the id {second[0]!r}, which {first[1]} already has")


# -- the second pass: shards ------------------------------------------------------------------------------------------


def _shard_facts(partial: Path, task: ShardTask) -> Path:
    return partial / "shards" / f"{task.split}-{shard_name(task.number)}.json"


def save_one_shard(work: Work, task: ShardTask) -> None:
    """Writes one shard, unless it exists."""
    done = _shard_facts(work.partial, task)
    if done.exists():
        return
    folder = work.partial / "store" / task.split / shard_name(task.number)
    remove_tree(folder)  # of a run that was stopped before it wrote `done`
    pieces = (blocks.load_piece(path, keep) for path, keep in task.parts)
    with new_directory(folder) as partial:
        content = write_shard(lambda name: open(partial / name, "wb"), pieces, blocks.id_dtype(work.tokenizer))
    write_json(done, content)
