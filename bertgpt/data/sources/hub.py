"""Models and tokenizers of the Hugging Face Hub, by id: ORG/NAME or NAME, with @REVISION behind it if wanted.

huggingface_hub downloads into its cache, from which it reads without a network too. It follows HF_HUB_CACHE,
HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN. What exists as a local path is never looked for on the Hub.
"""

import os
import re
from pathlib import Path
from typing import Literal

from bertgpt.data.tokenizer_files import FILES
from bertgpt.io.files import one_line
from bertgpt.types import UserError

ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?", re.ASCII)
TOKENIZER = (*FILES, "added_tokens.json", "config.json", "tokenizer/*")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/*")
MODEL = (*TOKENIZER, *SAFETENSORS, *SENTENCES, "generation_config.json", "README.md", "LICENSE*")


def is_hub_id(name: str) -> bool:
    """Whether a name may be the id of a model: it has the form of one, and neither it nor its folder is local."""
    return bool(ID.fullmatch(name)) and not os.path.lexists(name) and not os.path.isdir(name.partition("/")[0])


def download(name: str, what: Literal["model", "tokenizer"] = "model") -> Path:
    """The local folder of a model of the Hub: its configuration, weights and tokenizer, or its tokenizer alone.

    Args:
      name: an id, for which `is_hub_id` holds.
      what: the files to download. Of weights these are safetensors, or pytorch_model.bin where there are none.

    Raises:
      UserError: there is no such model or revision, access is denied, or the Hub cannot be reached and the model is not
        in the cache.
    """
    folder = _snapshot(name, TOKENIZER if what == "tokenizer" else MODEL)
    if what == "model" and not any((folder / weights).exists() for weights in SAFETENSORS[:2]):
        folder = _snapshot(name, (*MODEL, "pytorch_model*.bin", "pytorch_model.bin.index.json"))
    return folder


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import errors, is_offline_mode, snapshot_download
    except ImportError:
        raise UserError(
            f"{name}: no such path; to read models of the Hugging Face Hub by id, pip install 'bertgpt[hub]'"
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        reason = "its owner grants access: ask for it on its page, then log in with `hf auth login` or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "there is no such model, or it is private: log in with `hf auth login` or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = f"the model has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set" if is_offline_mode() else "it cannot be reached"
        reason += ", and the model is not complete in the cache"
    except Exception as error:  # of the network, of the disk, of the form of a name
        reason = one_line(error)
    raise UserError(f"{name}: no such path, and not read from the Hugging Face Hub: {reason}")
