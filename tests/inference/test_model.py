"""Models come from runs, converted folders and Hugging Face directories alike, and damaged ones are named."""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, make_text
from safetensors.numpy import save_file
from test_generate import init as init_decoder

import bertgpt
from bertgpt.adaptation.init_from import weights_for
from bertgpt.cli.main import main
from bertgpt.config import Experiment, Mesh
from bertgpt.convert.files import read_safetensors
from bertgpt.convert.hub import export_model, import_model
from bertgpt.data.tokenizer import SentencePiece, Tokenizer
from bertgpt.inference.encode import embed, fill_mask, padded_length
from bertgpt.inference.export import convert
from bertgpt.inference.model import Model, load
from bertgpt.models.bert import Bert
from bertgpt.models.electra import ElectraConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.objectives.classify import Classify
from bertgpt.runs.checkpoint import Checkpoints
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.loop import train
from bertgpt.training.optim import AdamW
from bertgpt.training.start import find_tokenizer, init_from
from bertgpt.types import Inputs, UserError

# As released models are: GELU by erf, and a vocabulary that is no multiple of anything.
CONFIG = dataclasses.replace(TINY, activation="gelu", vocab_size=187)
TEXTS = ["the cat sleeps", "a dog", "the big green house sings of the small blue bird and runs in a river", "tree"]


def init(config) -> dict:
    def run(module: Bert, ids: jax.Array):
        hidden = module(Inputs(ids))
        return module.mlm_logits(hidden), module.pool(hidden, ids)

    ids = jnp.ones((1, 4), jnp.int32)
    return jax.jit(lambda: nn.unbox(nn.init(run, config.make())({"params": jax.random.key(1)}, ids)["params"]))()


@pytest.fixture(scope="module")
def hub(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of BERT with its MLM head."""
    path = tmp_path_factory.mktemp("hub") / "bert"
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab.size)
    export_model(path, config, init(config), architecture="BertForMaskedLM", files=tokenizer.files())
    return path


def parts(model: Model) -> tuple:
    return model.config, model.params, model.path


def equal(a, b) -> bool:
    return bool(all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b))))


def test_there_and_back_through_both_formats_by_the_command(hub: Path, tmp_path: Path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", str(hub), str(ours)]) == 0
    printed = capsys.readouterr().out
    assert "initialised: 0 tensors" in printed and "unused: 0 tensors" in printed and "in bertgpt's format" in printed
    assert main(["convert", str(ours), str(back)]) == 0
    assert "BertForMaskedLM, in Hugging Face format" in capsys.readouterr().out
    first, second = (read_safetensors(path / "model.safetensors") for path in (hub, back))
    assert first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        assert (hub / name).read_text() == (back / name).read_text()
    models = [bertgpt.load(path) for path in (hub, ours, back)]
    assert len({model.config for model in models}) == 1 and len({model.tokenizer.hash for model in models}) == 1
    assert equal(models[0].params, models[1].params) and equal(models[0].params, models[2].params)
    assert main(["convert", str(hub), str(ours)]) == 2
    assert "exists already; name a new directory" in capsys.readouterr().err


@pytest.mark.slow
def test_fine_tuning_starts_from_a_hugging_face_directory_with_a_padded_vocabulary(
    hub: Path, corpus_file: Path, tiny: Experiment, tmp_path: Path, capsys
):
    """Down to predictions, and out again without the rows that pad the vocabulary."""
    labelled = tmp_path / "labelled.jsonl"
    lines = [t for t in corpus_file.read_text().split("\n\n")]
    labelled.write_text("".join(json.dumps({"text": t, "label": str(len(t) % 2)}) + "\n" for t in lines))
    source = load(hub)
    experiment = dataclasses.replace(
        tiny,
        name="tuned",
        model=dataclasses.replace(source.config, vocab_size=256, scan=True),
        objective=Classify(2),
        data=TextClassification(str(labelled), labels=("0", "1"), names=("even", "odd"), seq_len=32),
        init_from=str(hub),
        mesh=Mesh(),
        batch_size=8,
        optim=AdamW(lr=1e-3, warmup_steps=1),
        steps=1,
        evals=(),
    )
    train(experiment, tmp_path)
    assert "new: classifier" in capsys.readouterr().out
    params = Checkpoints(tmp_path / "tuned").read("params")
    token = params["embeddings"]["token"]
    assert token.shape[0] == 256
    moved = np.abs(token[: source.config.vocab_size] - np.asarray(source.params["embeddings"]["token"])).max()
    assert moved < 0.01  # one small update away
    assert main(["convert", str(tmp_path / "tuned"), str(tmp_path / "out")]) == 0
    again = import_model(tmp_path / "out")
    assert again.architecture == "BertForSequenceClassification" and again.labels.shown == ("even", "odd")
    assert again.config.vocab_size == source.tokenizer.vocab.size
    command = ["--text", "the cat sleeps"]
    capsys.readouterr()
    answers = []
    for path in ("tuned", "out"):
        assert main(["predict", str(tmp_path / path), *command]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["label"] == answers[1]["label"]
    assert answers[0]["probability"] == pytest.approx(answers[1]["probability"], abs=2e-4)


def test_a_run_that_starts_from_a_folder_of_sentence_transformers_says_what_it_leaves_out(
    hub: Path, tiny: Experiment, tmp_path: Path, caplog
):
    """Of the old layout, where the model and its tokenizer lie in a folder of their own."""
    folder = tmp_path / "folder"
    shutil.copytree(hub, folder / "0_Transformer")
    kinds = ("Transformer", "Pooling", "Dense")
    entries = [{"path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(entries))
    for path, config in (("1_Pooling", {}), ("2_Dense", {"in_features": 16, "out_features": 4, "bias": False})):
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
    for value, problem in ((np.nan, "holds a value that is not finite"), (1, "holds int64, not floating point")):
        save_file({"linear.weight": np.full((4, 16), value)}, folder / "2_Dense" / "model.safetensors")
        with pytest.raises(UserError, match=f"2_Dense: tensor linear.weight {problem}"):
            load(folder, arrange="host")
    save_file({"linear.weight": np.ones((4, 16), np.float32)}, folder / "2_Dense" / "model.safetensors")
    source = load(folder, arrange="host")
    data = dataclasses.replace(tiny.data, tokenizer=None)
    experiment = dataclasses.replace(tiny, model=source.config, data=data, init_from=str(folder))
    params, report = init_from(experiment, jax.tree.map(jnp.zeros_like, source.params), None, tmp_path)
    assert equal(params, source.params) and not report["unused"]
    assert f"init_from: {folder}: the encoder is read, without Dense after it" in caplog.text
    convert(source, tmp_path / "ours")
    shutil.rmtree(tmp_path / "ours" / "hub")
    with pytest.raises(UserError, match="ours/hub: has no modules.json, but the model had modules"):
        load(tmp_path / "ours")
    find_tokenizer(experiment, tmp_path / "run", tmp_path)
    assert (tmp_path / "run" / "tokenizer" / "vocab.txt").read_text() == (hub / "vocab.txt").read_text()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"activation": "relu"}, "model.activation='gelu' there but 'relu' here"),
        ({"norm_eps": 1e-5}, "model.norm_eps=1e-12 there but 1e-05 here"),
        ({"num_heads": 2}, "model.num_heads=4 there but 2 here"),
        ({"first_position": 2}, "model.first_position=0 there but 2 here"),
    ],
)
def test_weights_of_a_model_that_computes_something_else_are_refused(hub: Path, change, message):
    source = load(hub, arrange="host")
    weights_for(dataclasses.replace(source.config, dropout=0.0, pooler="mean", scan=True), *parts(source))
    with pytest.raises(UserError, match=message):
        weights_for(dataclasses.replace(source.config, **change), *parts(source))


def test_weights_of_another_family_are_refused(hub: Path):
    source = load(hub, arrange="host")
    with pytest.raises(UserError, match="holds a Bert, but the experiment's model is a Gpt"):
        weights_for(GptConfig(), *parts(source))


def test_an_encoder_can_start_from_the_discriminator_of_electra(tmp_path: Path):
    config = dataclasses.replace(CONFIG, embed_dim=8)
    electra = ElectraConfig(config, config)
    params = {"embeddings": {"token": np.ones(2)}, "discriminator": {"encoder": {"w": np.ones(3)}}, "generator": {}}
    found = weights_for(config, electra, params, tmp_path)
    assert found.keys() == {"embeddings", "encoder"}
    assert found["encoder"] is params["discriminator"]["encoder"]


def test_layers_apart_and_together_are_the_same_model(hub: Path):
    model = load(hub)
    ids = jnp.asarray([[5, 6, 7]])
    together = model.apply(jax.tree.map(jnp.asarray, load(hub, arrange="host").params), Inputs(ids))
    np.testing.assert_allclose(model.apply(model.params, Inputs(ids)), together, rtol=1e-5, atol=1e-6)


def test_embeddings_are_means_over_real_tokens_in_any_company(hub: Path):
    model = load(hub)
    together = embed(model, TEXTS, batch_size=3)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
    for text, vector in zip(TEXTS, together, strict=True):
        (ids,) = model.tokenizer.encode([text])
        vocab = model.tokenizer.vocab
        hidden = np.asarray(model.apply(model.params, Inputs(jnp.asarray([[vocab.cls, *ids, vocab.sep]]))))[0]
        mean = hidden.mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(embed(model, [text], "cls", normalize=False)[0], hidden[0], rtol=1e-4, atol=1e-5)


def test_a_model_that_was_trained_with_the_kernel_of_another_device_runs_here(hub: Path, tmp_path: Path):
    convert(load(hub, arrange="host"), tmp_path / "converted")
    facts = json.loads((tmp_path / "converted" / "model.json").read_text())
    facts["model"]["attention"] = "flash"
    del facts["sha256"]  # edited by hand
    (tmp_path / "converted" / "model.json").write_text(json.dumps(facts))
    model = load(tmp_path / "converted")
    assert vars(model.config)["attention"] == "flash"  # as it was trained
    assert np.array_equal(embed(model, TEXTS), embed(load(hub), TEXTS))


def test_bfloat16_rounds_kernels_once_and_changes_little(hub: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("linear", "stack"):
        monkeypatch.setattr(f"bertgpt.layers.{module}.cpu_has_bfloat16", lambda: True)
    model = load(hub, dtype="bfloat16")
    kinds = {str(path[-1]): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)}
    assert kinds["['kernel']"] == jnp.bfloat16 and kinds["['token']"] == jnp.float32
    cosines = np.sum(embed(model, TEXTS) * embed(load(hub), TEXTS), axis=1)
    assert (cosines > 0.999).all()


def test_masks_are_filled_from_the_tokens_that_exist(hub: Path):
    model = load(hub)
    texts = ["the [MASK] sleeps", "[MASK] dog [MASK] under the tree in a river", "a [MASK]"]
    answers = list(fill_mask(model, texts, top_k=3, batch_size=2))
    assert [len(masks) for masks in answers] == [1, 2, 1]
    vocab = model.tokenizer.vocab
    (ids,) = model.tokenizer.encode([texts[0]], parse_special=True)
    hidden = model.apply(model.params, Inputs(jnp.asarray([[vocab.cls, *ids, vocab.sep]])))
    place = ids.index(vocab.mask) + 1
    probabilities = np.asarray(jax.nn.softmax(model.apply(model.params, method="mlm_logits", hidden=hidden[0, place])))
    best = np.argsort(-probabilities)[:3]
    assert list(answers[0][0]) == model.tokenizer.tokens(best.tolist())
    np.testing.assert_allclose(list(answers[0][0].values()), probabilities[best], atol=1e-4)
    with pytest.raises(UserError, match=r"no \[MASK\] to fill in"):
        list(fill_mask(model, ["the cat"]))


def test_rows_are_padded_little_and_to_few_widths():
    widths = [padded_length(n) for n in range(1, 513)]
    assert sorted(set(widths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(width >= n for n, width in enumerate(widths, start=1))


def test_predict_finds_its_task(hub: Path, capsys):
    assert main(["predict", str(hub), "--text", "the [MASK]"]) == 0
    assert len(json.loads(capsys.readouterr().out)["masks"][0]) == 5
    assert main(["predict", str(hub), "--text", "the cat"]) == 0
    assert len(json.loads(capsys.readouterr().out)["embedding"]) == 16
    assert main(["predict", str(hub), "--text", "the cat", "--task", "classify"]) == 2
    assert "has no classifier" in capsys.readouterr().err
    assert main(["generate", str(hub), "--prompt", "the cat"]) == 2
    assert "Bert is an encoder and generates no text" in capsys.readouterr().err


def damage_config(path: Path, **changes) -> None:
    values = json.loads((path / "config.json").read_text())
    values = {key: value for key, value in (values | changes).items() if value is not ...}
    (path / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda p: damage_config(p, hidden_size=...),  # then it is 768
            "the weights have .*16.* for embeddings/norm/bias, but config.json asks for .*768",
        ),
        (lambda p: damage_config(p, hidden_size="wide"), "config.json: hidden_size='wide' must be int"),
        (lambda p: damage_config(p, vocab_size=300), "the weights have .* for embeddings/token, but config.json asks"),
        (lambda p: damage_config(p, vocab_size=100), "the weights have .* for embeddings/token, but config.json asks"),
        (lambda p: damage_config(p, num_hidden_layers=3), "has no tensor encoder.layer.2"),
        (lambda p: damage_config(p, hidden_act="gelu_10"), "hidden_act='gelu_10' is not supported; only"),
        (
            lambda p: damage_config(p, position_embedding_type="relative_key"),
            "position_embedding_type='relative_key' is not supported",
        ),
        (lambda p: damage_config(p, pruned_heads={"0": [1]}), "pruned_heads=.* is not supported"),
        (lambda p: damage_config(p, rope_theta=1e4), "unknown field rope_theta=10000.0"),
        (lambda p: damage_config(p, model_type="llama"), "model_type='llama' is not supported; only bert"),
        (lambda p: damage_config(p, architectures=["BertFoo"]), "architecture 'BertFoo' is not supported"),
        (lambda p: (p / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
        (lambda p: (p / "config.json").unlink(), "config.json: no such file"),
        (lambda p: (p / "model.safetensors").unlink(), "holds no model.safetensors"),
        (
            lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]),
            "model.safetensors: cannot be read as safetensors",
        ),
        (lambda p: (p / "vocab.txt").unlink() or (p / "tokenizer.json").write_text("{"), "cannot be read as a token"),
    ],
)
def test_a_damaged_directory_is_refused_by_name_and_nothing_is_written(hub: Path, tmp_path: Path, damage, message):
    shutil.copytree(hub, tmp_path / "broken")
    damage(tmp_path / "broken")
    with pytest.raises(UserError, match=message):
        convert(load(tmp_path / "broken", arrange="host"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}


def test_an_exported_model_takes_its_sentencepiece_model_along(tmp_path: Path):
    words = SentencePiece(vocab_size=60, style="t5", sentinels=4).make(lambda: iter(make_text(60)))
    config = dataclasses.replace(CONFIG, vocab_size=words.vocab.size)
    export_model(tmp_path / "hub", config, init(config), files=words.files())
    assert (tmp_path / "hub" / "spiece.model").read_bytes() == words.spiece
    assert load(tmp_path / "hub").tokenizer.encode(["the cat sleeps"]) == words.encode(["the cat sleeps"])


def test_a_tokenizer_with_more_tokens_than_the_table_is_refused(hub: Path, tmp_path: Path):
    config = dataclasses.replace(CONFIG, vocab_size=50)
    export_model(tmp_path / "small", config, init(config), files=load(hub).tokenizer.files())
    with pytest.raises(UserError, match="the tokenizer has .* tokens, but config.json says vocab_size=50"):
        load(tmp_path / "small")


def test_shards_must_all_be_there_and_hold_what_the_index_says(tmp_path: Path):
    config = GptConfig(vocab_size=60, d_model=16, num_layers=2, num_heads=2, d_ff=32, max_len=16)
    params = init_decoder(config)
    export_model(tmp_path / "gpt", config, params, shard_bytes=4000)
    shards = sorted((tmp_path / "gpt").glob("*.safetensors"))
    assert len(shards) > 2 and equal(import_model(tmp_path / "gpt").params, params)
    index = tmp_path / "gpt" / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": whole["weight_map"] | {"nothing": shards[0].name}}))
    with pytest.raises(UserError, match="lists nothing, which .* does not hold"):
        import_model(tmp_path / "gpt")
    index.write_text(json.dumps(whole))
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name}: no such file"):
        import_model(tmp_path / "gpt")


def test_a_tensorflow_checkpoint_is_told_how_to_become_readable(tmp_path: Path):
    (tmp_path / "bert_config.json").write_text("{}")
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"")
    with pytest.raises(UserError, match="holds a TensorFlow checkpoint; where TensorFlow is installed, convert it"):
        load(tmp_path)


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path, capsys):
    with pytest.raises(UserError, match="no such directory"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="is no run, so it has no step 3"):
        load(tmp_path, step=3)
    with pytest.raises(UserError, match="package 'nowhere' is not installed"):
        load("package:nowhere/model")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="model.json: has no field 'model'"):
        load(tmp_path)
    assert main(["convert", str(tmp_path)]) == 2
    assert "give either a directory to write, or --verify" in capsys.readouterr().err


def test_what_has_no_counterpart_is_not_exported(tokenizer: Tokenizer, tmp_path: Path):
    for change, message in [
        ({"norm_position": "pre"}, "norm_position='pre' has no counterpart"),
        ({"mlm_head": "plain"}, "mlm_head='plain' has no counterpart"),
    ]:
        config = dataclasses.replace(CONFIG, **change)
        with pytest.raises(UserError, match=message):
            export_model(tmp_path / "out", config, {})
    with pytest.raises(UserError, match="architecture 'BertForSinging' is not one of bert's"):
        export_model(tmp_path / "out", CONFIG, {}, architecture="BertForSinging")
    params = {"classifier": {"dense": {"kernel": np.zeros((16, 2)), "bias": np.zeros(2)}}}
    with pytest.raises(UserError, match="fits parameters with classifier; pooler='mean' has no counterpart there"):
        export_model(tmp_path / "out", dataclasses.replace(CONFIG, pooler="mean"), params)
    assert not (tmp_path / "out").exists()
