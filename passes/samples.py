"""Passes that look at samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass import data as datasets
from cnpass.data import Dataset, Split
from cnpass.document import Document
from cnpass.errors import UsageError
from cnpass.passes.base import PASS_CONFIG, Pass, PassError
from cnpass.recipe import DataRecipe


@dataclass(frozen=True, config=PASS_CONFIG)
class SamplesPass(Pass):
    """A pass with options that say what data to look at, and how they become the model's input."""

    data: str = Field(
        default="",
        description="NPZ file, folder of .npy or idx files, or package.module:function "
        "(default: MODEL's name with .npz, else random inputs)",
    )
    part: Literal["train", "val", "test"] = Field(
        default="train", description="samples to take: train, val or test"
    )
    samples: int = Field(default=128, ge=1, description="how many samples to run, from all over the part")
    scale: str = Field(default="1", description="as in `cnpass evaluate`: factor for the samples")
    mean: str = Field(default="0", description="as in `cnpass evaluate`: subtracted after scaling")
    std: str = Field(default="1", description="as in `cnpass evaluate`: divides at the end")
    layout: Literal["", "nchw", "nhwc"] = Field(default="", description="image layout that the model expects")

    def take(self, document: Document) -> tuple[Split, Dataset]:
        """Return the samples, and the data that they are of.

        Raises:
            PassError: There are none.
            UsageError: An option is out of range.
        """
        given = {"data": self.data, "layout": self.layout}
        options = {name: value for name, value in given.items() if value}
        options |= {"scale": self.scale, "mean": self.mean, "std": self.std}
        try:
            recipe = DataRecipe.build(None, options)
        except UsageError as error:  # which names the flag that a verb would have
            option, _, reason = str(error).removeprefix("option --").partition(": ")
            raise UsageError(f"pass {self.name!r}, option {option!r}: {reason}") from None
        dataset = datasets.prepare(document.proto, document.path, recipe, parts=(self.part,))
        split: Split = getattr(dataset, self.part).few(self.samples)
        if not len(split):
            raise PassError(self.name, f"{dataset.name} has no samples of part {self.part!r}")
        return split, dataset
