"""preprocessor_config.json: how pictures become pixels (`ImageFormat`), and how a model normalises them."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from bertgpt.convert.settings import NUMBER, Settings, shown
from bertgpt.data.images.format import ImageFormat, Resample
from bertgpt.io.files import read_json_object
from bertgpt.models.vit import Config, vision_of, with_vision
from bertgpt.types import JsonObject, ModelConfig, UserError

FILE = "preprocessor_config.json"
RESAMPLE: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""Pillow's numbers of filters"""
HALF = [0.5, 0.5, 0.5]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_COMMON: JsonObject = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": False,
    "crop_size": None,
}
DEFAULTS: dict[str, JsonObject] = {
    "ViT": _COMMON | {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "DeiT": _COMMON
    | {"size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True}
    | {"crop_size": {"height": 224, "width": 224}, "image_mean": HALF, "image_std": HALF},
    "CLIP": _COMMON
    | {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True}
    | {"crop_size": {"height": 224, "width": 224}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
}
"""kind of image processor → what fields that are absent mean"""
ENDINGS = ("ImageProcessor", "FeatureExtractor", "ImageProcessorFast", "ImageProcessorPil")
IGNORED = """_valid_processor_keys processor_class image_processor_type feature_extractor_type do_convert_rgb
data_format input_data_format return_tensors device disable_grouping default_to_square name_or_path auto_map""".split()
"""fields that do not change the pixels of an RGB image, to which all pictures are converted here"""


class Preprocessing(NamedTuple):
    """What an image processor does."""

    format: ImageFormat
    """resizing and cropping"""
    mean: tuple[float, ...]
    """subtracted from the pixels, as fractions of 255"""
    std: tuple[float, ...]
    """by which pixels are then divided"""


def read_preprocessing(directory: Path, channels: int = 3) -> Preprocessing | None:
    """The image processor of a directory; None if it has none.

    Args:
      directory: with preprocessor_config.json or, as transformers 5 writes composed processors, processor_config.json.
      channels: of the model's images.

    Raises:
      UserError: a field has a value that is not supported; the message names it.
    """
    path = directory / FILE
    if path.exists():
        return parse_preprocessing(read_json_object(path), str(path), channels)
    composed = directory / "processor_config.json"
    values = read_json_object(composed).get("image_processor") if composed.exists() else None
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UserError(f"{composed}: image_processor={shown(values)} must be an object")
    return parse_preprocessing(values, f"{composed}: image_processor", channels)


def parse_preprocessing(values: JsonObject, file: str, channels: int) -> Preprocessing:
    """The meaning of a preprocessor_config.json, which messages call `file`. Errors: UserError."""
    kind = _kind(values, file)
    s = Settings({key: value for key, value in values.items() if key not in IGNORED}, file, DEFAULTS[kind], {})
    s.must_be("do_pad", False, None)
    s.must_be("pad_size", None)
    fmt, (mean, std) = _format(s, kind), _normalization(s, channels)
    s.finish()
    return Preprocessing(fmt, mean, std)


def _kind(values: JsonObject, file: str) -> str:
    """Which defaults hold: ViT's where the file names no class."""
    key = next((key for key in ("image_processor_type", "feature_extractor_type") if values.get(key)), None)
    name = "ViTImageProcessor" if key is None else values[key]
    kinds = {kind + ending: kind for kind in DEFAULTS for ending in ENDINGS}
    if not isinstance(name, str) or name not in kinds:
        known = ", ".join(f"{kind}ImageProcessor" for kind in DEFAULTS)
        raise UserError(f"{file}: {key}={shown(name)} is not supported; only {known}")
    return kinds[name]


def _format(s: Settings, kind: str) -> ImageFormat:
    size = _size(s, "size", kind != "CLIP")
    s.used.add("crop_size")
    crop = _size(s, "crop_size", True) if s("do_center_crop", kind=bool) else None
    resample = s("resample")
    if resample not in RESAMPLE:
        known = ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise UserError(f"{s.file}: resample={resample} is not supported; only {known}")
    resizes = s("do_resize", kind=bool)
    if crop is None:
        if isinstance(size, int):
            raise UserError(f"{s.file}: size={shown(s('size', kind=object))} without do_center_crop gives many shapes")
        return ImageFormat(*size, resize="stretch" if resizes else "none", resample=RESAMPLE[resample])
    if not resizes:
        return ImageFormat(*crop, resize="none", crop=True, resample=RESAMPLE[resample])
    if isinstance(size, int):
        return ImageFormat(*crop, resize="shortest", edge=size, crop=True, resample=RESAMPLE[resample])
    if crop == size:
        return ImageFormat(*size, resample=RESAMPLE[resample])
    if size[0] != size[1]:
        raise UserError(f"{s.file}: size={shown(s('size', kind=object))} with do_center_crop must be a square")
    return ImageFormat(*crop, edge=size[0], crop=True, resample=RESAMPLE[resample])


def _size(s: Settings, key: str, square: bool) -> tuple[int, int] | int:
    """(height, width), or the shortest edge; of a number alone: a square, or the shortest edge. Errors: UserError."""
    value = s(key, kind=(int, dict))
    wrong = UserError(f"{s.file}: {key}={shown(value)} is not supported; only height and width, or shortest_edge")
    if isinstance(value, int):
        return (value, value) if square else value
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in value.values()):
        raise wrong
    if value.keys() == {"height", "width"}:
        return value["height"], value["width"]
    if value.keys() != {"shortest_edge"} or key == "crop_size":
        raise wrong
    return value["shortest_edge"]


def _normalization(s: Settings, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for pixels in [0, 1]: (r·x − m) / s = (x/255 − m/(255 r)) / (s/(255 r))."""
    factor = s("rescale_factor", kind=NUMBER) if s("do_rescale", kind=bool) else 1.0
    s.used |= {"rescale_factor", "image_mean", "image_std"}
    mean, std = [0.0] * channels, [1.0] * channels
    if s("do_normalize", kind=bool):
        mean, std = _numbers(s, "image_mean", channels), _numbers(s, "image_std", channels)
    if factor <= 0 or min(std) <= 0:
        raise UserError(f"{s.file}: rescale_factor={factor} and image_std={shown(std)} must be positive")
    scale = 255 * factor
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _numbers(s: Settings, key: str, channels: int) -> list[float]:
    value = s(key, kind=(int, float, list))
    numbers = value if isinstance(value, list) else [value] * channels
    if len(numbers) != channels or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise UserError(f"{s.file}: {key}={shown(value)} must have {channels} numbers, one for each channel")
    return [float(x) for x in numbers]


def write_preprocessing(fmt: ImageFormat, mean: tuple[float, ...], std: tuple[float, ...]) -> JsonObject:
    """The content of a preprocessor_config.json.

    Raises:
      UserError: it samples frames of videos, which such a file does not describe.
    """
    if fmt.frames > 1:
        raise UserError(f"export: image.frames={fmt.frames} has no counterpart in {FILE}")
    sides = {"height": fmt.edge or fmt.height, "width": fmt.edge or fmt.width}
    kind = "CLIP" if fmt.crop else "ViT"
    found: JsonObject = {"image_processor_type": f"{kind}ImageProcessor", "do_resize": fmt.resize != "none"}
    found |= {"size": {"shortest_edge": fmt.edge} if fmt.resize == "shortest" else sides}
    found |= {"resample": next(number for number, name in RESAMPLE.items() if name == fmt.resample)}
    found |= {"do_center_crop": fmt.crop}
    found |= {"crop_size": {"height": fmt.height, "width": fmt.width}} if fmt.crop else {}
    found |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True}
    return found | {"image_mean": list(mean), "image_std": list(std)}


def with_normalization(config: Config, mean: tuple[float, ...], std: tuple[float, ...]) -> Config:
    """A model that reads images, with these numbers of its normalisation; other models unchanged."""
    vision = vision_of(config)
    if vision is None:
        return config
    return with_vision(config, dataclasses.replace(vision, image_mean=mean, image_std=std))


def same_normalization(config: Config, other: ModelConfig) -> Config:
    """The first model with the normalisation of the second."""
    vision = vision_of(other)
    return config if vision is None else with_normalization(config, vision.image_mean, vision.image_std)
