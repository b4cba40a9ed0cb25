"""Asking the hub patiently: what may pass is tried again after a while, what does not becomes one sentence.

What the library retries by itself (huggingface_hub 2.4): a file's metadata and a file's start on 408 and 429, metadata
also on 5xx and time-outs, broken streams by resuming; nothing for the description of a repository.
"""

import email.utils
import logging
import random
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from bayesqid.errors import BadInput

# Waits of 1, 2, 4, ... seconds add up to about two minutes; longer ones only when the hub asks for them
TRIES = 8
LONGEST_OWN_WAIT = 60.0
LONGEST_WAIT = 900.0

# The client under the library changes its name between versions (httpx, httpx2): its base class is found from below
_CLIENT_ERROR = HfHubHTTPError.__mro__[1]
_LIBRARY_WAITS = re.compile("thrown while requesting|Retrying in|Rate limited|Trying to resume")

Sleep = Callable[[float], object]


@cache
def note(text: str) -> None:
    """Say something on stderr once."""
    tqdm.write(text, file=sys.stderr)


def _one_note(record: logging.LogRecord) -> bool:
    """Log filter: the library's lines on its own waits become one note."""
    if not _LIBRARY_WAITS.search(record.getMessage()):
        return True
    note("The hub refuses or does not answer for now: waiting, then trying again.")
    return False


def asked_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that an answer asks to wait: `Retry-After` (seconds or a date), else `RateLimit` once used up, else None.

    RFC 9110, section 10.2.3; the IETF draft on RateLimit header fields has `"name";r=REMAINING;t=SECONDS`.
    """
    given = headers.get("retry-after", "").strip()
    if given.isdigit():
        return float(given)
    if given:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - now)
        except ValueError:
            return None
    used_up = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(used_up[1]) if used_up else None


def _cause(error: BaseException) -> BaseException:
    """What the library's "not in the cache either" and "force download failed" hide."""
    hidden = isinstance(error, LocalEntryNotFoundError) or "Force download failed" in str(error)
    return _cause(error.__cause__) if hidden and error.__cause__ is not None else error


def _passing(error: BaseException) -> str | None:
    """What is wrong if it may pass by itself, else None."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"it answers {status}" if status in (408, 429) or status >= 500 else None
    if isinstance(error, (_CLIENT_ERROR, ConnectionError, TimeoutError)):
        return f"it cannot be reached or is too slow ({type(error).__name__})"
    # so hf_xet, the other way in which weights travel, reports whatever went wrong on the way
    return "a transfer broke off" if isinstance(error, RuntimeError) else None


def _refusal(error: BaseException, hub: str, revision: str) -> str:
    """One sentence on an error that waiting does not mend."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return f"{hub} has no revision {revision}: name a branch, tag or commit that it has."
    if isinstance(error, GatedRepoError):
        return f"{hub} is gated: accept its terms on its page on the hub, then log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} is private or not on the hub: check its name, or log in with `hf auth login`."
    if status in (401, 403):
        return f"The hub refuses {hub} to you ({status}): log in with `hf auth login` as someone who may read it."
    if isinstance(error, RemoteEntryNotFoundError) or status == 404:
        return f"The hub does not find {hub} at revision {revision}, or a file that it lists of it: check the names."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{hub} at revision {revision} cannot be fetched from the hub: {(lines or [type(error).__name__])[0]}"


def patiently[Result](hub: str, revision: str, call: Callable[[], Result], sleep: Sleep) -> Result:
    """What `call` returns, trying again while what goes wrong may pass; `BadInput` when it does not."""
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_one_note)
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as error:  # the library lets errors of several clients through
            cause = _cause(error)
            reason = _passing(cause)
            if reason is None and not isinstance(cause, (OSError, ValueError, _CLIENT_ERROR)):
                raise
            if reason is None:
                raise BadInput(_refusal(cause, hub, revision)) from error
            asked = asked_wait(cause.response.headers, time.time()) if isinstance(cause, HfHubHTTPError) else None
            if attempt == TRIES - 1 or (asked or 0) > LONGEST_WAIT:
                told = f"and asks to wait {asked:.0f} s" if attempt < TRIES - 1 else f"{TRIES} times in a row"
                raise BadInput(
                    f"{hub} at revision {revision} cannot be fetched from the hub, {reason} {told}: go on later, "
                    "or set HF_HUB_OFFLINE=1 to use what is cached."
                ) from error
        note(f"{hub}: the hub does not serve it for now, {reason}: waiting, then trying again up to {TRIES} times.")
        own = min(LONGEST_OWN_WAIT, 2.0**attempt) * random.uniform(0.5, 1.0)
        sleep(own if asked is None else asked + random.uniform(0.0, 1.0))
    raise AssertionError("the last try returns or raises")
