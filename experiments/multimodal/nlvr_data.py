"""Prepares the official files of Cornell NLVR (Suhr et al. 2017), and writes synthetic boxes and statements:

    python -m bertgpt.experiments.multimodal.nlvr_data data/nlvr

NLVR shows three grey boxes with towers of blocks or scattered squares, circles and triangles beside a statement that is
true or false. Models read each box as a picture of 100 × 100 pixels. Everything is a function of the seed. Written into
the folder, where the official dev, test and hidden .jsonl.gz files and their tars of pictures lie:

    boxes.tar                             pictures of the boxes below; of official examples, of their first picture
    {dev,test,hidden}_boxes.jsonl         image, label (facts: see nlvr_scenes.py) of each box, three for each example
    {dev,test,hidden}_statements.jsonl    images (three boxes, of dev in all six orders), sentence, label
    synthetic_boxes.jsonl                 image, label of drawn boxes
    synthetic_statements.jsonl            sentence, label, and the facts of the three boxes

Synthetic statements come from templates modelled on the development split; each is paired with two scenes of which it
is true and two of which it is false, so that the statement alone tells nothing.
"""

import io
import itertools
import random
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from bertgpt.experiments.multimodal.nlvr_scenes import Scene, cut, draw, facts, make_scene, scene_of
from bertgpt.experiments.multimodal.nlvr_statements import make_statements

from bertgpt.io.files import read_json_lines, write_json_lines


def facts_of(scene: Scene) -> list[list[str]]:
    """The facts of each box."""
    return [facts(box, scene.towers) for box in scene.boxes]


def write_boxes(path: Path, tar: tarfile.TarFile, boxes: Iterable[tuple[str, np.ndarray, list[str]]]) -> None:
    """Adds (name, pixels, facts) of boxes to a tar file as PNGs, and writes their records."""
    from PIL import Image

    records = []
    for name, pixels, found in boxes:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png")
        member = tarfile.TarInfo(name)
        member.size = data.tell()
        tar.addfile(member, io.BytesIO(data.getvalue()))
        records.append({"image": name, "label": found})
    write_json_lines(path, records)


def write(folder: Path, tar: tarfile.TarFile, pictures: int = 20_000, groups: int = 1000, seed: int = 0) -> None:
    """Writes the boxes of drawn pictures, a quarter with towers, and four records for each of `groups` statements."""
    rng = random.Random(seed)
    scenes = [make_scene(rng, towers=i % 4 == 0) for i in range(pictures)]
    boxes = ((f"{i}-{j}.png", box, scene.towers) for i, scene in enumerate(scenes) for j, box in enumerate(scene.boxes))
    drawn = ((f"synthetic/{name}", draw(box), facts(box, towers)) for name, box, towers in boxes)
    write_boxes(folder / "synthetic_boxes.jsonl", tar, drawn)
    statements = make_statements(rng, scenes[:4000], groups)
    write_json_lines(
        folder / "synthetic_statements.jsonl",
        ({"sentence": s, "label": str(truth).lower(), "boxes": facts_of(scenes[i])} for i, s, truth in statements),
    )


def convert(folder: Path, tar: tarfile.TarFile, name: str) -> None:
    """Writes the boxes and statements of an official split."""
    from PIL import Image

    boxes, records = [], []
    with tarfile.open(folder / f"{name}_images.tar") as official:
        for _, row in read_json_lines(folder / f"{name}.jsonl.gz"):
            pixels = cut(np.asarray(Image.open(official.extractfile(row["images"][0])).convert("RGB")))
            names = [f"{name}/{row['id']}-{i}.png" for i in range(3)]
            boxes += zip(names, pixels, facts_of(scene_of(row["structured_rep"])), strict=True)
            for order in itertools.permutations(names) if name == "dev" else (names,):
                records.append({"images": order, "sentence": row["sentence"], "label": row["label"]})
    write_boxes(folder / f"{name}_boxes.jsonl", tar, boxes)
    write_json_lines(folder / f"{name}_statements.jsonl", records)


def main(folder: Path) -> None:
    """Writes all files into the folder of the official ones."""
    with tarfile.open(folder / "boxes.tar", "w") as tar:
        write(folder, tar)
        for split in ("dev", "test", "hidden"):
            convert(folder, tar, split)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
