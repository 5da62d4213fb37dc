"""Image tasks read every layout of pictures, and a run notices that a picture has changed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bertgpt.data.class_token import ClassToken
from bertgpt.data.images.format import ImageFormat
from bertgpt.tasks.image_classification import ImageClassification
from bertgpt.types import DataRequest, UserError

Image = pytest.importorskip("PIL.Image")
NAMES = ("cat", "dog")
COUNT = 12


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def layout(kind: str, folder: Path) -> dict[str, str]:
    """Pictures with the labels of NAMES in turn; returns fields of the data config."""
    members: dict[str, bytes] = {}
    for number in range(COUNT):
        label = NAMES[number % 2]
        if kind == "classes":
            members[f"{label}/{number:02}.png"] = png(number)
        elif kind == "shards":
            members |= {f"{number:02}.png": png(number), f"{number:02}.cls": label.encode()}
        else:
            members[f"pictures/{number:02}.png"] = png(number)
    if kind in ("shards", "tar"):
        with tarfile.open(folder / "all.tar", "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        for name, content in members.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    if kind in ("files", "tar"):
        records = [{"image": f"pictures/{number:02}.png", "label": NAMES[number % 2]} for number in range(COUNT)]
        (folder / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {
        "classes": {"path": str(folder)},
        "shards": {"path": str(folder / "all.tar"), "label_field": "cls"},
        "files": {"path": str(folder / "all.jsonl")},
        "tar": {"path": str(folder / "all.jsonl"), "image_root": str(folder / "all.tar")},
    }[kind]


@pytest.mark.parametrize("kind", ["classes", "shards", "files", "tar"])
def test_every_layout_gives_the_same_examples(kind: str, tmp_path: Path) -> None:
    fields = layout(kind, tmp_path)
    tokenizer = ClassToken().make(lambda: iter(()))
    data = ImageClassification(**fields, image=ImageFormat(4, 5), labels=NAMES, validation=0.0, test=0.0)
    batch = data.make(DataRequest("train", tokenizer, COUNT))[0]
    found = {array[0].tobytes(): int(label) for array, label in zip(batch["images"], batch["label"], strict=True)}
    assert found == {pixels(number).tobytes(): number % 2 for number in range(COUNT)}
    before = data.digests(tokenizer, tmp_path)
    assert data.digests(tokenizer, tmp_path) == before
    place = {"files": tmp_path / "pictures/03.png", "classes": tmp_path / "dog/03.png"}.get(kind, tmp_path / "all.tar")
    content = bytearray(place.read_bytes())
    content[content.rindex(b"IEND") - 9] ^= 1  # as long as before: the last byte of the pixels' checksum
    place.write_bytes(content)
    after = data.digests(tokenizer, tmp_path)
    assert after.keys() == before.keys() and after["images"] != before["images"]
    with pytest.raises(
        UserError, match=r"(all\.jsonl|all\.tar|/):\d+: .*(03|11)\.png: is a damaged or truncated picture"
    ):
        data.make(DataRequest("train", tokenizer, COUNT))[0]
