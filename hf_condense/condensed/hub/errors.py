"""What goes wrong on the way to the Hub: retried where that helps, and explained in plain words where it does not."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

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
Statuses = frozenset[int | None]


class _Rule(NamedTuple):
    """How an error of the client is explained.

    Attributes:
        kind: Class of the client's error.
        statuses: HTTP statuses that the rule is about, None standing for no answer; empty: whatever the status is.
        raised: Class of the error that is raised instead.
        text: Its message, with gaps.
    """

    kind: type[Exception]
    statuses: Statuses
    raised: type[OSError]
    text: str


_CONFLICT: Statuses = frozenset({409, 412})  # someone else has committed, or is just doing so
_BUSY: Statuses = frozenset({408, 429, 500, 502, 503, 504})
_UNKNOWN: Statuses = frozenset({401})
_FORBIDDEN: Statuses = frozenset({403})
_MISSING: Statuses = frozenset({404})
_NO_ANSWER: Statuses = frozenset({None})
_ANY: Statuses = frozenset()
_MAX_CONFLICTS = 20
_MAX_FAILURES = 4  # in addition to the client's own retries, which many requests do not get
_LONGEST_PAUSE = 4.0  # seconds
_AGAIN = "no commit was made; make the same call again later: no file that has arrived is sent twice"

# The first rule that matches explains an error.
_ALWAYS = (
    _Rule(LocalTokenNotFoundError, _ANY, PermissionError,
          "no token was found: run `hf auth login`, or set HF_TOKEN"),
    _Rule(GatedRepoError,          _ANY, PermissionError,
          "{repo} is gated: log in, and ask for access on its page {page}"),
    _Rule(RevisionNotFoundError,   _ANY, FileNotFoundError,
          "{repo} has no revision {revision!r}; pass an existing branch, tag or commit"),
)  # fmt: skip
# What is loaded by a name is no folder, or the Hub would not have been asked.
_LOADING: tuple[_Rule, ...] = (
    _Rule(OfflineModeIsEnabled,    _ANY,       ConnectionError,
          "no folder is called {repo!r}, and the Hub is not asked while HF_HUB_OFFLINE is set; check the path, or "
          "unset the variable"),
    _Rule(LocalEntryNotFoundError, _NO_ANSWER | _BUSY, FileNotFoundError,
          "no folder is called {repo!r}, the repository {repo} cannot be reached, and the set is not among the cached "
          "files; check the path, or load the set once while online"),
    _Rule(RepositoryNotFoundError, _ANY,       FileNotFoundError,
          "no folder and no dataset repository on the Hub is called {repo!r}; check the name, and if the repository is "
          "private, log in with `hf auth login`, set HF_TOKEN or pass token="),
    _Rule(HfHubHTTPError,          _UNKNOWN,   PermissionError,
          "the token is not valid; log in again, or check HF_TOKEN"),
    _Rule(HfHubHTTPError,          _FORBIDDEN, PermissionError,
          "the token may not read {repo}: {cause}; log in with `hf auth login`, or pass another token="),
    _Rule(HfHubHTTPError,          _MISSING,   FileNotFoundError,
          "{endpoint} no longer has a part of {repo}: {cause}"),
    _Rule(HfHubHTTPError,          _BUSY,      ConnectionError,
          "no folder is called {repo!r}, and {endpoint} could not answer ({status}); check the path, or try later"),
    _Rule(HTTPError,               _NO_ANSWER, ConnectionError,
          "no folder is called {repo!r}, and {endpoint} cannot be reached: {cause}"),
)  # fmt: skip
_PUSHING: tuple[_Rule, ...] = (
    _Rule(OfflineModeIsEnabled,    _ANY,             ConnectionError,
          "{repo} cannot be reached while HF_HUB_OFFLINE is set; unset it"),
    _Rule(HfHubHTTPError,          _UNKNOWN,         PermissionError,
          "pushing to {repo} needs a valid token with write access: run `hf auth login`, set HF_TOKEN or pass token="),
    _Rule(HfHubHTTPError,          _FORBIDDEN,       PermissionError,
          "no write access to {repo}: check the token (a read token cannot push); a push can open a pull "
          "request instead: create_pr=True"),
    _Rule(RepositoryNotFoundError, _ANY,             FileNotFoundError,
          "no dataset repository {repo}, or it is private and not yours: check the name and the owner, or log in with "
          "`hf auth login` as a user who may write to it"),
    _Rule(HfHubHTTPError,          _CONFLICT,        ConnectionError,
          "others keep committing to {repo}; " + _AGAIN),
    _Rule(HfHubHTTPError,          _BUSY | _MISSING, ConnectionError,
          "{endpoint} could not answer ({status}); " + _AGAIN),
    _Rule(HTTPError,               _NO_ANSWER,       ConnectionError,
          "the connection to {endpoint} failed ({cause}); " + _AGAIN),
)  # fmt: skip
_XET = (
    "uploading to {repo} with Xet failed ({cause}); if {endpoint} does not speak Xet, set HF_HUB_DISABLE_XET=1 before "
    "Python starts; " + _AGAIN
)

logger = logging.getLogger("hf_condense")


@contextmanager
def readable_errors(repo_id: str, revision: str | None = None, *, pushing: bool = False) -> Iterator[None]:
    """Replace the client's errors by built-in ones that say what to do; the client's error stays as the cause.

    Args:
        repo_id: Repository that the block is about.
        revision: Its branch, tag or commit.
        pushing: Whether the block writes.

    Raises:
        PermissionError: If a token is missing or does not suffice.
        FileNotFoundError: If the repository or the revision is missing, or the Hub is out of reach and nothing is
            cached.
        ConnectionError: If the Hub cannot be reached or does not answer.
    """
    try:
        yield
    except Exception as error:
        if (replacement := _explain(error, repo_id, revision, pushing)) is None:
            raise
        raise replacement from error


def with_retries(action: Callable[[], Result], *, max_failures: int = _MAX_FAILURES) -> Result:
    """Run an action on the Hub, again after a conflict with others and after failures that pass.

    The action looks at the repository afresh every time, so an action whose answer was lost finds its work done.

    Args:
        action: What to do.
        max_failures: Failures after which it is done again; one more is raised.
    """
    conflicts = failures = 0
    generator = random.SystemRandom()  # processes that start together should not keep colliding
    while True:
        try:
            return action()
        except Exception as error:
            if _status(error) in _CONFLICT and conflicts < _MAX_CONFLICTS:
                conflicts += 1
                pause = generator.uniform(0.1, 1.0) * min(conflicts, _LONGEST_PAUSE)
            elif _may_pass(error) and failures < max_failures:
                # Newer clients have retried for long before they raise LocalEntryNotFoundError.
                failures += 2 if isinstance(error, LocalEntryNotFoundError) else 1
                pause = generator.uniform(0.5, 1.0) * min(2 ** (failures - 1), _LONGEST_PAUSE)
            else:
                raise
            logger.info("the Hub: %s; trying again in %.1f s", str(error).strip().split("\n")[0], pause)
        time.sleep(pause)


def _explain(error: Exception, repo_id: str, revision: str | None, pushing: bool) -> OSError | None:
    """Return the error to raise instead of an error of the client, or None if it is another kind of error."""
    words = {"repo": repo_id, "revision": revision or "main", "endpoint": constants.ENDPOINT}
    words["page"] = f"{constants.ENDPOINT}/datasets/{repo_id}"
    status = _status(error)
    for cause in _causes(error):
        words |= {"cause": " ".join(str(cause).split())[:200] or type(cause).__name__, "status": str(status)}
        for rule in (*_ALWAYS, *(_PUSHING if pushing else _LOADING)):
            if isinstance(cause, rule.kind) and (not rule.statuses or status in rule.statuses):
                return rule.raised(rule.text.format(**words))
        if pushing and isinstance(cause, (ConnectionError, RuntimeError)) and "xet" in str(cause).lower():
            return ConnectionError(_XET.format(**words))
    return None


def _may_pass(error: Exception) -> bool:
    """Return whether the next try may succeed: the server was busy, or the connection was cut."""
    if (status := _status(error)) is not None:
        return status in _BUSY
    causes = list(_causes(error))
    hopeless = any(isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for cause in causes)
    return not hopeless and any(isinstance(cause, HTTPError) for cause in causes)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about, or None if there was no answer."""
    answers = (cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError))
    return next((cause.response.status_code for cause in answers), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
