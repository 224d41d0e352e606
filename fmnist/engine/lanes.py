"""The seeds and numbers of lanes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from fmnist.functional.recipe import CHANGES, NUMBERS
from fmnist.functional.train import Optimizer
from fmnist.functional.types import Numbers


class Lanes(NamedTuple):
    """The values that differ between lanes.

    Attributes:
        seeds: the seed of each lane.
        numbers: the numbers of the optimizer and of the recipe by name, one value for each lane.
    """

    seeds: tuple[int, ...]
    numbers: Mapping[str, tuple[float, ...]]

    @property
    def shared(self) -> bool:
        """Whether all lanes use the same examples and noise, because they have the same seed."""
        return len(set(self.seeds)) == 1


def optimizer_numbers(optimizer: Optimizer) -> dict[str, float | None]:
    """Return the numbers that an optimizer takes and their defaults.

    These are the named parameters of its signature that have a number as default, or no default.
    A number that is set by :func:`functools.partial` is a default.

    Args:
        optimizer: the optimizer.

    Returns:
        The default by name; None if there is no default.
    """
    found: dict[str, float | None] = {}
    for name, parameter in inspect.signature(optimizer).parameters.items():
        default = parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if default is parameter.empty:
            found[name] = None
        elif isinstance(default, int | float) and not isinstance(default, bool):
            found[name] = default
    return found


def make_lanes(optimizer: Optimizer, given: Mapping[str, float | Iterable[float]]) -> Lanes:
    """Build lanes from the values of an optimizer's numbers.

    Args:
        optimizer: the optimizer. Numbers that are not given have its defaults.
        given: for each name, a list with one value for each lane, or one value for all lanes. The
            name ``seed`` is the seed of each lane; the default is 0. The numbers of a recipe
            (:data:`fmnist.functional.recipe.NUMBERS`) are known, too.

    Returns:
        The lanes; one lane if no list is given.

    Raises:
        ValueError: Neither the optimizer nor a recipe takes a number of this name, a number
            without default is missing, lists are empty or differ in length, or a seed is not an
            integer from 0 to 2**32 - 1.
    """
    own = optimizer_numbers(optimizer)
    known = {**dict.fromkeys(NUMBERS, 0), **own}
    columns: dict[str, float | tuple[float, ...]] = {}
    for name, value in given.items():
        if name not in known and name != "seed":
            takes = ", ".join([*own, "seed", *NUMBERS])
            raise ValueError(f"the optimizer takes no number {name!r}; it takes {takes}")
        several = isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0
        columns[name] = tuple(value) if several else value  # type: ignore[arg-type, assignment]
    lengths = {name: len(column) for name, column in columns.items() if isinstance(column, tuple)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"every list needs one value for each lane, but {said}")
    count = next(iter(lengths.values()), 1)

    def column(name: str, default: float | None) -> tuple[float, ...]:
        value = columns.get(name, default)
        if value is None:
            raise ValueError(f"the optimizer needs {name}")
        return value if isinstance(value, tuple) else (value,) * count

    seeds = []
    for seed in column("seed", 0):
        if int(seed) != seed or not 0 <= seed < 2**32:
            raise ValueError(f"a seed is a whole number from 0 to 2**32 - 1, not {seed}")
        seeds.append(int(seed))
    # An integer that is not given, such as a number of iterations, stays a Python integer.
    wanted = {
        name: default
        for name, default in known.items()
        if name in given or not isinstance(default, int)
    }
    numbers = {name: tuple(map(float, column(name, value))) for name, value in wanted.items()}
    # A number of a recipe that is zero in all lanes is off.
    return Lanes(tuple(seeds), {n: c for n, c in numbers.items() if n in own or any(c)})


def stacked_numbers(lanes: Lanes, device: torch.device) -> Numbers:
    """Return the numbers of the lanes by name, each float64 ``[lanes]`` on the device."""
    return {
        name: torch.tensor(values, dtype=torch.float64).to(device)
        for name, values in lanes.numbers.items()
    }


def common_numbers(lanes: Lanes, numbers: Numbers) -> Numbers:
    """Return the stacked numbers, with scalars for what makes the images of all lanes the same.

    Lanes that share their images then also share the changed images, and the first convolution.
    """
    if not lanes.shared:
        return numbers
    return {
        name: number[0] if name in CHANGES and len(set(lanes.numbers[name])) == 1 else number
        for name, number in numbers.items()
    }
