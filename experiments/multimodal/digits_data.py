"""The handwritten digits of scikit-learn as pictures.

pip install scikit-learn 'bertgpt[vision]'
python -m bertgpt.experiments.multimodal.digits_data data/digits

Writes images/NUMBER.png, 8 × 8 gray pixels, and digits.jsonl with one record for each: image (path relative to the
.jsonl file) and label. These are the 1,797 test digits of 13 writers of the UCI set “Optical Recognition of Handwritten
Digits” (E. Alpaydin and C. Kaynak 1998, CC BY 4.0), scanned bitmaps of 32 × 32 whose blocks of 4 × 4 are counted: each
pixel has 17 levels, which are stretched to 0 … 255.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from bertgpt.io.files import write_json_lines
from bertgpt.types import UserError


def main(out: Annotated[Path, tyro.conf.Positional]) -> None:
    """Writes the pictures and their labels to the folder `out`."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    (out / "images").mkdir(parents=True, exist_ok=True)
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    records = [
        {"image": f"images/{number:04}.png", "label": str(label)} for number, label in enumerate(digits.target.tolist())
    ]
    for record, picture in zip(records, pixels, strict=True):
        Image.fromarray(picture).save(out / record["image"])
    write_json_lines(out / "digits.jsonl", records)
    print(f"{len(records):,} pictures")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
