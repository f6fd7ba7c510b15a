"""Pipelines as text, their errors, and what runs around the passes."""

from __future__ import annotations

import io
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from pydantic import Field
from pydantic.dataclasses import dataclass

from cnpass.document import Document
from cnpass.errors import UsageError
from cnpass.passes import Pass, PassResult, Pipeline, get_pass, pass_names
from cnpass.passes.base import PASS_CONFIG, PassError, PassPostconditionError, PassPreconditionError
from cnpass.passes.pipeline import Printing, Timing, Verifying


@dataclass(frozen=True, config=PASS_CONFIG)
class Sample(Pass):
    """A pass with options of every type."""

    name: ClassVar[str] = "sample"

    whole_number: int = Field(default=1, ge=0, le=10, description="a number")
    number: float = Field(default=0.5, description="another")
    flag: bool = Field(default=False, description="a flag")
    text: str = Field(default="", description="a text")
    texts: tuple[str, ...] = Field(default=(), description="texts")

    def apply(self, document: Document) -> PassResult:
        document.metadata["sample"] = str(self.whole_number)
        return PassResult(modified=True, notes=("one note",))


@dataclass(frozen=True, config=PASS_CONFIG)
class Liar(Pass):
    """A pass whose claim is wrong."""

    name: ClassVar[str] = "liar"

    changes: bool = True

    def apply(self, document: Document) -> PassResult:
        if self.changes:
            document.metadata["lie"] = "1"
        return PassResult(modified=not self.changes)


@dataclass(frozen=True, config=PASS_CONFIG)
class Strict(Pass):
    """A pass that finds its conditions broken."""

    name: ClassVar[str] = "strict"

    before: bool = True

    def requires(self, document: Document) -> None:
        if self.before:
            raise PassPreconditionError(self.name, f"model of opset {document.opset} is not good enough")

    def ensures(self, document: Document) -> None:
        raise PassPostconditionError(self.name, f"model of opset {document.opset} did not get better")

    def apply(self, document: Document) -> PassResult:
        document.metadata["strict"] = "1"
        return PassResult(modified=True)


@pytest.fixture(autouse=True)
def sample_pass(monkeypatch):
    known = {"sample": Sample, "liar": Liar, "strict": Strict}
    monkeypatch.setattr("cnpass.passes.pipeline.get_pass", lambda name: known.get(name) or get_pass(name))


@pytest.fixture
def document(build) -> Document:
    return Document.from_proto(
        build([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"w": np.ones((4, 2), np.float32)})
    )


def test_reads_values_of_every_type():
    text = 'sample{whole-number=3,number=1e-3,flag=true,text="a, {b}=\\"c\\"",texts=[x,"y z",7.5]}, sample'
    first, second = Pipeline.parse(text).passes
    assert first == Sample(3, 1e-3, True, 'a, {b}="c"', ("x", "y z", "7.5"))
    assert second == Sample()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.integers(0, 10),
    st.floats(allow_nan=False),
    st.booleans(),
    texts,
    st.lists(texts, max_size=3).map(tuple),
)
def test_what_is_printed_reads_back(whole_number, number, flag, text, several):
    known = {"sample": Sample}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnpass.passes.pipeline.get_pass", known.__getitem__)
        pipeline = Pipeline((Sample(whole_number, number, flag, text, several), Sample()))
        assert Pipeline.parse(str(pipeline)) == pipeline


def test_prints_only_what_is_not_default():
    assert str(Sample()) == "sample"
    assert str(Sample(flag=True, text="a b")) == 'sample{flag=true,text="a b"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends where the name of a pass is expected"),
        ("sample,", "ends where the name of a pass is expected"),
        ("sample{", "ends where the name of an option"),
        ("sample{}", "'}' stands where the name of an option"),
        ("sample{flag}", "'}' stands where = is expected"),
        ("sample{flag=}", "'}' stands where a value"),
        ("sample{flag=true", "ends where"),
        ("sample sample", "'sample' stands where , is expected"),
        ("sample{texts=[a b]}", "'b' stands where"),
        ("sample{texts=[a}", "'}' stands where"),
        ('sample{text="open}', "cannot read"),
        ('sample{text="\\q"}', "pipeline"),
        ("sample{flag=true,flag=true}", "option 'flag' is given twice"),
        ("nothing", "pass 'nothing' is unknown; known are fold-batch-norm"),
        ("sample{colour=1}", "has no option 'colour'; it has: whole-number, number"),
        ("sample{whole-number=11}", "option 'whole-number': input should be less than or equal to 10"),
        ("sample{whole-number=x}", "option 'whole-number'"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(UsageError) as error:
        Pipeline.parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@given(st.text(alphabet='sample{}[],="truefold-batch-norm1.5 \\', max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        pipeline = Pipeline.parse(text)
    except UsageError:
        return
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_notes_carry_the_name_of_their_pass(document):
    result = Pipeline.parse("sample,sample{whole-number=2}").run(document)
    assert result == PassResult(modified=True, notes=("sample: one note", "sample: one note"))
    assert document.metadata["sample"] == "2"


def test_errors_name_the_pass_and_those_before(document):
    with pytest.raises(
        PassPreconditionError, match=r"^strict: model .* good enough \(after sample, sample\)$"
    ) as e:
        Pipeline.parse("sample,sample,strict").run(document)
    assert e.value.exit_code == 3
    with pytest.raises(PassPostconditionError, match="did not get better") as broken:
        Pipeline.parse("strict{before=false}").run(document)
    assert broken.value.exit_code == 70


@pytest.mark.parametrize(("changes", "message"), [("true", "says it did not"), ("false", "and did not")])
def test_a_wrong_claim_is_found(document, changes, message):
    pipeline = Pipeline.parse(f"liar{{changes={changes}}}")
    with pytest.raises(PassError, match=message):
        pipeline.run(document, [Verifying()])


def test_timing_and_printing(document):
    timing, stream = Timing(), io.StringIO()
    Pipeline.parse("sample,strip-portable").run(document, [timing, Printing(stream)])
    assert len(timing.seconds) == 2
    assert all(seconds >= 0 for seconds in timing.seconds)
    assert stream.getvalue().startswith("// after sample\nopset ai.onnx 18\nmetadata sample = 1\n")
    assert "strip-portable" not in stream.getvalue()


def test_strip_portable(document):
    Pipeline.parse("map-crossbar").run(document)
    assert document.functions
    stripped = Pipeline.parse("strip-portable")
    assert stripped.run(document, [Verifying()]).modified
    assert not document.functions
    assert not stripped.run(document, [Verifying()]).modified
    direct = Document.from_proto(document.proto)
    Pipeline.parse("map-crossbar{portable=never}").run(direct)
    assert direct.to_proto() == document.to_proto()


@pytest.mark.parametrize("name", pass_names())
def test_every_pass_describes_itself(name):
    found = get_pass(name).describe()
    assert found.name == name
    assert found.summary.endswith(".")
    for option in found.options:
        assert option.help
        assert option.type
        assert option.name == option.name.lower().replace("_", "-")
    again = Pipeline.parse(str(get_pass(name)()))
    assert again.passes == (get_pass(name)(),)


def test_describes_types_and_bounds():
    options = {option.name: option for option in Sample.describe().options}
    whole = options["whole-number"]
    assert (whole.type, whole.default, whole.minimum, whole.maximum) == ("int", 1, 0, 10)
    mapping = {option.name: option for option in get_pass("map-crossbar").describe().options}
    assert mapping["portable"].choices == ("auto", "always", "never")
    assert mapping["device"].default == "lognormal"
    assert (mapping["sigma"].minimum, mapping["sigma"].default) == (0.0, 0.5)
