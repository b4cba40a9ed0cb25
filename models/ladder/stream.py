"""The controlled ladder's training text: whole Python files, by the rules of the tiny ladder's corpus.

python models/ladder/stream.py                  writes corpus.json
python models/ladder/stream.py --write FILE     writes the text too, for a machine without these packages
"""

import argparse
import hashlib
import json
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bayesqid import files

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tiny"))
import corpus  # noqa: E402

LONG_LINE = 25


def long_lines(data: bytes) -> set[int]:
    """Return numbers that stand for the long lines of a text, as `corpus.is_new` counts them."""
    return {corpus.number(line.strip().decode()) for line in data.split(b"\n") if len(line.strip()) >= LONG_LINE}


def heldout_documents() -> list[dict]:
    """Return the held-out documents: the tiny ladder's, evaluation and calibration."""
    lines = [(corpus.HERE / "text" / f"{split}.jsonl").read_text(encoding="utf-8") for split in corpus.DOCUMENTS]
    return [json.loads(line) for text in lines for line in text.splitlines()]


def file_of(document: dict) -> str:
    """Return the path, in the folder of installed packages, of the file that a document is an excerpt of."""
    package, _, rest = document["id"].rpartition(":")[0].partition("/")
    return f"{package.rpartition('-')[0]}/{rest}"


class Heldout:
    """The long lines of every held-out document, to find out files that repeat one of them."""

    def __init__(self, texts: list[bytes]):
        self.lines = [long_lines(text) for text in texts]
        self.every = set().union(*self.lines)

    def repeated_by(self, lines: set[int]) -> bool:
        """Say whether these lines hold half of those of one document."""
        shared = lines & self.every
        return bool(shared) and any(2 * len(shared & own) >= len(own) > 0 for own in self.lines)


def pieces(data: bytes) -> list[bytes]:
    """Return a file as consecutive pieces of whole lines, each of at most `corpus.TRAIN_PIECE` bytes.

    Held-out documents begin anywhere in a file. A model that meets NUL before first lines alone predicts licences after
    it: over their first 128 bytes its loss was 0.19 nats a byte above that of the whole documents (25k, 8M tokens).
    """
    found, start = [], 0
    while start < len(data):
        end = start + corpus.TRAIN_PIECE
        end = len(data) if end >= len(data) else data.rfind(b"\n", start, end) + 1
        found.append(data[start:end])
        start = end
    return found


def build() -> tuple[np.ndarray, dict]:
    """Return the training bytes, uint8, NUL before every piece, and the summary that corpus.json holds.

    Files of the two held-out splits never enter, nor do near-copies of each other or of the held-out documents' files,
    nor files that hold half of the long lines of a held-out document.
    """
    site, pinned = Path(sysconfig.get_paths()["purelib"]), corpus.versions()
    documents = heldout_documents()
    seen: set[int] = set()
    for document in documents:
        data = (site / file_of(document)).read_bytes()
        if document["text"].encode() not in data or not corpus.is_new(data, seen):
            raise SystemExit(f"{document['id']} is not in the installed packages: install the versions in corpus.json")
    heldout = Heldout([document["text"].encode() for document in documents])
    counts: Counter[str] = Counter({"read": 0, "not plain": 0, "near-duplicate": 0, "held out": 0})
    taken: list[bytes] = []
    for path in corpus.paths(site):
        if corpus.split_of(path) != "train":
            continue
        data = (site / path).read_bytes()
        counts["read"] += 1
        if not corpus.is_plain(data):
            counts["not plain"] += 1
        elif not corpus.is_new(data, seen):
            counts["near-duplicate"] += 1
        elif heldout.repeated_by(long_lines(data)):
            counts["held out"] += 1
        else:
            taken.append(data)
    text = b"".join(corpus.SEPARATOR + piece for data in taken for piece in pieces(data))
    return np.frombuffer(text, np.uint8), summary(text, len(taken), pinned, counts)


def summary(text: bytes, taken: int, pinned: dict[str, str], counts: Counter[str]) -> dict:
    """Return what corpus.json says: versions, how many files were left out and why, and the text's digest."""
    windows = (len(text) - 1) // corpus.CONTEXT
    return {
        "packages": pinned,
        "files": {**counts, "taken": taken},
        "bytes": len(text),
        "unique_tokens": windows * corpus.CONTEXT,
        "sha256": hashlib.sha256(text).hexdigest(),
    }


def known() -> dict:
    """Return what corpus.json says."""
    return json.loads((HERE / "corpus.json").read_text(encoding="utf-8"))


def training_text(written: Path | None = None) -> np.ndarray:
    """Return the training bytes, from the installed packages or a file; refuse other text than corpus.json's."""
    if written is None:
        text, about = build()
        same = about == known()
    else:
        text = np.load(written)["text"]
        same = hashlib.sha256(text.tobytes()).hexdigest() == known()["sha256"]
    if not same:
        raise SystemExit("this is another text: install the package versions in models/ladder/corpus.json")
    return text


@dataclass
class Windows:
    """Training windows in the one order that every run reads them in; after the last one comes the first again."""

    text: torch.Tensor
    order: torch.Tensor

    @classmethod
    def of(cls, text: np.ndarray, device: torch.device) -> "Windows":
        """Cut text into windows that overlap by one byte, so that every byte is predicted once."""
        count = (len(text) - 1) // corpus.CONTEXT
        order = torch.from_numpy(np.random.default_rng(0).permutation(count))
        return cls(torch.from_numpy(text.copy()).to(device), order.to(device))

    @property
    def unique_tokens(self) -> int:
        """Return the tokens of one epoch."""
        return len(self.order) * corpus.CONTEXT

    def batch(self, step: int, size: int) -> torch.Tensor:
        """Return the windows of a step, int64 (size, CONTEXT + 1)."""
        device = self.text.device
        numbers = (torch.arange(size, device=device) + step * size) % len(self.order)
        starts = self.order[numbers] * corpus.CONTEXT
        return self.text[starts[:, None] + torch.arange(corpus.CONTEXT + 1, device=device)].long()


def main(written: Path | None) -> None:
    """Write the summary, and the text if asked for."""
    text, about = build()
    if written:
        np.savez_compressed(written, text=text)
    files.write_text(HERE / "corpus.json", json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="an .npz for `train.py --text`")
    main(parser.parse_args().write)
