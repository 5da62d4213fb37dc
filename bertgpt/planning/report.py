"""A plan as text, and as a picture of its memory and its roofline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertgpt.planning.plan import Plan, remat_of
from bertgpt.sharding import PARAMETER_AXES, num_shards
from bertgpt.types import JsonObject

if TYPE_CHECKING:
    import matplotlib.axes

GIB = 2**30
Rows = list[tuple[str, str]]


def headline(plan: Plan) -> str:
    """What is planned, on one line."""
    e = plan.experiment
    chip = plan.target.chip.kind if plan.target.chip else "host device"
    slices = f"{plan.target.slices} × " if plan.target.slices > 1 else ""
    batch = f"{e.batch_size:,} × {e.data.seq_len:,} tokens, {e.compute_dtype}"
    return f"{e.name} on {slices}{plan.target.topology} ({plan.devices} × {chip}), {describe_settings(plan)}, {batch}"


def describe_settings(plan: Plan) -> str:
    """Mesh, policy and microbatches."""
    policy = remat_of(plan.experiment)
    number = plan.experiment.microbatches
    return f"mesh {mesh_of(plan)}, remat {policy}, {number} microbatch{'es' if number > 1 else ''}"


def mesh_of(plan: Plan, times: str = " × ") -> str:
    """The axes of the mesh that have more than one device, with their sizes."""
    return times.join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"


def describe(plan: Plan, price: float | None = None) -> list[tuple[str, Rows]]:
    """(title, rows) of each part of a plan."""
    sections = [("Memory of a device", memory_rows(plan)), ("Arithmetic of a step", flops_rows(plan))]
    if plan.traffic:
        sections.append(("Communication of a step", communication_rows(plan)))
    if plan.times is not None:
        sections += [("Roofline", time_rows(plan)), ("Run", run_rows(plan, price))]
    return sections


def memory_rows(plan: Plan) -> Rows:
    """How much of what, and whether it fits."""
    p, shards = plan.program, num_shards(plan.mesh, PARAMETER_AXES)
    formula = f"parameters and optimiser state: {gib(plan.state)} by formula, split over {shards}"
    if p.used is not None:
        return [
            ("does not fit", f"the program needs {gib(p.used)} of {gib(p.limit)}: {gib(p.used - p.limit)} too much"),
            ("arguments", formula),
        ]
    rows = [
        ("arguments", f"{gib(p.arguments)}; {formula}"),
        ("temporaries", f"{gib(p.temporaries)}: activations, gradients, copies"),
        ("outputs and code", f"{gib(p.outputs + p.code)}"),
    ]
    if plan.limit is None:
        return [*rows, ("peak", gib(p.peak))]
    left = plan.limit - p.peak
    verdict = f"fits, {gib(left)} left" if plan.fits else f"does not fit, {gib(-left)} too much"
    return [*rows, ("peak", f"{gib(p.peak)} of {gib(plan.limit)}: {verdict}")]


def flops_rows(plan: Plan) -> Rows:
    """FLOPs of the model, of the step as written, and of the program."""
    p = plan.program
    rows = [
        ("parameters", f"{plan.found.total:,}, {plan.found.trained:,} of them trained"),
        ("FLOPs of the model", f"{plan.found.flops:.4e}, of matrix products"),
        ("FLOPs as written", f"{plan.counted:.4e}, recomputation included"),
    ]
    if p.used is None:
        share = p.flops * plan.devices / plan.found.flops
        once = p.xla_flops * plan.devices
        rows += [
            ("FLOPs as compiled", f"{p.flops * plan.devices:.4e}, {share:.2f} × the model's"),
            ("FLOPs by XLA", f"{once:.4e}, loop bodies counted once"),
            ("HBM traffic", f"{p.traffic / 1e9:,.1f} GB on each device"),
        ]
    if p.unknown_loops:
        rows.append(("loops of unknown length", f"{p.unknown_loops}, counted once: these numbers are too low"))
    return rows


def communication_rows(plan: Plan) -> Rows:
    """Collectives by kind, axes and network."""
    rows = []
    for record in plan.traffic:
        name = f"{record['kind']} over {' × '.join(record['axes']) or 'devices'}"
        time = "" if record["seconds"] is None else f", {ms(record['seconds'])}"
        sent = f"sends {megabytes(record['sent'])}"
        rows.append(
            (name, f"{record['network']}: {record['count']:,.0f} times, {megabytes(record['bytes'])}, {sent}{time}")
        )
    return rows


def time_rows(plan: Plan) -> Rows:
    """Times by resource, and utilisation."""
    t, chip = plan.times, plan.target.chip
    near, far = ("ICI", "DCN") if chip.torus else ("NVLink", "network")
    return [
        ("compute", f"{ms(t.compute)} at {chip.flops / 1e12:,.0f} TFLOP/s"),
        ("HBM", f"{ms(t.memory)} at {chip.bandwidth / 1e9:,.0f} GB/s"),
        (near, f"{ms(t.ici)} at {chip.link / 1e9:,.0f} GB/s a {'link' if chip.torus else 'GPU'} and direction"),
        (far, f"{ms(t.dcn)} at {chip.network / 1e9:,.1f} GB/s a chip"),
        ("step", f"{ms(t.roofline)} if all overlaps (bound by {t.bound}), {ms(t.serial)} if communication does not"),
        ("MFU", f"{plan.utilisation(t.roofline):.1%} if all overlaps, {plan.utilisation(t.serial):.1%} otherwise"),
        (
            "tokens per second",
            f"{plan.tokens / t.roofline:,.0f} if all overlaps, {plan.tokens / t.serial:,.0f} otherwise",
        ),
    ]


def run_rows(plan: Plan, price: float | None) -> Rows:
    """Hours and cost of the whole run at the roofline."""
    run = plan.estimates(price)["run"]
    if run["steps"] is None:
        return [("steps", "unknown: the experiment is measured in epochs")]
    cost = "--price PER_CHIP_HOUR shows it" if run["cost"] is None else f"{run['cost']:,.2f} at {price} a chip-hour"
    return [
        ("steps", f"{run['steps']:,}"),
        ("hours", f"{run['hours']:,.1f}, evaluation, checkpoints and stops not included"),
        ("chip-hours", f"{run['chip_hours']:,.0f}"),
        ("cost", cost),
    ]


def lines_of(plan: Plan, price: float | None = None) -> list[str]:
    """The plan as lines of text."""
    lines = [headline(plan)]
    if not plan.target.by_compiler:
        lines += [
            "Counts of a program compiled for CPUs: no compiler for these GPUs runs without one. Memory and HBM",
            "traffic are those of the CPU program, which fuses less and computes bfloat16 in float32: upper bounds.",
        ]
    for title, rows in describe(plan, price):
        lines += ["", title, *(f"  {name:<28} {value}" for name, value in rows)]
    return [*lines, "", f"Compiled in {plan.program.seconds:,.0f} s."]


def ranking(plans: Sequence[Plan]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of plans, the fastest first; those that do not fit come last."""
    columns = ["mesh", "remat", "microbatches", "GiB", "bound by", "step", "MFU", "no overlap", "tokens/s"]
    rows = []
    for plan in ranked(plans):
        start = [mesh_of(plan), str(remat_of(plan.experiment)), str(plan.experiment.microbatches)]
        start.append(f"{plan.program.peak / GIB:,.1f}{'' if plan.fits else ' (!)'}")
        if plan.times is None:
            rows.append([*start, *["–"] * 5])
            continue
        t = plan.times
        rates = [f"{plan.utilisation(seconds):.1%}" for seconds in (t.roofline, t.serial)]
        rows.append([*start, t.bound, ms(t.roofline), *rates, f"{plan.tokens / t.roofline:,.0f}"])
    return columns, rows


def ranked(plans: Sequence[Plan]) -> list[Plan]:
    """The fastest first; of equally fast ones, that whose communication takes less. Those that do not fit come last."""

    def order(plan: Plan) -> tuple:
        times = (np.inf, np.inf) if plan.times is None else (round(plan.times.roofline, 6), plan.times.serial)
        return not plan.fits, *times, plan.program.peak

    return sorted(plans, key=order)


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Writes a picture: stacked bars of memory, and each plan below the roofline of its chip.

    Raises:
      UserError: matplotlib is not installed.
    """
    from bertgpt.io.files import write_atomic
    from bertgpt.studies.plots import panels, png

    figure, (left, right) = panels(2, 2, 6.0, 4.2)
    draw_memory(left, plans)
    draw_roofline(right, plans)
    write_atomic(path, png(figure))


def label(plan: Plan, index: int) -> str:
    """A short name of a plan in a picture."""
    return f"{index + 1}: {mesh_of(plan, '·')}, {remat_of(plan.experiment)}, m{plan.experiment.microbatches}"


def draw_memory(axis: "matplotlib.axes.Axes", plans: Sequence[Plan]) -> None:
    """Bytes of a device as stacked bars, and the limit."""
    from bertgpt.studies.plots import BLUE, GREY, RED, style

    places = np.arange(len(plans))[::-1]
    parts = (("arguments", BLUE), ("temporaries", RED), ("outputs", GREY))
    start = np.zeros(len(plans))
    for name, color in parts:
        size = np.array([vars_of(plan)[name] for plan in plans]) / GIB
        axis.barh(places, size, left=start, color=color, label=name, height=0.6)
        start += size
    limits = [plan.limit for plan in plans if plan.limit]
    if limits:
        axis.axvline(limits[0] / GIB, color="black", linestyle="--", linewidth=1, label="limit")
    axis.set_yticks(places, [label(plan, i) for i, plan in enumerate(plans)], fontsize=7)
    axis.set_xlabel("GiB on each device")
    axis.legend(fontsize=7, frameon=False)
    style(axis, "memory", grid="x")


def vars_of(plan: Plan) -> JsonObject:
    """Bytes by part; of a program that does not fit, all are temporaries beside the state."""
    p = plan.program
    if p.used is not None:
        return {"arguments": plan.state, "temporaries": max(p.used - plan.state, 0.0), "outputs": 0.0}
    return {"arguments": p.arguments, "temporaries": p.temporaries, "outputs": p.outputs + p.code}


def draw_roofline(axis: "matplotlib.axes.Axes", plans: Sequence[Plan]) -> None:
    """FLOP/s against FLOPs for each byte of HBM traffic, below what the chip can do; the arrows end without overlap."""
    from bertgpt.studies.plots import BLUE, GREY, style

    known = [(i, plan) for i, plan in enumerate(plans) if plan.times is not None]
    style(axis, "roofline")
    if not known:
        return
    chip = known[0][1].target.chip
    intensity = np.logspace(0, 4, 100)
    axis.loglog(intensity, np.minimum(chip.flops, intensity * chip.bandwidth) / 1e12, color=GREY, label=chip.kind)
    for i, plan in known:
        t, p = plan.times, plan.program
        at = p.flops / max(p.traffic, 1.0)
        best, worst = (p.flops / seconds / 1e12 for seconds in (t.roofline, t.serial))
        axis.plot([at, at], [best, worst], color=BLUE, linewidth=1)
        axis.plot([at], [best], "o", color=BLUE, markersize=4)
        axis.annotate(str(i + 1), (at, best), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axis.set_xlabel("FLOPs for each byte of HBM traffic")
    axis.set_ylabel("TFLOP/s of a chip")
    axis.legend(fontsize=7, frameon=False)


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,.0f} B"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} µs"
