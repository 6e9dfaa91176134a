"""Text as a fixed-length array: Habitat's observation batches carry tensors only, so words travel as UTF-8 bytes."""

import numpy as np


def encode_text(text: str, max_bytes: int) -> np.ndarray:
    """UTF-8 bytes of `text`, zero padded.

    Returns: uint8 [max_bytes].
    Raises ValueError when the text does not fit: a cut instruction would be a different instruction.
    """
    data = text.encode("utf-8")
    if len(data) > max_bytes:
        raise ValueError(f"text of {len(data)} bytes does not fit into {max_bytes}: {text[:60]!r}…")
    array = np.zeros(max_bytes, dtype=np.uint8)
    array[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return array


def decode_text(array: np.ndarray) -> str:
    """The text of a zero-padded uint8 array [max_bytes]; the inverse of `encode_text`."""
    return bytes(np.asarray(array, dtype=np.uint8)).rstrip(b"\0").decode("utf-8")
