import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from bayesqid.measure import packing

BITS = (2, 3, 4, 5, 6, 8)


def codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(bits).integers(0, 2**bits, shape))


def as_words(number: int, count: int) -> list[int]:
    """A number's 32-bit words, low ones first, as int32 has them."""
    return np.frombuffer(number.to_bytes(4 * count, "little"), "<i4").tolist()


def planes_by_hand(row: list[int], bits: int) -> list[int]:
    """32 codes: every plane is a number of its own, in which each code's part follows the one before."""
    result, low = [], 0
    for width in {2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 8: [8]}[bits]:
        plane = sum(((code >> low) % 2**width) << (width * i) for i, code in enumerate(row))
        result += as_words(plane, width)
        low += width
    return result


@pytest.mark.parametrize("bits", BITS)
def test_a_stream_is_one_long_number(bits):
    rows = codes(bits, 3, 64)
    expected = [as_words(sum(code << (bits * i) for i, code in enumerate(row)), 2 * bits) for row in rows.tolist()]
    assert packing.pack(rows, bits).tolist() == expected


def test_three_bits_as_autogptq_has_them():
    # ten codes, two bits of the next; its last bit, ten codes, one bit of the next; its last two bits, ten codes
    row = codes(3, 32).tolist()
    first = sum(code << (3 * i) for i, code in enumerate(row[:10])) | (row[10] & 3) << 30
    second = row[10] >> 2 | sum(code << (3 * i + 1) for i, code in enumerate(row[11:21])) | (row[21] & 1) << 31
    third = row[21] >> 1 | sum(code << (3 * i + 2) for i, code in enumerate(row[22:]))
    assert packing.pack(torch.tensor(row), 3).numpy().view(np.uint32).tolist() == [first, second, third]


@pytest.mark.parametrize("bits", BITS)
def test_planes_are_one_number_each(bits):
    rows = codes(bits, 2, 64)
    expected = [planes_by_hand(row[:32], bits) + planes_by_hand(row[32:], bits) for row in rows.tolist()]
    assert packing.pack(rows, bits, layout="planes").tolist() == expected


@pytest.mark.parametrize("bits", BITS)
def test_padded_words_hold_whole_codes_only(bits):
    row, count = codes(bits, 37).tolist(), 32 // bits
    parts = [row[start : start + count] for start in range(0, 37, count)]
    expected = [as_words(sum(code << (bits * i) for i, code in enumerate(part)), 1)[0] for part in parts]
    assert packing.pack(torch.tensor(row), bits, layout="padded").tolist() == expected


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (21, 19), (33, 31), (40, 21)])
@pytest.mark.parametrize("bits", BITS)
def test_a_stream_is_what_compressed_tensors_packs(bits, rows, columns, dim):
    numbers = codes(bits, rows, columns)
    signed = (numbers - 2 ** (bits - 1)).to(torch.int8)
    theirs = pack_to_int32(signed, bits, packed_dim=dim)
    assert torch.equal(packing.pack(numbers, bits, dim), theirs)
    back = packing.unpack(theirs, bits, (rows, columns)[dim], dim)
    assert torch.equal(back - 2 ** (bits - 1), unpack_from_int32(theirs, bits, signed.shape, packed_dim=dim).int())


@pytest.mark.parametrize("layout", packing.LAYOUTS)
@pytest.mark.parametrize("bits", BITS)
def test_what_was_packed_comes_back(bits, layout):
    for size in (1, 10, 11, 31, 32, 33, 96):
        for dim in (0, 1, -1):
            numbers = codes(bits, size, size)
            packed = packing.pack(numbers.to(torch.uint8), bits, dim, layout)
            assert packed.dtype == torch.int32
            assert packed.shape[dim] == packing.words(size, bits, layout)
            assert torch.equal(packing.unpack(packed, bits, size, dim, layout).long(), numbers)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_layouts_are_one_where_codes_divide_words(bits):
    numbers = codes(bits, 96)
    assert len({tuple(packing.pack(numbers, bits, layout=layout).tolist()) for layout in packing.LAYOUTS}) == 1


def test_words_too_few_or_too_many_are_refused():
    for count in (2, 4):
        with pytest.raises(ValueError, match="take 3 words, not"):
            packing.unpack(torch.zeros(count, dtype=torch.int32), 3, 32)


@pytest.mark.parametrize(("bits", "layout"), [(7, "stream"), (1, "stream"), (4, "marlin")])
def test_layouts_that_do_not_exist_are_refused(bits, layout):
    with pytest.raises(ValueError, match="no layout"):
        packing.block(bits, layout)
