"""Pictures and statements in the manner of NLVR: reproducible, balanced, and true of what is drawn."""

import gzip
import itertools
import json
import random
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bertgpt.experiments.multimodal import nlvr_data, nlvr_reader, nlvr_scenes, nlvr_statements
from bertgpt.experiments.multimodal.nlvr_scenes import Item, Scene
from PIL import Image

from bertgpt.io.files import read_json_lines


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [nlvr_scenes.make_scene(rng, towers=i % 2 == 0) for i in range(400)]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "boxes.tar", "w") as tar:
            nlvr_data.write(tmp_path / name, tar, pictures=640, groups=5, seed=seed)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["boxes.tar", "synthetic_boxes.jsonl", "synthetic_statements.jsonl"]
    for name in names:
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert first == again != other
    rows = [row for _, row in read_json_lines(tmp_path / "a/synthetic_boxes.jsonl")]
    with tarfile.open(tmp_path / "a/boxes.tar") as tar:
        assert [row["image"] for row in rows] == tar.getnames() and len(rows) == 1920


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
    for box in itertools.chain.from_iterable(scene.boxes for scene in scenes[:100]):
        picture = nlvr_scenes.draw(box)
        assert picture.shape == (100, 100, 3) and picture.dtype == np.uint8
        covered = np.zeros((100, 100), int)
        for item in box:
            covered[item.y : item.y + item.size, item.x : item.x + item.size] += 1
            middle = picture[item.y + item.size * 2 // 3, item.x + item.size // 2]
            assert tuple(middle) == nlvr_scenes.COLORS[item.color]
        assert covered.max() == 1 and covered.sum() == sum(item.size**2 for item in box)
        assert (picture[covered == 0] == 211).all()


def test_official_files_become_boxes_with_facts_and_statements_with_all_orders_of_the_boxes(tmp_path: Path):
    item = Item(40, 80, 20, "square", "yellow")
    scene = Scene(True, ((item,), (item, Item(40, 59, 20, "square", "black")), (Item(40, 80, 20, "square", "blue"),)))
    colors = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}
    objects = [
        [{"x_loc": o.x, "y_loc": o.y, "size": o.size, "type": o.shape, "color": colors[o.color]} for o in box]
        for box in scene.boxes
    ]
    assert nlvr_scenes.scene_of(objects) == scene
    row = {"id": "7-0", "sentence": "There is a black block.", "label": "true", "images": ["dev-7-0-0.png"]}
    with gzip.open(tmp_path / "dev.jsonl.gz", "wt") as file:
        file.write(json.dumps(row | {"structured_rep": objects}) + "\n")
    picture = np.full((100, 400, 3), 128, np.uint8)
    for i, box in enumerate(scene.boxes):
        picture[:, 150 * i : 150 * i + 100] = nlvr_scenes.draw(box)
    Image.fromarray(picture).save(tmp_path / "dev-7-0-0.png")
    with tarfile.open(tmp_path / "dev_images.tar", "w") as tar:
        tar.add(tmp_path / "dev-7-0-0.png", "dev-7-0-0.png")
    with tarfile.open(tmp_path / "boxes.tar", "w") as tar:
        nlvr_data.convert(tmp_path, tar, "dev")
    boxes = [row for _, row in read_json_lines(tmp_path / "dev_boxes.jsonl")]
    assert boxes[0]["label"] == ["1 yellow square", "level 0 yellow"]
    assert boxes[1]["label"] == ["1 yellow square", "1 black square", "level 0 yellow", "level 1 black"]
    with tarfile.open(tmp_path / "boxes.tar") as tar:
        for record, box in zip(boxes, scene.boxes, strict=True):
            assert (np.asarray(Image.open(tar.extractfile(record["image"]))) == nlvr_scenes.draw(box)).all()
    rows = [row for _, row in read_json_lines(tmp_path / "dev_statements.jsonl")]
    assert len({tuple(row["images"]) for row in rows}) == len(rows) == 6
    assert {row["label"] for row in rows} == {"true"}


def test_a_reader_counts_facts_as_one_counts_objects(scenes):
    there = {"": lambda i: True, "edge": lambda i: i.touches, "bottom": lambda i: "bottom" in i.touches}
    there["corner"] = lambda i: len(i.touches) == 2
    for scene in scenes:
        for box in scene.boxes:
            read = nlvr_reader.Box(nlvr_scenes.facts(box, scene.towers))
            assert read.tower == ([item.color for item in box] if scene.towers else [])
            places = [""] if scene.towers else there
            for place, color in itertools.product(places, nlvr_scenes.COLORS):
                most = 2 if place else 4  # of a color and shape, more are not told apart
                counts = Counter(item.shape for item in box if item.color == color and there[place](item))
                assert read.count(color, None, place) == sum(min(n, most) for n in counts.values())
                assert read.count(color, "circle", place) == min(counts["circle"], most)


def test_a_reader_learns_from_a_few_statements_what_others_mean(scenes):
    assert nlvr_reader.abstract("There are atleast two blue squares over 2 black blocks.") == (
        "there are at least N1 C1 S1 over N1 C2 block".split(),
        {"N": [2], "C": ["blue", "black"], "S": ["square"]},
    )
    found = nlvr_statements.make_statements(random.Random(4), scenes, groups=150)
    texts = [text for _, text, _ in found]
    pictures, truth = [nlvr_data.facts_of(scenes[i]) for i, _, _ in found], np.array([row[2] for row in found])
    reader = nlvr_reader.Reader(texts[:400], pictures[:400], truth[:400])
    assert (reader.predict(texts[400:], pictures[400:]) == truth[400:]).mean() > 0.65
