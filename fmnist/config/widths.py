"""Says in words what an axis of layers means: ``120,60`` is two networks, ``120-60`` is one."""

from __future__ import annotations

from fmnist.config.study import StudyConfig

LAYER = {"channels": "convolution", "hidden": "hidden layer"}


def explained(config: StudyConfig) -> list[str]:
    """Return a line for each axis whose values are numbers of layers."""
    lines = []
    for key, values in config.grid.items():
        if config.settings[key].kind.type is not tuple or len(values) < 2:
            continue
        thing, read = LAYER.get(key, "number"), config.settings[key].read
        counts = [len(read(value)) for value in values]
        if set(counts) == {1}:
            shown = " | ".join(map(str, values))
            how = f"one network of two {thing}s is written {values[0]}-{values[1]}"
            lines.append(f"{key}: {len(values)} networks, each of one {thing}: {shown} ({how})")
        else:
            each = (
                f"{value} ({count} {thing}{'s' * (count != 1)})"
                for value, count in zip(values, counts, strict=True)
            )
            lines.append(f"{key}: {len(values)} networks: {' | '.join(each)}")
    return lines
