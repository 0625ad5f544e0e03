"""Synthetic texts: what language models, or names put in other places, add to a training corpus.

A language model is asked for plain text (`common/prompts.py`), and it never labels what was asked for: names are found
again by exact match (`common/sieve.py`).
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import tqdm
from spacy.tokens import Doc
from spacy.training import Example
from wasabi import msg

from bert_ner.corpus import collect_names, rename
from common.chat import ENDPOINT, ENDPOINT_MODEL, Chat, ChatError, UnusableError, find_chat
from common.errors import StepError
from common.llama import find_model, serve_model
from common.prompts import Method, Prompt, Settings, write_prompt
from common.records import digest
from common.sieve import Sieve, split_answer

UNUSABLE = 20  # unusable answers in a row, after which an endpoint has nothing to give
IN_VAIN = 200  # answers in a row of which nothing was kept, after which a model has nothing new to say
PASSES = 4  # of renaming, each of which replaces a third of the names
ENTRY = {"request", "answer", "problem", "prompt_tokens", "answer_tokens", "seconds"}  # what is read of a log


@contextmanager
def find_writer(requirements: Path, store: Path, parallel: int) -> Iterator[Chat]:
    """Find the endpoint that the environment names, or else serve the small language model.

    requirements, store (Path): As `find_model` takes them.
    parallel (int): How many requests are sent at the same time.
    YIELDS (Chat): The endpoint.
    """
    if endpoint := find_chat():
        msg.warn(f"Names and sentences of train are sent to {endpoint.host}.")
        yield endpoint
        return
    with serve_model(find_model(requirements, store), parallel) as chat:
        yield chat


class Made(NamedTuple):
    """What was made.

    docs (list[Doc]): The texts that were kept.
    verdicts (list[dict[str, Any]]): For each text that was looked at its `id`, the `text`, and why it was not kept, by
        one of REASONS, or nothing, or "marked".
    usage (dict[str, float]): `requests`, `prompt_tokens`, `answer_tokens`, `minutes` of waiting, and `money`.
    stopped (str): Which limit ended it, or what the endpoint said in the end; nothing if all was made.
    remedy (str): What to do about it.
    """

    docs: list[Doc]
    verdicts: list[dict[str, Any]]
    usage: dict[str, float]
    stopped: str = ""
    remedy: str = ""


def recombine(sieve: Sieve, train: Sequence[Doc], sentences: int, seed: int) -> Made:
    """Make texts without a language model: sentences of train, by themselves, with other names of the same labels.

    This is replacement of mentions (Dai and Adel 2020, https://aclanthology.org/2020.coling-main.343).

    sieve (Sieve): Which texts are kept.
    train (Sequence[Doc]): The documents of train.
    sentences (int): How many texts to make. Not more than ten times as many are tried.
    seed (int): What is drawn.
    RETURNS (Made): The texts.
    """
    names = collect_names(train)
    sources = []
    for sent in (sent for doc in train for sent in doc.sents if sent.ents):
        sources.append(source := sent.as_doc())
        source.has_unknown_spaces = sent.doc.has_unknown_spaces  # or it would be tokenised anew when it is read
    verdicts = []
    state = random.getstate()
    random.seed(seed)  # by which `rename` draws
    try:
        for number in range(10 * sentences if sources else 0):
            doc = random.choice(sources)
            example = Example(doc, doc)
            for _ in range(PASSES):
                example = rename(example, names)
            name = f"{Method.recombine}-{seed}-{number}"
            verdict = sieve.sift_doc(example.reference, name)
            verdicts.append({"id": name, "text": example.reference.text, "verdict": verdict})
            if len(sieve.kept) >= sentences:
                return Made(sieve.kept, verdicts, {})
    finally:
        random.setstate(state)
    remedy = "Take another method" + (
        f", or ask for no more: --vars.sentences {len(sieve.kept)}." if sieve.kept else "."
    )
    return Made(sieve.kept, verdicts, {}, "train has no more sentences that differ enough.", remedy)


def generate(sieve: Sieve, chat: Chat, logs: Path, sentences: int, seed: int) -> Made:
    """Let a language model write texts. What it answered before is not asked again.

    sieve (Sieve): Which texts are kept, the method, the settings, and what the prompts are made of.
    chat (Chat): The endpoint.
    logs (Path): A folder. A file of JSON lines there has what was asked and answered. Its name stands for all that
        decides the prompts and the answers.
    sentences (int): How many texts to make.
    seed (int): What is drawn.
    RETURNS (Made): The texts. Fewer if a limit is reached or the endpoint fails, and then `stopped` says so.
    """
    settings, seeds = sieve.settings, sieve.seeds
    decisive = {
        "method": str(sieve.method),
        "model": chat.name,
        "settings": settings.prompting(),
        "sentences": seeds.sentences,
        "pools": seeds.pools,
        "seed": seed,
    }
    log = logs / f"{sieve.method}-{digest(decisive)}.jsonl"
    entries = read_log(log)
    answers = {entry["request"]: entry for entry in entries if not entry["problem"]}
    verdicts: list[dict[str, Any]] = []
    advice = (
        f"read the answers in {log}; then name a larger model in {ENDPOINT}, change the parameters or the filters, or "
        "take --vars.method recombine, which asks no model."
    )
    stopped, remedy, unusable, vain = "", "", 0, 0
    logs.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf8") as file,
        ThreadPoolExecutor(settings.parallel) as pool,
        tqdm.tqdm(total=sentences, desc=sieve.method, unit="text", disable=None) as bar,
    ):
        for first in itertools.count(0, settings.parallel):
            numbers = range(first, first + settings.parallel)
            prompts = {number: write_prompt(sieve.method, seeds, settings, number, seed) for number in numbers}
            if len(sieve.kept) >= sentences:
                break
            if missing := [number for number in numbers if number not in answers]:
                if stopped := find_limit(settings, measure_usage(entries, settings)):
                    remedy = "The same command goes on, once the limit is higher."
                    if vain and not sieve.kept:
                        remedy += f" But first {advice}"
                    break
                asked = [pool.submit(_ask, chat, settings, prompts[number], number, seed) for number in missing]
                try:
                    wait(asked)
                finally:  # what is there is kept, whatever interrupts the waiting
                    for future in asked:
                        if future.done() and not future.exception():
                            entries.append(future.result())
                            answers[entries[-1]["request"]] = entries[-1]
                            file.write(json.dumps(entries[-1], ensure_ascii=False) + "\n")
                    file.flush()
            for number in numbers:
                if number not in answers:
                    continue
                problem = answers[number]["problem"]
                unusable = unusable + 1 if problem else 0
                before = len(sieve.kept)
                texts = [problem] if problem else split_answer(answers[number]["answer"])
                for place, text in enumerate(texts):
                    name = f"{sieve.method}-{seed}-{number}-{place}"
                    verdict = "unusable" if problem else sieve.sift(text, prompts[number].names, name)
                    verdicts.append({"id": name, "text": text, "verdict": verdict})
                bar.update(len(sieve.kept) - before)
                vain = vain + 1 if len(sieve.kept) == before else 0
            failures = [error for future in asked if (error := future.exception())] if missing else []
            for failure in failures:
                if not isinstance(failure, ChatError):
                    raise failure
                stopped, remedy = failure.problem, failure.remedy
            if unusable >= UNUSABLE:
                stopped = f"The last {unusable} answers of {chat.host} were unusable."
                remedy = f"Name another model in {ENDPOINT} and {ENDPOINT_MODEL}, or run the same command again."
            elif vain >= IN_VAIN:
                stopped = f"Of the last {vain} answers of {chat.host} nothing was kept."
                remedy = f"The same command would not ask again: {advice}"
            if stopped:
                break
    return Made(sieve.kept, verdicts, measure_usage(entries, settings), stopped, remedy)


def _ask(chat: Chat, settings: Settings, prompt: Prompt, number: int, seed: int) -> dict[str, Any]:
    """Ask, and say what is recorded of it. RAISES (ChatError): If the endpoint cannot be reached."""
    parameters = settings.parameters | {"seed": seed * 1_000_003 + number}
    entry: dict[str, Any] = {"request": number, "prompt": prompt.text, "names": prompt.names, "parameters": parameters}
    start = time.monotonic()
    text, prompt_tokens, answer_tokens, problem = "", 0, 0, ""
    try:
        text, prompt_tokens, answer_tokens = chat.ask(
            prompt.text, parameters=parameters, timeout=settings.timeout, attempts=settings.attempts
        )
    except UnusableError as error:
        problem = error.reason
    return entry | {
        "answer": text,
        "problem": problem,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "seconds": time.monotonic() - start,
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read what was answered before.

    A last line that a killed process left half written is cut off.

    path (Path): The file, which need not be there.
    RETURNS (list[dict[str, Any]]): The entries. Unusable answers are among them, since they had their price.
    RAISES (StepError): If another line is no entry.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    entries = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        entry = None
        with suppress(ValueError):
            entry = json.loads(line)
        if not isinstance(entry, dict) or not entry.keys() >= ENTRY:
            raise StepError(f"{path}, line {number}: this is no answer that was recorded.", "Delete this line.")
        entries.append(entry)
    return entries


def measure_usage(entries: Sequence[dict[str, Any]], settings: Settings) -> dict[str, float]:
    """Add up what requests took.

    entries (Sequence[dict[str, Any]]): As `read_log` gives them.
    settings (Settings): Has the prices, and how many requests ran at the same time.
    RETURNS (dict[str, float]): `requests`, `prompt_tokens`, `answer_tokens`, `minutes`, `money`.
    """
    tokens = {name: sum(entry[f"{name}_tokens"] for entry in entries) for name in ("prompt", "answer")}
    return {
        "requests": len(entries),
        "prompt_tokens": tokens["prompt"],
        "answer_tokens": tokens["answer"],
        "minutes": sum(entry["seconds"] for entry in entries) / 60 / settings.parallel,
        "money": sum(tokens[name] * getattr(settings.price, name) for name in tokens) / 1e6,
    }


def find_limit(settings: Settings, usage: dict[str, float]) -> str:
    """Find a limit of the settings that is reached. RETURNS (str): What to say of it, or nothing."""
    spent = usage | {"tokens": usage["prompt_tokens"] + usage["answer_tokens"]}
    for name in ("requests", "tokens", "minutes", "money"):
        limit = getattr(settings, name)
        if limit is not None and spent[name] >= limit:
            return f"The limit of {limit:,} for {name} is reached."
    return ""


def measure_diversity(texts: Iterable[str]) -> dict[str, float]:
    """Measure how much texts differ: the share of runs of two and of three words that are different ones.

    It falls with the number of texts, so compare equally many.

    texts (Iterable[str]): The texts.
    RETURNS (dict[str, float]): `distinct_2`, `distinct_3`, from 0 to 1.
    """
    split = [text.lower().split() for text in texts]
    result = {}
    for size in (2, 3):
        runs = [tuple(words[i : i + size]) for words in split for i in range(len(words) - size + 1)]
        result[f"distinct_{size}"] = len(set(runs)) / max(1, len(runs))
    return result
