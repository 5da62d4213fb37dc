"""Loaded models: one bundle for runs, converted models and Hugging Face directories.

A converted model is a directory with model.json (the config), tokenizer/ and checkpoints/0/params, as `bertgpt convert`
writes it. It loads like a run, without reading another library's format again.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from bertgpt.adaptation.lora import Lora, read_merged, with_lora
from bertgpt.config import Experiment, from_json, leaves, to_json, with_overrides
from bertgpt.convert.hub import import_model
from bertgpt.convert.sentence_transformers import (
    Embedder,
    check_widths,
    is_sentence_transformer,
    model_folder,
    read_embedder,
)
from bertgpt.data.class_token import ClassToken
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.sources.hub import download, is_hub_id
from bertgpt.data.sources.text import inside_package
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.data.tokenizer_files import FORMATS
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generation_config import GenerationConfig, read_generation_config
from bertgpt.io.checksums import read_sealed_or_edited
from bertgpt.io.paths import url_of
from bertgpt.layers.quantized import dequantize_params, unpack
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.t5 import T5Config
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.directory import check_tokenizer, load_experiment
from bertgpt.runs.mirror import open_copy
from bertgpt.tasks.mixed import TaskMixture
from bertgpt.types import Apply, DataConfig, Labels, ModelConfig, Objective, Params, UserError

# Of a run, a converted model, a Hugging Face directory, one of sentence-transformers.
MARKERS = ("experiment.json", "model.json", "config.json", "modules.json")
SOURCE_FILES = "hub"
"""folder of a converted model with the files of its Hugging Face directory: card, licence, modules, tokenizer"""


class Model(NamedTuple):
    """An architecture with weights, tokenizer and labels; of a run, also its experiment."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    """None if the directory has none"""
    apply: Apply
    params: Params
    """arranged as `load` was asked to"""
    path: Path
    step: int = 0
    """step of the checkpoint of a run"""
    labels: Labels = Labels()
    """labels of its classifier or tagger"""
    experiment: Experiment | None = None
    """what a run was trained on; None for other directories"""
    objective: Objective | None = None
    """functions of the run's objective"""
    architecture: str | None = None
    """Hugging Face's architecture name, where the weights come from there"""
    embedder: Embedder | None = None
    """of a folder of sentence-transformers, how its modules make one vector of a text"""
    stop_ids: tuple[int, ...] = ()
    """tokens that end a text, where the directory says so; (): the tokenizer's end token"""
    decoding: Decoding = Decoding()
    """how it generates unless the caller says so"""
    image_format: ImageFormat | None = None
    """of a model that reads images, how pictures are brought to their size; None: its directory does not say so"""
    report: Mapping[str, list[str]] | None = None
    """names of tensors loaded, initialised and unused, of a Hugging Face directory"""

    @property
    def name(self) -> str:
        """The run's name, else the path: what messages call the model."""
        return self.experiment.name if self.experiment is not None else str(self.path)

    @property
    def run(self) -> Experiment:
        """The experiment.

        Raises:
          UserError: the model is not from a run, so it has no task of its own.
        """
        if self.experiment is None:
            raise UserError(f"{self.path}: is not a run, so it has no task; name the directory of a run")
        return self.experiment


def load(
    path: str | Path,
    step: int | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    experiment: Experiment | None = None,
    arrange: Literal["inference", "training", "host"] = "inference",
) -> Model:
    """Loads a run directory, a converted model or a Hugging Face directory.

    Args:
      path: the directory, or its URL (gs:// or s3://); `package:module/inner/path` is a directory inside an installed
        package. A string that is no local path may be the id of a model of the Hugging Face Hub, ORG/NAME or
        ORG/NAME@REVISION.
      step: checkpoint of a run; None: the newest.
      dtype: type of the computation; None: float32, or with arrange="training" what the run was trained in.
      experiment: of a run, what to use in place of its experiment.json, to which `with_overrides` was applied.
      arrange: "inference": parameters on the device, one tree per layer, kernels rounded once for bfloat16.
        "training": on the device, layers stacked, as checkpoints have them. "host": the same as numpy arrays.
        Weights of 8 bits (`bertgpt export --format int8`) stay so on the device; on the host they are float32.

    Returns:
      The model. LoRA matrices are merged into the kernels.

    Raises:
      UserError: the path is none of the three, it has no such checkpoint, or a file is damaged or not supported.

    Examples:
      >>> import bertgpt
      >>> model = bertgpt.load("package:sentence_transformers_data/minilm")  # doctest: +SKIP
      >>> bertgpt.embed(model, ["a text"]).shape  # doctest: +SKIP
      (1, 384)
    """
    model = _load_host(resolve(path), step, experiment)
    if dtype is None:
        dtype = model.experiment.compute_dtype if model.experiment and arrange == "training" else "float32"
    params = unpack(model.params)
    if arrange == "host":
        params = dequantize_params(params)
    if arrange == "inference":
        params = for_inference(params, model.config.stacks, dtype)
    if arrange != "host":
        params = jax.device_put(params)
    return model._replace(apply=make_apply(for_any_device(model.config).make(dtype)), params=params)


def for_any_device(config: ModelConfig) -> ModelConfig:
    """The model with `auto` in place of attention kernels, which only some devices have, for some lengths."""
    return with_overrides(config, {path: "auto" for path, value in leaves(config) if value in ("flash", "cudnn")})


def build_apply(module: Any, lora: Lora | None = None) -> Apply:
    """Runs a flax module, whose parameters may hold LoRA matrices."""
    return with_lora(make_apply(module), lora)


def resolve(name: str | Path) -> Path:
    """A path, `package:module/inner/path` inside an installed package, or the id of a model of the Hugging Face Hub.

    Raises:
      UserError: there is no such package or model, or it cannot be downloaded.
    """
    if isinstance(name, str) and is_hub_id(name):
        return download(name)
    path = inside_package(name) if isinstance(name, str) and name.startswith("package:") else name
    return open_copy(path)


def find_optional(name: str, workdir: Path) -> Path | None:
    """The model directory under `workdir` or at the path `name`; None if there is neither."""
    if name.startswith("package:") or url_of(name) is not None:
        candidates = (resolve(name),)
    else:
        candidates = (open_copy(workdir / name), Path(name))
    return next((path for path in candidates if any((path / file).exists() for file in MARKERS)), None)


def find_model(name: str, workdir: Path) -> Path:
    """The model directory under `workdir` or at the path `name`, or else the model of the Hugging Face Hub.

    Raises:
      UserError: there is none of them.
    """
    path = find_optional(name, workdir)
    if path is not None:
        return path
    text = f"{name!r} is neither a run under {workdir} nor the directory of a run, a converted model or a Hugging"
    text += " Face model"
    if not is_hub_id(name):
        raise UserError(text)
    try:
        return download(name)
    except UserError as error:
        raise UserError(text + str(error).removeprefix(f"{name}: no such path")) from None


def tokenizer_folder(path: Path) -> Path:
    """The directory of a model's tokenizer files."""
    if is_sentence_transformer(path):
        return path / model_folder(path)
    return path / "tokenizer" if (path / "tokenizer").is_dir() else path


def label_sets(data: DataConfig) -> dict[str, Labels]:
    """Labels by prefix of the parameters of their head: "task_NAME/" where several tasks share a model, else ""."""
    tasks = {f"task_{part.name}/": part.data for part in data.parts} if isinstance(data, TaskMixture) else {"": data}
    return {prefix: task.label_set for prefix, task in tasks.items()}


def image_format_of(data: DataConfig) -> ImageFormat | None:
    """The field `image` of a run's data, of several tasks the first one's; None if they have no images."""
    parts = [part.data for part in data.parts] if isinstance(data, TaskMixture) else [data]
    return next((found for part in parts if isinstance(found := vars(part).get("image"), ImageFormat)), None)


def _load_host(path: Path, step: int | None, experiment: Experiment | None) -> Model:
    """The model of a directory, with parameters on the host as training arranges them; `apply` is not set."""
    if (path / "experiment.json").exists():
        return _load_run(path, step, experiment or load_experiment(path))
    if step is not None:
        raise UserError(f"{path}: is no run, so it has no step {step}")
    if experiment is not None:
        raise UserError(f"{path}: is no run, so it has no experiment")
    if (path / "model.json").exists():
        return _load_converted(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    return _load_hugging_face(path)


def _load_run(path: Path, step: int | None, experiment: Experiment) -> Model:
    check_tokenizer(path)
    tokenizer = load_tokenizer(path / "tokenizer")
    step, params = Checkpoints(path).read_step("params", step)
    return Model(
        experiment.model,
        tokenizer,
        _not_built,
        read_merged(params, experiment.lora),
        path,
        step=step,
        labels=experiment.data.label_set,
        experiment=experiment,
        objective=experiment.objective.make(tokenizer.vocab),
        image_format=image_format_of(experiment.data),
    )


def _load_converted(path: Path) -> Model:
    facts = read_sealed_or_edited(path / "model.json")
    try:
        config, architecture = from_json(facts["model"]), facts["architecture"]
        labels = Labels(tuple(facts["labels"]), kind=facts.get("label_kind", "none"))
        stop_ids, decoding = tuple(facts.get("stop_ids", ())), from_json(facts.get("decoding", to_json(Decoding())))
        image_format = from_json(facts["image_format"]) if facts.get("image_format") else None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'model.json'}: has no field {error}") from None
    except UserError as error:
        raise UserError(f"{path / 'model.json'}: {error}") from None
    if not isinstance(config, ModelConfig) or not isinstance(decoding, Decoding):
        raise UserError(f"{path / 'model.json'}: model is no ModelConfig, or decoding no Decoding")
    if (path / "tokenizer.sha256.json").exists() or os.path.lexists(path / "tokenizer"):
        check_tokenizer(path)
    tokenizer = load_tokenizer(path / "tokenizer") if (path / "tokenizer").exists() else None
    params = Checkpoints(path).read("params")
    embedder = _read_embedder(path / SOURCE_FILES)
    check_embedder(embedder, config, path / SOURCE_FILES)
    if embedder is None and facts.get("has_modules"):
        raise UserError(f"{path / SOURCE_FILES}: has no modules.json, but the model had modules after its encoder")
    return Model(
        config,
        tokenizer,
        _not_built,
        params,
        path,
        labels=labels,
        architecture=architecture,
        embedder=embedder,
        stop_ids=stop_ids,
        decoding=decoding,
        image_format=image_format,
    )


def _read_embedder(path: Path) -> Embedder | None:
    """The modules of a folder of sentence-transformers, None of any other."""
    return read_embedder(path) if is_sentence_transformer(path) else None


def check_embedder(embedder: Embedder | None, config: ModelConfig, path: Path) -> None:
    """Raises UserError if the modules do not fit to the model."""
    if embedder is not None:
        check_widths(embedder, vars(config)["d_model"], path)


def _load_hugging_face(path: Path) -> Model:
    embedder = _read_embedder(path)
    folder = path if embedder is None else path / embedder.inner
    imported = import_model(folder)
    tokenizer = load_tokenizer(folder) if any((folder / name).exists() for name in FORMATS) else None
    if tokenizer is None and imported.family == "vit":
        tokenizer = ClassToken().make(lambda: iter(()))
    if tokenizer is not None and tokenizer.vocab.size > imported.config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab.size} tokens, but config.json says"
            f" vocab_size={imported.config.vocab_size}"
        )
    config, generation = imported.config, GenerationConfig()
    if config.architecture != "encoder":
        generation = read_generation_config(path, config.vocab_size)
    if isinstance(config, T5Config | CaptionerConfig) and generation.start_id is not None:
        config = dataclasses.replace(config, start_id=generation.start_id)
    check_embedder(embedder, imported.config, path)
    return Model(
        config,
        tokenizer,
        _not_built,
        imported.params,
        path,
        labels=imported.labels,
        architecture=imported.architecture,
        embedder=embedder,
        stop_ids=generation.stop_ids,
        decoding=generation.decoding,
        image_format=imported.image_format,
        report=imported.report,
    )


def _not_built(*_: Any, **__: Any) -> Any:
    raise AssertionError("`load` builds apply")
