"""Names of layers that Keras takes."""

from __future__ import annotations

import re


def clean_name(wanted: str) -> str:
    """A name without what Keras and its backends refuse: slashes, dots, a first character that is no letter.

    >>> clean_name("encoder/lstm.0")
    'encoder_lstm_0'
    """
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", wanted).strip("_") or "layer"
    return clean if clean[0].isalnum() else f"layer_{clean}"
