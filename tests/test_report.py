"""Every number in the documents is the one in the JSONs."""

from __future__ import annotations

import pytest

from benchmarks import report


@pytest.mark.parametrize("name", report.TABLES)
def test_a_documents_table_is_what_its_json_says(name: str) -> None:
    path, make = report.TABLES[name]
    assert f"<!-- {name} -->\n{make()}\n<!-- /{name} -->" in path.read_text()


def test_a_number_that_was_changed_is_noticed(tmp_path, monkeypatch) -> None:
    path, make = report.TABLES["cpu"]
    copy = tmp_path / "README.md"
    copy.write_text(path.read_text().replace(make(), make().replace("0.", "0.1", 1)))
    monkeypatch.setattr(report, "TABLES", {"cpu": (copy, make)})
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    with pytest.raises(SystemExit, match="cpu"):
        report.main()
    monkeypatch.setattr("sys.argv", ["report"])
    report.main()
    assert copy.read_text() == path.read_text()
