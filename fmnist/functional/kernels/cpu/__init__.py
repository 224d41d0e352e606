"""The CPU kernels, compiled by Numba.

Numba numbers the kept versions of a function without a lock. Two processes that compile at the same
time could give two versions one number, and then load the code of one for the other.
"""

from typing import Any

from filelock import FileLock
from numba.core import caching


class _Locked(caching.IndexDataCacheFile):
    """Saves a compiled function while no other process does."""

    def save(self, key: Any, data: Any) -> None:
        with FileLock(f"{self._cache_path}/.lock"):
            super().save(key, data)


setattr(caching, "IndexDataCacheFile", _Locked)  # noqa: B010  not typed
