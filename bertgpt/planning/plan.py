"""The plan of an experiment on a topology: does its step fit, what bounds it, how long does the run take?"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from bertgpt.config import Experiment, Mesh, fingerprint, leaves, with_overrides
from bertgpt.planning.collectives import totals
from bertgpt.planning.compile import Program, Target, compile_step, plan_mesh, versions
from bertgpt.planning.estimate import Estimate, estimate, with_assumed_labels
from bertgpt.planning.roofline import Times, communication, network_of, times_of
from bertgpt.ranges import REMAT_POLICIES, RematPolicy, remat_policy
from bertgpt.sharding import BATCH_AXES, PARAMETER_AXES, num_shards
from bertgpt.types import JsonObject, UserError


class Plan(NamedTuple):
    """An experiment on a topology."""

    experiment: Experiment
    target: Target
    mesh: dict[str, int]
    """sizes of the mesh axes"""
    program: Program
    found: Estimate
    """of one step without recomputation: its FLOPs are those of the model"""
    counted: int
    """matmul FLOPs of a step as written, recomputation included"""
    times: Times | None
    """None: on hosts, or a program that does not fit"""
    traffic: tuple[JsonObject, ...]
    """collectives by kind and axes"""

    @property
    def devices(self) -> int:
        """Their number."""
        return len(self.target.devices)

    @property
    def limit(self) -> float | None:
        """Bytes that a device has; None: of hosts, which share theirs."""
        return self.program.limit or (self.target.chip.limit if self.target.chip else None)

    @property
    def fits(self) -> bool:
        """Whether a device has enough memory."""
        return self.program.used is None and (self.limit is None or self.program.peak <= self.limit)

    @property
    def state(self) -> float:
        """Bytes of parameters and optimiser state on a device, if they are split evenly."""
        return state_bytes(self.found, self.mesh)

    @property
    def tokens(self) -> int:
        """Tokens of a step, with padding."""
        return self.experiment.batch_size * self.experiment.data.seq_len

    def utilisation(self, seconds: float) -> float:
        """Model FLOPs in this time as a fraction of the peak (MFU)."""
        return self.found.flops / (seconds * self.devices * self.target.chip.flops)

    def settings(self) -> JsonObject:
        """What a search varies: leaves of the experiment."""
        mesh = {f"mesh.{axis}": size for axis, size in self.mesh.items()}
        return mesh | {"model.remat": remat_of(self.experiment), "microbatches": self.experiment.microbatches}

    def as_json(self, price: float | None = None) -> JsonObject:
        """Everything, as JSON values."""
        e, p = self.experiment, self.program
        model = e.model
        chip = None if self.target.chip is None else self.target.chip._asdict()
        value: JsonObject = {
            "experiment": e.name,
            "fingerprint": fingerprint(e),
            "topology": self.target.topology,
            "slices": self.target.slices,
            "devices": self.devices,
            "chip": chip,
            "compiled_for_target": self.target.by_compiler,
            "versions": versions(),
            "settings": self.settings() | {"model.scan": vars(model).get("scan")},
            "batch_size": e.batch_size,
            "seq_len": e.data.seq_len,
            "compute_dtype": e.compute_dtype,
            "parameters": self.found.total,
            "memory": {
                "state": self.state,
                "arguments": p.arguments,
                "temporaries": p.temporaries,
                "outputs": p.outputs,
                "code": p.code,
                "peak": p.peak,
                "limit": self.limit,
                "fits": self.fits,
            },
            "flops": {
                "model": self.found.flops,
                "counted": self.counted,
                "program": p.flops * self.devices,
                "xla_loop_bodies_once": p.xla_flops * self.devices,
                "unknown_loops": p.unknown_loops,
            },
            "hbm_bytes": p.traffic,
            "collectives": list(self.traffic),
            "compile_seconds": p.seconds,
        }
        return value | self.estimates(price)

    def estimates(self, price: float | None = None) -> JsonObject:
        """Times, utilisation, throughput, and what the run takes. {} where no peak is known or nothing was compiled.

        Args:
          price: of one chip for one hour.
        """
        if self.times is None:
            return {}
        t, steps = self.times, self.experiment.steps
        hours = None if steps is None else steps * t.roofline / 3600
        chip_hours = None if hours is None else hours * self.devices
        return {
            "seconds": {**t._asdict(), "roofline": t.roofline, "without_overlap": t.serial, "bound": t.bound},
            "mfu": self.utilisation(t.roofline),
            "mfu_without_overlap": self.utilisation(t.serial),
            "tokens_per_second": self.tokens / t.roofline,
            "run": {
                "steps": steps,
                "hours": hours,
                "chip_hours": chip_hours,
                "price_per_chip_hour": price,
                "cost": None if price is None or chip_hours is None else price * chip_hours,
            },
        }


def make_plan(experiment: Experiment, target: Target, cache: Path | None = None) -> Plan:
    """Plans an experiment.

    Args:
      experiment: with a model; labels that only the data knows count as 2.
      target: the devices.
      cache: folder of compiled plans; None: no cache.

    Raises:
      UserError: the mesh does not fit the devices, or only the data knows a shape.
    """
    experiment = with_assumed_labels(experiment)
    program = compile_step(experiment, plan_mesh(experiment, target), target, cache)
    return plan_of(experiment, target, program, *count(experiment))


def count(experiment: Experiment) -> tuple[Estimate, int]:
    """What an experiment needs without recomputation, and its matmul FLOPs as written, with it.

    Both with attention in its plain form: kernels compute the same products, and repeat some in the backward pass.
    """
    plain = plain_attention(experiment)
    found = estimate(without_recomputation(plain))
    return found, found.flops if remat_of(experiment) == "none" else estimate(plain).flops


def plain_attention(experiment: Experiment) -> Experiment:
    """The experiment with attention that is traced for any device."""
    paths = (path for path, _ in leaves(experiment.model, "model.") if path.endswith(".attention"))
    return with_overrides(experiment, dict.fromkeys(paths, "xla"))


def plan_of(experiment: Experiment, target: Target, program: Program, found: Estimate, counted: int) -> Plan:
    """The plan that follows from a compiled program."""
    mesh = plan_mesh(experiment, target)
    known = target.chip is not None and program.used is None
    times = times_of(program, mesh, target, counted / mesh.size) if known else None
    resolved = dataclasses.replace(experiment, mesh=Mesh(**dict(mesh.shape)))
    records = traffic_of(program, mesh, target)
    return Plan(resolved, target, dict(mesh.shape), program, found, counted, times, records)


def traffic_of(program: Program, mesh: jax.sharding.Mesh, target: Target) -> tuple[JsonObject, ...]:
    """Collectives by kind, axes and network, as records."""
    groups: dict[str, list] = {}
    for item in program.collectives:
        groups.setdefault(network_of(item, mesh, target), []).append(item)
    records = []
    for network, items in groups.items():
        for (kind, axes), total in totals(items).items():
            own = [item for item in items if (item.kind, item.axes) == (kind, axes)]
            seconds = None
            if target.chip is not None:
                seconds = sum(item.runs * sum(communication(item, mesh, target)) for item in own)
            records.append(
                {"kind": kind, "axes": list(axes), "network": network, **total._asdict(), "seconds": seconds}
            )
    return tuple(sorted(records, key=lambda record: -record["sent"]))


# -- recomputation ----------------------------------------------------------------------------------------------------


def remat_policies(experiment: Experiment) -> tuple[RematPolicy, ...]:
    """The values of `model.remat`, from no recomputation to that of everything; () if the model has no such field."""
    return REMAT_POLICIES if "remat" in vars(experiment.model) else ()


def remat_of(experiment: Experiment) -> RematPolicy:
    """The policy of an experiment."""
    return remat_policy(vars(experiment.model).get("remat", "none"))


def without_recomputation(experiment: Experiment) -> Experiment:
    """The experiment that stores all activations: its FLOPs are those of the model."""
    return with_overrides(experiment, {"model.remat": "none"}) if remat_policies(experiment) else experiment


# -- what would fit ---------------------------------------------------------------------------------------------------


def state_bytes(found: Estimate, mesh: JsonObject) -> float:
    """Bytes of parameters and optimiser state on a device of this mesh, all of them split evenly."""
    return (found.bytes["parameters"] + found.bytes["optimiser state"]) / num_shards(mesh, PARAMETER_AXES)


def alternatives(plan: Plan) -> list[Experiment]:
    """Experiments that need less memory than a plan, those that cost least first: other policies, then microbatches."""
    policies = remat_policies(plan.experiment)
    here = policies.index(remat_of(plan.experiment)) if policies else 0
    heavier = [with_overrides(plan.experiment, {"model.remat": policy}) for policy in policies[here + 1 :]]
    last, found = (heavier or [plan.experiment])[-1], list(heavier)
    parts = num_shards(plan.mesh, BATCH_AXES)
    for factor in (2, 4, 8):
        number = last.microbatches * factor
        if last.batch_size % (number * parts) == 0:
            found.append(dataclasses.replace(last, microbatches=number))
    return found


def first_that_fits(plan: Plan, cache: Path | None, tries: int) -> tuple[Plan | None, int]:
    """Compiles alternatives of a plan that does not fit, up to a number, until one fits: (that one or None, tries)."""
    number = 0
    for experiment in alternatives(plan)[:tries]:
        number += 1
        try:
            other = make_plan(experiment, plan.target, cache)
        except UserError:
            continue
        if other.fits:
            return other, number
    return None, number
