from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import spacy
import yaml
from filelock import FileLock
from spacy.tokens import DocBin
from spacy.vocab import Vocab

from common import trainings
from common.corpora import read_docs
from common.devices import TrainingFailed, kill
from common.errors import StepError
from common.figures import save_figures
from common.mixing import write_mixed
from common.models import DIVERGED, find_trained
from common.records import CURVES, claim, digest, read_json, write_json
from common.space import read_space
from common.training import prepare
from scripts.run import read_run
from scripts.search import FIGURES, search, settle_share, write_run
from tests.conftest import ROOT, guard, words
from tests.trainings import stop_trainings, wait_for

CONFIG = ROOT / "configs" / "bert.cfg"
SPACE = """
learn_rate: {times: [0.5, 2], explain: How far a step moves the weights.}
training.dropout: {between: [0.0, 0.4], explain: Which share of the values is switched off.}
"""
SHARE = "synthetic_share: {between: [0, 0.5], explain: Which part of the words is synthetic.%s}\n"
Score = Callable[[dict[str, Any]], float]


class Fake:
    """Stands for `train`: it writes what a training leaves, with an F1 that follows from the settings."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.trained: list[dict[str, Any]] = []

    def __call__(self, command: list[str], log: Path, follow: Callable[[], object]) -> None:
        config, place = Path(command[3]), Path(command[4])
        options: dict[str, Any] = dict(
            zip([name[2:].replace("-", "_") for name in command[5::2]], command[6::2], strict=True)
        )
        options.pop("gpu_id")
        corpus, encoder, seed = Path(options.pop("corpus")), Path(options.pop("encoder")), int(options.pop("seed"))
        inputs, values = prepare(config, corpus, encoder, **options, seed=seed)
        self.trained.append(values)
        f1 = self.score(values)
        unfinished = place / f"unfinished-{digest(inputs)}"
        unfinished.mkdir(parents=True)
        for step in range(0, values["training.max_steps"] + 1, values["training.eval_frequency"]):
            row = {"step": step, "dev": {"ents_f": f1 * step / values["training.max_steps"]}}
            with (unfinished / CURVES).open("a") as file:
                file.write(json.dumps(row) + "\n")
            follow()
        model = unfinished.rename(place / "model-best")
        write_json(model / "meta.json", {"performance": {"ents_f": f1}})
        write_json(model / "provenance.json", {"inputs": inputs, "seconds": 7})


def dropout_is_good(values: dict[str, Any]) -> float:
    return 0.5 + float(values.get("training.dropout", 0.1))


@pytest.fixture
def run(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """The command in a project of its own, on a run `tiny`. What takes time and decides nothing here is left out."""
    monkeypatch.setattr("common.training.code_digest", lambda *_: "code")
    monkeypatch.setattr("common.training.spacy.blank", functools.cache(spacy.blank))
    monkeypatch.setattr("scripts.search.record_inputs", lambda **_: {})
    monkeypatch.setattr("scripts.search.save_figures", lambda *_: {})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny.yml").write_text("source: sample\nencoder: minilm\n")
    (tmp_path / "space.yml").write_text(SPACE)

    def start(
        score: Callable[..., Any] = dropout_is_good, corpus: Path = tiny_corpus, **options: Any
    ) -> dict[str, Any]:
        monkeypatch.setattr(trainings, "run_training", score if isinstance(score, Fake) else Fake(score))
        folder, metrics = tmp_path / "training/tiny", tmp_path / "metrics/tiny"
        arguments = (tmp_path / "space.yml", folder, corpus, tiny_encoder, metrics, tmp_path / "runs")
        search(CONFIG, *arguments, **({"trials": 4, "confirm": 0} | options))
        return read_json(metrics / "search.json")

    return start


def states(found: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in found["trials"]]


def test_the_best_settings_become_a_run_that_trains_nothing_again(
    run: Callable[..., dict[str, Any]],
    tmp_path: Path,
    tiny_corpus: Path,
    tiny_encoder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = run(confirm=2)
    shown = words(capsys.readouterr().out)
    assert found["trials"][0]["settings"] == {} and found["trials"][0]["params"] == {
        "learn_rate": 1.0,
        "training.dropout": 0.1,
    }, "the first trial is the default"
    assert found["default"] == 0 and found["best"] != 0
    best = found["trials"][found["best"]]
    assert best["ents_f"] == max(trial["ents_f"] for trial in found["trials"])
    assert found["confirmed"]["default"] == [pytest.approx(0.6)] * 2 and found["confirmed"]["interval"][0] > 0
    assert "2 other seeds" in shown and "more than the noise of seeds" in shown and "make all RUN=tiny-best" in shown
    text = (tmp_path / "runs/tiny-best.yml").read_text()
    assert text.startswith("# Written by search from the run tiny. 4 trials:")
    variables = read_run(tmp_path / "runs/tiny-best.yml", ROOT)
    assert variables["encoder"] == "minilm" and variables["learn_rate"].startswith("auto*")
    settings: dict[str, Any] = {name: variables[name] for name in ("learn_rate", "overrides")}
    inputs, values = prepare(CONFIG, tiny_corpus, tiny_encoder, **settings)
    assert values["training.dropout"] == float(best["settings"]["training.dropout"])
    assert find_trained(tmp_path / "training/tiny-best", inputs), "what was trained is found by the run"
    assert find_trained(tmp_path / "training/tiny", prepare(CONFIG, tiny_corpus, tiny_encoder)[0])
    assert len(list(tmp_path.glob("training/*/model-best*"))) == 2, "other models are not kept"
    assert sorted(path.name for path in (tmp_path / "training").iterdir()) == ["tiny", "tiny-best"]
    assert found["importance"] is None
    save_figures(FIGURES, found, tmp_path)
    assert "training.dropout" not in (svg := (tmp_path / "search.svg").read_text()) and "dropout" in svg


def count_words(values: dict[str, Any]) -> int:
    """How many words a training reads in an epoch."""
    return sum(map(len, read_docs(Path(values["paths.train"]))))


def test_the_best_share_of_synthetic_texts_becomes_a_run_that_has_the_texts(
    run: Callable[..., dict[str, Any]], tmp_path: Path, synthesized: Path, tiny_encoder: Path
) -> None:
    (tmp_path / "space.yml").write_text(SHARE % "")
    fake, read = Fake(dropout_is_good), []

    def score(values: dict[str, Any]) -> float:
        read.append(count_words(values))
        return read[-1] / 100

    fake.score = score
    found = run(fake, corpus=synthesized, trials=3, confirm=2)
    default, best = found["trials"][0], found["trials"][found["best"]]
    assert default["settings"] == {} and default["params"] == {"synthetic_share": 0}
    assert read[0] == (alone := count_words({"paths.train": synthesized / "train.spacy"})) and max(read[1:3]) > alone
    assert set(read[3:]) == {alone, max(read)}, "the other seeds have the best share too"
    number = len(fake.trained)
    assert run(fake, corpus=synthesized, trials=3, confirm=2)["trials"] == found["trials"]
    assert len(fake.trained) == number, "texts of the same share are the same"
    variables = read_run(tmp_path / "runs/tiny-best.yml", ROOT)
    assert variables["train_on"] == "mixed" and variables["overrides"] == ""
    assert float(variables["synthetic_share"]) == float(best["settings"]["synthetic_share"]) > 0
    corpus = tmp_path / "corpus/tiny-best"
    claim(corpus, "provenance.json")  # as convert does, which writes train and dev there
    for split in ("train", "dev"):
        shutil.copy(synthesized / f"{split}.spacy", corpus)
    inputs, values = prepare(CONFIG, corpus, tiny_encoder, train_on="mixed")
    assert count_words(values) == max(read) and find_trained(tmp_path / "training/tiny-best", inputs)
    assert (corpus / "synthetic.spacy").exists(), "the texts can be looked at, and searched again"
    assert not (synthesized / "mixed.spacy").exists() and not list(tmp_path.glob("training/tiny/search/corpus-*"))


def test_the_share_is_searched_where_there_are_synthetic_texts(
    run: Callable[..., dict[str, Any]], tmp_path: Path, synthesized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yml"
    space.write_text(SPACE + SHARE % "")
    with pytest.raises(StepError, match=r"synthetic_share cannot be searched: .* no synthetic\.spacy") as error:
        run(trials=1)
    assert "make synthesize RUN=" in error.value.remedy
    space.write_text(SHARE % ", optional: true")
    with pytest.raises(StepError, match="cannot be searched"):
        run(trials=1)
    with pytest.raises(StepError, match="with teachers"):
        settle_share(read_space(space, {"synthetic_share": 0.0}), synthesized, "taught")
    space.write_text(SPACE + SHARE % ", optional: true")
    assert run(trials=1)["parameters"].keys() == {"learn_rate", "training.dropout"}
    assert "synthetic_share is left out of the search" in words(capsys.readouterr().out)
    (tmp_path / "training/tiny/search/study.db").unlink()
    space.write_text(SPACE + SHARE.replace("0.5", "0.9") % ", optional: true")
    assert run(corpus=synthesized, trials=1)["parameters"]["synthetic_share"]["range"] == "0 to 0.666667"
    assert "enough for a share of 66.7%" in words(capsys.readouterr().out)
    texts = DocBin().from_disk(synthesized / "synthetic.spacy")
    DocBin(docs=[*texts.get_docs(Vocab())][:-1]).to_disk(synthesized / "synthetic.spacy")
    with pytest.raises(StepError, match=r"begun with another space, synthetic texts\."):
        run(corpus=synthesized)


def test_a_run_with_a_share_is_the_default(
    run: Callable[..., dict[str, Any]], tmp_path: Path, synthesized: Path
) -> None:
    with pytest.raises(StepError, match=r"trains on train, and its synthetic_share is 0\.3"):
        run(share=0.3)
    write_mixed(synthesized, 0.3, synthesized)
    (tmp_path / "runs/tiny.yml").write_text("source: sample\ntrain_on: mixed\nsynthetic_share: 0.3\n")
    fake = Fake(dropout_is_good)
    found = run(fake, corpus=synthesized, train_on="mixed", share=0.3, trials=2)
    assert [values["paths.train"] for values in fake.trained] == [str(synthesized / "mixed.spacy")] * 2
    assert found["best"] and read_run(tmp_path / "runs/tiny-best.yml", ROOT)["synthetic_share"] == "0.3"
    with pytest.raises(StepError, match="mixed for another synthetic_share"):
        run(fake, corpus=synthesized, train_on="mixed", share=0.4)
    assert read_json(tmp_path / "corpus/tiny-best/mixed.json") == read_json(synthesized / "mixed.json")
    settings = {"epochs": "auto", "learn_rate": "auto", "batch_words": "auto", "synthetic_share": "0"}
    write_run(tmp_path / "runs/tiny.yml", tmp_path / "runs/none.yml", settings, 0, "")
    variables = read_run(tmp_path / "runs/none.yml", ROOT)
    assert variables["train_on"] == "train" and float(variables["synthetic_share"]) == 0


def test_what_the_command_line_said_is_in_the_run_too(tmp_path: Path) -> None:
    source, path = tmp_path / "tiny.yml", tmp_path / "tiny-best.yml"
    source.write_text("version: 1.10\nlearn_rate: auto*2\n")
    settings = {"epochs": "auto*0.5", "learn_rate": "auto", "batch_words": "auto", "synthetic_share": "0"}
    write_run(source, path, settings, 5, "")
    variables = read_run(path, ROOT)
    assert variables["seed"] == "5", "without it nobody would find the model"
    assert variables["learn_rate"] == "auto" and variables["epochs"] == "auto*0.5" and variables["version"] == "1.10"
    assert "batch_words" not in variables


def test_nothing_is_trained_twice(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    fake = Fake(dropout_is_good)
    first = run(fake, trials=3, confirm=2)
    assert len(fake.trained) == 3 + 4
    assert run(fake, trials=3, confirm=2)["trials"] == first["trials"] and len(fake.trained) == 3 + 4
    more = run(fake, trials=5)
    assert len(fake.trained) == 5 + 4 and more["trials"][:3] == first["trials"]
    (tmp_path / "training/tiny/search/study.db").unlink()
    again = run(fake, trials=5)
    assert len(fake.trained) == 5 + 4, "what is proposed is the same, and the results are found by their provenance"
    assert [trial["ents_f"] for trial in again["trials"]] == [trial["ents_f"] for trial in more["trials"]]


def test_poor_trials_are_ended_early_and_the_default_never(run: Callable[..., dict[str, Any]]) -> None:
    found = run(lambda values: 0.2 + float(values.get("training.dropout", -0.1)), trials=14)
    assert states(found)[0] == "finished" and "ended early" in states(found)
    early = [trial for trial in found["trials"] if trial["state"] == "ended early"]
    assert all(0 < trial["ents_f"] < 0.6 for trial in early)


def test_the_default_that_is_not_beaten_makes_no_run(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(lambda values: 0.5 if "training.dropout" in values else 0.9)
    assert found["best"] == found["default"] == 0
    assert "default settings were not beaten" in words(capsys.readouterr().out)
    assert not (tmp_path / "runs/tiny-best.yml").exists()


def test_the_run_s_own_settings_are_the_default(run: Callable[..., dict[str, Any]]) -> None:
    fake = Fake(dropout_is_good)
    found = run(fake, learn_rate="0.01", overrides="training.dropout=0.2,training.batcher.lowercase=0.3", trials=2)
    assert found["parameters"]["training.dropout"]["default"] == "0.2"
    default, other = fake.trained
    assert default["training.dropout"] == 0.2 and default["training.optimizer.learn_rate.initial_rate"] == 0.01
    assert 0.005 <= other["training.optimizer.learn_rate.initial_rate"] <= 0.02
    assert other["training.batcher.lowercase"] == 0.3


def fail(why: str, *which: int) -> Fake:
    """A training that fails, for trials with these numbers."""
    fake = Fake(dropout_is_good)

    def score(values: dict[str, Any]) -> float:
        if len(fake.trained) - 1 in which:
            raise TrainingFailed(why)
        return dropout_is_good(values)

    fake.score = score
    return fake


def test_what_fails_is_named_and_the_study_goes_on(
    run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(fail("killed by SIGKILL", 1, 3))
    assert states(found) == ["finished", "failed", "finished", "failed", "finished", "finished"]
    assert found["counts"] == {"finished": 4, "failed": 2} and "killed by SIGKILL" in capsys.readouterr().out


def test_a_trial_that_diverges_is_one_of_the_trials(run: Callable[..., dict[str, Any]]) -> None:
    found = run(fail(f"{DIVERGED}: the loss of ner is no number", 2))
    assert states(found) == ["finished", "finished", "diverged", "finished"]


def test_settings_that_diverge_with_another_seed_are_worth_nothing_there(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = run(fail(f"{DIVERGED}: the loss is no number.", 5), confirm=2)
    assert found["confirmed"]["best"][0] == 0 < found["confirmed"]["best"][1]
    assert (tmp_path / "runs/tiny-best.yml").exists(), "which says that the default was not beaten"


def test_when_all_fails_the_search_ends(run: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(StepError, match="default settings cannot be trained: no space left"):
        run(fail("no space left", 0))
    with pytest.raises(StepError, match=r"3 trials in a row have failed.*no space left"):
        run(fail("no space left", 1, 2, 3), trials=9)
    found = run()
    assert states(found).count("failed") == 4 and states(found).count("finished") == 4


def test_after_ctrl_c_the_trial_is_done_again(
    run: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake(dropout_is_good)

    def interrupt(values: dict[str, Any]) -> float:
        if len(fake.trained) == 3:
            raise KeyboardInterrupt
        return dropout_is_good(values)

    fake.score = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(fake)
    assert "the same command goes on" in words(capsys.readouterr().out)
    assert len(read_json(tmp_path / "metrics/tiny/search.json")["trials"]) == 2, "what has ended is shown"
    found = run(fake)
    assert states(found) == ["finished", "finished", "interrupted", "finished", "finished"]
    assert found["trials"][3]["settings"] == found["trials"][2]["settings"]


@pytest.mark.parametrize("storage", ["", "journal.log"])
def test_what_a_killed_process_had_begun_is_done_again(
    run: Callable[..., dict[str, Any]], tmp_path: Path, storage: str
) -> None:
    storage = storage and str(tmp_path / storage)
    run(trials=2, storage=storage)
    backend: Any = f"sqlite:///{tmp_path}/training/tiny/search/study.db"
    if storage:
        backend = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    study = optuna.load_study(study_name="tiny", storage=backend)
    distributions: Any = study.get_trials()[1].distributions
    for _ in range(2):
        study.ask(distributions)
    alive = FileLock(tmp_path / "training/tiny/search/trial-2.lock")
    dead = FileLock(tmp_path / "training/tiny/search/trial-3.lock")
    dead.acquire()
    dead.release()
    with alive:
        found = run(trials=4, storage=storage)
    assert states(found) == ["finished", "finished", "at work", "interrupted", "finished"]
    assert found["trials"][4]["params"] == found["trials"][3]["params"]
    assert states(run(trials=4, storage=storage))[4:] == ["finished", "finished"]


def test_a_study_of_something_else_is_not_gone_on_with(
    run: Callable[..., dict[str, Any]], tmp_path: Path, tiny_corpus: Path
) -> None:
    run(trials=1)
    with pytest.raises(StepError, match=r"another settings\."):
        run(epochs="3")
    corpus = Path(shutil.copytree(tiny_corpus, tmp_path / "other"))
    shutil.copy(corpus / "train.spacy", corpus / "dev.spacy")
    (corpus / "dev.spacy").write_bytes((corpus / "dev.spacy").read_bytes() + b"\0")
    with pytest.raises(StepError, match=r"another corpus\."):
        run(corpus=corpus)
    space = (tmp_path / "space.yml").read_text()
    (tmp_path / "space.yml").write_text(space.replace("How far", "By how much"))
    run(trials=1)
    (tmp_path / "space.yml").write_text(space.replace("0.4", "0.3"))
    with pytest.raises(StepError, match=r"another space\."):
        run()


def test_what_cannot_be_is_refused(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(StepError, match="With one other seed") as error:
        run(confirm=1)
    assert "--vars.confirm 3" in error.value.remedy, "make takes no other options"
    with pytest.raises(StepError, match="cannot be opened"):
        run(storage="nosuchdatabase://user:secret@host/name")
    (tmp_path / "runs/mine.yml").write_text("encoder: minilm\n")
    with pytest.raises(StepError, match=r"mine\.yml was not written by search"):
        run(best="mine")
    assert (tmp_path / "runs/mine.yml").read_text() == "encoder: minilm\n"
    with pytest.raises(StepError, match="cannot be the folder of a run"):
        run(best="../mine")
    with pytest.raises(StepError, match="goes on from a trained pipeline"):
        run(start=tmp_path)


def test_the_minutes_are_a_budget_too(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr("scripts.search.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    assert len(run(trials=50, minutes=1.25)["trials"]) == 2


def test_with_several_devices_workers_do_the_trials_and_then_the_other_seeds(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers do nothing here, so that this process finds the trials of before, and trains with other seeds."""
    fake, begun = Fake(dropout_is_good), []

    def run_all(workers: dict[str, Any], devices: list[int], follow: Callable[[int], object]) -> None:
        one, two = (worker.begin(device) for worker, device in zip(workers.values(), devices, strict=True))
        assert one == two and one[: len(sys.orig_argv)] == [sys.executable, *sys.orig_argv[1:]]
        assert [worker.log.name for worker in workers.values()] == ["worker-0.log", "worker-1.log"]
        begun.append(one[len(sys.orig_argv) :])
        follow(0)

    monkeypatch.setattr("scripts.search.run_all", run_all)
    run(fake, trials=2)
    found = run(fake, trials=3, confirm=2, processes=2)
    alone = ["--gpus", "", "--processes", "1", "--gpu-id", "-1"]
    assert begun == [["--confirm", "0", *alone], ["--trials", "1", *alone]]
    assert states(found) == ["finished", "finished"] and len(fake.trained) == 2 + 4


def test_seeds_that_another_process_trains_come_last(
    run: Callable[..., dict[str, Any]], tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    fake = Fake(dropout_is_good)
    run(fake, trials=2)
    held = digest(prepare(CONFIG, tiny_corpus, tiny_encoder, seed=1)[0])
    lock = FileLock(tmp_path / f"training/tiny/search/{held}.lock")

    def score(values: dict[str, Any]) -> float:
        if len(fake.trained) == 2 + 3:
            lock.release()  # as the other process does when it has ended
        return dropout_is_good(values)

    fake.score = score
    with lock:
        confirmed = run(fake, trials=2, confirm=2)["confirmed"]
    trained = [(values["system.seed"], "training.dropout" in values) for values in fake.trained[2:]]
    assert trained == [(1, True), (2, False), (2, True), (1, False)]
    assert confirmed["default"] == [pytest.approx(0.6)] * 2 and len({*confirmed["best"]}) == 1


def create_command(tmp_path: Path, folder: Path, corpus: Path, encoder: Path, metrics: Path) -> list[str]:
    """The command line of a search with real trainings, for which all is put in place."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "space.yml").write_text(SPACE)
    paths = (CONFIG, tmp_path / "space.yml", folder, corpus, encoder, metrics, tmp_path / "runs")
    return [sys.executable, "-m", "scripts.search", *map(str, paths), "--confirm", "0", "--epochs", "8"]


@pytest.mark.slow
def test_two_processes_work_on_one_study_and_one_is_killed(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    """With real trainings. The one that is left does again what the other had begun, from its beginning."""
    folder, metrics = tmp_path / "training/tiny", tmp_path / "metrics/tiny"
    command = create_command(tmp_path, folder, tiny_corpus, tiny_encoder, metrics)

    def start(trials: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, "--trials", str(trials)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait_for_trials(number: int) -> None:
        wait_for(lambda: len(list(folder.glob("search/trial-*.lock"))) >= number)

    one = start(50)
    wait_for_trials(1)
    two = start(3)
    wait_for_trials(2)
    one.send_signal(signal.SIGKILL)
    one.wait()
    assert two.wait(guard(300)) == 0
    done = subprocess.run([*command, "--trials", "3"], cwd=ROOT, capture_output=True, timeout=guard(300))
    assert done.returncode == 0, done.stdout.decode()
    found = read_json(metrics / "search.json")
    assert states(found).count("finished") == 3 and states(found).count("interrupted") == 1
    assert found["default"] is not None and not found["counts"].get("at work")
    results = [read_json(path) for path in folder.glob("search/*.json")]
    assert len(results) == 3 and all(len(result["evaluations"]) == 8 for result in results)
    assert all(model.parent.name.startswith("tiny") for model in tmp_path.glob("training/*/model-best*"))
    for model in tmp_path.glob("training/*/model-best*"):
        assert spacy.load(model)("Mira left Turku .") is not None
        assert not read_json(model / "provenance.json")["resumed"]
    assert yaml.safe_load((metrics / "search.json").read_text())["captions"]


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_and_their_trials_are_done_again(
    tmp_path: Path, tiny_corpus: Path, tiny_encoder: Path
) -> None:
    folder, metrics = tmp_path / "training/tiny", tmp_path / "metrics/tiny"
    command = create_command(tmp_path, folder, tiny_corpus, tiny_encoder, metrics)
    command += ["--trials", "2", "--processes", "2"]
    driver = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )
    try:
        stop_trainings(driver.pid, 2)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(guard(60)) != 0
    finally:
        if driver.poll() is None:
            kill(driver)
    assert len(family) == 4
    wait_for(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=guard(300))
    assert done.returncode == 0, done.stdout.decode()
    found = read_json(metrics / "search.json")
    assert found["counts"] == {"interrupted": 2, "finished": 2} and found["default"] is not None
    assert all(read_json(path)["evaluations"] for path in folder.glob("search/????????.json"))
    assert not list(folder.glob("search/*.log")) and len(list(folder.glob("search/????????.json"))) == 2
