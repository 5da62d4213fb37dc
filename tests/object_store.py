"""An object store in memory that stands for S3, with faults."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem

from bertgpt.io import lease, retry


class ObjectStore(AbstractFileSystem):
    """What s3fs offers of S3: objects that are written whole. Directories are only parts of names."""

    protocol = ("s3",)
    cachable = False
    objects: dict[str, tuple[bytes, str]] = {}
    """path → (content, entity tag)"""
    requests: list[tuple[str, str]] = []
    """(operation, path without the bucket) of all requests"""
    fault: Callable[[str, str], None] | None = None
    """is called with each request before it is served"""

    def _request(self, operation: str, path: str) -> str:
        path = self._strip_protocol(path)
        bucket, _, inner = path.partition("/")
        ObjectStore.requests.append((operation, inner))
        if ObjectStore.fault is not None:
            ObjectStore.fault(operation, inner)
        if bucket != "bucket":
            raise FileNotFoundError("The specified bucket does not exist")
        if operation in ("get", "head", "delete") and path not in self.objects:
            raise FileNotFoundError(path)
        return path

    def find(self, path, maxdepth=None, detail=False, **options):
        prefix = self._request("list", path).rstrip("/") + "/"
        found = [name for name in self.objects if name.startswith(prefix)]
        if maxdepth is not None:
            found = [name for name in found if name[len(prefix) :].count("/") < maxdepth]
        return {name: self._info(name) for name in found} if detail else found

    def info(self, path, **options):
        return self._info(self._request("head", path))

    def exists(self, path, **options):
        return self._strip_protocol(path) == "bucket"

    def _info(self, path: str) -> dict:
        content, tag = self.objects[path]
        return {"name": path, "size": len(content), "type": "file", "ETag": tag}

    def cat_file(self, path, *args, **options):
        return self.objects[self._request("get", path)][0]

    def pipe_file(self, path, value, mode="overwrite", **options):
        path = self._request("put", path)
        if mode == "create" and path in self.objects:
            raise FileExistsError(path)
        self.objects[path] = (bytes(value), f'"{len(ObjectStore.requests)}"')

    def put_file(self, source, path, *args, **options):
        self.pipe_file(path, Path(source).read_bytes())

    def get_file(self, path, target, *args, **options):
        content = self.objects[self._request("get", path)][0]
        Path(target).write_bytes(content[: len(content) // 2])
        self._request("get rest", path)
        Path(target).write_bytes(content)

    def rm_file(self, path):
        del self.objects[self._request("delete", path)]

    @classmethod
    def names(cls) -> list[str]:
        """All objects, without the bucket."""
        return sorted(name.removeprefix("bucket/") for name in cls.objects)


@pytest.fixture
def object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ObjectStore]]:
    """An empty bucket s3://bucket, local copies in a folder of the test, and no waiting."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    monkeypatch.setattr(retry, "FIRST", 0.001)
    monkeypatch.setattr(retry, "LONGEST", 0.01)
    monkeypatch.setattr(lease, "SETTLED", 0.0)
    before = fsspec.get_filesystem_class("s3") if "s3" in fsspec.registry else None
    fsspec.register_implementation("s3", ObjectStore, clobber=True)
    ObjectStore.objects.clear()
    ObjectStore.requests.clear()
    ObjectStore.fault = None
    yield ObjectStore
    ObjectStore.fault = None
    _registry.pop("s3")
    if before is not None:
        fsspec.register_implementation("s3", before, clobber=True)
