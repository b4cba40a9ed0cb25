"""Codes of a few bits in 32-bit words, as quantized checkpoints store them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

WORD = 32
# Parts of a code by width, low bits first, for layouts in which no part straddles a word (GPTQModel's gptq_p)
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
LAYOUTS = ("stream", "planes", "padded")


class Part(NamedTuple):
    """`width` bits of a block's code number `code`, from bit `low` on, at bit `shift` of the block's word `word`."""

    code: int
    low: int
    width: int
    word: int
    shift: int


class Block(NamedTuple):
    """Codes that fill whole words: how many, into how many words, and where their parts are."""

    codes: int
    words: int
    parts: tuple[Part, ...]


def block(bits: int, layout: str) -> Block:
    """The smallest number of codes that fills whole words, and where their bits are.

    `stream`: code i takes bits b i .. b i + b - 1 of a stream of little-endian words, across the border of two
    words where it must (AutoGPTQ; compressed-tensors since it packs densely). `planes`: 32 codes' low 4 or 2
    bits, then the rest (GPTQModel's gptq_p). `padded`: floor(32/b) codes a word, the rest of the word empty
    (compressed-tensors before). For 2, 4 and 8 bits they are the same. Raises ValueError for others than
    2, 3, 4, 5, 6 and 8 bits.
    """
    if bits not in PLANES or layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r} for {bits} bits")
    if layout == "padded":
        count = WORD // bits
        return Block(count, 1, tuple(Part(i, 0, bits, 0, bits * i) for i in range(count)))
    return Block(WORD, bits, tuple(_stream(bits) if layout == "stream" else _planes(bits)))


def _stream(bits: int) -> Iterator[Part]:
    for code in range(WORD):
        word, shift = divmod(bits * code, WORD)
        here = min(bits, WORD - shift)
        yield Part(code, 0, here, word, shift)
        if here < bits:
            yield Part(code, here, bits - here, word + 1, 0)


def _planes(bits: int) -> Iterator[Part]:
    low = 0
    for width in PLANES[bits]:
        for code in range(WORD):
            word, place = divmod(code, WORD // width)
            # a plane of width w takes w words, so those before it take as many words as they have bits
            yield Part(code, low, width, low + word, width * place)
        low += width


def words(size: int, bits: int, layout: str = "stream") -> int:
    """Words that `size` codes take; the last block is cut where its words are empty."""
    shape = block(bits, layout)
    if layout == "planes":
        return -(-size // shape.codes) * shape.words
    return -(-size * shape.words // shape.codes)


def pack(codes: Tensor, bits: int, dim: int = -1, layout: str = "stream") -> Tensor:
    """Words (int32) along `dim` of codes 0 .. 2^b - 1 (any integer dtype); what does not fill a block is zero."""
    shape, last = block(bits, layout), codes.movedim(dim, -1)
    size = last.shape[-1]
    blocks = -(-size // shape.codes)
    filled = torch.nn.functional.pad(last, (0, blocks * shape.codes - size)).unflatten(-1, (blocks, shape.codes))
    # int64, for int32 has no room for a word without sign
    result = torch.zeros(*filled.shape[:-1], shape.words, dtype=torch.int64, device=codes.device)
    for part in shape.parts:
        bit = (filled[..., part.code].long() >> part.low) & (2**part.width - 1)
        result[..., part.word] |= bit << part.shift
    flat = result.flatten(-2)[..., : words(size, bits, layout)]
    # the upper half of the numbers becomes negative by hand: conversions that overflow are undefined
    return torch.where(flat >= 2**31, flat - 2**32, flat).int().movedim(-1, dim).contiguous()


def unpack(packed: Tensor, bits: int, size: int, dim: int = -1, layout: str = "stream") -> Tensor:
    """The first `size` codes (int32) along `dim` of words (int32); ValueError when there are not as many words."""
    shape, last = block(bits, layout), packed.movedim(dim, -1)
    if last.shape[-1] != words(size, bits, layout):
        raise ValueError(f"{size} codes of {bits} bits take {words(size, bits, layout)} words, not {last.shape[-1]}")
    blocks = -(-size // shape.codes)
    whole = torch.nn.functional.pad(last, (0, blocks * shape.words - last.shape[-1]))
    whole = whole.unflatten(-1, (blocks, shape.words))
    result = torch.zeros(*whole.shape[:-1], shape.codes, dtype=torch.int32, device=packed.device)
    for part in shape.parts:
        # the shift drags the sign along, the mask takes it away: parts are narrower than a word
        bit = (whole[..., part.word] >> part.shift) & (2**part.width - 1)
        result[..., part.code] |= bit << part.low
    return result.flatten(-2)[..., :size].movedim(-1, dim).contiguous()
