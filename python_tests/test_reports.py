"""Pages of data sets and runs: whole, self-contained, and as a browser shows them."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import Items, read_interactions
from alphafuse_ext.data.summary import as_dates, summarize
from alphafuse_ext.reports.data import write_data_report
from alphafuse_ext.reports.page import Section, Table, write_page
from alphafuse_ext.reports.run import median_users, write_run_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: chromium is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    generator = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", 1_400_000_000 + 86_400 * step)
        for user in range(12)
        for step, item in enumerate(generator.permutation(20)[:8])
    ]
    clicks = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    titles = [f"<b>Title</b> & {number}" for number in range(20)]
    items = pd.DataFrame({"item_id": [f"i{number}" for number in range(20)], "title": titles})
    embeddings = generator.normal(size=(20, 8)).astype(np.float32)
    folder = tmp_path_factory.mktemp("reports") / "run"
    small = {"dim": 4, "null_dim": 2, "epochs": 2}
    return af.fit(clicks, items, embeddings, folder, log=lambda _: None, **small)


def test_a_run_on_a_page(run, tmp_path):
    """Metrics, settings, titles; escaped, and nothing fetched from elsewhere."""
    page = write_run_report(run, tmp_path / "run.html").read_text()
    for title in ("Metrics", "Training", "Recommendations", "Nearest items", "Data", "Settings"):
        assert f"<h2>{title}</h2>" in page
    test = run.run.results()["test_by_seen_items"]["excluded"]["ndcg@10"]
    assert f'<td class="number">{test:.4f}</td>' in page
    assert "popularity, seen items ranked" in page
    assert "&lt;b&gt;Title&lt;/b&gt; &amp; 3" in page
    assert "<b>Title" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("data:image/png;base64,") == 2  # curves, spectrum
    again = write_run_report(run).read_text()
    assert again == page  # nothing in it depends on when, or where to


def test_recommendations_on_the_page_are_the_recommenders(run, tmp_path):
    page = write_run_report(run, tmp_path / "run.html").read_text()
    shown = re.findall(r"<h3>user (\d+) of those shown</h3>.*?<ol>(.*?)</ol>", page, re.DOTALL)
    users = run.interactions.users[median_users(run, 6)].tolist()
    assert [number for number, _ in shown] == [str(number) for number in range(1, 7)]
    for user, (_, listed) in zip(users, shown, strict=True):
        found = re.findall(r"<li>(i\d+) ", listed)
        assert found == run.recommend([user], k=5)["item"].tolist()
        assert not re.search(rf"\b{user}\b", page)  # the page tells no one's id


def test_report_command(run, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["report", str(run.run.path), "--output", str(target)]) == 0
    assert target.is_file()
    assert main(["report", str(run.run.path), "--output", str(target / "x.html")]) == 2
    assert "output" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2


@needs_browser
@pytest.mark.parametrize("what", ["run", "data"])
def test_a_browser_shows_it(run, what, tmp_path):
    """The page as a browser has parsed it: every section, every picture loaded."""
    path = tmp_path / f"{what}.html"
    if what == "run":
        write_run_report(run, path)
    else:
        facts = summarize(run.interactions, run.items)
        write_data_report(path, "data", run.interactions, run.items, facts)
    probe = (
        "<script>document.title = [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        " + ' ' + [...document.querySelectorAll('svg')].every(s => s.getBBox().width > 0)</script>"
    )
    path.write_text(path.read_text().replace("</body>", f"{probe}</body>"))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'b'}")
    command = [BROWSER, *flags, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>true true</title>" in seen
    sections = len(re.findall(r"<section ", seen))
    assert sections == len(re.findall(r'<a href="#s\d+"', seen)) >= 2


def test_sections_without_parts_are_left_out(tmp_path):
    table = Table(("a", "b"), [("x", 1234), ("y", 0.00012), ("z", None)])
    write_page(tmp_path / "p.html", "t", ["l"], [Section("one", [table]), Section("two", [])])
    page = (tmp_path / "p.html").read_text()
    assert "one" in page
    assert "two" not in page
    assert '<td class="number">1,234</td>' in page
    assert '<td class="number">0.00012</td>' in page


def test_summary_counts(tmp_path):
    """Against counts by hand."""
    frame = pd.DataFrame(
        [("a", 1, 5), ("a", 1, 5), ("a", 2, 7), ("a", 1, 9), ("b", 3, 1)],
        columns=["user_id", "item_id", "timestamp"],
    )
    items = Items(np.arange(1, 6), ["one", "", "three", "three", ""], ["o", "", "t", "t", ""])
    facts = summarize(read_interactions(frame, items), items)
    assert facts["users"], facts["items"] == (2, 5)
    assert facts["interactions"] == 5
    assert facts["density"] == 3 / 10
    assert facts["repeats"] == 2
    assert facts["immediate_repeats"] == 1
    assert facts["equal_times"] == 1
    assert facts["items_without_interactions"] == 2
    assert [*facts["history_length"].values()] == [1, 2.5, 2.5, 3.7, 4]
    assert facts["share_of_top_1_percent"] == 3 / 5
    assert (facts["first_time"], facts["last_time"]) == (1, 9)  # these only count
    assert (facts["texts"], facts["median_text_length"]) == (3, 5.0)
    assert facts["titles_given_twice"] == 1


@pytest.mark.parametrize("scale", [1, 10**3, 10**6, 10**9])
def test_dates_are_recognized_by_their_size(scale):
    times = np.array([1_400_000_000, 1_500_000_000]) * scale
    assert as_dates(times).astype(str).tolist() == ["2014-05-13T16:53:20", "2017-07-14T02:40:00"]
    assert as_dates(np.array([0, 203])) is None


def test_describe_command(tmp_path, capsys):
    clicks = tmp_path / "c.csv"
    clicks.write_text("user;item;time\na;x;2020-01-01\na;y;2020-01-02\nb;x;2020-03-01\n")
    arguments = ["describe", "--interactions", str(clicks), "--delimiter", ";"]
    assert main([*arguments, "--output", str(tmp_path / "d.html")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"first time +2020-01-01T00:00:00", printed)
    assert "Interactions over time." in (tmp_path / "d.html").read_text()
    assert main(["describe"]) == 2
    assert "--interactions" in capsys.readouterr().err
