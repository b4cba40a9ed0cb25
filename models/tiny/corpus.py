"""The ladder's text and tokenizer: Python sources of pinned packages, as training stream and held-out text.

python models/tiny/corpus.py     writes corpus.json, text/eval.jsonl, text/calibration.jsonl, tokenizer/
"""

import hashlib
import importlib.metadata
import json
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sympy", "torch", "transformers")
# These are written when a wheel is built, so that they differ between machines at one version.
BUILD_FILES = {"version.py", "_version.py", "__config__.py"}
SEPARATOR = b"\0"
CONTEXT = 256
TRAIN_BYTES = 8_200_000
TRAIN_PIECE = 4096
HELDOUT_PIECE = 1024
CALIBRATION_SHORTEST = 256
DOCUMENTS = {"eval": 192, "calibration": 128}


@dataclass(frozen=True)
class Piece:
    """One document: `text`, from byte `offset` of the file `source` (package-version/path)."""

    source: str
    split: str
    offset: int
    text: bytes


def number(*words: str) -> int:
    """Return a 64-bit number that depends on the words alone (the first 8 bytes of their SHA-256)."""
    return int.from_bytes(hashlib.sha256("\n".join(words).encode()).digest()[:8], "big")


def split_of(path: str) -> str:
    """Return a file's split by the hash of its path: a tenth eval, a tenth calibration, the rest train."""
    return {0: "eval", 1: "calibration"}.get(number("split", path) % 10, "train")


def paths(site: Path) -> list[str]:
    """Return the packages' Python files, relative to `site`, in an order made by their paths alone."""
    found = (p for name in PACKAGES for p in (site / name).rglob("*.py") if p.name not in BUILD_FILES)
    names = (p.relative_to(site).as_posix() for p in found)
    return sorted(names, key=lambda path: (number("order", path), path))


def is_plain(data: bytes) -> bool:
    """Say whether the bytes are UTF-8 text of some length, without NUL, carriage returns or endless lines."""
    if len(data) < HELDOUT_PIECE or SEPARATOR in data or b"\r" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return max(map(len, data.split(b"\n"))) <= 500


def is_new(data: bytes, seen: set[int]) -> bool:
    """Say whether at least half of a file's long lines are new, and if so add them to `seen`.

    Copies and near-copies (transformers repeats whole modelling files) fail this in whatever split they fall.
    """
    lines = {number(line.strip().decode()) for line in data.split(b"\n") if len(line.strip()) >= 25}
    new = lines - seen
    if not lines or 2 * len(new) < len(lines):
        return False
    seen |= new
    return True


def cut(data: bytes, size: int, salt: int) -> tuple[int, bytes]:
    """Return (offset, whole lines of at most `size` bytes) from a place in the file that `salt` chooses."""
    start = 0
    if len(data) > size:
        start = data.find(b"\n", salt % (len(data) - size)) + 1
    end = start + size
    return start, data[start:] if end >= len(data) else data[start : data.rfind(b"\n", start, end) + 1]


def piece_of(path: str, version: str, data: bytes) -> Piece:
    """Return the one piece that stands for a file."""
    split, salt = split_of(path), number("cut", path)
    size = {"train": TRAIN_PIECE, "eval": HELDOUT_PIECE}.get(
        split, CALIBRATION_SHORTEST + number("size", path) % (HELDOUT_PIECE - CALIBRATION_SHORTEST + 1)
    )
    offset, text = cut(data, size, salt)
    package, _, rest = path.partition("/")
    return Piece(f"{package}-{version}/{rest}", split, offset, text)


def usable(piece: Piece) -> bool:
    """Say whether a piece may enter: held-out text is ASCII and neither much shorter than asked nor blank."""
    if piece.split == "train":
        return True
    least = CALIBRATION_SHORTEST if piece.split == "calibration" else HELDOUT_PIECE // 2
    return piece.text.isascii() and len(piece.text) >= least and piece.text.strip() != b""


def versions() -> dict[str, str]:
    """Return the installed version of every package."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def build() -> tuple[list[Piece], dict]:
    """Return the pieces of all three splits, in order, and the summary that corpus.json holds."""
    site, pinned = Path(sysconfig.get_paths()["purelib"]), versions()
    pieces: list[Piece] = []
    room = {"train": TRAIN_BYTES, **DOCUMENTS}
    seen: set[int] = set()
    files = hashlib.sha256()
    counts = {"read": 0, "not plain": 0, "near-duplicate": 0}
    for path in paths(site):
        if room[split_of(path)] <= 0:
            continue
        data = (site / path).read_bytes()
        counts["read"] += 1
        if not is_plain(data):
            counts["not plain"] += 1
            continue
        if not is_new(data, seen):
            counts["near-duplicate"] += 1
            continue
        piece = piece_of(path, pinned[path.split("/")[0]], data)
        if not usable(piece):
            continue
        files.update(f"{hashlib.sha256(data).hexdigest()} {piece.source}\n".encode())
        room[piece.split] -= len(piece.text) + 1 if piece.split == "train" else 1
        pieces.append(piece)
    if any(left > 0 for left in room.values()):
        raise SystemExit(f"the installed packages hold too little text, still wanted: {room}")
    return pieces, summary(pieces, pinned, files.hexdigest(), counts)


def summary(pieces: list[Piece], pinned: dict[str, str], files: str, counts: dict[str, int]) -> dict:
    """Return what corpus.json says: versions, counts, digest of the files used, digest of every split."""
    splits = {}
    for split in ("train", "eval", "calibration"):
        texts = [p.text for p in pieces if p.split == split]
        digest = hashlib.sha256(b"".join(SEPARATOR + text for text in texts)).hexdigest()
        splits[split] = {"documents": len(texts), "bytes": sum(map(len, texts)), "sha256": digest}
    packages = {
        name: {"version": version, "documents": sum(p.source.startswith(f"{name}-") for p in pieces)}
        for name, version in pinned.items()
    }
    return {"packages": packages, "files": counts, "files_sha256": files, "splits": splits}


def stream(pieces: list[Piece]) -> np.ndarray:
    """Return training windows, uint8 (windows, CONTEXT + 1), in the one order that every run reads them in.

    Neighbours overlap by one byte, so that every byte is predicted once and none is repeated.
    """
    text = b"".join(SEPARATOR + p.text for p in pieces if p.split == "train")
    tokens = np.frombuffer(text, np.uint8)
    starts = np.arange((len(tokens) - 1) // CONTEXT) * CONTEXT
    return np.random.default_rng(0).permutation(tokens[starts[:, None] + np.arange(CONTEXT + 1)])


def heldout() -> np.ndarray:
    """Return eval.jsonl as windows, int64 (windows, CONTEXT + 1): NUL, a document's bytes, -1 as padding."""
    rows = []
    for line in (HERE / "text" / "eval.jsonl").read_text(encoding="utf-8").splitlines():
        tokens = [0, *json.loads(line)["text"].encode()]
        for i in range(0, len(tokens) - 1, CONTEXT):
            window = tokens[i : i + CONTEXT + 1]
            rows.append(window + [-1] * (CONTEXT + 1 - len(window)))
    return np.array(rows, np.int64)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def jsonl(pieces: list[Piece], split: str) -> str:
    """Return one split as JSON lines; the id names package, version, file and byte offset."""
    rows = ({"id": f"{p.source}:{p.offset}", "text": p.text.decode()} for p in pieces if p.split == split)
    return "".join(json.dumps(row) + "\n" for row in rows)


def byte_tokenizer():
    """Return a tokenizer whose 256 ids are the byte values, with NUL as the begin and end of a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    # The byte-level pre-tokenizer shows unprintable bytes as the letters from U+0100 on.
    vocab = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    # NUL is shown as the letter U+0100: a text that holds that letter must still be cut into its two bytes.
    nul = chr(256)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=nul,
        eos_token=nul,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Write the summary, the held-out text and the tokenizer."""
    pieces, about = build()
    for split in DOCUMENTS:
        write_text(HERE / "text" / f"{split}.jsonl", jsonl(pieces, split))
    byte_tokenizer().save_pretrained(HERE / "tokenizer")
    write_text(HERE / "corpus.json", json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
