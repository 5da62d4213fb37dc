"""How a run starts: which architecture, which tokenizer, which weights."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from bertgpt.adaptation.init_from import check_labels, load_pretrained, weights_for
from bertgpt.adaptation.pruning import take_layers
from bertgpt.config import Experiment
from bertgpt.convert.sentence_transformers import Dense, LayerNorm
from bertgpt.data.tokenizer import Tokenizer, load_tokenizer
from bertgpt.distributed import check_same, is_main
from bertgpt.inference.model import Model, find_model, find_optional, label_sets, load, tokenizer_folder
from bertgpt.io.checksums import read_sealed, sealed
from bertgpt.io.directories import make_directory
from bertgpt.io.files import write_json
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.runs.directory import check_tokenizer, load_experiment, record_tokenizer
from bertgpt.types import Params, UserError

log = logging.getLogger(__name__)


def find_architecture(experiment: Experiment, run: Path, workdir: Path) -> tuple[Experiment, Model | None]:
    """Fills in the architecture of `init_from` if the experiment names none.

    A run that has begun keeps its architecture, so that it resumes without `init_from`.

    Returns:
      The experiment, and the pretrained model if it was read here.

    Raises:
      UserError: the experiment has neither a model nor `init_from`.
    """
    if experiment.model is not None:
        return experiment, None
    if (run / "experiment.json").exists() and Checkpoints(run).steps():
        return dataclasses.replace(experiment, model=load_experiment(run).model), None
    if experiment.init_from is None:
        raise UserError("model=None needs init_from, whose architecture it takes")
    pretrained = load_initial(experiment, workdir)
    return dataclasses.replace(experiment, model=pretrained.config.main), pretrained


def load_initial(experiment: Experiment, workdir: Path) -> Model:
    """The model of `init_from`, of which only `init_layers` are left if the experiment names them."""
    model = load(find_model(experiment.init_from, workdir), arrange="host")
    if not experiment.init_layers:
        return model
    try:
        config, params = take_layers(model.config, model.params, experiment.init_layers)
    except UserError as error:
        raise UserError(f"init_layers: {experiment.init_from}: {error}") from None
    return model._replace(config=config, params=params)


def find_tokenizer(experiment: Experiment, run: Path, workdir: Path) -> Tokenizer:
    """The run's own tokenizer, else the one named by the data, else that of `init_from`, else one trained on the data.

    It is saved in the run directory. Of several processes, process 0 calls this first, and others load what it saved.

    Raises:
      UserError: the data names no tokenizer and there is no `init_from`, or the tokenizer cannot be loaded.
    """
    folder, wanted = run / "tokenizer", experiment.data.tokenizer
    if os.path.lexists(folder):
        check_tokenizer(run)
        tokenizer = load_tokenizer(folder)
        if is_main():
            record_tokenizer(run)
        return tokenizer
    if wanted is None and experiment.init_from is None:
        raise UserError("data.tokenizer=None needs init_from, whose tokenizer it takes")
    if wanted is None:
        tokenizer = load_tokenizer(tokenizer_folder(find_model(experiment.init_from, workdir)))
    elif isinstance(wanted, str):
        # A model's directory, or else the path of tokenizer files.
        find = find_model if wanted.startswith("package:") else find_optional
        found = find(wanted, workdir)
        tokenizer = load_tokenizer(wanted if found is None else tokenizer_folder(found))
    else:
        tokenizer = experiment.data.train_tokenizer()
    make_directory(run)
    tokenizer.save(folder)
    record_tokenizer(run)
    return tokenizer


def check_inputs(
    run: Path,
    experiment: Experiment,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    begun: bool,
    accept: bool,
    more: Mapping[str, str],
) -> None:
    """Records digests of tokenizer and data in RUN/inputs.json, and compares those of a run that has begun.

    Args:
      run: the run directory.
      experiment: its data, and that of its evaluations.
      tokenizer: of the run.
      cache: folder for prepared data.
      begun: whether the run has a checkpoint.
      accept: continue with changed inputs.
      more: digests of other inputs, by name.

    Raises:
      UserError: something has changed; the message names it.
    """
    path, own = run / "inputs.json", {**experiment.data.digests(tokenizer, cache), **more}
    evals = [item.data.digests(tokenizer, cache) for item in experiment.evals if item.data is not None]
    now = {"tokenizer": tokenizer.hash, "data": own, "evals": {k: v for found in evals for k, v in found.items()}}
    if begun and not path.exists():
        log.warning("%s: is missing: whether the data has changed since the run began cannot be checked", path)
    elif begun and not accept:
        before = read_sealed(path)
        if before["tokenizer"] != now["tokenizer"]:
            changed = [f"{run / 'tokenizer'} has changed"]  # and with it all prepared data
        else:
            changed = [
                f"{name} has changed"
                for part in ("data", "evals")
                for name, digest in before[part].items()
                if now[part].get(name, digest) != digest
            ]
        changed += [f"{name} is gone" for name in before["data"] if name not in own]
        changed += [f"{name} is new" for name in own if name not in before["data"]]
        if changed:
            raise UserError(
                f"{run}: since this run began, {', '.join(changed)}; restore what was there, or continue with"
                " --accept_changed_inputs"
            )
    check_same("the digests of tokenizer and data", {"tokenizer": now["tokenizer"], **own, **now["evals"]})
    if is_main():
        write_json(path, sealed(now))


def init_from(
    experiment: Experiment, params: Params, pretrained: Model | None, workdir: Path
) -> tuple[Params, dict[str, list[str]]]:
    """Replaces initialised parameters by those of `init_from`.

    Args:
      experiment: says what to start from and what to reinitialize.
      params: initialised parameters.
      pretrained: the model, if it was read already.
      workdir: folder of runs.

    Returns:
      Parameters, and the report of `load_pretrained`.

    Raises:
      UserError: the model is missing, computes something else, or has a head for other labels.
    """
    source = pretrained or load_initial(experiment, workdir)
    merged, report = load_pretrained(
        params,
        weights_for(experiment.model, source.config, source.params, source.path),
        vocab_sizes=(experiment.model.vocab_size, source.config.vocab_size),
        reinitialize=experiment.reinitialize,
    )
    modules = () if source.embedder is None else source.embedder.modules
    left = ", ".join(type(module).__name__ for module in modules if isinstance(module, Dense | LayerNorm))
    if left:
        log.warning("init_from: %s: the encoder is read, without %s after it", source.path, left)
    source_labels = {"": source.labels} if source.experiment is None else label_sets(source.experiment.data)
    check_labels(label_sets(experiment.data), source_labels, experiment.init_from, report["loaded"])
    return merged, report
