"""Records: what is written is read back, what is wrong is named."""

import json

import pytest

from codeclade.data.records import (
    CodesRecord,
    EvaluationRecord,
    Provenance,
    SourceFile,
    TrainingRecord,
)

TRAINING = {
    "stage": "generator",
    "data": "photos",
    "images": 3,
    "classes": 2,
    "steps": 5,
    "seconds": 9.5,
    "machine": "1 x x86_64 (cpu)",
    "recipe": {"steps": 5},
    "logged": {"loss": 1.5},
}
EVALUATION = {
    "metric": "KID",
    "value": 0.5,
    "unit": " %",
    "dataset": "d",
    "split": "validation",
    "protocol": "p",
}


def test_what_is_written_is_read(tmp_path):
    training = TrainingRecord(**TRAINING)
    path = tmp_path / TrainingRecord.FILE
    path.write_text(json.dumps(training.to_json()))
    assert TrainingRecord.read(path) == training
    assert training.to_json() == TRAINING and list(training.to_json()) == list(TRAINING)
    evaluation = EvaluationRecord(**EVALUATION)
    assert list(evaluation.to_json()) == list(EVALUATION)
    assert EvaluationRecord.from_json(evaluation.to_json(), "e.json") == evaluation


def test_provenance_holds_files_and_leaves_out_what_is_not_known():
    files = [SourceFile(name="vq.pt", bytes=3)]
    record = Provenance(method="IAR", statement="s", datasets=[], files=files)
    content = record.to_json()
    assert content == {
        "method": "IAR",
        "statement": "s",
        "datasets": [],
        "files": [{"name": "vq.pt", "bytes": 3}],
    }
    assert Provenance.from_json(content, "p.json") == record
    older = content | {"license": None, "license_name": "", "note": "of another version"}
    assert Provenance.from_json(older, "p.json") == record


@pytest.mark.parametrize(
    ("kind", "content", "change", "words"),
    [
        (TrainingRecord, TRAINING, {"images": "3"}, "images must be a whole number, got '3'"),
        (TrainingRecord, TRAINING, {"images": True}, "images must be a whole number, got True"),
        (TrainingRecord, TRAINING, {"images": 3.5}, "images must be a whole number, got 3.5"),
        (TrainingRecord, TRAINING, {"seconds": float("inf")}, "seconds must be a number, got inf"),
        (TrainingRecord, TRAINING, {"stage": ""}, "stage must be text, got ''"),
        (TrainingRecord, TRAINING, {"recipe": []}, "recipe must be an object"),
        (TrainingRecord, TRAINING, {"logged": {"loss": "x"}}, "loss must be a number, got 'x'"),
        (EvaluationRecord, EVALUATION, {"value": None}, "value must be a number, got None"),
        (EvaluationRecord, EVALUATION, {"unit": 3}, "unit must be text, got 3"),
        (EvaluationRecord, EVALUATION, {"metric": "a" * 9999}, None),
        (EvaluationRecord, EVALUATION, {"value": "b" * 9999}, "value must be a number, got 'bbb"),
        (Provenance, {}, {"files": [3]}, "files must hold an object, not int"),
        (Provenance, {}, {"files": [{"name": "x"}]}, "bytes must be a whole number"),
        (Provenance, {}, {"datasets": "a/b"}, "datasets must be a list"),
        (CodesRecord, {}, {"images": 3}, "views must be a whole number, got None"),
    ],
)
def test_wrong_fields_are_named(kind, content, change, words):
    if words is None:
        assert kind.from_json(content | change, "x.json")
        return
    with pytest.raises(ValueError, match=rf"x\.json.*{words}") as caught:
        kind.from_json(content | change, "x.json")
    assert len(str(caught.value)) < 300
