"""Continue prompts with a decoder, or answer them with an encoder–decoder."""

import dataclasses
import logging

from bertgpt.cli.options import Command, Inline, Repeatable
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


def run(options: Options) -> int:
    from bertgpt.inference.generate import generate
    from bertgpt.inference.model import load

    records = read_input("prompt", options.prompt, options.input, ("prompt",))
    model = load(options.run, options.step, options.dtype)
    prompts = [record["prompt"] for record in records]
    name_other_defaults(model.decoding, options)
    if options.stream:
        if len(prompts) != 1 or options.decoding.num_return_sequences != 1:
            raise UserError("bertgpt generate: --stream shows one prompt with one answer")

        def show(prompt: int, number: int, text: str) -> None:
            print(text, end="", flush=True)

        list(generate(model, prompts, options.decoding, stop=options.stop, on_text=show))
        print()
        return 0
    outputs = generate(model, prompts, options.decoding, stop=options.stop, batch_size=options.batch_size)
    pairs = [(record, item._asdict()) for record, texts in zip(records, outputs, strict=True) for item in texts]
    return write_lines(options.output, [record for record, _ in pairs], [answer for _, answer in pairs])


def name_other_defaults(decoding: Decoding, options: Options) -> None:
    """Says how the model's generation_config.json asks to generate, where the flags do not say the same."""
    given, usual = vars(options.decoding), vars(Decoding())
    asked = [f"--{k} {v}" for k, v in vars(decoding).items() if v not in (usual[k], given[k])]
    if asked:
        log.warning("%s: its generation_config.json asks for %s, which is left to flags", options.run, " ".join(asked))


COMMAND = Command(Options, run)
