"""TensorFlow's names and layout of BERT's weights, as in Google's checkpoints, to PyTorch's and back.

bert/encoder/layer_0/output/dense/kernel  [in, out]
bert.encoder.layer.0.output.dense.weight  [out, in]
"""

import re

from torch import Tensor

ENDINGS = (  # TensorFlow's, PyTorch's; the first that fits counts
    ("cls/predictions/output_bias", "cls.predictions.bias"),
    ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight"),
    ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias"),
    ("_embeddings", "_embeddings.weight"),
    ("/LayerNorm/gamma", ".LayerNorm.weight"),
    ("/LayerNorm/beta", ".LayerNorm.bias"),
    ("/kernel", ".weight"),
    ("/bias", ".bias"),
)


def torch_name(variable: str) -> str | None:
    """The name that transformers' BertForPreTraining has for a variable.

    None for one that is no weight of BERT: what an optimizer keeps (…/kernel/adam_m), another task's head.
    """
    if variable.startswith(("bert/", "cls/")):
        for theirs, ours in ENDINGS:
            if variable.endswith(theirs):
                path = variable.removesuffix(theirs).replace("/", ".")
                return re.sub(r"\.layer_(\d+)", r".layer.\1", path) + ours
    return None


def tf_variable(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A weight of BERT under Google's name and in TensorFlow's layout.

    `name` is one of BertModel's or, with `bert.` or `cls.` before it, of BertForPreTraining's.
    Raises ValueError for a name that TensorFlow's BERT has not.
    """
    if not name.startswith(("bert.", "cls.")):
        name = f"bert.{name}"
    for theirs, ours in ENDINGS:
        if name.endswith(ours):
            path = re.sub(r"\.layer\.(\d+)", r".layer_\1", name.removesuffix(ours))
            variable = path.replace(".", "/") + theirs
            return variable, other_layout(variable, tensor)
    raise ValueError(f"TensorFlow's BERT has no {name}")


def other_layout(variable: str, tensor: Tensor) -> Tensor:
    """From TensorFlow's layout to PyTorch's or back: a kernel is [in, out] in one, [out, in] in the other."""
    return tensor.transpose(0, -1).contiguous() if variable.endswith("/kernel") else tensor
