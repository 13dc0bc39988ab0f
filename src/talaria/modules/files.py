"""What a built-in module finds in its input folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from talaria.model.errors import Permanent

_MOST_DEPTH = 16


def inputs(source: Path) -> Iterator[Path]:
    """
    Every regular file of the input, in the order of its names, as paths relative to *source*.

    `task.json` and `.tags` are left out: they are written anew for each step. Links and devices are left out too.

    Raises:
        Permanent: Folders nested more than 16 deep.
    """
    for folder, folders, names in os.walk(source):
        folders.sort()
        here = Path(folder)
        depth = len(here.relative_to(source).parts)
        if depth > _MOST_DEPTH:
            raise Permanent(f"folders are nested more than {_MOST_DEPTH} deep in the input")
        for name in sorted(names):
            path = here / name
            if not _is_ours(name, at_top=depth == 0) and path.is_file() and not path.is_symlink():
                yield path.relative_to(source)


def _is_ours(name: str, *, at_top: bool) -> bool:
    return name.endswith(".tags") or (at_top and name == "task.json")


def copy(name: Path, source: Path, destination: Path) -> None:
    """
    Copy one file, with the folders above it.

    A copy and no link: whoever takes the results must be able to tell them from the originals.
    """
    target = destination / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / name, target, follow_symlinks=False)
