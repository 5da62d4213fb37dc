"""The compilation cache: where compiled programs are kept."""

import os
from pathlib import Path

from bertgpt.io.paths import cache_of

COMPILING = "bertgpt-compile"
"""the names of threads that compile begin with this"""


def use_compile_cache(workdir: Path) -> None:
    """Keeps compiled programs, small ones too, in the folder of runs, so that a resumed run starts at once.

    A cache that the environment names (JAX_COMPILATION_CACHE_DIR) is used as it is configured there.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((cache_of(workdir) / "compiled").absolute()))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
