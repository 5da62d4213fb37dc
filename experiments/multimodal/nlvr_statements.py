"""Synthetic statements about the pictures of nlvr_scenes.py, from templates modelled on NLVR's development split.

A statement is a text and a test, which tells of any scene whether the text is true of it.
"""

import random
from collections.abc import Callable, Sequence

from bertgpt.experiments.multimodal.nlvr_scenes import COLORS, SHAPES, Box, Item, Scene

Test = Callable[[Scene], bool]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")
BOXES = ("box", "box", "grey box", "grey square", "square")
THINGS = ("object", "item")


def number(rng: random.Random, n: int) -> str:
    """A number as a word or a digit."""
    return rng.choice((NUMBERS[n], str(n)))


def plural(noun: str, n: int) -> str:
    """A noun in the number that goes with n."""
    if n == 1:
        return noun
    head, *rest = noun.split(" ", 1) if noun.startswith("box ") else (noun,)
    return " ".join((head + ("es" if head.endswith("box") else "s"), *rest))


def quantity(rng: random.Random, noun: str, most: int = 3) -> tuple[str, bool, Callable[[int], bool]]:
    """(a quantifier with a noun, whether it is plural, the numbers that it means)."""
    n = rng.randint(1, most)
    words, counted = number(rng, n), plural(noun, n)
    kind = rng.choice(("a", "a", "exactly", "exactly", "at least", "plain", "plain", "only", "no"))
    if kind == "a":
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}", False, lambda k: k >= 1
    if kind == "no":
        return f"no {noun}", False, lambda k: k == 0
    if kind == "plain":
        return f"{words} {counted}", n > 1, (lambda k: k >= 1) if n == 1 else (lambda k: k == n)
    if kind == "at least":
        return f"{rng.choice(('at least', 'at least', 'atleast'))} {words} {counted}", n > 1, lambda k: k >= n
    return f"{kind} {words} {counted}", n > 1, lambda k: k == n


def there(rng: random.Random, noun: str, most: int = 3) -> tuple[str, Callable[[int], bool]]:
    """“There is a …”, “There are exactly two …” and the numbers that it means."""
    phrase, many, holds = quantity(rng, noun, most)
    return f"There {'are' if many else 'is'} {phrase}", holds


def kind_of_item(rng: random.Random, scattered: bool = True) -> tuple[str, Callable[[Item], bool]]:
    """A noun such as “blue circle”, “black item” or “small square”, and the objects that it means."""
    color = rng.choice((*COLORS, *COLORS, ""))
    shape = rng.choice((*SHAPES, "")) if scattered else ""
    size = rng.choice(("small", "big")) if scattered and rng.random() < 0.06 else ""
    if not color and not shape:
        color = rng.choice(list(COLORS))
    noun = " ".join(filter(None, (size, color, shape or (rng.choice(THINGS) if scattered else "block"))))
    sizes = {"small": (10,), "big": (30,), "": (10, 20, 30)}[size]
    return noun, lambda i: i.color == (color or i.color) and i.shape == (shape or i.shape) and i.size in sizes


def place(rng: random.Random) -> tuple[str, Callable[[Item], bool]]:
    """Where an object touches its box, or that it does not."""
    touching = rng.choice(("touching", "touching", "closely touching"))
    edge = rng.choice(("the edge", "the wall", "the side", "an edge"))
    return rng.choice(
        (
            (f"{touching} {edge}", lambda i: bool(i.touches)),
            (f"{touching} {edge}", lambda i: bool(i.touches)),
            (rng.choice(("not touching any edge", "not touching the edge")), lambda i: not i.touches),
            (f"{touching} {rng.choice(('the base', 'the bottom', 'the bottom of a box'))}",
             lambda i: "bottom" in i.touches),
            (f"{touching} {rng.choice(('the corner', 'a corner', 'a box corner'))}", lambda i: len(i.touches) > 1),
            (f"{touching} right wall of a box", lambda i: "right" in i.touches),
        )
    )  # fmt: skip


def count(scene: Scene, holds: Callable[[Item], bool]) -> int:
    """How many objects of a scene a test holds for."""
    return sum(holds(item) for box in scene.boxes for item in box)


def count_boxes(scene: Scene, holds: Callable[[Box], bool]) -> int:
    """How many boxes of a scene a test holds for."""
    return sum(map(holds, scene.boxes))


def about_tower(rng: random.Random) -> tuple[str, Callable[[Box], bool]]:
    """What a tower has, to go after “a tower with”."""
    a, b = rng.choice(list(COLORS)), rng.choice(list(COLORS))
    n = rng.randint(1, 4)
    over = rng.choice(("over", "above", "on top of", "on"))
    end, words = rng.choice(((-1, ("top",)), (0, ("base", "bottom"))))
    where = rng.choice(words)
    article = rng.choice(("a", "a", "1", "one"))
    blocks, blocks_of_a = plural("block", n), plural("block", min(n, 3))
    how, holds = rng.choice(
        (
            ("", lambda k: k == n), ("exactly ", lambda k: k == n), ("only ", lambda k: k == n),
            ("at least ", lambda k: k >= n), ("more than ", lambda k: k > n),
        )
    )  # fmt: skip
    m = min(n, 3)
    some, some_hold = rng.choice(
        (("", lambda k: k == m), ("exactly ", lambda k: k == m), ("only ", lambda k: k == m),
         ("at least ", lambda k: k >= m))
    )  # fmt: skip
    pairs = [
        (f"{article} {a} block {over} a {b} block", lambda t: (b, a) in colors_above(t)),
        (f"{article} {a} block {over} a {b} block", lambda t: (b, a) in colors_above(t)),
        (f"a {b} block below a {a} block", lambda t: (b, a) in colors_above(t)),
        (f"{article} {a} block at the {where}", lambda t: t[end].color == a),
        (f"{article} {a} block at the {where}", lambda t: t[end].color == a),
        (f"a {a} {where}", lambda t: t[end].color == a),
        (f"{how}{number(rng, n)} {blocks}", lambda t: holds(len(t))),
        (f"{how}{number(rng, n)} {blocks} and a {a} block at the {where}",
         lambda t: holds(len(t)) and t[end].color == a),
        (f"{how}{number(rng, n)} {blocks} having a {a} block at the {where}",
         lambda t: holds(len(t)) and t[end].color == a),
        (f"{some}{number(rng, m)} {a} {blocks_of_a}", lambda t: some_hold(of(t, a))),
        (f"{some}{number(rng, m)} {a} {blocks_of_a}", lambda t: some_hold(of(t, a))),
        (f"{number(rng, 2)} {a} blocks stacked together", lambda t: (a, a) in colors_above(t)),
        (f"only {a} blocks", lambda t: {i.color for i in t} == {a}),
        (rng.choice(("only one color", "blocks of the same color")), lambda t: len({i.color for i in t}) == 1),
        (rng.choice(("blocks of all 3 colours", "all three colors", "3 different colors")),
         lambda t: len({i.color for i in t}) == 3),
    ]  # fmt: skip
    if a != b:
        pairs += [
            (f"a {a} block and a {b} block", lambda t: of(t, a) > 0 and of(t, b) > 0),
            (f"a {a} block and {number(rng, 2)} {b} blocks", lambda t: of(t, a) > 0 and of(t, b) >= 2),
            (f"only {a} and {b} blocks", lambda t: {i.color for i in t} == {a, b}),
        ]
    return rng.choice(pairs)


def colors_above(tower: Box) -> set[tuple[str, str]]:
    """(color, color of the block directly on it) of every block but the highest."""
    return {(low.color, high.color) for low, high in zip(tower, tower[1:], strict=False)}


def of(box: Box, color: str) -> int:
    """How many objects of a box have a colour."""
    return sum(item.color == color for item in box)


def about_box(rng: random.Random) -> tuple[str, Callable[[Box], bool]]:
    """What a box contains, to go after “a box with”."""
    (one, is_one), (other, is_other) = kind_of_item(rng), kind_of_item(rng)
    a, b = rng.sample(list(COLORS), 2)
    n, m = rng.randint(1, 6), rng.randint(1, 3)
    things = plural(rng.choice(THINGS), n)
    where, at = place(rng)
    how, holds = rng.choice((("", lambda k: k == n), ("exactly ", lambda k: k == n), ("only ", lambda k: k == n)))
    has = lambda box, test: sum(map(test, box))  # noqa: E731
    top = lambda box: min(box, key=lambda i: i.y).color  # noqa: E731
    return rng.choice(
        (
            (f"{how}{number(rng, n)} {things}", lambda x: holds(len(x))),
            (f"{how}{number(rng, n)} {things}", lambda x: holds(len(x))),
            (f"{number(rng, n)} {things} and a {a} one on top", lambda x: len(x) == n and top(x) == a),
            (f"a {a} item on top", lambda x: top(x) == a),
            (f"{number(rng, m)} {plural(one, m)}", lambda x: has(x, is_one) == m if m > 1 else has(x, is_one) > 0),
            (f"at least {number(rng, m)} {plural(one, m)}", lambda x: has(x, is_one) >= m),
            (f"exactly {number(rng, m)} {plural(one, m)}", lambda x: has(x, is_one) == m),
            (f"a {one} and a {other}", lambda x: has(x, is_one) > 0 and has(x, is_other) > 0),
            (f"a {one} and no {plural(other, 2)}", lambda x: has(x, is_one) > 0 and not has(x, is_other)),
            (f"a {one} and {number(rng, 2)} {plural(other, 2)}",
             lambda x: has(x, is_one) > 0 and has(x, is_other) >= 2),
            (f"at least {number(rng, m)} {plural(one, m)} {where}",
             lambda x: has(x, lambda i: is_one(i) and at(i)) >= m),
            (f"only {a} {rng.choice(THINGS)}s", lambda x: {i.color for i in x} == {a}),
            (f"only {a} and {b} {rng.choice(THINGS)}s", lambda x: {i.color for i in x} == {a, b}),
            (f"{rng.choice(THINGS)}s of only {a} and {b} color", lambda x: {i.color for i in x} == {a, b}),
            (f"only {number(rng, n)} {things} of {a} and {b} color",
             lambda x: len(x) == n and {i.color for i in x} == {a, b}),
            (f"{rng.choice(THINGS)}s of only one color", lambda x: len({i.color for i in x}) == 1),
            (rng.choice(("all 3 colors", "items of all 3 different colors")), lambda x: len({i.color for i in x}) == 3),
        )
    )  # fmt: skip


def statement(rng: random.Random, towers: bool) -> tuple[str, Test]:
    """A statement about a scene, and the scenes of which it is true."""
    kind = rng.random()
    if towers and kind < 0.62:
        what, of_tower = about_tower(rng)
        opening = rng.choice(("There", "There", "There", "one", "ends", "The"))
        if opening == "ends":
            return about_ends(rng)
        if opening == "one":
            n = rng.randint(1, 3)
            who = {
                1: ("One tower has", "One of the towers has"),
                2: ("Two of the towers have", "Two towers have"),
                3: ("All towers have", "All 3 towers have", "Each tower has"),
            }[n]
            return f"{rng.choice(who)} {what}", lambda s: count_boxes(s, of_tower) >= n
        if opening == "The":
            n = rng.randint(1, 4)
            color = rng.choice(list(COLORS))
            end, where = rng.choice(((-1, "top"), (0, "base")))
            tower = f"The tower with {number(rng, n)} {plural('block', n)} has a {color} block at the {where}"
            text = rng.choice((tower, f"The {where} of the {number(rng, n)} blocks tower is {color}"))
            return text, lambda s: count_boxes(s, lambda t: len(t) == n and t[end].color == color) > 0
        phrase, holds = there(rng, "tower", 2)
        which = rng.choice(("with", "with", "with", "having", "which has", "that has"))
        return f"{phrase} {which} {what}", lambda s: holds(count_boxes(s, of_tower))
    if towers and kind < 0.78:
        noun, is_one = kind_of_item(rng, scattered=False)
        phrase, holds = there(rng, noun, 4)
        return phrase, lambda s: holds(count(s, is_one))
    if not towers and kind < 0.5:
        noun, is_one = kind_of_item(rng)
        where, at = place(rng) if rng.random() < 0.7 else ("", lambda i: True)
        phrase, holds = there(rng, noun, 3)
        return f"{phrase} {where}".strip(), lambda s: holds(count(s, lambda i: is_one(i) and at(i)))
    what, of_box = about_box(rng)
    noun = rng.choice(BOXES)
    n = rng.randint(1, 3)
    if rng.random() < 0.4:
        who = {
            1: ("One box has", f"one of the {noun} has", f"one of the {plural(noun, 2)} contains"),
            2: ("Two boxes have", f"Two of the {plural(noun, 2)} have"),
            3: ("Each box has", "Every box has", f"All {plural(noun, 2)} have", f"Each {noun} contains"),
        }[n]
        return f"{rng.choice(who)} {what}", lambda s: count_boxes(s, of_box) >= n
    phrase, holds = there(rng, noun, 2)
    return f"{phrase} {rng.choice(('with', 'with', 'that has'))} {what}", lambda s: holds(count_boxes(s, of_box))


def about_ends(rng: random.Random) -> tuple[str, Test]:
    """A statement about the highest or lowest blocks, or about heights."""
    color = rng.choice(list(COLORS))
    end, words = rng.choice(((-1, ("top",)), (0, ("base", "base"))))
    phrase, holds = there(rng, f"{color} block", 3)
    n = rng.randint(1, 4)
    size, fits = rng.choice(
        (("", lambda k: True), (f" with exactly {number(rng, n)} {plural('block', n)}", lambda k: k == n),
         (f" with at least {number(rng, n)} {plural('block', n)}", lambda k: k >= n))
    )  # fmt: skip
    ends = lambda s: sum(t[end].color == color and fits(len(t)) for t in s.boxes)  # noqa: E731
    return rng.choice(
        (
            (f"{phrase} as the {words[0]} of a tower{size}", lambda s: holds(ends(s))),
            (f"{phrase} as the {words[0]} of a tower{size}", lambda s: holds(ends(s))),
            ("There are at least two towers with the same height", lambda s: len({len(t) for t in s.boxes}) < 3),
            (f"There are two towers which has the same {words[0]} color",
             lambda s: len({t[end].color for t in s.boxes}) == 2),
            (f"There is a tower where the second block is {color}",
             lambda s: any(len(t) > 1 and t[1].color == color for t in s.boxes)),
            (f"There is a {color} tower", lambda s: any({i.color for i in t} == {color} for t in s.boxes)),
            (f"There is a {color} tower with only {number(rng, n)} {plural('block', n)}",
             lambda s: any(len(t) == n and {i.color for i in t} == {color} for t in s.boxes)),
        )
    )  # fmt: skip


def written(rng: random.Random, text: str) -> str:
    """A statement as annotators type it: with or without capital and full stop."""
    text = text[0].lower() + text[1:] if rng.random() < 0.3 else text[0].upper() + text[1:]
    return text + "." * (rng.random() < 0.55)


def make_statements(
    rng: random.Random, scenes: Sequence[Scene], groups: int, tries: int = 150
) -> list[tuple[int, str, bool]]:
    """(index of a scene, statement, whether it is true of it): two true and two false scenes of each of `groups`."""
    kinds = {towers: [i for i, scene in enumerate(scenes) if scene.towers == towers] for towers in (False, True)}
    found = []
    while len(found) < 4 * groups:
        towers = rng.random() < 0.6
        text, test = statement(rng, towers)
        sides: dict[bool, list[int]] = {False: [], True: []}
        for i in rng.sample(kinds[towers], tries):
            side = sides[test(scenes[i])]
            if len(side) < 2:
                side.append(i)
            if len(sides[False]) == len(sides[True]) == 2:
                text = written(rng, text)
                found += [(i, text, truth) for truth in (True, False) for i in sides[truth]]
                break
    return found
