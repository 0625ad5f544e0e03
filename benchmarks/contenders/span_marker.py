"""SpanMarker, in an environment of its own (requirements-peers.txt)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import Contender, Job, emit, predict_one_class, reserve_output
from common.corpora import label_names
from common.errors import main
from common.records import read_json

LIMITS = {"model_max_length": 256, "entity_max_length": 8}  # the usual ones


def load(job: Job) -> Contender:
    """SpanMarker with its usual limits, on a tenth of the sentences, since it is slow. It is not trained.

    job (Job): What to annotate.
    RETURNS (Contender): The contender. It has no score.
    """
    from span_marker import SpanMarkerModel

    labels = ["O", *sorted({label[2:] for label in label_names(job.sentences)} - {""})]
    model = SpanMarkerModel.from_pretrained(job.encoder, labels=labels, **LIMITS)
    predict_one_class(model.classifier, 0)
    sentences = [sentence["words"] for sentence in job.sentences[: -(-len(job.sentences) // 10)]]
    words = sum(map(len, sentences))
    return Contender(lambda: sentences, lambda sentences: model.predict(sentences, batch_size=32), words=words)


def fine_tune(path: Annotated[Path, typer.Argument(help="JSON file with the job", exists=True)]) -> None:
    """Be the process that trains SpanMarker by its own Trainer, in bfloat16, and scores it.

    The job has the `encoder`, the sentences of `train`, `dev` and `test` as `split_sentences` returns them, `seed`,
    `gpu_id`, `fewest_steps`, and `settings` of TrainingArguments. The answer has F1 on `dev` and `test`, and `seconds`
    and `steps` of training.
    """
    reserve_output()
    from datasets import Dataset
    from span_marker import SpanMarkerModel, Trainer
    from transformers import TrainerCallback, TrainingArguments, set_seed

    job = read_json(path)
    set_seed(job["seed"])
    labels = label_names(job["train"])
    size, epochs = (job["settings"][name] for name in ("per_device_train_batch_size", "num_train_epochs"))

    class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            emit(progress=state.global_step / state.max_steps)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=SpanMarkerModel.from_pretrained(job["encoder"], labels=labels, **LIMITS),
            args=TrainingArguments(
                output_dir=folder,
                seed=job["seed"],
                max_steps=max(job["fewest_steps"], -(-len(job["train"]) // size) * epochs),
                use_cpu=job["gpu_id"] < 0,
                bf16=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                **job["settings"],
            ),
            train_dataset=Dataset.from_list(
                [
                    {"tokens": sentence["words"], "ner_tags": [labels.index(tag) for tag in sentence["tags"]]}
                    for sentence in job["train"]
                ]
            ),
            callbacks=[Progress()],
        )
        done = trainer.train()
    scores = {split: score(trainer.model, job[split]) for split in ("dev", "test")}
    emit(**scores, seconds=round(done.metrics["train_runtime"]), steps=done.global_step)


def score(model: Any, sentences: list[dict[str, Any]]) -> float:
    """F1 of exact spans with their labels.

    model (SpanMarkerModel): The trained model.
    sentences (list[dict[str, Any]]): As `split_sentences` returns them.
    RETURNS (float): From 0 to 1.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    correct = found = gold = 0
    predictions = model.predict([sentence["words"] for sentence in sentences], batch_size=32)
    for sentence, entities in zip(sentences, predictions, strict=True):
        predicted = {(ent["label"], ent["word_start_index"], ent["word_end_index"] - 1) for ent in entities}
        marked = set(get_entities(sentence["tags"]))
        correct, found, gold = correct + len(predicted & marked), found + len(predicted), gold + len(marked)
    return 2 * correct / max(1, found + gold)


if __name__ == "__main__":
    main(fine_tune)
