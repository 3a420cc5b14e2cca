"""Words for the LSTM: TensorFlow's text vectorization with a standardization of our own.

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

UNKNOWN = 1  # id of a word that is not in the vocabulary; 0 is padding
CHUNK = 2_048


def standardize(texts: tf.Tensor) -> tf.Tensor:
    """Lower-cases all letters, joins don't to dont, and turns whatever is no letter or digit to spaces.

    Keras' own standardization deletes punctuation, which glues the words around a backslash or a dash,
    and lower-cases ASCII only.
    """
    lowered = tf.strings.lower(texts, encoding="utf-8")
    joined = tf.strings.regex_replace(lowered, r"(\pL)['’](\pL)", r"\1\2")
    return tf.strings.regex_replace(joined, r"[^\pL\pM\pN]+", " ")


def build_vocabulary(texts: list[str], size: int) -> TextVectorization:
    """The `size` commonest words of `texts`, the padding and the unknown word among them."""
    vectorization = TextVectorization(max_tokens=size, standardize=standardize, ragged=True)
    vectorization.adapt(tf.data.Dataset.from_tensor_slices(texts).batch(CHUNK))
    return vectorization


def vectorize(texts: list[str], vectorization: TextVectorization, name: str) -> Ragged:
    """The ids of the words of each text. A text without any word gets one unknown word."""
    parts = []
    with tqdm(total=len(texts), desc=name, unit="rows") as bar:
        for start in range(0, len(texts), CHUNK):
            ids = vectorization(tf.constant(texts[start : start + CHUNK]))
            empty = tf.cast(ids.row_lengths() == 0, tf.int64)
            unknown = tf.fill([tf.reduce_sum(empty)], tf.constant(UNKNOWN, ids.dtype))
            whole = tf.concat([ids, tf.RaggedTensor.from_row_lengths(unknown, empty)], axis=1)
            parts.append(Ragged.of(whole.flat_values.numpy(), whole.row_lengths().numpy()))
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
    return ["[PAD]", "[UNK]", *words[2:]], examples
