"""CRC-32C (RFC 3720, appendix B.4) of data that is never whole in memory: pieces' checksums are combined.

So the checksum of large weights, which repeat one block, follows from that of the block.
"""

from __future__ import annotations

_POLYNOMIAL = 0x82F63B78  # reflected
_ONE = 1 << 31  # the polynomial 1, reflected


def _multiply(a: int, b: int) -> int:
    """The product of two reflected polynomials modulo the CRC's."""
    product = 0
    bit = _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _shift(length: int) -> int:
    """x to the power of 8 * ``length``: what appending that many bytes multiplies a checksum by."""
    power, factor, exponent = _ONE, _ONE >> 1, 8 * length
    while exponent:
        if exponent & 1:
            power = _multiply(power, factor)
        factor = _multiply(factor, factor)
        exponent >>= 1
    return power


def combine(first: int, second: int, second_length: int) -> int:
    """The checksum of two pieces of data, one after the other, from theirs."""
    return _multiply(_shift(second_length), first) ^ second


def repeated(crc: int, length: int, times: int) -> int:
    """The checksum of data of that checksum and length, repeated."""
    total = 0
    while times:
        if times & 1:
            total = combine(total, crc, length)
        crc, length, times = combine(crc, crc, length), 2 * length, times >> 1
    return total
