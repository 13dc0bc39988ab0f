"""ULIDs: names that sort by the moment they were made and are made of nothing else but chance."""

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(milliseconds: int, chance: bytes) -> str:
    """
    A ULID: 26 characters of Crockford's base 32.

    Args:
        milliseconds: Since 1970, below 2**48.
        chance: 10 random bytes.

    Source: github.com/ulid/spec.

    >>> ulid(0, bytes(10))
    '00000000000000000000000000'
    """
    number = (milliseconds << 80) | int.from_bytes(chance, "big")
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))
