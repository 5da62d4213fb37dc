"""Synthetic pictures in the manner of Cornell NLVR (Suhr et al. 2017): three grey boxes with towers of blocks, or with
scattered squares, circles and triangles. See nlvr_data.py, which writes them to files.
"""

import dataclasses
import functools
import random
from collections import Counter
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


@functools.cache
def sprite(size: int, shape: str, color: str) -> np.ndarray:
    """An object on the ground of a box, uint8 [size, size, 3], its edges smoothed as in NLVR."""
    from PIL import Image, ImageDraw

    scale = 4
    side = size * scale
    picture = Image.new("RGB", (side, side), (211, 211, 211))
    pen, fill = ImageDraw.Draw(picture), COLORS[color]
    if shape == "square":
        pen.rectangle((0, 0, side, side), fill=fill)
    elif shape == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=fill)
    else:
        pen.polygon((0, side - 1, side - 1, side - 1, side // 2, 0), fill=fill)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def draw(box: Box) -> np.ndarray:
    """The picture of a box, uint8 [100, 100, 3]."""
    picture = np.full((BOX, BOX, 3), 211, np.uint8)
    for item in box:
        picture[item.y : item.y + item.size, item.x : item.x + item.size] = sprite(item.size, item.shape, item.color)
    return picture


def cut(picture: np.ndarray) -> list[np.ndarray]:
    """The three boxes of an official picture, uint8 [100, 400, 3]."""
    return [picture[:, left : left + BOX] for left in range(0, picture.shape[1], BOX + GAP)]


def facts(box: Box, tower: bool) -> list[str]:
    """What the statements ask about a box, as labels: 126 in all.

    Of a tower “level 0 black”, the lowest block, and so on; of scattered objects “lowest black” and “highest black”.
    For each color and shape “2 black circle”, at least two of them, up to 4; of those that touch a side, the bottom,
    the right side or a corner, “2 black circle corner”, up to 2.
    """
    counts = Counter()
    for item in box:
        sides = {"edge": item.touches, "bottom": "bottom" in item.touches, "right": "right" in item.touches}
        sides["corner"] = len(item.touches) > 1
        counts.update((item.color, item.shape, *place) for place in [(), *((name,) for name in sides if sides[name])])
    found = []
    for what, count in counts.items():
        if len(what) == 2 or not tower:
            found += [f"{n} {' '.join(what)}" for n in range(1, min(count, 4 if len(what) == 2 else 2) + 1)]
    if tower:
        return found + [f"level {level} {item.color}" for level, item in enumerate(box)]
    return [*found, f"lowest {max(box, key=lambda i: i.y).color}", f"highest {min(box, key=lambda i: i.y).color}"]


def scene_of(boxes: Sequence[Sequence[dict]]) -> Scene:
    """The scene that NLVR's `structured_rep` describes."""
    names = {"#0099ff": "blue", "Black": "black", "Yellow": "yellow"}
    items = [[Item(o["x_loc"], o["y_loc"], o["size"], o["type"], names[o["color"]]) for o in box] for box in boxes]
    towers = all((item.x, item.size, item.shape) == (40, 20, "square") for box in items for item in box)
    return Scene(towers, tuple(tuple(sorted(box, key=lambda item: -item.y)) for box in items))
