"""Compiles the real training step of an experiment ahead of time, from shapes alone, for devices that need not exist.

The compiler for TPUs runs on any machine (package libtpu, extra [tpu]): nothing is allocated and no data is read.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding

from bertgpt.config import Experiment
from bertgpt.inference.model import build_apply
from bertgpt.io.directories import make_directory
from bertgpt.io.files import read_json_object, write_json
from bertgpt.planning.collectives import Collective, collectives_of
from bertgpt.planning.estimate import abstract_batch, missing_fields, parts_of, spec_of
from bertgpt.planning.hlo import parse
from bertgpt.sharding import make_mesh, spec, state_shardings
from bertgpt.training.checks import check_divisible
from bertgpt.training.chips import CHIPS, Chip, chip_of
from bertgpt.training.state import TrainState, boxed_state
from bertgpt.training.step import make_train_step
from bertgpt.types import Batch, JsonObject, UserError

FORMAT = 1  # of cached programs; raised when what is read from them changes
TPUS = tuple(chip.name for chip in CHIPS if chip.torus)
GPUS = tuple(chip.name for chip in CHIPS if not chip.torus)
GPUS_PER_HOST = 8
QUIET = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
"""what libtpu would ask the cloud for, and complain of not finding; it does not change what is compiled"""
MOST_HOST_DEVICES = 1024  # beyond, the compiler for CPUs takes minutes for the smallest program
EXAMPLES = "v5e:16x16, v5p:4x4x4, h100:8 or cpu:8"


class Target(NamedTuple):
    """The devices of a plan."""

    topology: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    """None: of hosts"""
    slices: int
    by_compiler: bool
    """whether the compiler of these devices compiles; else a program for CPUs is counted"""


def find_target(topology: str, slices: int = 1) -> Target:
    """The devices that a topology names: CHIP:AxBxC of TPUs, CHIP:N of GPUs, cpu:N.

    Args:
      topology: its name.
      slices: this many of them, connected by the data centre network.

    Raises:
      UserError: there is no such topology, or its compiler is not installed.
    """
    name, _, layout = topology.partition(":")
    if name in TPUS:
        devices = tpu_devices(name, topology, slices)
        chip = chip_of(devices[0].device_kind)
        return Target(topology, devices, chip, slices, True)
    if name in ("cpu", *GPUS):
        if not re.fullmatch(r"[1-9]\d{0,4}", layout):
            raise UserError(f"--topology {topology}: {name} is followed by a number of devices, such as {name}:8")
        if int(layout) * slices > MOST_HOST_DEVICES:
            raise UserError(f"--topology {topology}: at most {MOST_HOST_DEVICES:,} devices are planned without libtpu")
        chip = next((chip for chip in CHIPS if chip.name == name), None)
        return Target(topology, host_devices(int(layout) * slices), chip, slices, name == "cpu")
    known = ", ".join((*TPUS, *GPUS, "cpu"))
    raise UserError(f"--topology {topology}: must be CHIP:LAYOUT such as {EXAMPLES}, with a chip out of {known}")


def tpu_devices(name: str, topology: str, slices: int) -> Sequence[jax.Device]:
    """Descriptions of TPUs. Errors: as `find_target`."""
    from jax.experimental import topologies

    if not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*){0,2}", topology):
        raise UserError(f"--topology {topology}: {name} is followed by the chips along each axis, such as {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {topology} needs the compiler for TPUs; install it with: pip install bertgpt[tpu]")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    settings: JsonObject = {"chip_config_name": "megacore"} if name == "v4" else {}  # both cores as one device
    if slices > 1:
        settings["num_slices"] = slices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **settings).devices
    except Exception as error:  # of several types, by what is wrong
        reason = re.sub(r"^[A-Z_]+: ", "", " ".join(str(error).split()))[:200]
        raise UserError(f"--topology {topology}: {reason}") from None


def host_devices(number: int) -> Sequence[jax.Device]:
    """This many CPU devices.

    Raises:
      UserError: JAX has started with fewer.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started: there are as many as there are
            jax.config.update("jax_num_cpu_devices", max(number, jax.config.jax_num_cpu_devices))
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise UserError(f"{number} host devices are needed and JAX has started with {len(devices)}")
    return devices[:number]


# -- the program ------------------------------------------------------------------------------------------------------


def lower_step(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Lowered, TrainState]:
    """The training step, traced for the devices of a mesh, and the shapes and shardings of its state.

    Raises:
      UserError: only the data knows the shape of a field, or something is not divisible by the mesh.
    """
    check_divisible(experiment, mesh)
    declared = spec_of(experiment)
    batch = abstract_batch(declared, experiment)
    module, objective, tx, schedule = parts_of(experiment)
    with jax.set_mesh(mesh):
        boxed = initial_state(experiment)
        shardings = state_shardings(boxed, mesh)
        unboxed = jax.tree.unflatten(jax.tree.structure(shardings), jax.tree.leaves(boxed))
        state = jax.tree.map(_struct, unboxed, shardings)
        over = NamedSharding(mesh, spec(("batch",)))
        step = make_train_step(
            objective, build_apply(module, experiment.lora), tx, schedule, shardings,
            seed=experiment.seed, microbatches=experiment.microbatches, trainable=experiment.trainable,
            token_fields=tuple(name for name, field in declared.items() if field.counts_tokens),
        )  # fmt: skip
        return step.lower(state, {name: _struct(array, over) for name, array in batch.items()}), state


def initial_state(experiment: Experiment) -> TrainState:
    """The shapes of the initial state, boxed with the names of their axes.

    Raises:
      UserError: only the data knows the shape of a field.
    """
    module, objective, tx, _ = parts_of(experiment)

    def state(batch: Batch) -> TrainState:
        return boxed_state(module, objective, tx, batch, experiment.seed, experiment.trainable, experiment.lora)

    with missing_fields():
        return jax.eval_shape(state, abstract_batch(spec_of(experiment), experiment))


def _struct(array: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


class Program(NamedTuple):
    """What a compiled step needs of each device. If it does not fit, `used` and `limit` alone are known."""

    arguments: int = 0
    """bytes of parameters, optimiser state and batch"""
    temporaries: int = 0
    """bytes of activations, gradients and copies, at their peak"""
    outputs: int = 0
    """bytes of results that do not take the place of arguments"""
    code: int = 0
    """bytes of the program itself"""
    flops: float = 0.0
    """of matrix products, by the program's text, loops included"""
    xla_flops: float = 0.0
    """of everything, by XLA, which counts the body of a loop once"""
    traffic: float = 0.0
    """bytes read from and written to HBM"""
    collectives: tuple[Collective, ...] = ()
    unknown_loops: int = 0
    """loops that count once because their number of iterations is not known"""
    seconds: float = 0.0
    """of compilation"""
    used: float | None = None
    """bytes that the compiler asked for in vain; None: it fits"""
    limit: float | None = None
    """bytes that there are, by the compiler"""

    @property
    def peak(self) -> float:
        """Bytes that a device needs."""
        return self.used or self.arguments + self.temporaries + self.outputs + self.code


def compile_step(experiment: Experiment, mesh: jax.sharding.Mesh, target: Target, cache: Path | None) -> Program:
    """Compiles the step, or finds it in a cache.

    Args:
      experiment: what is trained.
      mesh: made of the target's devices.
      target: the devices.
      cache: folder of compiled plans; None: no cache. An entry belongs to a program, a topology and the versions of
        the compilers.

    Raises:
      UserError: as `lower_step`.
    """
    lowered, _ = lower_step(experiment, mesh)
    text = lowered.as_text()
    facts = (FORMAT, target.topology, target.slices, tuple(mesh.shape.items()), versions(), text)
    path = None if cache is None else cache / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"
    if path is not None and path.exists():
        return program_from_json(read_json_object(path))
    start = time.perf_counter()
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # JAX cannot read programs for other devices back
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        program = out_of_memory(error)
    else:
        program = read_program(compiled, mesh)
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
    program = program._replace(seconds=time.perf_counter() - start)
    if path is not None:
        make_directory(path.parent)
        write_json(path, program_to_json(program))
    return program


def read_program(compiled: jax.stages.Compiled, mesh: jax.sharding.Mesh) -> Program:
    """Everything that a plan needs of a compiled step."""
    memory, module = compiled.memory_analysis(), parse(compiled.as_text())
    return Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=module.flops(),
        xla_flops=float((compiled.cost_analysis() or {}).get("flops", 0.0)),
        traffic=module.memory_traffic(),
        collectives=tuple(collectives_of(module, mesh)),
        unknown_loops=module.unknown_loops,
    )


def out_of_memory(error: Exception) -> Program:
    """What the compiler says of a program that does not fit. Any other error is raised again."""
    found = re.search(r"\(([\d.]+)([BKMGTP]?)\) exceeds available HBM \(([\d.]+)([BKMGTP]?)\)", str(error))
    if found is None:
        raise error
    sizes = [float(found[i]) * 1024 ** "BKMGTP".index(found[i + 1] or "B") for i in (1, 3)]
    return Program(used=sizes[0], limit=sizes[1])


def versions() -> dict[str, str]:
    """Versions of the compilers."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(name)
    return found


def program_to_json(program: Program) -> JsonObject:
    """As JSON values."""
    return {**program._asdict(), "collectives": [item._asdict() for item in program.collectives]}


def program_from_json(value: JsonObject) -> Program:
    """The inverse of `program_to_json`."""
    items = [Collective(**{**c, "axes": tuple(c["axes"]), "group": tuple(c["group"])}) for c in value["collectives"]]
    return Program(**{**value, "collectives": tuple(items)})


def plan_mesh(experiment: Experiment, target: Target) -> jax.sharding.Mesh:
    """The experiment's mesh of the target's devices. Errors: UserError if its sizes do not fit."""
    return make_mesh(experiment.mesh, target.devices)
