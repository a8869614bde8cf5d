#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["xxhash"]
# ///
"""Writes partitions.json: golden vectors for producers in any language.

Shares no code with keylane: the hash is the reference XXH3 (the `xxhash`
package binds the C library), the reduction uses Python's unbounded integers.
Run it after changing the list below; the result is the same every time.

    pip install xxhash && python3 partitions.py
"""

import json
from pathlib import Path

import xxhash

COUNTS = [1, 2, 3, 7, 64, 100, 1000, 1024]

# XXH3 takes another path for 1-3, 4-8, 9-16, 17-128 (in steps of 32), 129-240
# and more bytes; from there it works in stripes of 64 and blocks of 1,024.
LENGTHS = [*range(1, 19), 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 130, 143, 144, 145]
LENGTHS += [159, 160, 161, 191, 192, 193, 239, 240, 241, 242, 255, 256, 257, 319, 320, 321]
LENGTHS += [511, 512, 513, 767, 768, 1022, 1023, 1024]

NAMED = [
    ("digit", "7"),
    ("space", " "),
    ("NUL is a byte like any other", "\0"),
    ("line feed", "\n"),
    ("quote and backslash", '"\\'),
    ("keys are not trimmed", " account:42 "),
    ("keys are not trimmed", "account:42"),
    ("keys keep their case", "Account:42"),
    ("path", "/srv/data/2024/invoices.csv"),
    ("URL", "https://example.org/orders/81723?line=3#top"),
    ("UUID", "0190163d-8694-739b-aea5-966c26f8ad91"),
    ("decimal number", "18446744073709551616"),
    ("2 bytes: a-umlaut, composed", "\u00e4"),
    ("3 bytes: a-umlaut, combining; not normalized", "a\u0308"),
    ("e-acute, composed", "caf\u00e9"),
    ("e-acute, combining; not normalized", "cafe\u0301"),
    ("three marks on one letter", "o\u0302\u0323\u0306"),
    ("3 bytes: euro sign", "\u20ac"),
    ("4 bytes: one emoji", "\U0001f600"),
    ("emoji with skin tone", "\U0001f44d\U0001f3fd"),
    ("emoji family, joined by ZWJ", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    ("flag", "\U0001f1e8\U0001f1ed"),
    ("byte order mark is kept", "\ufeffkey"),
    ("last code point", "\U0010ffff"),
    ("German", "konto/stra\u00dfe-\u00fcberweisung"),
    ("Greek", "\u03bb\u03bf\u03b3\u03b1\u03c1\u03b9\u03b1\u03c3\u03bc\u03cc\u03c2"),
    ("Arabic", "\u062d\u0633\u0627\u0628-42"),
    ("Hindi", "\u0916\u093e\u0924\u093e"),
    ("Chinese", "\u8ba2\u5355\uff1a12345"),
    ("Japanese", "\u53e3\u5ea7\u756a\u53f7"),
    ("1,024 bytes of 4-byte characters", "\U0001f511" * 256),
    ("1,023 bytes of 3-byte characters", "\u9375" * 341),
]


def text_of(length: int) -> str:
    """ASCII of this many bytes in which no two nearby stripes are equal."""
    return "".join(chr(ord("!") + (i * i + 7 * i + length) % 94) for i in range(length))


def vector(note: str, resource: str) -> dict:
    utf8 = resource.encode("utf-8")
    assert 1 <= len(utf8) <= 1024, note
    digest = xxhash.xxh3_64_intdigest(utf8, seed=0)
    return {
        "note": note,
        "bytes": len(utf8),
        "hash": f"{digest:016x}",
        "partitions": [(digest * count) >> 64 for count in COUNTS],
        "resource": resource,
    }


def main() -> None:
    cases = NAMED + [(f"ASCII of length {length}", text_of(length)) for length in LENGTHS]
    cases += [("many alike", f"account:{number}") for number in range(32)]
    lines = ",\n".join(json.dumps(vector(*case)) for case in cases)
    text = f'{{"hash": "xxh3_64", "counts": {json.dumps(COUNTS)}, "vectors": [\n{lines}\n]}}\n'
    Path(__file__).with_name("partitions.json").write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
