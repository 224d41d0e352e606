"""The source of a module and of the user's own modules that it imports, as one SHA-256."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def digest(module: str) -> str:
    """Return the SHA-256 of the files of a module and of the user's modules that it imports.

    The import statements are read from the sources, so that the result depends on the files only,
    and not on what a process has imported. Imports by other means are not seen.
    """
    total = hashlib.sha256()
    for name, path in sorted(files(module).items()):
        total.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def files(module: str) -> dict[str, Path]:
    """Return the files of a module and of the user's modules that it imports, by module name.

    The standard library, installed packages and fmnist are left out: they have versions.
    """
    found: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in found or not _is_users(name, module):
            continue
        path = _path(name)
        if path is not None:
            found[name] = path
            queue += _imports(name, path)
        if parent := name.rpartition(".")[0]:
            queue.append(parent)
    return found


def _is_users(name: str, module: str) -> bool:
    top = name.partition(".")[0]
    if top == module.partition(".")[0]:
        return True
    if top == "fmnist" or top in sys.stdlib_module_names:
        return False
    path = _path(top)
    folders = path.parts if path else ()
    installed = "site-packages" in folders or "dist-packages" in folders
    return not installed and top not in metadata.packages_distributions()


def _path(name: str) -> Path | None:
    """Return the Python file of a module, or None."""
    origin = None
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name)  # imports the packages that contain the module
        origin = spec.origin if spec else None
    origin = origin or getattr(sys.modules.get(name), "__file__", None)
    path = Path(origin) if origin and origin.endswith(".py") else None
    return path if path and path.is_file() else None


def _imports(name: str, path: Path) -> Iterator[str]:
    """Yield the names of the modules that a file may import."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
