"""From the messages of a chat to a prompt: by the template of the model's files, or a plain one.

The plain template is for models that were not trained on chats: “User: …” and “Assistant: …” in paragraphs, after the
text of system messages.

    Answer briefly.

    User: What is the capital of France?

    Assistant:
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bertgpt.inference.model import SOURCE_FILES, Model, tokenizer_folder
from bertgpt.types import UserError

NAMES = {"user": "User", "assistant": "Assistant"}
PLAIN_STOP = "\n\nUser:"
"""ends an answer to the plain template"""


def read_chat_template(model: Model) -> str | None:
    """The Jinja template of the model's files (chat_template.jinja, or in tokenizer_config.json), None if it has none.

    Raises:
      UserError: a file is damaged.
    """
    for folder in (model.path / SOURCE_FILES, tokenizer_folder(model.path), model.path):
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if (file := folder / "tokenizer_config.json").is_file():
            found = _template_in(file)
            if found is not None:
                return found
    return None


def _template_in(file: Path) -> str | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: {error}") from None
    if isinstance(found, list):  # several templates, each with a name
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def plain_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt for models without a template."""
    parts = [
        f"{NAMES[message['role']]}: {message['content']}" if message["role"] in NAMES else message["content"]
        for message in messages
    ]
    return "\n\n".join([*parts, "Assistant:"])


def render(template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
    """The prompt that a Jinja template makes of messages, in a sandbox that reaches nothing else.

    Args:
      template: source of the template.
      messages: with `role` and `content`.
      special: bos_token, eos_token, … for the template.

    Raises:
      UserError: the template is broken or refuses the messages, or jinja2 is missing.
    """
    try:
        import jinja2
    except ModuleNotFoundError:
        raise UserError("the model's chat template needs jinja2: pip install 'bertgpt[serve]'") from None
    try:
        return _compiled(template).render(messages=list(messages), add_generation_prompt=True, tools=None, **special)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"the model's chat template does not take these messages: {error}") from None


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # The settings and functions of transformers' `apply_chat_template`.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise ValueError(message)
