"""Retrieval tasks that are planted in ordinary text: a note somewhere, a question for it much later.

The pass-key format is a contract with the demonstration program (see README.md, "Pass keys"):

    note      "\\n[The pass key of box 0417 is 48213.]\\n"
    question  "\\n[What is the pass key of box 0417? It is "
    answer    "48213"          (always five digits; the text goes on with ".]\\n")

Box numbers have four digits, pass keys five; both may start with 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ANSWER_WEIGHT = 4.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
HEX = "0123456789abcdef"


class Item(NamedTuple):
    """One fact: what is planted, what asks for it, what answers, and what closes the answer."""

    note: bytes
    question: bytes
    answer: bytes
    close: bytes


def pass_key(box: str, key: str) -> Item:
    """The pass-key item of a four-digit box number and a five-digit key."""
    return Item(
        f"\n[The pass key of box {box} is {key}.]\n".encode(),
        f"\n[What is the pass key of box {box}? It is ".encode(),
        key.encode(),
        b".]\n",
    )


def _string(rng: np.random.Generator, alphabet: str, length: int) -> str:
    return "".join(alphabet[i] for i in rng.integers(0, len(alphabet), length))


def _word(rng: np.random.Generator) -> str:
    """A pronounceable invented word of two to four syllables."""
    consonants, vowels = "bcdfghjklmnprstvz", "aeiou"
    count = int(rng.integers(2, 5))
    return "".join(consonants[rng.integers(17)] + vowels[rng.integers(5)] for _ in range(count))


def random_item(rng: np.random.Generator, kind: int) -> Item:
    """Draws one item; kinds 0 and 1 are pass keys, 2 to 6 are other key-value shapes."""
    if kind <= 1:
        return pass_key(_string(rng, DIGITS, 4), _string(rng, DIGITS, 5))
    if kind == 2:
        key, value = _string(rng, DIGITS, 6), _string(rng, LETTERS, 8)
        return Item(
            f"\n[note {key}: the code is {value}]\n".encode(),
            f"\n[recall {key}: the code is ".encode(),
            value.encode(),
            b"]\n",
        )
    if kind == 3:
        name, word = _word(rng).capitalize() + " " + _word(rng).capitalize(), _word(rng)
        return Item(
            f"\nRemember this: the secret word of {name} is {word}.\n".encode(),
            f"\nThe secret word of {name} was ".encode(),
            word.encode(),
            b".\n",
        )
    if kind == 4:
        key, value = _string(rng, HEX, 6), _string(rng, HEX, 8)
        return Item(
            f'\n<item key="{key}" value="{value}"/>\n'.encode(),
            f'\n<lookup key="{key}" result="'.encode(),
            value.encode(),
            b'"/>\n',
        )
    if kind == 5:
        key, value = _word(rng).upper() + "_" + _word(rng).upper(), _string(rng, DIGITS, 7)
        return Item(f"\n{key} = {value}\n".encode(), f"\n>>> print({key})\n".encode(), value.encode(), b"\n")
    key, value = _word(rng), _word(rng) + " " + _word(rng)
    return Item(
        f'\n- "{key}" means "{value}"\n'.encode(),
        f'\nQ: What does "{key}" mean?\nA: '.encode(),
        value.encode(),
        b"\n",
    )


def _distinct_items(rng: np.random.Generator, count: int, single: int | None = None) -> list[Item]:
    """Draws `count` items whose questions differ; unless told, half of the windows hold a single kind."""
    if single is None:
        single = int(rng.integers(0, 7)) if rng.random() < 0.5 else -1
    items: dict[bytes, Item] = {}
    while len(items) < count:
        item = random_item(rng, single if single >= 0 else int(rng.integers(0, 7)))
        items.setdefault(item.question, item)
    return list(items.values())


def _line_start(text: np.ndarray, position: int) -> int:
    """Moves a cut to just after the next newline within 200 bytes, if there is one. text: [n] uint8."""
    hits = np.flatnonzero(text[position : position + 200] == 10)
    return position + int(hits[0]) + 1 if len(hits) else position


def plant(
    text: np.ndarray, length: int, pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Builds one training window with `pairs` facts planted and asked for.

    text: [>= length] uint8. Returns (tokens [length] uint8, weights [length] float32), where weights[i]
    weighs the prediction OF token i. About half of the facts are asked for at random later places, the
    others one after the other at the end of the window.
    """
    items = _distinct_items(rng, pairs)
    at_end = rng.random(pairs) < 0.5
    planted = sum(len(i.note) + len(i.question) + len(i.answer) + len(i.close) for i in items)
    body = length - planted
    if body < length // 4:
        raise ValueError("too many pairs for the window")
    events: list[tuple[int, int, int]] = []  # (position in the body, order, item or ~item for its question)
    for index in range(pairs):
        first = int(rng.integers(0, body))
        note_at = _line_start(text[:body], first)
        events.append((note_at, 0, index))
        if at_end[index]:
            events.append((body, 1 + int(rng.integers(0, 1 << 20)), ~index))
        else:
            later = _line_start(text[:body], int(rng.integers(note_at, body + 1)))
            events.append((min(later, body), 1, ~index))
    events.sort(key=lambda e: (e[0], e[1]))

    tokens = np.empty(length, np.uint8)
    weights = np.ones(length, np.float32)
    read = write = 0

    def put(data: bytes, weight: float) -> None:
        nonlocal write
        tokens[write : write + len(data)] = np.frombuffer(data, np.uint8)
        weights[write : write + len(data)] = weight
        write += len(data)

    for position, _, index in events:
        chunk = position - read
        tokens[write : write + chunk] = text[read:position]
        write, read = write + chunk, position
        if index >= 0:
            put(items[index].note, 1.0)
        else:
            item = items[~index]
            put(item.question, 1.0)
            put(item.answer, ANSWER_WEIGHT)
            put(item.close, 1.0)
    tokens[write:] = text[read:body]
    return tokens, weights


def pairs_for(length: int, rng: np.random.Generator) -> int:
    """How many facts a training window of `length` bytes gets: 2 to 5 at 1k, up to 40 at 32k."""
    high = min(40, 3 + length // 700)
    return int(rng.integers(2, high + 1))


def hide(text: bytes, length: int, items: list[Item], rng: np.random.Generator) -> tuple[bytes, list[Item]]:
    """Hides the notes of `items` at random depths in `text`, for a prompt of exactly `length` bytes.

    Returns (context, items in the order in which they are asked). The prompt is the context followed by
    question + answer + close of each item; each question thus follows the right answer to the one before.
    """
    planted = sum(len(i.note) + len(i.question) + len(i.answer) + len(i.close) for i in items)
    body = np.frombuffer(text, np.uint8)[: length - planted]
    if len(body) < length - planted:
        raise ValueError("the held-out text is too short for this prompt")
    places = sorted(_line_start(body, int(p)) for p in rng.integers(0, len(body), len(items)))
    pieces, read = [], 0
    for place, item in zip(places, items, strict=True):
        pieces += [body[read:place].tobytes(), item.note]
        read = place
    pieces.append(body[read:].tobytes())
    return b"".join(pieces), [items[i] for i in rng.permutation(len(items))]


def pass_key_prompt(text: bytes, length: int, keys: int, seed: int) -> tuple[bytes, list[Item]]:
    """`hide` with `keys` random pass keys of distinct boxes."""
    rng = np.random.default_rng(seed)
    return hide(text, length, _distinct_items(rng, keys, single=0), rng)


def key_value_prompt(text: bytes, length: int, keys: int, seed: int) -> tuple[bytes, list[Item]]:
    """`hide` with `keys` facts of the key-value shapes (kinds 2 to 6, mixed)."""
    rng = np.random.default_rng(seed)
    items = [random_item(rng, 2 + i % 5) for i in range(keys)]
    return hide(text, length, items, rng)
