"""Checkpoints on the Hugging Face hub: what a revision is, fetched once, compared with what the hub announced."""

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, get_session, hf_hub_download, hf_hub_url, scan_cache_dir
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status

from bayesqid.errors import BadInput
from bayesqid.files import MOST_JSON, sha256_file, write_text
from bayesqid.measure.patience import Sleep, note, patiently

# What a model and its tokenizer need besides weights; pickles and Python files are never fetched
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w.-][\w./-]{0,199}", re.ASCII)
# of the top folder, and none that starts with a dot
_FILE = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")
# The library's words for a body that is not as long as announced
_SHORT = re.compile(r"should be of size (\d+) but has size (\d+)")


class File(NamedTuple):
    """A file of a repository: size in bytes, SHA-256 if the hub tells it (it does for files in LFS, so for weights)."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """A revision of a hub repository pinned to its commit, with the files that are wanted of it."""

    hub: str
    revision: str
    commit: str
    files: tuple[File, ...]

    @property
    def weights(self) -> dict[str, str | None]:
        """SHA-256 by name of the weight files."""
        return {file.name: file.sha256 for file in self.files if file.name.endswith(".safetensors")}


def weights(where: str, names: Collection[str], index: Callable[[], str]) -> tuple[str, ...]:
    """The weight files among `names`: the single one, else the shards that the index lists, else all safetensors.

    `index` is asked for the index's text only when it counts. `BadInput` when that is no index or lists what is not
    there, and when there are no weights but pickles.
    """
    if SINGLE in names:
        return (SINGLE,)
    if INDEX not in names:
        found = tuple(sorted(name for name in names if name.endswith(".safetensors")))
        if not found:
            raise BadInput(no_weights(where, names))
        return found
    try:
        shards = tuple(sorted({str(name) for name in json.loads(index())["weight_map"].values()}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        shards = ()
    # an index that names pickles would have them fetched
    if not shards or not all(name.endswith(".safetensors") for name in shards):
        raise BadInput(f"{INDEX} of {where} is no index of safetensors weights: restore it.")
    lacking = [name for name in shards if name not in names]
    if lacking:
        raise BadInput(f"{where} lacks the shard {lacking[0]} that {INDEX} lists: complete the files.")
    return shards


def no_weights(where: str, names: Collection[str]) -> str:
    """Why there is nothing to load among these files: only pickles, or no weights at all."""
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    found = f"only pickled weights ({pickles[0]}), which can run code" if pickles else "no *.safetensors weights"
    return f"{where} holds {found}: convert them to safetensors."


def resolve(hub: str, revision: str, commit: str | None = None, sleep: Sleep = time.sleep) -> Remote:
    """The commit behind a revision (or `commit` itself, which a lock names) and the files that are wanted of it.

    Nothing is downloaded but the index of shards. `BadInput` for a repository or revision that is missing, gated or
    private, that holds no safetensors weights, or that the hub does not describe in several tries. With
    HF_HUB_OFFLINE=1 the cache is asked instead.
    """
    wanted = commit or revision
    for what, name in (("hub id", hub), ("revision", wanted)):
        # both become names of files in the cache
        if not _NAME.fullmatch(name) or ".." in name:
            raise BadInput(f"The {what} {name!r:.80} is none: use letters, digits and . _ - / only.")
    if constants.HF_HUB_OFFLINE:
        return _cached(hub, wanted)
    info = patiently(
        hub,
        wanted,
        lambda: HfApi().model_info(hub, revision=wanted, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT),
        sleep,
    )
    there = {one.rfilename: one for one in info.siblings or () if _FILE.fullmatch(one.rfilename)}
    pinned = Remote(hub, wanted, str(info.sha), ())
    if not _COMMIT.fullmatch(pinned.commit):
        raise BadInput(f"{hub} at revision {wanted} has the commit {pinned.commit!r:.50}, which is none: go on later.")
    large = [name for name in (INDEX, *there) if name in there and name.endswith((".json", ".jinja"))
             and (there[name].size or 0) > MOST_JSON]  # fmt: skip
    if large:
        raise BadInput(f"{large[0]} of {hub} has more than {MOST_JSON / 2**20:g} MiB: name another checkpoint.")

    def index() -> str:
        return patiently(hub, wanted, lambda: _read(pinned, INDEX), sleep)

    files = [
        File(name, there[name].size, lfs.sha256 if (lfs := there[name].lfs) else None)
        for name in _wanted(f"{hub} at revision {wanted}", there, index)
    ]
    return replace(pinned, files=tuple(files))


def _wanted(where: str, names: Collection[str], index: Callable[[], str]) -> list[str]:
    chosen = weights(where, names, index)
    skipped = {INDEX} if SINGLE in chosen else set()
    companions = {name for name in names if any(fnmatch(name, pattern) for pattern in COMPANIONS)}
    return sorted({*companions - skipped, *chosen})


def _read(remote: Remote, name: str) -> str:
    """Text of a small file, past the cache."""
    address = hf_hub_url(remote.hub, name, revision=remote.commit)
    answer = get_session().get(address, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(answer)
    return answer.text


def _cached(hub: str, revision: str) -> Remote:
    """A revision as the cache has it; weights in LFS lie there under their SHA-256."""
    ref = _repository(hub) / "refs" / revision
    commit = revision if _COMMIT.fullmatch(revision) else ref.read_text("utf-8") if ref.is_file() else ""
    commit = commit if _COMMIT.fullmatch(commit) else ""
    folder = _repository(hub) / "snapshots" / commit
    if not commit or not (folder / "config.json").is_file():
        raise BadInput(
            f"HF_HUB_OFFLINE is set and {hub} at revision {revision} is not in the cache: unset it, or fetch it first."
        )
    names = {path.name for path in folder.iterdir() if path.is_file()}
    files = []
    for name in _wanted(f"{hub} at revision {revision} in the cache", names, (folder / INDEX).read_text):
        blob = Path(os.readlink(folder / name)).name if (folder / name).is_symlink() else ""
        known = blob if re.fullmatch("[0-9a-f]{64}", blob) else None
        files.append(File(name, (folder / name).stat().st_size, known))
    return Remote(hub, revision, commit, tuple(files))


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser()


def _repository(hub: str) -> Path:
    return _cache() / repo_folder_name(repo_id=hub, repo_type="model")


def _snapshot(remote: Remote) -> Path:
    return _repository(remote.hub) / "snapshots" / remote.commit


def _mark(remote: Remote) -> Path:
    """Marks a revision as ours to remove; it is laid before the download, so a killed run leaves no orphan."""
    return _repository(remote.hub) / f".bayesqid-{remote.commit}"


def _alone(hub: str):
    """Context in which no other process of ours downloads into or prunes a repository: its revisions share blobs."""
    guard = _cache() / ".locks" / f"{repo_folder_name(repo_id=hub, repo_type='model')}.bayesqid.lock"
    guard.parent.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(guard)


def was_cached(remote: Remote) -> bool:
    """Whether a revision was in the cache before we came: such a one is never removed."""
    return _snapshot(remote).is_dir() and not _mark(remote).exists()


def fault(file: File, path: Path) -> str | None:
    """How a file differs from what the hub announced, else None."""
    size = path.stat().st_size if path.is_file() else 0
    if file.size is not None and size != file.size:
        return f"expected {file.size} bytes, found {size}"
    if file.sha256 is not None and (found := sha256_file(path)) != file.sha256:
        return f"expected SHA-256 {file.sha256}, found {found}"
    return None


def faults(remote: Remote, folder: Path) -> dict[File, str]:
    """The files in a folder that differ from what the hub announced, and how; hashed several at once."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        told = pool.map(lambda file: fault(file, folder / file.name), remote.files)
        return {file: text for file, text in zip(remote.files, told, strict=True) if text}


def _fetch(remote: Remote, file: File, force: bool, sleep: Sleep) -> str | None:
    """Bring one file into the cache, if it is not there or `force`; how it falls short if the library finds it so."""

    def call() -> str | None:
        try:
            hf_hub_download(
                remote.hub, file.name, revision=remote.commit, cache_dir=_cache(), force_download=force,
                etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )  # fmt: skip
        except OSError as error:
            short = _SHORT.search(str(error))
            if short is None:
                raise
            return f"expected {short[1]} bytes, found {short[2]}"

    return patiently(remote.hub, remote.revision, call, sleep)


def _bring(remote: Remote, files: Collection[File], force: bool, sleep: Sleep) -> dict[File, str]:
    """Bring files into the cache; which of them differ from what the hub announced, and how."""
    # the small ones first: what is refused is refused at once
    ordered = sorted(files, key=lambda file: file.size or 0)
    short = {file: text for file in ordered if (text := _fetch(remote, file, force, sleep))}
    return faults(replace(remote, files=tuple(files)), _snapshot(remote)) | short


def _discard(path: Path) -> None:
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    # a link may lead anywhere; what it leads to is removed among the repository's blobs only
    inside = blob.resolve().is_relative_to(path.parents[2].resolve())
    for one in (path, blob) if inside else (path,):
        one.unlink(missing_ok=True)


def download(remote: Remote, sleep: Sleep = time.sleep) -> Path:
    """Folder with the files of a revision, each compared with what the hub announced.

    What differs is deleted and fetched once more; `BadInput` with file, expected and found when it differs again
    (then it is not left in the cache). Offline, nothing is deleted.
    """
    folder = _snapshot(remote)
    where = f"{remote.hub} at revision {remote.revision}"
    if constants.HF_HUB_OFFLINE:
        for file, text in faults(remote, folder).items():
            raise BadInput(f"{folder / file.name} is damaged, {text}: unset HF_HUB_OFFLINE to fetch it again.")
        return folder
    _repository(remote.hub).mkdir(parents=True, exist_ok=True)
    with _alone(remote.hub):
        if not folder.is_dir():
            _mark(remote).touch()
        wrong = _bring(remote, remote.files, False, sleep)
        for file, text in wrong.items():
            note(f"{where}: {file.name} arrived damaged, {text}: fetching it again.")
            _discard(folder / file.name)
        wrong = _bring(remote, wrong, True, sleep)
        for file in wrong:
            _discard(folder / file.name)
        for file, text in wrong.items():
            raise BadInput(f"{file.name} of {where} arrived twice other than announced, {text}: go on later.")
        ref = _repository(remote.hub) / "refs" / remote.revision
        if remote.revision != remote.commit and not ref.exists():
            write_text(ref, remote.commit)
    return folder


def prune(remote: Remote, keep: bool = False) -> None:
    """Remove a revision from the cache if we brought it there, or with `keep` leave it there as if it had been before.

    Blobs that other revisions use stay; revisions that were cached before, and everything while offline, stay too.
    """
    if constants.HF_HUB_OFFLINE or not _mark(remote).exists():
        return
    with _alone(remote.hub):
        if not keep and _snapshot(remote).is_dir():
            found = scan_cache_dir(_cache())
            # copies of a repository have the same commits: theirs are not meant
            ours = frozenset(one for one in found.repos if one.repo_type == "model" and one.repo_id == remote.hub)
            replace(found, repos=ours).delete_revisions(remote.commit).execute()
            if _snapshot(remote).is_dir():
                note(f"{_snapshot(remote)} could not be removed from the cache: remove it with `hf cache`.")
                return
        _mark(remote).unlink(missing_ok=True)


@contextmanager
def lent(remote: Remote, keep: bool = False, sleep: Sleep = time.sleep) -> Iterator[Path]:
    """Context with the folder of a download, pruned afterwards; an interrupt leaves it for the run that goes on."""
    folder = download(remote, sleep)
    try:
        yield folder
    except Exception:
        prune(remote, keep)
        raise
    prune(remote, keep)
