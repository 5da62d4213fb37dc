"""Emoji become pictures with names, and no held-out picture has a twin in training."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bertgpt.experiments.multimodal import emoji_data
from PIL import Image

from bertgpt.types import UserError

pytestmark = pytest.mark.skipif(not Path(emoji_data.FONT).is_file(), reason="needs Debian's fonts-noto-color-emoji")
TWELVE = ["😀", "🐶", "🍎", "🚗", "👍", "👍🏽", "👩‍🚀", "👨🏾‍🚀", "🇩🇪", "1️⃣", "☃️", "⛄"]


def records(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    emoji_data.main(folder, languages=("en", "de"))
    return folder


def test_twelve_emoji_become_twelve_pictures_and_the_same_bytes_each_time(tmp_path: Path):
    named = emoji_data.names(("en", "ja"))
    for name in ("one", "two"):
        emoji_data.write(tmp_path / name, emoji_data.draw(TWELVE, size=48), named)
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two")]
    assert len(files[0]) == len(files[1]) == 12 + 4
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    found = [r for split in ("train", "validation", "test") for r in records(tmp_path / "one", split)]
    assert len(found) == 24
    apple = next(r for r in found if r["emoji"] == "🍎" and r["language"] == "en")
    assert apple == {"image": "images/1f34e.png", "emoji": "🍎", "name": "red apple", "language": "en", "group": "🍎"}
    with Image.open(tmp_path / "one" / apple["image"]) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (48, 48, 3) and (pixels[0, 0] == 255).all()
    red, green, blue = pixels[24:36, 16:32].mean((0, 1))
    assert red > 1.5 * max(green, blue)
    assert next(r for r in found if r["emoji"] == "👩‍🚀" and r["language"] == "ja")["name"] == "女性宇宙飛行士"


def test_what_the_font_does_not_draw_as_one_picture_is_left_out():
    # Two emoji; a joined sequence that is none; a code point that no standard has.
    assert list(emoji_data.draw(["😀😀", "🍎\u200d🚗", "\u0378", "🐶"])) == ["🐶"]


def test_variants_belong_to_one_group():
    for variants in (
        ["👍", "👍🏽"],
        ["👩‍🚀", "👨🏾‍🚀", "🧑‍🚀"],
        ["🏃", "🏃‍♀️‍➡️", "🏃🏿‍♂️"],
        ["👪", "👨‍👩‍👧", "👩‍👦‍👦", "🧑‍🧑‍🧒"],
        ["💏", "👨‍❤️‍💋‍👨"],
    ):
        assert len({emoji_data.base_of(emoji) for emoji in variants}) == 1, variants
    assert len({emoji_data.base_of(emoji) for emoji in ("👩‍🚀", "👩‍🚒", "👩", "🐶", "🇩🇪", "1️⃣", "👪")}) == 7
    group = emoji_data.groups(emoji_data.draw(["😦", "😧", "🕐", "🕛", "🐶", "🔯", "✡️"]))
    assert group["😦"] == group["😧"] and group["🕐"] == group["🕛"] and group["🔯"] == group["✡️"]
    assert len(set(group.values())) == 4


def test_no_held_out_picture_has_a_twin_elsewhere(everything: Path):
    """By brute force over the files: no near pixels, no shared group and no shared name across splits."""
    pictures, facts = {}, {}
    for split in ("train", "validation", "test"):
        found = records(everything, split)
        facts[split] = {("group", r["group"]) for r in found} | {(r["language"], r["name"]) for r in found}
        files = sorted({r["image"] for r in found})
        assert len(found) == 2 * len(files)  # each picture once a language, all in the same split
        images = [Image.open(everything / file).resize((32, 32), Image.Resampling.BOX) for file in files]
        pictures[split] = np.stack([np.asarray(image, np.float64) / 255 for image in images])
    assert 1500 < sum(map(len, pictures.values())) and 100 < len(pictures["validation"]) and 100 < len(pictures["test"])
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        assert not facts[one] & facts[other]
        nearest = min(np.sqrt(((pictures[other] - image) ** 2).mean((1, 2, 3))).min() for image in pictures[one])
        assert nearest > 0.08


def test_in_the_control_each_held_out_name_has_another_picture(everything: Path):
    test, shuffled = records(everything, "test"), records(everything, "shuffled")
    assert [record | {"image": ""} for record in test] == [record | {"image": ""} for record in shuffled]
    assert Counter(record["image"] for record in test) == Counter(record["image"] for record in shuffled)
    assert all(one["image"] != other["image"] for one, other in zip(test, shuffled, strict=True))


def test_flags_and_skin_tones_are_left_out_unless_asked_for(everything: Path):
    found = {r["emoji"] for split in ("train", "validation", "test") for r in records(everything, split)}
    assert "👍" in found and not found & {"🇩🇪", "👍🏽", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"} and "🏁" in found


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: emoji_data.draw(["🐶"], font="/no/such.ttf"), "/no/such.ttf is missing: apt-get install"),
        (lambda: emoji_data.draw(["🐶"], font=__file__), "no font with color bitmaps of 109 pixels"),
        (lambda: emoji_data.names(("xx",)), "there are no names in 'xx', only in en"),
    ],
    ids=["no font", "not a font", "no language"],
)
def test_errors_say_what_to_do(call, message: str):
    with pytest.raises(UserError, match=message):
        call()
