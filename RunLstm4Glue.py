"""Trains the LSTM on GLUE with sequence pruning, evaluates it, and writes records/LSTM/.

    cache/lstm/<task>.pt  →  records/LSTM/

Run it without parameters, after PrepareGlue4Lstm.py. Change what is between the two rulers below, and run
it again: finished runs are skipped, what a setting changes is run anew, older records stay.
"""

from pruning import caches, devices, grid, lstm, results, settings
from pruning.errors import run_script
from pruning.tasks import GLUE

# ----------------------------------------------------------------------------------------------
# Settings. All but task_names may differ by task: pruned_epochs = {"cola": 4, "other": 3}

target_prune_rate = 0.5  # share of each sentence's words that is removed, in [0, 1]
# What to compare; the first is the recipe of this repository. Also: "head", "tail", "frequency", and the
# teachers, which are upper bounds: "integrated gradients", "lstm".
pruning_methods = ["integrated gradients student", "lstm student", "random"]
# "fused": the mean of their embeddings, through a trained matrix, joins what the LSTM made of the others;
# "gone": nothing sees them again, as in 2020. Scores of pairs are better without.
removed_tokens = {"sts-b": "gone", "other": "fused"}
task_names = ["sst-2", "mrpc", "qqp", "mnli"]  # None: every task that is prepared
seeds = [0]  # everything is run once for each
training_rows = None  # rows drawn from the training set; None: all of them
dense_epochs = 3
pruned_epochs = 4  # of every pruned model, which starts as the dense one
batch_size = 32
learning_rate = 2e-3
student_learning_rate = 2e-3  # of the students, which start fresh
distillation_share = 0.7  # of a pruned model's loss: the dense model's answers instead of the labels
ramp_share = 0.5  # of a pruned model's training, in which its rate rises from 0 to target_prune_rate
evaluation_batch_size = 256
timing_examples = 512  # of the dev set, at even distances
timing_passes = 5
shown_examples = 20  # sentences on the page beside each record
save_models = True  # keep each run's model beside its record
# ----------------------------------------------------------------------------------------------


def main() -> None:
    accelerator = devices.pick_device()
    block = settings.Block.read(globals(), settings.LstmGlueSettings)
    chosen = block.for_prepared_tasks("lstm")  # checked before any work

    experiments = []  # one for each task and seed
    for data in caches.open_tasks("lstm", [GLUE[name] for name in block.task_names()]):
        values = chosen[data.task.name]
        builder = lstm.LstmBuilder(data, values)
        experiments += [grid.Experiment(builder, values, seed, accelerator) for seed in values.seeds]

    for experiment in experiments:
        results.record_bag_of_words(experiment)
    for experiment, method in grid.unfinished(experiments):
        # the first method, "dense", is trained from fresh weights; the others start from what it has learned
        trained = experiment.train_dense() if method == "dense" else experiment.train_pruned(method)
        evaluations = results.evaluate(experiment, trained)
        timings = results.time_beside_dense(experiment, trained, evaluations)
        results.write_record(experiment, trained, evaluations, timings)
    results.summarize(experiments)


if __name__ == "__main__":
    run_script(main)
