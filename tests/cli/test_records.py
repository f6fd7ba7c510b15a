"""The committed schema files are those of the record types."""

from __future__ import annotations

import jsonschema
import pytest

from cnpass.records import RECORDS, SCHEMAS, Record, schema_text


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_schema_file_is_current(record: type[Record]) -> None:
    assert (SCHEMAS / f"{record.name}.json").read_text(encoding="utf-8") == schema_text(record), (
        "run python -m cnpass.records"
    )


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_schema_is_a_valid_schema(record: type[Record]) -> None:
    jsonschema.Draft202012Validator.check_schema(record.model_json_schema())


def test_no_schema_file_without_a_record() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == {record.name for record in RECORDS}
