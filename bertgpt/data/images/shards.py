"""Records of tar files in the layout of WebDataset.

The members of one sample stand under one key: their path up to the first dot of the file's name. What follows is the
name of a field, in lower case (https://github.com/webdataset/webdataset, "The WebDataset Format"):

  a/000.jpg  a/000.txt  a/000.cls  a/000.json   →   {"__key__": "a/000", "jpg": …, "image": …, "txt": …, "cls": …}

Pictures stay in the tar file; a record holds the name of the member, in the field of its suffix, and as "image" if it
is the only one, else all of them as the list "images". .json gives the fields of its object, other members the field
of their suffix.
"""

import collections
import logging
import re
import tarfile
from collections.abc import Iterator

from bertgpt.data.images.names import SUFFIXES, natural
from bertgpt.data.images.tars import member_name, tar_members
from bertgpt.data.sources.records import Record, record_of
from bertgpt.io.files import LINE_BYTES, file_errors, open_file, parse_json
from bertgpt.types import JsonObject, UserError

log = logging.getLogger(__name__)
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # (key, name of the field)
_TEXTS = ("txt", "text", "cls", "cls2", "index", "inx", "id", "caption", "transcript", "json", "jsn")
_JSON = ("json", "jsn")
SHOWN = 5  # keys in a warning


def read_samples(path: str) -> Iterator[Record]:
    """The samples of a tar file, sorted by their keys; their lines count from 1.

    Raises:
      UserError: the file is damaged or incomplete, or a text or JSON object in it is not valid.
    """
    samples: dict[str, dict[str, str]] = {}
    texts: dict[str, bytes] = {}
    odd = []
    with file_errors(path), open_file(path) as stream:
        for tar, member in tar_members(path, stream):
            name = member_name(member.name)
            if not (match := _NAME.fullmatch(name)):
                odd.append(name)
                continue
            key, field = match[1], match[2].lower()
            if field in samples.setdefault(key, {}):
                raise UserError(f"{path}: sample {key!r} has two members .{field}")
            samples[key][field] = name
            if field.rpartition(".")[2] in _TEXTS:
                if member.size > LINE_BYTES:
                    raise UserError(f"{path}: {name}: is larger than {LINE_BYTES:,} bytes, the limit of a text")
                texts[name] = _content(tar, member)
    _report(path, samples, odd)
    for number, key in enumerate(sorted(samples), start=1):
        yield _record(path, number, key, samples[key], texts)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read()


def _record(path: str, number: int, key: str, members: dict[str, str], texts: dict[str, bytes]) -> Record:
    values: JsonObject = {"__key__": key}
    pictures = sorted((name for name in members.values() if name.lower().endswith(SUFFIXES)), key=natural)
    if pictures:
        values |= {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures}
    for field, name in members.items():
        where = f"{path}: {name}"
        if name not in texts:
            found = {field: name if name in pictures else texts.get(name, b"")}
        elif field.rpartition(".")[2] in _JSON:
            found = parse_json(where, texts[name])
            if not isinstance(found, dict):
                raise UserError(f"{where}: is no JSON object")
        else:
            found = {field: _text(where, texts[name])}
        if twice := sorted(found.keys() & values.keys()):
            raise UserError(f"{where}: gives the field {twice[0]!r}, which the sample has already")
        values |= found
    return record_of(values, path, number)


def _text(where: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not valid UTF-8 (byte 0x{content[error.start]:02x})") from None


def _report(path: str, samples: dict[str, dict[str, str]], odd: list[str]) -> None:
    """Logs which samples lack members that most have, and which members belong to no sample."""
    counts = collections.Counter(field for members in samples.values() for field in members)
    usual = {field for field, count in counts.items() if 2 * count > len(samples)}
    lacking = {
        key: sorted(usual - members.keys()) for key, members in sorted(samples.items()) if usual - members.keys()
    }
    if lacking:
        shown = ", ".join(f"{key} (no .{', .'.join(fields)})" for key, fields in list(lacking.items())[:SHOWN])
        more = f" and {len(lacking) - SHOWN:,} more" if len(lacking) > SHOWN else ""
        log.warning("%s: %s of %s samples are incomplete: %s%s", path, len(lacking), len(samples), shown, more)
    if odd:
        shown = ", ".join(odd[:SHOWN])
        log.warning("%s: %s files are no members of samples, for want of a suffix: %s", path, len(odd), shown)
