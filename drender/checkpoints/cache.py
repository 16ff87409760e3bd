"""Checkpoints by any name: released weights are converted once into a cache."""

import functools
import hashlib
import sys
from pathlib import Path

from drender import assets, files
from drender.checkpoints import convert, hub
from drender.checkpoints.diffusers_layout import STEMS, Log
from drender.locks import lock

BUILT_IN = {f"built-in/{kind}": kind for kind in ("inverse", "forward")}


def progress(line: str) -> None:
    """Print a line to stderr, where it is not taken for a result."""
    print(line, file=sys.stderr, flush=True)


def resolve(source: str | Path, log: Log = progress) -> Path:
    """Return the folder of a converted checkpoint, converting released weights unless the cache holds them.

    Args:
      source: a converted checkpoint; a folder in the released layout; "built-in/inverse" or "built-in/forward"; or a
        Hugging Face name ("owner/name" or "owner/name@revision"), whose branch or tag is looked up again each time.
    Raises:
      InputError: the weights cannot be found, downloaded or converted. Other folders are left to the reader to judge.
    """
    folder = files.expand_home(source)
    if (folder / "unet" / "config.json").is_file():
        return _converted(f"{folder.resolve().name}-{_content_key(folder)}", str(folder), log)
    if str(source) in BUILT_IN and not folder.exists():
        return assets.checkpoint(BUILT_IN[str(source)])
    if hub.is_name(source):
        pinned = hub.pin(str(source), log)
        return _converted(pinned.replace("/", "--"), pinned, log)
    return Path(source)


def _converted(key: str, source: str, log: Log) -> Path:
    """Return the cached checkpoint of this key, which one of several processes converts."""
    folder = files.cache_dir() / "checkpoints" / key
    if folder.is_dir():  # folders appear when they are complete
        return folder
    waiting = functools.partial(log, f"{source}: waiting for another process, which converts it")
    with lock(folder.with_name(f".{key}.lock"), folder.parent, "set DRENDER_CACHE", waiting):
        if not folder.is_dir():
            log(f"{source}: converting into {folder}")
            convert.from_released(source, folder, log=log)
    return folder


def _content_key(folder: Path) -> str:
    """Return a hash of the files that a conversion may read: names, times and contents."""
    digest = hashlib.sha256()
    for part in (".", *STEMS, "scheduler"):
        for file in sorted((folder / part).glob("*")):
            if file.is_file():
                size, mtime = files.size_and_time(file)
                name = file.relative_to(folder).as_posix()
                digest.update(f"{name} {mtime} {files.content_hash(file, size, mtime)}\n".encode())
    return digest.hexdigest()[:16]
