"""Features are the hidden states of the layers asked for, kept on disk, and a linear model learns from them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, make_text

from bertgpt.cli.main import main
from bertgpt.config import to_json
from bertgpt.inference import features
from bertgpt.inference.features import combine, extract_features, fit_probe
from bertgpt.io.files import write_json
from bertgpt.layers.block import Block
from bertgpt.layers.masks import segment_mask
from bertgpt.models.bert import BertConfig, block_settings
from bertgpt.runs.checkpoint import write_params
from bertgpt.types import Inputs, UserError

TEXTS = make_text(5)


def save_model(folder: Path, config: BertConfig, tokenizer_dir: Path) -> Path:
    """A converted model with random weights."""
    import flax.linen as nn

    params = nn.unbox(config.make().init(jax.random.key(0), Inputs(jnp.ones((1, 8), jnp.int32)))["params"])
    write_json(folder / "model.json", {"model": to_json(config), "architecture": None, "labels": []})
    write_params(folder, jax.device_get(params))
    (folder / "tokenizer").symlink_to(tokenizer_dir)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(TINY, num_layers=3, norm_position="pre")
    return save_model(tmp_path_factory.mktemp("model"), config, tokenizer_dir)


def states_by_hand(model: Path, text: str) -> list[np.ndarray]:
    """Embedded input and the states after each layer, one block after another, and the final norm."""
    from bertgpt.inference.encode import tokenize
    from bertgpt.inference.model import load

    loaded = load(model)
    ids = jnp.asarray(tokenize(loaded, [text]))
    module, variables = loaded.config.make().bind({"params": loaded.params}), loaded.params["encoder"]
    x = module.embeddings(Inputs(ids))
    states = [x]
    for layer in range(loaded.config.num_layers):
        block = Block(**block_settings(loaded.config))
        x, _ = block.apply({"params": variables[str(layer)]}, x, segment_mask(jnp.ones_like(ids)))
        states.append(x)
    states[-1] = module.final_norm(x)
    return [np.asarray(state[0]) for state in states]


def test_each_layer_gives_its_own_states_pooled_over_the_tokens_of_the_text(model: Path):
    mean = extract_features(model, TEXTS, layers=(0, 1, -2, -1), batch_size=2)
    cls = extract_features(model, TEXTS, layers=(3, 0), pooling="cls", batch_size=3)
    assert mean.shape == (5, 4, 16) and cls.shape == (5, 2, 16)
    for number, text in enumerate(TEXTS):
        states = states_by_hand(model, text)
        expected = [states[layer].mean(axis=0) for layer in (0, 1, 2, 3)]
        np.testing.assert_allclose(mean[number], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(cls[number], [states[3][0], states[0][0]], rtol=1e-4, atol=1e-5)


def test_layers_that_share_a_block_have_states_of_their_own(tmp_path: Path, tokenizer_dir: Path):
    shared = save_model(tmp_path, dataclasses.replace(TINY, num_layers=4, shared_groups=2), tokenizer_dir)
    found = extract_features(shared, TEXTS[:2], layers=range(5))
    assert all(np.abs(found[:, i] - found[:, i + 1]).max() > 1e-3 for i in range(4))


def test_features_are_kept_and_found_again_until_model_texts_or_layers_change(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = extract_features(model, TEXTS, (-2, -1), cache=tmp_path)
    monkeypatch.setattr(features, "_pooled", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(extract_features(model, TEXTS, (2, 3), cache=tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1
    for texts, layers, pooling in ((TEXTS[::-1], (-2, -1), "mean"), (TEXTS, (-1,), "mean"), (TEXTS, (-2, -1), "cls")):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            extract_features(model, texts, layers, pooling, cache=tmp_path)


def test_layers_are_put_side_by_side_or_averaged():
    found = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(combine(found, "concat"), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
    np.testing.assert_array_equal(combine(found, "mean"), [[2, 3], [8, 9]])


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_is_not_there_is_refused(model: Path, layer: int):
    with pytest.raises(UserError, match=f"has no layer {layer}; there are 0 .* to 3"):
        extract_features(model, TEXTS, (layer,))


def test_the_probe_takes_the_regularisation_that_is_best_on_validation(rng: np.random.Generator):
    truth = np.array([2.0, -2.0, 1.0] + 17 * [0.0])  # three features matter, the rest is noise

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, 20))
        return x, (x @ truth + 0.5 * rng.normal(size=count) > 0).astype(int)

    train, validation, test = sample(60), sample(200), sample(500)
    probe = fit_probe(*train, *validation)
    scores = {c: fit_probe(*train, *validation, grid=(c,)).validation_accuracy for c in features.GRID}
    assert probe.validation_accuracy == max(scores.values()) == scores[probe.c]
    assert probe.c == min(c for c, score in scores.items() if score == max(scores.values()))
    assert probe.model.score(*test) > 0.75


def test_the_command_writes_a_row_for_each_text(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "texts.csv").write_text("id,review\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(TEXTS)))
    flags = ["--input", str(tmp_path / "texts.csv"), "--text_field", "review", "--layers", "-2", "-1"]
    assert main(["features", str(model), *flags, "--output", str(tmp_path / "x.npy")]) == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "x.npy"), combine(extract_features(model, TEXTS, (-2, -1)), "concat"), rtol=1e-5, atol=1e-6
    )
    assert "5 texts × 32 features" in capsys.readouterr().out
    (tmp_path / "texts.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    assert main(["features", str(model), "--input", str(tmp_path / "texts.jsonl"), "--output", "x.npy"]) == 2
    assert "texts.jsonl:1" in capsys.readouterr().err
