"""bertgpt: language-model pretraining and transfer in JAX.

The names a notebook wants are here and are imported when first used; `import bertgpt` itself touches no device. What
shares its name with its module is imported from there: `from bertgpt.training.loop import train`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Experiment": "config",
    "Mesh": "config",
    "UserError": "types",
    "arms": "config",
    "with_overrides": "config",
    "load": "inference.model",
    "Decoding": "inference.decoding",
    "embed": "inference.encode",
    "embed_images": "inference.image_text",
    "embed_texts": "inference.image_text",
    "fill_mask": "inference.encode",
    "evaluate": "training.evaluate",
    "predict": "inference.predict",
    "prune": "inference.prune",
    "read_metrics": "training.log",
    "retrieve": "inference.image_text",
    "zero_shot": "inference.image_text",
}
_MODULES = {"inspect": "inference.inspect"}
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bertgpt.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'bertgpt' has no attribute {name!r}")
    return vars(importlib.import_module(f"bertgpt.{_HOMES[name]}"))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
