"""Names of pictures."""

import posixpath
import re

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
"""of names of pictures, in lower case"""


def is_picture(name: str) -> bool:
    """Whether a name ends as pictures do, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not posixpath.basename(name).startswith(".")


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them: 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part] + [
        (-2, name)
    ]
