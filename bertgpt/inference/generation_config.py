"""How a Hugging Face directory asks to generate: generation_config.json, or the same fields in an old config.json."""

import logging
from pathlib import Path
from typing import NamedTuple

from bertgpt.convert.settings import shown
from bertgpt.inference.decoding import Decoding
from bertgpt.io.files import read_json_object
from bertgpt.types import JsonObject, UserError

log = logging.getLogger(__name__)

FILE = "generation_config.json"
SAME = """max_new_tokens min_new_tokens repetition_penalty no_repeat_ngram_size num_beams length_penalty early_stopping
num_return_sequences""".split()
"""fields with the names and meanings of `Decoding`"""
SAMPLING: dict[str, float | int] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""fields that only matter if do_sample is set, and what they are then if they are absent"""
NEUTRAL: dict[str, tuple[object, ...]] = {
    "bad_words_ids": (), "begin_suppress_tokens": (), "constraints": (), "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1,), "epsilon_cutoff": (0,),
    "eta_cutoff": (0,), "exponential_decay_length_penalty": (), "force_words_ids": (), "forced_bos_token_id": (),
    "forced_eos_token_id": (), "guidance_scale": (1,), "max_length": (20,), "min_length": (0,), "num_beam_groups": (1,),
    "penalty_alpha": (0,), "sequence_bias": (), "stop_strings": (), "suppress_tokens": (), "typical_p": (1,),
}  # fmt: skip
"""fields that are not supported → values besides null and [] with which they do nothing"""


class GenerationConfig(NamedTuple):
    """What a directory says about generation."""

    stop_ids: tuple[int, ...] = ()
    """tokens that end a text; (): the tokenizer's end token"""
    start_id: int | None = None
    """token that the decoder of an encoder–decoder starts with; None: config.json's"""
    decoding: Decoding = Decoding()
    """how to choose tokens, unless the caller says so"""


def read_generation_config(directory: Path, vocab_size: int) -> GenerationConfig:
    """Reads generation_config.json, or where there is none the fields of config.json.

    Args:
      directory: a Hugging Face directory.
      vocab_size: rows of the embedding table; larger ids cannot be generated and do not count.

    Raises:
      UserError: the file is damaged, or a field has a value that makes no sense.
    """
    path, config = directory / FILE, directory / "config.json"
    fallback = read_json_object(config)
    values, file = (read_json_object(path), path) if path.exists() else (fallback, config)
    stops = token_ids(values, "eos_token_id", file) or token_ids(fallback, "eos_token_id", config)
    start = token_ids(values, "decoder_start_token_id", file)
    if len(start) > 1:
        raise UserError(f"{file}: decoder_start_token_id={shown(start)} must be one token")
    for field, neutral in NEUTRAL.items():
        value = values.get(field)
        if value is not None and value != [] and value not in neutral:
            log.warning("%s: %s=%s is not supported, and ignored", file, field, shown(value))
    return GenerationConfig(
        tuple(i for i in stops if i < vocab_size), next(iter(start), None), read_decoding(values, file)
    )


def token_ids(values: JsonObject, field: str, file: Path) -> tuple[int, ...]:
    """The ids in a field that holds one, a list of them, or null. Errors: UserError."""
    value = values.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise UserError(f"{file}: {field}={shown(value)} must be a token id or a list of them")
    return tuple(dict.fromkeys(ids))


def read_decoding(values: JsonObject, file: Path) -> Decoding:
    """The settings of decoding; the default, with a warning, if they are not supported."""
    fields = {name: values[name] for name in SAME if values.get(name) is not None}
    if values.get("do_sample"):
        sampling = {name: values.get(name) for name in SAMPLING}
        fields |= {name: SAMPLING[name] if value is None else value for name, value in sampling.items()}
        fields["top_k"] = fields["top_k"] or None  # 0: all
    try:
        return Decoding(**fields)
    except UserError as error:
        log.warning("%s: is not supported, so greedy search is the default: %s", file, error)
        return Decoding()
