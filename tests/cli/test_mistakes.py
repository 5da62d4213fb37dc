"""Mistakes in experiment files, records and outputs, and terminals that cannot show or take what is printed."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertgpt.cli.experiments import load_experiments
from bertgpt.cli.main import main, one_line
from bertgpt.cli.records import check_output, write_lines
from bertgpt.cli.sweep import read_seeds
from bertgpt.io.files import open_atomic, write_atomic
from bertgpt.types import UserError


def message(capsys: pytest.CaptureFixture, *args: object) -> str:
    """The one line of a command that a mistake ends."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and err.startswith("bertgpt: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    "text, expected",
    [
        ("def experiment():\n    return 1 / 0\n", "bad.py:2: ZeroDivisionError: division by zero"),
        ("\nimport no_such_module_x\n", "bad.py:2: ModuleNotFoundError: No module named 'no_such_module_x'"),
        ("import sys\nsys.exit(3)\n", "bad.py:2: calls exit(3)"),
        ("def experiment():\n    raise SystemExit\n", "bad.py:2: calls exit(None)"),
        ("class Stop(BaseException): ...\nraise Stop\n", "bad.py:2: Stop"),
        ("raise ValueError('two\\nlines')\n", "bad.py:1: ValueError: two lines"),
        ("def f():\n    f()\nf()\n", "bad.py:2: RecursionError"),
        (
            "def experiment(size):\n    return None\n",
            "bad.py: experiment() is called without arguments, but is missing",
        ),
        ("def experiment():\n    return {}\n", "bad.py: experiment() is dict, not an Experiment"),
        ("def experiment(): ...\n", "bad.py: experiment() is NoneType, not an Experiment"),
        ("experiment = 5\n", "bad.py: experiment is int, not a function"),
        ("ARMS = ['a']\n", "bad.py: ARMS must be a dict of names and experiments, not list"),
        ("ARMS = {'a': 3}\n", "bad.py: ARMS['a'] is int, not an Experiment"),
        ("x = '\0'\n", "bad.py:1: source code string cannot contain null bytes"),
        (
            "from bertgpt.models.bert import BertConfig\nMODEL = BertConfig(num_heads=7)\n",
            "bad.py:2: Bert: d_model=768 is not divisible by num_heads=7",
        ),
        (
            "from bertgpt.config import Experiment\nARMS = {'a': Experiment('a', 'bert', None, None, {}, steps=9)}\n",
            "bad.py:2: model='bert' must be a ModelConfig",
        ),
    ],
)
def test_what_an_experiment_file_raises_is_named_with_its_line(text: str, expected: str, tmp_path: Path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert expected in message(capsys, "show", tmp_path / "bad.py")


def test_traceback_shows_all(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "bad.py").write_text("def experiment():\n    return 1 / 0\n")
    for args in (["--traceback", "show", tmp_path / "bad.py"], ["show", tmp_path / "bad.py", "--traceback"]):
        assert main([str(arg) for arg in args]) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err and "ZeroDivisionError" in err and err.splitlines()[-1].startswith("bertgpt: ")


def test_a_file_that_is_no_python_is_refused_and_control_characters_are_escaped(tmp_path: Path, capsys):
    (tmp_path / "space.toml").write_text('"opt\\u0000im\\u001b[31m.lr" = {low = 0, high = 1}\n')
    assert "space.toml: is not a Python file" in message(capsys, "show", tmp_path / "space.toml")
    args = "tune", "demo/pretrain", "--space", tmp_path / "space.toml", "--trials", 1
    assert r"opt\x00im\x1b[31m.lr: no such field" in message(capsys, *args)
    args = "tune", "demo/pretrain", "--space", Path(__file__), "--trials", 1
    assert "test_mistakes.py: not valid TOML" in message(capsys, *args)
    assert one_line(" a\n  b\0\u2028c  d ") == r"a b\x00\u2028c  d"


def test_texts_that_no_file_can_hold_are_refused(capsys: pytest.CaptureFixture):
    assert "--text" in message(capsys, "predict", "x", "--text", "a\ud800")
    assert "must be text that UTF-8 can represent" in message(capsys, "generate", "x", "--prompt", "\udcff")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture):
    for output in ("/", tmp_path, "."):
        assert "must name a file, not a directory" in message(
            capsys, "predict", "x", "--text", "y", f"--output={output}"
        )
    for flag in ("--output", "--input", "--dtype"):
        assert f"{flag} : must be followed by a value" in message(capsys, "predict", "x", "--text", "y", f"{flag}=")
    assert "cannot be written: No such directory" in message(
        capsys, "features", "x", "--input", "y", "--output", tmp_path / "none" / "x.npy"
    )
    check_output(str(tmp_path / "new.jsonl"))


def test_a_link_stays_and_a_device_is_written_to(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    before = os.stat(os.devnull)
    with open_atomic(Path(os.devnull)) as file:
        file.write(b"x")
    assert os.stat(os.devnull).st_ino == before.st_ino
    for directory in (tmp_path, Path(""), Path("/")):
        with pytest.raises(UserError, match="cannot be written: Is a directory"):
            write_atomic(directory, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_seeds_are_different_whole_numbers():
    assert read_seeds("0, 12,3") == [0, 12, 3]
    for text in ("²", "1,1", "", "1,", "-1", "1.0", "٣", "9" * 5000, "01,1"):
        with pytest.raises(UserError, match="must be different whole numbers"):
            read_seeds(text)
    with pytest.raises(UserError, match="must be at most 4,294,967,295"):
        read_seeds("4294967296")


def test_reinitialize_needs_what_it_would_leave_out():
    (experiment,) = load_experiments("demo/pretrain")
    from bertgpt.config import with_overrides

    with pytest.raises(UserError, match=r"reinitialize=\('abc',\) needs init_from"):
        with_overrides(experiment, {"reinitialize": ("abc",)})


def bertgpt(*args: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = f'"{sys.executable}" -m bertgpt "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, "sh", *args],
        capture_output=True,
        timeout=60,
        env=dict(os.environ, **environment),
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_where_characters_are_missing_ascii_takes_their_place(encoding: str):
    found = bertgpt("tokenizer", "train", "--help", PYTHONIOENCODING=encoding)
    assert found.returncode == 0 and not found.stderr
    text = found.stdout.decode(encoding)
    assert "-----" in text and "--text_field" in text and "\\u2500" not in text


def test_records_are_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch):
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        write_lines(None, [{"text": "×中“"}], [{}])
        stream.flush()
        assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"text": "×中“"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line():
    found = bertgpt("list", redirect="> /dev/full")
    assert (found.returncode, found.stderr) == (2, b"bertgpt: standard output: No space left on device\n")


def test_closed_streams_are_no_fault():
    assert bertgpt("--version", redirect=">&- 2>&- <&-").returncode == 0
    found = bertgpt("predict", "x", "--text", "y", redirect=">&-")
    assert found.returncode == 2 and found.stderr == b"bertgpt: standard output is closed; name a file with --output\n"
