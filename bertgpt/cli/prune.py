"""Remove layers, heads and feed-forward units of a model."""

import dataclasses

from bertgpt.adaptation.pruning import Drop
from bertgpt.cli.options import Command, Positional
from bertgpt.ranges import Count, Layers, Natural, Width
from bertgpt.types import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Remove layers, and of each layer the least important heads and feed-forward units; write the smaller model.

    The result of a run is a run, which `bertgpt evaluate` scores. Fine-tune it, with or without a teacher, to recover
    accuracy: --init_from OUT --model None.
    """

    source: Positional[str]
    """directory of a run, a converted model or a Hugging Face model"""
    out: Positional[str]
    """directory to write"""
    num_layers: Layers | None = None
    """layers to keep (None: all)"""
    drop: Drop = "alternate"
    """which layers go, of num_layers: the top ones, or alternate ones, so that those that are kept are evenly spaced"""
    layers: tuple[Natural, ...] = ()
    """the layers to keep, by number, in place of num_layers"""
    num_heads: Width | None = None
    """heads to keep in every layer (None: all)"""
    d_ff: Width | None = None
    """feed-forward units to keep in every layer (None: all)"""
    examples: Count = 512
    """training sequences on which the importance of heads and units is measured"""
    step: Natural | None = None
    """checkpoint to use (None: the newest)"""


def run(options: Options) -> int:
    from bertgpt.adaptation.freezing import count_parameters
    from bertgpt.adaptation.pruning import choose_layers, stack_path
    from bertgpt.inference.model import load
    from bertgpt.inference.prune import prune, save

    if options.layers and options.num_layers is not None:
        raise UserError("bertgpt prune: give either --layers or --num_layers")
    if not options.layers and options.num_layers is options.num_heads is options.d_ff is None:
        raise UserError("bertgpt prune: nothing is to be removed; give --num_layers, --layers, --num_heads or --d_ff")
    model = load(options.source, options.step, arrange="host")
    stack_path(model.config)
    layers = options.layers or None
    if options.num_layers is not None:
        layers = choose_layers(vars(model.config)["num_layers"], options.num_layers, options.drop)
    small = prune(model, layers=layers, num_heads=options.num_heads, d_ff=options.d_ff, examples=options.examples)
    save(small, options.out)
    for name in ("num_layers", "num_heads", "d_ff"):
        print(f"{name}: {vars(model.config)[name]} → {vars(small.config)[name]}")
    counts = [count_parameters(each.params) for each in (model, small)]
    print(f"parameters: {counts[0]:,} → {counts[1]:,}")
    print(f"{options.out}: fine-tune it with --init_from {options.out} --model None")
    return 0


COMMAND = Command(Options, run)
