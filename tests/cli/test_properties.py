"""Any words on the command line end in one line and exit code 2, or in a sensible run.

Every flag of every command and every leaf of four experiments get values that users and scripts have given. Nothing is
trained: experiments go through the checks that precede training, and some through one real step. BERTGPT_EXAMPLES
multiplies the number of cases and makes them random.
"""

import contextlib
import dataclasses
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import TINY, make_text, write_experiments
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertgpt.adaptation.lora import Lora
from bertgpt.cli.experiments import with_fields
from bertgpt.cli.main import COMMANDS, main, one_line
from bertgpt.cli.options import Command, flags_of, options_of
from bertgpt.config import TEST, VALIDATION, Experiment, infer, leaves
from bertgpt.convert.hub import export_model
from bertgpt.data.mixture import Curriculum
from bertgpt.data.tokenizer import SentencePiece, Tokenizer, load_tokenizer
from bertgpt.inference.decoding import Decoding
from bertgpt.layers.moe import Experts
from bertgpt.models.bert import BertConfig
from bertgpt.models.gpt import GptConfig
from bertgpt.models.t5 import T5Config
from bertgpt.objectives.classify import Classify
from bertgpt.objectives.lm import CausalLM
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.objectives.span import SpanCorruption
from bertgpt.planning.estimate import estimate, with_assumed_labels
from bertgpt.prepare.corpus import Corpus
from bertgpt.ranges import field_type
from bertgpt.sharding import make_mesh
from bertgpt.tasks.baselines import Majority, NGram
from bertgpt.tasks.classification import TextClassification
from bertgpt.training.checks import check_fit
from bertgpt.training.loop import train
from bertgpt.training.memory import check_batch_memory
from bertgpt.training.optim import Adafactor, AdamW, Lamb
from bertgpt.types import Inputs, UserError

TIMES = int(os.environ.get("BERTGPT_EXAMPLES", "1"))
SECONDS = 60  # what takes longer hangs


def examples(number: int) -> settings:
    return settings(
        max_examples=number * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


NUMBERS = "0 1 2 3 -1 -2 7 64 0.5 -0.5 1e-30 1e30 -1e30 1e999 nan inf -inf 2147483647 2147483648 99999999999".split()
WORDS = ["", "None", "True", "false", "x", "a b", "²", "٣", "é", "\ud800", "\udcff", "a\x1b[0m", "1_0", "0x10", "[1]"]
VALUES = st.one_of(
    st.sampled_from(NUMBERS + WORDS),
    st.sampled_from(NUMBERS),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(repr),
    st.text(max_size=6).filter(lambda text: not text.startswith(("-", "/", "~"))),
)


def choices_in(declared: object) -> list[str]:
    """The values of every Literal in a type."""
    if get_origin(declared) is Literal:
        return [str(choice) for choice in get_args(declared)]
    return [choice for inner in get_args(declared) for choice in choices_in(inner)]


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise AssertionError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_message(text: str) -> None:
    assert text.strip() and len(one_line(text)) < 1000
    assert "Error:" not in text and " object at 0x" not in text


# -- leaves of experiments --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@pytest.fixture(scope="session")
def four(folder: Path, corpus_file: Path, tokenizer_dir: Path) -> dict[str, tuple[Experiment, Tokenizer]]:
    """Four experiments with their tokenizers."""
    table = folder / "cats.csv"
    table.write_text("text,label\n" + "\n".join(f"{t[:100]},{int('cat' in t)}" for t in make_text(80)) + "\n")
    pieces = Corpus(str(corpus_file), SentencePiece(vocab_size=150, sentinels=20)).train_tokenizer()
    pieces.save(folder / "pieces")
    corpus = Corpus(str(corpus_file), str(tokenizer_dir), seq_len=32, validation=0.15, test=0.15, duplicates=1)
    stream = dataclasses.replace(corpus, layout="stream")
    switch = T5Config(
        vocab_size=200, d_model=16, num_layers=2, num_decoder_layers=2, num_heads=2, head_dim=8, d_ff=32, max_len=64,
        experts=Experts(4), num_buckets=8, max_distance=16,
    )  # fmt: skip
    optim, evals = AdamW(warmup_steps=1), (VALIDATION, TEST)
    tiny = Experiment("tiny", TINY, MaskedLM(), corpus, optim, steps=4, batch_size=8, evals=evals)
    change = dataclasses.replace
    experiments = [
        change(tiny, baselines=(NGram(1),)),
        change(
            tiny, name="cats", objective=Classify(2), init_from="x", lora=Lora(), baselines=(Majority(),),
            data=TextClassification(str(table), labels=("0", "1"), seq_len=32, tokenizer=str(tokenizer_dir)),
        ),
        change(
            tiny, name="gpt", objective=CausalLM(), optim=Lamb(),
            model=GptConfig(200, 16, 2, 4, 32, max_len=32, local_window=8),
            data=Curriculum(change(stream, seq_len=16), stream, switch_step=2),
            evals=(dataclasses.replace(VALIDATION, decode=Decoding()),),
        ),
        change(
            tiny, name="switch", objective=SpanCorruption(), optim=Adafactor(), model=switch,
            data=change(corpus, layout="tokens", tokenizer=str(folder / "pieces")),
        ),
    ]  # fmt: skip
    words = load_tokenizer(tokenizer_dir)
    return {item.name: (item, pieces if item.name == "switch" else words) for item in experiments}


def begin(experiment: Experiment, tokenizer: Tokenizer) -> Experiment:
    """What `train` checks before it reads data, and whether schedules are numbers."""
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    experiment = infer(experiment)
    check_fit(experiment, tokenizer, mesh)
    check_batch_memory(experiment)
    experiment.objective.make(tokenizer.vocab)
    if experiment.model is not None:
        experiment.model.make(experiment.compute_dtype)
    steps = experiment.steps or 10
    _, schedule = experiment.optim.make(steps)
    for step in {0, 1, steps // 2, steps - 1}:
        rate = float(schedule(step))
        assert math.isfinite(rate) and rate >= 0, f"the learning rate is {rate} at step {step}"
    return experiment


def flags_for(draw: st.DrawFn, experiment: Experiment, number: int) -> list[str]:
    """Flags with values for some leaves."""
    paths = [path for path, _ in leaves(experiment)]
    args = []
    for _ in range(number):
        path = draw(st.sampled_from(paths))
        owner = experiment
        for part in path.split(".")[:-1]:
            owner = owner[int(part)] if isinstance(owner, tuple) else vars(owner)[part]
        name = path.split(".")[-1]
        declared = field_type(type(owner), name) if dataclasses.is_dataclass(owner) and name != "type" else None
        known = choices_in(declared)
        values = st.one_of(st.sampled_from(known), VALUES) if known else VALUES
        args += [f"--{path}", *draw(st.lists(values, min_size=1, max_size=2 if get_origin(declared) is tuple else 1))]
    return args


@given(data=st.data())
@examples(300)
def test_every_leaf_is_refused_in_one_line_or_taken(data: st.DataObject, four: dict):
    experiment, tokenizer = four[data.draw(st.sampled_from(sorted(four)))]
    args = flags_for(data.draw, experiment, data.draw(st.integers(1, 3)))
    with no_hang():
        try:
            (changed,) = with_fields([experiment], args)
            changed = begin(changed, tokenizer)
        except UserError as error:
            check_message(str(error))
            return
        assert all(math.isfinite(value) for _, value in leaves(changed) if isinstance(value, float))


@given(data=st.data())
@examples(12)
def test_what_is_taken_can_be_computed(data: st.DataObject, four: dict):
    """A whole step, traced but not run."""
    experiment, tokenizer = four[data.draw(st.sampled_from(sorted(four)))]
    args = flags_for(data.draw, experiment, 1)
    with no_hang():
        try:
            changed = begin(with_fields([experiment], args)[0], tokenizer)
            assert estimate(with_assumed_labels(changed)).total > 0
        except UserError as error:
            check_message(str(error))


@pytest.mark.slow
@given(data=st.data())
@examples(6)
def test_what_is_taken_trains_a_step(data: st.DataObject, four: dict, folder: Path, one_device: None):
    experiment, _ = four[data.draw(st.sampled_from(["tiny", "gpt", "switch"]))]
    sample = dataclasses.replace(experiment, steps=1, evals=())
    number = len(list(folder.iterdir()))
    with no_hang():
        try:
            (changed,) = with_fields([sample], [*flags_for(data.draw, sample, 1), "--name", f"run{number}"])
            results = train(dataclasses.replace(changed, steps=1, epochs=None), folder / str(number))
            assert results["step"] == 1
        except UserError as error:
            check_message(str(error))


# -- flags of commands ------------------------------------------------------------------------------------------------


def all_commands() -> dict[str, Command]:
    """“prepare” or “tokenizer train” → command."""
    import importlib

    found = {}
    for name in COMMANDS:
        content = vars(importlib.import_module(f"bertgpt.cli.{name}"))
        found |= {f"{name} {action}": command for action, command in content.get("ACTIONS", {}).items()}
        found |= {name: content["COMMAND"]} if "COMMAND" in content else {}
    return found


ALL = all_commands()
# A command line that works, in which {…} is a place; what is drawn is added to it.
WORKING = {
    "train": "{arms.py}:tiny",
    "evaluate": "{run}",
    "predict": "{bert} --text=a|[MASK]",
    "generate": "{gpt2} --prompt=a|cat --max_new_tokens=2",
    "prompt": "{gpt2} --input={good.jsonl} --labels cat dog --template={text}|{label}",
    "features": "{bert} --input={good.jsonl} --output=new.npy",
    "report": "{run}",
    "sweep": "{arms.py}:tiny",
    "tune": "{arms.py}:tiny --space={space.toml} --trials=1",
    "tokenizer train": "{text.txt} --out=new --vocab_size=100",
    "tokenizer inspect": "{words} {text.txt}",
    "prepare": "{text.txt} --tokenizer={words} --out=new --workers=1",
    "convert": "{bert} new",
    "prune": "{bert} new --num_layers=1",
    "export": "{bert} --format=int8 --out=new --measure=False",
    "serve": "{bert} --port=0",
    "list": "demo",
    "show": "{arms.py}:tiny",
    "plan": "{arms.py}:tiny --topology=cpu:2",
    "env": "--devices=False",
}
OUTPUTS = ("out", "output", "workdir", "json", "picture")
FIELDS = {
    "tokenizer train": "vocab_size min_frequency limit_alphabet lowercase style sentinels character_coverage".split(),
    "predict": ["data.text_field", "data.seq_len", "batch_size"],
    "evaluate": ["data.text_field", "data.seq_len", "batch_size", "evals.0.max_batches"],
}


@pytest.fixture(scope="session")
def places(folder: Path, four: dict, corpus_file: Path, tokenizer_dir: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Files and directories of every kind by name, some of which fit where they are given."""
    size = {"vocab_size": 200, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "max_len": 32}
    for name, config in (("bert", BertConfig(**size)), ("gpt2", GptConfig(**size))):
        ids = jnp.zeros((1, 4), jnp.int32)
        logits = (lambda m, x: m.mlm_logits(m(x))) if name == "bert" else (lambda m, x: m(x))
        params = nn.unbox(nn.init(logits, config.make())(jax.random.key(0), Inputs(ids)))["params"]
        export_model(folder / name, config, params)
        for file, content in tokenizer.files().items():
            (folder / name / file).write_bytes(content)
    write_experiments(folder / "arms.py", {name: experiment for name, (experiment, _) in four.items()})
    (folder / "records.jsonl").write_text('{"text": "a cat", "label": "0"}\n{"text": 5}\n')
    (folder / "good.jsonl").write_text('{"text": "a [MASK]", "prompt": "a cat", "label": "cat"}\n')
    (folder / "space.toml").write_text('"optim.lr" = {low = 1e-5, high = 1e-3, log = true}\n')
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "empty").mkdir()
    (folder / "words").symlink_to(tokenizer_dir)
    (folder / "text.txt").write_text(corpus_file.read_text()[:3000])
    names = "bert gpt2 arms.py records.jsonl good.jsonl space.toml binary empty words text.txt none run".split()
    return {name: str(folder / name) for name in names}


ODD = ["", "nowhere", "no/such", ".", "demo/pretrain", "tfds:none", "package:none/x", "arms.py:none"]


def stub(experiment: Experiment, *args: object, **named: object) -> dict:
    """In place of `train`: a run that a signal stopped at once."""
    del experiment, args, named
    return {"step": 0, "stopped": "SIGTERM"}


def filled(line: str, places: dict[str, str]) -> list[str]:
    """The words of a line of WORKING."""
    words = [word.replace("|", " ") for word in line.split()]
    for place, path in places.items():
        words = [word.replace(f"{{{place}}}", path) for word in words]
    return words


def words_for(draw: st.DrawFn, name: str, places: dict[str, str]) -> list[str]:
    """A command line that works, with another place or up to three more flags."""
    options = options_of(ALL[name].options)
    flags = [*flags_of(ALL[name]), *FIELDS.get(name, ["steps", "optim.lr", "nonsense"])]
    words = filled(WORKING[name], places)
    path = st.sampled_from([*places.values(), *ODD])
    if words and not words[0].startswith("-") and draw(st.integers(0, 4)) == 0:
        words[0] = draw(path)
    for flag in draw(st.lists(st.sampled_from(flags), max_size=3)):
        declared = options[flag].declared if flag in options else int
        if flag in OUTPUTS:
            value = draw(st.sampled_from(["", ".", "new", "new/deeper", "good.jsonl", "empty"]))
        elif flag == "workers":  # no thousands of processes
            value = draw(st.sampled_from(["0", "-1", "1", "2", "x", "nan", "None", "99999999999"]))
        elif choices_in(declared):
            value = draw(st.one_of(st.sampled_from(choices_in(declared)), VALUES))
        elif declared in (str, str | None):
            value = draw(st.one_of(path, VALUES))
        else:
            value = draw(st.one_of(st.sampled_from(["1", "2", "7", "0.5", "True"]), VALUES))
        words.append(f"--{flag}={value}")
    return [*name.split(), *words]


def check_command(name: str, places: dict[str, str], number: int, folder: Path, monkeypatch, capsys) -> None:
    """Runs command lines, each in a folder of its own."""
    for module in ("bertgpt.training.loop", "bertgpt.studies.sweep", "bertgpt.studies.tune"):
        monkeypatch.setattr(f"{module}.train", stub)
    monkeypatch.setattr("bertgpt.planning.search.search", lambda *args, **named: [])  # it compiles many programs
    monkeypatch.setattr("bertgpt.serving.server.run_server", lambda *args: None)
    monkeypatch.setattr("bertgpt.cli.export.print_footprints", lambda *args: None)  # it starts processes

    def call(words: list[str]) -> tuple[int, str, str]:
        here = folder / str(len(list(folder.iterdir())))
        here.mkdir()
        monkeypatch.chdir(here)
        capsys.readouterr()
        with no_hang():
            return main(words), *capsys.readouterr()

    @given(data=st.data())
    @examples(number)
    def run(data: st.DataObject) -> None:
        words = words_for(data.draw, name, places)
        code, out, err = call(words)
        assert code in (0, 1, 2), f"{words}: exit code {code}: {err[-2000:]}"
        assert "Traceback" not in err + out, f"{words}: {err[-3000:]}"
        if code == 2:
            last = err.splitlines()[-1]
            assert last.startswith("bertgpt: "), f"{words}: {err[-2000:]}"
            check_message(last)

    works = "{run}" not in WORKING[name] or Path(places["run"]).exists()
    assert not works or call([*name.split(), *filled(WORKING[name], places)])[0] == 0
    run()


@pytest.mark.parametrize("name", ALL)
def test_every_flag_is_refused_in_one_line_or_taken(name: str, places, tmp_path: Path, monkeypatch, capsys):
    check_command(name, places, 12, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_every_flag_is_refused_in_one_line_or_taken_by_a_run(four, places, tmp_path, one_device, monkeypatch, capsys):
    experiment, _ = four["cats"]
    train(dataclasses.replace(experiment, name="run", init_from=None, lora=None, steps=1), tmp_path / "runs")
    inside = places | {"run": str(tmp_path / "runs" / "run"), "bert": str(tmp_path / "runs" / "run")}
    for name in ("predict", "evaluate", "report", "convert", "features"):
        (tmp_path / name).mkdir()
        check_command(name, inside, 12, tmp_path / name, monkeypatch, capsys)
