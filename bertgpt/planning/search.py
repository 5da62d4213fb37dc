"""Tries meshes, recomputation policies and microbatches: prunes by formula, compiles in parallel processes."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import jax

from bertgpt.config import Experiment, Mesh, from_json, to_json, with_overrides
from bertgpt.planning.compile import (
    Program,
    Target,
    compile_step,
    find_target,
    initial_state,
    plan_mesh,
    program_from_json,
    program_to_json,
)
from bertgpt.planning.estimate import Estimate, with_assumed_labels
from bertgpt.planning.plan import Plan, count, plain_attention, plan_of, remat_of, remat_policies, state_bytes
from bertgpt.sharding import BATCH_AXES, num_shards, state_shardings
from bertgpt.types import JsonObject, UserError


class Candidate(NamedTuple):
    """A setting that divides, with what formulas say of it."""

    experiment: Experiment
    memory: float
    """bytes on a device: state and activations"""
    seconds: float
    """of a step, without overlap"""


def candidates(
    experiment: Experiment, target: Target, found: Estimate, microbatches: Sequence[int] = (1, 2, 4)
) -> list[Candidate]:
    """All settings that divide and whose state fits, the most promising first: those that seem to fit, by speed.

    Args:
      experiment: what is planned; the sizes of its dcn and sequence axes are kept.
      target: the devices.
      found: what the experiment needs.
      microbatches: numbers of microbatches to try.
    """
    result = []
    limit = target.chip.limit if target.chip else math.inf
    boxed = initial_state(plain_attention(experiment))
    for mesh in meshes(experiment, len(target.devices)):
        with_mesh = dataclasses.replace(experiment, mesh=mesh)
        try:
            state_shardings(boxed, plan_mesh(with_mesh, target))
        except UserError:
            continue  # something is not divisible
        sizes = vars(mesh)
        for policy, number in itertools.product(remat_policies(experiment) or ("none",), microbatches):
            if experiment.batch_size % (num_shards(sizes, BATCH_AXES) * number):
                continue
            changed = dataclasses.replace(with_mesh, microbatches=number)
            if remat_policies(experiment):
                changed = with_overrides(changed, {"model.remat": policy})
            memory = state_bytes(found, sizes) + activation_bytes(changed, sizes)
            if state_bytes(found, sizes) <= limit:
                result.append(Candidate(changed, memory, step_seconds(changed, sizes, target, found)))
    return sorted(result, key=lambda item: (item.memory > limit, item.seconds))


def meshes(experiment: Experiment, devices: int) -> Iterator[Mesh]:
    """Meshes of this many devices; experts are spread only if the model has any, heads over at most 16 devices."""
    model, own = vars(experiment.model), experiment.mesh
    fixed = max(own.dcn, 1) * max(own.sequence, 1)
    if devices % fixed:
        raise UserError(f"mesh: dcn={own.dcn} × sequence={own.sequence} does not divide {devices} devices")
    experts = model["experts"].num_experts if model.get("experts") is not None else 1
    for tensor, expert, fsdp in itertools.product(divisors(devices // fixed), repeat=3):
        data, rest = divmod(devices // fixed, tensor * expert * fsdp)
        if rest == 0 and tensor <= 16 and experts % expert == 0:
            yield Mesh(max(own.dcn, 1), data, fsdp, expert, max(own.sequence, 1), tensor)


def divisors(number: int) -> list[int]:
    """All of them, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def layers_of(experiment: Experiment) -> int:
    """Blocks of the model, those of a decoder included."""
    model = vars(experiment.model)
    return model.get("num_layers", 0) + model.get("num_decoder_layers", 0)


def activation_bytes(experiment: Experiment, sizes: JsonObject) -> float:
    """Bytes of stored activations on a device: s·b·h·(34 + 5·a·s/h) a layer, or 2·s·b·h if all are recomputed.

    Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", formulas 1 and 5, for two
    bytes an element; tensor parallelism splits most of it.
    """
    model, layers = vars(experiment.model), layers_of(experiment)
    s, h, a = experiment.data.seq_len, model.get("d_model", 1), model.get("num_heads", 1)
    b = experiment.batch_size / num_shards(sizes, BATCH_AXES) / experiment.microbatches
    one = s * b * h * (34 + 5 * a * s / h) / sizes["tensor"] / sizes["sequence"]
    stored = {"none": one, "full": 2 * s * b * h / sizes["sequence"]}
    # dots and names store results of dense layers: 2·s·b·h for each of q, k, v, context, output, and 4 of the mlp.
    return layers * stored.get(remat_of(experiment), 18 * s * b * h / sizes["tensor"] / sizes["sequence"]) + one


def step_seconds(experiment: Experiment, sizes: JsonObject, target: Target, found: Estimate) -> float:
    """A rough time of a step, to rank candidates before they are compiled.

    Arithmetic at the peak (a third more if all is recomputed), parameters gathered and gradients scattered over fsdp
    for each microbatch, gradients summed over the other axes of the batch, four sums of activations a layer over
    tensor.
    """
    if target.chip is None:
        return 0.0
    chip, devices = target.chip, len(target.devices)
    heavy = remat_of(experiment) == "full"
    compute = found.flops * (4 / 3 if heavy else 1) / devices / chip.flops
    speed = chip.link * 2
    held = found.bytes["parameters"] / sizes["expert"] / sizes["tensor"]
    gathered = (3 if heavy else 2) * experiment.microbatches * held / 2 if sizes["fsdp"] > 1 else 0.0
    copies = sizes["dcn"] * sizes["data"]
    summed = 2 * held / sizes["fsdp"] if copies > 1 else 0.0
    tokens = experiment.batch_size * experiment.data.seq_len / num_shards(sizes, BATCH_AXES)
    width = vars(experiment.model).get("d_model", 1)
    across = 4 * 2 * tokens * width * 2 * layers_of(experiment) if sizes["tensor"] > 1 else 0.0
    return compute + (gathered + summed + across) / speed


# -- compilation in processes -----------------------------------------------------------------------------------------

Done = Callable[[Experiment, Plan | str], None]
"""called with each setting and its plan, or why there is none"""


def search(
    experiment: Experiment,
    target: Target,
    cache: Path,
    *,
    limit: int = 12,
    workers: int = 1,
    minutes: float = 30.0,
    microbatches: Sequence[int] = (1, 2, 4),
    done: Done = lambda setting, plan: None,
) -> list[Plan]:
    """Compiles the most promising settings of an experiment.

    Args:
      experiment: what is planned.
      target: the devices.
      cache: folder of compiled plans, which all processes share.
      limit: how many settings to compile.
      workers: how many processes compile at once; each takes about a core and a few GB.
      minutes: longest time for one setting.
      microbatches: numbers of microbatches to try.
      done: called as settings are done.

    Returns:
      The plans, in no order.

    Raises:
      UserError: no setting divides.
    """
    experiment = with_assumed_labels(experiment)
    found, _ = count(experiment)
    chosen = candidates(experiment, target, found, microbatches)[:limit]
    if not chosen:
        raise UserError(f"no mesh of {len(target.devices)} devices divides the model and batch_size")
    written: dict[object, int] = {}
    for item in chosen:
        policy = remat_of(item.experiment)
        if policy not in written:
            written[policy] = count(item.experiment)[1]
    plans = []
    with ThreadPoolExecutor(workers) as pool:
        futures = {
            pool.submit(compile_apart, item.experiment, target, cache, minutes): item.experiment for item in chosen
        }
        try:
            for future in as_completed(futures):
                setting = futures[future]
                try:
                    program = future.result()
                except UserError as error:
                    done(setting, str(error))
                    continue
                plans.append(plan_of(setting, target, program, found, written[remat_of(setting)]))
                done(setting, plans[-1])
        finally:  # Ctrl-C does not compile the others first
            for waiting in futures:
                waiting.cancel()
    return plans


def compile_apart(experiment: Experiment, target: Target, cache: Path, minutes: float) -> Program:
    """Compiles a step in a process of its own.

    Raises:
      UserError: it takes too long, or fails; one line.
    """
    task = {
        "experiment": to_json(experiment), "topology": target.topology, "slices": target.slices, "cache": str(cache)
    }  # fmt: skip
    code = "from bertgpt.planning.search import answer; answer()"
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    try:
        process = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(task), capture_output=True, text=True, timeout=minutes * 60,
            env=kept | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"not compiled within {minutes:g} minutes") from None
    lines = process.stdout.splitlines()
    if process.returncode or not lines:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"its process ended with {process.returncode}: {last[:200]}")
    value = json.loads(lines[-1])
    if "error" in value:
        raise UserError(value["error"])
    return program_from_json(value)


def answer() -> None:
    """What a process of `compile_apart` does: reads a task, compiles, prints the program as one line of JSON."""
    task = json.load(sys.stdin)
    jax.config.update("jax_platforms", "cpu")
    try:
        experiment = from_json(task["experiment"])
        target = find_target(task["topology"], task["slices"])
        program = compile_step(experiment, plan_mesh(experiment, target), target, Path(task["cache"]))
        print(json.dumps(program_to_json(program)))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
