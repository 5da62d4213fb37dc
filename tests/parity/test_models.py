"""Every family and option against transformers: hidden states, logits, gradients, and files there and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.convert.core import dump_tensors
from bertgpt.convert.hub import FAMILIES, export_model, import_model
from parity.families import CASES, inputs, make, save, torch, transformers

# Method of our module for each kind of head, and the field of transformers' output that it equals.
OUTPUTS = {
    "mlm": ("mlm_logits", ("prediction_logits", "logits")),
    "nsp": ("nsp_logits", ("seq_relationship_logits", "sop_logits", "logits")),
    "rtd": ("rtd_logits", ("logits",)),
    "lm": ("lm_logits", ("logits",)),
    "classifier": ("class_logits", ("logits",)),
    "tagger": ("tag_logits", ("logits",)),
    "span": ("span_logits", ("start_logits",)),
}


def run_ours(imported, batch, method_outputs):
    """The function params → (outputs by head, hidden states), for this batch."""
    module = imported.config.make()
    segments = jnp.asarray(batch["attention_mask"], jnp.int32)
    ids = jnp.asarray(batch["input_ids"])
    num_labels = lambda params, head: params[head]["dense"]["bias"].shape[0]  # noqa: E731

    def run(params):
        call = functools.partial(module.apply, {"params": params})
        if "decoder_input_ids" in batch:
            hidden, state = call(ids, jnp.asarray(batch["decoder_input_ids"]), segments, mutable=["intermediates"])
        elif hasattr(module, "lm_logits"):
            hidden, state = call(ids, segments, mutable=["intermediates"])
        else:
            types = jnp.asarray(batch["token_type_ids"]) if "token_type_ids" in batch else None
            hidden, state = call(ids, segments, None, types, mutable=["intermediates"])
        outputs = {"hidden": hidden}
        for head in method_outputs:
            arguments = (hidden,)
            if head in ("nsp", "classifier"):
                arguments += (segments,)
            if head in ("classifier", "tagger"):
                arguments += (num_labels(params, head),)
            outputs[head] = call(*arguments, method=OUTPUTS[head][0])
        if "pooler" in params and "hidden" in outputs:
            outputs["pooler"] = call(hidden, segments, method="pool")
        return outputs, state["intermediates"]

    return run


def layers_of(tree) -> list[np.ndarray]:
    """All layers' states in order, from the collection that the blocks fill."""
    leaves = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    stacked = [np.asarray(leaves[k]) for k in sorted(leaves) if "hidden" in k]
    stacked = [x.reshape(-1, *x.shape[-3:]) for x in stacked]
    return [x[i] for i in range(len(stacked[0])) for x in stacked]


def close(got, want, tolerance, what):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-6)
    assert error <= tolerance, f"{what}: relative error {error:.2e}"
    return error


@pytest.mark.parametrize("name", CASES)
def test_states_logits_and_gradients_equal_transformers_and_files_come_back(name, tmp_path):
    model = make(name)
    save(model, tmp_path / "there", name)
    imported = import_model(tmp_path / "there")
    assert imported.report["unused"] == [] and imported.report["initialised"] == []
    family = FAMILIES[imported.family]
    heads = family.architectures[imported.architecture]
    batch = inputs(name)
    shown = [h for h in heads if h in OUTPUTS]
    reference = model(**{k: torch.tensor(v) for k, v in batch.items()}, output_hidden_states=True)
    params = jax.tree.map(jnp.asarray, imported.params)
    run = jax.jit(run_ours(imported, batch, shown))
    outputs, intermediates = run(params)
    real = batch["attention_mask"] > 0

    # Hidden states of every layer, where there is no padding.
    def compare_states(tree, states, mask, final):
        ours = [np.asarray(tree["embedded"][0]), *layers_of(tree["encoder" if "encoder" in tree else "decoder"])]
        states = [s.detach().numpy() for s in states]
        for i, (a, b) in enumerate(zip(ours[: len(states) - final], states[: len(states) - final], strict=True)):
            close(a[mask], b[mask], 1e-5, f"hidden state {i}")

    if "decoder_input_ids" in batch:
        encoder = {"embedded": intermediates["embedded"][:1], "encoder": intermediates["encoder"]}
        decoder = {"embedded": intermediates["embedded"][1:], "decoder": intermediates["decoder"]}
        compare_states(encoder, reference.encoder_hidden_states, real, 1)  # the last one there is after the norm
        every = np.ones(batch["decoder_input_ids"].shape, bool)
        compare_states(decoder, reference.decoder_hidden_states, every, 1)
        close(outputs["hidden"], reference.decoder_hidden_states[-1].detach(), 1e-5, "decoder output")
    else:
        embedded = intermediates["embedded"][0]
        is_gpt = name.startswith("gpt")
        assert embedded.shape == outputs["hidden"].shape
        compare_states(intermediates, reference.hidden_states, real, 1 if is_gpt else 0)
        close(outputs["hidden"][real], reference.hidden_states[-1].detach().numpy()[real], 1e-5, "output")

    # Logits, and a loss of them all with respect to every parameter.
    wanted = {}
    for head in shown:
        field = next(f for f in OUTPUTS[head][1] if getattr(reference, f, None) is not None)
        value = getattr(reference, field)
        if head == "span":
            value = torch.stack([reference.start_logits, reference.end_logits], -1)
        wanted[head] = value
    if not shown:
        wanted["hidden"] = reference.last_hidden_state
        if getattr(reference, "pooler_output", None) is not None:
            wanted["pooler"] = reference.pooler_output
    rng = np.random.default_rng(1)
    masks = {}
    for head, value in wanted.items():
        per_token = value.shape[:2] == real.shape and "decoder_input_ids" not in batch and value.ndim >= 2
        masks[head] = real if per_token else np.ones(value.shape[: min(2, value.ndim)], bool)
        close(np.asarray(outputs[head])[masks[head]], value.detach().numpy()[masks[head]], 1e-5, head)
    projections = {
        h: (rng.normal(size=v.shape) * masks[h].reshape(masks[h].shape + (1,) * (v.ndim - masks[h].ndim))).astype(
            np.float32
        )
        for h, v in wanted.items()
    }

    def loss(params):
        outputs, _ = run(params)
        # Softmax over classes; log-odds have no such axis.
        squash = {h: jax.nn.log_sigmoid if h == "rtd" else jax.nn.log_softmax for h in wanted}
        return sum(jnp.mean(squash[h](outputs[h]) * projections[h]) for h in wanted)

    squash = {h: torch.nn.functional.logsigmoid if h == "rtd" else lambda v: torch.log_softmax(v, -1) for h in wanted}
    their_loss = sum((squash[h](v) * torch.tensor(projections[h])).mean() for h, v in wanted.items())
    our_loss, grads = jax.value_and_grad(loss)(params)
    their_loss.backward()
    close(our_loss, their_loss.detach(), 1e-4, "loss")
    base = imported.architecture.endswith("Model") and "LMHead" not in imported.architecture
    ours = dump_tensors(
        family, imported.config, heads, imported.config.num_heads, jax.tree.map(np.asarray, grads), base
    )
    biggest = max(np.abs(g).max() for g in ours.values())
    for key, parameter in model.named_parameters():
        if key in ours:
            want = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
            error = np.abs(ours[key] - want).max() / max(np.abs(want).max(), 1e-3 * biggest)
            assert error <= 1e-4, f"gradient of {key}: relative error {error:.2e}"
    known = set(ours) | set(family.tied) | {family.prefix + k for k in family.tied}
    assert {key for key, _ in model.named_parameters()} <= known

    # There and back, bit for bit, and loadable.
    architecture = export_model(
        tmp_path / "back", imported.config, imported.params, family=imported.family, architecture=imported.architecture
    )
    assert architecture == CASES[name][0]
    again = import_model(tmp_path / "back")
    assert again.config == imported.config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.params, imported.params)))
    cls = getattr(transformers, architecture)
    loaded, info = cls.from_pretrained(tmp_path / "back", output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        for (key, a), b in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b), key
