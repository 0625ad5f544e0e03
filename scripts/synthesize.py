"""Make synthetic texts with names from the training corpus, by a language model or without one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import srsly
import typer
from spacy.tokens import DocBin
from wasabi import msg

from common.alignment import create_reader
from common.corpora import read_docs
from common.errors import StepError, main
from common.mixing import SYNTHETIC, check_share, write_mixed
from common.models import MIXED, load_trained
from common.prompts import Method, Seeds, Settings, check_labels, read_settings
from common.records import code_digest, digest, made, record_inputs, sha256, staged, write_json, writes
from common.sieve import REASONS, Sieve
from common.synthesis import Made, find_writer, generate, measure_diversity, recombine

COMMON = Path(__file__).parent.parent / "common"
CODE = [COMMON / f"{name}.py" for name in ("prompts", "sieve", "similarity", "synthesis")]


@writes("corpus")
def synthesize(
    corpus: Annotated[Path, typer.Argument(help="Folder with train.spacy, dev.spacy, test.spacy", exists=True)],
    settings: Annotated[Path, typer.Argument(help="Labels, parameters, filters and limits", exists=True)],
    store: Annotated[Path, typer.Argument(help="Folder in which the small language model lies once for all runs")],
    requirements: Annotated[Path, typer.Option(help="It pins the small language model", exists=True)],
    method: Annotated[Method, typer.Option(help="How texts are made")] = Method.around_names,
    sentences: Annotated[int, typer.Option(help="How many texts to make", min=1)] = 500,
    share: Annotated[float, typer.Option(help="What part of the training tokens shall be synthetic; 0: none")] = 0,
    train_on: Annotated[str, typer.Option(help="What the run trains on")] = "train",
    judge: Annotated[str, typer.Option(help="Folder of a trained pipeline that has to find the same names")] = "",
    seed: Annotated[int, typer.Option(help="Of what is drawn")] = 0,
) -> None:
    """Write synthetic texts, and mix them into train if the run wants a share of them. What was answered is kept."""
    chosen = read_settings(settings)
    check_share(share, train_on)
    nlp = create_reader()
    train = read_docs(corpus / "train.spacy", nlp.vocab)
    held_out = [doc for split in ("dev", "test") for doc in read_docs(corpus / f"{split}.spacy", nlp.vocab)]
    seeds = Seeds(train)
    if method != Method.recombine:  # which asks nobody, so that no label needs a meaning
        check_labels(seeds, chosen)
    sieve = Sieve(nlp, method, chosen, seeds, train, held_out, load_trained(Path(judge)) if judge else None)
    inputs: dict[str, Any] = {
        "method": str(method),
        "seed": seed,
        "train": sha256(corpus / "train.spacy"),
        "code": code_digest(*CODE),
        **(record_inputs(judge=Path(judge)) if judge else {}),
    }
    if method == Method.recombine:
        found = recombine(sieve, train, sentences, seed)
    else:
        made(corpus, SYNTHETIC)
        with find_writer(requirements, store, chosen.parallel) as chat:
            inputs |= {"writer": chat.name, "settings": digest(chosen.prompting())}
            found = generate(sieve, chat, corpus / SYNTHETIC, sentences, seed)
    if not found.docs:
        raise StepError(f"No text was kept. {found.stopped}", f"{describe_reasons(found)} {found.remedy}")
    record = summarize(found, [one.text for one in seeds.sentences], inputs, chosen)
    with staged(corpus, f"{SYNTHETIC}.jsonl", f"{SYNTHETIC}.json", f"{SYNTHETIC}.spacy") as folder:
        srsly.write_jsonl(folder / f"{SYNTHETIC}.jsonl", found.verdicts)
        write_json(folder / f"{SYNTHETIC}.json", record)
        DocBin(docs=found.docs, store_user_data=True).to_disk(folder / f"{SYNTHETIC}.spacy")
    show(record)
    msg.good(f"Wrote {corpus / SYNTHETIC}.spacy; {SYNTHETIC}.jsonl says of each text why it was kept or not")
    if share:
        with staged(corpus, f"{MIXED}.spacy", f"{MIXED}.json") as folder:
            reached = write_mixed(corpus, share, folder)
        msg.good(f"Wrote {corpus / MIXED}.spacy, of which {reached:.1%} is synthetic")
        if reached < share - 0.01:
            msg.warn(f"There are too few texts for a share of {share:.1%}: make more with --vars.sentences")
    if found.stopped:
        problem = f"Only {len(found.docs)} of {sentences} texts were made. {found.stopped}"
        raise StepError(problem, f"They are kept. {found.remedy}")


def summarize(found: Made, real: list[str], inputs: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Summarize what was made.

    found (Made): The texts.
    real (list[str]): Sentences of train, to compare their diversity.
    inputs (dict[str, Any]): What they were made from.
    settings (Settings): The settings.
    RETURNS (dict[str, Any]): `inputs`; `settings`; `kept`, `tried`: numbers of texts; `reasons`: how many were not
        kept, by reason; `labels`: numbers of names; `marked`: how many the judge disagrees with; `usage`;
        `minutes_per_1000` kept texts and `answer_tokens_per_second`, where a language model was asked; `diversity`, and
        `diversity_of_train` for as many texts.
    """
    verdicts = Counter(verdict["verdict"] for verdict in found.verdicts)
    kept = len(found.docs)
    record = {
        "inputs": inputs,
        "settings": settings.model_dump(mode="json"),
        "kept": kept,
        "tried": len(found.verdicts),
        "reasons": {reason: verdicts[reason] for reason in REASONS if verdicts[reason]},
        "marked": verdicts["marked"],
        "labels": dict(Counter(ent.label_ for doc in found.docs for ent in doc.ents)),
        "usage": found.usage,
        "diversity": measure_diversity([doc.text for doc in found.docs][: len(real)]),
        "diversity_of_train": measure_diversity(real[:: max(1, len(real) // kept)][:kept]),
    }
    if found.usage:
        minutes = found.usage["minutes"]
        record["minutes_per_1000"] = 1000 * minutes / kept
        record["answer_tokens_per_second"] = found.usage["answer_tokens"] / max(1e-9, 60 * minutes)
    return record


def describe_reasons(found: Made) -> str:
    """Say how many texts were not kept, by reason."""
    counts = Counter(verdict["verdict"] for verdict in found.verdicts)
    tried = "; ".join(f"{counts[name]} times: {why}" for name, why in REASONS.items() if counts[name])
    return f"{tried or 'None was tried'}."


def show(record: dict[str, Any]) -> None:
    """Print how many texts were kept, and why others were not."""
    rows = [("kept", f"{record['kept']:,}", ""), *((n, f"{c:,}", REASONS[n]) for n, c in record["reasons"].items())]
    msg.table(rows, header=("texts", "number", "because"), divider=True, aligns=("l", "r", "l"))
    if record["usage"]:
        usage = record["usage"]
        msg.text(
            f"{usage['requests']:,} requests, {usage['prompt_tokens']:,} tokens of prompts, {usage['answer_tokens']:,} "
            f"of answers ({record['answer_tokens_per_second']:.1f} a second), {usage['minutes']:.1f} minutes: "
            f"{record['minutes_per_1000']:.0f} minutes for 1,000 kept texts"
        )


if __name__ == "__main__":
    main(synthesize)
