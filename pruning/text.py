"""A text's words, as the LSTM's vocabulary and a served model divide it."""

import regex

UNKNOWN = "[UNK]"  # the word that stands for all that are not in the vocabulary


def split_words(text: str) -> list[str]:
    """Lower-cases all letters, in any system language alike; joins don't to dont; divides at whatever is no
    letter or digit."""
    joined = regex.sub(r"(\p{L})['’](\p{L})", r"\1\2", text.lower())
    return regex.sub(r"[^\p{L}\p{M}\p{N}]+", " ", joined).split()
