"""checkpoint.json: what a checkpoint holds besides its arrays, and how damage and mistakes are noticed.

version, step     of the checkpoint
metrics           by which the best checkpoints are kept
progress          what the training loop carries over
experiment        the fields that determine what the run computes
files             path → size and SHA-256
"""

import math
from collections.abc import Mapping
from pathlib import Path

from bertgpt.config import is_operational
from bertgpt.io.checksums import checksums, find_damage, read_sealed, read_sealed_or_edited, sealed
from bertgpt.io.files import write_json
from bertgpt.runs.mirror import fetch_checkpoint
from bertgpt.types import JsonObject, UserError

FACTS = "checkpoint.json"
MARKS = (FACTS, "_CHECKPOINT_METADATA")
"""a folder without our file or orbax's is no checkpoint"""
SAVED = "progress.json"
"""file of a run that holds the newest step saved"""
VERSION = 1


def write_facts(directory: Path, facts: JsonObject) -> None:
    """Writes checkpoint.json when all other files are there, and waits until they are on disk.

    Raises:
      OSError: a file cannot be read or written, or (CannotWrite) checkpoint.json cannot.
    """
    write_json(directory / FACTS, sealed({"version": VERSION, **facts, "files": checksums(directory, sync=True)}))


def damage_of(path: Path, step: int, items: tuple[str, ...]) -> str | None:
    """What is wrong with the files of some items of a checkpoint; None if nothing is."""
    if not (path / FACTS).exists():
        return f"{FACTS} is missing, or an earlier version of bertgpt wrote it"
    try:
        facts = read_sealed(path / FACTS)
    except UserError as error:
        return str(error).removeprefix(f"{path}/")
    if facts["version"] != VERSION:
        return f"has version {facts['version']}, this program reads {VERSION}"
    if facts["step"] != step:
        return f"is the checkpoint of step {facts['step']}"
    used = {name: check for name, check in facts["files"].items() if "/" not in name or name.split("/")[0] in items}
    fetch_checkpoint(path, used)
    damage = find_damage(path, used)
    if damage is not None and fetch_checkpoint(path, used, again=True):  # what a URL has may be intact
        damage = find_damage(path, used)
    return damage


def identity(run: Path) -> JsonObject:
    """The fields of a run's experiment that determine what it computes; {} of a directory that is no run."""
    path = run / "experiment.json"
    facts = read_sealed_or_edited(path) if path.exists() else {}
    return {name: value for name, value in facts.items() if not is_operational(name)}


def difference(path: Path, run: Path) -> str | None:
    """Says how the experiment that saved a checkpoint differs from that of a run; None if it does not."""
    changed = _differences(read_sealed(path / FACTS).get("experiment", {}), identity(run))
    return f"{path}: is of another experiment: {'; '.join(changed)}" if changed else None


def _differences(there: JsonObject, here: JsonObject, prefix: str = "") -> list[str]:
    """Leaves that differ, in words. A field that one side lacks was added by another version of this program."""
    found = []
    for name in sorted(there.keys() & here.keys()):
        saved, wanted = there[name], here[name]
        if isinstance(saved, dict) and isinstance(wanted, dict):
            found += _differences(saved, wanted, f"{prefix}{name}.")
        elif saved != wanted:
            found.append(f"{prefix}{name} was {saved!r}, here {wanted!r}")
    return found


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON, which has no NaN."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
