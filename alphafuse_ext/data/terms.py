"""The terms of a text: words and word pairs, and characters where words are not spaced.

Chinese, Japanese, Thai, Lao, Khmer and Burmese write without spaces: taken for a word, nearly every
title would be a term of its own and like no other. Runs of these scripts become n-grams of
characters instead; the rest of the text stays words, so that a catalog or a title may mix both.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

# The longest n-gram: most Chinese and Japanese words have one to three characters.
_LONGEST = 3

_UNSPACED = re.compile(
    "(["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "]+)"
)


def is_unspaced(text: str) -> bool:
    """Whether some of the text is in a script that does not space its words."""
    return _UNSPACED.search(_plain(text)) is not None


def terms_of(text: str) -> list[str]:
    """Every term of a text, as often as it occurs: an analyzer for scikit-learn's vectorizers.

    Case and compatibility forms (full-width letters, half-width kana) make no difference.
    """
    terms: list[str] = []
    before = None
    for word in _pattern(r"\w", r"\w").findall(_plain(text)):
        # A pattern with a group splits into what is between its matches, and, at odd places, them.
        for place, piece in enumerate(_UNSPACED.split(word)):
            if place % 2:
                terms += _character_ngrams(piece)
                before = None
            elif piece:
                terms.append(piece)
                if before is not None:
                    terms.append(f"{before} {piece}")
                before = piece
    return terms


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _character_ngrams(run: str) -> list[str]:
    characters = _pattern(".").findall(run)
    return [
        "".join(characters[start : start + length])
        for length in range(1, _LONGEST + 1)
        for start in range(len(characters) - length + 1)
    ]


@cache
def _pattern(first: str, more: str = "") -> re.Pattern[str]:
    r"""What matches `first`, then any number of `more` and of marks, such as vowels in Hindi.

    Python's ``\w`` has no marks, and would cut words at them.
    """
    marks = "".join(filter(_is_mark, map(chr, range(sys.maxunicode + 1))))
    return re.compile(f"{first}[{more}{marks}]*")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
