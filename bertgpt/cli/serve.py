"""Serve models over HTTP: embeddings, completions, ranking, tagging, and a page to try them."""

import dataclasses
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from bertgpt.cli.options import Command, Inline, Positional, Repeatable
from bertgpt.inference.model import find_model, load
from bertgpt.ranges import NonNegative, Range, check_fields
from bertgpt.serving.limits import Batching, Limits
from bertgpt.types import UserError

log = logging.getLogger(__name__)

PACKAGES = ("starlette", "uvicorn", "msgspec", "orjson", "prometheus_client")
KEY = "BERTGPT_API_KEY"


@dataclasses.dataclass(frozen=True)
class Options:
    """Serve models over HTTP until SIGTERM or Ctrl-C. Accepted requests are finished first."""

    models: Positional[tuple[str, ...]]
    """directories of runs, converted models or Hugging Face models, each as PATH or NAME=PATH"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all"""
    port: Annotated[int, Range(0, 65535)] = 8000
    """port to listen on; 0: a free one, which is printed"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in"""
    workdir: str = "runs"
    """directory of runs that can be named alone"""
    api_key: str | None = None
    """bearer token that requests must carry (None: that of the environment variable BERTGPT_API_KEY, if it is set)"""
    cors_origin: Repeatable[tuple[str, ...]] = ()
    """origin whose pages may call the API from a browser, such as https://example.org, or *"""
    drain: NonNegative = 0.0
    """seconds to keep answering 503 after SIGTERM, for load balancers that ask /ready"""
    limits: Inline[Limits] = Limits()
    batching: Inline[Batching] = Batching()

    def __post_init__(self):
        check_fields(self)


def run(options: Options) -> int:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'bertgpt[serve]'")
    import jax

    from bertgpt.runs.compiler import use_compile_cache
    from bertgpt.serving.app import build_app
    from bertgpt.serving.image_served import serve_model
    from bertgpt.serving.server import open_socket, run_server

    key = options.api_key if options.api_key is not None else os.environ.get(KEY) or None
    if key == "" or (key is not None and not key.isascii()):
        raise UserError(f"--api_key (or {KEY}) must be ASCII characters, at least one")
    paths = named_models(options.models, Path(options.workdir))
    use_compile_cache(Path(options.workdir))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # there are many small programs
    with open_socket(options.host, options.port) as listener:  # before minutes of loading
        settings = options.limits, options.batching
        models = [serve_model(name, load(path, dtype=options.dtype), *settings) for name, path in paths.items()]
        for served in models:
            if not served.can:
                raise UserError(f"{served.model.path}: has no tokenizer; put its files into the directory")
            log.info("%s: %s; can %s", served.name, served.model.path, ", ".join(sorted(served.can)))
        app = build_app(models, options.limits, key, options.cors_origin, warm_up_first=False)
        host = f"[{options.host}]" if ":" in options.host else options.host
        log.info("serving at http://%s:%d", host, listener.getsockname()[1])
        run_server(app, listener, options.limits, options.drain)
    return 0


def named_models(words: tuple[str, ...], workdir: Path) -> dict[str, Path]:
    """Name → directory of each model. Without a name it is called by the last part of its path.

    Raises:
      UserError: there is no such model, none at all, or two of one name.
    """
    found: dict[str, Path] = {}
    for word in words:
        match = re.fullmatch(r"([\w.-]+)=(.+)", word)
        given = match[2] if match and not Path(word).exists() else word
        path = find_model(given, workdir)
        name = match[1] if match and given != word else Path(given).name or path.resolve().name
        if name in found:
            raise UserError(f"two models are called {name!r}; name one of them otherwise: NAME={given}")
        found[name] = path
    if not found:
        raise UserError("bertgpt serve: MODELS is required; bertgpt serve --help shows how")
    return found


COMMAND = Command(Options, run)
