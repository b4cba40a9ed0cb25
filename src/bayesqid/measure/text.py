"""Evaluation and calibration text: documents from a JSON-lines file, cut, tokenized and put into windows."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bayesqid.errors import BadInput
from bayesqid.files import MOST_TEXT, json_of, read_text, sha256_bytes


class Document(NamedTuple):
    """One document by its name."""

    id: str
    text: str


class Window(NamedTuple):
    """A stretch of one document: input tokens, and the tokens that follow the last of them and are scored."""

    document: int
    inputs: np.ndarray
    targets: np.ndarray


def read(path: str | Path) -> list[Document]:
    """Documents of a file with a JSON object `{"id": ..., "text": ...}` per line; the id may be left out.

    Raises `BadInput` naming the line that cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no text file {path}: give one JSON object with id and text per line.")
    content = read_text(path, MOST_TEXT, "text file")
    documents = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json_of(line, "the line")
            document = Document(str(entry.get("id", number)), entry["text"])
        except (ValueError, KeyError, AttributeError) as error:
            raise BadInput(f"Line {number} of {path} is not a JSON object with a `text`: mend that line.") from error
        if not isinstance(document.text, str) or not document.text:
            raise BadInput(f"Line {number} of {path} has no text: give a string that is not empty.")
        documents.append(document)
    if not documents:
        raise BadInput(f"{path} holds no documents: give one JSON object with id and text per line.")
    if len({document.id for document in documents}) < len(documents):
        raise BadInput(f"Two documents of {path} share an id: make the ids differ.")
    return documents


def cut(documents: list[Document], max_bytes: int) -> list[Document]:
    """Each document's first `max_bytes` bytes of UTF-8, without a character broken at the end."""
    return [
        document._replace(text=document.text.encode()[:max_bytes].decode(errors="ignore")) for document in documents
    ]


def digest(documents: list[Document]) -> str:
    """SHA-256 of the documents' names and texts."""
    return sha256_bytes(json.dumps(documents).encode())


def separator(tokenizer: Any) -> int | None:
    """Token put before every document: the tokenizer's beginning of sequence, else its end of sequence."""
    for key in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, key, None) is not None:
            return int(getattr(tokenizer, key))
    return None


def tokenize(documents: list[Document], tokenizer: Any, rows: int) -> list[np.ndarray]:
    """Token ids of each document behind the separator, without any other special token.

    Raises `BadInput` when a token has no row among the `rows` of the model's embedding.
    """
    first = separator(tokenizer)
    start = [] if first is None else [first]
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False, verbose=False)
    tokens = [np.array(start + ids, dtype=np.int64) for ids in encoded["input_ids"]]
    if not sum(map(len, encoded["input_ids"])):
        raise BadInput("The tokenizer makes no tokens of the text: it does not fit the text or is empty.")
    highest = max(int(ids.max()) for ids in tokens if len(ids))
    if highest >= rows:
        raise BadInput(
            f"The tokenizer makes token {highest} but the model's embedding has {rows} rows: "
            "they do not belong together."
        )
    return tokens


def windows(tokens: list[np.ndarray], context: int) -> list[Window]:
    """Windows of at most `context` inputs that score every token but a document's first exactly once.

    A window's first scored token is the one behind the last of the window before. A last window that scores fewer
    than `context` tokens starts earlier, so that these see as much text as others do; lm-evaluation-harness's
    rolling windows are the same. Windows never cross documents.
    """
    ends = [
        (index, ids, start, min(start + context, len(ids) - 1))
        for index, ids in enumerate(tokens)
        for start in range(0, len(ids) - 1, context)
    ]
    return [
        Window(index, ids[max(0, end - context) : end], ids[start + 1 : end + 1]) for index, ids, start, end in ends
    ]


def calibration(tokens: list[np.ndarray], context: int, count: int, seed: int) -> np.ndarray:
    """At most `count` rows of `context` tokens, from the documents joined in an order drawn with `seed`."""
    order = np.random.default_rng(seed).permutation(len(tokens))
    joined = np.concatenate([tokens[index] for index in order])
    rows = min(count, len(joined) // context)
    if not rows:
        raise BadInput(f"The calibration text has {len(joined)} tokens, fewer than one window of {context}: add text.")
    return joined[: rows * context].reshape(rows, context)
