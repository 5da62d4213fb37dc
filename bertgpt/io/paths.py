"""Paths of object stores, and the local copies that stand for them.

A run, store or model at gs:// or s3:// is worked on in a local copy, which is a directory like any other: with renames,
appending, locks and memory mapping. `bertgpt.io.remote` moves files between the two. The place of the copy is a
function of the URL and back, so that a `Path` is all that is passed around:

s3://bucket/runs/a  ⟷  $XDG_CACHE_HOME/bertgpt/remote/s3/bucket/runs/a   (~/.cache without the variable)
"""

import os
import re
from pathlib import Path

from bertgpt.types import UserError

SCHEMES = {"gs": "gcs", "s3": "s3"}
"""scheme of a URL → extra that installs its driver"""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?P<path>.*)")


def copies() -> Path:
    """The folder of all local copies. It may be removed at any time when nothing runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "bertgpt" / "remote"


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL that a path stands for; None for a local path.

    Args:
      path: a URL, a `Path` made of one (Python turns `s3://a` into `s3:/a`), or a path inside a local copy.
    """
    text = os.fspath(path)
    if found := _URL.fullmatch(text):
        return f"{found[1]}://{found['path'].rstrip('/')}"
    path = Path(text)
    if path.is_absolute() and path.is_relative_to(root := copies()):
        scheme, *parts = path.relative_to(root).parts or ("",)
        if scheme in SCHEMES and parts:
            return f"{scheme}://{'/'.join(parts)}"
    return None


def local_path(path: str | os.PathLike[str]) -> Path:
    """Where a path is worked on: the local copy of a URL, which may not exist yet, or the path itself.

    Raises:
      UserError: a URL of another kind than gs:// and s3://, or without a bucket.
    """
    if (url := url_of(path)) is None:
        return Path(path)
    scheme, _, inner = url.partition("://")
    parts = [part for part in inner.split("/") if part]
    if scheme not in SCHEMES:
        raise UserError(
            f"{url}: is a URL, but runs, models and stores lie on a file system or at gs://BUCKET/… or s3://BUCKET/…"
        )
    if not parts or {".", ".."} & set(parts):
        raise UserError(f"{url}: must be {scheme}://BUCKET/FOLDER, without . and ..")
    return copies().joinpath(scheme, *parts)


def cache_of(workdir: Path) -> Path:
    """The folder of prepared data and compiled programs of a folder of runs. That of one at a URL is never uploaded."""
    if url_of(workdir) is None:
        return workdir / "cache"
    return copies().with_name("cache") / workdir.relative_to(copies())


def shown(text: str) -> str:
    """A text for people, where URLs stand in place of local copies."""
    root = re.escape(f"{copies()}{os.sep}")
    return re.sub(rf"{root}({'|'.join(SCHEMES)})/", r"\1://", text)
