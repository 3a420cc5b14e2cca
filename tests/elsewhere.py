"""What a stranger does with saved models: nothing of the repository is at hand, only transformers.

python elsewhere.py sentences.json folder…   prints JSON: folder → logits, labels, and more
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    logging,
    pipeline,
)

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)


@torch.no_grad()
def answers_of(folder: str, sentences: list[str], labels: list[int]) -> dict:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    logits = model(**inputs).logits
    again = Path("again") / Path(folder).parent.name
    model.save_pretrained(again)
    reloaded = AutoModelForSequenceClassification.from_pretrained(again, trust_remote_code=True).eval()
    answers = {
        "logits": logits.tolist(),
        "round_trip": (reloaded(**inputs).logits - logits).abs().max().item(),
    }
    if "dense" in folder or "student" in folder:  # they take seconds each
        classify = pipeline("text-classification", model=folder, trust_remote_code=True)
        batched = classify(sentences, truncation=True, batch_size=len(sentences))
        answers["labels"] = [answer["label"] for answer in batched]
        answers["trainer"] = trainer_accuracy(model, tokenizer, sentences, labels)
    return answers


def trainer_accuracy(model, tokenizer, sentences, labels) -> float:
    """By transformers' Trainer, before it trains the model for a step."""
    rows = [
        tokenizer(text, truncation=True) | {"labels": label}
        for text, label in zip(sentences, labels, strict=True)
    ]
    arguments = TrainingArguments("trained", report_to=[], use_cpu=True, disable_tqdm=True, max_steps=1)

    def accuracy(predicted):
        return {"accuracy": float((np.argmax(predicted.predictions, axis=-1) == predicted.label_ids).mean())}

    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    found = trainer.evaluate()["eval_accuracy"]
    with torch.enable_grad():
        trainer.train()
    return found


def through_a_hub(folder: str, sentences: list[str]) -> list[str]:
    """Labels of a model that was pushed and loaded again."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    model.push_to_hub("somebody/pruned")
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True).push_to_hub("somebody/pruned")
    classify = pipeline("text-classification", model="somebody/pruned", trust_remote_code=True)
    return [answer["label"] for answer in classify(sentences, truncation=True)]


if __name__ == "__main__":
    dev = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {folder: answers_of(folder, dev["sentences"], dev["labels"]) for folder in sys.argv[2:]}
    found["pushed"] = through_a_hub(sys.argv[-1], dev["sentences"])
    assert not any(name.split(".")[0] in ("pruning", "ModifiedModelingBert") for name in sys.modules)
    print(json.dumps(found))
