"""Folders of sentence-transformers: a Hugging Face model, and modules that make its states one vector of a text.

modules.json lists the modules in their order. The first is the model; then come Pooling and, where a model has them,
Dense, LayerNorm and Normalize, each with a folder of its own. A module that is not known here is refused by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import safetensors.numpy

from bertgpt.convert.core import Tensors, check_values
from bertgpt.convert.files import read_tensors
from bertgpt.convert.settings import Settings, shown
from bertgpt.data.tokenizer_files import read_settings
from bertgpt.io.files import json_bytes, read_json, read_json_object
from bertgpt.types import JsonObject, UserError

Source = Literal["token_embeddings", "sentence_embedding"]
Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
MODES: Mapping[str, Mode] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Field of 1_Pooling/config.json → mode. Vectors of several modes are concatenated in this order"""
ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU")
"""Classes of torch.nn that a Dense module may use"""
SETTINGS = "config_sentence_transformers.json"
NO_LIMIT = 10**9  # tokenizer_config.json holds 10³⁰ where there is no limit
# The last versions of sentence-transformers save this beside what older ones did.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@dataclasses.dataclass(frozen=True)
class Pooling:
    """One vector from the states of all tokens."""

    modes: tuple[Mode, ...] = ("mean",)
    """several are concatenated"""
    include_prompt: bool = True
    """whether the tokens of the prompt, and the special tokens before it, count"""


@dataclasses.dataclass(frozen=True)
class Dense:
    """act(W x + b); with a residual, + x or + V x."""

    activation: str = "Tanh"
    """its class in torch.nn"""
    source: Source = "sentence_embedding"
    residual: bool = False


@dataclasses.dataclass(frozen=True)
class LayerNorm:
    """Layer norm with epsilon 1e-5."""

    source: Source = "sentence_embedding"


@dataclasses.dataclass(frozen=True)
class Normalize:
    """x / |x|."""

    source: Source = "sentence_embedding"


Module = Pooling | Dense | LayerNorm | Normalize


class Embedder(NamedTuple):
    """How a text becomes a vector, beside the model itself."""

    modules: tuple[Module, ...]
    """what follows the model, in order"""
    params: tuple[Mapping[str, np.ndarray], ...]
    """parameters of each module: kernel, bias, residual; scale, bias; {} for others"""
    max_tokens: int | None = None
    """longest sequence, with special tokens; None: the model's"""
    keep_end: bool = False
    """whether longer texts lose their beginning rather than their end"""
    lowercase: bool = False
    """lower-case texts before they are tokenised"""
    prompts: Mapping[str, str] = MappingProxyType({})
    """name → what to put before a text"""
    default_prompt: str | None = None
    """the prompt that is used unless another is asked for"""
    truncate_dim: int | None = None
    """keep this many leading numbers of a vector"""
    parse_special: bool = False
    """read special tokens in texts as such, as sentence-transformers does"""
    inner: str = ""
    """folder of the model in the directory"""

    def prompt(self, text: str | None, name: str | None) -> str:
        """What to put before a text: this text, the prompt of this name, or the default one.

        Raises:
          UserError: there is no prompt of this name.
        """
        if text is not None:
            return text
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise UserError(f"the model has no prompt {name!r}; there are: {known}")
        return self.prompts[name]


def is_sentence_transformer(directory: Path) -> bool:
    """Whether a directory is a folder of sentence-transformers."""
    return (directory / "modules.json").exists()


def model_folder(directory: Path) -> str:
    """The folder of the model inside a directory, "" for the directory itself. Errors: UserError."""
    return _entries(directory / "modules.json")[0][1]


def module_folders(directory: Path) -> tuple[str, ...]:
    """Folders of the modules that follow the model."""
    file = directory / "modules.json"
    return tuple(path for _, path in _entries(file)[1:] if path)


def read_embedder(directory: Path) -> Embedder:
    """Reads the modules of a folder, all but the model itself.

    Raises:
      UserError: a file is missing or damaged, or there is a module or setting that is not supported.
    """
    file = directory / "modules.json"
    (_, inner), *found = _entries(file)
    modules, params = [], []
    for kind, path in found:
        if kind == "Transformer":
            raise UserError(f"{file}: has a second Transformer, which is not supported")
        if kind != "Dropout":  # acts in training only
            module, weights = READERS[kind](directory / path)
            modules.append(module)
            params.append(weights)
    if sum(isinstance(module, Pooling) for module in modules) != 1:
        raise UserError(f"{file}: must have one Pooling module")
    return _read_options(directory, Embedder(tuple(modules), tuple(params), parse_special=True, inner=inner))


def _entries(file: Path) -> list[tuple[str, str]]:
    """(class, path) of each module that modules.json lists, the first of which is the model."""
    entries = read_json(file)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file}: must hold a list of modules")
    found = [_module_of(entry, file) for entry in entries]
    if found[0][0] != "Transformer":
        raise UserError(f"{file}: the first module is {found[0][0]}; only Transformer is supported there")
    return found


def _module_of(entry: JsonObject, file: Path) -> tuple[str, str]:
    """(class, path) of an entry of modules.json."""
    name, path = entry.get("type"), entry.get("path", "")
    if not isinstance(name, str) or not isinstance(path, str):
        raise UserError(f"{file}: a module has no type or path: {shown(entry)}")
    kind = name.rsplit(".", 1)[-1]
    if not name.startswith("sentence_transformers.") or kind not in (*READERS, "Transformer", "Dropout"):
        known = ", ".join(("Transformer", *READERS, "Dropout"))
        raise UserError(f"{file}: module {name!r} is not supported; only {known} of sentence_transformers")
    leads_out = PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path
    if leads_out or not path.isprintable():
        raise UserError(f"{file}: the path {path!r} of {name} leads out of the directory")
    return kind, path


def _read_options(directory: Path, embedder: Embedder) -> Embedder:
    """Adds what the settings files say of the length of texts, of letter case and of prompts."""
    root = directory / embedder.inner
    sentence = _settings(
        next(iter(sorted(root.glob("sentence_*_config.json"))), root / "sentence_bert_config.json"), optional=True
    )
    sentence.must_be("transformer_task", "feature-extraction")
    sentence.must_be("module_output_name", "token_embeddings")
    sentence.must_be("modality_config", TEXT_ONLY)
    for name in ("model", "processor", "tokenizer", "config"):
        for ending in ("args", "kwargs"):
            sentence.must_be(f"{name}_{ending}", {}, None)
    sentence.must_be("processing_kwargs", {}, None)
    sentence.must_be("tokenizer_name_or_path", None)
    sentence.used |= {"unpad_inputs", "query_length", "document_length", "query_expansion"}  # not used by `encode`
    limit = sentence("max_seq_length", kind=(int, type(None)))
    lowercase = sentence("do_lower_case", kind=bool)
    sentence.finish()
    tokenizer = read_settings(root)
    if limit is None:
        given = tokenizer.get("model_max_length")
        limit = int(given) if isinstance(given, int | float) and given < NO_LIMIT else None
    if limit is not None and limit < 1:
        raise UserError(f"{sentence.file}: max_seq_length={limit} must be at least 1")
    options = _settings(directory / SETTINGS, optional=True)
    options.must_be("model_type", "SentenceTransformer")
    prompts = options("prompts", kind=dict)
    if not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{options.file}: prompts must be texts")
    default = options("default_prompt_name", kind=(str, type(None)))
    if default is not None and not isinstance(prompts.get(default), str):
        raise UserError(f"{options.file}: default_prompt_name={default!r} is not one of the prompts")
    truncate = options("truncate_dim", kind=(int, type(None)))
    if truncate is not None and truncate < 1:
        raise UserError(f"{options.file}: truncate_dim={truncate} must be at least 1")
    return embedder._replace(
        max_tokens=limit,
        keep_end=tokenizer.get("truncation_side") == "left",
        lowercase=lowercase,
        prompts={name: text for name, text in prompts.items() if text is not None},
        default_prompt=default,
        truncate_dim=truncate,
    )


DEFAULTS: JsonObject = {
    "max_seq_length": None, "do_lower_case": False, "prompts": {}, "default_prompt_name": None, "truncate_dim": None,
    **dict.fromkeys(MODES, False), "include_prompt": True, "bias": True, "use_residual": False,
    "activation_function": "torch.nn.modules.activation.Tanh", "module_input_name": "sentence_embedding",
}  # fmt: skip
"""field → value where a file does not have it"""


def _settings(path: Path, *required: str, optional: bool = False) -> Settings:
    """The fields of a config; none if the file is optional and missing. Errors: UserError, if a field is missing."""
    values = {} if optional and not path.exists() else read_json_object(path)
    for name in required:
        if name not in values:
            raise UserError(f"{path}: has no field {name!r}")
    return Settings(values, str(path), DEFAULTS, {})


def _read_pooling(folder: Path) -> tuple[Pooling, Tensors]:
    s = _settings(folder / "config.json")
    for name in ("word_embedding_dimension", "embedding_dimension"):
        s.used.add(name)  # the width of the states, which the model has
    old = tuple(mode for name, mode in MODES.items() if s(name, kind=bool))
    given = s("pooling_mode", kind=(str, list)) if "pooling_mode" in s.values else old
    modes = (given,) if isinstance(given, str) else tuple(given) or ("mean",)
    for mode in modes:
        if mode not in MODES.values():
            raise UserError(f"{s.file}: pooling mode {shown(mode)} is not supported; only {', '.join(MODES.values())}")
    pooling = Pooling(modes, s("include_prompt", kind=bool))
    s.finish()
    return pooling, {}


def _read_dense(folder: Path) -> tuple[Dense, Tensors]:
    s = _settings(folder / "config.json", "in_features", "out_features")
    name = s("activation_function", kind=str)
    activation = name.rsplit(".", 1)[-1]
    if not name.startswith("torch.nn.") or activation not in ACTIVATIONS:
        raise UserError(f"{s.file}: activation_function={name!r} is not supported; only torch.nn's {ACTIVATIONS}")
    residual = s("use_residual", kind=bool)
    module = Dense(activation, _source(s), residual)
    sizes = s("in_features"), s("out_features")
    has_bias = s("bias", kind=bool)
    s.finish()
    tensors = read_tensors(folder)
    names = {"linear.weight": "kernel"} | ({"linear.bias": "bias"} if has_bias else {})
    names |= {"residual.weight": "residual"} if residual and sizes[0] != sizes[1] else {}
    found = _rename(tensors, names, folder)
    wanted = {"kernel": sizes[::-1], "residual": sizes[::-1], "bias": sizes[1:]}
    for key, value in found.items():
        if value.shape != wanted[key]:
            raise UserError(f"{folder}: {key} has shape {value.shape}, but config.json asks for {wanted[key]}")
    return module, {key: value.T for key, value in found.items()}


def _read_layer_norm(folder: Path) -> tuple[LayerNorm, Tensors]:
    s = _settings(folder / "config.json", "dimension")
    s("dimension")
    s.finish()
    return LayerNorm(), _rename(read_tensors(folder), {"norm.weight": "scale", "norm.bias": "bias"}, folder)


def _read_normalize(folder: Path) -> tuple[Normalize, Tensors]:
    s = _settings(folder / "config.json", optional=True)
    module = Normalize(_source(s))
    s.finish()
    return module, {}


READERS: Mapping[str, Callable[[Path], tuple[Module, Tensors]]] = {
    "Pooling": _read_pooling,
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
}
"""Class of a module → function that reads its folder"""


def _source(s: Settings) -> Source:
    """What a module reads and replaces."""
    names: Mapping[str, Source] = {"sentence_embedding": "sentence_embedding", "token_embeddings": "token_embeddings"}
    source = s.one_of("module_input_name", names)
    s.must_be("module_output_name", source, None)
    return source


def _rename(tensors: Tensors, names: Mapping[str, str], folder: Path) -> Tensors:
    """The tensors under their names here. Raises UserError if one is missing or there are others."""
    for name in sorted(names.keys() ^ tensors.keys()):
        problem = "has no tensor" if name in names else "has an unknown tensor"
        raise UserError(f"{folder}: {problem} {name}")
    for name in names:
        check_values(name, tensors[name], str(folder))
    return {new: tensors[old] for old, new in names.items()}


def check_widths(embedder: Embedder, width: int, directory: Path) -> None:
    """Raises UserError if a module does not fit to the states of the model, `width` wide, or to the module before."""
    widths: dict[Source, int] = {"token_embeddings": width, "sentence_embedding": 0}
    for module, params in zip(embedder.modules, embedder.params, strict=True):
        if isinstance(module, Pooling):
            widths["sentence_embedding"] = widths["token_embeddings"] * len(module.modes)
            continue
        found = widths[module.source]
        wanted = len(params["kernel"]) if "kernel" in params else len(params.get("scale", range(found)))
        if not found or wanted != found:
            raise UserError(
                f"{directory}: {type(module).__name__} needs {module.source} of width {wanted}, but it has {found}"
            )
        if "kernel" in params:
            widths[module.source] = params["kernel"].shape[1]


def module_files(embedder: Embedder, width: int) -> dict[str, bytes]:
    """The files of a folder beside the model's own, path → content.

    Args:
      embedder: modules without LayerNorm, as runs have them.
      width: width of the model's states.
    """
    kinds = [type(module).__name__ for module in embedder.modules]
    paths = ["", *(f"{i + 1}_{kind}" for i, kind in enumerate(kinds))]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, ["Transformer", *kinds], strict=True))
    ]
    files = {
        "modules.json": json_bytes(entries),
        "sentence_bert_config.json": json_bytes(
            {"max_seq_length": embedder.max_tokens, "do_lower_case": embedder.lowercase}
        ),
        SETTINGS: json_bytes(
            {
                "prompts": dict(embedder.prompts),
                "default_prompt_name": embedder.default_prompt,
                "similarity_fn_name": "cosine",
            }
        ),
    }
    for path, module, params in zip(paths[1:], embedder.modules, embedder.params, strict=True):
        if isinstance(module, Pooling):
            modes = {name: mode in module.modes for name, mode in MODES.items()}
            config = {"word_embedding_dimension": width, **modes, "include_prompt": module.include_prompt}
            files[f"{path}/config.json"] = json_bytes(config)
        elif isinstance(module, Dense):
            kernel = params["kernel"].T
            config = {"in_features": kernel.shape[1], "out_features": kernel.shape[0], "bias": "bias" in params}
            package = "linear" if module.activation == "Identity" else "activation"
            config["activation_function"] = f"torch.nn.modules.{package}.{module.activation}"
            files[f"{path}/config.json"] = json_bytes(config)
            tensors = {"linear.weight": np.ascontiguousarray(kernel, np.float32)}
            tensors |= {"linear.bias": np.asarray(params["bias"], np.float32)} if "bias" in params else {}
            files[f"{path}/model.safetensors"] = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    return files
