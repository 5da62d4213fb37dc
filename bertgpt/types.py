"""Every contract between parts: small Protocols and frozen structs. What is not declared here may not be probed for.

Who hands what to whom:

  DataConfig.make(DataRequest) → Batches of a Dataset, which declares a BatchSpec and its DataWarnings
  ObjectiveConfig.make(Vocab) → Objective, which declares what it needs of a batch
  ModelConfig.make(dtype) → a flax module, which `Apply` runs on `Inputs`
  Task.evaluate(dataset, outputs) → EvalResult of Metrics, tables and figures

Protocols with default methods are subclassed by configs, so that no caller asks whether a method exists. This module
imports no jax: workers that prepare text start without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key, UInt8

    from bertgpt.data.loader import Batches
    from bertgpt.data.tokenizer import Tokenizer

Split = Literal["train", "validation", "test"]
Architecture = Literal["encoder", "decoder", "encoder_decoder"]
Params = Any
"""A pytree of arrays, nested dicts of parameters by name."""
Batch = dict[str, Any]
"""Field name → array; which fields, a `BatchSpec` says."""
JsonObject = dict[str, Any]
"""An object of a JSON file, or a record of any file."""


class UserError(ValueError):
    """A mistake its user can mend: one line that names the file, line or field. The CLI prints it and exits with 2."""


# -- models -----------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """What a model reads: the only positional argument of every model. B sequences of S tokens.

    Give `input_ids` or `embeds`. All other fields are optional; a model ignores those that it has no use for (a
    decoder has no token types). A new kind of input is a field here.
    """

    input_ids: Int[Array, "B S"] | None = None
    """token ids"""
    segment_ids: Int[Array, "B S"] | None = None
    """document of each token in a packed sequence, 1, 2, …; 0 is padding. None: one document, no padding"""
    positions: Int[Array, "B S"] | None = None
    """position of each token in its document, from 0. None: 0 … S − 1"""
    type_ids: Int[Array, "B S"] | None = None
    """token types (sentence A or B). None: all 0"""
    embeds: Float[Array, "B S D"] | None = None
    """vectors in place of embedded tokens, before positions and types are added"""
    prefix: Float[Array, "B P D"] | None = None
    """vectors placed before the tokens, such as image patches, as wide as `embeds`: they take positions 0 … P − 1 and
    segment 1, and tokens follow at P. Hidden states of the S tokens alone are returned. Not for packed sequences"""
    bidirectional: Bool[Array, "B S"] | None = None
    """decoders: tokens that all of their document may attend to, even those before them (the prefix of a prefix LM)"""
    images: UInt8[Array, "B F H W C"] | Float[Array, "B F H W C"] | None = None
    """pixels of F frames, 1 for a still image: uint8, which the model normalises, or numbers that are normalised"""
    decoder: Inputs | None = None
    """encoder–decoders: what the decoder reads"""


@runtime_checkable
class Apply(Protocol):
    """Runs a model: `apply(params, inputs)` gives hidden states, `apply(params, method="mlm_logits", hidden=h)` logits.

    Args:
      params: parameters; None while the model is initialised.
      inputs: what `__call__` reads; None for other methods.
      method: name of the model's method.
      rng: key for dropout; None turns dropout off.
      auxiliary: name of a collection that layers write to; the result is then (output, collection, {} if empty). Of
        several names, (output, name → collection).
      task: name of the task whose own head layers are used, where several tasks share a model.
      named: arguments of other methods, by name.
    """

    def __call__(
        self,
        params: Params,
        inputs: Inputs | None = None,
        *,
        method: str = "__call__",
        rng: Key[Array, ""] | None = None,
        auxiliary: str | tuple[str, ...] | None = None,
        task: str | None = None,
        **named: Any,
    ) -> Any: ...


@runtime_checkable
class ModelConfig(Protocol):
    """A frozen dataclass that describes an architecture. Configs subclass it and inherit the defaults."""

    architecture: ClassVar[Architecture]
    vocab_size: int
    """rows of the embedding table; at least the tokens of the tokenizer"""
    max_len: int
    """longest sequence"""

    @property
    def num_types(self) -> int:
        """Token types that the model distinguishes; 0 and 1 mean none."""
        return 1

    @property
    def start_id(self) -> int | None:
        """The token that the decoder of an encoder–decoder starts with; None for other architectures."""
        return None

    @property
    def image_shape(self) -> tuple[int, int, int, int] | None:
        """Frames, height, width and channels of the images that it reads; None: it reads none."""
        return None

    @property
    def outputs(self) -> frozenset[str]:
        """Methods of the module that callers may use besides `__call__`, such as "mlm_logits"."""
        ...

    @property
    def stacks(self) -> tuple[str, ...]:
        """Paths of parameters that have a leading axis of layers."""
        ...

    @property
    def main(self) -> ModelConfig:
        """The network that is kept after pretraining: of ELECTRA the discriminator, else the model itself."""
        return self

    def networks(self, params: Params) -> Mapping[str, tuple[ModelConfig, Params]]:
        """Name → config and parameters of each network, if the model consists of several; {} otherwise."""
        del params
        return {}

    def make(self, dtype: str = "float32") -> Any:
        """The flax module, computing in `dtype`."""
        ...


# -- batches ----------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One array of a batch."""

    dtype: str
    """numpy's name of its type"""
    axes: tuple[str, ...] = ("batch", "sequence")
    """names of its axes; the first is "batch". Others: "sequence", "target" (tokens of a decoder), "segment" (of a
    packed sequence), "text" (of a pair), "choice", "label", "word", "masked", and those of IMAGE_SPEC"""
    pad: int | float = 0
    """value in examples that only fill up the last batch of an evaluation, −1 where that means “ignore”"""
    counts_tokens: bool = False
    """nonzero entries are tokens that are not padding: what throughput counts"""


BatchSpec = Mapping[str, Field]
"""Field name → what its array is like. Datasets declare one; objectives declare what they need of it."""

TEXT_SPEC: BatchSpec = {
    "input_ids": Field("int32"),
    "segment_ids": Field("int32", counts_tokens=True),
    "positions": Field("int32"),
    "type_ids": Field("int32"),
}
"""The fields of every text: see `Inputs`."""

TARGET_SPEC: BatchSpec = {
    "target_ids": Field("int32", ("batch", "target")),
    "target_segment_ids": Field("int32", ("batch", "target")),
    "target_positions": Field("int32", ("batch", "target")),
}
"""What the decoder of an encoder–decoder reads and predicts, beside the encoder's TEXT_SPEC."""

MASK_SPEC: BatchSpec = {"target_mask": Field("int32")}
"""Nonzero for the tokens of an input that are targets."""

IMAGE_SPEC: BatchSpec = {"images": Field("uint8", ("batch", "frame", "height", "width", "channel"))}
"""The pixels of the image, or of the frames, that belong to each text: see `Inputs`."""

PAIR_SPEC: BatchSpec = {
    "image_id": Field("int32", ("batch",), pad=-1),
    "text_id": Field("int32", ("batch",), pad=-1),
}
"""Numbers of the image and of the text of a pair; of equal ones the same."""

Pixels = Callable[["Int[np.ndarray, ' B']"], "UInt8[np.ndarray, 'B F H W C']"]
"""indices of examples → their pixels, read when they are asked for"""


def prefixed(spec: BatchSpec, name: str) -> BatchSpec:
    """The spec of a batch in which the fields of task `name` are called `<name>/<field>`."""
    return {f"{name}/{field}": declared for field, declared in spec.items()}


# -- objectives -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Vocab:
    """What an objective must know of a tokenizer: its size and its special ids, as far as it has them."""

    size: int
    pad: int | None = None
    unk: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    bos: int | None = None
    eos: int | None = None
    sentinels: tuple[int, ...] = ()
    continuation: tuple[int, ...] = ()
    """ids of subwords that continue the word before them (WordPiece ##x; byte BPE and SentencePiece tokens that do not
    begin with white space), in order. The first token of a text begins a word even so. Special tokens are never among
    them. To WordPiece each Chinese character and each punctuation mark is a word; in the other two they continue one"""

    @property
    def roles(self) -> dict[str, int | None]:
        """Role of a special token → its id, None where the tokenizer has none."""
        ids = (self.pad, self.unk, self.cls, self.sep, self.mask, self.bos, self.eos)
        return dict(zip(("pad", "unk", "cls", "sep", "mask", "bos", "eos"), ids, strict=True))

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that are never corrupted and never sampled as random replacements."""
        ids = (*self.roles.values(), *self.sentinels)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def require(self, user: str, *roles: str) -> None:
        """Raises UserError, in the name of `user`, if the tokenizer lacks a token of one of these roles."""
        for role in roles:
            if self.roles[role] is None:
                raise UserError(f"{user} needs a {role} token, which the tokenizer does not have")


class Sum(NamedTuple):
    """A weighted sum and its total weight; the quantity meant is sum / weight. A sum over classes may be a vector."""

    sum: Float[Array, "..."]
    weight: Float[Array, ""]


class Loss(NamedTuple):
    """What one (micro)batch contributes.

    terms: name → Sum; the loss is Σ over terms of (sum / weight), each divided by its own weight over the *global*
      batch (BERT: mean MLM loss + mean NSP loss, which have different counts). A term that counts λ-fold has λ in its
      sum (see `scaled`).
    metrics: name → Sum, reported and not minimised. Of a vector, a distribution over classes, the log shows the largest
      and smallest entry and the entropy.
    """

    terms: dict[str, Sum]
    metrics: dict[str, Sum]


class Targets(NamedTuple):
    """The tokens that a prepared batch asks for, so that n-gram baselines are scored on the same tokens."""

    left: Int[Array | np.ndarray, "..."]
    """the token left of each one, before any corruption"""
    token: Int[Array | np.ndarray, "..."]
    """the token to predict"""
    weight: Float[Array | np.ndarray, "..."]
    """1, or 0 where there is none"""


class Joint(NamedTuple):
    """A loss that compares the examples of a batch with each other, in parts, so that microbatches do not change it.

    All microbatches are encoded first, the loss of all their features together gives the gradient of each feature, and
    each microbatch is encoded again to propagate it (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
    under Memory Limited Setup" §3).

    features(apply, params, batch, key) → arrays [B, …], one row for each example.
    loss(features, batch, key) → Loss of the whole batch.
    rest(apply, params, batch, key) → Loss of everything else, as sums over examples.
    """

    features: Callable[[Apply, Params, Batch, Key[Array, ""] | None], dict[str, Array]]
    loss: Callable[[dict[str, Array], Batch, Key[Array, ""] | None], Loss]
    rest: Callable[[Apply, Params, Batch, Key[Array, ""] | None], Loss]


ScoreKind = Literal["softmax", "sigmoid", "number"]


class Scores(NamedTuple):
    """The logits of a task, which a student learns from its teacher."""

    logits: Float[Array, "*N C"]
    weights: Float[Array, "*N"]
    """1 for each distribution that exists, labelled or not; 0 for padding"""
    kind: ScoreKind = "softmax"
    """what the logits are: of one choice of C; of C independent labels; or C numbers themselves"""


class Objective(NamedTuple):
    """Pure functions of an objective.

    prepare(key, batch) → batch: corruption and choice of positions, on device, once for the whole global batch.
    loss(apply, params, batch, key) → Loss; key=None means evaluation, without dropout; params=None means that the model
      is being initialised, and only has to be called.
    predict(apply, params, batch) → dict of arrays, for `bertgpt predict`.
    targets(raw batch, prepared batch) → Targets; None if no tokens are predicted.
    target_metric: the loss of the targets is reported as `<target_metric>_loss`, their accuracy as `…_accuracy`.
    joint: `loss` in parts, where it is not a sum over examples; None if it is.
    logits(apply, params, batch, key) → Scores: what predictions are made from; None if there are none to compare.
    observe(apply, params, batch, num_layers) → the fields that a teacher adds to a prepared batch for a student of
      `num_layers` layers, from the teacher's own `apply` and `params`; None if the objective has no teacher.
    """

    prepare: Callable[[Key[Array, ""], Batch], Batch]
    loss: Callable[[Apply, Params, Batch, Key[Array, ""] | None], Loss]
    predict: Callable[[Apply, Params, Batch], dict[str, Array]]
    targets: Callable[[Batch, Batch], Targets] | None = None
    target_metric: str = ""
    joint: Joint | None = None
    logits: Callable[[Apply, Params, Batch, Key[Array, ""] | None], Scores] | None = None
    observe: Callable[[Apply, Params, Batch, int], Batch] | None = None


@runtime_checkable
class ObjectiveConfig(Protocol):
    """A frozen dataclass that describes what is learnt. Configs subclass it and inherit the defaults."""

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The architectures of models that it can train."""
        return ("encoder",)

    @property
    def needs(self) -> BatchSpec:
        """Fields of a batch that it reads; of each, type and axes must be those of the data."""
        return TEXT_SPEC

    @property
    def higher_is_better(self) -> frozenset[str]:
        """Those of its metrics that should rise, such as "accuracy"; losses and errors should fall."""
        return frozenset()

    def hint(self, field: str) -> str:
        """How data can provide a field that it lacks, for the error; "" if there is nothing to add."""
        del field
        return ""

    @property
    def learns_from(self) -> str | None:
        """The model that is its teacher; None if it has none."""
        return None

    def infer(self, data: DataConfig) -> ObjectiveConfig:
        """With what only the data knows filled in, such as the number of labels. Errors: UserError."""
        del data
        return self

    def make(self, vocab: Vocab) -> Objective:
        """The functions of the objective."""
        ...


# -- data -------------------------------------------------------------------------------------------------------------


WarningKind = Literal[
    "truncated",
    "empty",
    "repeated",
    "contradictory",
    "unlabelled",
    "repaired",
    "skipped",
    "unbalanced",
    "packing",
    "part",
]


class DataWarning(NamedTuple):
    """Something about data that its user should know: what was truncated, skipped or repaired."""

    kind: WarningKind
    """what happened; "packing" and "part" only inform: how much padding packing saves, how batches are composed"""
    count: int
    """how many examples it concerns"""
    text: str
    """one line, with the count"""


@runtime_checkable
class Dataset(Protocol):
    """Examples that can be gathered into batches in any order."""

    @property
    def spec(self) -> BatchSpec:
        """The fields that `gather` returns."""
        ...

    @property
    def warnings(self) -> tuple[DataWarning, ...]:
        """What was truncated, skipped or repaired."""
        ...

    @property
    def padding(self) -> float:
        """Fraction of all positions that is padding."""
        ...

    def __len__(self) -> int: ...

    def gather(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The examples at these indices, as numpy arrays."""
        ...


@runtime_checkable
class TokenSource(Protocol):
    """A dataset of token text, on which n-gram baselines can be fitted."""

    def training_tokens(self) -> tuple[Int[np.ndarray, " N"], int]:
        """(all tokens in order, with the token that ends a document after each document; vocabulary size)."""
        ...


class DataRequest(NamedTuple):
    """Which batches a data config is asked for."""

    split: Split
    tokenizer: Tokenizer
    batch_size: int
    seed: int = 0
    cache: Path = Path("runs/cache")
    """folder for prepared data"""
    shuffle: bool = False
    """endless batches, a permutation for each epoch; else each example once, in order"""


LabelKind = Literal["none", "label", "labels", "number", "tag"]


class Labels(NamedTuple):
    """The labels of a task."""

    values: tuple[str, ...] = ()
    """as files write them; their order numbers them"""
    names: tuple[str, ...] = ()
    """what predictions call them; (): as files write them"""
    kind: LabelKind = "none"
    """what each example has: one label, any number of them, a number, or a tag for each word"""
    constrained: bool = False
    """tags: BIO, where I-X stands only after B-X or I-X"""

    @property
    def shown(self) -> tuple[str, ...]:
        """What to call the labels."""
        return self.names or self.values


@runtime_checkable
class DataConfig(Protocol):
    """A frozen dataclass that describes what is learnt from. Configs subclass it and inherit the defaults."""

    seq_len: int
    """tokens in the longest sequence"""
    tokenizer: Any
    """a config of a tokenizer to train on the training texts, the path of one or of a run, or None: init_from's"""

    @property
    def num_types(self) -> int:
        """Token types that its batches use."""
        return 1

    @property
    def label_set(self) -> Labels:
        """The labels of a classifier trained on it."""
        return Labels()

    @property
    def children(self) -> Mapping[str, DataConfig]:
        """The data of each part, where several are mixed; {} else."""
        return {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a record that is to be predicted."""
        return ("text",)

    def infer(self, train: DataConfig | None = None) -> DataConfig:
        """With what only the files know filled in, such as labels; those of `train` count if it is given."""
        del train
        return self

    def texts(self, split: Split = "train") -> Iterator[str]:
        """The texts of a split, to train a tokenizer on. Errors: UserError, if the data has none."""
        del split
        raise UserError(f"{type(self).__name__} has no running text to train a tokenizer on; name a tokenizer")

    def train_tokenizer(self) -> Tokenizer:
        """Trains the tokenizer that `tokenizer` describes on the training texts."""
        return self.tokenizer.make(self.texts)

    def make(self, request: DataRequest) -> Batches:
        """Batches of one split."""
        ...

    def digests(self, tokenizer: Tokenizer, cache: Path) -> Mapping[str, str]:
        """Name → digest of everything that batches are made from, so that a resumed run notices what has changed.

        Args:
          tokenizer: of the run.
          cache: folder for prepared data.
        """
        found: dict[str, str] = {}
        for child in self.children.values():
            found |= child.digests(tokenizer, cache)
        return found

    def predict_batches(self, records: Sequence[dict[str, Any]], batch_size: int, tokenizer: Tokenizer) -> Batches:
        """Batches of new records, in order, without labels."""
        ...

    def describe(self, dataset: Dataset, outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """What `predict` prints for each record."""
        ...


@runtime_checkable
class Task(DataConfig, Protocol):
    """Labelled data that scores predictions."""

    def examples(self, split: Split) -> Sequence[Any]:
        """The examples of a split, in order."""
        ...

    @property
    def scores_outputs(self) -> bool:
        """Whether `evaluate` has metrics of its own. If not, the outputs of an objective are not even computed."""
        return True

    def evaluate(self, dataset: Dataset, outputs: dict[str, np.ndarray]) -> EvalResult:
        """Scores of an objective's `predict` on a whole split, whose dataset holds the examples."""
        ...


@runtime_checkable
class GenerationTask(Task, Protocol):
    """A task whose answers are texts."""

    @property
    def answer_len(self) -> int:
        """Tokens of an answer at most, unless an evaluation says how to decode."""
        ...

    def prompts(self, split: Split, tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of what a model reads before it answers, of each example of a split."""
        ...

    def prompts_of(self, records: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[list[int]]:
        """The same of new records, which have the fields in `inputs`."""
        ...

    def prompt_pixels(self, split: Split) -> Pixels | None:
        """The images that belong to `prompts`; None if the prompts are texts alone."""
        del split
        return None

    def prompt_pixels_of(self, records: Sequence[JsonObject]) -> Pixels | None:
        """The images that belong to `prompts_of`; None if the prompts are texts alone."""
        del records
        return None

    def evaluate_texts(self, split: Split, texts: Sequence[str]) -> EvalResult:
        """Scores of the texts generated for the first examples of a split, against their references."""
        ...


# -- evaluation -------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A number and which way is better."""

    name: str
    value: float
    higher_is_better: bool | None = None
    """None: neither"""


class Table(NamedTuple):
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]]


class Confusion(NamedTuple):
    """How often each class was predicted for each."""

    names: tuple[str, ...]
    counts: Int[np.ndarray, "C C"]
    """[true, predicted]"""


class Curve(NamedTuple):
    """Points of two quantities, to be drawn."""

    name: str
    """of its picture's file"""
    x_label: str
    y_label: str
    x: Float[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    scattered: bool = False
    """each point a dot, rather than a line through all"""


class Sheet(NamedTuple):
    """Pictures in a grid, each with what was predicted for it."""

    name: str
    """of its picture's file"""
    images: Sequence[UInt8[np.ndarray, "H W C"]]
    captions: Sequence[str]
    correct: Sequence[bool | None] = ()
    """whether each prediction is right, None where that is not known; (): of none"""


class EvalResult(NamedTuple):
    """Predictions on a split, scored."""

    metrics: tuple[Metric, ...] = ()
    tables: tuple[Table, ...] = ()
    """per class, say"""
    figures: tuple[Confusion | Curve | Sheet, ...] = ()
    warnings: tuple[DataWarning, ...] = ()

    @property
    def values(self) -> dict[str, float]:
        """Name → value of each metric."""
        return {metric.name: metric.value for metric in self.metrics}

    def merge(self, other: EvalResult) -> EvalResult:
        """Both; the other's metrics replace its own of the same name."""
        kept = tuple(metric for metric in self.metrics if metric.name not in other.values)
        return EvalResult(
            kept + other.metrics,
            self.tables + other.tables,
            self.figures + other.figures,
            self.warnings + other.warnings,
        )


class HeldOut(NamedTuple):
    """What a baseline is scored on: exactly the examples that the model is."""

    data: DataConfig
    split: Split
    batches: Batches
    targets: Callable[[], Iterator[Targets]] | None = None
    """yields the tokens that the objective asks for, batch by batch; None if it predicts no tokens"""
    target_metric: str = ""


@runtime_checkable
class Baseline(Protocol):
    """A predictor without a network, a frozen dataclass."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    def fit(self, data: DataConfig, train: Batches) -> Callable[[HeldOut], EvalResult]:
        """Learns from the training examples; returns `predict`, which scores held-out ones."""
        ...
