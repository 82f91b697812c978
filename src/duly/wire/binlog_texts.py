"""Character sets of MySQL and MariaDB, by the numbers of their collations.

Owns how a text's bytes become characters: the same that the server makes of them for a client with
utf8mb4.  Invariant: a byte that its character set does not have is a ValueError, and a collation
that is not known, or whose characters Python cannot give exactly, is refused: never a replacement.
"""

from __future__ import annotations

from codecs import charmap_decode
from collections.abc import Callable, Mapping
from typing import Final

from duly.wire.binlog_bytes import undecodable

__all__ = ["BINARY", "decoder_of"]

BINARY: Final = 63
_NONE: Final = "\ufffe"  # what charmap_decode takes for a byte that means nothing
_FULLWIDTH, _BACKSLASH = "\uff3c", "\\"


def decoder_of(collation: int) -> Callable[[bytes], str]:
    """What decodes texts of a collation. Raises UndecodableError (BINLOG_CHARSET) where that cannot
    be done; what it gives raises ValueError.
    """
    known = (
        charset
        for charset, ranges in _COLLATIONS.items()
        if any(first <= collation <= last for first, last in ranges)
    )
    charset = next(known, None)
    if charset is None:
        undecodable(
            f"a text of collation {collation}, whose characters are not known; exclude its column, "
            "or convert it to utf8mb4",
            code="BINLOG_CHARSET",
        )
    return _decoder(charset)


def _decoder(charset: str) -> Callable[[bytes], str]:
    if charset == "utf_8":
        return bytes.decode
    if charset in _ONE_BACKSLASH:
        return lambda data: data.decode(charset).replace(_FULLWIDTH, _BACKSLASH)
    if charset not in _PATCHES:
        return lambda data: data.decode(charset)
    table = _table(charset, _PATCHES[charset])
    return lambda data: charmap_decode(data, "strict", table)[0]


def _table(charset: str, patches: Mapping[int, str]) -> str:
    """All 256 characters of a set, as the server has them."""
    python = (bytes([byte]).decode(charset, "ignore") or _NONE for byte in range(256))
    return "".join(patches.get(byte, character) for byte, character in enumerate(python))


def _undefined(*values: int) -> dict[int, str]:
    return dict.fromkeys(values, _NONE)


_ONE_BACKSLASH: Final = ("euc_jp", "shift_jis")  # the server has it where Python has the wide one
# Where the server's table is another than Python's; found by asking a server for every byte.
_PATCHES: Final[Mapping[str, Mapping[int, str]]] = {
    "cp1252": {byte: chr(byte) for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)},
    "cp1256": _undefined(0x8A, 0x8F, 0x98, 0x9A, 0x9F, 0xAA, 0xC0, 0xFF),
    "cp866": {0xFC: "\u207f", 0xFD: "\xb2"},
    "iso8859_7": {0xA1: "\u02bd", 0xA2: "\u02bc", **_undefined(0xA4, 0xA5, 0xAA)},
    "iso8859_8": {0xAF: "\u203e"},
    "koi8_u": {0x95: "\u2022"},
}
# First and last number of each run. Bytes have none: 63 is asked for before.
_COLLATIONS: Final[Mapping[str, tuple[tuple[int, int], ...]]] = {
    "utf_8": (
        (33, 33), (45, 46), (76, 76), (83, 83), (192, 247), (255, 323), (576, 578), (608, 610),
        (1057, 1057), (1069, 1070), (1107, 1107), (1216, 1216), (1238, 1238), (1248, 1248),
        (1270, 1270), (2048, 2559),
    ),
    "cp1252": ((5, 5), (8, 8), (15, 15), (31, 31), (47, 49), (94, 94), (1032, 1032), (1071, 1071)),
    "ascii": ((11, 11), (65, 65), (1035, 1035), (1089, 1089)),
    "utf_16_be": (
        (35, 35), (54, 55), (90, 90), (101, 124), (128, 151), (159, 159), (640, 642), (672, 674),
        (1059, 1059), (1078, 1079), (1114, 1114), (1125, 1125), (1147, 1147), (1152, 1152),
        (1174, 1174), (2560, 3071),
    ),
    "utf_16_le": ((56, 56), (62, 62), (1080, 1080), (1086, 1086)),
    "utf_32_be": (
        (60, 61), (160, 183), (736, 738), (1084, 1085), (1184, 1184), (1206, 1206), (3072, 3327),
    ),
    "big5": ((1, 1), (84, 84), (1025, 1025), (1108, 1108)),
    "cp1250": (
        (26, 26), (34, 34), (44, 44), (66, 66), (99, 99), (1050, 1050), (1090, 1090),
    ),
    "cp1251": ((14, 14), (23, 23), (50, 52), (1074, 1075)),
    "cp1256": ((57, 57), (67, 67), (1081, 1081), (1091, 1091)),
    "cp1257": ((29, 29), (58, 59), (1082, 1083)),
    "cp850": ((4, 4), (80, 80), (1028, 1028), (1104, 1104)),
    "cp852": ((40, 40), (81, 81), (1064, 1064), (1105, 1105)),
    "cp866": ((36, 36), (68, 68), (1060, 1060), (1092, 1092)),
    "cp932": ((95, 96), (1119, 1120)),
    "cp949": ((19, 19), (85, 85), (1043, 1043), (1109, 1109)),
    "euc_jp": ((12, 12), (91, 91), (1036, 1036), (1115, 1115)),
    "gb18030": ((248, 250),),
    "gb2312": ((24, 24), (86, 86), (1048, 1048), (1110, 1110)),
    "gbk": ((28, 28), (87, 87), (1052, 1052), (1111, 1111)),
    "hp_roman8": ((6, 6), (72, 72), (1030, 1030), (1096, 1096)),
    "iso8859_13": ((20, 20), (41, 42), (79, 79), (1065, 1065), (1103, 1103)),
    "iso8859_2": ((2, 2), (9, 9), (21, 21), (27, 27), (77, 77), (1033, 1033), (1101, 1101)),
    "iso8859_7": ((25, 25), (70, 70), (1049, 1049), (1094, 1094)),
    "iso8859_8": ((16, 16), (71, 71), (1040, 1040), (1095, 1095)),
    "iso8859_9": ((30, 30), (78, 78), (1054, 1054), (1102, 1102)),
    "koi8_r": ((7, 7), (74, 74), (1031, 1031), (1098, 1098)),
    "koi8_u": ((22, 22), (75, 75), (1046, 1046), (1099, 1099)),
    "mac_latin2": ((38, 38), (43, 43), (1062, 1062), (1067, 1067)),
    "mac_roman": ((39, 39), (53, 53), (1063, 1063), (1077, 1077)),
    "shift_jis": ((13, 13), (88, 88), (1037, 1037), (1112, 1112)),
    "tis_620": ((18, 18), (89, 89), (1042, 1042), (1113, 1113)),
}  # fmt: skip
