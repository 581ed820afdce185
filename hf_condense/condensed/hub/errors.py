"""What goes wrong on the way to the Hub: tried again where that helps, said in plain words where it does not."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

Result = TypeVar("Result")
_Rule = tuple[type[Exception], frozenset[int | None], type[OSError], str]

_CONFLICT: frozenset[int | None] = frozenset({409, 412})  # someone else has committed, or is just doing so
_BUSY: frozenset[int | None] = frozenset({408, 429, 500, 502, 503, 504})
_UNKNOWN: frozenset[int | None] = frozenset({401})
_FORBIDDEN: frozenset[int | None] = frozenset({403})
_NO_ANSWER: frozenset[int | None] = frozenset({None})
_MISSING: frozenset[int | None] = frozenset({404})
_ANY: frozenset[int | None] = frozenset()
_MAX_CONFLICTS = 20
_MAX_FAILURES = 4  # on top of the client's own tries, which many requests do not get
_LONGEST_PAUSE = 4.0  # seconds
_AGAIN = "nothing was changed there; make the same call again to complete it, what has arrived is not sent twice"

# Error of the client, HTTP status (_ANY: whatever it is), error that is raised instead, what it says. First match wins.
_ALWAYS: tuple[_Rule, ...] = (
    (OfflineModeIsEnabled, _ANY, ConnectionError, "{repo} cannot be reached while HF_HUB_OFFLINE is set; unset it"),
    (LocalTokenNotFoundError, _ANY, PermissionError, "no token was found: run `hf auth login`, or set HF_TOKEN"),
    (
        LocalEntryNotFoundError,
        _NO_ANSWER | _BUSY,
        FileNotFoundError,
        "{repo} cannot be reached, and the set is not among the files kept from earlier; load it once while online",
    ),
    (GatedRepoError, _ANY, PermissionError, "{repo} is gated: log in, and ask for access on its page {page}"),
    (
        RevisionNotFoundError,
        _ANY,
        FileNotFoundError,
        "{repo} has no revision {revision!r}; pass a branch, a tag or a commit that is there",
    ),
)
_LOADING: tuple[_Rule, ...] = (
    (
        RepositoryNotFoundError,
        _ANY,
        FileNotFoundError,
        "no folder and no dataset repository on the Hub is called {repo!r}; check the name, and if the repository is "
        "private, log in with `hf auth login`, set HF_TOKEN or pass token=",
    ),
    (HfHubHTTPError, _UNKNOWN, PermissionError, "the token is not valid; log in again, or check HF_TOKEN"),
    (HfHubHTTPError, _FORBIDDEN, PermissionError, "the token may not read {repo}: {cause}"),
    (HfHubHTTPError, _MISSING, FileNotFoundError, "{endpoint} has lost a part of {repo}: {cause}"),
    (HfHubHTTPError, _BUSY, ConnectionError, "{endpoint} could not answer ({status}); try again later"),
    (HTTPError, _NO_ANSWER, ConnectionError, "{endpoint} cannot be reached: {cause}"),
)
_PUSHING: tuple[_Rule, ...] = (
    (
        HfHubHTTPError,
        _UNKNOWN,
        PermissionError,
        "pushing to {repo} needs a valid token with write access: run `hf auth login`, set HF_TOKEN or pass token=",
    ),
    (
        HfHubHTTPError,
        _FORBIDDEN,
        PermissionError,
        "no write access to {repo}: check the token (a read token cannot push), or pass create_pr=True",
    ),
    (RepositoryNotFoundError, _ANY, FileNotFoundError, "no dataset repository {repo}, or it is private and not yours"),
    (HfHubHTTPError, _CONFLICT, ConnectionError, "others keep committing to {repo}; " + _AGAIN),
    (HfHubHTTPError, _BUSY | _MISSING, ConnectionError, "{endpoint} could not answer ({status}); " + _AGAIN),
    (HTTPError, _NO_ANSWER, ConnectionError, "the connection to {endpoint} failed ({cause}); " + _AGAIN),
)
_XET = (
    "uploading to {repo} with Xet failed ({cause}); if {endpoint} does not speak Xet, set HF_HUB_DISABLE_XET=1 before "
    "Python starts; " + _AGAIN
)

logger = logging.getLogger("hf_condense")


@contextmanager
def plain_words(repo_id: str, revision: str | None = None, *, pushing: bool = False) -> Iterator[None]:
    """Turn the client's errors into built-in ones that say what to do; the client's is kept as their cause.

    Args:
        repo_id: Repository that the block is about.
        revision: Its branch, tag or commit.
        pushing: Whether the block writes.

    Raises:
        PermissionError: If a token is missing or does not suffice.
        FileNotFoundError: If repository or revision are missing, or offline and not kept from earlier.
        ConnectionError: If the Hub cannot be reached or does not answer.
    """
    try:
        yield
    except Exception as error:
        if (said := _said(error, repo_id, revision, pushing)) is None:
            raise
        raise said from error


def patiently(action: Callable[[], Result]) -> Result:
    """Run an action on the Hub, again after a conflict with others and after failures that pass.

    The action looks at the repository afresh every time, so that one whose answer was lost finds its work done.
    """
    conflicts = failures = 0
    dice = random.SystemRandom()  # processes that start together should not go on colliding
    while True:
        try:
            return action()
        except Exception as error:
            if _status(error) in _CONFLICT and conflicts < _MAX_CONFLICTS:
                conflicts += 1
                pause = dice.uniform(0.1, 1.0) * min(conflicts, _LONGEST_PAUSE)
            elif _passes(error) and failures < _MAX_FAILURES:
                failures += 2 if isinstance(error, LocalEntryNotFoundError) else 1  # newer clients tried for long
                pause = dice.uniform(0.5, 1.0) * min(2 ** (failures - 1), _LONGEST_PAUSE)
            else:
                raise
            logger.info("the Hub: %s; trying again in %.1f s", str(error).strip().split("\n")[0], pause)
        time.sleep(pause)


def _said(error: Exception, repo_id: str, revision: str | None, pushing: bool) -> OSError | None:
    """Return the error to raise instead of one of the client's, None if it is none of those."""
    words = {"repo": repo_id, "revision": revision or "main", "endpoint": constants.ENDPOINT}
    words["page"] = f"{constants.ENDPOINT}/datasets/{repo_id}"
    status = _status(error)
    for cause in _causes(error):
        words |= {"cause": " ".join(str(cause).split())[:200] or type(cause).__name__, "status": str(status)}
        for kind, statuses, raised, text in (*_ALWAYS, *(_PUSHING if pushing else _LOADING)):
            if isinstance(cause, kind) and (not statuses or status in statuses):
                said: OSError = raised(text.format(**words))
                return said
        if pushing and isinstance(cause, (ConnectionError, RuntimeError)) and "xet" in str(cause).lower():
            return ConnectionError(_XET.format(**words))
    return None


def _passes(error: Exception) -> bool:
    """Tell whether an error may be gone at the next try: a busy server, a cut connection."""
    if (status := _status(error)) is not None:
        return status in _BUSY
    causes = list(_causes(error))
    hopeless = any(isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for cause in causes)
    return not hopeless and any(isinstance(cause, HTTPError) for cause in causes)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about, if there is one."""
    answered = (cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError))
    return next((cause.response.status_code for cause in answered), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it comes from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
