"""Recipes: the options of every verb, with defaults, ranges and help, declared here once.

A recipe is read from and written to TOML with the names of the flags (``max-overhead = 0.05``). What a flag
says wins over the recipe file, which wins over the default.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cnpass.errors import UsageError
from cnpass.options import LARGEST_TILE, Assignments, Duration, Names, Numbers
from cnpass.training.schedule import LEVELS, RATE

Idle = Iterator[tuple[str, tuple[str, ...]]]
Layout = Literal["nchw", "nhwc"]
Sampler = Literal["tpe", "nsga2", "reinforce", "random"]
DEFAULT_KINDS = ("gain", "residual", "probe", "bypass")
"""Kinds of compensation that a search chooses from unless told."""


_AS_MAPPED = "(default: as mapped nodes have it, else 256)"


class Recipe(BaseModel):
    """Options of one verb."""

    model_config = ConfigDict(
        frozen=True,
        defer_build=True,
        extra="forbid",
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )
    extendable: ClassVar[frozenset[str]] = frozenset()
    """Options that may change between two runs in one folder: they add work, or say how it is done."""
    from_model: ClassVar[frozenset[str]] = frozenset()
    """Options whose default is that of a model without one of its own."""
    verb: ClassVar[str]

    @classmethod
    def build(cls, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Self:
        """Merge a recipe file and the flags that were given.

        Args:
            file: TOML file, or None.
            flags: values by field name; None stands for a flag that was not given.

        Raises:
            UsageError: an option is unknown, or its value out of range; names the option and where it stands.
        """
        values = {} if file is None else cls._read(file)
        given = {cls.flag(name): value for name, value in (flags or {}).items() if value is not None}
        try:
            return cls.model_validate(values | given)
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]) if first["loc"] else ""
            where = f"option --{option}" if option in given or file is None else f"{file}: {option}"
            reason = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                reason = f"'{cls.verb}' has no such option"
            raise UsageError(f"{where}: {reason}") from error

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false, which would pass for 1 and 0, where they are not asked for."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false say nothing here")
        return value

    @classmethod
    def flag(cls, name: str) -> str:
        """The name of a field on the command line (without dashes) and in TOML."""
        return name.replace("_", "-")

    def idle(self) -> list[str]:
        """Name the options that differ from their default but do nothing beside others, a line per cause."""
        lines, named = [], set[str]()
        for cause, names in self._idle():
            new = [name for name in names if name not in named]
            changed = [name for name in new if getattr(self, name) != type(self).model_fields[name].default]
            named.update(changed)
            off = {name: "no-" if getattr(self, name) is False else "" for name in changed}
            flags = ", ".join(f"--{off[name]}{self.flag(name)}" for name in changed)
            lines += (
                [f"{flags} {'do' if len(changed) > 1 else 'does'} nothing beside {cause}"] if flags else []
            )
        return lines

    def _idle(self) -> Idle:
        """Causes, and the options that do nothing then."""
        yield from ()

    @classmethod
    def _read(cls, file: Path) -> dict[str, Any]:
        try:
            read = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{file}: recipe cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: not a TOML recipe: {error}") from error
        values: dict[str, Any] = {}
        for name, value in read.items():
            if cls.flag(name) in values:
                raise UsageError(f"{file}: {cls.flag(name)} is given twice")
            values[cls.flag(name)] = value
        return values

    def to_toml(self) -> str:
        """The recipe as TOML; options that are not set, or left to the model, are left out."""
        untold = set(self.from_model - self.model_fields_set)
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=untold)
        return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items() if value != {})

    def identity(self) -> dict[str, Any]:
        """What decides the result: every option except those of ``extendable``."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(self.extendable))


def _toml(value: Any) -> str:
    """A JSON value in TOML; JSON's strings, numbers, lists and booleans are TOML as they are."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


class Preprocess(Recipe):
    """How stored samples become what the model expects: ``(x * scale - mean) / std`` per channel."""

    scale: Numbers = Field(
        default=(1.0,), description="factor, applied first; one, or one per channel (1/255 is allowed)"
    )
    mean: Numbers = Field(default=(0.0,), description="subtracted after scaling; one, or one per channel")
    std: Numbers = Field(default=(1.0,), description="divides at the end; one, or one per channel")
    layout: Layout | None = Field(
        default=None, description="image layout that the model expects; data are transposed to it"
    )

    @field_validator("std")
    @classmethod
    def _divides(cls, std: Numbers) -> Numbers:
        if 0 in std:
            raise ValueError("a standard deviation of 0 cannot divide")
        return std


class DataRecipe(Preprocess):
    """Where the data are, and how they become the model's input."""

    data: str | None = Field(
        default=None,
        min_length=1,
        description="NPZ file, folder of .npy or idx files, or package.module:function "
        "(default: MODEL's name with .npz, else random inputs)",
    )


class EvaluateRecipe(DataRecipe):
    """Options of ``evaluate``."""

    verb: ClassVar[str] = "evaluate"
    extendable: ClassVar[frozenset[str]] = frozenset({"chips", "workers", "until_ci"})

    device: str | None = Field(
        default=None, description="device model (default: the mapped model's own, else lognormal)"
    )
    sigma: Numbers | None = Field(
        default=None,
        description="its sigma; several give several points "
        "(default: the mapped model's own, else 0.1,0.3,0.5)",
    )
    param: Assignments = Field(
        default={}, description="another parameter of the device model, NAME=VALUE; repeatable"
    )
    chips: int = Field(default=250, ge=2, le=1_000_000, description="simulated chips per point")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="seed of the chips (default: the model's own, else 0)"
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many test samples")
    until_ci: FiniteFloat | None = Field(
        default=None,
        gt=0,
        description="stop a point early when its 95 % interval is at most this wide on either side",
    )
    workers: int | None = Field(default=None, ge=1, le=1024, description="processes (default: one per core)")


class TrainRecipe(DataRecipe):
    """What the verbs that train have in common."""

    extendable: ClassVar[frozenset[str]] = frozenset({"workers", "train_on"})
    from_model: ClassVar[frozenset[str]] = frozenset({"seed"})

    device: str | None = Field(
        default=None, description="device model (default: the mapped model's own, else lognormal)"
    )
    sigma: FiniteFloat | None = Field(
        default=None, ge=0, description="its sigma (default: the mapped model's own, else the device model's)"
    )
    param: Assignments = Field(
        default={}, description="another parameter of the device model, NAME=VALUE; repeatable"
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="seed of chips, training and search; unless told, a mapped model's own",
    )
    epochs: int | None = Field(
        default=None, ge=1, description="epochs of a long training (default: by data, model and need)"
    )
    budget: Duration | None = Field(
        default=None, gt=0, description="time for training and search, such as 90s, 5m or 1h"
    )
    distillation: FiniteFloat = Field(
        default=0.0, ge=0, le=1, description="weight of the clean model's outputs beside labels"
    )
    draws: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="chips that every training step draws, its samples being divided among them",
    )
    augment: Names = Field(
        default=("auto",),
        description="flip, shift, both, or none; auto: flip if the model keeps its figure on flipped images",
    )
    replicate: bool = Field(
        default=False,
        description="spread weights over the spare rows of their tiles, with no tile and no ADC conversion "
        "more; copies that a mapped model has stay",
    )
    tile_rows: int = Field(
        default=256, ge=1, le=LARGEST_TILE, description="rows of the tiles that copies lie in"
    )
    tile_cols: int = Field(
        default=256, ge=1, le=LARGEST_TILE, description="columns of the tiles that copies lie in"
    )
    train_on: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where training runs")
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="evaluation processes (default: one per core)"
    )

    def _idle(self) -> Idle:
        if self.epochs is not None:
            yield "--epochs", ("budget",)

    @field_validator("augment")
    @classmethod
    def _known(cls, names: Names) -> Names:
        if set(names) - {"flip", "shift"} and names not in {("auto",), ("none",)}:
            raise ValueError("give auto, none, flip, shift, or flip,shift")
        return names


class WeightsRecipe(TrainRecipe):
    """What the verbs that train analog weights have in common."""

    rate: FiniteFloat = Field(
        default=RATE, gt=0, le=1, description="peak learning rate (of Adam, in one cycle) of analog weights"
    )
    beta: FiniteFloat = Field(default=0.0, ge=0, description="weight of the Lipschitz penalty")
    k: FiniteFloat = Field(
        default=1.0, gt=0, description="Lipschitz bound per layer that the penalty aims at"
    )
    injection: bool = Field(default=True, description="draw a chip's variation in every training step")
    ramp: Numbers = Field(
        default=LEVELS,
        description="strengths of that variation, climbed in equal steps and the last one held, as fractions "
        "of the device model's",
    )
    censor: FiniteFloat | None = Field(
        default=None,
        ge=0,
        description="right-censor that variation's deviates at so many standard deviations",
    )
    clip_weights: FiniteFloat | None = Field(
        default=None,
        gt=1,
        description="clip analog weights after every step, at so many standard deviations of their tensor",
    )
    tune: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="short trainings that choose rate, beta, k, clipping, censoring, strength and "
        "distillation on validation chips; 0 for none",
    )

    def _idle(self) -> Idle:
        yield from super()._idle()
        if not self.injection:
            yield "--no-injection", ("ramp", "censor")
        if not self.beta and not self.tune:
            yield "--beta 0", ("k",)

    @field_validator("ramp")
    @classmethod
    def _climbs(cls, levels: Numbers) -> Numbers:
        if not levels or min(levels) < 0:
            raise ValueError("give strengths of 0 or more, such as 0.4,0.7,1")
        return levels


class SearchRecipe(TrainRecipe):
    """Options of ``search``."""

    verb: ClassVar[str] = "search"

    trials: int = Field(default=40, ge=1, le=10_000, description="placements that the search tries")
    sampler: Sampler = Field(
        default="tpe",
        description="what proposes them: tpe, nsga2 (figure against overhead), reinforce, or random",
    )
    max_overhead: FiniteFloat = Field(
        default=0.05,
        ge=0,
        description="digital parameters and MACs allowed on top, as a fraction of the model's",
    )
    kinds: Names = Field(
        default=DEFAULT_KINDS,
        description="kinds of compensation to use: bypass, gain, residual, probe, affine, linear, paper; "
        "unless told, optimize also fits linear ones in closed form",
    )

    @field_validator("kinds")
    @classmethod
    def _are_kinds(cls, kinds: Names) -> Names:
        known = ("bypass", "gain", "residual", "probe", "affine", "linear", "paper")
        if not kinds or set(kinds) - set(known) or len(set(kinds)) < len(kinds):
            raise ValueError(f"give some of {', '.join(known)}, each once")
        return kinds


class RetrainRecipe(WeightsRecipe):
    """Options of ``retrain``."""

    verb: ClassVar[str] = "retrain"


class OptimizeRecipe(SearchRecipe, WeightsRecipe):
    """Options of ``optimize``."""

    verb: ClassVar[str] = "optimize"
    extendable: ClassVar[frozenset[str]] = TrainRecipe.extendable | {"min_retention"}

    chips: int = Field(default=250, ge=2, le=1_000_000, description="fresh chips for the final figures")
    beta: FiniteFloat = Field(
        default=1e-3,
        ge=0,
        description="weight of the Lipschitz penalty on a rung that has one; 0 for no such",
    )
    retrain: bool = Field(default=True, description="train the analog weights under variation")
    compensation: bool = Field(default=True, description="add digital compensation")
    min_retention: FiniteFloat | None = Field(
        default=None, ge=0, le=1, description="exit with 1 if less of the clean figure is retained"
    )

    def _idle(self) -> Idle:
        if not self.compensation:
            yield "--no-compensation", ("trials", "sampler", "max_overhead", "kinds")
        if not self.retrain:
            weights = ("rate", "beta", "k", "injection", "ramp", "censor", "clip_weights")
            yield "--no-retrain", weights
            if not self.compensation:
                training = ("epochs", "budget", "distillation", "draws", "augment")
                yield "--no-retrain and --no-compensation", training
        yield from super()._idle()

    @field_validator("retrain")
    @classmethod
    def _tunes_something(cls, retrain: bool, info: ValidationInfo) -> bool:
        if not retrain and info.data.get("tune"):
            raise ValueError("--tune chooses how analog weights are trained; leave out one of the two")
        return retrain


class CalibrateRecipe(DataRecipe):
    """Options of ``calibrate``."""

    verb: ClassVar[str] = "calibrate"

    chip: int = Field(default=0, ge=0, lt=2**32 - 1, description="number of the chip")
    device: str | None = Field(
        default=None, description="device model (default: the mapped model's own, else lognormal)"
    )
    sigma: FiniteFloat | None = Field(
        default=None, ge=0, description="its sigma (default: the mapped model's own, else the device model's)"
    )
    param: Assignments = Field(
        default={}, description="another parameter of the device model, NAME=VALUE; repeatable"
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="seed of the chips (default: the model's own, else 0)"
    )
    correction: Literal["batch-norm", "affine", "low-rank"] = Field(
        default="low-rank",
        description="statistics of BatchNormalization; or, behind each node, factor and offset per channel "
        "(affine), or a linear map of limited rank",
    )
    max_overhead: FiniteFloat = Field(
        default=0.05,
        ge=0,
        description="digital parameters and MACs that may be added, as a fraction of the model's",
    )
    samples: int = Field(default=1000, ge=1, description="training samples to measure the chip with")

    def _idle(self) -> Idle:
        if self.correction == "batch-norm":
            yield "--correction batch-norm", ("max_overhead",)


class InspectRecipe(Recipe):
    """Options of ``inspect``."""

    verb: ClassVar[str] = "inspect"

    tile_rows: int | None = Field(
        default=None, ge=1, le=LARGEST_TILE, description=f"rows of a crossbar tile {_AS_MAPPED}"
    )
    tile_cols: int | None = Field(
        default=None, ge=1, le=LARGEST_TILE, description=f"columns of a crossbar tile {_AS_MAPPED}"
    )


class RewriteRecipe(Recipe):
    """Options of ``rewrite``."""

    verb: ClassVar[str] = "rewrite"

    pipeline: str = Field(
        default="fold-batch-norm,map-crossbar",
        description="passes to run, such as fold-batch-norm,map-crossbar{sigma=0.3}",
        json_schema_extra={"short": "-p"},
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="seed of the chips, for passes that do not state theirs"
    )
