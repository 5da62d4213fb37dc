"""A Hugging Face directory against what transformers computes from it: states, outputs, loss, gradients, files."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bertgpt.convert.core import dump_tensors
from bertgpt.convert.files import read_tensors
from bertgpt.convert.hub import FAMILIES, Imported, export_model, import_model, is_base
from bertgpt.models.t5 import T5Config
from bertgpt.types import Inputs, UserError

# What is compared → the largest error allowed, relative to the largest value.
TOLERANCES = {"hidden states": 1e-5, "outputs": 1e-5, "loss": 1e-4, "gradients": 1e-4, "files": 0.0}
# Kind of head → method of our module, fields of their output.
OUTPUTS = {
    "mlm": ("mlm_logits", ("prediction_logits", "logits")),
    "nsp": ("nsp_logits", ("seq_relationship_logits", "sop_logits", "logits")),
    "rtd": ("rtd_logits", ("logits",)),
    "lm": ("lm_logits", ("logits",)),
    "classifier": ("class_logits", ("logits",)),
    "tagger": ("tag_logits", ("logits",)),
    "span": ("span_logits", ("start_logits",)),
}
Batch = dict[str, np.ndarray]


def verify(directory: str | Path, reference: Any = None) -> dict[str, float]:
    """Largest error of each kind in TOLERANCES, on random inputs with padding, in float32.

    Args:
      directory: a Hugging Face directory.
      reference: the model as transformers has it, in float32 with eager attention; None: loaded from the directory.

    Raises:
      UserError: transformers and torch are not installed, or the directory cannot be imported.
    """
    try:
        import torch
    except ImportError:
        raise UserError("verifying needs transformers and torch: pip install 'bertgpt[peers]'") from None
    directory = Path(directory)
    imported = import_model(directory)
    reference = load_reference(directory, imported) if reference is None else reference
    batch = make_inputs(imported)
    theirs = reference(**{name: torch.tensor(value) for name, value in batch.items()}, output_hidden_states=True)
    run = run_ours(imported, batch)
    params = jax.tree.map(jnp.asarray, imported.params)
    states, outputs = jax.jit(run)(params)
    their_states, their_outputs = read_theirs(imported, theirs)
    masks = {name: shown(value, batch) for name, value in their_outputs.items()}
    errors = {"hidden states": compare_states(states, their_states, batch)}
    errors["outputs"] = max(
        error_of(np.asarray(outputs[name])[masks[name]], value.detach().numpy()[masks[name]])
        for name, value in their_outputs.items()
    )

    # One loss of all outputs, with random targets: its gradient reaches every parameter.
    rng = np.random.default_rng(1)
    targets = {
        name: (rng.normal(size=v.shape) * masks[name].reshape(masks[name].shape + (1,) * (v.ndim - masks[name].ndim)))
        .astype(np.float32) for name, v in their_outputs.items()
    }  # fmt: skip

    def loss(params: Any) -> jax.Array:
        _, outputs = run(params)
        return sum(jnp.mean(our_log(name)(outputs[name]) * targets[name]) for name in targets)

    def their_log(name: str, value: Any) -> Any:
        return torch.nn.functional.logsigmoid(value) if name == "rtd" else torch.log_softmax(value, -1)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    their_loss = sum((their_log(n, v) * torch.tensor(targets[n])).mean() for n, v in their_outputs.items())
    their_loss.backward()
    errors["loss"] = error_of(value, their_loss.detach().numpy())
    errors["gradients"] = compare_gradients(imported, jax.device_get(grads), reference)
    errors["files"] = compare_files(imported, directory)
    return errors


def load_reference(directory: Path, imported: Imported) -> Any:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, imported.architecture).from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    if isinstance(imported.config, T5Config) and not imported.config.tied:
        # transformers 5 ties what v1.1 keeps apart.
        model.lm_head.weight = torch.nn.Parameter(torch.tensor(read_tensors(directory)["lm_head.weight"]))
    return model.eval()


def make_inputs(imported: Imported, length: int = 11, seed: int = 0) -> Batch:
    """Two rows of random ids, the second padded on the right."""
    rng = np.random.default_rng(seed)
    config = imported.config
    batch = {"input_ids": rng.integers(3, config.vocab_size, (2, length))}
    batch["attention_mask"] = np.ones((2, length), np.int64)
    batch["attention_mask"][1, length * 2 // 3 :] = 0
    if vars(config).get("first_position"):  # there positions count the tokens that are not padding
        batch["input_ids"][batch["attention_mask"] == 0] = config.first_position - 1
    if config.num_types > 1:
        batch["token_type_ids"] = rng.integers(0, 2, (2, length))
    if isinstance(config, T5Config):
        batch["decoder_input_ids"] = rng.integers(3, config.vocab_size, (2, length - 2))
        batch["decoder_input_ids"][:, 0] = config.start_id
    return batch


def run_ours(imported: Imported, batch: Batch) -> Callable[[Any], tuple[list[jax.Array], dict[str, jax.Array]]]:
    """params → (hidden states of every layer, outputs by head)."""
    module, segments = imported.config.make(), jnp.asarray(batch["attention_mask"], jnp.int32)
    heads = [head for head in FAMILIES[imported.family].architectures[imported.architecture] if head in OUTPUTS]
    inputs = Inputs(jnp.asarray(batch["input_ids"]), segments)
    if "decoder_input_ids" in batch:
        inputs = inputs._replace(decoder=Inputs(jnp.asarray(batch["decoder_input_ids"])))
    elif "token_type_ids" in batch:
        inputs = inputs._replace(type_ids=jnp.asarray(batch["token_type_ids"]))

    def run(params: Any) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        call = functools.partial(module.apply, {"params": params})
        hidden, state = call(inputs, mutable=["intermediates"])
        outputs = {"hidden": hidden}
        for head in heads:
            named = {"segment_ids": segments} if head in ("nsp", "classifier") else {}
            if head in ("classifier", "tagger"):
                named["num_labels"] = params[head]["dense"]["bias"].shape[0]
            outputs[head] = call(hidden, **named, method=OUTPUTS[head][0])
        if "pooler" in params:
            outputs["pooler"] = call(hidden, segments, method="pool")
        return layers_of(state["intermediates"], hidden), outputs

    return run


def layers_of(tree: dict, output: jax.Array) -> list[jax.Array]:
    """Embedded input and states after each block, of the encoder, then of the decoder, and the output."""
    states = []
    for embedded, side in zip(tree["embedded"], [s for s in ("encoder", "decoder") if s in tree], strict=True):
        leaves = sorted(jax.tree_util.tree_leaves_with_path(tree[side]), key=lambda leaf: str(leaf[0]))
        stacked = [x.reshape(-1, *x.shape[-3:]) for _, x in leaves]  # [layer, B, S, D] of each block of a group
        states += [embedded, *(x[i] for i in range(len(stacked[0])) for x in stacked)]
    return [*states, output]


def read_theirs(imported: Imported, output: Any) -> tuple[list[Any], dict[str, Any]]:
    """(hidden states in the order of `layers_of`, outputs by head)."""
    import torch

    if isinstance(imported.config, T5Config):
        # The last state of each side is there after its norm.
        encoder, decoder = output.encoder_hidden_states, output.decoder_hidden_states
        states = [*encoder[:-1], None, *decoder[:-1], None, decoder[-1]]
    elif imported.config.architecture == "decoder":
        states = [*output.hidden_states[:-1], None, output.hidden_states[-1]]
    else:
        states = [*output.hidden_states, output.hidden_states[-1]]
    wanted = {}
    for head in FAMILIES[imported.family].architectures[imported.architecture]:
        if head in OUTPUTS:
            wanted[head] = next(v for f in OUTPUTS[head][1] if (v := getattr(output, f, None)) is not None)
    if "span" in wanted:
        wanted["span"] = torch.stack([output.start_logits, output.end_logits], -1)
    if not wanted:
        wanted["hidden"] = output.last_hidden_state
        if getattr(output, "pooler_output", None) is not None and "pooler" in imported.params:
            wanted["pooler"] = output.pooler_output
    return states, wanted


def shown(value: Any, batch: Batch) -> np.ndarray:
    """Which of an output's leading positions are not padding."""
    real = batch["attention_mask"] > 0
    if "decoder_input_ids" not in batch and value.shape[:2] == real.shape:
        return real
    return np.ones(value.shape[: min(2, value.ndim)], bool)


def error_of(got: Any, want: Any, floor: float = 1e-6) -> float:
    """Largest difference, relative to the largest value; infinite if something is no number."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max() / max(np.abs(want).max(), floor))


def our_log(name: str) -> Callable[[jax.Array], jax.Array]:
    """Softmax over classes; log-odds have no such axis."""
    return jax.nn.log_sigmoid if name == "rtd" else jax.nn.log_softmax


def compare_states(ours: list[jax.Array], theirs: list[Any], batch: Batch) -> float:
    errors, real = [], batch["attention_mask"] > 0
    for a, b in zip(ours, theirs, strict=True):
        if b is not None:
            mask = real if a.shape[:2] == real.shape else np.ones(a.shape[:2], bool)
            errors.append(error_of(np.asarray(a)[mask], b.detach().numpy()[mask]))
    return max(errors)


def compare_gradients(imported: Imported, grads: Any, reference: Any) -> float:
    family = FAMILIES[imported.family]
    heads = [h for h in family.architectures[imported.architecture] if h not in family.optional or h in imported.params]
    base = is_base(imported.architecture)
    ours = dump_tensors(family, imported.config, heads, imported.config.num_heads, grads, base)
    biggest = float(max(np.abs(g).max() for g in ours.values()))
    errors = []
    for name, parameter in reference.named_parameters():
        if name in ours:
            want = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
            errors.append(error_of(ours[name], want, 1e-3 * biggest))
        elif name.removeprefix(family.prefix) not in family.tied:
            errors.append(float("inf"))  # a parameter that we do not have
    return max(errors)


def compare_files(imported: Imported, directory: Path) -> float:
    """Largest difference between the directory's tensors and those that we write from what we read."""
    with tempfile.TemporaryDirectory() as folder:
        back = Path(folder) / "back"
        export_model(back, imported.config, imported.params, architecture=imported.architecture)
        ours, theirs = read_tensors(back), read_tensors(directory)
    unused = set(imported.report["unused"])
    return max(
        (error_of(ours[name], theirs[name]) if name in theirs else float("inf") for name in ours if name not in unused),
        default=float("inf"),
    )
