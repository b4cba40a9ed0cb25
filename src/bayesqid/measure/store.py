"""Parts under a URL such as s3://bucket/sweep.nc: made in a folder, then sent whole.

A store of objects writes an object whole or not at all, so what is there is finished. What lies beside the file has the
names it has in a folder, but for the lock of the suite: there each checkpoint's entry is an object of its own
(SUITE.lock.parts/), for nobody can change a part of an object.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from bayesqid.errors import BadInput
from bayesqid.files import write_aside
from bayesqid.measure import lock
from bayesqid.measure.parts import lock_path, parts_folder, stem
from bayesqid.measure.plan import Plan

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
# Objects fetched at once
STREAMS = 16
# About twenty seconds of waiting in all
RETRIES = {"max_retries": 7, "retry_timeout": timedelta(seconds=60)}


class Place(NamedTuple):
    """A measurements file under a URL: the store of its folder, and its name there."""

    url: str
    store: Any
    name: str


class Head(NamedTuple):
    """What a store tells of an object; `tag` changes with the content."""

    tag: str
    modified: datetime


def is_url(output: str | Path) -> bool:
    """Whether a measurements file is named by a URL rather than a path."""
    return bool(_URL.match(str(output)))


def place(url: str) -> Place:
    """The place that a URL names; `BadInput` where nothing can be stored."""
    from obstore import store

    scheme, _, rest = url.partition("://")
    folder, _, name = url.rpartition("/")
    bucket, slash, _ = rest.partition("/")
    if scheme in ("file", "memory", "http"):
        raise BadInput(f"{url} is nothing that runs can share: write a path, or e.g. s3://bucket/sweep.nc.")
    if not (bucket and slash and name):
        raise BadInput(f"{url} names no file: write e.g. s3://bucket/sweep.nc.")
    plain = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")
    options: Any = {"allow_http": True} if plain else None
    try:
        made = store.from_url(folder, client_options=options, retry_config=RETRIES)  # type: ignore[arg-type]
    except Exception as error:  # the library raises kinds of its own, one for each store
        raise BadInput(f"{url} is nothing to store in ({_brief(error)}): write e.g. s3://bucket/sweep.nc.") from error
    found = Place(url, made, name)
    try:
        heads(found, found.name + ".parts")
    except OSError as error:
        raise BadInput(_refusal(found, error)) from error
    return found


def _brief(error: BaseException) -> str:
    """What matters of an error, on one line."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r": <\?xml.*", "", first)[:200]


def _refusal(found: Place, error: OSError) -> str:
    """One sentence on a store that does not let itself be listed."""
    text, bucket = str(error.__cause__), found.url.split("/")[2]
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return f"There is no bucket {bucket}: create it, or name another one with -o."
    if "169.254.169.254" in text or "metadata.google" in text or "redential" in text:
        return f"There are no credentials for {found.url}: set e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    if any(word in text for word in (" 401 ", " 403 ", "AccessDenied", "Forbidden")):
        return f"The bucket {bucket} may not be listed with these credentials: use others, or name another one with -o."
    return f"{found.url} cannot be reached ({error.strerror}): check its address and try again."


@contextmanager
def _said(found: Place) -> Iterator[None]:
    """Context in which the library's errors become an OSError that names the URL, as a full disk's does."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise OSError(errno.EIO, _brief(error), found.url) from error


def heads(found: Place, folder: str) -> dict[str, Head]:
    """The objects in a folder beside the file, by their names there."""
    import obstore

    with _said(found):
        listed = [one for batch in obstore.list(found.store, folder) for one in batch]
    return {one["path"]: Head(str(one["e_tag"]), one["last_modified"]) for one in listed}


def head(found: Place, name: str) -> Head | None:
    """What the store tells of an object, None where there is none."""
    import obstore

    with _said(found):
        try:
            one = obstore.head(found.store, name)
        except FileNotFoundError:
            return None
    return Head(str(one["e_tag"]), one["last_modified"])


def read(found: Place, name: str) -> bytes | None:
    """Content of an object, None where there is none."""
    import obstore

    with _said(found):
        try:
            return bytes(obstore.get(found.store, name).bytes())
        except FileNotFoundError:
            return None


def write(found: Place, name: str, content: bytes) -> None:
    """Store an object, whole or not at all."""
    import obstore

    with _said(found):
        obstore.put(found.store, name, content)


def put(found: Place, name: str, content: bytes, instead_of: str | None) -> str | None:
    """Store an object where there is none, or instead of the content with a tag; its new tag, None where it is not so.

    A store that knows no conditions gets the object in any case.
    """
    import obstore
    from obstore import exceptions

    mode: Any = "create" if instead_of is None else {"e_tag": instead_of}
    with _said(found):
        try:
            return str(obstore.put(found.store, name, content, mode=mode)["e_tag"])
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return None
        except (exceptions.NotSupportedError, NotImplementedError):
            return str(obstore.put(found.store, name, content)["e_tag"])


def delete(found: Place, name: str) -> None:
    """Remove an object, if it is there."""
    import obstore

    with _said(found), suppress(FileNotFoundError):
        obstore.delete(found.store, name)


@dataclass
class Mirror:
    """A local folder with what lies under a URL, or with one checkpoint's share of it, as far as it was fetched.

    `tags` are those of the objects fetched, `times` those of local parts that are there too, and `locked` the
    checkpoints whose entry in the lock is there.
    """

    place: Place
    folder: Path
    plan: Plan
    tags: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)

    @property
    def output(self) -> Path:
        """The measurements file in the folder."""
        return self.folder / self.place.name


def pull(mirror: Mirror, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Fetch what was added or changed under the URL: the file, those parts whose names are `wanted`, the lock."""
    found, guard = mirror.place, lock_path(mirror.output, mirror.plan)
    there = heads(found, parts_folder(mirror.output).name) | heads(found, f"{guard.name}.parts")
    there = {name: one for name, one in there.items()
             if name.endswith((".nc", ".json")) and (not name.endswith(".nc") or wanted(name))}  # fmt: skip
    there |= {name: one for name in (found.name, guard.name) if (one := head(found, name)) is not None}
    changed = [name for name, one in there.items() if mirror.tags.get(name) != one.tag]

    def fetch(name: str) -> None:
        content = read(found, name)
        if content is not None:
            path = write_aside(mirror.folder / name, lambda aside: aside.write_bytes(content))
            mirror.times[path.name] = path.stat().st_mtime_ns

    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(fetch, changed))
    mirror.tags |= {name: there[name].tag for name in changed}
    entries = lock.read(guard)
    for path in sorted(guard.with_name(f"{guard.name}.parts").glob("*.json")):
        entries |= lock.read(path)
    if entries:
        lock.write(guard, entries)
    mirror.locked |= set(entries)


def push(mirror: Mirror) -> None:
    """Send the lock's entries and the parts that were made here, in this order: no part without its entry."""
    found, guard = mirror.place, lock_path(mirror.output, mirror.plan)
    for name, entry in lock.read(guard).items():
        if name not in mirror.locked:
            put(found, f"{guard.name}.parts/{stem(name)}.json", lock.text({name: entry}).encode(), None)
            mirror.locked.add(name)
    folder = parts_folder(mirror.output)
    for path in sorted(folder.glob("*.nc")):
        time = path.stat().st_mtime_ns
        if mirror.times.get(path.name) != time:
            write(found, f"{folder.name}/{path.name}", path.read_bytes())
            mirror.times[path.name] = time
