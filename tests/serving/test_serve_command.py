"""`bertgpt serve`: names of models, mistakes in one line, and a process that ends with 0 once it has finished."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from serving_models import DECODER, random_params

from bertgpt.cli.main import main
from bertgpt.cli.serve import named_models
from bertgpt.convert.hub import export_model
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.serving.app import build_app
from bertgpt.serving.chat_template import plain_prompt, read_chat_template, render
from bertgpt.serving.limits import Limits
from bertgpt.serving.server import Server, make_server, run_server
from bertgpt.types import UserError

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [{"role": "user", "content": " hi "}]


@pytest.fixture(scope="module")
def gpt(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a decoder."""
    path = tmp_path_factory.mktemp("models") / "tiny-gpt"
    config = dataclasses.replace(DECODER, vocab_size=tokenizer.vocab.size)
    export_model(path, config, random_params(config), files=tokenizer.files())
    return path


def test_models_are_called_by_their_name_or_the_last_part_of_their_path(gpt: Path, tmp_path: Path):
    assert named_models((str(gpt), f"other={gpt}"), tmp_path) == {"tiny-gpt": gpt, "other": gpt}
    with pytest.raises(UserError, match="two models are called 'tiny-gpt'; name one of them otherwise: NAME="):
        named_models((str(gpt), str(gpt)), tmp_path)
    with pytest.raises(UserError, match="MODELS is required"):
        named_models((), tmp_path)


def test_a_model_without_a_tokenizer_is_refused(gpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(gpt / name, tmp_path)
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert capsys.readouterr().err.endswith("has no tokenizer; put its files into the directory\n")


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere"], "'nowhere' is neither a run under runs"),
        (["MODEL", "--port", "70000"], "--port 70000 must be at most 65,535"),
        (["MODEL", "--api_key", "ключ"], "must be ASCII"),
        (["MODEL", "--host", "999.1.2.3"], "cannot listen on 999.1.2.3"),
        (["MODEL", "--port", "TAKEN"], "is taken by another process; --port picks another one"),
        (["MODEL", "--timeout", "0"], "--timeout 0 must be positive"),
        (["MODEL", "--max_depth", "100000"], "--max_depth 100000 must be"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, gpt: Path, capsys: pytest.CaptureFixture):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = {"MODEL": str(gpt), "TAKEN": str(taken.getsockname()[1])}
        assert main(["serve", *(words.get(word, word) for word in args)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_plain_template_and_that_of_the_files(tmp_path: Path, tokenizer: Tokenizer, served):
    model = served["gpt"].model._replace(path=tmp_path)
    assert read_chat_template(model) is None and plain_prompt(CHAT) == "User:  hi \n\nAssistant:"
    config = tmp_path / "tokenizer_config.json"
    several = [{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert read_chat_template(model) == "y"
    config.write_text(json.dumps({"chat_template": TEMPLATE}))
    assert read_chat_template(model) == TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("z")
    assert read_chat_template(model) == "z"
    config.write_text("{")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="tokenizer_config.json"):
        read_chat_template(model)


def test_a_template_is_rendered_in_a_sandbox():
    pytest.importorskip("jinja2")
    assert render(TEMPLATE, CHAT, {"bos_token": "<s>"}) == "<s><|user|>hi<|assistant|>"
    for bad in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no system messages') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ messages[0].nothing.more }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
    ):
        with pytest.raises(UserError, match="does not take these messages"):
            render(bad, CHAT, {})


def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch):
    """Also after uvicorn has let go of the signals, while threads still compile."""
    ends: list[int] = []
    monkeypatch.setattr("os._exit", ends.append)
    app, limits = build_app([]), Limits()
    server = make_server(app, limits)
    server.handle_exit(signal.SIGTERM, None)
    assert not ends and app.state.server.stopping
    server.handle_exit(signal.SIGTERM, None)
    assert ends == [128 + signal.SIGTERM]

    def interrupted(self: Server, sockets: list) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "run", interrupted)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        run_server(app, listener, limits)
    assert ends[1:] == [128 + signal.SIGINT]


@pytest.mark.slow
def test_the_command_serves_the_openai_client_and_ends_with_0(gpt: Path):
    """SIGTERM while a stream runs: the stream is finished, new requests get 503, the exit code is 0."""
    environment = dict(os.environ, XLA_FLAGS="--xla_backend_optimization_level=0", BERTGPT_API_KEY="sesame")
    command = [sys.executable, "-m", "bertgpt", "serve", f"gpt={gpt}", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    watchdog = threading.Timer(150, process.kill)
    watchdog.start()
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"serving at (http://127\.0\.0\.1:\d+)", line):
                break
        url = match[1]
        end = time.monotonic() + 60
        while httpx.get(f"{url}/ready", timeout=20).status_code != 200:
            assert time.monotonic() < end, lines
            time.sleep(0.1)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)
        texts = [
            item.text
            for item in client.completions.create(model="gpt", prompt="the cat", temperature=0, max_tokens=40).choices
        ]
        found, stopped = "", []
        asked = {"model": "gpt", "prompt": "the cat", "temperature": 0, "max_tokens": 40, "stream": True}
        for chunk in client.completions.create(**asked):
            if not stopped:
                process.send_signal(signal.SIGTERM)
                stopped.append(True)
            found += chunk.choices[0].text
        assert [found] == texts
        lines += process.stderr.readlines()
        assert process.wait(30) == 0, lines
        assert not [line for line in lines if "Traceback" in line]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", timeout=10)
    finally:
        watchdog.cancel()
        process.kill()
