"""Writes synthetic videos of moving shapes, with questions about them:

    python -m bertgpt.experiments.multimodal.moving_shapes data/moving_shapes

One to four squares, circles and triangles of different colours move in a straight line or are shown for a while.
Questions ask how many there are, which of two appears first, and which way one moves; half of the answers to each yes
or no, left or right, up or down question are either, and 1 to 4 are as frequent as each other. Every video of a
question about time comes with its reversal, in which the other answer is true. Both have the same frames, so that a
model that ignores their order is right on exactly half of them; shuffled.tar holds the frames of each video in a random
order, as a control. Everything is a function of the seed.

Written: videos.tar and shuffled.tar (one animated PNG for each video), and train.jsonl, validation.jsonl and test.jsonl
with the fields video, question, answer and type (count, order, horizontal or vertical).
"""

import dataclasses
import io
import json
import random
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

FRAMES, SIDE, SIZE, SHOWN = 4, 48, 9, 2
SPEEDS = (5, 7)  # pixels from frame to frame
COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 90, 230), "yellow": (240, 220, 40)}
SHAPES = ("square", "circle", "triangle")
TYPES = ("count", "order", "horizontal", "vertical")
DIRECTIONS = {"horizontal": ("right", "left"), "vertical": ("down", "up")}
SPLITS = {"train": 16000, "validation": 800, "test": 1600}


@dataclasses.dataclass(frozen=True)
class Actor:
    """A shape: where it is in the first frame, how far it moves in each one, and in which frames it is shown."""

    shape: str
    color: str
    start: tuple[int, int]
    step: tuple[int, int]
    shown: range

    @property
    def name(self) -> str:
        """What questions call it."""
        return f"{self.color} {self.shape}"

    @property
    def swept(self) -> tuple[int, int, int, int]:
        """The rectangle (left, upper, right, lower) that it passes over."""
        xs, ys = (sorted((s, s + d * (FRAMES - 1))) for s, d in zip(self.start, self.step, strict=True))
        return xs[0], ys[0], xs[1] + SIZE, ys[1] + SIZE


def make_actor(rng: random.Random, color: str, axis: str) -> Actor:
    """A shape that moves along an axis ("horizontal" or "vertical"), or is shown for a while ("")."""
    speed = rng.choice(SPEEDS) if axis else 0
    way = rng.choice((1, -1))
    room = SIDE - SIZE - speed * (FRAMES - 1)
    along = rng.randint(0, room)
    along = along if way > 0 else SIDE - SIZE - along
    across = rng.randint(0, SIDE - SIZE)
    begin = rng.randint(0, FRAMES - SHOWN)
    shown = range(FRAMES) if axis else range(begin, begin + SHOWN)
    start, step = (along, across), (way * speed, 0)
    if axis == "vertical":
        start, step = start[::-1], step[::-1]
    return Actor(rng.choice(SHAPES), color, start, step, shown)


def make_video(rng: random.Random, axes: Sequence[str]) -> list[Actor]:
    """One shape for each of `axes`, of different colours, none in the way of another; those that are shown for a while
    appear at different times."""
    while True:
        colors = rng.sample(list(COLORS), len(axes))
        actors = [make_actor(rng, color, axis) for color, axis in zip(colors, axes, strict=True)]
        begins = [actor.shown.start for actor, axis in zip(actors, axes, strict=True) if not axis]
        apart = [
            a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
            for i, a in enumerate(actor.swept for actor in actors)
            for b in (actor.swept for actor in actors[:i])
        ]
        if all(apart) and len(set(begins)) == len(begins):
            return actors


def reverse(actors: Sequence[Actor]) -> list[Actor]:
    """The video backwards."""
    return [
        dataclasses.replace(
            actor,
            start=tuple(s + d * (FRAMES - 1) for s, d in zip(actor.start, actor.step, strict=True)),
            step=tuple(-d for d in actor.step),
            shown=range(FRAMES - actor.shown.stop, FRAMES - actor.shown.start),
        )
        for actor in actors
    ]


def draw(actors: Sequence[Actor]) -> np.ndarray:
    """The frames, uint8 [FRAMES, SIDE, SIDE, 3]."""
    from PIL import Image, ImageDraw

    frames = []
    for t in range(FRAMES):
        picture = Image.new("RGB", (SIDE, SIDE), (30, 30, 30))
        pen = ImageDraw.Draw(picture)
        for actor in actors:
            x, y = (s + d * t for s, d in zip(actor.start, actor.step, strict=True))
            corners, color = (x, y, x + SIZE - 1, y + SIZE - 1), COLORS[actor.color]
            if t not in actor.shown:
                continue
            if actor.shape == "square":
                pen.rectangle(corners, fill=color)
            elif actor.shape == "circle":
                pen.ellipse(corners, fill=color)
            else:
                pen.polygon((x, y + SIZE - 1, x + SIZE - 1, y + SIZE - 1, x + SIZE // 2, y), fill=color)
        frames.append(np.asarray(picture))
    return np.stack(frames)


def make_examples(rng: random.Random, kind: str, answer: int) -> list[tuple[list[Actor], str, str]]:
    """(video, question, answer): for questions about time, two videos that are each other's reversal.

    Args:
      rng: the source of chance.
      kind: one of TYPES.
      answer: which of the possible answers, 0 to 3 for counts and 0 or 1 for others, the first video has.
    """
    # One shape at least moves, so that no two frames are equal: writers of animated PNGs would merge them.
    first = kind if kind in DIRECTIONS else rng.choice(list(DIRECTIONS))
    others = {"count": answer, "order": rng.randint(2, 3)}.get(kind, rng.randint(0, 2))
    axes = [first, *("" if kind == "order" else rng.choice(("", "", *DIRECTIONS)) for _ in range(others))]
    actors = make_video(rng, axes)
    if kind == "count":
        question = rng.choice(("how many shapes are there?", "how many shapes does the video show?"))
        return [(actors, question, str(len(actors)))]
    if kind == "order":
        one, other = sorted(rng.sample(actors[1:], 2), key=lambda actor: actor.shown.start)
        question = f"does the {one.name} appear before the {other.name}?"
        pair = [(actors, question, "yes"), (reverse(actors), question, "no")]
    else:
        ways = DIRECTIONS[kind]
        question = f"does the {actors[0].name} move {' or '.join(sorted(ways))}?"
        way = sum(actors[0].step) < 0
        pair = [(actors, question, ways[way]), (reverse(actors), question, ways[not way])]
    return pair[::-1] if answer else pair


def make_split(rng: random.Random, size: int) -> list[tuple[str, list[Actor], str, str]]:
    """(type, video, question, answer): `size` // 4 of each type, in random order."""
    found = []
    for kind in TYPES:
        made: list[tuple[list[Actor], str, str]] = []
        while len(made) < size // len(TYPES):
            made += make_examples(rng, kind, len(made) % 4 if kind == "count" else rng.randrange(2))
        found += [(kind, *example) for example in made]
    rng.shuffle(found)
    return found


def animated(frames: np.ndarray) -> bytes:
    """An animated PNG."""
    from PIL import Image

    first, *rest = (Image.fromarray(frame).quantize(16) for frame in frames)
    data = io.BytesIO()
    first.save(data, "png", save_all=True, append_images=rest, duration=250)
    return data.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write(folder: Path, sizes: dict[str, int] = SPLITS, seed: int = 0) -> None:
    """Writes videos, shuffled videos and questions: the same bytes for the same arguments."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "videos.tar", "w") as videos, tarfile.open(folder / "shuffled.tar", "w") as shuffled:
        for split, size in sizes.items():
            records = []
            for i, (kind, actors, question, answer) in enumerate(make_split(rng, size)):
                name, frames = f"{split}-{i:05d}.png", draw(actors)
                add(videos, name, animated(frames))
                add(shuffled, name, animated(frames[rng.sample(range(FRAMES), FRAMES)]))
                records.append({"video": name, "question": question, "answer": answer, "type": kind})
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
