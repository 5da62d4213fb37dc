"""Synthetic videos: reproducible, with balanced answers that need the order of the frames where they say so."""

import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bertgpt.experiments.multimodal import moving_shapes
from bertgpt.experiments.multimodal.moving_shapes import FRAMES
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moving_shapes")
    moving_shapes.write(folder, {"train": 160, "test": 80})
    return folder


def frames_of(tar: tarfile.TarFile, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(tar.extractfile(name).read())) as image:
        assert image.n_frames == FRAMES
        found = []
        for i in range(FRAMES):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        moving_shapes.write(tmp_path / name, {"train": 16}, seed)
    for name in ("train.jsonl", "videos.tar", "shuffled.tar"):
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert first == again != other


def test_answers_are_balanced_within_each_type(folder: Path):
    for split, size in (("train", 160), ("test", 80)):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        counts = Counter((row["type"], row["answer"]) for row in rows)
        assert Counter(row["type"] for row in rows) == dict.fromkeys(moving_shapes.TYPES, size // 4)
        for kind, answers in (
            ("count", "1 2 3 4"),
            ("order", "yes no"),
            ("horizontal", "left right"),
            ("vertical", "up down"),
        ):
            expected = size // 4 // len(answers.split())
            assert {answer: counts[kind, answer] for answer in answers.split()} == dict.fromkeys(
                answers.split(), expected
            )


def test_files_hold_the_frames_and_the_control_the_same_frames_in_another_order(folder: Path):
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    moved = 0
    with tarfile.open(folder / "videos.tar") as videos, tarfile.open(folder / "shuffled.tar") as shuffled:
        for row in rows:
            one, other = frames_of(videos, row["video"]), frames_of(shuffled, row["video"])
            assert sorted(frame.tobytes() for frame in one) == sorted(frame.tobytes() for frame in other)
            moved += not np.array_equal(one, other)
    assert 0.9 * len(rows) < moved < len(rows)  # one of the 4! orders is the right one


@pytest.mark.parametrize("kind", ["order", "horizontal", "vertical"])
def test_a_question_about_time_has_both_answers_for_the_same_frames(kind: str):
    rng = random.Random(0)
    for answer in (0, 1) * 20:
        (one, question, first), (other, same, second) = moving_shapes.make_examples(rng, kind, answer)
        assert question == same and first != second
        assert np.array_equal(moving_shapes.draw(one), moving_shapes.draw(other)[::-1])


def positions(frames: np.ndarray, color: str) -> list[tuple[float, float] | None]:
    """The middle of the pixels of a colour in each frame, None where there are none."""
    found = [np.argwhere((frame == moving_shapes.COLORS[color]).all(-1)) for frame in frames]
    return [tuple(where.mean(0)) if len(where) else None for where in found]


def test_answers_are_what_the_pixels_show():
    rng = random.Random(1)
    for _ in range(40):
        for kind in moving_shapes.TYPES:
            for actors, question, answer in moving_shapes.make_examples(rng, kind, rng.randrange(2)):
                frames, words = moving_shapes.draw(actors), question.split()
                if kind == "count":
                    assert sum(any(positions(frames, color)) for color in moving_shapes.COLORS) == int(answer)
                elif kind == "order":
                    begins = [next(t for t, where in enumerate(positions(frames, words[i])) if where) for i in (2, 7)]
                    assert (begins[0] < begins[1]) == (answer == "yes")
                else:
                    first, *_, last = positions(frames, words[2])
                    across = last[kind == "horizontal"] - first[kind == "horizontal"]
                    assert (across > 0) == (answer in ("right", "down"))
