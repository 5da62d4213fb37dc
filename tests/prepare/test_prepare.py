"""Preparing a store: what is dropped and why, the same bytes however the work is shared or interrupted."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, make_text

from bertgpt.cli.main import main
from bertgpt.data.store import SPLITS, open_store
from bertgpt.data.tokenizer import SPECIAL, Tokenizer
from bertgpt.io.locks import lock
from bertgpt.prepare import blocks
from bertgpt.prepare import pipeline as prepare_module
from bertgpt.prepare.filters import Preparation, boilerplate_reason, clean_document
from bertgpt.prepare.near_duplicates import band_keys, bands_for, bucket_duplicates, near_duplicates, signatures
from bertgpt.prepare.pipeline import prepare
from bertgpt.types import UserError

FILTER = """
import os, time
def no_cats(text): return "cat" not in text.lower()
def slow(text):
    time.sleep(float(os.environ.get("SECONDS_A_TEXT", "0.002")))
    return True
def broken(text): raise KeyError("model")
def crash(text):
    if text.startswith("Crash"): os._exit(1)
    return True
number = 3
"""


@pytest.fixture
def filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `own_filters` that this process and its workers can import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "own_filters.py").write_text(FILTER)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    sys.modules.pop("own_filters", None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four files, of several blocks each, with duplicates inside and across blocks and files."""
    folder = tmp_path / "text"
    folder.mkdir()
    texts = make_text(200, seed=5)
    for i in range(4):
        part = texts[50 * i : 50 * i + 50]
        part[20] = part[19]
        part[45] = texts[7]
        changed = texts[3].split()
        changed[-1] = f"{changed[-1]}{i}"
        lines = [{"id": f"{i}-{n}", "text": text} for n, text in enumerate([*part, " ".join(changed)])]
        (folder / f"{i}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


SMALL = Preparation(validation=0.1, test=0.1, block_documents=16, shard_tokens=600, near_duplicates=0.6)


def contents(path: Path) -> dict[str, bytes]:
    """All files of a store but its report, which tells the time."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith("report"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def texts_in(path: Path, tokenizer: Tokenizer) -> list[str]:
    """All documents of a store, decoded."""
    facts = json.loads((path / "store.json").read_text())
    stores = [open_store(path, split, tokenizer) for split in SPLITS if facts["splits"][split]["documents"]]
    return [tokenizer.decode(store.document(i).tolist()) for store in stores for i in range(len(store.document_ends))]


# -- one result, however it is made -----------------------------------------------------------------------------------


def test_the_bytes_are_the_same_for_any_number_of_workers(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    facts = prepare(str(source), tokenizer, tmp_path / "one", SMALL, processes=1)
    for count in (2, 3):
        prepare(str(source), tokenizer, tmp_path / f"{count}", SMALL, processes=count)
        assert contents(tmp_path / "one") == contents(tmp_path / f"{count}")
    assert facts["read"] == 204 and facts["dropped"] == {"duplicate": 8, "empty": 0, "near_duplicate": 4}
    kept = sum(part["documents"] for part in facts["splits"].values())
    assert kept + sum(facts["dropped"].values()) == facts["read"]


def test_the_bytes_do_not_depend_on_the_size_of_blocks(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    digests = set()
    for size in (1, 7, 2000):
        settings = Preparation(validation=0.1, test=0.1, block_documents=size, near_duplicates=0.6)
        facts = prepare(str(source), tokenizer, tmp_path / f"{size}", settings)
        digests.add((facts["digest"], *facts["dropped"].values()))
    assert len(digests) == 1


def test_long_documents_make_small_blocks():
    long, short = (blocks.Source("x" * size, 1, None) for size in (blocks.BLOCK_CHARS // 2, 1))
    cut = blocks.cut_blocks([long, short, long, *[short] * 5], Preparation(block_documents=4))
    assert [len(block) for block in cut] == [3, 4, 1]


WORKER = """
import sys
from bertgpt.prepare import workers
def imported(shared, task):
    return sorted(set(sys.modules) & {"jax", "flax", "tensorflow", "torch"})
if __name__ == "__main__":
    found = []
    workers.run_all(imported, None, range(4), 2, found.append)
    print(found)
"""


def test_workers_import_no_jax(tmp_path: Path):
    (tmp_path / "script.py").write_text(WORKER)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True)
    assert done.stdout == "[[], [], [], []]\n"


# -- killed and started again -----------------------------------------------------------------------------------------


@pytest.fixture
def slow_command(source: Path, tokenizer_dir: Path, tmp_path: Path, filters: None) -> list[str]:
    """A command that takes about a second to prepare `source`."""
    flags = "--block_documents 10 --shard_tokens 500 --near_duplicates 0.6 --language_filter own_filters:slow"
    return [sys.executable, "-m", "bertgpt", "prepare", str(source), "--tokenizer", str(tokenizer_dir), *flags.split()]


def start(command: list[str], out: Path, workers: int, seconds_a_text: float = 0.002) -> subprocess.Popen:
    """Starts it; what is to be stopped half-way wants more seconds, lest it be done before we are on a busy machine."""
    environment = dict(os.environ, PYTHONPATH=str(out.parent / "modules"), SECONDS_A_TEXT=str(seconds_a_text))
    return subprocess.Popen(
        [*command, "--out", str(out), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finished_blocks(out: Path) -> dict[str, int]:
    """Name → time of writing."""
    found = {}
    for file in out.parent.glob(f".{out.name}.*.partial/blocks/*.npz"):
        with contextlib.suppress(FileNotFoundError):  # it has just become a store
            found[file.name] = file.stat().st_mtime_ns
    return found


def stop_at(process: subprocess.Popen, out: Path, blocks: int, number: signal.Signals) -> str:
    """Sends a signal once so many blocks are finished; what the process printed."""
    until = time.monotonic() + 60
    while len(finished_blocks(out)) < blocks and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(number)
    return process.communicate(timeout=60)[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_run_goes_on_and_neither_loses_nor_doubles_a_document(
    slow_command: list[str], tokenizer: Tokenizer, tmp_path: Path, count: int
):
    whole = start(slow_command, tmp_path / "whole", count)
    assert "digest" in whole.communicate(timeout=60)[0] and whole.returncode == 0
    out = tmp_path / "killed"
    for at in (2, 9, 15):
        process = start(slow_command, out, count, seconds_a_text=0.03)
        stop_at(process, out, at, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and not out.exists()
    before = finished_blocks(out)
    assert 15 <= len(before) < 24
    last = start(slow_command, out, count)
    deadline = time.monotonic() + 60
    while last.poll() is None and time.monotonic() < deadline:
        now = finished_blocks(out)
        assert {name: now[name] for name in before if name in now} == {n: before[n] for n in before if n in now}
        time.sleep(0.005)
    printed = last.communicate()[0]
    assert last.returncode == 0 and "resuming" in printed
    assert contents(out) == contents(tmp_path / "whole")
    texts = texts_in(out, tokenizer)
    assert len(texts) == len(set(texts)) == 192
    assert not list(tmp_path.glob(".*"))


def test_a_run_killed_between_shards_keeps_those_that_are_written(source, tokenizer, tmp_path, monkeypatch):
    prepare(str(source), tokenizer, tmp_path / "whole", SMALL)
    written = []

    def stop_after_three(create, pieces, dtype):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(1)
        return write_shard(create, pieces, dtype)

    write_shard = prepare_module.write_shard
    monkeypatch.setattr(prepare_module, "write_shard", stop_after_three)
    with pytest.raises(UserError, match="No space"):
        prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(prepare_module, "write_shard", lambda *args: written.append(1) or write_shard(*args))
    facts = prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    assert len(written) == sum(len(part["shards"]) for part in facts["splits"].values()) > 4
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_other_settings_start_over(source: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(prepare_module, "make_plan", lambda work: 1 / 0)
    for settings in (SMALL, Preparation(min_chars=5)):
        with pytest.raises(ZeroDivisionError):
            prepare(str(source), tokenizer, tmp_path / "store", settings)
        assert len(list(tmp_path.glob(".store.*.partial"))) == 1  # that of the settings before is gone
    monkeypatch.undo()
    facts = prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    assert facts["digest"] == prepare(str(source), tokenizer, tmp_path / "reinitialize", SMALL)["digest"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reinitialize", "store", "text"]


def test_only_the_work_in_progress_of_this_store_is_removed(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    others = [".store.v2.0123456789abcdef.partial", ".store.notes.partial", ".store.0123456789abcdef.partial.old"]
    for name in (*others, ".store.0123456789abcdef.partial", ".store.beam.partial"):
        (tmp_path / name).mkdir()
    prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "store", "text"])


def test_stores_whose_names_begin_alike_do_not_touch_each_others_work(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "make_plan", lambda work: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(str(source), tokenizer, tmp_path / "wiki.en", SMALL)
    monkeypatch.undo()
    before = finished_blocks(tmp_path / "wiki.en")
    with lock(tmp_path / ".wiki.en.lock", "busy", wait=False):  # as if it still ran
        prepare(str(source), tokenizer, tmp_path / "wiki", SMALL)
    prepare(str(source), tokenizer, tmp_path / "wik", SMALL)
    assert len(before) > 10 and finished_blocks(tmp_path / "wiki.en") == before
    read = []
    monkeypatch.setattr(blocks, "clean_block", lambda *args: read.append(args))
    prepare(str(source), tokenizer, tmp_path / "wiki.en", SMALL)
    assert not read and contents(tmp_path / "wiki.en") == contents(tmp_path / "wiki")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text", "wik", "wiki", "wiki.en"]


@pytest.mark.parametrize("out", [".", "/", "", "..", "text", "dangling"])
def test_a_store_needs_a_path_of_its_own(source, tokenizer, tmp_path, monkeypatch, out: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="exists already"):
        prepare(str(source), tokenizer, Path(out), SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "text"]


def test_ctrl_c_says_that_the_same_command_goes_on(slow_command: list[str], tmp_path: Path):
    process = start(slow_command, tmp_path / "store", 2, seconds_a_text=0.05)
    printed = stop_at(process, tmp_path / "store", 3, signal.SIGINT)
    assert process.returncode == 130
    assert printed.splitlines()[-1] == f"bertgpt: {tmp_path / 'store'}: interrupted. The same command resumes it."
    assert start(slow_command, tmp_path / "store", 2).wait(60) == 0


def test_workers_end_when_their_parent_is_killed(slow_command: list[str], tmp_path: Path):
    process = start(slow_command, tmp_path / "store", 2, seconds_a_text=0.05)
    stop_at(process, tmp_path / "store", 2, signal.SIGKILL)  # communicate returns once all have let go of the pipe
    assert process.returncode == -signal.SIGKILL


def test_two_runs_do_not_work_on_one_store(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    with lock(tmp_path / ".store.lock", "busy", wait=False):
        with pytest.raises(UserError, match="store: another process is preparing this store"):
            prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "text"]


def test_who_waits_takes_the_store_of_who_was_first(slow_command: list[str], source, tokenizer, tmp_path: Path):
    process = start(slow_command, tmp_path / "store", 1)
    while not finished_blocks(tmp_path / "store"):
        time.sleep(0.002)
    facts = prepare(str(source), tokenizer, tmp_path / "store", Preparation(min_chars=10**6), wait=True)
    assert process.wait(60) == 0 and facts["read"] == 204 and facts["settings"]["min_chars"] == 0


def test_an_existing_store_is_not_overwritten(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    before = contents(tmp_path / "store")
    with pytest.raises(UserError, match="store: exists already"):
        prepare(str(source), tokenizer, tmp_path / "store", SMALL)
    assert contents(tmp_path / "store") == before


def test_documents_in_memory_become_the_store_of_the_same_documents_in_files(tokenizer: Tokenizer, tmp_path: Path):
    texts = make_text(50)
    in_file = prepare(str(write_lines(tmp_path / "t.jsonl", texts)), tokenizer, tmp_path / "file", SMALL)
    for number, source in enumerate((texts, iter(texts), lambda: ({"text": text} for text in texts))):
        facts = prepare(source, tokenizer, tmp_path / f"memory{number}", SMALL, processes=1 + (number == 2))
        assert facts["digest"] == in_file["digest"] and facts["source"] == [{"file": "<items>", "bytes": None}]
    with pytest.raises(UserError, match="id_field='id': documents in memory have no ids"):
        prepare(texts, tokenizer, tmp_path / "ids", Preparation(id_field="id"))


# -- what is dropped --------------------------------------------------------------------------------------------------


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": f"d{i}"}) + "\n" for i, text in enumerate(texts)))
    return path


def test_every_drop_is_counted_by_its_reason(tokenizer: Tokenizer, tmp_path: Path, filters: None):
    prose = "The dog sleeps under the tree and the river is blue. "
    texts = [prose, prose + "  ", "", "\u0007", "A dog.", prose * 9, "The cat sleeps under the tree by the river."]
    texts += ["\n".join(f"• the dog {i}" for i in range(6)), prose + "Big.", "\u200b" * 30]
    settings = Preparation(
        remove_control=True, min_chars=10, max_chars=300, boilerplate=True, language_filter="own_filters:no_cats",
        near_duplicates=0.7, validation=0, test=0,
    )  # fmt: skip
    facts = prepare(str(write_lines(tmp_path / "t.jsonl", texts)), tokenizer, tmp_path / "store", settings)
    assert facts["dropped"] == {
        "boilerplate:bullets": 1, "duplicate": 1, "empty": 3, "language": 1, "near_duplicate": 1, "too_long": 1,
        "too_short": 1,
    }  # fmt: skip
    assert facts["splits"]["train"]["documents"] == 1 and facts["read"] == 10


@pytest.mark.parametrize(
    "text, settings, expected",
    [
        ("Cafe\u0301 ﬁn １", {"normalize": "nfc"}, "Café ﬁn １"),
        ("Cafe\u0301 ﬁn １", {"normalize": "nfkc"}, "Café fin 1"),
        ("Cafe\u0301 ﬁn １", {}, "Cafe\u0301 ﬁn １"),
        ("a\u0000b\ufeffc\u00ad d\x1b[1m", {"remove_control": True}, "abc d[1m"),
        ("a\u0000b\ufeff", {}, "a\u0000b\ufeff"),
        (
            "می\u200cخواهم \U0001f469\u200d\U0001f52c",
            {"remove_control": True},
            "می\u200cخواهم \U0001f469\u200d\U0001f52c",
        ),
        ("one\r\ntwo\t three\u0085four", {"remove_control": True}, "one\ntwo\t three\u0085four"),
        ("  a  b\u00a0c\t\td \r\n", {}, "  a  b\u00a0c\t\td \r\n"),
        ("a<br>b  &amp; <i>c</i>", {"strip_html": True}, "a\nb  & c"),
    ],
)
def test_text_is_cleaned_as_asked(text: str, settings: dict, expected: str):
    assert clean_document(text, Preparation(**settings)) == expected


PROSE = "The dog sleeps under the old tree, and nobody knows why he is so very tired today."


@pytest.mark.parametrize(
    "text, reason",
    [
        (PROSE, None),
        ("\n".join(f"{PROSE} {i}." for i in range(9)), None),
        ("He said {maybe} once. " + PROSE * 5, None),
        ("\n".join([PROSE, "Buy now."] * 4), "repeated_lines"),
        ("\n".join(f"- {PROSE} {i}" for i in range(6)), "bullets"),
        ("\n".join(f"Item number {name}" for name in WORDS[:8]), "unpunctuated_lines"),
        ("12 31 44 19 price 7 8 19 22 total", "few_letters"),
        ("if (a) then call{x;} or else stop{y;} end while", "braces"),
        ("\n".join(["Buy now."] * 4), None),  # too few lines to judge
    ],
)  # fmt: skip
def test_boilerplate_is_told_from_prose(text: str, reason: str | None):
    assert boilerplate_reason(text) == reason


def test_a_function_can_be_the_language_filter_in_any_process(source, tokenizer, tmp_path, filters):
    import own_filters

    by_name = Preparation(language_filter="own_filters:no_cats")
    by_function = Preparation(language_filter=own_filters.no_cats)
    one = prepare(str(source), tokenizer, tmp_path / "one", by_name)
    two = prepare(str(source), tokenizer, tmp_path / "two", by_function, processes=2)
    assert one == two and one["dropped"]["language"] > 10
    assert not any("cat" in text for text in texts_in(tmp_path / "one", tokenizer))


# -- near duplicates --------------------------------------------------------------------------------------------------


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def jaccard(a: str, b: str) -> float:
    """Of the sets of word 5-grams, by definition."""
    grams = [{tuple(text.split()[i : i + 5]) for i in range(len(text.split()) - 4)} for text in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_signatures_estimate_the_jaccard_similarity():
    rng = random.Random(0)
    errors = []
    for changes in (0, 1, 2, 4, 8, 16) * 8:
        first = words(rng, 200)
        second = list(first)
        for _ in range(changes):
            second[rng.randrange(200)] = "new"
        texts = [" ".join(first), " ".join(second)]
        a, b = signatures(texts)
        errors.append(float((a == b).mean()) - jaccard(*texts))
    # The estimate is a mean of 128 draws: its deviation is at most √(¼/128) = 0.044, the mean of 48 of them 0.0064.
    assert np.abs(errors).max() < 0.16 and abs(np.mean(errors)) < 0.02
    assert errors[0] == 0.0


def test_a_signature_does_not_depend_on_the_other_documents():
    texts = [*make_text(300), "short one", "!!!", "", "?!", "word " * 20_000, "日本語のテキスト"]
    together = signatures(texts)
    np.testing.assert_array_equal(together, np.concatenate([signatures([text]) for text in texts]))
    assert len(np.unique(together, axis=0)) == len(texts)


def test_case_and_punctuation_do_not_make_a_document_new():
    a, b, c = signatures(
        ["The cat, the dog & the bird sing today!", "the cat the dog the bird SING today", "中文 很好,是"]
    )
    assert (a == b).all() and not (a == c).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_a_pair_at_the_threshold_shares_a_band_nearly_always(threshold: float):
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128 and 1 - (1 - threshold**rows) ** bands >= 0.99


def naive(signs: np.ndarray, keys: np.ndarray, threshold: float, bucket: int) -> list[bool]:
    """The rule, word for word."""
    drop = []
    for later in range(len(signs)):
        compared = set()
        for band in keys:
            same = [i for i in range(len(signs)) if band[i] == band[later]]
            compared |= {i for i in same[:bucket] if i < later}
        drop.append(any((signs[i] == signs[later]).mean() >= threshold for i in compared))
    return drop


def test_the_rule_is_the_one_that_is_written(rng: np.random.Generator):
    base = rng.integers(0, 2**32, (12, 128), np.uint32)
    signs = base[rng.integers(0, 12, 150)]
    for row in signs:  # each differs from its base in up to half of its places
        row[rng.permutation(128)[: rng.integers(0, 64)]] = rng.integers(0, 2**32)
    for threshold in (0.5, 0.8):
        keys = band_keys(signs, threshold)
        expected = naive(signs, keys, threshold, bucket=16)
        got = near_duplicates(signs, keys, np.arange(150), threshold)
        assert got.tolist() == expected and 20 < sum(expected) < 150
        found = set()
        for band in keys:
            for key in set(band.tolist()):
                members = [((0, int(i)), signs[i]) for i in rng.permutation(np.flatnonzero(band == key))]
                found |= {place[1] for place in bucket_duplicates(members, threshold)}
        assert found == set(np.flatnonzero(expected).tolist())


def test_a_document_dropped_for_another_reason_drops_no_other(tokenizer: Tokenizer, tmp_path: Path):
    rng = random.Random(1)
    text = words(rng, 60)
    texts = [" ".join(text), " ".join(text), " ".join([*text, "more"]), " ".join(words(rng, 60))]
    settings = Preparation(near_duplicates=0.8, validation=0, test=0)
    facts = prepare(str(write_lines(tmp_path / "t.jsonl", texts)), tokenizer, tmp_path / "store", settings)
    assert facts["dropped"] == {"duplicate": 1, "empty": 0, "near_duplicate": 1}


# -- bad input --------------------------------------------------------------------------------------------------------


def test_the_same_id_twice_names_both_places(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    settings = Preparation(id_field="id", block_documents=8)
    assert prepare(str(source), tokenizer, tmp_path / "fine", settings)["read"] == 204
    with open(source / "3.jsonl", "a") as file:
        file.write('{"id": "1-7", "text": "Another text."}\n')
    with pytest.raises(UserError) as caught:
        prepare(str(source), tokenizer, tmp_path / "store", settings)
    assert str(caught.value) == f"{source}/3.jsonl:52: has the id '1-7', which {source}/1.jsonl:8 already has"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fine", "text"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_prepare_that_fails_leaves_nothing(source: Path, tokenizer: Tokenizer, tmp_path: Path, count: int):
    (source / "3.jsonl").write_bytes((source / "3.jsonl").read_bytes() + b'{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"3.jsonl:52: is not valid UTF-8"):
        prepare(str(source), tokenizer, tmp_path / "store", SMALL, processes=count)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_a_line_longer_than_the_setting_is_refused_and_leaves_nothing(source, tokenizer, tmp_path: Path):
    with open(source / "3.jsonl", "a") as file:
        file.write(json.dumps({"text": "The cat. " * 500}) + "\n")
    with pytest.raises(UserError, match="3.jsonl:52: the line has more than 4,000 bytes, the limit"):
        prepare(str(source), tokenizer, tmp_path / "store", Preparation(max_line_bytes=4000))
    assert [p.name for p in tmp_path.iterdir()] == ["text"]
    assert prepare(str(source), tokenizer, tmp_path / "store", Preparation(max_line_bytes=5000))["read"] == 205


def test_a_remote_source_that_fails_leaves_what_is_done(source: Path, tokenizer: Tokenizer, tmp_path: Path):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'bertgpt[text]'")
    remote = fsspec.filesystem("memory")
    for file in sorted(source.iterdir()):
        remote.pipe(f"/prepare/{file.name}", file.read_bytes())
    remote.pipe("/prepare/3.jsonl", b'{"text": "The cat."}\n{')
    with pytest.raises(UserError, match="3.jsonl:2: not valid JSON"):
        prepare("memory://prepare", tokenizer, tmp_path / "store", SMALL)
    assert len(finished_blocks(tmp_path / "store")) == 12 and not (tmp_path / "store").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_a_filter_that_fails_says_so(source: Path, tokenizer: Tokenizer, tmp_path: Path, filters: None, count: int):
    with pytest.raises(UserError, match=r"language_filter: KeyError: 'model' \(text '"):
        settings = Preparation(language_filter="own_filters:broken")
        prepare(str(source), tokenizer, tmp_path / "store", settings, processes=count)
    assert not (tmp_path / "store").exists()


def test_a_worker_that_dies_is_noticed_and_the_rest_is_kept(source, tokenizer, tmp_path, filters):
    settings = Preparation(language_filter="own_filters:crash", block_documents=10)
    with open(source / "3.jsonl", "a") as file:
        file.write('{"text": "Crash here."}\n')
    with pytest.raises(UserError, match="a worker process died"):
        prepare(str(source), tokenizer, tmp_path / "store", settings, processes=2)
    assert len(finished_blocks(tmp_path / "store")) > 10


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"validation": 0.6, "test": 0.5}, "validation=0.6 and test=0.5 must leave text to train on"),
        ({"near_duplicates": 1.5}, r"near_duplicates=1.5 must lie in \(0, 1\]"),
        ({"min_chars": 9, "max_chars": 8}, "max_chars=8 is below min_chars=9"),
        ({"shard_tokens": 0}, "shard_tokens=0 must be at least 1"),
        ({"block_documents": 0}, "block_documents=0 must be at least 1"),
        ({"language_filter": "langid"}, "'langid' must read module:function"),
        ({"language_filter": "no_such_module:keep"}, "No module named 'no_such_module'"),
        ({"language_filter": "own_filters:keep"}, "has no attribute 'keep'"),
        ({"language_filter": "own_filters:number"}, "is not a function"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, message: str, filters: None):
    with pytest.raises(UserError, match=message):
        Preparation(**settings)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_report_adds_up(source: Path, tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "store"
    flags = "--near_duplicates 0.6 --min_chars 100 --workers 1 --validation 0.1 --test 0.1".split()
    assert main(["prepare", str(source), "--tokenizer", str(tokenizer_dir), "--out", str(out), *flags]) == 0
    printed = capsys.readouterr().out
    report, facts = (json.loads((out / name).read_text()) for name in ("report.json", "store.json"))
    assert report["documents_read"] == 204 == report["documents_kept"] + sum(report["dropped"].values())
    assert sum(report["lengths"].values()) == report["documents_kept"]
    assert report["bytes_in"] == sum(file.stat().st_size for file in source.iterdir())
    assert report["tokens_out"] == sum(part["tokens"] for part in facts["splits"].values())
    assert f"digest {facts['digest']}" in printed and f"{report['dropped']['too_short']} too_short" in printed
    page = (out / "report.md").read_text()
    assert "dropped: too_short" in page and "tokens/s" in page and "█" in page
    assert main(["prepare", "--check", str(out)]) == 0
    assert facts["digest"] in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "SOURCE, --tokenizer, --out are required"),
        (["x.txt", "--out", "s"], "--tokenizer is required"),
        (["x.txt", "--out", "s", "--tokenizer", "t", "--workers", "0"], "--workers 0 must be at least 1"),
        (["x.txt", "--out", "s", "--tokenizer", "t", "--", "--region=eu"], "--region=eu needs --runner beam"),
        (["--check", "no_store"], "store no_store: cannot be read"),
        ([__file__, "--out", "s", "--tokenizer", "t", "--max_line_bytes", "0"], "max_line_bytes"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main(["prepare", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_tokenizer_travels_to_other_processes(tokenizer: Tokenizer):
    import pickle

    other = pickle.loads(pickle.dumps(tokenizer))
    assert other.hash == tokenizer.hash and other.roles == SPECIAL
    assert other.encode(["the cat [MASK]"]) == tokenizer.encode(["the cat [MASK]"])
