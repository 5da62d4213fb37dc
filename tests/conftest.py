"""Eight host devices, shapes checked at run time, compiled programs shared between tests and runs."""

import os
import tempfile
from pathlib import Path

# Before jax starts: compile fast rather than well, and pretend to have 8 devices.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # compile for TPUs without having one
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real Hugging Face Hub
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "bertgpt-test-compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from jaxtyping import install_import_hook

install_import_hook("bertgpt", "typecheck.checked")

import itertools
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from bertgpt.config import TEST, VALIDATION, Experiment, Mesh, to_json
from bertgpt.data.tokenizer import Tokenizer, WordPiece
from bertgpt.models.bert import BertConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.prepare.corpus import Corpus
from bertgpt.sharding import make_mesh
from bertgpt.training.optim import AdamW

# A suite in the background of a shell inherits ignored signals, which tests send to themselves and to processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
for stopping in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(stopping, signal.SIG_DFL)

WORDS = "the cat dog house runs eats sleeps under tree river and big small green blue bird sings of in a".split()


def fast(names: Iterable[str], *kept: str) -> list:
    """Parameters of a test that is slow for all names but those kept."""
    names = list(names)
    assert set(kept) <= set(names), f"{set(kept) - set(names)}: no such parameters"
    return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]


def make_text(documents: int, seed: int = 0) -> list[str]:
    """Documents of a few sentences of random words, all different."""
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 10))).capitalize() + "."

    return [" ".join(sentence() for _ in range(rng.randint(2, 7))) for _ in range(documents)]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(make_text(120)))
    return path


@pytest.fixture(scope="session")
def tokenizer(corpus_file: Path) -> Tokenizer:
    return Corpus(str(corpus_file), WordPiece(200)).train_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    tokenizer.save(path)
    return path


TINY = BertConfig(
    vocab_size=200, d_model=16, num_layers=2, num_heads=4, d_ff=32, max_len=32, scan=True
)  # every test that needs a compiled model uses this one, so that programs are shared


@pytest.fixture
def tiny(corpus_file: Path, tokenizer_dir: Path) -> Experiment:
    """A whole experiment that trains in a second, on one device; dropout and NSP are on."""
    return Experiment(
        name="tiny",
        model=TINY,
        objective=MaskedLM(pair="nsp"),
        data=Corpus(str(corpus_file), str(tokenizer_dir), seq_len=32, validation=0.15, test=0.15, duplicates=1),
        optim=AdamW(lr=1e-3, warmup_steps=2),
        steps=6,
        batch_size=16,
        mesh=Mesh(data=8),
        evals=(VALIDATION, TEST),
        log_every=2,
    )


def write_experiments(path: Path, arms: dict[str, Experiment]) -> str:
    """Writes an experiment file with these arms and returns its path."""
    values = {name: to_json(experiment) for name, experiment in arms.items()}
    path.write_text(
        "import json\nfrom bertgpt.config import from_json\n"
        f"ARMS = {{name: from_json(value) for name, value in json.loads({json.dumps(json.dumps(values))}).items()}}\n"
    )
    return str(path)


def train_until(file: str, workdir: Path, marker: str, number: signal.Signals) -> tuple[int, list[str]]:
    """Runs `bertgpt train` on one device, sends the signal at the first line with `marker`: (exit code, lines)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bertgpt", "train", file, "--workdir", str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ, XLA_FLAGS="--xla_backend_optimization_level=0"),
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if marker in line:
                process.send_signal(number)
                break
        lines += process.stdout.readlines()
        return process.wait(), lines
    finally:
        watchdog.cancel()


@pytest.fixture(scope="session")
def tpu_topology() -> Callable[..., Sequence[jax.Device]]:
    """(name, num_slices=1) → the devices of a TPU topology, to compile for; the test is skipped without libtpu."""
    pytest.importorskip("libtpu")

    def devices(name: str, **options: int) -> Sequence[jax.Device]:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices

    return devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that compile for TPUs."""
    for item in items:
        if "tpu_topology" in item.fixturenames:
            item.add_marker("tpu")


TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def compiled_programs_fit():
    """Lets go of compiled programs before their memory mappings are more than Linux allows a process (65,530)."""
    yield
    maps = Path("/proc/self/maps")
    if next(TESTS) % 16 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on the first device alone: compiling and saving for eight takes several times as long."""
    monkeypatch.setattr("bertgpt.training.loop.make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def float64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


# -- the server of tests/serving; without the packages of [serve] its tests fail where they import them ------------


@pytest.fixture(scope="session")
def served(tokenizer: Tokenizer) -> dict:
    """Name → `Served` of tiny models of each kind: see `serving_models.make_served`."""
    from serving_models import make_served

    return make_served(tokenizer)


@pytest.fixture(scope="session")
def url(served: dict) -> Iterator[str]:
    """The address of one live server of all of them, on the loopback interface."""
    from serving_models import LIMITS, live

    from bertgpt.serving.app import build_app

    with live(build_app(list(served.values()), LIMITS), LIMITS) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator:
    """An httpx.Client of it."""
    import httpx

    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
