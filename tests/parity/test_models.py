"""Every family and option against transformers: hidden states, outputs, gradients, and files there and back."""

import jax
import numpy as np
import pytest

from bertgpt.convert.hub import export_model, import_model
from bertgpt.convert.verify import TOLERANCES, verify
from parity.families import CASES, make, save, torch, transformers


@pytest.mark.parametrize("name", CASES)
def test_states_outputs_and_gradients_equal_transformers_and_files_come_back(name, tmp_path):
    model = make(name)
    save(model, tmp_path / "there", name)
    errors = verify(tmp_path / "there", model)
    assert not {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]}

    imported = import_model(tmp_path / "there")
    assert imported.report["unused"] == [] and imported.report["initialised"] == []
    assert imported.architecture == CASES[name][0]
    export_model(tmp_path / "back", imported.config, imported.params, architecture=imported.architecture)
    again = import_model(tmp_path / "back")
    assert again.config == imported.config and again.family == imported.family
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.params, imported.params)))
    cls = getattr(transformers, imported.architecture)
    loaded, info = cls.from_pretrained(tmp_path / "back", output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for (key, a), b in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5-v1.1", "switch"])
def test_verifying_a_directory_alone_sees_a_changed_weight(name, tmp_path):
    model = make(name)
    save(model, tmp_path, name)
    errors = verify(tmp_path)
    assert not {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]}
    norms = ("LayerNorm.weight", "layer_norm.weight", "ln_1.weight")
    with torch.no_grad():
        next(p for key, p in model.named_parameters() if key.endswith(norms))[0] += 0.01
    errors = verify(tmp_path, model)
    assert errors["outputs"] > TOLERANCES["outputs"] and errors["hidden states"] > TOLERANCES["hidden states"]
