"""Pages of data sets and runs: whole, self-contained, and as a browser shows them."""

import contextlib
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import Interactions, Items, Sequences, read_interactions
from alphafuse_ext.data.summary import as_dates, summarize
from alphafuse_ext.reports import data as reports
from alphafuse_ext.reports.data import write_data_report
from alphafuse_ext.reports.page import Section, Table, write_page
from alphafuse_ext.reports.run import in_short, median_users, write_run_report
from alphafuse_ext.training import plots
from alphafuse_ext.training.plots import plot_curves, plot_gains

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


def results_of(ours, popularity, groups, **baselines):
    """Those that a sentence is made of."""
    by = {"hr@10": 0.25, "ndcg@10": ours}
    return {
        "test": by,
        "seen_items": "excluded",
        "examples": 1234,
        "popularity": {"ndcg@10": popularity},
        "baselines": {
            name: {"by_seen_items": {"excluded": {"ndcg@10": value}}}
            for name, value in baselines.items()
        },
        "test_groups": {"metrics_by_seen_items": {"excluded": groups}},
    }


@pytest.mark.parametrize(
    ("ours", "popularity", "said"),
    [
        (0.06, 0.02, "3.0 times as good as popularity"),
        (0.5, 0.02, "25 times as good as popularity"),
        (0.023, 0.02, "15% better than popularity"),
        (0.02, 0.02, "as good as popularity"),
        (0.01, 0.02, "worse than popularity"),
        (0.01, 0.0, "better than popularity"),
    ],
)
def test_a_run_in_short(ours, popularity, said):
    groups = {
        "head users": {"examples": 100, "ndcg@10": 0.04},
        "tail items": {"examples": 200, "ndcg@10": 0.01},
        "cold items": {"examples": 2, "ndcg@10": 0.0},
    }
    first, second = in_short(results_of(ours, popularity, groups, lists=0.03, other=0.02))
    assert said in first
    assert "For 25.0% of 1,234 test examples" in first
    assert first.endswith("the best other baseline, lists.")
    assert "best after the longest histories (NDCG@10 0.0400, 100 examples)" in second
    assert "worst at less popular items" in second  # of two examples nothing is said
    groups["tail items"]["ndcg@10"] = 0.039
    assert in_short(results_of(ours, popularity, groups))[1].startswith("It is about as good for")
    assert len(in_short(results_of(ours, popularity, {}))) == 1
    assert in_short({"epochs": 3}) == []


def test_what_a_page_shows_of_the_shop(run, tmp_path):
    page = write_run_report(run, tmp_path / "run.html").read_text()
    for line in in_short(run.run.results()):
        assert f'<p class="short">{line}</p>' in page
    # Each kind of lists in one grid.
    assert page.count('<div class="listings">') == 2
    assert page.count('<div class="listing">') == 12
    counts = run.interactions.item_counts()
    best = int(np.argmax(counts))
    share = f"{100 * counts[best] / counts.sum():.3g}%"
    row = rf"<td>i{best}  [^<]*</td><td class=\"number\">{counts[best]}</td><td>{share}</td>"
    assert re.search(row, page)
    rare = counts < 5
    assert f"{rare.sum()} items ({100 * rare.mean():.3g}%) with fewer than 5 interactions" in page
    # No row without a value.
    assert not re.search(r"<tr><td>[^<]*</td>(<td[^>]*></td>)+</tr>", page)
    assert "coverage@10" in page


def test_categories_and_prices():
    counts = np.array([6, 1, 0, 3])
    columns = pd.DataFrame(
        {
            "category": pd.Categorical(["hats", "shoes", None, "shoes"]),
            "Price EUR": [10.0, 20.0, np.nan, 40.0],
            "weight": [1.0, 2.0, 3.0, 4.0],
            "brand": pd.Categorical(["one"] * 4),  # of one value nothing is said
        }
    )
    prices, categories = reports._of_columns(counts, columns)
    assert prices.header[0] == "Price EUR"
    assert prices.rows[0][2:4] == (20.0, pytest.approx(70 / 3))
    assert prices.rows[1][2:4] == (10.0, pytest.approx((6 * 10 + 20 + 3 * 40) / 10))
    assert categories.rows == [("hats", 1, "60%"), ("shoes", 2, "40%"), ("(none)", 1, "0%")]
    many = pd.DataFrame({"genre": pd.Categorical([f"g{n:02}" for n in range(20)])})
    (table,) = reports._of_columns(np.arange(20), many)
    assert table.rows[0] == ("g19", 1, "10%")
    assert table.rows[-1] == ("12 others", 12, f"{100 * 66 / 190:.3g}%")
    assert reports._of_columns(counts, None) == []


def test_lengths_are_shown_by_whole_numbers():
    lengths = np.array([1, 2, 2, 5, 90])
    values = np.zeros(lengths.sum(), np.int64)
    clicks = Interactions(
        np.arange(5), np.arange(1), Sequences(np.concatenate([[0], np.cumsum(lengths)]), values)
    )
    axes = drawn_lengths(clicks)
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
    assert {place: h for place, h in heights.items() if h} == {1: 1, 2: 2, 5: 1, 40: 1}
    assert "the last bar: and more" in axes.get_xlabel()


def drawn_lengths(clicks):
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "drawn", lambda figure, caption: figures.append(figure))
        reports._pictures(clicks)
    return figures[0].axes[0]


def test_no_legend_lies_over_a_curve(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    monkeypatch.setattr(plots, "atomic_path", lambda path: contextlib.nullcontext(path))
    epochs = [{"epoch": n, "loss": 3 / n, "validation": {"ndcg@20": 0.1 * n}} for n in range(1, 6)]
    plot_curves(epochs, "ndcg@20", tmp_path / "curves.png")
    plot_gains(np.array([2.0, 1.0, 0.5]), np.ones(3), np.zeros(3), tmp_path / "gains.png")
    for figure in figures:
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        for axes in figure.axes:
            assert axes.get_legend() is None
            assert not legend.overlaps(axes.get_window_extent())


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
    assert re.search(r"first time +2020-01-01T00:00:00 UTC", printed)
    assert re.search(r"density +75%", printed)
    page = (tmp_path / "d.html").read_text()
    assert "Interactions over time (UTC)." in page
    assert re.search(r"first time</td><td>2020-01-01T00:00:00 UTC<", page)
    assert main(["describe"]) == 2
    assert "--interactions" in capsys.readouterr().err
