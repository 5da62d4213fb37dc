"""Print versions, devices and installed extras: what an issue report needs."""

import dataclasses
import importlib.metadata
import platform
import re
import sys

from bertgpt.cli.options import Command


@dataclasses.dataclass(frozen=True)
class Options:
    """Print versions, devices and installed extras: what an issue report needs."""

    devices: bool = True
    """start JAX and list its devices"""


def run(options: Options) -> int:
    print(f"bertgpt   {version('bertgpt')}")
    print(f"python    {sys.version.split()[0]} ({platform.platform()})")
    core, extras = requirements()
    for name in core:
        print(f"{name:<25} {version(name)}")
    if options.devices:
        import jax

        device = jax.devices()[0]
        print(f"devices   {jax.device_count()} × {device.device_kind} ({jax.default_backend()})")
    for extra, names in extras.items():
        missing = [name for name in names if version(name) == "missing"]
        print(f"[{extra}]".ljust(10) + (f"missing {', '.join(missing)}" if missing else "installed"))
    return 0


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(distributions that bertgpt needs, extra → distributions that it adds), without those of other extras."""
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("bertgpt") or ():
        requirement, _, marker = line.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", requirement.strip()).group()
        extra = re.search(r"extra == ['\"](.+?)['\"]", marker)
        if extra is None:
            core.append(name)
        elif name != "bertgpt":
            plugin = {"jax[tpu]": "libtpu", "jax[cuda12]": "jax-cuda12-plugin", "jax[cuda13]": "jax-cuda13-plugin"}
            extras.setdefault(extra.group(1), []).append(plugin.get(requirement.strip(), name))
    return core, extras


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


COMMAND = Command(Options, run)
