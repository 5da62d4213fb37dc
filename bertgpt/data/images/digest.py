"""Digests of the pictures that records name, so that a resumed run notices that they have changed.

Up to CONTENT_BYTES of pictures in all, the digest is that of their content. Of larger sets, and at URLs, it is that of
their names and sizes, for which no picture is read: another picture almost always has another size. Modification times
of files do not count, because copies of a dataset have others.
"""

import os
from collections.abc import Iterable

from bertgpt.data.images.folders import pictures_digest
from bertgpt.data.images.reading import ImageReference, frame_references, read_content, tar_index
from bertgpt.data.images.tars import is_tar
from bertgpt.data.sources.files import facts
from bertgpt.io.files import URL


def image_digest(references: Iterable[ImageReference]) -> str:
    """SHA-256 of all these pictures, each counted once, whatever their order.

    Raises:
      UserError: one is missing.
    """
    videos = (frame_references(reference) or [reference] for reference in references)
    pictures = sorted({picture._replace(where="") for frames in videos for picture in frames})
    folder = os.path.commonprefix([os.path.dirname(picture.file) for picture in pictures])
    named = {f"{picture.file.removeprefix(folder)}: {picture.member}": picture for picture in pictures}
    return pictures_digest(((name, _size(each)) for name, each in named.items()), lambda name: _content(named[name]))


def _content(picture: ImageReference) -> bytes:
    content = read_content(picture)
    return content if isinstance(content, bytes) else content.tobytes()


def _size(picture: ImageReference) -> int | None:
    """Bytes of a picture on disk; None elsewhere."""
    if picture.file.startswith("tfds:") or URL.match(picture.file):
        return None
    if picture.member:
        return tar_index(picture.file)[picture.member][1] if is_tar(picture.file) else None
    return int(facts(picture.file)["bytes"])
