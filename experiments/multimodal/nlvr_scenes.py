"""Synthetic pictures in the manner of Cornell NLVR (Suhr et al. 2017): three grey boxes with towers of blocks, or with
scattered squares, circles and triangles. See nlvr_data.py, which writes them to files.
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

BOX, GAP, PITCH = 100, 50, 21
COLORS = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}
SHAPES = ("square", "circle", "triangle")


@dataclasses.dataclass(frozen=True)
class Item:
    """An object of a box: its upper left corner, size in pixels, shape and colour."""

    x: int
    y: int
    size: int
    shape: str
    color: str

    @property
    def touches(self) -> frozenset[str]:
        """The sides of the box that it touches; annotators see one pixel as touching."""
        near = {"left": self.x, "top": self.y, "right": BOX - self.x - self.size, "bottom": BOX - self.y - self.size}
        return frozenset(side for side, distance in near.items() if distance <= 1)


Box = tuple[Item, ...]
"""the objects of a box; of a tower from the base to the top"""


@dataclasses.dataclass(frozen=True)
class Scene:
    """Three boxes, all with towers or all with scattered objects."""

    towers: bool
    boxes: tuple[Box, ...]


def make_scene(rng: random.Random, towers: bool) -> Scene:
    """A random scene with NLVR's sizes, distances and numbers of objects."""
    return Scene(towers, tuple(make_tower(rng) if towers else scatter(rng) for _ in range(3)))


def make_tower(rng: random.Random) -> Box:
    """One to four blocks on each other."""
    return tuple(
        Item(40, BOX - 20 - PITCH * level, 20, "square", rng.choice(list(COLORS))) for level in range(rng.randint(1, 4))
    )


def scatter(rng: random.Random) -> Box:
    """One to seven objects that do not touch each other."""
    items: list[Item] = []
    for _ in range(rng.randint(1, 7)):
        for _ in range(20):
            size = rng.choice((10, 20, 30))
            x, y = (min(rng.randrange(BOX), BOX - size) for _ in range(2))
            apart = (max(abs(2 * (x - o.x) + size - o.size), abs(2 * (y - o.y) + size - o.size)) for o in items)
            if all(distance > size + o.size for distance, o in zip(apart, items, strict=True)):
                items.append(Item(x, y, size, rng.choice(SHAPES), rng.choice(list(COLORS))))
                break
    return tuple(items)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene, uint8 [100, 400, 3], its edges smoothed as in NLVR."""
    from PIL import Image, ImageDraw

    scale = 4
    width = 3 * BOX + 2 * GAP
    picture = Image.new("RGB", (width * scale, BOX * scale), (128, 128, 128))
    pen = ImageDraw.Draw(picture)
    for i, box in enumerate(scene.boxes):
        left = i * (BOX + GAP)
        pen.rectangle((left * scale, 0, (left + BOX) * scale - 1, BOX * scale), fill=(211, 211, 211))
        for item in box:
            x, y, size, color = (left + item.x) * scale, item.y * scale, item.size * scale, COLORS[item.color]
            corners = (x, y, x + size - 1, y + size - 1)
            if item.shape == "square":
                pen.rectangle(corners, fill=color)
            elif item.shape == "circle":
                pen.ellipse(corners, fill=color)
            else:
                pen.polygon((x, y + size - 1, x + size - 1, y + size - 1, x + size // 2, y), fill=color)
    return np.asarray(picture.resize((width, BOX), Image.Resampling.BOX))


def symbols(scene: Scene) -> str:
    """The objects of a scene as words, one for each, for models that read no pixels."""
    found = []
    for box in scene.boxes:
        found.append("box")
        for level, item in enumerate(box if scene.towers else sorted(box, key=lambda item: -item.y)):
            at = "corner" if len(item.touches) > 1 else next(iter(item.touches), "free")
            size = {10: "small", 20: "medium", 30: "big"}[item.size]
            found.append(f"level{level}{item.color}" if scene.towers else f"{size}{item.color}{item.shape}{at}")
    return " ".join(found)


def scene_of(boxes: Sequence[Sequence[dict]]) -> Scene:
    """The scene that NLVR's `structured_rep` describes."""
    names = {"#0099ff": "blue", "Black": "black", "Yellow": "yellow"}
    items = [[Item(o["x_loc"], o["y_loc"], o["size"], o["type"], names[o["color"]]) for o in box] for box in boxes]
    towers = all((item.x, item.size, item.shape) == (40, 20, "square") for box in items for item in box)
    return Scene(towers, tuple(tuple(sorted(box, key=lambda item: -item.y)) for box in items))


def in_order(pixels: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """A picture with its boxes in another order."""
    moved = pixels.copy()
    for new, old in enumerate(order):
        at, of = new * (BOX + GAP), old * (BOX + GAP)
        moved[:, at : at + BOX] = pixels[:, of : of + BOX]
    return moved
