"""CLIP against transformers: vectors, logits, loss, gradients, files there and back, old files, and its tokenizer."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from convert.random_models import edit_config

from bertgpt.convert.core import dump_tensors
from bertgpt.convert.defaults import CLIP_TEXT, CLIP_VISION
from bertgpt.convert.hub import FAMILIES, export_model, import_model
from bertgpt.convert.verify import TOLERANCES, error_of
from bertgpt.data.tokenizer import load_tokenizer
from bertgpt.data.tokenizer_clip import clip as clip_tokenizer
from bertgpt.inference.export import convert
from bertgpt.inference.image_text import embed_images, embed_texts, zero_shot
from bertgpt.inference.model import load
from bertgpt.models.apply import make_apply
from bertgpt.models.clip import CLIP_VIT_B16, CLIP_VIT_B32, CLIP_VIT_L14
from bertgpt.objectives.contrast import Contrast
from bertgpt.types import Inputs, UserError, Vocab
from parity.families import torch, transformers

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "initializer_range": 0.2}
TEXT = SIZES | {"hidden_size": 24, "vocab_size": 61, "max_position_embeddings": 12, "eos_token_id": 57}
VISION = SIZES | {"hidden_size": 32, "num_attention_heads": 4, "image_size": 12, "patch_size": 4}
CASES: dict[str, tuple[dict, dict, dict]] = {
    "clip": (TEXT, VISION, {"projection_dim": 16}),
    "clip-gelu-1-channel": (TEXT | {"hidden_act": "gelu"}, VISION | {"hidden_act": "gelu", "num_channels": 1},
                            {"projection_dim": 8, "logit_scale_init_value": 1.5}),
    "clip-legacy-end": (TEXT | {"eos_token_id": 2}, VISION, {"projection_dim": 16}),
}  # fmt: skip


def make(name: str) -> Any:
    """The random model of a case, every parameter away from its initial zeros and ones."""
    text, vision, more = CASES[name]
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, **more)
    model = transformers.CLIPModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def make_inputs(model: Any, rows: int = 5) -> dict[str, np.ndarray]:
    """Texts of several lengths, each with one end token, the padding after it masked; and images."""
    rng = np.random.default_rng(0)
    text, vision = model.config.text_config, model.config.vision_config
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    lengths = np.array([12, 4, 7, 3, 9])[:rows]
    real = np.arange(12) < lengths[:, None]
    ids = np.where(real, rng.integers(3, 50, real.shape), end)  # released files pad with the end token
    ids[np.arange(rows), lengths - 1] = end
    pixels = rng.normal(size=(rows, vision.num_channels, vision.image_size, vision.image_size)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": real.astype(np.int64), "pixel_values": pixels}


def batch_of(inputs: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The same as our batches have it."""
    rows = len(inputs["input_ids"])
    return {
        "input_ids": jnp.asarray(inputs["input_ids"], jnp.int32),
        "segment_ids": jnp.asarray(inputs["attention_mask"], jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(inputs["input_ids"].shape[1]), inputs["input_ids"].shape),
        "type_ids": jnp.zeros(inputs["input_ids"].shape, jnp.int32),
        "images": jnp.asarray(inputs["pixel_values"]).transpose(0, 2, 3, 1)[:, None],
        "image_id": jnp.arange(rows), "text_id": jnp.arange(rows),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_vectors_logits_loss_and_gradients_equal_transformers_and_files_come_back(name: str, tmp_path: Path):
    model = make(name)
    model.save_pretrained(tmp_path / "there")
    imported = import_model(tmp_path / "there")
    assert imported.report["unused"] == [] and imported.architecture == "CLIPModel"
    inputs = make_inputs(model)
    theirs = model(**{key: torch.tensor(value) for key, value in inputs.items()}, return_loss=True)
    theirs.loss.backward()

    apply, batch = make_apply(imported.config.make()), batch_of(inputs)
    made, params = Contrast(max_scale=1e6).make(Vocab(61)), jax.tree.map(jnp.asarray, imported.params)

    def loss(params: Any) -> tuple[jax.Array, dict]:
        found = made.predict(apply, params, batch)
        scale = jnp.exp(apply(params, method="log_scale"))
        term = made.loss(apply, params, batch, None).terms["contrast"]
        return term.sum / term.weight, found | {"logits": scale * found["image"] @ found["text"].T}

    (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    errors = {
        "image": error_of(found["image"], theirs.image_embeds.detach().numpy()),
        "text": error_of(found["text"], theirs.text_embeds.detach().numpy()),
        "logits": error_of(found["logits"], theirs.logits_per_image.detach().numpy()),
    }
    assert not {kind: error for kind, error in errors.items() if not error <= TOLERANCES["outputs"]}
    assert error_of(value, theirs.loss.detach().numpy()) <= TOLERANCES["loss"] and value > 0.5

    tensors = dump_tensors(FAMILIES["clip"], imported.config, (), jax.device_get(grads), True)
    wanted = {key: parameter.grad.numpy() for key, parameter in model.named_parameters()}
    assert tensors.keys() == wanted.keys()
    biggest = float(max(np.abs(value).max() for value in wanted.values()))
    errors = {key: error_of(tensors[key], value, 1e-3 * biggest) for key, value in wanted.items()}
    assert not {key: error for key, error in errors.items() if not error <= TOLERANCES["gradients"]}

    export_model(tmp_path / "back", imported.config, imported.params)
    again = import_model(tmp_path / "back")
    assert again.config == imported.config
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.params, imported.params)))
    loaded, info = transformers.CLIPModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for (key, a), b in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    with torch.no_grad():
        same = loaded.eval()(**{key: torch.tensor(value) for key, value in inputs.items()})
    assert error_of(same.text_embeds.numpy(), theirs.text_embeds.detach().numpy()) < 1e-6


def test_the_vector_of_a_text_is_read_at_its_first_end_token(tmp_path: Path):
    model = make("clip")
    model.save_pretrained(tmp_path)
    config = import_model(tmp_path)
    ids = np.array([[5, 57, 8, 57, 9, 3], [4, 5, 6, 7, 8, 57], [4, 5, 6, 7, 8, 9]])  # the last one has none
    with torch.no_grad():
        theirs = model.get_text_features(torch.tensor(ids)).pooler_output.numpy()
    params = jax.tree.map(jnp.asarray, config.params)
    found = make_apply(config.config.make())(params, Inputs(jnp.asarray(ids)), method="text_features")
    assert error_of(found, theirs / np.linalg.norm(theirs, axis=1, keepdims=True)) <= TOLERANCES["outputs"]


@pytest.mark.parametrize("name, defaults", [("clip_text_model", CLIP_TEXT), ("clip_vision_model", CLIP_VISION)])
def test_absent_fields_of_a_tower_have_the_defaults_of_its_class(name: str, defaults: dict):
    built = transformers.CONFIG_MAPPING[name]().to_dict()
    assert {field: built[field] for field in defaults} == defaults


def test_old_files_with_the_fields_of_towers_twice_are_read_as_transformers_does(tmp_path: Path):
    make("clip").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    old = {"text_config_dict": values["text_config"] | {"dropout": 0.0, "layer_norm_eps": 1e-3, "is_decoder": False}}
    edit_config(tmp_path, **old, vision_config_dict=None)
    assert import_model(tmp_path).config.text.norm_eps == 1e-3
    assert transformers.CLIPModel.from_pretrained(tmp_path).config.text_config.layer_norm_eps == 1e-3


@pytest.mark.parametrize("tower, change, message", [
    ("text_config", {"dropout": 0.1}, "text_config: dropout=0.1 is not supported"),
    ("vision_config", {"patches": 3}, "vision_config: unknown field patches=3"),
    ("text_config", {"hidden_size": "24"}, "text_config: hidden_size='24' must be int"),
    ("vision_config", {"hidden_act": "mish"}, "vision_config: hidden_act='mish' is not supported"),
])  # fmt: skip
def test_what_is_not_supported_is_named_with_its_tower(tower: str, change: dict, message: str, tmp_path: Path):
    make("clip").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, **{tower: values[tower] | change})
    with pytest.raises(UserError, match=message):
        import_model(tmp_path)


def test_the_sizes_are_those_of_the_released_configurations():
    released = {  # openai/clip-vit-base-patch32, -base-patch16 and -large-patch14: parameters in all
        CLIP_VIT_B32: 151_277_313, CLIP_VIT_B16: 149_620_737, CLIP_VIT_L14: 427_616_513,
    }  # fmt: skip
    for config, count in released.items():
        images = jnp.zeros((1, *config.image_shape), jnp.uint8)
        module = config.make()

        def touch(module: Any, images: jax.Array) -> None:
            module(Inputs(jnp.zeros((1, 4), jnp.int32), images=images))
            module.log_scale()

        shapes = jax.eval_shape(nn.init(touch, module), {"params": jax.random.key(0)}, images)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes))) == count


# -- texts and pictures as users have them ----------------------------------------------------------------------------

LINES = (Path(__file__).parent.parent / "data" / "multilingual.txt").read_text(encoding="utf-8").splitlines()
LINES += ["A photo of a CAT.", "don't  stop\tnow", "café Ünïcode 😀😃 漢字 123", "<|endoftext|> in a text", ""]
LABELS = ["a Red square", "blue", "green grass", "nothing"]


@pytest.fixture(scope="module")
def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges as CLIP has them: bytes, bytes that end a word, merges, the two special tokens."""
    rules = clip_tokenizer({"<|startoftext|>": 0, "<|endoftext|>": 1}, [], {})
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    options = {"vocab_size": 900, "end_of_word_suffix": "</w>", "initial_alphabet": alphabet, "show_progress": False}
    trained.train_from_iterator(LINES * 3, tokenizers.trainers.BpeTrainer(**options))
    merges = [(left, right) for left, right in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(f"{a}</w>" for a in alphabet), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


@pytest.mark.parametrize("kind", ["tokenizer.json", "vocab.json"])
def test_ids_and_texts_are_those_of_the_clip_tokenizer(kind: str, bpe: tuple, tmp_path: Path):
    ids, merges = bpe
    if kind == "tokenizer.json":
        transformers.CLIPTokenizer(vocab=ids, merges=merges).save_pretrained(tmp_path / "a")
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "vocab.json").write_text(json.dumps(ids))
        (tmp_path / "a" / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        (tmp_path / "a" / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    reference, ours = transformers.CLIPTokenizer.from_pretrained(tmp_path / "a"), load_tokenizer(tmp_path / "a")
    before, after = ours.template
    found = [before + row + after for row in ours.encode(LINES, parse_special=True)]
    assert found == reference(LINES).input_ids and max(map(len, found)) > 10
    texts = [ours.decode(row) for row in found]
    assert texts == reference.batch_decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "a photo of a cat ." in texts
    assert ours.vocab.bos == ids["<|startoftext|>"] and ours.vocab.eos == ours.vocab.pad == ids["<|endoftext|>"]
    ours.save(tmp_path / "b")
    assert load_tokenizer(tmp_path / "b").encode(LINES) == ours.encode(LINES)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "b")(LINES).input_ids == found


@pytest.fixture(scope="module")
def directory(bpe: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as it is published: model, tokenizer and image processor."""
    path, (ids, merges) = tmp_path_factory.mktemp("clip") / "there", bpe
    text = TEXT | {"vocab_size": len(ids), "eos_token_id": ids["<|endoftext|>"], "max_position_embeddings": 20}
    torch.manual_seed(1)
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(path)
    tokenizer = transformers.CLIPTokenizer(vocab=ids, merges=merges, model_max_length=20)
    tokenizer.save_pretrained(path)
    size = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    transformers.CLIPImageProcessorPil(**size).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    """Pictures of several sizes and colours."""
    image = pytest.importorskip("PIL.Image", reason="images need the extra [vision]")
    rng = np.random.default_rng(0)
    sizes = ((12, 12), (30, 17), (9, 40))
    return [image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_zero_shot_probabilities_are_those_of_transformers(directory: Path, pictures: list):
    model = load(directory)
    arrays = [np.asarray(picture) for picture in pictures]
    processor = transformers.CLIPImageProcessorPil.from_pretrained(directory)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(directory)
    texts = tokenizer([f"a photo of a {label}." for label in LABELS], padding=True, return_tensors="pt")
    reference = transformers.CLIPModel.from_pretrained(directory).eval()
    with torch.no_grad():
        theirs = reference(**texts, pixel_values=processor(pictures, return_tensors="pt")["pixel_values"])
    wanted = theirs.logits_per_image.softmax(dim=1).numpy()
    found = zero_shot(model, arrays, LABELS, batch_size=2)
    assert [list(row) == sorted(row, key=row.get, reverse=True) for row in found] == [True] * 3
    np.testing.assert_allclose([[row[label] for label in LABELS] for row in found], wanted, atol=2e-6)
    assert wanted.max() - wanted.min() > 0.01
    np.testing.assert_allclose(embed_images(model, arrays), theirs.image_embeds.numpy(), atol=1e-6)
    prompts = [f"a photo of a {label}." for label in LABELS]
    np.testing.assert_allclose(embed_texts(model, prompts, batch_size=3), theirs.text_embeds.numpy(), atol=1e-6)


def test_a_converted_model_and_its_export_answer_the_same(directory: Path, pictures: list, tmp_path: Path):
    convert(load(directory, arrange="host"), tmp_path / "own")
    convert(load(tmp_path / "own", arrange="host"), tmp_path / "back")
    first, own = load(directory), load(tmp_path / "own")
    assert own.image_format == first.image_format and own.config == first.config
    arrays = [np.asarray(picture) for picture in pictures]
    wanted = zero_shot(first, arrays, LABELS)
    assert zero_shot(own, arrays, LABELS) == wanted and zero_shot(load(tmp_path / "back"), arrays, LABELS) == wanted
    names = ("config.json", "tokenizer.json", "preprocessor_config.json")
    before, after = (
        [json.loads((path / name).read_text()) for name in names] for path in (directory, tmp_path / "back")
    )
    assert before[1:] == after[1:]
    changed = {k for k, v in before[0]["text_config"].items() if after[0]["text_config"].get(k) != v}
    assert changed == {"bos_token_id"}  # transformers writes the default, which is beyond this vocabulary


def test_vectors_of_several_templates_are_averaged_and_labels_are_checked(directory: Path, pictures: list):
    model, arrays = load(directory), [np.asarray(pictures[1])]
    templates = ["a photo of a {}.", "{} in the rain"]
    found = zero_shot(model, arrays, LABELS, templates)[0]
    texts = [embed_texts(model, [t.replace("{}", label) for label in LABELS]) for t in templates]
    mean = np.mean(texts, axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    logits = np.exp(float(model.params["logit_scale"]["scale"])) * embed_images(model, arrays)[0] @ mean.T
    wanted = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([found[label] for label in LABELS], wanted, rtol=1e-5)
    for labels, template, message in ((["a", "a"], "{}", "different names"), ([], "{}", "one"), (["a"], "x", "{}")):
        with pytest.raises(UserError, match=message):
            zero_shot(model, arrays, labels, template)
