"""The runner that lies beside an exported program: reads texts and runs the program without bertgpt."""

import importlib.metadata
from pathlib import Path

from bertgpt.data.packing import template_of
from bertgpt.inference.embedding import lowercased, own_embedder
from bertgpt.inference.encode import embedder_for
from bertgpt.inference.model import Model
from bertgpt.inference.program import Program
from bertgpt.io.files import write_json
from bertgpt.types import JsonObject

MANIFEST, RUNNER, TOKENIZER = "manifest.json", "run.py", "tokenizer/tokenizer.json"

HEAD = '''\
"""Runs this model: python run.py TEXT [TEXT ...]. Needs {packages}, nothing else."""
import json, pathlib, sys
import numpy as np

HERE = pathlib.Path(__file__).parent
FACTS = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
'''

STABLEHLO = (
    HEAD.format(packages="jax, flatbuffers, numpy and, for texts, tokenizers")
    + """\
import jax
from jax import export

PROGRAM = jax.jit(export.deserialize(bytearray((HERE / FACTS["program"]).read_bytes())).call)
DATA = np.memmap(HERE / FACTS["weights"], mode="r")  # of safetensors: the length of a header, the header, the arrays
START = 8 + int(DATA[:8].view("<u8")[0])
TYPES = {"F32": np.float32, "I8": np.int8}
HEADER = {name: x for name, x in json.loads(bytes(DATA[8:START])).items() if name != "__metadata__"}
ARRAYS = {name: DATA[START + x["data_offsets"][0] : START + x["data_offsets"][1]] for name, x in HEADER.items()}
WEIGHTS = jax.device_put(
    {name: np.array(ARRAYS[name]).view(TYPES[x["dtype"]]).reshape(x["shape"]) for name, x in HEADER.items()}
)


def run(**inputs):
    if (length := inputs["input_ids"].shape[1]) > FACTS["longest"]:
        raise ValueError(f"a sequence of {length} tokens exceeds the model's {FACTS['longest']}")
    return np.asarray(PROGRAM(WEIGHTS, *(inputs[name] for name in FACTS["inputs"])))
"""
)

ONNX = (
    HEAD.format(packages="onnxruntime, numpy and, for texts, tokenizers")
    + """\
import os

import onnxruntime

OPTIONS = onnxruntime.SessionOptions()
if hasattr(os, "sched_getaffinity"):  # onnxruntime counts cores that the process may not use
    OPTIONS.intra_op_num_threads = len(os.sched_getaffinity(0))
PROVIDERS = onnxruntime.get_available_providers()
SESSION = onnxruntime.InferenceSession(str(HERE / FACTS["program"]), OPTIONS, providers=PROVIDERS)


def run(**inputs):
    if (length := inputs["input_ids"].shape[1]) > FACTS["longest"]:
        raise ValueError(f"a sequence of {length} tokens exceeds the model's {FACTS['longest']}")
    return SESSION.run(None, {name: inputs[name] for name in FACTS["inputs"]})[0]
"""
)

TEXTS = """

def encode(texts):  # -> {name of an input: [texts, longest]}
    import tokenizers

    how, tokenizer = FACTS["reading"], tokenizers.Tokenizer.from_file(str(HERE / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding(), tokenizer.no_truncation()
    tokenizer.encode_special_tokens = not how["parse_special"]
    rows = []
    for text in texts:
        parts = text.split() if how["words"] else [how["prompt"] + text]
        parts = [tokenizer.encode(part, add_special_tokens=False).ids for part in parts]
        ids, starts = [i for part in parts for i in part], [int(k == 0) for part in parts for k in range(len(part))]
        room = how["max_len"] - len(how["before"]) - len(how["after"])
        rows.append([[*how["before"], *ids[:room], *how["after"]], [0] * len(how["before"]) + starts[:room]])
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    found = {name: np.zeros(shape, facts["dtype"]) for name, facts in FACTS["inputs"].items()}
    for number, (ids, starts) in enumerate(rows):
        found["input_ids"][number, : len(ids)], found[FACTS["mask"]][number, : len(ids)] = ids, 1
        if "word_starts" in found:
            found["word_starts"][number, : len(starts)] = starts
    return found


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    for row in run(**encode(sys.argv[1:])):
        print(json.dumps(row.tolist()))
"""
"""The part that reads texts; only for tokenizers that the package tokenizers reads"""


def write_runner(folder: Path, model: Model, loader: str, facts: JsonObject) -> None:
    """Writes manifest.json, the tokenizer and run.py.

    Args:
      folder: an existing folder.
      model: what was exported.
      loader: the part of run.py that runs the program, `STABLEHLO` or `ONNX`.
      facts: what the manifest says beside the model and its labels.
    """
    own = {"model": model.name, "architecture": type(model.config).__name__, "labels": list(model.labels.shown)}
    own |= {"longest": model.config.max_len, "bertgpt": importlib.metadata.version("bertgpt")}
    write_json(folder / MANIFEST, facts | own)
    if model.tokenizer is not None:
        model.tokenizer.save(folder / "tokenizer")
        own_modules = own_embedder(model)
        if own_modules is not None and own_modules.lowercase:
            lowercased(model.tokenizer.backend).save(str(folder / TOKENIZER))
    readable = facts["reading"] is not None and (folder / TOKENIZER).exists()
    (folder / RUNNER).write_text(loader + (TEXTS if readable else ""), encoding="utf-8")


def reading(model: Model, program: Program) -> JsonObject | None:
    """How texts become the program's arguments: what a runner must know, as JSON.

    Returns:
      before, after: ids around a text; max_len: tokens at most, with these; parse_special: whether
      “[MASK]” in a text is the special token; prompt: text before each text; words: whether each word is tokenised by
      itself. None if there is no tokenizer, or one of SentencePiece, or if a decoder reads a text of its own.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.spiece is not None or "decoder_input_ids" in program.inputs:
        return None
    before, after = tokenizer.template
    if model.experiment is not None:  # decoders' own tokenizers add nothing, but their data does
        frame = template_of(tokenizer.vocab)
        before, after = list(frame.start), [frame.end]
    limits: list[int | None] = [model.config.max_len]
    if model.experiment is not None:
        limits.append(model.experiment.data.seq_len)
    prompt, parse_special = "", False
    if program.output == "embedding":
        embedder = embedder_for(model, None)
        limits.append(embedder.max_tokens)
        prompt, parse_special = embedder.prompt(None, None), embedder.parse_special
    if program.output == "logits":
        parse_special = True
        after = [] if model.config.architecture == "decoder" else after
    return {
        "before": list(map(int, before)), "after": list(map(int, after)),
        "max_len": min(limit for limit in limits if limit), "parse_special": parse_special, "prompt": prompt,
        "words": program.output == "tags",
    }  # fmt: skip
