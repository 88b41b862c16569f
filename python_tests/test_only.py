"""``only``, of ``topk`` and ``target_ranks``: rankings over some items."""

from __future__ import annotations

import pytest
import torch
from op_inputs import CASES, TableCase

import alphafuse_ext as af
from alphafuse_ext.ops import native, reference

pytestmark = pytest.mark.usefixtures("one_thread", "on_device")

FORMS = ["shared", "padded", "offsets"]


def some_ids(form: str, batch: int, num_items: int) -> torch.Tensor | tuple:
    """With duplicates, fillers and padding ids, in no order."""
    if form == "shared":
        return torch.randint(-1, num_items + 1, (num_items // 2,))
    if form == "padded":
        return torch.randint(-1, num_items + 1, (batch, num_items // 2))
    counts = torch.randint(0, num_items // 2, (batch,))
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return offsets, torch.randint(num_items, (int(counts.sum()),))


def small_integers(*shape: int) -> torch.Tensor:
    """Products of these are exact in float32, and ties abound."""
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize("exclude", [None, "padded", "offsets"])
@pytest.mark.parametrize("form", FORMS)
def test_definition(form: str, exclude: str | None, threads: int) -> None:
    semantic, embeddings = small_integers(300, 3), small_integers(300, 2)
    semantic[7] = torch.nan
    queries, targets = small_integers(150, 5), torch.randint(301, (150,))
    only = some_ids(form, 150, 300)
    left_out = None if exclude is None else some_ids(exclude, 150, 300)
    tables = {"semantic_rows": semantic, "id_embeddings": embeddings}
    options = {"exclude": left_out, "only": only}
    for k in (1, 10, 300):
        found = af.topk(queries, k, **tables, **options)
        expected = reference.topk(queries, k, **tables, **options)
        assert torch.equal(found.indices, expected[1])
        assert torch.equal(found.values.nan_to_num(99.0), expected[0].nan_to_num(99.0))
    ranks = af.target_ranks(queries, targets, **tables, **options)
    assert torch.equal(ranks, reference.target_ranks(queries, targets, **tables, **options))
    assert (ranks == -1).any()
    assert (ranks > 0).any()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_of_the_whole_catalog(case: TableCase, similarity: str, isa: str) -> None:
    """Bit for bit: all items, in any form, are ranked as without ``only``; of lists on a GPU their
    values are near."""
    semantic, embeddings = case.tables()
    queries = torch.randn(9, case.dim)
    options = {"fusion": case.fusion, "similarity": similarity}
    n = case.num_embeddings
    whole = af.topk(queries, n, semantic, embeddings, **options)
    targets = torch.randint(n, (9,))
    ranks = af.target_ranks(queries, targets, semantic, embeddings, **options)
    for only in (torch.randperm(n), torch.arange(n).expand(9, n)):
        found = af.topk(queries, n, semantic, embeddings, **options, only=only)
        if only.dim() == 2 and not native.runs_on_cpu(queries):
            torch.testing.assert_close(found.values, whole.values, rtol=1e-5, atol=1e-4)
            continue
        assert torch.equal(found.indices, whole.indices)
        assert torch.equal(found.values, whole.values)
        of_some = af.target_ranks(queries, targets, semantic, embeddings, **options, only=only)
        assert torch.equal(of_some, ranks)


def test_a_single_query() -> None:
    semantic, embeddings = TableCase().tables()
    query, only = torch.randn(19), torch.tensor([5, 3, 11, 2])
    found = af.topk(query, 3, semantic, embeddings, only=only)
    scores = af.score_all(query[None], semantic, embeddings)[0, only]
    assert torch.equal(found.values, scores.sort(descending=True).values[:3])
    table = af.ItemTable(semantic, embeddings)
    assert torch.equal(table.topk(query, 3, only=only, first_pass="auto").indices, found.indices)
    rank = table.target_ranks(query, found.indices[2], only=only)
    assert rank.shape == ()
    assert rank == 2
    assert table.target_ranks(query, torch.tensor(4), only=only) == -1


def test_coordinates() -> None:
    """Ranked by embeddings, also where stored rows are mapped to them."""
    torch.manual_seed(3)
    rows = torch.randn(60, 8) * torch.linspace(3, 1, 8)
    space = af.SemanticSpace.from_embeddings(rows)
    for options in ({"coordinates": "original"}, {"fusion": "add", "space_split": "learned"}):
        table = af.ItemTable.from_space(space, rows, 8, 4, init="normal", **options)
        query = torch.randn(2, table.embedding_dim)
        only = torch.tensor([3, 9, 27])
        found = table.topk(query, 3, only=only)
        scores = query @ table.weight[only].T
        assert torch.equal(found.indices, only[scores.argsort(descending=True)])


@pytest.mark.parametrize(
    ("only", "fault"),
    [
        (torch.tensor([-1, 30]), ("only: got no item", ValueError)),
        (torch.tensor([31]), ("only", IndexError)),
        (torch.tensor([1.0]), ("only: got torch.float32", TypeError)),
        (torch.zeros(3, 2, dtype=torch.int64), ("only: got shape", ValueError)),
        (torch.zeros(2, 2, 2, dtype=torch.int64), ("only: got shape", ValueError)),
        ("items", ("only: got str", TypeError)),
        ((torch.tensor([0, 1]), torch.tensor([1])), ("only offsets: got shape", ValueError)),
        ((torch.tensor([0, 2, 1]), torch.tensor([1])), ("only: got offsets", ValueError)),
        ((torch.tensor([0, 1, 1]), torch.tensor([1.0])), ("only ids: got", TypeError)),
    ],
)
def test_refusals(only: object, fault: tuple[str, type[Exception]]) -> None:
    semantic, embeddings = TableCase(num_embeddings=30).tables()
    queries, targets = torch.randn(2, 19), torch.tensor([1, 2])
    message, kind = fault
    if kind is IndexError and torch.get_default_device().type == "cuda":
        pytest.skip("a GPU does not make the host wait for its checks of ids")
    with pytest.raises(kind, match=message):
        af.topk(queries, 3, semantic, embeddings, only=only)
    with pytest.raises(kind, match=message):
        af.target_ranks(queries, targets, semantic, embeddings, only=only)


def test_no_first_pass() -> None:
    semantic, embeddings = TableCase(num_embeddings=30).tables()
    if not native.runs_on_cpu(semantic):
        pytest.skip("no first pass there")
    with pytest.raises(ValueError, match="first_pass: got a first pass together with only"):
        af.topk(torch.randn(2, 19), 3, semantic, embeddings, first_pass="int8",
                only=torch.tensor([3]))  # fmt: skip


@pytest.mark.parametrize("only", [None, "shared", "padded", "offsets"])
@pytest.mark.parametrize("offsets", [[0, 1, 2], [1, 1, 1], [0, 2, 1], [0, 1, 1 << 40], [0, -1, 1]])
def test_offsets_of_exclude_are_checked_beside_it(offsets: list[int], only: str | None) -> None:
    """Whatever ``only`` is; and before memory is taken for as many ids as they promise."""
    semantic, embeddings = TableCase(num_embeddings=30).tables()
    queries, targets = torch.randn(2, 19), torch.tensor([1, 2])
    if torch.get_default_device().type == "cuda":
        pytest.skip("a GPU does not make the host wait for its checks")
    options = {
        "exclude": (torch.tensor(offsets), torch.tensor([4])),
        "only": None if only is None else some_ids(only, 2, 30),
    }
    with pytest.raises(ValueError, match="exclude: got offsets"):
        af.topk(queries, 3, semantic, embeddings, **options)
    with pytest.raises(ValueError, match="exclude: got offsets"):
        af.target_ranks(queries, targets, semantic, embeddings, **options)
