"""Pictures of emoji with their names in many languages, from the Noto Color Emoji font and Unicode CLDR.

apt-get install fonts-noto-color-emoji; pip install emoji 'bertgpt[vision]'
python -m bertgpt.experiments.multimodal.emoji_data data/emoji --languages en de fr es it pt ru zh ja ko

Writes images/CODEPOINTS.png and train.jsonl, validation.jsonl and test.jsonl, with one record for each picture and
language: image (path relative to the .jsonl file), emoji, name, language, and group, which pictures share if one could
give away the name of the other. A group lies in one split, the same for all languages, large ones in training:

- variants of a base emoji: skin tone, hair, gender, direction; families, couples and kisses of any persons;
- pictures whose pixels hardly differ, by NEAR in root mean square or less: clocks, keycaps, 😦 and 😧.

shuffled.jsonl is test.jsonl with the pictures exchanged among the names: the control in which scores must fall.
Left out unless asked for: flags of countries and regions, because a picture that is not known does not tell the name;
skin tones, because five sixths of those pictures would be repetitions. Sequences that the font does not draw as one
picture, and code points that it lacks, are counted and skipped.

Licences: the font is under the SIL Open Font License 1.1, Noto's images and tools are under Apache 2.0 (see Debian's
copyright file); names are Unicode CLDR data under the Unicode License, packaged by PyPI's `emoji` (BSD). Noto Emoji
2.042 covers Unicode Emoji 15.1: 1,637 pictures, 1,331 of them to train on, 145 for validation, 161 for test.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from bertgpt.data.sources.text import split_of
from bertgpt.io.files import write_json_lines
from bertgpt.types import JsonObject, UserError

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ko")
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # of Debian and Ubuntu
STRIKE = 109  # the one size, in pixels per em, of the font's bitmaps
WIDTH, HEIGHT = 136, 128  # of a bitmap
NEAR = 0.08  # of white − black, at THUMBNAIL × THUMBNAIL pixels
THUMBNAIL = 32
LARGE = 8  # a group of more pictures, not counting skin tones, is trained on: held out, it would dominate the scores

TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
# Emoji of one group: the first of each line stands for the others, also within a sequence.
VARIANTS = (
    ("🧑", "👨", "👩", "👱", "🧔"),
    ("🧒", "👦", "👧"),
    ("🧓", "👴", "👵"),
    ("🤴", "👸", "🫅"),
    ("🧑\u200d🎄", "🎅", "🤶"),
    ("💃", "🕺"),
    ("🫄", "🤰", "🫃"),
    ("🧑\u200d🤝\u200d🧑", "👫", "👬", "👭"),
    ("🧑\u200d❤\u200d💋\u200d🧑", "💏"),
    ("🧑\u200d❤\u200d🧑", "💑"),
)
# Removed: emoji presentation, skin tones, gender signs, “facing right”, and hair.
IGNORED = ("\ufe0f", *TONES, *(f"\u200d{sign}" for sign in "♂♀➡🦰🦱🦳🦲"))


def is_flag(emoji: str) -> bool:
    """Whether an emoji is the flag of a country or region: regional indicators or a sequence of tags."""
    return "\N{REGIONAL INDICATOR SYMBOL LETTER A}" <= emoji[0] <= "🇿" or "\N{CANCEL TAG}" in emoji


def base_of(emoji: str) -> str:
    """The emoji that a variant of skin tone, hair, gender or direction belongs to."""
    for part in IGNORED:
        emoji = emoji.replace(part, "")
    for first, *others in VARIANTS:
        for other in others:
            emoji = emoji.replace(other, first)
    return "👪" if len(emoji) > 1 and set(emoji) <= set("🧑🧒\u200d") else emoji


def names(languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """Emoji → language → CLDR short name, of all fully qualified emoji.

    Raises:
      UserError: `emoji` is missing or lacks a language.
    """
    try:
        import emoji
    except ImportError:
        raise UserError("the names of emoji need a package: pip install emoji") from None
    for language in languages:
        if language not in emoji.LANGUAGES:
            raise UserError(f"languages: there are no names in {language!r}, only in {', '.join(emoji.LANGUAGES)}")
        emoji.config.load_language(language)
    qualified = {e: d for e, d in emoji.EMOJI_DATA.items() if d["status"] == emoji.STATUS["fully_qualified"]}
    return {e: {n: d[n].strip(":").replace("_", " ") for n in languages} for e, d in qualified.items()}


def draw(emojis: Sequence[str], font: str = FONT, size: int = 64) -> dict[str, UInt8[np.ndarray, "S S 3"]]:
    """Emoji → picture on white, of those that the font draws as one picture.

    Raises:
      UserError: the font is missing, or Pillow, or its layout engine, without which sequences are not joined.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont, features
    except ImportError:
        raise UserError("pictures need Pillow: pip install 'bertgpt[vision]'") from None
    if not features.check("raqm"):
        raise UserError("this Pillow has no layout engine Raqm, which joins sequences: install Pillow's own wheel")
    if not Path(font).is_file():
        raise UserError(f"{font} is missing: apt-get install fonts-noto-color-emoji, or give --font FILE")
    try:
        face = ImageFont.truetype(font, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise UserError(f"{font}: no font with color bitmaps of {STRIKE} pixels ({error})") from None
    one = face.getlength("😀")
    pictures = {}
    for emoji in emojis:
        image = Image.new("RGBA", (WIDTH, WIDTH))
        ImageDraw.Draw(image).text((0, (WIDTH - HEIGHT) // 2), emoji, font=face, embedded_color=True)
        if face.getlength(emoji) == one and image.getbbox() is not None:  # a missing one is empty and as wide
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image)
            pictures[emoji] = np.asarray(white.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
    return pictures


def distances(pictures: Sequence[UInt8[np.ndarray, "S S 3"]]) -> Float[np.ndarray, "N N"]:
    """Root mean square differences of all pairs of pictures, as thumbnails, of white − black."""
    from PIL import Image

    small = [Image.fromarray(p).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for p in pictures]
    rows = np.stack([np.asarray(image, np.float64).ravel() / 255.0 for image in small])
    squares = np.sum(rows**2, axis=1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2.0 * rows @ rows.T, 0.0) / rows.shape[1])


def groups(pictures: dict[str, UInt8[np.ndarray, "S S 3"]]) -> dict[str, str]:
    """Emoji → base emoji of its group, the smallest: connected by a common base or by pixels that hardly differ."""
    emojis = list(pictures)
    bases = np.array([base_of(emoji) for emoji in emojis])
    near = (distances(list(pictures.values())) < NEAR) | (bases[:, None] == bases)
    while True:  # each takes the smallest base among its neighbours, until none changes
        found = np.array([min(bases[row]) for row in near])
        if (found == bases).all():
            return dict(zip(emojis, found.tolist(), strict=True))
        bases = found


def file_of(emoji: str) -> str:
    """The file of a picture, named by its code points."""
    return f"images/{'-'.join(f'{ord(c):x}' for c in emoji)}.png"


def write(out: Path, pictures: dict[str, UInt8[np.ndarray, "S S 3"]], named: dict[str, dict[str, str]]) -> None:
    """Writes pictures and records to `out`; a tenth of the groups is for validation, and a tenth for test.

    `pictures`: emoji → picture. `named`: emoji → language → name.
    """
    from PIL import Image

    records: dict[str, list[JsonObject]] = {"train": [], "validation": [], "test": []}
    (out / "images").mkdir(parents=True, exist_ok=True)
    group_of = groups(pictures)
    sizes = Counter(group for emoji, group in group_of.items() if not set(emoji) & set(TONES))
    for emoji, group in group_of.items():
        Image.fromarray(pictures[emoji]).save(out / file_of(emoji))
        for language, name in named[emoji].items():
            record = {"image": file_of(emoji), "emoji": emoji, "name": name, "language": language, "group": group}
            records["train" if sizes[group] > LARGE else split_of(group, 0.1, 0.1)].append(record)
    held = list(dict.fromkeys(record["image"] for record in records["test"]))
    order = np.random.default_rng(0).permutation(len(held))
    other = {held[i]: held[j] for i, j in zip(order, np.roll(order, 1), strict=True)}
    records["shuffled"] = [record | {"image": other[record["image"]]} for record in records["test"]]
    for split, found in records.items():
        write_json_lines(out / f"{split}.jsonl", found)
        print(f"{split}: {len({r['emoji'] for r in found}):,} pictures, {len({r['group'] for r in found}):,} groups")


def main(
    out: Annotated[Path, tyro.conf.Positional],
    size: int = 64,
    languages: tuple[str, ...] = LANGUAGES,
    flags: bool = False,
    skin_tones: bool = False,
    font: str = FONT,
) -> None:
    """Writes pictures of emoji, `size` pixels high and wide, and their names to the folder `out`."""
    named = names(languages)
    chosen = [e for e in named if (flags or not is_flag(e)) and (skin_tones or not set(e) & set(TONES))]
    pictures = draw(chosen, font, size)
    print(f"{len(chosen) - len(pictures):,} of {len(chosen):,} emoji are skipped: the font has no single picture")
    write(out, pictures, named)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
