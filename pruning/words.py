"""Words for the LSTM: TensorFlow's text vectorization, of words divided by `text.split_words`.

Keras' own standardization deletes punctuation, which glues the words around a backslash or a dash, and
lower-cases ASCII only; TensorFlow's `strings.lower` goes by the system's language.

Only the two LSTM preparations import this module, and with it TensorFlow.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings are not for our user
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import tensorflow as tf
import torch
from keras.layers import TextVectorization
from tqdm import tqdm

from pruning.batches import LstmExamples, Ragged
from pruning.tasks import Rows
from pruning.text import UNKNOWN, split_words

CHUNK = 2_048


def build_vocabulary(texts: list[str], size: int) -> TextVectorization:
    """The `size` commonest words of `texts`, the padding and the unknown word among them."""
    vectorization = TextVectorization(max_tokens=size, standardize=None, ragged=True)
    divided = [" ".join(split_words(text)) for text in texts]
    vectorization.adapt(tf.data.Dataset.from_tensor_slices(divided).batch(CHUNK))
    return vectorization


def vectorize(texts: list[str], vectorization: TextVectorization, name: str) -> Ragged:
    """The ids of the words of each text. A text without any word gets one unknown word."""
    parts = []
    with tqdm(total=len(texts), desc=name, unit="rows") as bar:
        for start in range(0, len(texts), CHUNK):
            divided = [" ".join(split_words(text)) or UNKNOWN for text in texts[start : start + CHUNK]]
            ids = vectorization(tf.constant(divided))
            parts.append(Ragged.of(ids.flat_values.numpy(), ids.row_lengths().numpy()))
            bar.update(len(parts[-1]))
    return Ragged.joined(parts)


def encode(rows: dict[str, Rows], vocabulary_size: int) -> tuple[list[str], dict[str, LstmExamples]]:
    """The vocabulary of the training text, and every split in its ids."""
    train = rows["train"]
    vectorization = build_vocabulary(train.first + (train.second or []), vocabulary_size)
    examples = {}
    for split, part in rows.items():
        first = vectorize(part.first, vectorization, split)
        labels = torch.tensor(part.labels, dtype=torch.float32)
        examples[split] = LstmExamples(first, labels)
        if part.second is not None:
            name = f"{split}, second sentences"
            examples[split].second_ids = vectorize(part.second, vectorization, name)
    words = [str(word) for word in vectorization.get_vocabulary()]
    return ["[PAD]", UNKNOWN, *words[2:]], examples
