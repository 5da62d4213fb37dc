"""Kills runs at random moments, and compares what they end with: python -m benchmarks.faults --kills 50 --processes 1 2

A small BERT is trained on text made here: its tokenizer is trained, its text prepared, a checkpoint written at every
second step, and two evaluations run at the end. After one run that nobody disturbs, the same run is started again and
again, killed (SIGKILL) at a random moment after it has opened its directory, and started again, until it ends. Of
several processes one or all are killed, and the others must end by themselves. Then the parameters, the optimiser state
and the lines of metrics.jsonl must be those of the first run, bit for bit, and nothing may be left over.

Processes are forked from one that has imported the packages, to save time. Writes benchmarks/faults.json.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from bertgpt.config import TEST, VALIDATION, Experiment, to_json
from bertgpt.data.tokenizer import WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.training.log import read_metrics
from bertgpt.training.optim import AdamW
from bertgpt.types import JsonObject

NAME = "faults"
STEPS = 12
KILLS_A_RUN = 8
"""then the run may end"""
ALL_KILLED = 0.75
"""share of kills that hit all processes. If one is left, it takes half a minute to notice"""
TIMEOUT = 300.0
"""seconds in which a process must open its run directory, and a run must end"""
SURVIVOR = 90.0
"""seconds in which the others must notice that a process is gone"""
TIMES = {"time", "tokens_per_second", "matmul_utilisation", "data_wait", "save_wait"}
WORDS = "the cat dog house runs eats sleeps under tree river and big small green blue bird sings of in a".split()
PACKAGES = ["bertgpt.cli.main", "bertgpt.training.loop", "bertgpt.cli.train", "bertgpt.models.bert", "tensorboardX"]


def experiment(folder: Path) -> Experiment:
    """What is run; its text is written into `folder`."""
    pick = random.Random(0).choice
    sentences = (" ".join(pick(WORDS) for _ in range(8)) + "." for _ in range(1200))
    (folder / "text.txt").write_text("\n\n".join(" ".join((a, b)) for a, b in zip(sentences, sentences, strict=True)))
    return Experiment(
        name=NAME,
        model=BertConfig(vocab_size=300, d_model=64, num_layers=2, num_heads=4, d_ff=256, max_len=32, scan=True),
        objective=MaskedLM(pair="nsp"),
        data=Corpus(str(folder / "text.txt"), WordPiece(300), seq_len=32, validation=0.2, test=0.2),
        optim=AdamW(lr=1e-3, warmup_steps=2),
        steps=STEPS,
        batch_size=16,
        evals=(VALIDATION, TEST),
        log_every=3,
        save_every=2,
    )


def write_file(path: Path, value: Experiment) -> Path:
    """An experiment as a file for the command line."""
    path.write_text(
        f"import json\nfrom bertgpt.config import from_json\n"
        f"def experiment():\n    return from_json(json.loads({json.dumps(json.dumps(to_json(value)))}))\n"
    )
    return path


def work(arguments: list[str], output: str) -> None:
    """A process: `bertgpt ARGUMENTS`, whose output goes to a file."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    from bertgpt.cli.main import main

    sys.argv = ["bertgpt", *arguments]
    sys.exit(main(arguments))


class Group:
    """The processes of a run."""

    def __init__(self, file: Path, workdir: Path, count: int):
        context = multiprocessing.get_context("forkserver")
        with socket.socket() as found:
            found.bind(("", 0))
            port = found.getsockname()[1]
        self.workdir, self.processes = workdir, []
        for number in range(count):
            arguments = ["train", str(file), "--workdir", str(workdir)]
            if count > 1:
                arguments += [
                    "--distributed.coordinator",
                    f"localhost:{port}",
                    "--distributed.num_processes",
                    str(count),
                ]
                arguments += ["--distributed.process_id", str(number)]
            output = str(workdir.parent / f"output.{number}")
            self.processes.append(context.Process(target=work, args=(arguments, output)))
            self.processes[-1].start()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float) -> bool:
        """Waits for the end of all. Whether they have ended."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0))
        return not self.alive()

    def wait_until_begun(self) -> None:
        """Waits until the run directory is open, or all have ended."""
        deadline = time.monotonic() + TIMEOUT
        while self.alive() and not (self.workdir / NAME / ".training.lock").exists():
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the run has not begun after {TIMEOUT} s; see {self.workdir.parent}/output.0")
            time.sleep(0.005)

    def kill(self, victims: list[int] | None = None) -> None:
        for number in range(len(self.processes)) if victims is None else victims:
            self.processes[number].kill()
            self.processes[number].join()

    def codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]


def moment(run: Path) -> str:
    """What a run was doing when it was killed, by what is on disk."""
    saved = run / "checkpoints"
    names = [path.name for path in saved.iterdir()] if saved.is_dir() else []
    said = (run / "train.log").read_text() if (run / "train.log").exists() else ""
    if any(re.match(r"\.\d+\.", name) for name in names):
        return "inside a save"
    if (run / "results.json").exists():
        return "after the end"
    if str(STEPS) in names:
        return "final evaluation"
    if not (run / "inputs.json").exists():
        return "preparation"
    if "parameters trained on" not in said.rpartition("stopped by")[2] or not names:
        return "compilation and first steps"
    return "training"


def outcome(workdir: Path) -> JsonObject:
    """What a run has ended with."""
    run = workdir / NAME
    checkpoints = Checkpoints(run)
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        [checkpoints.read(item, STEPS) for item in ("params", "opt")]
    ):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run / "metrics.jsonl")]
    hidden = [str(path.relative_to(run)) for path in run.rglob(".*")]
    return {"digest": digest.hexdigest(), "lines": sorted(lines, key=json.dumps), "left over": hidden}


def survive(kills: int, count: int, folder: Path, seed: int = 0) -> Iterator[JsonObject]:
    """Kills runs of `count` processes this many times, and yields the counts so far after each run.

    Args:
      kills: how often.
      count: number of processes.
      folder: for the runs.
      seed: of the moments.

    Yields:
      Counts, by moment too; the runs that did not end as the undisturbed one are named in "failures".
    """
    pick = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    value = experiment(folder)
    file = write_file(folder / "experiment.py", value)
    for name in ("compiling", "whole"):  # the second time without compilation, as in the runs that are killed
        whole = folder / name
        group = Group(file, whole, count)
        group.wait_until_begun()
        start = time.monotonic()
        while group.alive() and not (whole / NAME / "results.json").exists():
            time.sleep(0.01)
        length = time.monotonic() - start
        if not group.wait(TIMEOUT) or any(group.codes()):
            group.kill()
            raise RuntimeError(f"the undisturbed run failed ({group.codes()}); see {folder}/output.0")
    expected = outcome(whole)
    moments: collections.Counter[str] = collections.Counter()
    facts: JsonObject = {"processes": count, "runs": 0, "survived": 0, "kills": 0, "failures": [], "seconds": length}
    if count > 1:
        facts |= {"one killed": 0, "all killed": 0, "the others ended after at most s": 0.0}
    while facts["kills"] < kills:
        workdir, killed = folder / f"run{facts['runs']}", 0
        facts["runs"] += 1
        trouble = None
        while trouble is None:
            group = Group(file, workdir, count)
            group.wait_until_begun()
            if killed < KILLS_A_RUN and facts["kills"] < kills:
                group.wait(pick.uniform(0, length))
            if killed == KILLS_A_RUN or facts["kills"] == kills or not group.alive():
                if not group.wait(TIMEOUT):
                    group.kill()
                    trouble = f"did not end within {TIMEOUT} s"
                elif any(group.codes()):
                    trouble = f"exit codes {group.codes()}"
                break
            everybody = count == 1 or pick.random() < ALL_KILLED
            victims = list(range(count)) if everybody else [pick.randrange(count)]
            group.kill(victims)
            moments[moment(workdir / NAME)] += 1
            killed += 1
            facts["kills"] += 1
            if count > 1:
                facts["all killed" if everybody else "one killed"] += 1
                start = time.monotonic()
                if not group.wait(SURVIVOR):
                    group.kill()
                    trouble = f"process {victims} was killed, and the others have not ended after {SURVIVOR} s"
                waited = time.monotonic() - start
                facts["the others ended after at most s"] = max(facts["the others ended after at most s"], waited)
        if trouble is None:
            found = outcome(workdir)
            trouble = next((f"{part} differ" for part in expected if found[part] != expected[part]), None)
        facts["failures" if trouble else "survived"] += [f"{workdir}: {trouble}"] if trouble else 1
        print(f"{facts['kills']} of {kills} kills, {facts['runs']} runs, {trouble or 'the same bits'}", flush=True)
        yield facts | {"moments": dict(moments)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="keeps the runs here")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder)
        results = json.loads(options.out.read_text()) if options.out.exists() else {}
        for count in options.processes:
            for facts in survive(options.kills, count, folder / str(count)):
                results[f"{count} processes"] = facts
                options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    sys.exit(any(facts["failures"] for facts in results.values()))


def prepare(folder: Path) -> None:
    """Starts the process that the others are forked from. Compiled programs are kept in `folder`."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_platforms", "cpu")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PACKAGES)


if __name__ == "__main__":
    main()
