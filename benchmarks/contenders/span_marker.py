"""SpanMarker, in an environment of its own (requirements-peers.txt)."""

from __future__ import annotations

from benchmarks.harness import Contender, Job, predict_one_class
from common.corpora import label_names


def load(job: Job) -> Contender:
    """SpanMarker with its usual limits, on a tenth of the sentences, since it is slow. It is not trained.

    job (Job): What to annotate.
    RETURNS (Contender): The contender. It has no score.
    """
    from span_marker import SpanMarkerModel

    labels = ["O", *sorted({label[2:] for label in label_names(job.sentences)} - {""})]
    model = SpanMarkerModel.from_pretrained(job.encoder, labels=labels, model_max_length=256, entity_max_length=8)
    predict_one_class(model.classifier, 0)
    sentences = [sentence["words"] for sentence in job.sentences[: -(-len(job.sentences) // 10)]]
    words = sum(map(len, sentences))
    return Contender(lambda: sentences, lambda sentences: model.predict(sentences, batch_size=32), words=words)
