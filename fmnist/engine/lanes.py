"""What each lane has of its own, and how it is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from fmnist.functional.train import Optimizer
from fmnist.functional.types import Numbers


class Lanes(NamedTuple):
    """What is each lane's own: its seed, and its optimizer's numbers by name."""

    seeds: tuple[int, ...]
    numbers: Mapping[str, tuple[float, ...]]

    @property
    def shared(self) -> bool:
        """Whether all lanes see the same examples and noise: they do when they have one seed."""
        return len(set(self.seeds)) == 1


def optimizer_numbers(optimizer: Optimizer) -> dict[str, float | None]:
    """The numbers that an optimizer takes, with their defaults; None where there is none.

    They are the named parameters of its signature whose default is a number or absent; what
    :func:`functools.partial` has set to a number is its default.
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
    """The lanes with these numbers; a scalar is shared by all of them.

    Args:
        optimizer: whose numbers they are; what is not given has its default.
        given: by name: one value for each lane, or one for all. ``seed`` is every lane's own
            seed, 0 by default.

    Raises:
        ValueError: The optimizer takes no number of this name, or one that it needs is missing,
            or two lists have different lengths, or one is empty, or a seed is none.
    """
    known = optimizer_numbers(optimizer)
    columns: dict[str, float | tuple[float, ...]] = {}
    for name, value in given.items():
        if name not in known and name != "seed":
            takes = ", ".join([*known, "seed"])
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
    # A whole number that is not given, such as a count of iterations, stays what it is.
    wanted = {
        name: default
        for name, default in known.items()
        if name in given or not isinstance(default, int)
    }
    return Lanes(
        tuple(seeds),
        {name: tuple(map(float, column(name, default))) for name, default in wanted.items()},
    )


def stacked_numbers(lanes: Lanes, device: torch.device) -> Numbers:
    """The lanes' numbers, each ``[lanes]``; float64, so that nothing is rounded early."""
    return {
        name: torch.tensor(values, dtype=torch.float64).to(device)
        for name, values in lanes.numbers.items()
    }
