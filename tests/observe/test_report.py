"""report.html: self-contained, escaped, honest about what is missing; refusals in one line."""

from __future__ import annotations

import base64
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loopmoe_train.cli import report as cli
from loopmoe_train.errors import Refused
from loopmoe_train.observe import report
from loopmoe_train.observe.report import write_report
from loopmoe_train.observe.rundata import load_runs
from tests.observe.synthetic import make_run

HOSTILE = '</pre><script>alert("x")</script> & <img src=http://evil.example/x>'

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="
)


class Tags(HTMLParser):
    """Collects the tags and what they load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a second each, and most tests look at other things."""

    def draw(*args: Any) -> None:
        next(arg for arg in args if isinstance(arg, Path)).write_bytes(PIXEL)

    for plot in ("plot_loss", "plot_routing", "plot_gates"):
        monkeypatch.setattr(report, plot, draw)


def full_run(folder: Path, iterations: int = 2, **shape: int) -> Path:
    make_run(folder, steps=30, iterations=iterations, probes=2, **shape)
    (folder / "summary.json").write_text(
        json.dumps(
            {"val_bits_per_byte": 1.9, "peak_memory_gib": 1.25, "parameters": 2_345_678,
             "active_parameters": 987_654, "gzip9_bits_per_byte": 2.31, "wall_s": 187.0,
             "first_step_s": 1.5, "status": "done"}
        )
    )  # fmt: skip
    (folder / "run.yaml").write_text(
        f"name: {folder.name}\nseed: 1234\ndata: {{source: [python-stdlib]}}\n"
        f"model: {{loop: {{iterations: {iterations}}}, moe: {{top_k: 2}}}}\n"
    )
    (folder / "sample.txt").write_text(f"def f(): {HOSTILE}")
    return folder


def check_self_contained(page: str, pictures: int) -> None:
    tags = Tags(page)
    assert "script" not in tags.tags and "link" not in tags.tags
    assert len(tags.loads) == pictures
    assert all(load.startswith("data:image/png;base64,iVBOR") for load in tags.loads)
    assert not re.search(r"@import|url\(", page)


def build_report(folders: list[Path], out: Path | None = None) -> Path:
    return write_report(load_runs(folders), out)


def test_report_of_one_run(tmp_path: Path) -> None:
    run = full_run(tmp_path / "quick")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = build_report([run])
    page = path.read_text()
    assert path == run / "report.html"
    check_self_contained(page, pictures=3)
    assert "&lt;script&gt;alert" in page and "<script" not in page
    for text in ("2,345,678", "987,654", "1.25 GiB", "2.3100", "3:07", "loop.iterations", "done"):
        assert text in page, text
    for name in ("loss.png", "routing.png", "gates.png"):
        assert (run / name).stat().st_size > 4000


def test_what_is_missing_is_said_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>bare", steps=3, probes=0, validations=0)
    page = build_report([run]).read_text()
    check_self_contained(page, pictures=3)
    for text in (
        "no validation yet", "No routing was recorded", "No loop gates were recorded",
        "There is no sample.txt", "There is no run.yaml", "no summary.json",
    ):  # fmt: skip
        assert text in page, text
    assert "<b>" not in page and "&lt;b&gt;bare" in page


def test_comparison_of_two_runs(tmp_path: Path, quick_pictures: None) -> None:
    looped = full_run(tmp_path / "runs" / "loop", iterations=4)
    vanilla = full_run(tmp_path / "runs" / "vanilla", iterations=1)
    own = build_report([looped])
    before = own.read_text()
    path = build_report([looped, vanilla, looped])
    page = path.read_text()
    assert path == tmp_path / "runs" / "report-loop-vanilla" / "report.html"
    assert own.read_text() == before
    check_self_contained(page, pictures=1 + 2 * 3)
    row = r"model\.loop\.iterations</th><td>4</td><td>1</td>"
    assert re.search(row, page) and "moe.top_k" not in page
    assert (path.parent / "loss.png").exists()


def test_comparison_names(tmp_path: Path, quick_pictures: None) -> None:
    runs = [make_run(tmp_path / p / "same", steps=2, probes=0) for p in "ab"]
    assert build_report(runs).parent.name == "report-a-same-b-same"
    long = [make_run(tmp_path / ("x" * 40 + str(n)), steps=2, probes=0) for n in range(2)]
    assert re.fullmatch(r"report-x{30}-and-1-more-[0-9a-f]{6}", build_report(long).parent.name)


def test_out_is_respected_but_no_run_loses_its_report(tmp_path: Path, quick_pictures: None) -> None:
    a, b = (make_run(tmp_path / n, steps=2, probes=0) for n in "ab")
    assert build_report([a], tmp_path / "new" / "out") == tmp_path / "new" / "out" / "report.html"
    for runs, out in (([a, b], a), ([a], b)):
        with pytest.raises(Refused, match="own report would be lost"):
            build_report(runs, out)


def _broken(folder: Path, name: str) -> Path:
    run = make_run(folder / name, steps=3, probes=1)
    if name == "missing":
        return folder / "nowhere"
    if name == "no metrics":
        (run / "metrics.jsonl").unlink()
    elif name == "empty":
        (run / "metrics.jsonl").write_text("")
    else:
        text = {"metrics.jsonl": '{"step": 1\n{"step": 2}\n', "routing.jsonl": '{"step": 1}\n'}
        (run / name).write_text(text.get(name, "{a: [\n"))
    return run


@pytest.mark.parametrize(
    "name",
    ["missing", "no metrics", "empty"]
    + ["metrics.jsonl", "routing.jsonl", "summary.json", "run.yaml"],
)
def test_refusals_are_one_line_with_a_fix(tmp_path: Path, name: str) -> None:
    run = _broken(tmp_path, name)
    with pytest.raises(Refused) as refusal:
        build_report([run])
    line = str(refusal.value)
    assert "\n" not in line and " -> " in line and str(run) in line
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("blocked", ["gates.png.part", "report.html.part"])
def test_what_cannot_be_written_is_refused(tmp_path: Path, blocked: str) -> None:
    run = make_run(tmp_path / "r", steps=2, probes=0, validations=0)
    (run / blocked).mkdir()  # holds for root too, unlike permissions
    with pytest.raises(Refused, match="cannot write .* writable|cannot write .* --out"):
        build_report([run])


def test_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quick_pictures: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        full_run(tmp_path / "runs" / name)
    assert cli.run(["runs/one", "runs/two"]) == 0
    out = capsys.readouterr().out
    assert "report: runs/report-one-two/report.html" in out
    assert "2,345,678" in out and "one" in out and "two" in out
    for argv in ([], ["runs/three"], ["--wrong", "runs/one"]):
        with pytest.raises(Refused) as refusal:
            cli.run(argv)
        assert "\n" not in str(refusal.value)
