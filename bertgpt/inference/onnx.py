"""Encoders of the BERT family as ONNX, for onnxruntime: written directly, from the config and the parameters.

The graph uses ONNX's own LayerNormalization and Gelu (opset 20), which onnxruntime fuses further, and any batch and
length. Decoders and encoder–decoders are not written: without a cache they would be of little use, and Hugging Face's
tools export them from what `--format hf` writes.
"""

from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import DTypeLike

from bertgpt.convert.sentence_transformers import Dense, LayerNorm, Normalize, Pooling
from bertgpt.inference.embedding import own_embedder
from bertgpt.inference.encode import embedder_for
from bertgpt.inference.export import scaled_classifier, with_task_layers
from bertgpt.inference.model import Model
from bertgpt.inference.program import AXES, Wanted, program_of
from bertgpt.inference.runner import ONNX, reading, write_runner
from bertgpt.io.directories import new_directory
from bertgpt.layers.stack import layer_params
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.classify import ClassifyOrdinal, Regress
from bertgpt.objectives.multitask import OfTask
from bertgpt.types import LabelKind, Params, UserError

OPSET, IR_VERSION = 20, 9
"""the oldest that have Gelu, so that older runtimes read the file"""
INPUTS = {"input_ids": "input_ids", "segment_ids": "attention_mask", "type_ids": "token_type_ids"}
"""our names → those that users of ONNX files know"""
FILE = "model.onnx"
LARGEST = 2**31 - 2**24
"""bytes; larger weights lie in a file of their own, as the format demands"""
LOWEST = float(np.finfo(np.float32).min)


class Graph:
    """Nodes and initialisers of an ONNX graph. Values are referred to by name."""

    def __init__(self, onnx: ModuleType):
        """An empty graph. `onnx`: the package."""
        self.onnx, self.nodes, self.initializers = onnx, [], {}

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Adds a node with one output, whose name is returned."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(
        self, value: np.ndarray | float | tuple[int, ...], dtype: DTypeLike = np.float32, name: str | None = None
    ) -> str:
        """An array of the file, stored once under its name, or a small one, stored once for each value."""
        array = np.asarray(value, dtype, order="C")
        name = name or f"constant_{array.dtype}_{array.shape}_{array.tobytes().hex()}"
        if name not in self.initializers:
            self.initializers[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """A vector of int64: axes, shapes."""
        return self.constant(values, np.int64)

    def linear(self, x: str, params: Params, name: str, scale: float = 1.0) -> str:
        """x W + b, the axes of features as one, times `scale`."""
        kernel = params["kernel"].reshape(params["kernel"].shape[0], -1) * scale
        y = self.op("MatMul", x, self.constant(kernel, name=f"{name}/kernel"))
        if "bias" not in params:
            return y
        return self.op("Add", y, self.constant(params["bias"].reshape(-1) * scale, name=f"{name}/bias"))

    def norm(self, x: str, params: Params, name: str, eps: float) -> str:
        """Layer norm."""
        scale, bias = (self.constant(params[key], name=f"{name}/{key}") for key in ("scale", "bias"))
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)

    def activation(self, x: str, name: str) -> str:
        """An activation of `layers.mlp`, or of torch.nn as modules of sentence-transformers name it."""
        name = name.lower()
        if name in ("gelu", "gelu_tanh"):
            return self.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
        if name in ("silu", "quick_gelu"):
            inner = x if name == "silu" else self.op("Mul", x, self.constant(1.702))
            return self.op("Mul", x, self.op("Sigmoid", inner))
        kinds = {"relu": "Relu", "tanh": "Tanh", "identity": "Identity", "sigmoid": "Sigmoid", "elu": "Elu"}
        if name not in kinds:
            raise UserError(f"export: onnx: the activation {name} is not written")
        return self.op(kinds[name], x)

    def softmax(self, x: str) -> str:
        """Over the last axis."""
        return self.op("Softmax", x, axis=-1)


def export_onnx(model: Model, directory: Path, wanted: Wanted | None = None, drop_crf: bool = False) -> str:
    """Writes model.onnx, a manifest and the tokenizer.

    Inputs are int64 `input_ids`, `attention_mask` and, of models with token types, `token_type_ids`, as transformers'
    tokenizers give them; the output is what `program.program_of` says, of taggers the probabilities of each token's
    tags.

    Args:
      model: from `load(…, arrange="host")`.
      directory: a new directory.
      wanted: what to compute; None: what the model's head gives.
      drop_crf: write a tagger without its conditional random field, which changes its answers.

    Returns:
      A description of what was written.

    Raises:
      UserError: the directory is not empty, the package onnx is missing, or this cannot be written.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("export: onnx: the package is not installed; pip install 'bertgpt[onnx]'") from None
    if not isinstance(model.config, BertConfig):
        raise UserError(
            f"export: onnx: {type(model.config).__name__} is not of the BERT family; --format stablehlo writes any"
            " model, and docs/how-to/small-machines.md says how Hugging Face's tools write it"
        )
    program = program_of(model, wanted)
    if "crf" in model.params and program.output == "tags" and not drop_crf:
        raise UserError("export: crf: ONNX files hold no conditional random field here; --drop_crf leaves it out")
    output = "token_probabilities" if program.output == "tags" else program.output
    inputs = [name for name in program.inputs if name in INPUTS]
    graph = Graph(onnx)
    result = _output(graph, model, output, _encoder(graph, model.config, model.params, len(inputs) > 2))
    graph.nodes.append(onnx.helper.make_node("Identity", [result], [output]))
    proto = _proto(graph, inputs, output)
    facts = {
        "format": "onnx", "program": FILE, "opset": OPSET,
        "inputs": {INPUTS[name]: {"dtype": "int64", "axes": ["batch", "sequence"]} for name in inputs},
        "outputs": {output: {"dtype": "float32", "axes": list(AXES[output])}},
        "mask": "attention_mask", "reading": reading(model, program._replace(inputs=tuple(inputs))),
    }  # fmt: skip
    with new_directory(directory) as folder:
        large = sum(array.ByteSize() for array in graph.initializers.values()) > LARGEST
        onnx.save_model(proto, str(folder / FILE), save_as_external_data=large, location=f"{FILE}.data")
        onnx.checker.check_model(str(folder / FILE))
        write_runner(folder, model, ONNX, facts)
    return f"{type(model.config).__name__} as ONNX: {', '.join(facts['inputs'])} → {output}"


def _proto(graph: Graph, inputs: list[str], output: str) -> object:
    helper, types = graph.onnx.helper, graph.onnx.TensorProto
    sequences = [helper.make_tensor_value_info(INPUTS[name], types.INT64, ["batch", "sequence"]) for name in inputs]
    axes = [axis if axis in ("batch", "sequence") else None for axis in AXES[output]]
    results = [helper.make_tensor_value_info(output, types.FLOAT, axes)]
    body = helper.make_graph(graph.nodes, "bertgpt", sequences, results, list(graph.initializers.values()))
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION, producer_name="bertgpt")


def _encoder(graph: Graph, c: BertConfig, params: Params, typed: bool) -> str:
    """The hidden states H^L, as `models.bert.Bert` computes them."""
    g, tables = graph, params["embeddings"]
    x = g.op("Gather", g.constant(tables["token"], name="embeddings/token"), "input_ids")
    length = g.op("Shape", "input_ids", start=1, end=2)
    rows = g.constant(tables["position"][c.first_position :], name="embeddings/position")
    x = g.op("Add", x, g.op("Slice", rows, g.ints(0), length, g.ints(0)))
    if typed:
        x = g.op("Add", x, g.op("Gather", g.constant(tables["type"], name="embeddings/type"), "token_type_ids"))
    elif c.num_types:
        x = g.op("Add", x, g.constant(tables["type"][0], name="embeddings/type"))
    x = g.norm(x, tables["norm"], "embeddings/norm", c.norm_eps)
    if "embedding_projection" in params:
        x = g.linear(x, params["embedding_projection"], "embedding_projection")
    # Padding attends to padding, and nothing else does.
    query, key = (g.op("Unsqueeze", "attention_mask", g.ints(*axes)) for axes in ((1, 3), (1, 2)))
    mask = g.op("Equal", query, key)
    for layer in range(c.num_layers):
        if c.shared_groups is None:
            x = _block(g, c, layer_params(params["encoder"], layer), f"encoder/{layer}", x, mask)
        else:
            group = layer // (c.num_layers // c.shared_groups)
            x = _block(g, c, layer_params(params["encoder"], group)["block"], f"encoder/{group}", x, mask)
    return g.norm(x, params["final_norm"], "final_norm", c.norm_eps) if c.norm_position == "pre" else x


def _block(graph: Graph, c: BertConfig, params: Params, name: str, x: str, mask: str) -> str:
    """One Transformer block, as `layers.block.Block` computes it."""
    for sublayer, function in (("attention", _attention), ("mlp", _feed_forward)):

        def norm(y: str, sublayer: str = sublayer) -> str:
            return graph.norm(y, params[f"{sublayer}_norm"], f"{name}/{sublayer}_norm", c.norm_eps)

        inner = norm(x) if c.norm_position == "pre" else x
        y = function(graph, c, params[sublayer], f"{name}/{sublayer}", inner, mask)
        if c.adapter_dim is not None:
            own, where = params[f"{sublayer}_adapter"], f"{name}/{sublayer}_adapter"
            down = graph.activation(graph.linear(y, own["down"], f"{where}/down"), "gelu")
            y = graph.op("Add", y, graph.linear(down, own["up"], f"{where}/up"))
        x = graph.op("Add", x, y)
        x = x if c.norm_position == "pre" else norm(x)
    return x


def _attention(graph: Graph, c: BertConfig, params: Params, name: str, x: str, mask: str) -> str:
    g, width = graph, c.d_model // c.num_heads
    heads = []
    for part, axes in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        y = g.linear(x, params[part], f"{name}/{part}", width**-0.5 if part == "query" else 1.0)
        heads.append(g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, c.num_heads, width)), perm=axes))
    query, key, value = heads
    scores = g.op("Where", mask, g.op("MatMul", query, key), g.constant(LOWEST))
    mixed = g.op("Transpose", g.op("MatMul", g.softmax(scores), value), perm=(0, 2, 1, 3))
    return g.linear(g.op("Reshape", mixed, g.ints(0, 0, c.d_model)), params["out"], f"{name}/out")


def _feed_forward(graph: Graph, c: BertConfig, params: Params, name: str, x: str, mask: str) -> str:
    del mask
    return graph.linear(
        graph.activation(graph.linear(x, params["up"], f"{name}/up"), c.activation), params["down"], f"{name}/down"
    )


def _output(graph: Graph, model: Model, output: str, hidden: str) -> str:
    """The result of a program from the hidden states."""
    g, objective = graph, None if model.experiment is None else model.experiment.objective
    params = model.params
    if isinstance(objective, OfTask):
        params, objective = with_task_layers(params, objective.task), objective.objective
    if isinstance(objective, ClassifyOrdinal):
        raise UserError("export: onnx: the thresholds of ClassifyOrdinal are not written; --format stablehlo has them")
    if isinstance(objective, Regress):
        params = scaled_classifier(params, objective.scale)
    if output == "hidden_states":
        return hidden
    if output == "embedding":
        return _modules(g, model, hidden)
    if output == "token_probabilities":
        return g.softmax(g.linear(hidden, params["tagger"]["dense"], "tagger"))
    if output == "span_logits":
        return g.linear(hidden, params["span_head"]["dense"], "span_head")
    if output == "logits":
        return _mlm(g, model.config, params, hidden)
    logits = g.linear(_pooled(g, model.config, params, hidden), params["classifier"]["dense"], "classifier")
    kind: LabelKind = model.labels.kind
    if output == "value":
        return g.op("Squeeze", logits, g.ints(1))
    return g.op("Sigmoid", logits) if kind == "labels" else g.softmax(logits)


def _mlm(graph: Graph, c: BertConfig, params: Params, hidden: str) -> str:
    g, table = graph, params["embeddings"]["token"]
    transposed = g.op("Transpose", g.constant(table, name="embeddings/token"), perm=(1, 0))
    if c.mlm_head == "plain":
        return g.op("MatMul", hidden, transposed)
    head = params["mlm_head"]
    inner = g.activation(g.linear(hidden, head["dense"], "mlm_head/dense"), c.activation)
    inner = g.norm(inner, head["norm"], "mlm_head/norm", c.norm_eps)
    return g.op("Add", g.op("MatMul", inner, transposed), g.constant(head["bias"], name="mlm_head/bias"))


def _mean(graph: Graph, hidden: str) -> str:
    real = graph.op("Cast", graph.op("Unsqueeze", "attention_mask", graph.ints(2)), to=graph.onnx.TensorProto.FLOAT)
    total = graph.op("ReduceSum", graph.op("Mul", hidden, real), graph.ints(1), keepdims=0)
    count = graph.op("Max", graph.op("ReduceSum", real, graph.ints(1), keepdims=0), graph.constant(1.0))
    return graph.op("Div", total, count)


def _first(graph: Graph, hidden: str) -> str:
    return graph.op("Gather", hidden, graph.constant(0, np.int64), axis=1)


def _pooled(graph: Graph, c: BertConfig, params: Params, hidden: str) -> str:
    """The vector of a sequence, as `models.bert.Bert.pool` gives it."""
    if c.pooler == "mean":
        return _mean(graph, hidden)
    first = _first(graph, hidden)
    if c.pooler == "first":
        return first
    return graph.activation(graph.linear(first, params["pooler"], "pooler"), c.pooler.removeprefix("dropout_"))


def _modules(graph: Graph, model: Model, hidden: str) -> str:
    """The vector of a text, as `embedding.run_modules` gives it."""
    g, embedder = graph, embedder_for(model, None)
    values = {"token_embeddings": hidden}
    for number, (module, own) in enumerate(zip(embedder.modules, embedder.params, strict=True)):
        where = f"modules/{number}"
        if isinstance(module, Pooling):
            if module.modes not in (("mean",), ("cls",)):
                raise UserError(f"export: onnx: pooling {', '.join(module.modes)} is not written")
            values["sentence_embedding"] = _mean(g, hidden) if module.modes == ("mean",) else _first(g, hidden)
            continue
        x = values[module.source]
        if isinstance(module, Dense):
            y = g.activation(g.linear(x, own, where), module.activation)
            if module.residual:
                kept = (
                    g.op("MatMul", x, g.constant(own["residual"], name=f"{where}/residual")) if "residual" in own else x
                )
                y = g.op("Add", y, kept)
            values[module.source] = y
        elif isinstance(module, LayerNorm):
            values[module.source] = g.norm(x, own, where, 1e-5)
        elif isinstance(module, Normalize):
            values[module.source] = _normalized(g, x)
    result = values["sentence_embedding"]
    if embedder.truncate_dim is not None:
        result = g.op("Slice", result, g.ints(0), g.ints(embedder.truncate_dim), g.ints(1))
    return result if own_embedder(model) is not None else _normalized(g, result)


def _normalized(graph: Graph, x: str) -> str:
    norm = graph.op("ReduceL2", x, graph.ints(-1), keepdims=1)
    return graph.op("Div", x, graph.op("Max", norm, graph.constant(1e-12)))
