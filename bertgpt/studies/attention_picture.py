"""A picture of where a model looks while it writes: one panel for each word of a caption, over the image."""

import numpy as np
from jaxtyping import Float, UInt8

from bertgpt.inference.image_attention import ImageAttention
from bertgpt.studies.contact_sheet import fonts_for
from bertgpt.studies.plots import panels, png

COLUMNS, WORDS = 6, 35  # panels in a row, words at most
SIDE = 1.9  # inches of a panel


def draw_attention(found: ImageAttention, layer: int = -1) -> bytes:
    """The image, then for each word the image with the attention of its tokens, as a PNG.

    The weights are averaged over the heads of a layer and over the tokens of the word, and interpolated between the
    centres of the patches. Each panel has a scale of its own, from its smallest to its largest weight; the number
    beside a word is the sum over all patches. Frames of a video stand side by side.

    Args:
      found: from `image_attention`.
      layer: whose heads.
    """
    maps = found.maps(layer)
    image = side_by_side(found.pixels)
    ratio = image.shape[1] / image.shape[0]
    shown = found.words[:WORDS]
    columns = max(1, round(COLUMNS / ratio)) if ratio > 1 else COLUMNS
    figure, axes = panels(1 + len(shown), columns, SIDE * max(ratio, 1.0), SIDE / min(ratio, 1.0) + 0.35)
    fonts = fonts_for(found.text)
    height, width = image.shape[:2]
    grey = np.repeat(image.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    for number, axis in enumerate(axes):
        axis.set(xticks=[], yticks=[])
        axis.imshow(image if number == 0 else grey, extent=(0, width, height, 0), interpolation="nearest")
        title = found.text if number == 0 else shown[number - 1][0]
        if number:
            _, first, last = shown[number - 1]
            weights = maps[first:last].mean(0)
            title += f"  {weights.sum():.2f}"
            heat = side_by_side(weights[..., None])[..., 0]
            axis.imshow(
                heat, extent=(0, width, height, 0), cmap="inferno", alpha=0.65, interpolation="bilinear",
                vmin=float(heat.min()), vmax=float(heat.max()) or 1.0,
            )  # fmt: skip
        axis.set_title(title if len(title) <= 30 else f"{title[:29]}…", fontsize=8, family=fonts, parse_math=False)
    return png(figure)


def side_by_side(frames: UInt8[np.ndarray, "F H W C"] | Float[np.ndarray, "F H W C"]) -> np.ndarray:
    """The frames from left to right."""
    return np.concatenate(list(frames), axis=1)
