"""Continue prompts with a decoder, or answer them with an encoder–decoder."""

import dataclasses
import logging

from bertgpt.cli.options import Command, Given, Inline, Repeatable
from bertgpt.cli.records import ModelOptions, read_input, write_lines
from bertgpt.inference.decoding import Decoding
from bertgpt.types import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options(ModelOptions):
    """Continue prompts with a decoder, or answer them with an encoder–decoder. Prints a line of JSON for each text."""

    prompt: Repeatable[tuple[str, ...]] = ()
    """a prompt"""
    stop: Repeatable[tuple[str, ...]] = ()
    """text or special token that ends an answer"""
    stream: bool = False
    """print the text of one prompt token by token"""
    decoding: Inline[Decoding] = Decoding()
    given: Given = ()


def run(options: Options) -> int:
    from bertgpt.inference.generate import generate
    from bertgpt.inference.model import load

    records = read_input("prompt", options.prompt, options.input, ("prompt",))
    model = load(options.run, options.step, options.dtype)
    prompts = [record["prompt"] for record in records]
    decoding = decoding_of(options, model.decoding)
    if options.stream:
        if len(prompts) != 1 or decoding.num_return_sequences != 1:
            raise UserError("bertgpt generate: --stream shows one prompt with one answer")

        def show(prompt: int, number: int, text: str) -> None:
            print(text, end="", flush=True)

        list(generate(model, prompts, decoding, stop=options.stop, on_text=show))
        print()
        return 0
    outputs = generate(model, prompts, decoding, stop=options.stop, batch_size=options.batch_size)
    pairs = [(record, item._asdict()) for record, texts in zip(records, outputs, strict=True) for item in texts]
    return write_lines(options.output, [record for record, _ in pairs], [answer for _, answer in pairs])


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
