"""Fine-tunes BERT on GLUE with sequence pruning, evaluates it, and writes records/BERT/.

    cache/bert/<task>.pt, bert/  →  records/BERT/

Run it without parameters, after PrepareGlue4Bert.py and, for a TensorFlow BERT, ConvertBert4Torch.py.
Change what is between the two rulers below, and run it again: finished runs are skipped, what a setting
changes is run anew, older records stay. With several GPUs: accelerate launch RunBert4Glue.py
"""

from pruning import bert, devices, grid, results, settings
from pruning.errors import run_script
from pruning.tasks import GLUE

# ----------------------------------------------------------------------------------------------
# Settings. All but task_names may differ by task: pruned_epochs = {"cola": 4, "other": 3}

# One pruning rate for each layer, in [0, 1]: the share of the tokens still alive that is removed before that
# layer. 0 builds no pruner there. Or "half", "third", "fifth", with layers = None: a list for so much work.
pruning_schedule = [0, 0.5, 0, 0, 0, 0]
layers = 6  # of a pruned model: the first 6 of the BERT in bert/; None: all of them, with as many rates

# What to compare; the first is the recipe of this repository. Also: "head", "tail", "frequency",
# "gradient x input student", "attention rollout student", "ideal emission rate student", "column mean",
# "column mean threshold", and the teachers, which are upper bounds: "ideal gradients", "gradient x input",
# "attention rollout", "ideal emission rate" (README has them all). In place of a name may stand a list of
# names, one for each layer.
pruning_methods = ["ideal gradients student", "random"]
# "readable": they are no longer updated, but later layers read their last states; "fused": their mean,
# through a trained matrix, joins [CLS]; "gone": nothing sees them again, as in 2020.
removed_tokens = "readable"
task_names = None  # every task that is prepared; or a list: ["cola", "sst-2", "mrpc", "sts-b", "qqp", …]
seeds = [0]  # everything is run once for each
training_rows = None  # rows drawn from the training set; None: all of them
dense_epochs = {"cola": 6, "mrpc": 6, "sts-b": 6, "rte": 6, "wnli": 6, "other": 3}  # small tasks: more
pruned_epochs = 4  # of every pruned model, which starts as the dense one
batch_size = 32
learning_rate = {"mrpc": 1e-4, "sts-b": 1e-4, "other": 5e-5}  # BERT-Base: 5e-5 for all
student_learning_rate = 1e-3  # of the students, which start fresh
fusion_learning_rate = 1e-3  # with "fused", of what joins [CLS]; try less for fewer than 100 steps
distillation_share = 0.5  # of a pruned model's loss: the dense model's answers instead of the labels
ramp_share = 0.3  # of a pruned model's training, in which its rates rise from 0 to the schedule
dropout = 0.0  # of pruned models; None: as the BERT's configuration says, and as the dense model is trained
augmented_copies = 3  # of each sentence: 4 epochs then read it once, and each of its copies once
word_dropout = 0.15  # share of the words that a copy lacks
evaluation_batch_size = 64
timing_examples = 128  # of the dev set, at even distances
timing_passes = 3
shown_examples = 20  # sentences on the page beside each record
save_models = True  # keep each run's model beside its record
# ----------------------------------------------------------------------------------------------


def main() -> None:
    accelerator = devices.pick_device()
    block = settings.Block.read(globals(), settings.BertSettings)
    chosen = block.for_prepared_tasks("bert")  # checked before any work
    pretrained = bert.Pretrained.read()
    devices.say(str(pretrained))

    experiments = []  # one for each task and seed
    for data in bert.open_tasks(pretrained, [GLUE[name] for name in block.task_names()]):
        values = chosen[data.task.name]
        builder = bert.BertBuilder(pretrained, data, values, block.script)
        devices.say(f"Schedule of {data.task.name}: {builder}")
        experiments += [grid.Experiment(builder, values, seed, accelerator) for seed in values.seeds]

    for experiment, method in grid.unfinished(experiments):
        # the first method, "dense", is fine-tuned from bert/; the others start from what it has learned
        trained = experiment.train_dense() if method == "dense" else experiment.train_pruned(method)
        evaluations = results.evaluate(experiment, trained)
        timings = results.time_beside_dense(experiment, trained, evaluations)
        results.write_record(experiment, trained, evaluations, timings)
    results.summarize(experiments)


if __name__ == "__main__":
    run_script(main)
