"""Download released checkpoints from Hugging Face by name."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from drender.checkpoints import torch_files
from drender.checkpoints.diffusers_layout import MODEL_INDEX, STEMS, Log
from drender.errors import InputError, first_line
from drender.files import expand_home


def find(source: str, log: Log) -> Path:
    """Return the folder of a released checkpoint, downloading it unless `source` is a local folder.

    Raises:
      InputError: neither a folder, nor a repository that can be downloaded.
    """
    folder = expand_home(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise InputError(f"{source}: neither a folder nor a Hugging Face name of the form owner/name")
    return _download(source, log)


def _download(name: str, log: Log) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        try:
            listed = [file.rfilename for file in HfApi().model_info(name).siblings]
        except RepositoryNotFoundError:
            raise
        except Exception as error:  # the class depends on the HTTP library underneath
            log(f"Hugging Face cannot be reached ({type(error).__name__}); looking for an earlier download")
            return Path(snapshot_download(name, local_files_only=True))
        return _download_files(name, listed, snapshot_download, log)
    except InputError:
        raise
    except GatedRepoError:
        problem = f"accept its terms at https://huggingface.co/{name}, then run `hf auth login`"
    except RepositoryNotFoundError:
        problem = "neither a local folder nor a public repository on Hugging Face; check the name"
    except LocalEntryNotFoundError:
        problem = "no such folder, and no earlier download; check the path, or the network"
    except Exception as error:
        problem = f"download failed ({first_line(error)}); try again"
    raise InputError(f"{name}: {problem}")


def _download_files(name: str, listed: Collection[str], snapshot_download: Callable[..., str], log: Log) -> Path:
    """Download what conversion needs: first all but the shards, then the shards that the indices list."""
    required = required_files(listed)
    log(f"downloading {len(required)} files of {name} from Hugging Face")
    folder = Path(snapshot_download(name, allow_patterns=required))
    shards = [
        f"{Path(file).parent}/{shard}"
        for file in required
        if "index" in Path(file).name.split(".")
        for shard in torch_files.shard_names(folder / file)
    ]
    if shards:
        log(f"downloading {len(shards)} shards")
        snapshot_download(name, allow_patterns=[*required, *shards])
    return folder


def required_files(listed: Collection[str]) -> list[str]:
    """Return the files of a repository that conversion needs, without shards.

    These are JSON files, and each component's weights in the best form: one file, or the index of its shards.
    """
    wanted = {MODEL_INDEX, "scheduler/scheduler_config.json", "lora/adapter_config.json"}
    wanted |= {f"{component}/config.json" for component in STEMS}
    for component, stem in STEMS.items():
        names = [name.removeprefix(f"{component}/") for name in listed if name.startswith(f"{component}/")]
        wanted.add(f"{component}/{torch_files.find_weights(names, stem)}")
    return [name for name in listed if name in wanted]
