"""The values that a setting can take: their type, their range in words, and its check."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """The values that a setting can take.

    Attributes:
        type: the type of the value; ``tuple`` is a tuple of integers.
        allowed: the range in words.
        check: returns whether a value of this type is in the range.
        choices: the allowed words, if the value is one of a few words.
    """

    type: type
    allowed: str
    check: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def integer(low: int, high: int) -> Kind:
    """An integer from ``low`` to ``high``."""
    return Kind(int, f"an integer from {low} to {high}", lambda n: low <= n <= high)


def integer_or(low: int, high: int, word: str) -> Kind:
    """An integer from ``low`` to ``high``, or a word."""
    allowed = f'an integer from {low} to {high}, or "{word}"'
    return Kind(int, allowed, lambda n: n == word or low <= n <= high, (word,))


def integers(fewest: int, most: int, high: int, example: str) -> Kind:
    """A tuple of ``fewest`` to ``most`` integers from 1 to ``high``."""
    return Kind(
        tuple,
        f"{fewest} to {most} integers from 1 to {high}, written {example}",
        lambda widths: fewest <= len(widths) <= most and all(1 <= n <= high for n in widths),
    )


def choice(*names: str) -> Kind:
    """One of some words."""
    return Kind(str, "one of " + ", ".join(names), names.__contains__, names)


NAME = Kind(
    str,
    "1 to 64 of the characters A-Z a-z 0-9 . _ -, the first a letter or a digit",
    lambda name: re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None,
)
CASE = Kind(
    str,
    "1 to 40 letters, digits, single spaces and . _ + -, the first a letter or a digit",
    lambda name: (
        re.fullmatch(r"(?=.{1,40}$)[A-Z0-9][\w.+-]*( [\w.+-]+)*", name, re.A | re.I) is not None
    ),
)
TEXT = Kind(str, "a text", lambda _: True)
POSITIVE = Kind(float, "a finite number above 0", lambda x: x > 0)
NOT_NEGATIVE = Kind(float, "a finite number, 0 or above", lambda x: x >= 0)
BELOW_ONE = Kind(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)
SHARE = Kind(float, "a number from 0 to 1", lambda x: 0 <= x <= 1)
SWITCH = Kind(bool, "true or false", lambda _: True)

BY_TYPE: Mapping[object, Kind] = {
    int: integer(-(2**31), 2**31 - 1),
    float: Kind(float, "a finite number", lambda _: True),
    bool: SWITCH,
    str: NAME,
}
"""For arguments of a factory, by annotation."""
