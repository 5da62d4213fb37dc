"""Plans of the real training step: on host devices without the compiler for TPUs, and on TPUs that are not there."""

import dataclasses
import functools
import importlib.util
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import write_experiments

from bertgpt.cli.main import main
from bertgpt.config import Experiment, Mesh
from bertgpt.models.bert import BertConfig
from bertgpt.models.electra import ElectraConfig
from bertgpt.objectives.mlm import MaskedLM
from bertgpt.planning.collectives import Collective
from bertgpt.planning.compile import Program, find_target, out_of_memory
from bertgpt.planning.plan import Plan, make_plan, plain_attention, plan_of
from bertgpt.planning.report import lines_of, ranked
from bertgpt.planning.roofline import communication
from bertgpt.planning.search import candidates, meshes, search
from bertgpt.prepare.corpus import Corpus
from bertgpt.training.optim import AdamW
from bertgpt.types import UserError

WIDTH, LAYERS, VOCAB = 64, 2, 512
MODEL = BertConfig(
    d_model=WIDTH, num_layers=LAYERS, num_heads=4, d_ff=4 * WIDTH, max_len=32, vocab_size=VOCAB, scan=True,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
UNROLLED = dataclasses.replace(MODEL, scan=False)
KERNELS = LAYERS * 12 * WIDTH**2
"""parameters of the kernels of all layers: 4·d² of attention and 8·d² of the feed-forward network each"""


ALL = Mesh()


def experiment(mesh: Mesh = ALL, **changes: object) -> Experiment:
    base = Experiment(
        name="planned",
        model=MODEL,
        objective=MaskedLM(),
        data=Corpus("no/such/file", seq_len=32),
        optim=AdamW(),
        steps=1000,
        batch_size=32,
        mesh=mesh,
    )
    return dataclasses.replace(base, **changes)


@functools.cache
def planned(topology: str, mesh: Mesh, slices: int = 1, model: BertConfig = MODEL, microbatches: int = 1) -> Plan:
    """Plans are shared by tests: compiling takes most of their time."""
    return make_plan(experiment(mesh, model=model, microbatches=microbatches), find_target(topology, slices))


def seen(plan: Plan) -> dict[tuple[str, str], float]:
    """(kind, axes) → bytes."""
    return {(record["kind"], "·".join(record["axes"])): record["bytes"] for record in plan.traffic}


def test_a_plan_on_host_devices_counts_flops_and_the_sum_of_gradients():
    plan = planned("cpu:2", Mesh(data=2))
    assert plan.fits and plan.times is None and plan.program.unknown_loops == 0
    assert plan.program.flops * 2 == pytest.approx(plan.found.flops, rel=1e-3)
    # The gradient of each parameter is summed once, in float32; that of the embedding, which is also the output layer,
    # twice. Beside them there are a few scalars.
    assert seen(plan)["all-reduce", "data"] == pytest.approx(4 * (plan.found.total + VOCAB * WIDTH), abs=64)
    assert plan.program.arguments == pytest.approx(plan.state, rel=0.02)
    assert plan.program.traffic > plan.program.arguments


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"microbatches": 2}, {"model": UNROLLED}], ids=("microbatches", "unrolled"))
def test_loops_over_layers_and_microbatches_do_not_change_the_flops(changes: dict):
    base, other = planned("cpu:2", Mesh(data=2)), planned("cpu:2", Mesh(data=2), **changes)
    assert other.program.flops == pytest.approx(base.program.flops, rel=1e-3)
    assert other.program.unknown_loops == 0


@pytest.mark.slow
def test_recomputation_counts_in_the_program_and_not_in_the_model():
    stored = planned("cpu:2", Mesh(data=2))
    recomputed = planned("cpu:2", Mesh(data=2), model=dataclasses.replace(MODEL, remat="full"))
    assert recomputed.found.flops == stored.found.flops
    assert recomputed.program.flops * 2 == pytest.approx(recomputed.counted, rel=1e-3)
    assert 1.2 < recomputed.counted / stored.counted < 1.34


@pytest.mark.usefixtures("tpu_topology")
@pytest.mark.slow
def test_a_mini_experiment_on_tpus_communicates_as_the_formulas_say():
    plan = planned("v5e:4x4", Mesh(data=4, fsdp=4), model=MODEL)
    assert plan.fits and plan.limit == 15.75 * 2**30 and plan.devices == 16
    assert plan.program.flops * 16 == pytest.approx(plan.found.flops, rel=0.02)
    # Sharded kernels are gathered once, in two bytes an element, for the backward pass finds them stored; the embedding
    # in four. Gradients are scattered in float32; each copy of the model then sums its quarter with the three others.
    sizes = seen(plan)
    assert 2 * KERNELS + 4 * VOCAB * WIDTH <= sizes["all-gather", "fsdp"] <= 4 * plan.found.total
    assert 4 * KERNELS <= sizes["reduce-scatter", "fsdp"] <= 4 * plan.found.total
    assert 4 * KERNELS / 4 <= sizes["all-reduce", "data"] <= 4 * plan.found.total / 4
    assert sizes.get(("all-reduce", "fsdp"), 0) < 4 * KERNELS / 10
    assert {record["network"] for record in plan.traffic} == {"ICI"}
    assert plan.estimates(2.0)["run"]["cost"] == pytest.approx(2.0 * 16 * 1000 * plan.times.roofline / 3600)


@pytest.mark.usefixtures("tpu_topology")
@pytest.mark.slow
def test_the_programs_of_tpus_have_the_same_totals_with_and_without_scan():
    scanned, unrolled = (planned("v5e:4x4", Mesh(data=4, fsdp=4), model=model) for model in (MODEL, UNROLLED))
    assert scanned.program.flops == pytest.approx(unrolled.program.flops, rel=0.01)
    assert scanned.program.xla_flops < 0.9 * unrolled.program.xla_flops  # which counts the loop's body once
    for key in (("all-gather", "fsdp"), ("reduce-scatter", "fsdp")):
        assert seen(scanned)[key] == pytest.approx(seen(unrolled)[key], rel=0.1), key


@pytest.mark.usefixtures("tpu_topology")
@pytest.mark.slow
def test_collectives_between_slices_use_the_network():
    plan = planned("v5e:2x2", Mesh(dcn=2, data=1, fsdp=4), slices=2)
    assert {(r["network"], "dcn" in r["axes"]) for r in plan.traffic} == {("ICI", False), ("DCN", True)}
    assert plan.times.dcn > 0 and plan.devices == 8


@pytest.mark.usefixtures("tpu_topology")
def test_the_time_of_a_collective_follows_the_torus():
    target = find_target("v5e:16x16")
    devices = sorted(target.devices, key=lambda device: tuple(device.coords))
    mesh = jax.sharding.Mesh(np.array(devices).reshape(16, 16), ("x", "y"))

    def seconds(kind: str, group: range) -> float:
        collective = Collective(kind, ("x",), 1e9, 1, tuple(group), "")
        return communication(collective, mesh, target)[0]

    row, part, every_other = range(16), range(4), range(0, 16, 2)
    assert seconds("all-gather", row) == pytest.approx(15 / 16 * 1e9 / 100e9)  # a ring: both directions
    assert seconds("all-reduce", row) == pytest.approx(2 * 15 / 16 * 1e9 / 100e9)
    assert seconds("all-gather", range(256)) == pytest.approx(255 / 256 * 1e9 / 200e9)  # both axes
    assert seconds("all-gather", part) == pytest.approx(3 / 4 * 1e9 / 50e9)  # a line
    assert seconds("all-gather", every_other) == pytest.approx(7 / 8 * 1e9 / 50e9)  # two groups share a ring
    assert seconds("all-to-all", row) == pytest.approx(1e9 * 16 / 8 / 50e9)
    assert seconds("all-to-all", part) == pytest.approx(1e9 * 4 / 4 / 50e9)


def test_a_program_that_does_not_fit_is_reported_with_what_is_missing():
    message = "RESOURCE_EXHAUSTED: … HLO temporaries (31.06G) exceeds available HBM (15.75G). HLO module: jit_step"
    program = out_of_memory(RuntimeError(message))
    assert (program.used, program.limit) == (31.06 * 2**30, 15.75 * 2**30)
    with pytest.raises(RuntimeError):
        out_of_memory(RuntimeError("INTERNAL: something else"))
    plan = planned("cpu:2", Mesh(data=2))
    full = plan_of(plan.experiment, plan.target, program, plan.found, plan.counted)
    assert not full.fits and "15.31 GiB too much" in "\n".join(lines_of(full))
    assert ranked([full, plan]) == [plan, full]


def test_a_plan_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    collective = Collective("all-reduce", ("data",), 4.0, 1.0, (0, 1), "x")
    read = Program(arguments=1, temporaries=2, flops=3.0, collectives=(collective,))
    compiled = []
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: compiled.append(lowered))
    monkeypatch.setattr("bertgpt.planning.compile.read_program", lambda compiled, mesh: read)
    target = find_target("cpu:2")
    for seed, times in ((0, 1), (0, 1), (1, 2)):  # another seed is another program
        plan = make_plan(experiment(Mesh(data=2), seed=seed), target, tmp_path)
        assert plan.program._replace(seconds=0.0) == read and len(compiled) == times
    assert plan.traffic[0]["axes"] == ["data"]


# -- search -----------------------------------------------------------------------------------------------------------


def test_candidates_divide_devices_heads_and_batch():
    base = experiment(batch_size=16)
    settings = [
        item.experiment for item in candidates(base, find_target("cpu:8"), planned("cpu:2", Mesh(data=2)).found)
    ]
    sizes = {(e.mesh.data, e.mesh.fsdp, e.mesh.tensor, e.microbatches) for e in settings}
    assert all(d * f * t == 8 and 16 % (d * f * m) == 0 for d, f, t, m in sizes)
    assert (8, 1, 1, 2) in sizes and (2, 1, 4, 4) in sizes and (1, 1, 8, 1) not in sizes  # 4 heads
    assert len(list(meshes(base, 8))) == 10


@pytest.mark.slow
def test_a_search_compiles_in_processes_and_reports_each(tmp_path: Path):
    done = []
    plans = search(
        experiment(batch_size=16), find_target("cpu:2"), tmp_path, limit=2, workers=2, microbatches=(1,),
        done=lambda setting, plan: done.append(plan),
    )  # fmt: skip
    assert len(plans) == len(done) == 2 and all(plan.program.flops > 0 for plan in plans)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_compilation_that_takes_too_long_is_ended_and_named(tmp_path: Path):
    done = []
    search(
        experiment(), find_target("cpu:2"), tmp_path, limit=1, minutes=1e-4, done=lambda _, plan: done.append(plan)
    )  # fmt: skip
    assert done == ["not compiled within 0.0001 minutes"]


def test_an_interrupted_search_compiles_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun = []

    def compile_one(*setting: object) -> Program:
        begun.append(setting)
        time.sleep(0.2)
        raise UserError("not compiled")

    def interrupt(setting: Experiment, plan: Plan | str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bertgpt.planning.search.compile_apart", compile_one)
    with pytest.raises(KeyboardInterrupt):
        search(experiment(), find_target("cpu:2"), tmp_path, limit=6, done=interrupt)
    assert 1 <= len(begun) <= 2  # of six; the second begins while the first is reported


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write_experiments(tmp_path / "planned.py", {"a": experiment()})


@pytest.mark.slow
def test_the_command_prints_writes_and_draws_a_plan_by_counts(file: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("matplotlib")
    written = tmp_path / "plan.json", tmp_path / "plan.png"
    words = ["--topology", "h100:2", "--mesh.fsdp", "2", "--mesh.data", "1", "--workdir", str(tmp_path)]
    assert main(["plan", file, *words, "--json", str(written[0]), "--picture", str(written[1]), "--price", "3"]) == 0
    out = capsys.readouterr().out
    for part in ("mesh fsdp 2", "upper bounds", "NVLink", "MFU", "chip-hours", "at 3.0 a chip-hour"):
        assert part in out, part
    value = json.loads(written[0].read_text())
    assert value["settings"]["mesh.fsdp"] == 2 and value["memory"]["fits"] and not value["compiled_for_target"]
    assert value["seconds"]["compute"] == pytest.approx(value["flops"]["counted"] / 2 / 989.4e12, rel=1e-3)
    assert value["run"]["cost"] == pytest.approx(3 * 2 * 1000 * value["seconds"]["roofline"] / 3600)
    assert written[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--topology", "v9:2x2"], "--topology v9:2x2: must be CHIP:LAYOUT such as"),
        (["--topology", "v5e:many"], "v5e is followed by the chips along each axis"),
        (["--topology", "cpu:none"], "cpu is followed by a number of devices"),
        (["--topology", "cpu:4096"], "at most 1,024 devices are planned without libtpu"),
        (["--topology", "cpu:8", "--mesh.fsdp", "3"], "does not fit 8 device(s)"),
        (["--topology", "cpu:8", "--mesh.data", "2", "--mesh.tensor", "4", "--model.num_heads", "2"], "not divisible"),
        (["--topology", "cpu:8", "--batch_size", "12"], "batch_size=12 is not divisible by 8"),
        (["--topology", "cpu:3", "--mesh.sequence", "3"], "data.seq_len=32 is not divisible by mesh.sequence=3"),
        (["--topology", "cpu:8", "--json", "no/such/folder/plan.json"], "No such directory as no/such/folder"),
        (["--topology", "cpu:8", "--picture", "."], "--picture '.' must name a file, not a directory"),
        ([], "--topology is required"),
    ],
)
def test_mistakes_are_one_line(
    file: str, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
):
    assert main(["plan", file, *words, "--workdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_compiler_names_the_extra(file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else found(name, *a))
    assert main(["plan", file, "--topology", "v5e:4x4"]) == 2
    assert "pip install bertgpt[tpu]" in capsys.readouterr().err


@pytest.mark.usefixtures("tpu_topology")
def test_a_topology_that_libtpu_does_not_know_is_one_line(file: str, capsys: pytest.CaptureFixture):
    assert main(["plan", file, "--topology", "v5e:3x5"]) == 2
    error = capsys.readouterr().err
    assert "--topology v5e:3x5: " in error and error.count("\n") == 1


def test_an_experiment_whose_shapes_only_the_data_knows_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--topology", "cpu:8", "--init_from", "None", "--workdir", str(tmp_path)]
    assert main(["plan", "finetune/multiple_choice:dream", *words]) == 2
    error = capsys.readouterr().err
    assert "only the data knows" in error and error.count("\n") == 1


def test_attention_is_counted_in_its_plain_form_in_inner_models_too():
    flash = dataclasses.replace(MODEL, attention="flash", embed_dim=WIDTH)
    both = dataclasses.replace(experiment(), model=ElectraConfig(flash, flash))
    plain = plain_attention(both).model
    assert (plain.discriminator.attention, plain.generator.attention) == ("xla", "xla")
