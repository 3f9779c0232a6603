"""Files of prompts: plain text, tables divided by tabs, COCO's captions."""

import json

import pytest

from codeclade.data.prompts import read_prompts


def test_the_kinds_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n\n  a cat, asleep \n", encoding="utf-8")
    found = read_prompts(tmp_path / "a.txt")
    assert (found.name, found.texts) == ("a.txt", ("a dog", "a cat, asleep"))
    # Parti's table has four columns; LlamaGen's list of COCO captions is one, named .csv.
    rows = "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tx\n"
    rows += '"say ""hi"", now"\tA\tB\t\n'
    (tmp_path / "b.tsv").write_text(rows)
    assert read_prompts(tmp_path / "b.tsv").texts == ("bond", 'say "hi", now')
    (tmp_path / "c.csv").write_text("Prompt\nA dog, and a cat.\n")
    assert read_prompts(tmp_path / "c.csv").texts == ("A dog, and a cat.",)
    # COCO: five captions an image, in no order.
    rows = [
        {"image_id": 7, "id": 30, "caption": "second\n of seven"},
        {"image_id": 9, "id": 12, "caption": "first of nine"},
        {"image_id": 7, "id": 11, "caption": "first of\nseven"},
    ]
    (tmp_path / "d.json").write_text(json.dumps({"annotations": rows, "images": []}))
    found = read_prompts(tmp_path / "d.json")
    assert found.texts == ("first of seven", "first of nine")
    assert len(found.fingerprint) == 16
    assert found.fingerprint != read_prompts(tmp_path / "a.txt").fingerprint


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff\xfe", "is no text in UTF-8"),
        ("a.md", b"x", "must end in .txt, .tsv, .csv, .json"),
        ("a.tsv", b"id,Prompt\n1,x\n", "has no column Prompt divided by tabs; it has id,Prompt"),
        ("a.json", b"{", "is no valid JSON"),
        ("a.json", b"[]", "must hold COCO captions"),
        ("a.json", b'{"annotations": [{"caption": "x"}]}', "must hold COCO captions"),
    ],
)
def test_what_holds_no_prompts_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_prompts(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        read_prompts(tmp_path / "none.txt")
