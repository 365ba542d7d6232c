"""Text encoders behind one interface: texts → unit vectors. A bundle records which one it was trained with.

Shapes: T texts, D the encoder's width.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from shared.problems import NotSupported, Unprocessable
from shared.sessions import OnnxSession

PACKAGED = "wordllama-l2-256"
MOST_TOKENS = 128


class EncoderMissing(NotSupported):
    """The text encoder of a bundle is not here."""

    code = "bots-encoder-missing"
    title = "The text encoder is not installed"
    advice = "Set FOURFOLD_TEXT_ENCODER to the folder of the version's text encoder."


class WrongEncoder(Unprocessable):
    """Vectors of another encoder than the model's."""

    code = "bots-wrong-encoder"
    title = "The vectors come from another text encoder"
    advice = "Embed the texts with the encoder that the detail names, or leave the vectors out."


class TextEncoder(Protocol):
    name: str  # tells this encoder, with its weights, from every other
    width: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T, D) unit vectors; zeros for a text without a known word."""
        ...


class WordLlama:
    """Mean of static word-piece vectors (D = 256), from the weights in the wordllama package (MIT; English mostly)."""

    name = PACKAGED
    width = 256

    def __init__(self) -> None:
        # The package's own loader looks for its tokenizer in the wrong folder and then downloads one.
        found = importlib.util.find_spec("wordllama")
        places = found.submodule_search_locations if found else None
        if not places:
            raise EncoderMissing("Install the wordllama package, which carries the encoder's weights.")
        folder = Path(next(iter(places)))
        self._vectors = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), self.width), np.float32)
        for row, tokens in zip(rows, self._tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True):
            if tokens.ids:
                row[:] = self._vectors[tokens.ids].astype(np.float32).mean(axis=0)
        return _unit(rows)


class OnnxEncoder:
    """A sentence encoder that the user brings, such as LaBSE: a folder with `model.onnx` and `tokenizer.json`.

    The graph takes `input_ids` and `attention_mask` (and `token_type_ids`) and answers `pooler_output` or
    `sentence_embedding` (T, D); otherwise the first output's first token is taken.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "model.onnx").is_file() or not (folder / "tokenizer.json").is_file():
            raise EncoderMissing("A text encoder's folder holds model.onnx and tokenizer.json.")
        self._session = OnnxSession(folder / "model.onnx", device="cpu")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.enable_padding()
        with (folder / "model.onnx").open("rb") as stream:
            self.name = f"onnx-{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
        self.width = self.encode(["width"]).shape[1]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([item.ids for item in encoded], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.array([item.attention_mask for item in encoded], np.int64)}
        feeds["token_type_ids"] = np.zeros_like(ids)
        wanted = {tensor.name for tensor in self._session.inputs}
        [answer] = self._session.infer_many([{name: value for name, value in feeds.items() if name in wanted}])
        if isinstance(answer, Exception):
            raise answer
        found = next((answer[name] for name in ("sentence_embedding", "pooler_output") if name in answer), None)
        if found is None:
            first = next(iter(answer.values()))
            found = first[:, 0] if first.ndim == 3 else first
        return _unit(found.astype(np.float32))


def _unit(rows_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows_TD / np.maximum(np.linalg.norm(rows_TD, axis=1, keepdims=True), 1e-9)


@cache
def encoder(name: str, folder: Path | None = None) -> TextEncoder:
    """The encoder that a bundle names: the packaged one, or the user's in `folder`; raises EncoderMissing."""
    if name == PACKAGED:
        return WordLlama()
    if folder is None:
        raise EncoderMissing(f"The model was trained with the text encoder {name}; set FOURFOLD_TEXT_ENCODER.")
    brought = OnnxEncoder(folder)
    if brought.name != name:
        raise EncoderMissing(f"The model was trained with the text encoder {name}, not {brought.name}.")
    return brought
