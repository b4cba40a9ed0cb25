"""The lock of a suite: which commit and which bytes each checkpoint was measured from, obeyed by later runs.

One JSON file: {"schema": ..., "checkpoints": {id: {"hub", "revision", "commit", "files": {name: SHA-256}}}}. It is
read, compared and replaced as one step behind a guard that the operating system frees when a process dies, so any
number of processes may write it and none can leave half of it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bayesqid.errors import BadInput
from bayesqid.files import read_json, writable, write_text

SCHEMA = "bayesqid-lock/1"


@dataclass(frozen=True)
class Entry:
    """What a checkpoint is made of: SHA-256 by file name; `commit` is None for a folder, `hub` then only its name."""

    hub: str
    revision: str
    commit: str | None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> frozenset[str]:
        """SHA-256 of the weight files, whatever their names."""
        return frozenset(digest for name, digest in self.files.items() if name.endswith(".safetensors"))


def read(path: Path) -> dict[str, Entry]:
    """Entries by checkpoint id, none where there is no file; `BadInput` for a file that is no lock."""
    if not path.exists():
        return {}
    try:
        content = read_json(path, "lock")
        schema, entries = content["schema"], {name: Entry(**entry) for name, entry in content["checkpoints"].items()}
        if not all(isinstance(text, str) for one in entries.values() for pair in one.files.items() for text in pair):
            raise TypeError("files are no hashes by name")
        if not all(isinstance(text, str) for one in entries.values()
                   for text in (one.hub, one.revision, one.commit or "")):  # fmt: skip
            raise TypeError("hub, revision or commit is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise BadInput(f"{path} is no lock of a suite: restore it, or delete it to lock anew.") from fault
    if schema != SCHEMA:
        raise BadInput(f"{path} is a lock of the schema {schema}, not {SCHEMA}: delete it to lock anew.")
    return entries


def text(entries: Mapping[str, Entry]) -> str:
    """What stands in a lock with these entries, sorted."""
    content = {"schema": SCHEMA, "checkpoints": {name: asdict(entry) for name, entry in entries.items()}}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """Replace a lock by these entries, all or nothing."""
    write_text(path, text(entries))


def difference(locked: Entry, found: Entry) -> str | None:
    """In what a checkpoint differs from its entry, in words, else None."""
    if locked.commit and found.commit and locked.hub != found.hub:
        return f"the lock has the repository {locked.hub}, found was {found.hub}"
    if locked.commit != found.commit:
        return f"the lock has commit {locked.commit or 'none'}, found was {found.commit or 'a folder'}"
    for name in sorted({*locked.files, *found.files}):
        if locked.files.get(name) != found.files.get(name):
            wanted, there = (entry.files.get(name) for entry in (locked, found))
            return f"for {name} the lock has {_sha(wanted)}, found was {_sha(there)}"
    return None


def _sha(digest: str | None) -> str:
    return f"SHA-256 {digest}" if digest else "no such file"


def twins(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Checkpoints whose weight files are byte for byte those of another one, with the first such other one's id."""
    same: dict[frozenset[str], list[str]] = {}
    for name, entry in sorted(entries.items()):
        if entry.weights:
            same.setdefault(entry.weights, []).append(name)
    return {
        name: next(other for other in names if other != name) for names in same.values() if names[1:] for name in names
    }


def _alone(path: Path):
    """Context in which no other process or thread changes a lock."""
    from huggingface_hub.utils import WeakFileLock

    writable(path).parent.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(path.with_name(f".{path.name}.guard"))


def claim(path: Path, checkpoint: str, found: Entry) -> bool:
    """Enter a checkpoint into a lock, or compare it with its entry there; whether it is new there.

    `BadInput` when it is not what the lock has, or has the same weight files as another checkpoint; of such a pair both
    are entered, since which of the two is mislabelled cannot be told.
    """
    with _alone(path):
        entries = read(path)
        new = checkpoint not in entries
        if new:
            entries[checkpoint] = found
            write(path, entries)
    differs = difference(entries[checkpoint], found)
    if differs:
        raise BadInput(
            f"{checkpoint} is not what was locked, {differs}: delete its entry in {path} if the change is wanted."
        )
    twin = twins(entries).get(checkpoint)
    if twin:
        raise BadInput(f"the same weights as {twin}")
    return new


@contextmanager
def claimed(path: Path, checkpoint: str, found: Entry) -> Iterator[None]:
    """Context behind `claim`; a new entry is taken back when what is done in it fails, so that it can be mended."""
    new = claim(path, checkpoint, found)
    try:
        yield
    except Exception:
        if new:
            with _alone(path):
                write(path, {name: entry for name, entry in read(path).items() if name != checkpoint})
        raise
