"""The Hugging Face hub: folders go there in one commit, and come back through its cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from warnings import warn

from fewbit.errors import BadArgument, BadOutput, BrokenFile, FewbitError, first_sentence
from fewbit.storage.folder import holds_quantized

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CARD = "README.md"
TABLES = ("*.json",)
DATA = (*TABLES, "*.safetensors", "*.txt", "*.model")  # what can be read without running code
LICENCE = ("license", "license_name", "license_link")


def downloaded(repo: str) -> Path:
    """The folder in the cache that holds the repository; its weights come only if fewbit has
    quantized them."""
    with _or(BrokenFile, f"cannot get {repo} from the Hugging Face hub or its local cache"):
        hub = _hub()
        tables = Path(hub.snapshot_download(repo, allow_patterns=TABLES))
        if not holds_quantized(tables):
            raise BrokenFile(f"{repo} holds no network that fewbit has quantized")
        return Path(hub.snapshot_download(repo, revision=tables.name, allow_patterns=DATA))


def upload(files: Mapping[str, Path | bytes], repo: str, message: str, private: bool) -> str:
    """Write all files in one commit, into a new repository where there is none, and return its
    address."""
    if not HUB_ID.fullmatch(repo):
        raise BadArgument(f"a repository must be a hub id such as user/name, got {repo!r:.80}")
    with _or(BadOutput, f"cannot write to {repo} on the Hugging Face hub"):
        from huggingface_hub import CommitOperationAdd

        hub = _hub()
        url = str(hub.create_repo(repo, private=private, exist_ok=True))
        hub.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=message,
        )
        return url


def licence_of(repo: str) -> dict[str, str]:
    """What the card of a repository says of its licence; a warning if it cannot be read."""
    complaint = f"the card of {repo} cannot be read, so the licence is not named"
    try:
        with _or(BrokenFile, complaint):
            from huggingface_hub import ModelCard

            hub = _hub()
            told = ModelCard.load(hub.hf_hub_download(repo, CARD)).data.to_dict()
    except BrokenFile as error:
        warn(str(error), stacklevel=2)
        return {}
    found = {key: str(told[key]) for key in LICENCE if key in told}
    link = found.get("license_link", "://")
    if "://" not in link:  # a file of that repository
        found["license_link"] = f"{hub.endpoint}/{repo}/blob/main/{link}"
    return found


def _hub() -> Any:
    """At the address that the environment names."""
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _or(refusal: type[FewbitError], complaint: str) -> Iterator[None]:
    """Whatever goes wrong on the way to a server becomes one sentence."""
    try:
        yield
    except FewbitError:
        raise
    except ImportError:
        raise BadArgument('huggingface_hub is missing: pip install "fewbit[diffusers]"') from None
    except Exception as error:  # of sockets, HTTP, authentication, or the answer of a server
        said = getattr(error, "server_message", None) or first_sentence(error)
        raise refusal(f"{complaint}: {said}") from None
