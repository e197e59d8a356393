"""Every number in the documents is the one in the JSONs."""

from __future__ import annotations

import json

import pytest

from benchmarks import peers, report, scaling
from benchmarks.report import growth, markdown, plots


@pytest.mark.parametrize("name", report.TABLES)
def test_a_documents_table_is_what_its_json_says(name: str) -> None:
    path, make = report.TABLES[name]
    assert f"<!-- {name} -->\n{make()}\n<!-- /{name} -->" in path.read_text()


def test_a_peak_below_the_one_before_is_no_memory():
    assert [growth.mebibytes(x) for x in (None, -0.3 * 2**20, 2**21)] == ["", "0 MiB", "2 MiB"]


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


def measured(tmp_path, module, name):
    """A report of tiny sizes under the names of the real ones."""
    module.main(["--quick", "--out", str(tmp_path / f"{name}.json")])
    run = json.loads((tmp_path / f"{name}.json").read_text())
    with pytest.raises(SystemExit, match="tiny"):
        report.TABLES[name][1]()
    return run | {"quick": False}


def test_the_tables_of_peers_and_sizes_show_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    assert growth.peers().count("not measured") == len(growth.PEER_TITLES)
    assert growth.scaling().count("not measured") == len(growth.group("scaling"))
    run = measured(tmp_path, peers, "peers")
    run["rows"] = {key.removeprefix("tiny-"): row for key, row in run["rows"].items()}
    run["rows"]["expand: op"]["variants"]["FastKron"] = {"seconds": None, "reason": "no | wheel"}
    (tmp_path / "peers.json").write_text(json.dumps(run))
    lines = growth.peers().splitlines()
    assert all(line.count("|") == len(growth.PEER_HEADER) + 1 for line in lines if line.startswith("|"))
    (bert,) = (line for line in lines if line.startswith("| BERT"))
    ours = run["rows"]["bert: apply"]["variants"]["ours"]
    assert f"| {1e3 * ours['seconds']['median']:.3g} (" in bert and f"| {ours['gb_per_second']:.1f} |" in bert
    assert any("FastKron | not measured: no / wheel" in line for line in lines)

    run = measured(tmp_path, scaling, "scaling")
    run["rows"] = {"10m-ligo": run["rows"]["bert"], "10m-net2net": run["rows"]["net2net"]}
    (tmp_path / "scaling.json").write_text(json.dumps(run))
    lines = growth.scaling().splitlines()
    assert all(line.count("|") == len(growth.SCALING_HEADER) + 1 for line in lines if line.startswith("|"))
    assert sum("not measured" in line for line in lines) == len(growth.group("scaling")) - 2
    too_large = scaling.too_large(growth.group("scaling")["7b-ligo"], 16e9)
    run["rows"]["7b-ligo"] = too_large
    (tmp_path / "scaling.json").write_text(json.dumps(run))
    (line,) = (line for line in growth.scaling().splitlines() if "7B" in line and "`ligo`" in line)
    assert (
        f"not measured: {too_large['reason']}" in line and line.count("|") == len(growth.SCALING_HEADER) + 1
    )
    assert len(plots.points()["ligo"]) == 1
    plot, path = plots.PLOTS[plots.IMAGES / "scaling.png"], tmp_path / "images" / "scaling.png"
    assert not plot.is_current(path)
    plot.save(path)
    assert plot.is_current(path) and path.stat().st_size < 60_000
    run["rows"]["10m-ligo"]["variants"]["ours"]["seconds"]["median"] *= 2
    (tmp_path / "scaling.json").write_text(json.dumps(run))
    assert not plot.is_current(path)


@pytest.mark.parametrize("path", plots.PLOTS)
def test_a_plot_is_what_its_json_says(path) -> None:
    assert plots.PLOTS[path].is_current(path)
