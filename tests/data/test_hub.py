"""Ids of the Hugging Face Hub, against a small server on this machine that answers as the Hub does."""

import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub.constants
import numpy as np
import pytest
from conftest import make_text
from data.test_tokenizer_files import LINES
from test_model import CONFIG, init

from bertgpt.convert.hub import export_model
from bertgpt.data.sources.hub import download, is_hub_id
from bertgpt.data.tokenizer import ByteBPE, Tokenizer, WordPiece, load_tokenizer
from bertgpt.inference.encode import embed
from bertgpt.inference.model import find_model, load
from bertgpt.types import UserError

Files = dict[str, bytes]


class Hub(http.server.ThreadingHTTPServer):
    """Serves the models in `models`, ORG/NAME → revision → files, and keeps the paths of the requests."""

    def __init__(self, models: dict[str, dict[str, Files]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.requests, self.gated = models, [], set()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def files_fetched(self) -> list[str]:
        return sorted(
            {path.split("/", 5)[5] for method, path in self.requests if method == "GET" and "/resolve/" in path}
        )


def commit_of(files: Files) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        kind, revision, inner = (parts[4], parts[5], "") if api else (parts[2], parts[3], "/".join(parts[4:]))
        if name in self.server.gated:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        if name not in self.server.models:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        revisions = self.server.models[name]
        found = [files for key, files in revisions.items() if revision in (key, commit_of(files))]
        if not found:
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        files, sha = found[0], commit_of(found[0])
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, json.dumps({"id": name, "sha": sha, "siblings": siblings}).encode())
        etags = {file: hashlib.sha1(content).hexdigest() for file, content in files.items()}
        if kind == "tree":
            rows = [{"type": "file", "path": f, "size": len(files[f]), "oid": etags[f]} for f in files]
            return self.answer(200, json.dumps(rows).encode())
        if inner not in files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        return self.answer(200, files[inner], ETag=f'"{etags[inner]}"', X_Repo_Commit=sha)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    first = ByteBPE(300, "gpt2").make(lambda: iter(LINES)).files()
    second = WordPiece(200).make(lambda: iter(make_text(20))).files()
    extra = {"flax_model.msgpack": b"large", "onnx/model.onnx": b"large", "README.md": b"# Words\n"}
    server = Hub({"org/words": {"main": first | extra, "v2": second}})
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def test_a_tokenizer_is_downloaded_once_and_read_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    tokenizer = load_tokenizer("org/words")
    assert tokenizer.hash == ByteBPE(300, "gpt2").make(lambda: iter(LINES)).hash
    wanted = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert hub.files_fetched() == wanted
    hub.requests.clear()
    assert load_tokenizer("org/words").hash == tokenizer.hash and hub.files_fetched() == []
    assert load_tokenizer("org/words@v2").backend.get_vocab() != tokenizer.backend.get_vocab()
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_tokenizer("org/words").hash == tokenizer.hash and hub.requests == []
    with pytest.raises(
        UserError, match="org/other: no such path.*HF_HUB_OFFLINE is set, and the model is not complete"
    ):
        load_tokenizer("org/other")


def test_a_commit_is_a_revision_too_and_main_moves(hub: Hub):
    before = commit_of(hub.models["org/words"]["main"])
    old = load_tokenizer("org/words")
    hub.models["org/words"] |= {"old": hub.models["org/words"]["main"], "main": hub.models["org/words"]["v2"]}
    assert load_tokenizer("org/words").hash != old.hash
    assert load_tokenizer(f"org/words@{before}").hash == old.hash


def test_local_paths_come_before_ids(hub: Hub, tmp_path: Path):
    local = WordPiece(150).make(lambda: iter(make_text(20)))
    local.save(tmp_path / "org" / "words")
    assert load_tokenizer("org/words").hash == local.hash and hub.requests == []
    assert not is_hub_id("org/missing")  # because there is a folder org here
    with pytest.raises(UserError, match="org/missing: no such tokenizer"):
        load_tokenizer("org/missing")
    for name in ("a/b/c", "./a", "../a/b", "/a/b", "~/a", "a b", "", "-a/b", "package:x/y", "gs://a/b", "a/b@"):
        assert not is_hub_id(name)
    assert is_hub_id("a/b") and is_hub_id("gpt2") and is_hub_id("a/b.c-1@refs/pr/1")


def test_what_cannot_be_read_is_one_line_that_says_why(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.gated.add("org/closed")
    for name, message in [
        ("org/nothing", "there is no such model, or it is private"),
        ("org/words@v3", "the model has no revision 'v3'"),
        ("org/closed", "its owner grants access"),
        ("org/bad--name", "Cannot have -- or .. in repo_id"),
    ]:
        with pytest.raises(
            UserError, match=f"^{name}: no such path, and not read from the Hugging Face Hub: "
        ) as caught:
            load_tokenizer(name)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match="'org/nothing' is neither a run under .* nor .*, and not read from the Hugging"
    ):
        find_model("org/nothing", Path("runs"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    with pytest.raises(UserError, match="it cannot be reached, and the model is not complete in the cache"):
        load_tokenizer("org/nothing")


def test_a_model_comes_with_its_weights_in_safetensors_or_else_as_torch_saved_them(hub: Hub):
    files = {"config.json": b"{}", "model.safetensors": b"1", "pytorch_model.bin": b"2", "1_Pooling/config.json": b"{}"}
    hub.models |= {"org/safe": {"main": files | {"tf_model.h5": b"3", "modules.json": b"[]", "LICENSE": b"free"}}}
    folder = download("org/safe")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"config.json", "model.safetensors", "1_Pooling/config.json", "modules.json", "LICENSE"}
    assert find_model("org/safe", Path("runs")) == folder
    del files["model.safetensors"]
    hub.models |= {"org/torch": {"main": files}}
    assert (download("org/torch") / "pytorch_model.bin").read_bytes() == b"2"
    with pytest.raises(UserError, match="config.json: .*model_type"):
        load("org/torch")


def test_a_downloaded_model_computes_as_the_one_on_disk(hub: Hub, tokenizer: Tokenizer, tmp_path: Path):
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab.size)
    export_model(tmp_path / "disk", config, init(config), files=tokenizer.files())
    hub.models["org/real"] = {"main": {file.name: file.read_bytes() for file in (tmp_path / "disk").iterdir()}}
    model, other = load("org/real"), load(tmp_path / "disk")
    assert np.array_equal(embed(model, ["the cat"]), embed(other, ["the cat"]))
    assert model.tokenizer.hash == tokenizer.hash and model.config == other.config


@pytest.mark.slow
def test_the_command_line_takes_ids(hub: Hub, tmp_path: Path):
    (tmp_path / "text.txt").write_text("\n\n".join(make_text(30)))
    names = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    for offline in ("0", "1"):
        arguments = ["prepare", "text.txt", "--out", f"store{offline}", "--tokenizer", "org/words@v2", "--workers", "1"]
        run = subprocess.run(
            [sys.executable, "-m", "bertgpt", *arguments], env=os.environ | names | {"HF_HUB_OFFLINE": offline},
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert (tmp_path / f"store{offline}" / "store.json").exists()
