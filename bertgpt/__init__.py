"""bertgpt: language-model pretraining and transfer in JAX.

The names a notebook wants are here and are imported when first used; `import bertgpt` itself touches no device. What
shares its name with its module is imported from there: `from bertgpt.train import train`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Experiment": "config",
    "Mesh": "config",
    "UserError": "config",
    "arms": "config",
    "with_overrides": "config",
    "load": "loading",
    "load_run": "run",
    "Decoding": "decoding",
    "embed": "encode",
    "fill_mask": "encode",
    "evaluate_run": "run",
    "predict": "run",
    "read_metrics": "log",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bertgpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bertgpt.{_HOMES[name]}"), name)
