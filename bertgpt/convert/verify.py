"""Compares an imported model with transformers: hidden states, outputs, loss, gradients and exported files."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from bertgpt.convert.core import Tensors, dump_tensors, has_head
from bertgpt.convert.files import read_tensors
from bertgpt.convert.hub import FAMILIES, Imported, export_model, import_model, is_base
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vit import VitConfig, vision_of
from bertgpt.types import Batch, Inputs, Params, UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import ModelOutput

# What is compared → largest allowed error, relative to the largest value.
TOLERANCES = {"hidden states": 1e-5, "outputs": 1e-5, "loss": 1e-4, "gradients": 1e-4, "files": 0.0}
# Head → method of the module, candidate fields of the output of transformers.
OUTPUTS = {
    "mlm": ("mlm_logits", ("prediction_logits", "logits")),
    "nsp": ("nsp_logits", ("seq_relationship_logits", "sop_logits", "logits")),
    "rtd": ("rtd_logits", ("logits",)),
    "lm": ("lm_logits", ("logits",)),
    "classifier": ("class_logits", ("logits",)),
    "choice": ("class_logits", ("logits",)),
    "tagger": ("tag_logits", ("logits",)),
    "span": ("span_logits", ("start_logits",)),
}


def verify(directory: str | Path, reference: "PreTrainedModel | None" = None) -> dict[str, float]:
    """Measures the largest error of each kind in TOLERANCES, on random inputs with padding, in float32.

    Args:
      directory: a Hugging Face directory.
      reference: the model of transformers, in float32 with eager attention; None: loaded from the directory.

    Returns:
      Kind → largest error, relative to the largest value.

    Raises:
      UserError: transformers and torch are not installed, or the directory cannot be imported.
    """
    try:
        import torch
    except ImportError:
        raise UserError("verifying needs transformers and torch: pip install 'bertgpt[peers]'") from None
    directory = Path(directory)
    imported = import_model(directory)
    if imported.family == "clip":
        raise UserError(f"{directory}: --verify compares models of one input, not the two towers of CLIP")
    reference = load_reference(directory, imported) if reference is None else reference
    batch = make_inputs(imported)
    if imported.architecture == "GPT2ForSequenceClassification":  # it finds the end of a text from the padding id
        reference.config.pad_token_id = 0
    several = imported.architecture.endswith("ForMultipleChoice")  # the sequences are the choices of one question
    given = {name: value for name, value in batch.items() if name != "attention_mask" or "pixel_values" not in batch}
    tensors = {name: torch.tensor(value[None] if several else value) for name, value in given.items()}
    result = reference(**tensors, output_hidden_states=True)
    run = model_function(imported, batch)
    params = jax.tree.map(jnp.asarray, imported.params)
    states, outputs = jax.jit(run)(params)
    reference_states, reference_outputs = read_reference(imported, result)
    masks = {name: real_positions(value, batch) for name, value in reference_outputs.items()}
    errors = {"hidden states": compare_states(states, reference_states, batch)}
    errors["outputs"] = max(
        error_of(np.asarray(outputs[name])[masks[name]], value.detach().numpy()[masks[name]])
        for name, value in reference_outputs.items()
    )

    # One loss over all outputs, with random targets, so that its gradient reaches every parameter.
    rng = np.random.default_rng(1)
    targets = {
        name: (rng.normal(size=v.shape) * masks[name].reshape(masks[name].shape + (1,) * (v.ndim - masks[name].ndim)))
        .astype(np.float32) for name, v in reference_outputs.items()
    }  # fmt: skip

    def loss(params: Params) -> jax.Array:
        _, outputs = run(params)
        return sum(jnp.mean(log_probabilities(name)(outputs[name]) * targets[name]) for name in targets)

    def reference_log(name: str, value: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.logsigmoid(value) if name == "rtd" else torch.log_softmax(value, -1)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    reference_loss = sum((reference_log(n, v) * torch.tensor(targets[n])).mean() for n, v in reference_outputs.items())
    reference_loss.backward()
    errors["loss"] = error_of(value, reference_loss.detach().numpy())
    errors["gradients"] = compare_gradients(imported, jax.device_get(grads), reference)
    errors["files"] = compare_files(imported, directory)
    return errors


def load_reference(directory: Path, imported: Imported) -> "PreTrainedModel":
    """The model that transformers loads from the directory."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # config.json names the class of transformers.
    model = getattr(transformers, imported.architecture).from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    if isinstance(imported.config, T5Config) and not imported.config.tied:
        # transformers 5 ties the output matrix, which v1.1 does not.
        model.lm_head.weight = torch.nn.Parameter(torch.tensor(read_tensors(directory)["lm_head.weight"]))
    return model.eval()


def make_inputs(imported: Imported, length: int = 11, seed: int = 0) -> Batch:
    """Two sequences of random ids, the second padded on the right; or two images, all of whose patches count."""
    rng = np.random.default_rng(seed)
    config = imported.config
    if (vision := vision_of(config)) is not None:
        pixels = rng.normal(size=(2, vision.channels, *vision.image_size)).astype(np.float32)
        batch = {"pixel_values": pixels, "attention_mask": np.ones((2, 1 + vision.num_patches), np.int64)}
        written = rng.integers(3, config.vocab_size, (2, length)) if config.architecture == "encoder_decoder" else None
        return batch if written is None else batch | {"decoder_input_ids": written}
    batch = {"input_ids": rng.integers(3, config.vocab_size, (2, length))}
    batch["attention_mask"] = np.ones((2, length), np.int64)
    batch["attention_mask"][1, length * 2 // 3 :] = 0
    if imported.architecture == "GPT2ForSequenceClassification":
        batch["input_ids"][batch["attention_mask"] == 0] = 0
    if vars(config).get("first_position"):  # RoBERTa finds positions from the padding id
        batch["input_ids"][batch["attention_mask"] == 0] = config.first_position - 1
    if config.num_types > 1:
        batch["token_type_ids"] = rng.integers(0, 2, (2, length))
    if config.architecture == "encoder_decoder":
        batch["decoder_input_ids"] = rng.integers(3, config.vocab_size, (2, length - 2))
        batch["decoder_input_ids"][:, 0] = config.start_id
    return batch


def model_function(
    imported: Imported, batch: Batch
) -> Callable[[Params], tuple[list[jax.Array], dict[str, jax.Array]]]:
    """The function params → (hidden states of every layer, outputs by head)."""
    module, segments = imported.config.make(), jnp.asarray(batch["attention_mask"], jnp.int32)
    heads = [head for head in FAMILIES[imported.family].architectures[imported.architecture] if head in OUTPUTS]
    if "pixel_values" in batch:
        inputs = Inputs(segments[:, :1] * 0, images=jnp.asarray(batch["pixel_values"]).transpose(0, 2, 3, 1)[:, None])
    else:
        inputs = Inputs(jnp.asarray(batch["input_ids"]), segments)
    if "decoder_input_ids" in batch:
        inputs = inputs._replace(decoder=Inputs(jnp.asarray(batch["decoder_input_ids"])))
    elif "token_type_ids" in batch:
        inputs = inputs._replace(type_ids=jnp.asarray(batch["token_type_ids"]))

    def run(params: Params) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        call = functools.partial(module.apply, {"params": params})
        hidden, state = call(inputs, mutable=["intermediates"])
        outputs = {"hidden": hidden}
        for head in heads:
            named = {"segment_ids": segments} if head in ("nsp", "classifier", "choice") else {}
            if head in ("classifier", "choice", "tagger"):
                layer = params["tagger" if head == "tagger" else "classifier"]["dense"]
                named["num_labels"] = layer["bias"].shape[0]
            outputs[head] = call(hidden, **named, method=OUTPUTS[head][0])
        if "choice" in outputs:
            outputs["choice"] = outputs["choice"].T  # [questions, choices]
        if "pooler" in params:
            outputs["pooler"] = call(hidden, segments, method="pool")
        return layers_of(state["intermediates"], hidden), outputs

    return run


def layers_of(tree: Params, output: jax.Array) -> list[jax.Array]:
    """The embedded input and the states after each block, of the encoder, then of the decoder; and the output."""
    if "vision" in tree:
        return [*layers_of(tree["vision"], output)[:-1], *layers_of(tree["language"], output)]
    states = []
    for embedded, side in zip(tree["embedded"], [s for s in ("encoder", "decoder") if s in tree], strict=True):
        leaves = sorted(jax.tree_util.tree_leaves_with_path(tree[side]), key=lambda leaf: str(leaf[0]))
        stacked = [x.reshape(-1, *x.shape[-3:]) for _, x in leaves]  # [layer, B, S, D] of each block of a group
        states += [embedded, *(x[i] for i in range(len(stacked[0])) for x in stacked)]
    return [*states, output]


def read_reference(
    imported: Imported, output: "ModelOutput"
) -> "tuple[list[torch.Tensor | None], dict[str, torch.Tensor]]":
    """Hidden states in the order of `layers_of`, None where transformers has none, and outputs by head."""
    import torch

    if isinstance(imported.config, CaptionerConfig):  # the final norm of GPT-2 is among the states, the ViT's is not
        last = [None] if isinstance(imported.config.language, GptConfig) else output.decoder_hidden_states[-1:]
        states = [*output.encoder_hidden_states, *output.decoder_hidden_states[:-1], *last]
        states += output.decoder_hidden_states[-1:]
    elif imported.config.architecture == "encoder_decoder":
        # transformers returns the last state of each side only after its norm.
        encoder, decoder = output.encoder_hidden_states, output.decoder_hidden_states
        states = [*encoder[:-1], None, *decoder[:-1], None, decoder[-1]]
    elif imported.config.architecture == "decoder":
        states = [*output.hidden_states[:-1], None, output.hidden_states[-1]]
    elif isinstance(imported.config, VitConfig):  # whose final norm is not among the states
        states = [*output.hidden_states, None]
    else:
        states = [*output.hidden_states, output.hidden_states[-1]]
    wanted = {}
    for head in FAMILIES[imported.family].architectures[imported.architecture]:
        if head in OUTPUTS:
            # Outputs of transformers are dicts of the fields that are not None.
            wanted[head] = next(output[field] for field in OUTPUTS[head][1] if field in output)
    if "span" in wanted:
        wanted["span"] = torch.stack([output.start_logits, output.end_logits], -1)
    if not wanted:
        wanted["hidden"] = output.last_hidden_state
        if "pooler_output" in output and "pooler" in imported.params:
            wanted["pooler"] = output["pooler_output"]
    return states, wanted


def real_positions(value: "torch.Tensor", batch: Batch) -> np.ndarray:
    """Mask of the leading axes of an output: False for padding."""
    real = batch["attention_mask"] > 0
    if "decoder_input_ids" not in batch and value.shape[:2] == real.shape:
        return real
    return np.ones(value.shape[: min(2, value.ndim)], bool)


def error_of(got: ArrayLike, want: ArrayLike, floor: float = 1e-6) -> float:
    """Largest difference, relative to the largest value; infinite if shapes differ or a value is not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max() / max(np.abs(want).max(), floor))


def log_probabilities(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function logits → log probabilities: of binary decisions for RTD, else over classes."""
    return jax.nn.log_sigmoid if name == "rtd" else jax.nn.log_softmax


def compare_states(states: list[jax.Array], reference: "list[torch.Tensor | None]", batch: Batch) -> float:
    """Largest error of hidden states at tokens that are not padding."""
    errors, real = [], batch["attention_mask"] > 0
    for got, want in zip(states, reference, strict=True):
        if want is not None:
            mask = real if got.shape[:2] == real.shape else np.ones(got.shape[:2], bool)
            errors.append(error_of(np.asarray(got)[mask], want.detach().numpy()[mask]))
    return max(errors)


def compare_gradients(imported: Imported, grads: Params, reference: "PreTrainedModel") -> float:
    """Largest error of the gradient of any parameter; infinite if the target lacks a parameter."""
    family = FAMILIES[imported.family]
    heads = family.architectures[imported.architecture]
    heads = [h for h in heads if h not in family.optional or has_head(family, imported.config, imported.params, h)]
    tensors = dump_tensors(family, imported.config, heads, grads, is_base(imported.architecture))
    biggest = float(max(np.abs(g).max() for g in tensors.values()))
    errors = []
    for name, want in gradients_of(reference, imported.config.image_shape is not None).items():
        if name in tensors:
            # The exact gradient of a key's bias is 0, because softmax ignores what is added to all scores of a query:
            # both sides have only rounding errors, which the largest gradient is the measure of.
            zero = name.endswith(("key.bias", "k_lin.bias", "k_proj.bias"))
            errors.append(error_of(tensors[name], want, (1 if zero else 1e-3) * biggest))
        elif name.removeprefix(family.prefix) not in {**family.tied, **family.tied_output}:
            errors.append(float("inf"))
    return max(errors)


def gradients_of(reference: "PreTrainedModel", renamed: bool) -> Tensors:
    """Gradients by name of the parameter; of models that transformers 5 `renamed`, by the name in their files."""
    import torch

    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in reference.named_parameters()}
    if not renamed:
        return {name: grad.numpy() for name, grad in grads.items()}
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder, state_dict=grads)
        return read_tensors(Path(folder))


def compare_files(imported: Imported, directory: Path) -> float:
    """Largest difference between the tensors of the directory and those exported again after the import."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        export_model(exported, imported.config, imported.params, architecture=imported.architecture)
        target, source = read_tensors(exported), read_tensors(directory)
    unused = set(imported.report["unused"])
    errors = (
        error_of(value, source[name]) if name in source else float("inf")
        for name, value in target.items()
        if name not in unused
    )
    return max(errors, default=float("inf"))
