"""Models on one core of a small machine: size, memory, cold start, latency of one sentence, accuracy.

Each contender is measured in processes of its own, bound to one core, several times by turns; the medians count. One
fine-tuned run is measured in bertgpt in float32, bfloat16 and 8 bits, as a StableHLO file, as an ONNX file in
onnxruntime, there with onnxruntime's own 8-bit weights too, and in transformers with torch. Other models, such as
distilled and pruned ones, are further rows.
Cold start is the time from the start of the process to its first answer, with nothing compiled before. Accuracy is that
of the task on its whole test set.

    python -m benchmarks.edge --run runs/sentiment runs/slots --also distilled=runs/student pruned=runs/pruned \\
        --peer_python PYTHON_WITH_TORCH_AND_TRANSFORMERS

Rows of --also stand in the table of each run whose task they share.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import RESULTS, machine

ROOT = Path(__file__).parent.parent
TEXTS = {
    "label": "a warm and funny film whose ending i did not see coming",
    "tag": "show me flights from boston to new york",
}
THREADS = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}
SCORES = ("accuracy", "f1")
"""metrics of tasks; the first that a task has is shown"""


# -- transformers, in the peer's interpreter --------------------------------------------------------------------------


def peer_model(directory: str) -> tuple[Any, Any, Callable[[dict], np.ndarray]]:
    """(torch, tokenizer, arrays → probabilities) of a Hugging Face directory."""
    import torch
    import transformers

    torch.set_num_threads(1)
    config = transformers.AutoConfig.from_pretrained(directory)
    kind = "TokenClassification" if "Token" in config.architectures[0] else "SequenceClassification"
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(directory).eval()

    def run(arrays: dict[str, Any]) -> np.ndarray:
        with torch.inference_mode():
            return model(**arrays).logits.softmax(-1).numpy()

    return torch, transformers.AutoTokenizer.from_pretrained(directory), run


def peer_latency(directory: str, text: str, repeats: str) -> None:
    """As `bertgpt.inference.footprint` does, whose package is not imported here."""
    _, tokenizer, run = peer_model(directory)

    def answer() -> None:
        run(dict(tokenizer([text.split()], is_split_into_words=True, return_tensors="pt")))

    answer()
    print("ready", flush=True)
    seconds = []
    for _ in range(int(repeats)):
        start = time.perf_counter()
        answer()
        seconds.append(time.perf_counter() - start)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmHWM"].split()[0]) * 1024
    print(json.dumps({"memory": memory, "latency": statistics.median(seconds)}), flush=True)


def peer_answers(directory: str, folder: str) -> None:
    """For each line on standard input: folder/asked.npz → folder/found.npy."""
    torch, _, run = peer_model(directory)
    for _ in sys.stdin:
        with np.load(Path(folder, "asked.npz")) as asked:
            arrays = {name: torch.from_numpy(asked[name].astype(np.int64)) for name in asked}
        np.save(Path(folder, "found.npy"), run(arrays))
        print("done", flush=True)


# -- measuring --------------------------------------------------------------------------------------------------------


def write_formats(run: Path, folder: Path, peer: str | None, failed: dict[str, str]) -> dict[str, tuple[Path, str]]:
    """Name of a contender → (its directory, how it computes); in `failed`, why transformers has no such model."""
    import onnx  # noqa: F401  # fails here rather than after minutes
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from bertgpt.inference.export import to_hugging_face
    from bertgpt.inference.int8 import export_int8
    from bertgpt.inference.model import load
    from bertgpt.inference.onnx import export_onnx
    from bertgpt.inference.stablehlo import export_stablehlo
    from bertgpt.types import UserError

    model, paths = load(run, arrange="host"), {name: folder / name for name in ("int8", "hlo", "onnx", "onnx8", "hf")}
    export_int8(model, paths["int8"])
    export_stablehlo(load(run), paths["hlo"], platforms=("cpu",))
    export_onnx(model, paths["onnx"], drop_crf=True)
    shutil.copytree(paths["onnx"], paths["onnx8"])
    (paths["onnx8"] / "model.onnx").unlink()
    quantize_dynamic(
        paths["onnx"] / "model.onnx", paths["onnx8"] / "model.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    found = {
        "bertgpt float32": (run, "float32"),
        "bertgpt bfloat16": (run, "bfloat16"),
        "bertgpt int8": (paths["int8"], "float32"),
        "StableHLO, float32": (paths["hlo"], "float32"),
        "onnxruntime, float32": (paths["onnx"], "float32"),
        "onnxruntime, its int8": (paths["onnx8"], "float32"),
    }
    if peer is not None:
        name = "transformers, torch float32"
        try:
            to_hugging_face(model, paths["hf"], None, drop_crf=True)
            found[name] = (paths["hf"], "peer")
        except UserError as error:
            failed[name] = str(error)
    return found


def measure_once(directory: Path, how: str, text: str, repeats: int, peer: str | None) -> dict[str, float]:
    """One turn of a contender: memory, cold start, latency."""
    from bertgpt.inference.footprint import measure, run_child

    if how != "peer":
        return measure(directory, text, repeats, how)._asdict()
    command = [peer, "-m", "benchmarks.edge", "peer_latency", str(directory), text, str(repeats)]
    memory, cold_start, latency = run_child(command, str(directory))
    return {"memory": memory, "cold_start": cold_start, "latency": latency}


def score(source: Any, directory: Path, how: str, peer: str | None) -> dict[str, float]:
    """The task's scores on its test set."""
    from bertgpt.inference.footprint import Opened, open_any, scores_on_test
    from bertgpt.inference.model import load

    if how != "peer":
        if (directory / "run.py").exists():
            return scores_on_test(source, open_any(directory))
        model = load(directory, dtype=how)
        return scores_on_test(model, open_any(directory, model))
    kind = source.run.data.label_set.kind
    with tempfile.TemporaryDirectory() as folder:
        command = [peer, "-m", "benchmarks.edge", "peer_answers", str(directory), folder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ours = {"input_ids": "input_ids", "segment_ids": "attention_mask", "type_ids": "token_type_ids"}

        def run(fields: dict[str, np.ndarray]) -> np.ndarray:
            np.savez(Path(folder, "asked.npz"), **{ours[name]: fields[name] for name in ours})
            print("go", file=process.stdin, flush=True)
            if not process.stdout.readline():
                raise RuntimeError(f"{peer}: ended while it scored {directory}")
            return np.load(Path(folder, "found.npy"))

        try:
            return scores_on_test(source, Opened("token_probabilities" if kind == "tag" else "probabilities", run))
        finally:
            process.kill()
            process.wait()


def measure_run(run: Path, also: dict[str, Path], rounds: int, repeats: int, peer: str | None) -> dict[str, Any]:
    """The record of one run and of further models for its task."""
    from bertgpt.inference.footprint import size_of
    from bertgpt.inference.model import load

    source = load(run)
    text = TEXTS["tag" if source.run.data.label_set.kind == "tag" else "label"]
    rows: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        contenders = write_formats(run, Path(folder), peer, failed)
        contenders |= {f"bertgpt {name}": (path, "float32") for name, path in also.items()}
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, (directory, how) in contenders.items():
                if name not in failed:
                    try:
                        turns[name].append(measure_once(directory, how, text, repeats, peer))
                    except (ValueError, OSError) as error:
                        failed[name] = str(error)
        for name, (directory, how) in contenders.items():
            if name in failed:
                continue
            found = score(source, directory, how, peer)
            metric = next((metric for metric in SCORES if metric in found), None)
            keys = ("memory", "cold_start", "latency")
            rows[name] = {key: statistics.median(turn[key] for turn in turns[name]) for key in keys}
            rows[name] |= {"size": size_of(directory), "metric": metric, "score": found.get(metric), "scores": found}
            rows[name]["all_latencies"] = [turn["latency"] for turn in turns[name]]
            print(f"  {source.name}: {name}: {rows[name]}", file=sys.stderr)
    return {"case": {"run": source.name, "text": text, "rounds": rounds}, "contenders": rows, "failed": failed}


def text(record: dict[str, Any]) -> str:
    """The table of one run."""
    rows = record["contenders"]
    metric = next((row["metric"] for row in rows.values() if row["metric"]), "score")
    lines = [
        f"**edge**: {record['case']['run']}, one core", "",
        f"| | MB on disk | MB of memory | cold start, s | one sentence, ms | {metric} |",
        "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in rows.items():
        costs = f"{row['size'] / 1e6:.1f} | {row['memory'] / 1e6:.0f} | {row['cold_start']:.1f}"
        value = "" if row["score"] is None else f"{row['score']:.4f}"
        lines.append(f"| {name} | {costs} | {row['latency'] * 1e3:.2f} | {value} |")
    lines += [f"| {name} | did not run: {why} | | | | |" for name, why in record["failed"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run", nargs="+", type=Path, required=True, help="runs of a classifier or tagger")
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="NAME=DIR", help="further runs, such as distilled ones"
    )
    parser.add_argument("--peer_python", help="interpreter that has torch and transformers; default: without them")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each contender (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=100, help="answers of each process (default: %(default)s)")
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the core (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON (default: %(default)s)")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    os.environ |= THREADS | {"PYTHONPATH": str(ROOT)}
    from bertgpt.inference.model import load

    further = [(name, Path(path)) for name, _, path in (item.partition("=") for item in args.also)]
    tasks = [type(load(path).run.data) for _, path in further]
    records = []
    for run in args.run:
        kind = type(load(run).run.data)
        own = {name: path for (name, path), task in zip(further, tasks, strict=True) if task is kind}
        records.append(measure_run(run, own, args.rounds, args.repeats, args.peer_python))
        print(text(records[-1]))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "onnxruntime")}
    result = {
        "kind": "edge", "date": datetime.date.today().isoformat(), "machine": machine() | {"cores": 1},
        "versions": versions, "records": records,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "edge-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("peer_latency", "peer_answers"):
        globals()[sys.argv[1]](*sys.argv[2:])
    else:
        main()
