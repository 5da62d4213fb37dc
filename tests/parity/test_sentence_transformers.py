"""Folders of sentence-transformers give the vectors of `SentenceTransformer.encode` and keep their files."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from bertgpt.cli.main import main
from bertgpt.convert.sentence_transformers import MODES
from bertgpt.data.tokenizer import ByteBPE, SentencePiece, WordPiece
from bertgpt.inference.encode import embed
from bertgpt.inference.features import extract_features
from bertgpt.inference.model import load
from parity.families import torch, transformers
from parity.texts import REVIEWS

sentence_transformers = pytest.importorskip("sentence_transformers", reason="parity needs the extra [peers]")
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer import modules as kinds  # noqa: E402

FAMILIES = ("Bert", "Roberta", "Albert", "DistilBert")
ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU")
TEXTS = [*REVIEWS[:12], "", "A", "[MASK] Größe, naïve café [SEP] 你好，世界"]
CARD = "---\nlicense: apache-2.0\n---\n# A model\r\nwith a card.\n"
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}


def make_folder(path: Path, seed: int) -> Path:
    """A random model with random modules, lengths, letter case and prompts, as the library itself saves it."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    make_encoder(path / "encoder", FAMILIES[seed % len(FAMILIES)], lowercase=draw.random() < 0.5)
    parts = [kinds.Transformer(str(path / "encoder"), max_seq_length=draw.choice([24, 40, 64]))]
    parts += [kinds.Dense(24, 20, module_input_name="token_embeddings")] if draw.random() < 0.3 else []
    width = 24 if len(parts) == 1 else 20
    modes = tuple(draw.sample(list(MODES.values()), draw.randint(1, 3)))
    parts.append(kinds.Pooling(width, modes, include_prompt=draw.random() < 0.5))
    width *= len(modes)
    for _ in range(draw.randint(0, 2)):
        out = draw.choice([width, 16])
        activation = vars(torch.nn)[draw.choice(ACTIVATIONS)]()
        dense = {"bias": draw.random() < 0.7, "activation_function": activation, "use_residual": draw.random() < 0.5}
        parts.append(kinds.Dense(width, out, **dense))
        width = out
    parts += [kinds.LayerNorm(width)] if draw.random() < 0.3 else []
    parts += [kinds.Normalize()] if draw.random() < 0.6 else []
    for parameter in torch.nn.ModuleList(parts[1:]).parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    prompts = {"query": "Find the film: ", "passage": "passage"}
    default = draw.choice([None, "query"])
    model = SentenceTransformer(modules=parts, device="cpu", prompts=prompts, default_prompt_name=default)
    model.truncate_dim = draw.choice([None, 9])
    model.save(str(path / "folder"))
    folder = path / "folder"
    if draw.random() < 0.5:  # as versions before 5.4 saved it
        settings = json.loads((folder / "sentence_bert_config.json").read_text())
        old = {"max_seq_length": draw.choice([16, 32, None]), "do_lower_case": draw.random() < 0.5}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings | old))
    if draw.random() < 0.5:
        as_of_version_1(folder)
    (folder / "README.md").write_bytes(CARD.encode())
    (folder / "LICENSE").write_text("Apache License\n")
    return folder


def make_encoder(path: Path, family: str, lowercase: bool) -> None:
    """A random encoder with a tokenizer."""
    tokenizer = {
        "Roberta": ByteBPE(600), "Albert": SentencePiece("unigram", "albert", 600, character_coverage=0.99)
    }.get(family, WordPiece(600, lowercase)).make(lambda: iter(REVIEWS))  # fmt: skip
    tokenizer.save(path)
    common = {"vocab_size": tokenizer.vocab.size, "initializer_range": 0.3}
    settings = {
        "Bert": SIZES | {"max_position_embeddings": 64},
        "Roberta": SIZES | {"max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 1},
        "Albert": SIZES | {"max_position_embeddings": 64, "embedding_size": 12},
        "DistilBert": {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 64},
    }[family]
    config = getattr(transformers, f"{family}Config")(**common, **settings)
    getattr(transformers, f"{family}Model")(config).save_pretrained(path)


def as_of_version_1(folder: Path) -> None:
    """Rewrites a folder: the model in a folder of its own, old names of classes, a flag for each pooling mode."""
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "0_Transformer").mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / "0_Transformer" / file.name)
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        module["type"] = f"sentence_transformers.models.{kind}"
        module["path"] = module["path"] or "0_Transformer"
        if kind == "Pooling":
            file = folder / module["path"] / "config.json"
            config = json.loads(file.read_text())
            given = config.pop("pooling_mode")
            flags = {flag: mode in given for flag, mode in MODES.items()}
            config["word_embedding_dimension"] = config.pop("embedding_dimension")
            file.write_text(json.dumps(config | flags))
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(i, marks=pytest.mark.slow) for i in range(4, 12))])
def test_vectors_are_those_of_encode_and_survive_the_round_trip_with_all_files(seed: int, tmp_path: Path):
    folder = make_folder(tmp_path, seed)
    for step in ("first", "back"):
        reference = SentenceTransformer(str(folder), device="cpu")
        model = load(folder)
        for named in ({}, {"prompt_name": "query"}, {"prompt_name": "passage"}, {"prompt": "of: "}):
            wanted = reference.encode(TEXTS, **named)
            np.testing.assert_allclose(embed(model, TEXTS, **named), wanted, atol=1e-5, rtol=1e-5)
        unit = reference.encode(TEXTS, normalize_embeddings=True)
        np.testing.assert_allclose(embed(model, TEXTS, normalize=True), unit, atol=1e-5)
        np.testing.assert_allclose(extract_features(folder, TEXTS)[:, 0], reference.encode(TEXTS), atol=1e-5, rtol=1e-5)
        if step == "first":
            assert main(["convert", str(folder), str(tmp_path / "native")]) == 0
            np.testing.assert_allclose(embed(load(tmp_path / "native"), TEXTS), embed(model, TEXTS), atol=1e-6)
            assert main(["convert", str(tmp_path / "native"), str(tmp_path / "out")]) == 0
            first = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            folder = tmp_path / "out"
            again = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            assert again.keys() == first.keys() and again[Path("README.md")] == CARD.encode()
            changed = {str(name) for name in first if first[name] != again[name]}
            inner = Path(model.embedder.inner)
            assert changed <= {str(inner / "config.json"), str(inner / "model.safetensors")}
            old, new = (json.loads(files[inner / "config.json"]) for files in (first, again))
            assert {key: new[key] for key in old} == old
