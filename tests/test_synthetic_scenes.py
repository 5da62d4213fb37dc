"""Pictures and statements in the manner of NLVR: reproducible, balanced, and true of what is drawn."""

import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from bertgpt.experiments.multimodal import nlvr_data, nlvr_scenes, nlvr_statements
from bertgpt.experiments.multimodal.nlvr_scenes import Item, Scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [nlvr_scenes.make_scene(rng, towers=i % 2 == 0) for i in range(400)]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        nlvr_data.write(tmp_path / name, pictures=400, groups=5, seed=seed)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["synthetic.jsonl", "synthetic_images.tar"]
    for name in names:
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert first == again != other
    rows = [json.loads(line) for line in (tmp_path / "a/synthetic.jsonl").read_text().splitlines()]
    with tarfile.open(tmp_path / "a/synthetic_images.tar") as tar:
        assert {row["image"] for row in rows} <= set(tar.getnames()) and len(tar.getnames()) == 400


def test_every_statement_is_true_of_two_scenes_and_false_of_two(scenes):
    found = nlvr_statements.make_statements(random.Random(1), scenes, groups=200)
    for group in range(0, 800, 4):
        texts, truths = {text for _, text, _ in found[group : group + 4]}, [row[2] for row in found[group : group + 4]]
        assert len(texts) == 1 and truths == [True, True, False, False]


PLAIN = (
    (r"there (?:is|are) (?:exactly|only) (\w+) (black|blue|yellow) blocks?", "count"),
    (r"there is no (black|blue|yellow) block", "none"),
    (r"there is (?:a|1|one) tower with (?:a|1|one) (black|blue|yellow) block at the (?:base|bottom)", "base"),
    (r"there is a (black|blue|yellow) (square|circle|triangle)", "kind"),
)


def naive(kind: str, groups: tuple[str, ...], scene: Scene) -> bool:
    """Whether a plain statement is true, read from the words alone."""
    items = [item for box in scene.boxes for item in box]
    if kind == "count":
        numbers = {word: i for i, word in enumerate(nlvr_statements.NUMBERS)} | {str(i): i for i in range(9)}
        return sum(item.color == groups[1] for item in items) == numbers[groups[0]]
    if kind == "none":
        return all(item.color != groups[0] for item in items)
    if kind == "base":
        return any(max(box, key=lambda item: item.y).color == groups[0] for box in scene.boxes)
    return any((item.color, item.shape) == groups for item in items)


def test_plain_statements_are_true_as_a_reader_understands_them(scenes):
    seen = set()
    for index, text, truth in nlvr_statements.make_statements(random.Random(2), scenes, groups=1500):
        for pattern, kind in PLAIN:
            if match := re.fullmatch(pattern, text.lower().rstrip(".")):
                assert naive(kind, match.groups(), scenes[index]) == truth, text
                seen.add(kind)
    assert seen == {"count", "none", "base", "kind"}


def test_the_order_of_the_boxes_changes_no_statement(scenes):
    rng = random.Random(3)
    for _ in range(400):
        towers = rng.random() < 0.5
        _, test = nlvr_statements.statement(rng, towers)
        scene = rng.choice([scene for scene in scenes if scene.towers == towers])
        assert test(scene) == test(Scene(towers, scene.boxes[::-1]))


def test_objects_lie_apart_inside_their_box_and_are_drawn_where_they_are(scenes):
    for scene in scenes[:100]:
        picture = nlvr_scenes.draw(scene)
        assert picture.shape == (100, 400, 3) and picture.dtype == np.uint8
        for i, box in enumerate(scene.boxes):
            covered = np.zeros((100, 100), int)
            for item in box:
                covered[item.y : item.y + item.size, item.x : item.x + item.size] += 1
                middle = picture[item.y + item.size * 2 // 3, 150 * i + item.x + item.size // 2]
                assert tuple(middle) == nlvr_scenes.COLORS[item.color]
            assert covered.max() == 1 and covered.sum() == sum(item.size**2 for item in box)


def test_official_files_become_rows_with_all_six_orders_of_the_boxes(tmp_path: Path):
    item = Item(40, 80, 20, "square", "yellow")
    scene = Scene(True, ((item,), (item, Item(40, 59, 20, "square", "black")), (Item(40, 80, 20, "square", "blue"),)))
    official = tmp_path / "dev.jsonl"
    colors = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}
    objects = [
        [{"x_loc": o.x, "y_loc": o.y, "size": o.size, "type": o.shape, "color": colors[o.color]} for o in box]
        for box in scene.boxes
    ]
    row = {"id": "7-0", "sentence": "There is a black block.", "label": "true", "images": ["dev-7-0-0.png"]}
    official.write_text(json.dumps(row | {"structured_rep": objects}) + "\n")
    assert nlvr_scenes.scene_of(objects) == scene
    with tarfile.open(tmp_path / "dev_images.tar", "w") as tar:
        nlvr_data.add_picture(tar, "dev-7-0-0.png", nlvr_scenes.draw(scene))
    nlvr_data.convert(official, tmp_path / "out")
    (row,) = [json.loads(line) for line in (tmp_path / "out/dev_boxes.jsonl").read_text().splitlines()]
    assert row["label"] == "true" and row["scene"] == nlvr_scenes.symbols(scene)
    from PIL import Image

    orders = set()
    with tarfile.open(tmp_path / "out/dev_boxes_images.tar") as tar:
        for name in row["images"]:
            picture = np.asarray(Image.open(tar.extractfile(name)).convert("RGB"))
            orders.add(tuple(tuple(picture[90, 150 * i + 50].tolist()) for i in range(3)))
    assert len(row["images"]) == 6 and len(orders) == 3
