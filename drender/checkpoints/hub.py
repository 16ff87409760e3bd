"""Download released checkpoints from Hugging Face by name."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from drender.checkpoints import torch_files
from drender.checkpoints.diffusers_layout import MODEL_INDEX, STEMS, Log
from drender.errors import InputError, first_line
from drender.files import expand_home, require_space

REVISION = re.compile(r"[0-9a-f]{40}")
# owner/name, and perhaps @ with a branch, tag or commit
NAME = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")


def is_name(source: str | Path) -> bool:
    """Return whether `source` has the form of a Hugging Face name, and no such file or folder exists."""
    return NAME.fullmatch(str(source)) is not None and not expand_home(source).exists()


def find(source: str, log: Log, unet: str = "unet") -> Path:
    """Return the folder of a released checkpoint, local or downloaded; raise InputError if `source` names neither."""
    folder = expand_home(source)
    if folder.is_dir():
        return folder
    if not is_name(source):
        raise InputError(f"{source}: neither a folder nor a Hugging Face name of the form owner/name")
    with _hub_errors(source):
        info, folder = _look_up(source, log)
        return folder or _download_files(info, source, unet, log)


def pin(source: str, log: Log) -> str:
    """Return the Hugging Face name with the commit that its revision is now, or was at an earlier download."""
    name, revision = NAME.fullmatch(source).groups()
    if revision and REVISION.fullmatch(revision):
        return source
    with _hub_errors(source):
        info, folder = _look_up(source, log)
        return f"{name}@{folder.name if folder else info.sha}"


def _look_up(source: str, log: Log) -> tuple[Any, Path | None]:
    """Return the hub's record of a repository; or, if the hub cannot be reached, None and an earlier download."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name, revision = NAME.fullmatch(source).groups()
    try:
        return HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10), None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as error:  # the class depends on the HTTP library underneath
        log(f"Hugging Face cannot be reached ({type(error).__name__}); looking for an earlier download of {name}")
        return None, Path(snapshot_download(name, revision=revision, local_files_only=True))


@contextlib.contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Turn errors of Hugging Face's library into an InputError with the remedy."""
    from huggingface_hub import errors

    name, revision = NAME.fullmatch(source).groups()
    not_found = "neither a local folder nor a public repository on Hugging Face"
    problems = {  # the first that matches counts
        errors.GatedRepoError: f"accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`",
        errors.RepositoryNotFoundError: f"{not_found}; check the name, or `hf auth login`",
        errors.RevisionNotFoundError: f"the repository has no revision {revision}; check its branches and tags",
        errors.LocalEntryNotFoundError: "no such folder, and no earlier download; check the path, or the network",
    }
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        unknown = f"download failed ({first_line(error)}); try again"
        problem = next((text for kind, text in problems.items() if isinstance(error, kind)), unknown)
        raise InputError(f"{source}: {problem}") from None


def _download_files(info: Any, source: str, unet: str, log: Log) -> Path:
    """Download what conversion needs: first all but the shards, then the shards that the indices list."""
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    name, revision = NAME.fullmatch(source).groups()
    cache = Path(constants.HF_HUB_CACHE)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}

    def download(files: Collection[str]) -> Path:
        stored = lambda file: isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)
        num_bytes = sum(sizes.get(file, 0) for file in files if not stored(file))
        require_space(cache, num_bytes, "free space, or set HF_HOME to a folder on another disk")
        log(f"downloading {len(files)} files of {name} from Hugging Face, {num_bytes / 1e9:.3g} GB")
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))

    required = required_files(sizes, unet)
    folder = download(required)
    shards = [
        f"{Path(file).parent}/{shard}"
        for file in required
        if "index" in Path(file).name.split(".")
        for shard in torch_files.shard_names(folder / file)
    ]
    return download([*required, *shards]) if shards else folder


def required_files(listed: Collection[str], unet: str = "unet") -> list[str]:
    """Return the files of a repository that conversion needs, without shards.

    These are JSON files, and each component's weights in the best form: one file, or the index of its shards.
    """
    wanted = {MODEL_INDEX, "scheduler/scheduler_config.json", "lora/adapter_config.json"}
    for component, stem in STEMS.items():
        component = unet if component == "unet" else component
        wanted.add(f"{component}/config.json")
        names = [name.removeprefix(f"{component}/") for name in listed if name.startswith(f"{component}/")]
        wanted.add(f"{component}/{torch_files.find_weights(names, stem)}")
    return [name for name in listed if name in wanted]
