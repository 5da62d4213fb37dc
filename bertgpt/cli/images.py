"""Images that commands are given: files named by --image, or by the records of a file."""

import os
from collections.abc import Sequence

from bertgpt.io.files import URL
from bertgpt.types import JsonObject, UserError


def image_records(
    command: str, images: Sequence[str], texts: Sequence[str], flag: str, fields: Sequence[str]
) -> list[JsonObject]:
    """Records of the images given as flags.

    Args:
      command: name of the command, for errors.
      images: values of --image.
      texts: values of the flag of texts: none, one for all images, or one for each.
      flag: name of that flag.
      fields: of a record, the image first, then the text if the model reads one.

    Raises:
      UserError: there are no texts, too many, or some that the model does not read.
    """
    if len(fields) == 1:
        if texts:
            raise UserError(f"bertgpt {command}: --{flag}: the model reads no text beside an image")
        return [{fields[0]: image} for image in images]
    if len(texts) not in (1, len(images)):
        given = f"--{flag} is given {len(texts)} times for {len(images)} images"
        raise UserError(f"bertgpt {command}: {given}; give it once, or once for each")
    texts = list(texts) * (1 if len(texts) == len(images) else len(images))
    return [dict(zip(fields, pair, strict=True)) for pair in zip(images, texts, strict=True)]


def located(records: Sequence[JsonObject], path: str | None, field: str) -> list[JsonObject]:
    """The records of a file, whose images are beside it, as they are found from here.

    Args:
      records: as the file has them.
      path: the file; None or "-": images are found from here.
      field: the field with the image, or a list of images.
    """
    folder = "" if path is None or path == "-" or path.startswith("tfds:") else os.path.dirname(path)

    def found(value: object) -> object:
        if isinstance(value, list):
            return [found(item) for item in value]
        inside = isinstance(value, str) and value.strip() and not URL.match(value)
        return os.path.join(folder, value) if inside else value

    return [record | {field: found(record[field])} for record in records]
