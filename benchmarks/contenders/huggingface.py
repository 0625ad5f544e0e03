"""Hugging Face's transformers: its pipeline, and the fine-tuning of its example run_ner, which is the usual one."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender, Job, emit, predict_one_class
from common.corpora import label_names, read_docs, split_sentences

IGNORED = -100  # PyTorch's cross entropy leaves out targets of this value


def load(job: Job, batch_size: int) -> Contender:
    """The token classification pipeline, on the text of sentences. It is not trained.

    job (Job): What to annotate.
    batch_size (int): Sentences in a batch.
    RETURNS (Contender): The contender. It has no score.
    """
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    labels = label_names(job.sentences)
    model = AutoModelForTokenClassification.from_pretrained(
        job.encoder, num_labels=len(labels), id2label=dict(enumerate(labels))
    )
    predict_one_class(model.classifier, labels.index("O"))
    classify = pipeline(
        "token-classification",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(job.encoder),
        aggregation_strategy="simple",
        batch_size=batch_size,
        device="cpu",
    )
    texts = [sentence["text"] for sentence in job.sentences]
    return Contender(lambda: texts, classify)


def load_training(job: Job) -> Contender:
    """The usual fine-tuning with the default settings of run_ner, in float32.

    job (Job): What to train on.
    RETURNS (Contender): The contender.
    RAISES (ImportError): If accelerate is missing.
    """
    import accelerate  # noqa: F401 (Trainer needs it, and would say so only when it is made)
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            emit(progress=state.global_step / state.max_steps)

    def prepare() -> FineTuning:
        tuning = FineTuning(
            Path(job.encoder),
            job.sentences,
            Path(job.docs).parent / "trainer",
            per_device_train_batch_size=8,
            num_train_epochs=max(1, job.epochs),
            disable_tqdm=True,
            use_cpu=True,
        )
        tuning.trainer.add_callback(Progress())
        return tuning

    def work(tuning: FineTuning) -> FineTuning:
        tuning.trainer.train()
        return tuning

    def score(tuning: FineTuning) -> float | None:
        if not job.epochs:
            return None
        from seqeval.metrics import f1_score
        from seqeval.scheme import IOB2

        gold = [sentence["tags"] for sentence in job.dev_sentences]
        return float(f1_score(gold, tuning.predict(job.dev_sentences), mode="strict", scheme=IOB2))

    return Contender(prepare, work, score)


class FineTuning:
    """The usual fine-tuning of an encoder: Hugging Face's Trainer as its example run_ner uses it.

    It is sentence by sentence, with a linear layer for each wordpiece, and the label of a word at its first wordpiece.

    encoder (Path): Folder of the encoder.
    sentences (list[dict[str, Any]]): To train on, as `split_sentences` returns them.
    folder (Path): Folder for Trainer, which writes nothing.
    seed (int): For the new layer, order, dropout.
    **settings (Any): Of TrainingArguments.
    """

    def __init__(
        self, encoder: Path, sentences: list[dict[str, Any]], folder: Path, seed: int = 0, **settings: Any
    ) -> None:
        from transformers import (
            AutoModelForTokenClassification,
            AutoTokenizer,
            DataCollatorForTokenClassification,
            Trainer,
            TrainingArguments,
            set_seed,
        )

        set_seed(seed)
        self.labels = label_names(sentences)
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        self.trainer = Trainer(
            model=AutoModelForTokenClassification.from_pretrained(encoder, num_labels=len(self.labels)),
            args=TrainingArguments(
                output_dir=str(folder),
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                per_device_eval_batch_size=32,
                **settings,
            ),
            train_dataset=encode(sentences, self.tokenizer, self.labels),
            data_collator=DataCollatorForTokenClassification(self.tokenizer),
        )

    def predict(self, sentences: list[dict[str, Any]]) -> list[list[str]]:
        """Predict the tags of sentences.

        sentences (list[dict[str, Any]]): The sentences. Their own tags do not matter.
        RETURNS (list[list[str]]): For each sentence its tags in IOB2. Words beyond what the encoder reads have `O`.
        """
        self.trainer.args.group_by_length = False  # with it, predictions come in the order of lengths
        unlabelled = [sentence | {"tags": ["O"] * len(sentence["words"])} for sentence in sentences]
        output = self.trainer.predict(encode(unlabelled, self.tokenizer, self.labels))
        predicted = []
        for row, targets, sentence in zip(output.predictions.argmax(-1), output.label_ids, sentences, strict=True):
            tags = [self.labels[i] for i, target in zip(row, targets, strict=True) if target != IGNORED]
            predicted.append(tags + ["O"] * (len(sentence["words"]) - len(tags)))
        return predicted


def fine_tune(
    encoder: Path, corpus: Path, seed: int, gpu_id: int, settings: dict[str, Any], fewest_steps: int = 0
) -> dict[str, Any]:
    """Train the usual fine-tuning in bfloat16, keep the best epoch on dev, and count what it predicts for test.

    Of many epochs only EVALUATIONS are scored on dev, which is as often as our own training does it.

    encoder (Path): Folder of the encoder. An uncased one gives the same for text in lower and in upper case.
    corpus (Path): Folder with train.spacy, dev.spacy, test.spacy.
    seed (int): For the new layer, order, dropout.
    gpu_id (int): GPU, or -1 for the CPU.
    settings (dict[str, Any]): Of TrainingArguments.
    fewest_steps (int): On a small corpus it trains for more epochs, until there are so many steps.
    RETURNS (dict[str, Any]): `dev_by_epoch`: F1 on dev after each epoch that was scored; `seconds` and `steps` of
        training; `documents`: for each document of test the numbers of entities that are correct, predicted and gold.
    RAISES (ImportError): If accelerate is missing.
    """
    import accelerate  # noqa: F401
    from seqeval.metrics.sequence_labeling import get_entities
    from transformers import TrainerCallback

    from common.training import EVALUATIONS

    splits = ("train", "dev", "test")
    docs = {split: [split_sentences([doc]) for doc in read_docs(corpus / f"{split}.spacy")] for split in splits}
    sentences = {split: [sentence for doc in docs[split] for sentence in doc] for split in splits}
    scores: list[float] = []
    best: dict[str, Any] = {}

    def count(split: str) -> list[list[int]]:
        tags = iter(tuning.predict(sentences[split]))
        counts = []
        for doc in docs[split]:
            predicted = set(get_entities([next(tags) for _ in doc]))
            gold = set(get_entities([sentence["tags"] for sentence in doc]))
            counts.append([len(predicted & gold), len(predicted), len(gold)])
        return counts

    class KeepBest(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if round(state.epoch) % every and round(state.epoch) < epochs:
                return
            correct, predicted, gold = map(sum, zip(*count("dev"), strict=True))
            scores.append(2 * correct / max(1, predicted + gold))
            if scores[-1] > max(scores[:-1], default=-1):
                best.update({name: weight.detach().clone() for name, weight in model.state_dict().items()})

    with tempfile.TemporaryDirectory() as folder:
        tuning = FineTuning(
            encoder,
            sentences["train"],
            Path(folder),
            seed,
            group_by_length=True,
            use_cpu=gpu_id < 0,
            bf16=True,
            **settings,
        )
        model, arguments = tuning.trainer.model, tuning.trainer.args
        epochs = max(arguments.num_train_epochs, math.ceil(fewest_steps / len(tuning.trainer.get_train_dataloader())))
        every = math.ceil(epochs / EVALUATIONS)
        arguments.num_train_epochs = epochs
        tuning.trainer.add_callback(KeepBest())
        done = tuning.trainer.train()
        model.load_state_dict(best)
        return {
            "dev_by_epoch": scores,
            "seconds": round(done.metrics["train_runtime"]),
            "steps": done.global_step,
            "documents": count("test"),
        }


def encode(sentences: list[dict[str, Any]], tokenizer: Any, labels: list[str]) -> list[dict[str, Any]]:
    """Encode sentences for Hugging Face's models.

    sentences (list[dict[str, Any]]): The sentences.
    tokenizer (PreTrainedTokenizerFast): The encoder's tokenizer.
    labels (list[str]): Tags in IOB2.
    RETURNS (list[dict[str, Any]]): For each sentence `input_ids`, `attention_mask` and `labels`, all (wordpieces,). The
        label of a word is at its first wordpiece; all other wordpieces have IGNORED.
    """
    rows = []
    for sentence in sentences:
        encoded = tokenizer(sentence["words"], is_split_into_words=True, truncation=True)
        words = encoded.word_ids()
        first = [word is not None and (i == 0 or words[i - 1] != word) for i, word in enumerate(words)]
        targets = [
            labels.index(sentence["tags"][word]) if is_first else IGNORED
            for word, is_first in zip(words, first, strict=True)
        ]
        rows.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": targets})
    return rows
