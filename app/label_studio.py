"""What Label Studio asks of a pipeline that suggests while people annotate: its ML backend interface."""

from __future__ import annotations

from typing import Any, NamedTuple
from xml.etree import ElementTree

from pydantic import BaseModel, Field

from app.annotate import EntityOut

MOST_TASKS = 1000  # in a request


class Version(BaseModel):
    """The pipeline that suggests."""

    model_version: str


class Health(Version):
    """That the service lives."""

    status: str = "UP"


class Task(BaseModel):
    """A task, with its columns by name."""

    data: dict[str, Any]


class Tasks(BaseModel):
    """Tasks to suggest for, and the configuration of their labels in XML."""

    tasks: list[Task] = Field(max_length=MOST_TASKS)
    label_config: str


class Region(BaseModel):
    """A suggested span: `value` has its offsets, its text and its label."""

    id: str
    from_name: str
    to_name: str
    type: str = "labels"
    score: float | None
    value: dict[str, Any]


class Prediction(Version):
    """What is suggested for a task, and the score of the least sure span, by which Label Studio sorts."""

    score: float | None
    result: list[Region]


class Predictions(Version):
    """What is suggested for each task, in the order of the request."""

    results: list[Prediction]


class Control(NamedTuple):
    """The part of a configuration by which spans of a text get a label.

    name (str): The name of the labels.
    target (str): The name of the text.
    column (str): The column of a task that has the text.
    labels (frozenset[str]): The labels.
    """

    name: str
    target: str
    column: str
    labels: frozenset[str]


def find_control(config: str) -> Control:
    """Find how a project labels its texts.

    config (str): The configuration, in XML.
    RETURNS (Control): The first `Labels` that belong to a `Text` whose value is a column of the tasks.
    RAISES (ValueError): If there are none, or if it is no XML.
    """
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise ValueError(f"label_config is no XML: {error}") from error
    texts = {text.get("name"): text.get("value", "") for text in root.iter("Text")}
    for labels in root.iter("Labels"):
        column = texts.get(labels.get("toName"), "")
        if column.startswith("$"):
            values = frozenset(label.get("value", "") for label in labels.iter("Label"))
            return Control(labels.get("name", ""), labels.get("toName", ""), column[1:], values)
    raise ValueError('label_config has no <Labels> for a <Text value="$...">: nothing else can be suggested.')


def read_texts(tasks: list[Task], control: Control) -> list[str]:
    """Read the texts of tasks.

    tasks (list[Task]): The tasks.
    control (Control): Where their text is.
    RETURNS (list[str]): The texts.
    RAISES (ValueError): If a task has none.
    """
    texts = []
    for number, task in enumerate(tasks):
        text = task.data.get(control.column)
        if not isinstance(text, str):
            raise ValueError(f"task {number} has no text by the name of {control.column}")
        text.encode()  # half a character, which JSON can hold, raises a ValueError
        texts.append(text)
    return texts


def predict(entities: list[EntityOut], control: Control, version: str) -> Prediction:
    """Write what a pipeline found in a text as a prediction. Label Studio cannot show labels that it does not know.

    entities (list[EntityOut]): The entities of the text. Those with labels that the project lacks are left out.
    control (Control): How the project labels its texts.
    version (str): The name and version of the pipeline.
    RETURNS (Prediction): The prediction.
    """
    regions = [
        Region(
            id=str(number),
            from_name=control.name,
            to_name=control.target,
            score=entity.score,
            value={"start": entity.start, "end": entity.end, "text": entity.text, "labels": [entity.label]},
        )
        for number, entity in enumerate(entities)
        if entity.label in control.labels
    ]
    scores = [region.score for region in regions if region.score is not None]
    return Prediction(model_version=version, score=min(scores, default=None), result=regions)
