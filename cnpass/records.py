"""The JSON records that cnpass writes, as pydantic models; their JSON Schemas are generated from them.

``python -m cnpass.records`` rewrites the schema files in ``cnpass/schemas``. A record changes its
``schema`` number only when a reader of the older form could misunderstand it; new fields do not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Domain = Literal["analog", "digital"]
Metric = Literal["top1", "agreement", "ser"]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[tuple[float, float], Field(description="low and high end")]


_HASHES = "SHA-256 of the model, the data and the output, and of its external data, if it has any"


class Frozen(BaseModel):
    """A part of a record: immutable, and closed to fields it does not declare."""

    model_config = ConfigDict(
        frozen=True,
        defer_build=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,
    )


class Record(Frozen):
    """A whole JSON document, with the version of its schema."""

    name: ClassVar[str]
    schema_version: Literal[1] = Field(
        default=1, alias="schema", description="version of this record's schema"
    )

    def to_json(self) -> str:
        """The record as indented JSON text, without a final newline."""
        return self.model_dump_json(by_alias=True, indent=2)


class ModelInfo(Frozen):
    """The model that a record speaks of."""

    path: str | None = Field(description="path as given; null for a model that was never a file")
    sha256: str = Field(description="hash of the file and its external data")
    opset: int = Field(description="version of the default operator domain")


class DataInfo(Frozen):
    """The data that a record speaks of."""

    name: str = Field(description="where the data came from")
    sha256: str = Field(description="hash of the arrays, after preprocessing")
    notes: list[str] = Field(default=[], description="what was assumed or changed on the way")


class Point(Frozen):
    """Figures of one device model over many chips, in the record's metric."""

    device: str = Field(description="name of the device model")
    params: dict[str, float] = Field(description="parameters of the device model")
    seed: int = Field(description="seed of the chips")
    chips: int = Field(ge=2, description="number of chips")
    mean: float
    std: float = Field(description="sample standard deviation over chips (n - 1)")
    ci95: Interval = Field(description="95 % confidence interval of the mean (Student t)")
    min: float
    p05: float = Field(description="5th percentile over chips (linear interpolation)")


class NodeRecord(Frozen):
    """One node of the model and where it runs; what a digital node has not is null."""

    name: str
    op_type: str
    domain: Domain
    reason: str = Field(description="why the node runs there")
    weight: str | None = Field(default=None, description="name of the stored weight")
    stream: int | None = Field(default=None, description="random stream of that weight's devices")
    rows: Count | None = Field(default=None, description="crossbar rows (inputs per output) of one group")
    cols: Count | None = Field(default=None, description="crossbar columns (outputs) of one group")
    groups: Count | None = Field(default=None, description="independent matrices of that size")
    copies: float | None = Field(
        default=None, ge=1, description="devices per weight, on rows of their own; the mean over its rows"
    )
    tiles: Count | None = None
    params: Count = Field(description="constant values that the node itself reads")
    macs: Count | None = Field(default=None, description="per inference; null where shapes are not known")
    adc_conversions: Count | None = Field(
        default=None, description="per inference; null where shapes are not known"
    )
    compensates: str | None = Field(
        default=None, description="of compensation: name of the node whose output it corrects"
    )


class InspectTotals(Frozen):
    """Sums over the nodes."""

    analog: Count = Field(description="analog nodes")
    digital: Count = Field(description="digital nodes")
    params: Count
    macs: Count | None = Field(description="per inference; null where a shape is not known")
    analog_params: Count = Field(description="weights on crossbars, each stored one counted once")
    analog_macs: Count | None
    tile_rows: Count | None = Field(
        description="rows of a tile that the figures assume; null where nodes have several sizes"
    )
    tile_cols: Count | None = Field(
        description="columns of a tile that the figures assume; null where nodes have several sizes"
    )
    tiles: Count
    cells_used: Count = Field(description="cells that hold a weight or a copy of one")
    cells_free: Count
    cells: Count = Field(description="cells of all tiles")
    utilisation: float = Field(ge=0, le=1, description="cells_used / cells; 0 without tiles")
    adc_conversions: Count | None = Field(description="per inference")


class InspectRecord(Record):
    """What ``cnpass inspect`` found."""

    name: ClassVar[str] = "inspect"
    model: ModelInfo
    nodes: list[NodeRecord]
    totals: InspectTotals


class EvaluateRecord(Record):
    """What ``cnpass evaluate`` measured."""

    name: ClassVar[str] = "evaluate"
    model: ModelInfo
    data: DataInfo
    metric: Metric = Field(description="top1 and agreement: fractions; ser: signal-to-error ratio in dB")
    n: int = Field(ge=1, description="samples")
    clean: float = Field(description="the source model itself, with its mean gain, in ONNX Runtime")
    points: list[Point]
    notes: list[str] = Field(default=[], description="how the figures were obtained, where not the usual way")
    seconds: float = Field(ge=0)


class SplitSizes(Frozen):
    """Samples per split."""

    train: Count
    val: Count
    test: Count


class BeforeAfter(Frozen):
    """A figure of the model that came in and of the one that went out."""

    before: float
    after: float


class Overhead(Frozen):
    """Inserted digital nodes over the original model, as fractions."""

    params: float = Field(ge=0)
    macs: float | None = Field(
        description="null if a shape of inserted nodes is not known; an upper bound if another is not"
    )


class Placement(Frozen):
    """One compensated node."""

    node: str
    kind: str
    ratio: float = Field(ge=0, description="filters of the generator over output channels")


class Rung(Frozen):
    """One step of the ladder of corrections, measured on validation data and chips."""

    step: str
    scope: Literal["agnostic", "per-chip"]
    kept: bool
    point: Point


class Cells(Frozen):
    """What a model takes of crossbars, counted as by ``cnpass inspect``."""

    tiles: Count
    cells_used: Count = Field(description="cells that hold a weight or a copy of one")
    cells_free: Count
    adc_conversions: Count | None = Field(description="per inference; null where a shape is not known")


class Replication(Frozen):
    """Weights that several devices share, in tiles that the model has anyway."""

    copies: dict[str, float] = Field(description="devices per weight, the mean over its rows, by analog node")
    tile_rows: Count
    tile_cols: Count
    before: Cells = Field(description="with one device per weight")
    after: Cells


def retained(figure: float, clean: float, metric: Metric) -> float | None:
    """A figure over the clean one of the model that came in; 0 where that is 0.

    None for a signal-to-error ratio: of decibels no fraction means anything.
    """
    if metric == "ser":
        return None
    return figure / clean if clean else 0.0


def retention(before: float, after: float, clean: float, metric: Metric) -> BeforeAfter | None:
    """What of the clean figure was retained before and after; None where `retained` is."""
    was, now = (retained(figure, clean, metric) for figure in (before, after))
    return None if was is None or now is None else BeforeAfter(before=was, after=now)


class TrainedRecord(Record):
    """What the records of verbs that train have in common."""

    input: str = Field(description="path of the model that came in")
    output: str = Field(description="path of the model that went out")
    metric: Metric
    n: SplitSizes
    clean: float = Field(description="the model that came in, with its mean gain and no variation")
    after_clean: float = Field(description="the model that went out, on the ideal chip")
    before: Point
    after: Point
    epochs: Count | None = Field(
        default=None, description="epochs of all trainings together; null in records that did not count them"
    )
    replication: Replication | None = Field(
        default=None, description="copies of weights, with which all figures are; null if there are none"
    )
    recipe: dict[str, JsonValue]
    hashes: dict[str, str] = Field(description=_HASHES)
    seeds: dict[str, int]
    notes: list[str] = []
    seconds: float = Field(ge=0)


class TuningTrial(Frozen):
    """One short training of a study, with its figure on validation data and chips."""

    options: dict[str, JsonValue] = Field(description="options of training, as they stand in a recipe")
    epochs: Count = Field(description="epochs trained")
    point: Point


class Tuning(Frozen):
    """A study that chose options of training (``--tune``)."""

    epochs: Count = Field(description="epochs of every trial, at most")
    chosen: Count = Field(description="number of the trial whose options were used; 0 has the recipe's own")
    trials: list[TuningTrial]


class OptimizeRecord(TrainedRecord):
    """What ``cnpass optimize`` did and what it brought, on test data and fresh chips."""

    name: ClassVar[str] = "optimize"
    retention: BeforeAfter | None = Field(
        description="mean under variation over the clean figure that came in; null for ser"
    )
    overhead: Overhead
    placement: list[Placement]
    ladder: list[Rung]
    tuned: Tuning | None = Field(default=None, description="null if options were not chosen by a study")


class Check(Frozen):
    """One look at the validation chips during a training."""

    epoch: Count
    loss: float = Field(description="mean training loss of the epoch")
    score: float = Field(description="mean figure on the chips of the check")
    scale: float = Field(description="factor on the learning rate; below 1 after a divergence")


class RetrainRecord(TrainedRecord):
    """What ``cnpass retrain`` did and what it brought, on validation data and chips."""

    name: ClassVar[str] = "retrain"
    kept: bool = Field(description="whether what was trained is better; else the output is what came in")
    history: list[Check]
    tuned: Tuning | None = Field(default=None, description="null if options were not chosen by a study")


class Trial(Frozen):
    """One placement that the search measured."""

    placement: list[Placement]
    value: float = Field(description="mean figure on the search's validation chips, with shared weights")
    chips: int = Field(
        ge=1, description="chips measured; fewer than of others where it was surely worse than the best one"
    )
    overhead: Overhead


class SearchRecord(TrainedRecord):
    """What ``cnpass search`` found and what it brings, on validation data and chips."""

    name: ClassVar[str] = "search"
    kept: bool = Field(description="whether the compensation helps; else the output is what came in")
    candidates: list[str] = Field(description="nodes that may be compensated")
    excluded: dict[str, str] = Field(description="the other analog nodes, with the reason")
    suffix: dict[str, float] = Field(
        description="by node, the figure with variation in it and all analog nodes that follow"
    )
    trials: list[Trial]
    front: list[Trial] = Field(
        description="the trials, all chips measured, that none beats at the same or a lower overhead; "
        "of parameters and MACs the larger one counts; the cheapest first"
    )
    placement: list[Placement]
    overhead: Overhead


class Corrected(Frozen):
    """One corrected node: squared error of its output over the variance of what it should be."""

    node: str
    rank: Count = Field(description="rank of the correction; 0 for a factor and offset per channel")
    error_before: float
    error_after: float = Field(description="on the samples of the fit")


class CalibrateRecord(Record):
    """What ``cnpass calibrate`` did to one chip's model, on test data."""

    name: ClassVar[str] = "calibrate"
    input: str = Field(description="path of the model that came in")
    output: str = Field(description="path of the chip's model")
    metric: Metric
    n: SplitSizes
    device: str = Field(description="name of the device model")
    params: dict[str, float] = Field(description="parameters of the device model")
    chip: Count
    clean: float = Field(description="the model that came in, with its mean gain and no variation")
    before: float = Field(description="the model that came in, on the chip")
    after: float = Field(description="the chip's model, on the chip")
    retention: BeforeAfter | None = Field(description="figures on the chip over the clean one; null for ser")
    kept: bool = Field(description="whether the correction helps on validation samples; else there is none")
    overhead: Overhead = Field(description="of all compensation in the chip's model")
    added: Overhead = Field(description="what of that the correction is")
    nodes: list[Corrected]
    recipe: dict[str, JsonValue]
    hashes: dict[str, str] = Field(description=_HASHES)
    seeds: dict[str, int]
    notes: list[str] = []
    seconds: float = Field(ge=0)


RECORDS: tuple[type[Record], ...] = (
    InspectRecord,
    EvaluateRecord,
    OptimizeRecord,
    RetrainRecord,
    SearchRecord,
    CalibrateRecord,
)
SCHEMAS = Path(__file__).parent / "schemas"


def schema_text(record: type[Record]) -> str:
    """The JSON Schema of a record type, as the text of its file in ``cnpass/schemas``."""
    schema = record.model_json_schema(by_alias=True, mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"cnpass {record.name} record",
    }
    return json.dumps(head | {k: v for k, v in schema.items() if k not in head}, indent=2) + "\n"


if __name__ == "__main__":
    for kind in RECORDS:
        (SCHEMAS / f"{kind.name}.json").write_text(schema_text(kind), encoding="utf-8")
