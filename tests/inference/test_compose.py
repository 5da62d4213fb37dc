"""Joining a pretrained ViT and a pretrained language model, and starting a run from the result."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertgpt.adaptation.init_from import check_same_function, weights_for
from bertgpt.cli.main import main
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.compose import Joining, compose
from bertgpt.inference.export import write_model
from bertgpt.inference.model import Model, load
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.types import Inputs, ModelConfig, UserError

SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "max_len": 48}
VIT = VitConfig(d_model=24, num_layers=2, num_heads=3, d_ff=32, image_size=(8, 8), patch_size=4, image_mean=(0.4,) * 3)
LANGUAGES: dict[str, ModelConfig] = {
    "gpt": GptConfig(**SIZE),
    "bert": BertConfig(**SIZE),
    "t5": T5Config(**SIZE, num_decoder_layers=1, head_dim=8),
}


@pytest.fixture(scope="module")
def parts(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted model of each family."""
    folder, ids = tmp_path_factory.mktemp("parts"), jnp.zeros((1, 4), jnp.int32)
    inputs = Inputs(ids, images=jnp.zeros((1, *VIT.image_shape), jnp.uint8), decoder=Inputs(ids))
    for name, config in {"vit": VIT, **LANGUAGES}.items():
        module = config.make()
        params = nn.unbox(jax.jit(module.init)(jax.random.key(1), inputs)["params"])
        params = jax.tree.map(np.asarray, params)
        own = None if name == "vit" else tokenizer
        write_model(Model(config, own, make_apply(module), params, folder / name), folder / name)
    return folder


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("join", ["prefix", "captioner"])
def test_both_parts_keep_their_weights_and_only_what_joins_them_is_new(
    parts: Path, tmp_path: Path, name: str, join: str, rng: np.random.Generator
):
    how = Joining(join, layer="penultimate")
    if (join, name) == ("captioner", "t5"):
        with pytest.raises(UserError, match="T5 is not one of Gpt, Bert"):
            compose(parts / "vit", parts / name, tmp_path / "out", how)
        return
    model = compose(parts / "vit", parts / name, tmp_path / "out", how)
    new = {"/".join(path.split("/")[:3]) for path in model.report["initialised"]}
    cross = {"language/decoder/cross_attention", "language/encoder/cross_attention"}
    cross |= {f"{path}_norm" for path in cross} | {"language/mlm_head/dense", "language/mlm_head/norm"}
    cross |= {"language/mlm_head/bias", "projector/kernel", "projector/bias"}
    if join == "prefix":
        assert {path.split("/")[0] for path in new} == {"projector"} and isinstance(model.config, PrefixConfig)
    else:
        assert new <= cross and any("cross_attention" in path for path in new)
        assert isinstance(model.config, CaptionerConfig) and model.config.start_id == model.tokenizer.vocab.pad
    assert model.report["unused"] == [] and model.config.vision == VIT

    again = load(tmp_path / "out")
    assert again.config == model.config and again.tokenizer.vocab == load(parts / name).tokenizer.vocab
    images = jnp.asarray(rng.integers(0, 256, (1, *VIT.image_shape), dtype=np.uint8))
    ids = jnp.asarray([[5, 6, 7]])
    hidden = again.apply(again.params, Inputs(ids, images=images, decoder=Inputs(ids)))
    assert np.isfinite(hidden).all()
    if join == "prefix":  # without an image it still is the language model
        alone = load(parts / name)
        inputs = Inputs(ids, decoder=Inputs(ids))
        np.testing.assert_array_equal(again.apply(again.params, inputs), alone.apply(alone.params, inputs))


def test_the_command_joins_two_models_and_says_how_to_go_on(parts: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    words = ["convert", str(parts / "vit"), str(out), "--language", str(parts / "gpt"), "--projector", "linear"]
    assert main(words) == 0
    assert f"2 initialised, 0 unused; train it with --init_from {out} --model None" in capsys.readouterr().out
    assert load(out).config == PrefixConfig(VIT, LANGUAGES["gpt"], "linear")
    assert main([*words[:2], str(tmp_path / "b"), "--join", "captioner"]) == 2
    assert "need --language" in capsys.readouterr().err
    assert main(["convert", str(parts / "gpt"), str(tmp_path / "b"), "--language", str(parts / "gpt")]) == 2
    assert "Gpt has no part that reads images" in capsys.readouterr().err


def test_a_composed_model_starts_one_with_other_dropout_but_not_one_that_computes_something_else(parts: Path):
    config = PrefixConfig(VIT, LANGUAGES["gpt"])
    other = dataclasses.replace(config, language=dataclasses.replace(config.language, dropout=0.0, scan=True))
    check_same_function(other, config, "there")
    wrong = dataclasses.replace(config, language=dataclasses.replace(config.language, activation="relu"))
    with pytest.raises(UserError, match="model.language.activation='gelu_tanh' there but 'relu' here"):
        check_same_function(wrong, config, "there")
    deeper = dataclasses.replace(config, language=LANGUAGES["bert"])
    with pytest.raises(UserError, match="model.language='GptConfig' there but 'BertConfig' here"):
        weights_for(deeper, config, {"vision": {}, "language": {}, "projector": {}}, "there")
