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
    parts: list[torch.Tensor] = []
    lengths: list[torch.Tensor] = []
    with tqdm(total=len(texts), desc=name, unit="rows") as bar:
        for start in range(0, len(texts), CHUNK):
            ids = vectorization(tf.constant(texts[start : start + CHUNK]))
            if int(tf.reduce_min(ids.row_lengths())) == 0:
                ids = tf.concat([ids, _unknown_where_empty(ids)], axis=1)
            parts.append(torch.from_numpy(ids.flat_values.numpy()).int())
            lengths.append(torch.from_numpy(ids.row_lengths().numpy()))
            bar.update(len(lengths[-1]))
    return Ragged.of(torch.cat(parts), torch.cat(lengths))


def _unknown_where_empty(ids: tf.RaggedTensor) -> tf.RaggedTensor:
    """For each row one unknown word if the row is empty, else nothing."""
    counts = tf.cast(tf.equal(ids.row_lengths(), 0), tf.int64)
    words = tf.fill([tf.reduce_sum(counts)], tf.constant(UNKNOWN, ids.dtype))
    return tf.RaggedTensor.from_row_lengths(words, counts)


def encode(rows: dict[str, Rows], vocabulary_size: int) -> tuple[list[str], dict[str, LstmExamples]]:
    """The vocabulary of the training text, and every split in its ids."""
    train = rows["train"]
    vectorization = build_vocabulary(train.first + (train.second or []), vocabulary_size)
    examples = {}
    for split, part in rows.items():
        second = None
        if part.second is not None:
            second = vectorize(part.second, vectorization, f"{split}, second sentences")
        examples[split] = LstmExamples(
            vectorize(part.first, vectorization, split),
            torch.tensor(part.labels, dtype=torch.float32),
            second_ids=second,
        )
    words = [str(word) for word in vectorization.get_vocabulary()]
    return ["[PAD]", "[UNK]", *words[2:]], examples
