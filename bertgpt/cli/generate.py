"""Continue prompts with a decoder, or answer them with an encoder–decoder."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bertgpt.cli.images import image_records, located
from bertgpt.cli.options import Command, Given, Inline, Repeatable
from bertgpt.cli.records import ModelOptions, check_output, read_input, write_lines
from bertgpt.inference.decoding import Decoding
from bertgpt.ranges import Range
from bertgpt.types import JsonObject, UserError

if TYPE_CHECKING:
    from bertgpt.inference.model import Model

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Continue prompts with a decoder, or answer them with an encoder–decoder. Prints a line of JSON for each text."""

    prompt: Repeatable[tuple[str, ...]] = ()
    """a prompt; beside --image the question or the beginning of the text about it"""
    image: Repeatable[tuple[str, ...]] = ()
    """a picture, an animated picture or a folder of frames, for models that read images"""
    attention: str | None = None
    """PNG to write: where the model looks in the image of --image while it writes each word"""
    attention_layer: Annotated[int, Range(-1000, 1000)] = -1
    """whose heads --attention shows, their mean; -1: the last"""
    stop: Repeatable[tuple[str, ...]] = ()
    """text or special token that ends an answer"""
    stream: bool = False
    """print the text of one prompt token by token"""
    decoding: Inline[Decoding] = Decoding()
    given: Given = ()

    def __post_init__(self):
        super().__post_init__()
        if self.attention is not None:
            check_output(self.attention, "--attention")
            if len(self.image) != 1:
                raise UserError("bertgpt generate: --attention is for one --image")


def run(options: Options) -> int:
    from bertgpt.inference.generate import check_writes, continue_ids, prompt_ids
    from bertgpt.inference.image_tasks import image_prompts
    from bertgpt.inference.model import load

    if not options.image and not options.input:
        read_input("prompt", options.prompt, None, ("prompt",))  # mistakes before the model is loaded
    model = load(options.run, options.step, options.dtype)
    check_writes(model)
    if options.image or (options.input and model.config.image_shape is not None):
        records = read_images(options)
        prompts, pixels = image_prompts(model, located(records, options.input, "image"))
    else:
        records = read_input("prompt", options.prompt, options.input, ("prompt",))
        prompts, pixels = prompt_ids(model, [record["prompt"] for record in records]), None
    decoding = decoding_of(options, model.decoding)
    if options.attention is not None:
        write_attention(options, model, located(records, None, "image")[0], decoding)
    if options.stream:
        if len(prompts) != 1 or decoding.num_return_sequences != 1:
            raise UserError("bertgpt generate: --stream shows one prompt with one answer")

        def show(prompt: int, number: int, text: str) -> None:
            print(text, end="", flush=True)

        list(continue_ids(model, prompts, decoding, stop=options.stop, on_text=show, pixels=pixels))
        print()
        return 0
    outputs = continue_ids(model, prompts, decoding, stop=options.stop, batch_size=options.batch_size, pixels=pixels)
    pairs = [(record, item._asdict()) for record, texts in zip(records, outputs, strict=True) for item in texts]
    return write_lines(options.output, [record for record, _ in pairs], [answer for _, answer in pairs])


def read_images(options: Options) -> list[JsonObject]:
    """Records with the fields `image` and, where a model reads one, `prompt`."""
    if options.input:
        if options.image:
            raise UserError("bertgpt generate: give one of --image and --input")
        return read_input("prompt", options.prompt, options.input, ("image",), lists=True)
    fields = ("image", "prompt") if options.prompt else ("image",)
    return image_records("generate", options.image, options.prompt, "prompt", fields)


def write_attention(options: Options, model: "Model", record: JsonObject, decoding: Decoding) -> None:
    """Writes the picture of --attention."""
    from bertgpt.inference.image_attention import image_attention
    from bertgpt.io.files import write_atomic
    from bertgpt.studies.attention_picture import draw_attention

    found = image_attention(model, record, decoding=decoding)
    number = len(found.weights)
    if not -number <= options.attention_layer < number:
        raise UserError(f"--attention_layer={options.attention_layer}: the model has layers 0 to {number - 1}")
    write_atomic(Path(options.attention), draw_attention(found, options.attention_layer))


def decoding_of(options: Options, default: Decoding) -> Decoding:
    """The flags that were given, and for the others what the model's generation_config.json asks for.

    Raises:
      UserError: a flag does not fit to what the model asks for.
    """
    flags, usual = vars(options.decoding), vars(Decoding())
    asked = {k: v for k, v in vars(default).items() if k not in options.given and v != usual[k]}
    if not asked:
        return options.decoding
    text = " ".join(f"--{k} {v}" for k, v in asked.items())
    log.info("%s: its generation_config.json asks for %s", options.run, text)
    try:
        return Decoding(**flags | asked)
    except UserError as error:
        raise UserError(f"{error}; {options.run} asks for {text} unless flags say otherwise") from None


COMMAND = Command(Options, run)
