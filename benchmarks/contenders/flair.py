"""Flair, in an environment of its own (requirements-peers.txt)."""

from __future__ import annotations

from benchmarks.harness import Contender, Job, predict_one_class
from common.corpora import label_names


def load(job: Job) -> Contender:
    """Flair's tagger as its fine-tuning has it, a linear layer over the encoder, on sentences. It is not trained.

    job (Job): What to annotate.
    RETURNS (Contender): The contender. It has no score.
    """
    import flair
    import torch
    from flair.data import Dictionary, Sentence
    from flair.embeddings import TransformerWordEmbeddings
    from flair.models import SequenceTagger

    flair.device = torch.device("cpu")
    labels = Dictionary(add_unk=False)
    labels.span_labels = True
    for name in sorted({label[2:] for label in label_names(job.sentences)} - {""}):
        labels.add_item(name)
    tagger = SequenceTagger(
        hidden_size=256,
        embeddings=TransformerWordEmbeddings(
            job.encoder, layers="-1", subtoken_pooling="first", fine_tune=True, use_context=False
        ),
        tag_dictionary=labels,
        tag_type="ner",
        use_crf=False,
        use_rnn=False,
        reproject_embeddings=False,
    )
    predict_one_class(tagger.linear, tagger.label_dictionary.get_idx_for_item("O"))
    return Contender(
        lambda: [Sentence(sentence["words"]) for sentence in job.sentences],
        lambda sentences: tagger.predict(sentences, mini_batch_size=32),
    )
