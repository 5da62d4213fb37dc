"""Models that read images and texts: an image is a prefix of the language model, or what a decoder attends to."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fast

from bertgpt.adaptation.freezing import names_of, separate
from bertgpt.adaptation.lora import Lora, kernels
from bertgpt.data.tokenizer import Tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.inference.generate import answers, generate, generate_ids, stops_of
from bertgpt.inference.model import Model
from bertgpt.layers.stack import for_inference
from bertgpt.models.apply import make_apply
from bertgpt.models.bert import BertConfig
from bertgpt.models.captioner import CaptionerConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.models.vision_language import PrefixConfig
from bertgpt.models.vit import VitConfig
from bertgpt.runs.checkpoint import named_leaves
from bertgpt.types import Inputs, ModelConfig, Params, UserError

SIZE = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 48}
VIT = VitConfig(d_model=24, num_layers=2, num_heads=3, d_ff=32, image_size=(8, 12), patch_size=4)
GPT, T5 = GptConfig(**SIZE, stddev=0.3), T5Config(**SIZE, num_decoder_layers=2, head_dim=8)
BERT = BertConfig(**SIZE, stddev=0.3)
WRITERS: dict[str, ModelConfig] = {
    "prefix, gpt": PrefixConfig(VIT, GPT),
    "prefix, t5": PrefixConfig(VIT, T5, "linear", "all"),
    "captioner, gpt": CaptionerConfig(VIT, GPT, start_id=3),
    "captioner, bert": CaptionerConfig(dataclasses.replace(VIT, d_model=16, num_heads=2), BERT, start_id=3),
    "prefix, gpt-3": PrefixConfig(VIT, dataclasses.replace(GPT, local_window=4), "clipcap", "class", num_vectors=3),
    "prefix, video": PrefixConfig(dataclasses.replace(VIT, frames=2), GPT, "mlp", "patches", "penultimate"),
}
READ = PrefixConfig(VIT, BERT)


def pixels_of(rng: np.random.Generator, config: ModelConfig, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, *config.image_shape), dtype=np.uint8)


def init(config: ModelConfig) -> Params:
    """Parameters, none of them at a special value."""

    def touch(module: nn.Module, inputs: Inputs) -> None:
        hidden = module(inputs)
        if "lm_logits" in config.outputs:
            module.run(None, "lm_logits", None, {"hidden": hidden})

    ids = jnp.zeros((1, 4), jnp.int32)
    inputs = Inputs(ids, images=jnp.zeros((1, *config.image_shape), jnp.uint8), decoder=Inputs(ids))
    params = nn.unbox(jax.jit(nn.init(touch, config.make()))({"params": jax.random.key(0)}, inputs)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module", params=fast(WRITERS, "prefix, gpt", "captioner, bert"))
def writer(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = WRITERS[request.param]
    params = for_inference(init(config), config.stacks, "float32")
    return Model(config, tokenizer, make_apply(config.make()), params, tmp_path_factory.mktemp("model"))


def whole_scores(model: Model, prompt: list[int], output: list[int], images: np.ndarray) -> np.ndarray:
    """Logits of each token of an output from one run over everything, without a cache."""
    images = jnp.asarray(images)
    if model.config.architecture == "decoder":
        inputs = Inputs(jnp.asarray([[*prompt, *output]]), images=images)
    else:
        inputs = Inputs(jnp.asarray([prompt]), images=images)
        inputs = inputs._replace(decoder=Inputs(jnp.asarray([[model.config.start_id, *output[:-1]]])))
    logits = model.apply(model.params, method="lm_logits", hidden=model.apply(model.params, inputs))[0]
    return np.asarray(logits[len(prompt) - 1 : -1] if model.config.architecture == "decoder" else logits)


def test_decoding_with_images_gives_the_scores_of_the_whole_sequence(writer: Model, rng: np.random.Generator):
    """Prompts of different lengths are padded, then comes the image, then their tokens."""
    prompts = [rng.integers(1, 200, n).tolist() for n in (7, 1, 4)]
    outputs, images = rng.integers(1, 200, (3, 4)), pixels_of(rng, writer.config, 3)
    padded, starts = np.zeros((3, 7), np.int32), np.asarray([7 - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[7 - len(prompt) :] = prompt
    length = 7 + 4 if writer.config.architecture == "decoder" else 1 + 4
    named = {"prompt_ids": padded, "starts": starts, "length": length, "images": images}
    named = {name: value if name == "length" else jnp.asarray(value) for name, value in named.items()}
    step, cache = writer.apply(writer.params, method="prefill", **named)
    steps = [step]
    for column in outputs.T[:-1]:
        step, cache = writer.apply(writer.params, method="extend", ids=jnp.asarray(column), cache=cache)
        steps.append(step)
    for row, prompt in enumerate(prompts):
        expected = whole_scores(writer, prompt, outputs[row].tolist(), images[row : row + 1])
        np.testing.assert_allclose(np.stack([step[row] for step in steps]), expected, rtol=1e-4, atol=2e-5)


DECODINGS = {
    "greedy": Decoding(6),
    "beams": Decoding(6, num_beams=3, num_return_sequences=2),
    "samples": Decoding(6, temperature=1.0, num_return_sequences=2, seed=3),
}


@pytest.mark.parametrize("name", fast(DECODINGS, "greedy"))
def test_an_image_gets_the_same_text_alone_and_in_any_batch(writer: Model, name: str, rng: np.random.Generator):
    decoding = DECODINGS[name]
    prompts = ["the cat", "a dog runs under the tree", "river", "the big green house", "a bird"]
    images = pixels_of(rng, writer.config, 5)
    together = list(generate(writer, prompts, decoding, pixels=images.__getitem__))
    pairs = list(generate(writer, prompts, decoding, batch_size=2, pixels=images.__getitem__))
    for number, (a, b) in enumerate(zip(together, pairs, strict=True)):
        alone = next(generate(writer, prompts[number : number + 1], decoding, pixels=lambda i, n=number: images[i + n]))
        assert [x.text for x in a] == [x.text for x in b] == [x.text for x in alone]
        assert [x.score for x in a] == pytest.approx([x.score for x in alone], rel=1e-4)
    other = list(generate(writer, prompts, decoding, pixels=lambda index: 255 - images[index]))
    assert [x[0].score for x in together] != pytest.approx([x[0].score for x in other], rel=1e-3)


def test_greedy_answers_follow_their_own_images_in_the_order_of_the_prompts(writer: Model, rng: np.random.Generator):
    ids, known = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14]], writer.tokenizer.vocab.size
    images, stops = pixels_of(rng, writer.config, 4), stops_of(writer.tokenizer)
    decoding = Decoding(5)
    texts = answers(
        writer.apply, writer.params, writer.config, writer.tokenizer, ids, decoding, 3, pixels=images.__getitem__
    )
    for number, prompt in enumerate(ids):
        mine = images[number : number + 1]
        ((found,),) = generate_ids(writer.apply, writer.params, writer.config, [prompt], decoding, stops, images=mine)
        best = whole_scores(writer, prompt, [*found.ids, 1], mine)[:, :known].argmax(-1).tolist()
        assert found.ids == best[: len(found.ids)] and (best[-1] in stops.tokens if found.ended else len(best) == 6)
        assert writer.tokenizer.decode(found.ids) == texts[number]


@pytest.mark.parametrize("name", ["prefix, gpt", "prefix, gpt-3"])
def test_the_prefix_is_the_projected_states_of_the_vit(name: str, rng: np.random.Generator):
    config = WRITERS[name]
    params, images = init(config), jnp.asarray(pixels_of(rng, config, 2))
    states = make_apply(config.vision.make())(params["vision"], Inputs(images=images))
    up, down = (params["projector"][name] for name in ("up", "down"))
    if config.projector == "mlp":
        hidden = jax.nn.gelu(states[:, 1:] @ up["kernel"] + up["bias"], approximate=False)
    else:
        hidden = jnp.tanh(states[:, :1] @ up["kernel"] + up["bias"])
        assert hidden.shape[-1] == 3 * 16 // 2
    prefix = (hidden @ down["kernel"] + down["bias"]).reshape(2, -1, 16)
    assert prefix.shape[1] == config.prefix_length == {"mlp": 6, "clipcap": 3}[config.projector]
    ids = jnp.asarray(rng.integers(0, 200, (2, 5)))
    expected = make_apply(config.language.make())(params["language"], Inputs(ids, prefix=prefix))
    found = make_apply(config.make())(params, Inputs(ids, images=images))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_bert_classifies_an_image_and_a_statement(rng: np.random.Generator):
    config = READ
    apply, images = make_apply(config.make()), jnp.asarray(pixels_of(rng, config, 2))
    ids = jnp.asarray(rng.integers(5, 200, (2, 6)))
    segments = jnp.asarray([[1] * 6, [1] * 4 + [0] * 2])
    inputs = Inputs(ids, segments, images=images)

    def logits(module: nn.Module, inputs: Inputs) -> jax.Array:
        return module.run(None, "class_logits", None, {
            "hidden": module(inputs), "segment_ids": inputs.segment_ids, "num_labels": 2
        })  # fmt: skip

    params = nn.unbox(nn.init(logits, config.make())({"params": jax.random.key(0)}, inputs)["params"])
    assert set(params) == {"vision", "projector", "language"} and "classifier" in params["language"]
    hidden = apply(params, inputs)
    assert hidden.shape == (2, 6, 16)
    found = apply(params, method="class_logits", hidden=hidden, segment_ids=segments, num_labels=2)
    swapped = apply(params, inputs._replace(images=images[::-1]))
    assert not np.allclose(found, apply(
        params, method="class_logits", hidden=swapped, segment_ids=segments, num_labels=2), atol=1e-3)  # fmt: skip
    # Padding changes nothing, and a task's own head is reached through the whole.
    short = apply(params, Inputs(ids[1:, :4], segments[1:, :4], images=images[1:]))
    np.testing.assert_allclose(hidden[1:, :4], short, rtol=1e-4, atol=1e-5)
    module = config.make()
    named = {"hidden": hidden, "segment_ids": segments, "num_labels": 3}
    own = module.init(jax.random.key(0), None, "class_logits", "nlvr", named, method="run")["params"]
    assert "task_nlvr" in own["language"]


def test_texts_alone_go_to_the_language_model_but_training_needs_images(rng: np.random.Generator):
    config = WRITERS["prefix, gpt"]
    params, ids = init(config), jnp.asarray(rng.integers(0, 200, (2, 5)))
    expected = make_apply(config.language.make())(params["language"], Inputs(ids))
    np.testing.assert_array_equal(make_apply(config.make())(params, Inputs(ids)), expected)
    for name, problem in (("prefix, gpt", "the data has no images"), ("captioner, gpt", "there are no images")):
        with pytest.raises(UserError, match=problem):
            WRITERS[name].make().init(jax.random.key(0), Inputs(ids, decoder=Inputs(ids)))


def test_a_prefix_takes_positions_of_the_language_model_but_t5_has_no_limit(rng: np.random.Generator):
    assert WRITERS["prefix, gpt"].max_len == 48 - 6 and WRITERS["prefix, t5"].max_len == 48
    with pytest.raises(UserError, match=r"a prefix of 6 vectors leaves no token of language.max_len=6"):
        PrefixConfig(VIT, dataclasses.replace(GPT, max_len=6))
    config = WRITERS["prefix, gpt"]
    with pytest.raises(UserError, match="a sequence of 49 tokens exceeds max_len=48"):
        make_apply(config.make())(
            init(config), Inputs(jnp.ones((1, 43), int), images=jnp.asarray(pixels_of(rng, config, 1)))
        )
    captioner = WRITERS["captioner, gpt"]
    with pytest.raises(UserError, match="max_new_tokens=49 exceeds language.max_len=48"):
        make_apply(captioner.make())(
            init(captioner), method="prefill", prompt_ids=jnp.ones((1, 1), int), starts=jnp.zeros(1, int), length=50,
            images=jnp.asarray(pixels_of(rng, captioner, 1)),
        )  # fmt: skip


def test_a_captioner_names_what_its_decoder_cannot_be():
    for wrong in (dataclasses.replace(GPT, local_window=4), dataclasses.replace(BERT, norm_position="pre")):
        with pytest.raises(UserError, match=r"Captioner: language\.(local_window|norm_position)=.* is not supported"):
            CaptionerConfig(VIT, wrong)
    with pytest.raises(UserError, match="start_id=200 must be below vocab_size=200"):
        CaptionerConfig(VIT, GPT, start_id=200)


def test_images_that_are_normalised_already_are_read_as_pixels_are(rng: np.random.Generator):
    config = WRITERS["captioner, gpt"]
    params, images = init(config), jnp.asarray(pixels_of(rng, config, 2))
    ids = jnp.asarray(rng.integers(0, 200, (2, 5)))
    apply = make_apply(config.make())
    numbers = (images / jnp.float32(255) - 0.5) / 0.5
    found = (apply(params, Inputs(images=x, decoder=Inputs(ids))) for x in (images, numbers))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["prefix, gpt", "prefix, t5", "captioner, gpt", "captioner, bert"])
def test_training_the_head_alone_trains_what_joins_the_parts(name: str):
    """Stage 1 of LLaVA: ViT and language model stay as they are."""
    params = init(WRITERS[name])
    trained, frozen = separate(params, "head")
    assert {path.split("/")[0] for path in names_of(trained)} <= {"projector", "language"}
    heads = {path.split("/")[1] for path in names_of(trained) if path.startswith("language/")}
    assert heads == ({"mlm_head"} if name == "captioner, bert" else set())
    assert ("projector" in trained) == (name != "captioner, bert")
    assert {path.split("/")[0] for path in names_of(frozen)} == {"vision", "language"}


def test_lora_finds_the_kernels_of_both_parts():
    found = {"/".join(path) for path, _ in kernels(init(WRITERS["prefix, gpt"]))}
    assert {"vision/encoder/attention/query", "language/decoder/attention/query"} <= found
    assert not any(path.startswith("projector") for path in found)
    assert Lora(targets=("language/decoder/attention/query",)).targets


@pytest.mark.parametrize("name", ["prefix, gpt", "captioner, gpt"])
def test_compiling_one_block_changes_no_number(name: str, rng: np.random.Generator):
    config = WRITERS[name]
    parts = {"vision": config.vision, "language": config.language}
    scanned = {key: dataclasses.replace(part, scan=True, remat="full") for key, part in parts.items()}
    other = dataclasses.replace(config, **scanned)
    params, ids = init(config), jnp.asarray(rng.integers(0, 200, (2, 5)))
    inputs = Inputs(ids, images=jnp.asarray(pixels_of(rng, config, 2)), decoder=Inputs(ids))

    def grads(config: ModelConfig) -> Params:
        apply = make_apply(config.make())
        return jax.grad(lambda params: jnp.sum(jnp.square(apply(params, inputs))))(params)

    found, expected = named_leaves(grads(other)), named_leaves(grads(config))
    for path, value in expected.items():  # keys' biases shift all scores of a query alike: their gradient is rounding
        scale = float(jnp.abs(expected[path.replace("key/bias", "query/bias")]).max())
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-5 * scale, err_msg=path)
