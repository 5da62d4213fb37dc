"""Writes synthetic pictures and statements in the manner of Cornell NLVR, and prepares its official files:

    python -m bertgpt.experiments.multimodal.nlvr_data data/nlvr

NLVR (Suhr et al. 2017) shows three grey boxes with towers of blocks or scattered squares, circles and triangles beside
a statement that is true or false. Statements are written here from templates modelled on those of its development
split, and pictures are drawn for them; each statement is paired with two pictures of which it is true and two of which
it is false, so that the statement alone tells nothing. Everything is a function of the seed. Written into the folder:

    synthetic.jsonl, synthetic_images.tar   image, sentence, label, and scene: the objects as words
    dev_boxes.jsonl, dev_boxes_images.tar   the development split with the boxes in all six orders: labels stay true
    test_boxes.jsonl, hidden_boxes.jsonl    the other official files with their scenes
"""

import gzip
import io
import itertools
import json
import random
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bertgpt.experiments.multimodal.nlvr_scenes import draw, in_order, make_scene, scene_of, symbols
from bertgpt.experiments.multimodal.nlvr_statements import make_statements


def add_picture(tar: tarfile.TarFile, name: str, pixels: np.ndarray) -> None:
    """Adds a picture, uint8 [height, width, 3], to a tar file as a PNG."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).quantize(64).save(data, "png")
    member = tarfile.TarInfo(name)
    member.size = data.tell()
    tar.addfile(member, io.BytesIO(data.getvalue()))


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(folder: Path, pictures: int = 20_000, groups: int = 40_000, seed: int = 0) -> None:
    """Writes synthetic.jsonl, four records for each of `groups` statements, and synthetic_images.tar."""
    rng = random.Random(seed)
    scenes = [make_scene(rng, towers=i % 5 < 3) for i in range(pictures)]
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "synthetic_images.tar", "w") as tar:
        for i, scene in enumerate(scenes):
            add_picture(tar, f"{i:06d}.png", draw(scene))
    rows = [
        {"image": f"{i:06d}.png", "sentence": text, "label": str(truth).lower(), "scene": symbols(scenes[i])}
        for i, text, truth in make_statements(rng, scenes, groups)
    ]
    rng.shuffle(rows)
    write_rows(folder / "synthetic.jsonl", rows)


def convert(path: Path, folder: Path, permute: bool = True) -> None:
    """Writes an official file with the scenes as words; with `permute`, also its pictures in all orders of the boxes.

    Args:
      path: dev.jsonl, say, or dev.jsonl.gz; the pictures are in dev_images.tar beside it.
      folder: where <name>_boxes.jsonl and <name>_boxes_images.tar are written.
      permute: `images` lists six pictures of each example; else it stays as it is.
    """
    from PIL import Image

    name = path.name.partition(".")[0]
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        row["scene"] = symbols(scene_of(row.pop("structured_rep")))
    if permute:
        with (
            tarfile.open(path.parent / f"{name}_images.tar") as old,
            tarfile.open(folder / f"{name}_boxes_images.tar", "w") as new,
        ):
            for row in rows:
                pixels = np.asarray(Image.open(old.extractfile(row["images"][0])).convert("RGB"))
                row["images"] = [f"{row['id']}-{i}.png" for i in range(6)]
                for member, order in zip(row["images"], itertools.permutations(range(3)), strict=True):
                    add_picture(new, member, in_order(pixels, order))
    write_rows(folder / f"{name}_boxes.jsonl", rows)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write(target)
    for split in ("dev", "test", "hidden"):
        convert(target / f"{split}.jsonl.gz", target, permute=split == "dev")
