"""Add to a trained pipeline what needs no training, by `spacy assemble`: the rules of concepts, and cleaning."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from spacy.cli.assemble import assemble_cli
from thinc.api import Config
from wasabi import msg

import bert_ner  # noqa: F401 (registers what the configs name)
from common.errors import main
from common.records import staged, writes


@writes("packages", "assembled")
def assemble(
    config: Annotated[Path, typer.Argument(help="Config of what is added", exists=True)],
    model: Annotated[Path, typer.Argument(help="Trained pipeline", exists=True)],
    packages: Annotated[Path, typer.Argument(help="Folder of the run; its assembled/ is made")],
) -> None:
    """Assemble the pipeline that is packaged: the trained components as they are, then those of the config."""
    with staged(packages / "assembled") as folder:
        path = folder / "assemble.cfg"
        extend(Config().from_disk(config, interpolate=False), model).to_disk(path)
        # Private parts of other libraries
        #
        # spaCy documents the command alone, not the function of it, which takes further options from a context of
        # typer. There are none here. This was checked with spaCy 3.8.18 and typer 0.29.2. Where the function is gone,
        # the import above fails and names it; with other parameters, this step fails before anything is replaced.
        command = typer.Typer()
        command.command()(assemble_cli)
        assemble_cli(typer.Context(typer.main.get_command(command)), path, folder, None, False)
        path.unlink()
        shutil.copy(model / "provenance.json", folder)
    msg.good(f"The assembled pipeline is {packages / 'assembled'}")


def extend(config: Config, model: Path) -> Config:
    """A config with the components of a trained pipeline before its own, which may have no tagger
    or chunker.

    config (Config): With components of its own, and with the names of those that the assembled pipeline has disabled.
    model (Path): The trained pipeline.
    RETURNS (Config): The config, with language, batch size and tokenizer of the trained pipeline, and with the
        sections that say how it was trained.
    """
    trained = Config().from_disk(model / "config.cfg", interpolate=False)
    own = config["components"]
    names = [name for name in trained["nlp"]["pipeline"] if name not in own]
    config.update({section: trained[section] for section in ("paths", "system", "corpora", "training")})
    disabled = [name for name in config["nlp"]["disabled"] if name in names]
    config["nlp"] = trained["nlp"] | {"pipeline": [*names, *own], "disabled": disabled}
    config["components"] = {name: {"source": str(model)} for name in names} | own
    return config


if __name__ == "__main__":
    main(assemble)
