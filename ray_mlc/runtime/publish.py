"""Upload a folder to the Hugging Face hub; the token comes from the environment, and stays there.

A commit is one request: the repository holds all of it or nothing. One whose answer was lost is
made again, and changes nothing then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_mlc.errors import ConfigError, StorageError, first_line

TOKEN_VARIABLE = "HF_TOKEN"
ENDPOINT_VARIABLE = "HF_ENDPOINT"
ATTEMPTS = 3
"""Whole attempts; within each the client repeats a single request that fails, for half a minute."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""Seconds before the second attempt, about, and before any."""


def read_token() -> str:
    """The token of the environment.

    Raises:
        ConfigError: If there is none.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise ConfigError(
            f"--push needs a token with the right to write in the environment variable "
            f"{TOKEN_VARIABLE}: see https://huggingface.co/settings/tokens"
        )
    return token


def check_repository(repository: str) -> None:
    """Refuse what cannot be a repository.

    Raises:
        ConfigError: If it is no hub id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise ConfigError(f"--push is {repository!r}, expected a hub id such as me/model") from None


def publish(
    folder: Path,
    repository: str,
    *,
    token: str,
    public: bool,
    replaces: Sequence[str],
    message: str,
) -> str:
    """Upload a folder as one commit; failures that may pass are tried again.

    Args:
        folder: What is uploaded.
        repository: Hub id; made if it is not there.
        token: Access token.
        public: Whether everybody may see it; one that is public already needs it.
        replaces: Patterns of files that go from the repository with the commit, if they are not
            among the new ones.
        message: Of the commit.

    Returns:
        Address of the commit.

    Raises:
        ConfigError: If the repository is public, and that was not asked for.
        StorageError: If the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

    api = HfApi(endpoint=os.environ.get(ENDPOINT_VARIABLE) or None, token=token)
    # errors of the library's HTTP client, which has another name in other versions of it
    broken: tuple[type[Exception], ...] = tuple(
        kind
        for kind in HfHubHTTPError.__mro__
        if kind.__module__.startswith("httpx") and issubclass(kind, Exception)
    )
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, broken) and _may_pass(error)),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        reraise=True,
    )

    def upload() -> str:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository).private:
            raise ConfigError(
                f"--push {repository}: is there already, and everybody can see it: add --public"
            )
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=list(replaces),
        )
        return str(commit.commit_url)

    try:
        return str(retrying(upload))
    except OfflineModeIsEnabled:
        raise ConfigError(
            f"--push {repository}: HF_HUB_OFFLINE is set: unset it to upload"
        ) from None
    except broken as error:
        raise StorageError(f"--push {repository}: {_explained(error)}") from None
    except OSError as error:
        raise StorageError(f"--push {repository}: {first_line(error)}") from None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, too many requests, or a bad moment."""
    status = _status(error)
    return status is None or status == 429 or status >= 500


def _explained(error: Any) -> str:
    """What is wrong, and what to do."""
    match _status(error):
        case 401:
            return f"the hub does not know the token in {TOKEN_VARIABLE}: make a new one"
        case 403:
            return (
                f"the token in {TOKEN_VARIABLE} has no right to write there: give it one, or name "
                "a repository of yours"
            )
        case 404:
            return "the hub has no such user or organization: name one of yours"
        case None:
            return f"the hub cannot be reached ({first_line(error)}): run the same command again"
        case status:
            return f"the hub says {status} ({first_line(error)}): run the same command again"
