"""Records that name pictures, from every kind of file: beside pictures, tar files, WebDataset, class folders, TFDS."""

import gzip
import io
import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertgpt.data.images.digest import image_digest
from bertgpt.data.images.folders import file_digest
from bertgpt.data.images.format import ImageFormat
from bertgpt.data.images.names import natural
from bertgpt.data.images.reading import (
    ImageReference,
    check_exists,
    open_image,
    read_frames,
    references_of,
    tar_index,
)
from bertgpt.data.sources.files import digests, facts
from bertgpt.data.sources.text import read_records, record_of, resolve
from bertgpt.tasks.source import parsed
from bertgpt.types import UserError

Image = pytest.importorskip("PIL.Image")
FORMAT = ImageFormat(4, 5, resize="none")


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def is_number(reference: ImageReference, number: int) -> bool:
    return np.array_equal(FORMAT.pixels(reference)[0], pixels(number))


# -- beside files -----------------------------------------------------------------------------------------------------


def test_relative_paths_lie_beside_the_records_in_the_root_or_in_a_tar_file(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"pictures/{number}.png", png(number))
        write(tmp_path / f"elsewhere/pictures/{number}.png", png(10 + number))
    tar = pack(tmp_path / "all.tar", {f"./pictures/{number}.png": png(20 + number) for number in range(3)})
    lines = [{"image": f"pictures/{number}.png", "label": "a"} for number in range(3)]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for root, first in ((None, 0), (str(tmp_path / "elsewhere"), 10), (tar, 20)):
        for number, record in enumerate(read_records(str(path))):
            (reference,) = references_of(record, "image", root)
            check_exists(reference)
            assert is_number(reference, first + number)
    absolute = record_of({"image": str(tmp_path / "pictures/1.png")}, str(path), 7)
    assert is_number(references_of(absolute, "image", tar)[0], 1)
    several = record_of({"images": ["pictures/2.png", "pictures/0.png"]}, str(path), 7)
    assert [is_number(r, n) for r, n in zip(references_of(several, "images"), (2, 0), strict=True)] == [True, True]


def test_a_missing_picture_is_named_with_the_line_of_its_record(tmp_path: Path) -> None:
    tar = pack(tmp_path / "a.tar", {"a.png": png(0)})
    record = record_of({"image": "b.png", "empty": " ", "list": [], "number": 3}, str(tmp_path / "r.jsonl"), 5)
    for root, missing in ((None, f"{tmp_path}/b.png: no such picture"), (tar, f"{tar}: b.png: no such member")):
        (reference,) = references_of(record, "image", root)
        with pytest.raises(UserError) as error:
            check_exists(reference)
        assert str(error.value).startswith(f"{tmp_path}/r.jsonl:5: {missing}")
        with pytest.raises(UserError, match=r"r\.jsonl:5: .*b\.png: (cannot be read|no such member)"):
            open_image(reference)
    for name in ("empty", "list"):
        with pytest.raises(UserError, match=r"r\.jsonl:5: .* names no picture"):
            references_of(record, name)
    with pytest.raises(UserError, match=r"r\.jsonl:5: no column 'picture'"):
        references_of(record, "picture")
    with pytest.raises(UserError, match=r"r\.jsonl:5: 'number' is a number"):
        references_of(record, "number")


def test_pictures_at_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/p/0.png", png(0))
    pack(tmp_path / "a.tar", {"x/1.png": png(1), "x/2.png": png(2)})
    system.pipe_file("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())
    record = record_of({"image": "p/0.png", "other": "memory://bucket/p/0.png", "member": "x/2.png"}, "r.jsonl", 1)
    assert is_number(references_of(record, "image", "memory://bucket")[0], 0)
    assert is_number(references_of(record, "other")[0], 0)
    assert is_number(references_of(record, "member", "memory://bucket/a.tar")[0], 2)
    beside = record_of({"image": "p/0.png"}, "memory://bucket/r.jsonl", 1)
    assert is_number(references_of(beside, "image")[0], 0)
    with pytest.raises(UserError, match=r"r\.jsonl:1: memory://bucket/p/nothing\.png: cannot be read"):
        open_image(references_of(record_of({"image": "p/nothing.png"}, "r.jsonl", 1), "image", "memory://bucket")[0])


# -- tar files --------------------------------------------------------------------------------------------------------


def test_a_tar_file_is_indexed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1)})
    opened = []
    original = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **named: opened.append(1) or original(*args, **named))
    for _ in range(3):
        assert is_number(ImageReference(path, "b.png"), 1)
    assert len(opened) == 1
    pack(tmp_path / "a.tar", {"b.png": png(2), "c.png": png(3), "d.png": png(4), "e.png": png(4)})
    opened.clear()
    assert is_number(ImageReference(path, "b.png"), 2) and len(opened) == 1


def test_the_last_of_several_members_of_a_name_counts_and_hard_links_are_followed(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.png": png(0)})
    pack(tmp_path / "a.tar", {"a.png": png(5)}, "a")
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    assert is_number(ImageReference(path, "a.png"), 5) and is_number(ImageReference(path, "link.png"), 5)


def test_damaged_and_compressed_tar_files_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1) * 20})
    whole = Path(path).read_bytes()
    for size, name in ((700, "header"), (1536 + 512 + 3, "content"), (1024, "boundary")):
        cut = tmp_path / f"{name}.tar"
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"{name}\.tar: is (no tar file|cut short)"):
            tar_index(str(cut))
    (tmp_path / "text.tar").write_text("no tar file at all" * 100)
    with pytest.raises(UserError, match=r"text\.tar: is no tar file"):
        tar_index(str(tmp_path / "text.tar"))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole))
    record = record_of({"image": "a.png"}, "r.jsonl", 1)
    with pytest.raises(UserError, match=r"a\.tar\.gz: pictures cannot be found in a compressed tar file"):
        references_of(record, "image", str(tmp_path / "a.tar.gz"))


# -- WebDataset -------------------------------------------------------------------------------------------------------


def test_shards_are_records_grouped_by_key_and_sorted(tmp_path: Path) -> None:
    for shard in range(3):
        members: dict[str, bytes] = {}
        for number in (2, 0, 1):
            key = f"set.v1/{shard}{number}"
            members |= {f"{key}.png": png(10 * shard + number), f"{key}.txt": f"caption {number}\n".encode()}
        for number in (1, 2, 0):  # not beside the others
            key = f"set.v1/{shard}{number}"
            members |= {f"{key}.CLS": str(number).encode(), f"{key}.json": b'{"url": "u", "width": 5}'}
        pack(tmp_path / f"shard-{shard:03}.tar", members)
    folder = str(tmp_path)
    files = resolve(folder)
    assert files == resolve(f"{folder}/shard-*.tar") == resolve(f"{folder}/shard-{{000..002}}.tar")
    assert [os.path.basename(file) for file in files] == ["shard-000.tar", "shard-001.tar", "shard-002.tar"]
    records = [record for file in files for record in read_records(file)]
    assert [record.fields["__key__"] for record in records] == [f"set.v1/{s}{n}" for s in range(3) for n in range(3)]
    for place, record in enumerate(records):
        shard, number = divmod(place, 3)
        assert record.line == number + 1 and record.file == files[shard]
        assert record.fields["txt"] == f"caption {number}\n" and record.fields["cls"] == str(number)
        assert record.fields["url"] == "u" and record.fields["width"] == "5"
        assert record.fields["png"] == record.fields["image"] == f"set.v1/{shard}{number}.png"
        assert is_number(references_of(record, "image")[0], 10 * shard + number)
    with pytest.raises(UserError, match=r"shard-003\.tar: no such file"):
        resolve(f"{folder}/shard-{{000..003}}.tar")


def test_a_folder_of_records_and_a_tar_of_their_pictures_gives_the_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.png"}\n')
    pack(tmp_path / "pictures.tar", {"a.png": png(0)})
    assert resolve(str(tmp_path)) == [str(tmp_path / "a.jsonl")]


def test_incomplete_samples_are_named_by_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {f"{number}.{suffix}": png(0) for number in range(4) for suffix in ("png", "seg.png")}
    members |= {f"{number}.txt": b"text" for number in range(4) if number != 2} | {"README": b"", ".hidden": b""}
    path = pack(tmp_path / "a.tar", members)
    with caplog.at_level(logging.WARNING):
        records = list(read_records(path))
    assert "1 of 4 samples are incomplete: 2 (no .txt)" in caplog.text
    assert "2 files are no members of samples" in caplog.text and "README, .hidden" in caplog.text
    assert [sorted(record.fields) for record in records][2] == ["__key__", "png", "seg.png"]
    assert records[0].lists["images"] == ["0.png", "0.seg.png"] and "image" not in records[0].fields


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"", "a.txt": b"\xff"}, r"a\.txt: is not valid UTF-8 \(byte 0xff\)"),
        ({"a.json": b"[1]"}, r"a\.json: is no JSON object"),
        ({"a.json": b"{"}, r"a\.json.*JSON"),
        ({"a.png": b"", "a.json": b'{"image": "b"}'}, r"a\.json: gives the field 'image', which"),
        ({"a.png": b"", "a.PNG": b""}, r"sample 'a' has two members \.png"),
        ({}, r"a\.tar: has no records"),
    ],
)
def test_bad_samples_are_errors_that_name_the_member(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_records(pack(tmp_path / "a.tar", members)))


# -- class folders ----------------------------------------------------------------------------------------------------


def test_folders_of_classes_are_records_with_labels(tmp_path: Path) -> None:
    for number, name in enumerate(["cat/2.png", "cat/10.png", "dog/deep/1.PNG", "dog/.hidden.png"]):
        write(tmp_path / name, png(number))
    write(tmp_path / "dog/notes.md", b"")
    (folder,) = resolve(str(tmp_path))
    records = list(read_records(folder))
    found = [(record.fields["image"], record.fields["label"]) for record in records]
    assert found == [("cat/10.png", "cat"), ("cat/2.png", "cat"), ("dog/deep/1.PNG", "dog")]
    numbers = (1, 0, 2)
    assert all(is_number(references_of(r, "image")[0], n) for r, n in zip(records, numbers, strict=True))
    before = parsed(read_records, str(tmp_path))
    write(tmp_path / "bird/1.png", png(7))
    assert len(parsed(read_records, str(tmp_path))) == len(before) + 1
    write(tmp_path / "stray.png", png(7))
    with pytest.raises(UserError, match=r"stray\.png: lies in no folder that says its class"):
        list(read_records(folder))


def test_class_folders_at_urls_are_records_too() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for number, name in enumerate(["cat/0.png", "dog/1.png"]):
        system.pipe_file(f"/classes/{name}", png(number))
    (folder,) = resolve("memory://classes")
    records = list(read_records(folder))
    assert [record.fields["label"] for record in records] == ["cat", "dog"]
    assert is_number(references_of(records[1], "image")[0], 1)
    assert facts(folder)["bytes"] == len(png(0)) + len(png(1)) and len(digests("memory://classes")) == 1


# -- videos -----------------------------------------------------------------------------------------------------------


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"video/frame{number}.png", png(number))
    members = {f"videos/v/frame{number}.png": png(number) for number in range(12)}
    tar = pack(tmp_path / "videos.tar", members | {"videos/v/thumbnails/1.png": png(50)})
    for source in (str(tmp_path / "video"), ImageReference(tar, "videos/v")):
        for frames, chosen in ((12, list(range(12))), (4, [1, 4, 7, 10]), (3, [2, 6, 10]), (1, [6])):
            found = ImageFormat(4, 5, frames=frames).pixels(source)
            np.testing.assert_array_equal(found, [pixels(index) for index in chosen])
    found = ImageFormat(4, 5, frames=24).pixels(str(tmp_path / "video"))
    np.testing.assert_array_equal(found, [pixels(index // 2) for index in range(24)])
    assert read_frames(str(tmp_path / "video"), 5)[1] == 12
    assert sorted(["a10b2", "a2", "a10b1", "a1.5", "b"], key=natural) == ["a1.5", "a2", "a10b1", "a10b2", "b"]


# -- TFDS -------------------------------------------------------------------------------------------------------------


def test_features_of_tfds_that_are_pictures_are_read_when_they_are_needed(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Pictures, labels and videos."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None
        name = "pictures"

        def _info(self) -> Any:
            kinds = tfds.features
            image = kinds.Image(shape=(None, None, 3))
            features = {"image": image, "label": kinds.ClassLabel(names=["a", "b"]), "video": kinds.Sequence(image)}
            return tfds.core.DatasetInfo(
                builder=self,
                description="",
                features=kinds.FeaturesDict({**features, "text": kinds.Text()}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number in range(300):
                video = [png(number + frame) for frame in range(3)]
                yield number, {"image": png(number), "label": number % 2, "video": video, "text": f"text {number}"}

    builder = Pictures(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare(download_dir=str(tmp_path / "downloads"))
    path = f"tfds:pictures?data_dir={tmp_path}"
    records = list(read_records(path))
    assert len(records) == 300 and records[257].fields["text"] == "text 257" and records[257].fields["label"] == "1"
    for number in (0, 257, 299):
        (reference,) = references_of(records[number], "image")
        check_exists(reference)
        assert is_number(reference, number) and reference.name.startswith(f"{path}:{number + 1}: {path}: ")
        (reference,) = references_of(records[number], "video")
        found = ImageFormat(4, 5, frames=3).pixels(reference)
        np.testing.assert_array_equal(found, [pixels(number + frame) for frame in range(3)])
    for member, message in (("301/image", "from 1 to 300"), ("1/picture", "no feature 'picture'"), ("x", "NUMBER/")):
        with pytest.raises(UserError, match=message):
            open_image(ImageReference(path, member))
    assert len(digests(path)) == 1 and image_digest([reference]) != image_digest([reference._replace(member="1/image")])


# -- digests ----------------------------------------------------------------------------------------------------------


def test_digests_change_with_the_pictures_and_not_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(folder: Path, second: bytes) -> dict[str, str]:
        write(folder / "classes/a/0.png", png(0))
        write(folder / "classes/b/1.png", second)
        tar = pack(folder / "all.tar", {"a/0.png": png(0), "b/1.png": second})
        files = [ImageReference(str(folder / "classes" / name), where=str(folder)) for name in ("a/0.png", "b/1.png")]
        members = [ImageReference(tar, name) for name in ("b/1.png", "a/0.png", "a/0.png")]
        (classes,) = resolve(str(folder / "classes"))
        return {
            "files": image_digest(files),
            "members": image_digest(members),
            "folder": file_digest(classes),
            "tar": file_digest(tar),
        }

    first = made(tmp_path / "one", png(1))
    assert made(tmp_path / "two", png(1)) == first
    other = bytearray(png(1))
    other[-1] ^= 1  # as long
    changed = made(tmp_path / "three", bytes(other))
    assert all(changed[name] != first[name] for name in first)
    monkeypatch.setattr("bertgpt.data.images.folders.CONTENT_BYTES", 10)
    first = made(tmp_path / "one", png(1))
    assert made(tmp_path / "two", png(1)) == first
    changed = made(tmp_path / "three", png(1) + b"longer")
    assert all(changed[name] != first[name] for name in first)
