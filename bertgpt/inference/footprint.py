"""What a model costs where it runs, in any format: size, memory, time to the first answer, latency, and its scores.

Memory and times are those of a process of its own,
`python -m bertgpt.inference.footprint DIRECTORY TEXT REPEATS DTYPE`.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import jax
import numpy as np

from bertgpt.inference.encode import classify, embed, is_encoder, padded_length
from bertgpt.inference.model import Model, load
from bertgpt.inference.predict import concatenate_outputs, predict
from bertgpt.inference.program import INPUTS, program_of
from bertgpt.inference.runner import MANIFEST, RUNNER
from bertgpt.types import Confusion, DataRequest, GenerationTask, Task, UserError

Dtype = Literal["float32", "bfloat16"]
PATIENCE = 600
"""seconds that a process may take"""
LEFT_OUT = {"opt", "tensorboard", "cache", "evaluation"}
"""folders of a run that its user does not need"""


class Footprint(NamedTuple):
    """What was measured in a process of its own."""

    size: int
    """bytes on disk"""
    memory: int
    """bytes of resident memory, at most"""
    cold_start: float
    """seconds from the start of the process to its first answer; nothing was compiled before"""
    latency: float
    """median seconds for one text"""


class Opened(NamedTuple):
    """A model in any format as one function."""

    output: str
    """name of the result, of `program.AXES`"""
    run: Callable[[dict[str, np.ndarray]], np.ndarray]
    """arguments by our names, those that it needs → result"""


def measure(directory: Path, text: str, repeats: int = 50, dtype: Dtype = "float32") -> Footprint:
    """Measures a directory of any format.

    Args:
      directory: a model that `bertgpt.load` reads, or one that `bertgpt export` wrote.
      text: what it reads again and again.
      repeats: how often.
      dtype: type of the computation of a model that `bertgpt.load` reads.

    Raises:
      UserError: it cannot be run.
    """
    command = [sys.executable, "-m", "bertgpt.inference.footprint", str(directory), text, str(repeats), dtype]
    return Footprint(size_of(directory), *run_child(command, str(directory)))


def run_child(command: Sequence[str], name: str) -> tuple[int, float, float]:
    """(bytes of memory, seconds to the first answer, median seconds of the others) of a process like `main`.

    Raises:
      UserError: it fails, or takes longer than 10 minutes.
    """
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        with process, contextlib.closing(process.stdout):
            process.stdout.readline()
            cold_start = time.perf_counter() - start
            rest = process.stdout.readline()
        late = not watchdog.is_alive()
        watchdog.cancel()
        if late:
            raise UserError(f"{name}: gave no answers within {PATIENCE} seconds")
        if process.returncode or not rest:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or ["it ended without a word"]
            raise UserError(f"{name}: cannot be measured: {lines[-1][:200]}")
    facts = json.loads(rest)
    return facts["memory"], cold_start, facts["latency"]


def size_of(directory: Path) -> int:
    """Bytes of a model's files; of a run those of its newest checkpoint, without the optimiser's state."""
    steps = [int(path.name) for path in (directory / "checkpoints").glob("*") if path.name.isdigit()]
    old = {str(step) for step in steps if step != max(steps)}

    def counts(path: Path) -> bool:
        parts = path.relative_to(directory).parts
        return not LEFT_OUT & set(parts) and not (parts[0] == "checkpoints" and parts[1] in old)

    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and counts(path))


def open_any(directory: Path, model: Model | None = None) -> Opened:
    """A directory of any format. `model`: its model, if it is loaded already.

    Raises:
      UserError: it is none.
    """
    if (directory / RUNNER).exists():
        facts, module = json.loads((directory / MANIFEST).read_text(encoding="utf-8")), import_runner(directory)
        dtype = facts["inputs"]["input_ids"]["dtype"]
        ours = {"attention_mask": "segment_ids", "token_type_ids": "type_ids"}

        def run(fields: dict[str, np.ndarray]) -> np.ndarray:
            return module.run(**{name: fields[ours.get(name, name)].astype(dtype) for name in facts["inputs"]})

        return Opened(next(iter(facts["outputs"])), run)
    program = program_of(load(directory) if model is None else model)
    compiled, params = jax.jit(program.run), jax.device_put(program.params)
    return Opened(
        program.output, lambda fields: np.asarray(compiled(params, {name: fields[name] for name in program.inputs}))
    )


def import_runner(directory: Path) -> ModuleType:
    """The module run.py of an exported program."""
    spec = importlib.util.spec_from_file_location(f"runner_of_{directory.name}", directory / RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scores_on_test(model: Model, opened: Opened, batch_size: int = 32) -> dict[str, float]:
    """The scores of the run's task on its test set (or validation set), of answers in any format.

    Args:
      model: the run, for its data.
      opened: what answers.
      batch_size: examples at once.

    Returns:
      Name → value; {} if the run has no such task or split.
    """
    experiment = model.experiment
    if experiment is None or not isinstance(experiment.data, Task) or isinstance(experiment.data, GenerationTask):
        return {}
    splits = [item.split for item in experiment.evals if item.data is None]
    if not splits or opened.output not in ("probabilities", "value", "tags", "token_probabilities"):
        return {}
    data = experiment.data
    if "packed" in {field.name for field in dataclasses.fields(data)}:
        data = dataclasses.replace(data, packed=False)
    split = "test" if "test" in splits else splits[0]
    with tempfile.TemporaryDirectory(prefix="bertgpt-") as cache:
        batches = data.make(DataRequest(split, model.tokenizer, batch_size, cache=Path(cache)))
        outputs = [_outputs(opened, batches[index]) for index in range(len(batches))]
        result = data.evaluate(batches.dataset, concatenate_outputs(outputs, len(batches.dataset)))
    found = dict(result.values)
    for figure in result.figures:
        if isinstance(figure, Confusion):  # which tasks of one label have
            found = {"accuracy": float(np.trace(figure.counts) / figure.counts.sum())} | found
    return found


def _outputs(opened: Opened, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the objective of the run would predict. Columns that are padding in all rows are not computed."""
    width = padded_length(int((batch["segment_ids"] > 0).sum(axis=1).max()))
    batch = {name: array[:, :width] if name in INPUTS else array for name, array in batch.items()}
    if opened.output not in ("tags", "token_probabilities"):
        return {opened.output: opened.run({name: batch[name] for name in INPUTS if name in batch})}
    there, places = batch["chains"] > 0, batch["word_positions"]
    starts = np.zeros_like(batch["input_ids"])
    rows = np.broadcast_to(np.arange(len(places))[:, None], places.shape)
    starts[rows[there], places[there]] = 1
    fields = {name: batch[name] for name in INPUTS if name in batch}
    found = opened.run({**fields, "word_starts": starts})
    tags = found.argmax(-1) if opened.output == "token_probabilities" else found
    return {"tags": np.where(there, np.take_along_axis(tags, places, axis=1), -1)}


def answers_of(directory: Path, dtype: Dtype) -> Callable[[str], object]:
    """A function that reads a text and answers, by the way that its user goes."""
    if (directory / RUNNER).exists():
        module = import_runner(directory)
        return lambda text: module.run(**module.encode([text]))
    model = load(directory, dtype=dtype)
    if model.experiment is not None and isinstance(model.experiment.data, Task):
        fields = model.experiment.data.inputs
        return lambda text: next(predict(model, [dict.fromkeys(fields, text)], batch_size=1))
    if "classifier" in model.params:
        return lambda text: next(classify(model, [text], batch_size=1))
    if is_encoder(model):
        return lambda text: embed(model, [text], batch_size=1)
    opened = open_any(directory, model)

    def run(text: str) -> np.ndarray:
        ids = np.asarray(model.tokenizer.encode([text]), np.int32)
        start = np.full((1, 1), model.config.start_id or 0, np.int32)
        return opened.run({"input_ids": ids, "segment_ids": np.ones_like(ids), "decoder_input_ids": start})

    return run


def peak_memory() -> int:
    """Bytes of resident memory that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` also counts the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def repeat(answer: Callable[[str], object], text: str, repeats: int) -> None:
    """Answers again and again; prints a line after the first answer, and then the measurements as JSON."""
    answer(text)
    print("ready", flush=True)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer(text)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"memory": peak_memory(), "latency": statistics.median(seconds)}), flush=True)


def main() -> None:
    directory, text, repeats, dtype = sys.argv[1:5]
    repeat(answers_of(Path(directory), dtype), text, int(repeats))


if __name__ == "__main__":
    main()
