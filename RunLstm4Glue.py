"""Trains the LSTM on GLUE with sequence pruning, evaluates it, and writes records/LSTM/.

    cache/lstm/<task>.pt  →  records/LSTM/

Run it without parameters, after PrepareGlue4Lstm.py. Change what is between the two rulers below, and run
it again: finished runs are skipped, what a setting changes is run anew, older records stay.
"""

from pruning import lstm_runs, records, tasks
from pruning.errors import UserError

# ----------------------------------------------------------------------------------------------
# Settings
target_prune_rate = 0.5  # share of each sentence's words that is removed, in [0, 1]
# What to compare; the first is the recipe of this repository. Also: "head", "tail", "frequency", and the
# teachers, which are upper bounds: "integrated gradients", "lstm".
pruning_methods = ["integrated gradients student", "lstm student", "random"]
task_names = ["sst-2", "mrpc", "qqp", "mnli"]  # also: cola, sts-b, qnli, rte, wnli
seeds = [0]  # everything is run once for each
training_rows = None  # rows drawn from the training set; None: all of them
dense_epochs = 3
pruned_epochs = 4  # of every pruned model, which starts as the dense one
batch_size = 32
learning_rate = 2e-3
student_learning_rate = 2e-3  # of the students, which start from nothing
distillation_share = 0.7  # of a pruned model's loss: the dense model's answers instead of the labels
ramp_share = 0.5  # of a pruned model's training, in which its rate rises from 0 to target_prune_rate
evaluation_batch_size = 256
timing_examples = 512  # of the dev set, at even distances
timing_passes = 5
shown_examples = 20  # sentences on the page beside each record
# ----------------------------------------------------------------------------------------------


def main() -> None:
    unknown = [name for name in task_names if name not in tasks.GLUE]
    if unknown or not task_names:
        raise UserError(
            f"task_names in RunLstm4Glue.py: {unknown or 'empty'}; known are: {', '.join(tasks.GLUE)}"
        )
    settings = records.settings_block(globals())
    task_list = [tasks.GLUE[name] for name in task_names]
    lstm_runs.run("RunLstm4Glue.py", "PrepareGlue4Lstm.py", task_list, settings)


if __name__ == "__main__":
    main()
