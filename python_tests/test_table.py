"""The item table against explicit definitions in float64, and as a module among modules."""

import copy
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import alphafuse_ext as af
from alphafuse_ext.files import UnreadableFileError, save_tensors
from alphafuse_ext.items.space import SemanticSpace
from alphafuse_ext.items.table import ItemTable
from alphafuse_ext.runs.assembly import build_table

N, WIDTH, B = 57, 12, 5
FUSIONS = ("concat", "add")
# Semantic rows as they are projected, in place of the defaults.
PLAIN = {"standardize": False, "semantic_rms": None}
SIMILARITIES = ("dot", "cosine")


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print(f"seed: {seed}")  # shown where a test fails
    torch.manual_seed(seed % 2**63)
    return np.random.default_rng(seed)


def embeddings(rng, num_items=N):
    """Correlated rows, the fourth item without text."""
    directions = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    spread = np.geomspace(1.0, 0.1, WIDTH)[:, None] * directions
    rows = rng.standard_normal((num_items, WIDTH)) @ spread + rng.standard_normal(WIDTH)
    rows[3] = 0.0
    return rows


def fuse(semantic_rows, id_embeddings, fusion):
    """The definition, with gradients, in the dtype of its input."""
    if semantic_rows is None:
        return id_embeddings
    if id_embeddings is None:
        return semantic_rows
    if fusion == "concat":
        return torch.cat([semantic_rows, id_embeddings], dim=1)
    row_dim = semantic_rows.shape[1] - id_embeddings.shape[1]
    return torch.cat([semantic_rows[:, :row_dim], semantic_rows[:, row_dim:] + id_embeddings], 1)


def score(queries, weight, similarity):
    if similarity == "cosine":
        queries = queries / queries.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        weight = weight / weight.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return queries @ weight.T


def ids_like_a_batch():
    return torch.tensor([[0, N - 1, 3, 3], [N, 17, N, 1]])


def assert_table_is(table, weight, id_embeddings, similarities=SIMILARITIES):
    """Values, gradients and ranks of every method against the fused table ``weight``.

    Args:
        table: the table.
        weight: float64 fused table, a differentiable function of ``id_embeddings``.
        id_embeddings: float64 leaf, or None where nothing is trained.
    """
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert table.num_embeddings == table.padding_idx == len(weight) == N
    assert table.embedding_dim == weight.shape[1]
    assert table.weight.shape == weight.shape
    torch.testing.assert_close(table.weight.double(), weight, **close)

    def gradients_agree(found, expected, leaves=()):
        torch.testing.assert_close(found.double(), expected, **close)
        upstream = torch.randn_like(expected)
        pairs = [*leaves]
        if id_embeddings is not None:
            pairs.append((table.id_embeddings, id_embeddings))
        if not pairs:
            return
        ours = torch.autograd.grad(found, [p[0] for p in pairs], upstream.to(found.dtype))
        theirs = torch.autograd.grad(expected, [p[1] for p in pairs], upstream, retain_graph=True)
        for left, right in zip(ours, theirs, strict=True):
            left = left.to_dense() if left.is_sparse else left
            # A sum over the catalog: its rounding is that of its largest entries.
            atol = 1e-5 * max(1.0, float(right.abs().max()))
            torch.testing.assert_close(left.double(), right, rtol=1e-4, atol=atol)

    if id_embeddings is None:
        torch.testing.assert_close(table.mean().double(), weight.mean(0), **close)
    else:
        gradients_agree(table.mean(), weight.mean(0))
    ids = ids_like_a_batch()
    padded = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])
    gradients_agree(table(ids), padded[ids]) if id_embeddings is not None else None
    torch.testing.assert_close(table(ids).double(), padded[ids], **close)
    assert (table(torch.tensor([N])) == 0).all()

    for similarity in similarities:
        queries = torch.randn(B, weight.shape[1], requires_grad=True)
        exact = queries.detach().double().requires_grad_()
        leaves = [(queries, exact)]
        scores = score(exact, weight, similarity)
        gradients_agree(table.score_all(queries, similarity), scores, leaves)

        candidates = torch.randint(N, (B, 9))
        gradients_agree(
            table.score_candidates(queries, candidates, similarity),
            scores.gather(1, candidates),
            leaves,
        )
        sequences = torch.randn(2, 4, weight.shape[1])
        torch.testing.assert_close(
            table.score_candidates(sequences, candidates[0], similarity).double(),
            score(sequences.double(), weight, similarity)[..., candidates[0]],
            **close,
        )

        excluded = torch.randint(-1, N, (B, 3))
        values, best = table.topk(queries.detach(), 7, similarity, exclude=excluded)
        left = scores.detach().clone()
        for row, out in zip(left, excluded, strict=True):
            row[out[out >= 0]] = -torch.inf
        expected_values, expected_best = left.topk(7)
        torch.testing.assert_close(values.double(), expected_values, **close)
        # Through the scores, as two that agree to float32 may come in either order.
        torch.testing.assert_close(left.gather(1, best), expected_values, **close)

        targets = expected_best[:, 4]
        ranks = table.target_ranks(queries.detach(), targets, similarity, exclude=excluded)
        worst = expected_values[:, 4:5] - 1e-5
        assert (ranks >= (left > worst + 2e-5).sum(dim=1)).all()
        assert (ranks < (left > worst).sum(dim=1)).all()

        targets = torch.tensor([0, 5, N, N - 1, 8])
        # Against all items it is the softmax over the catalog.
        gradients_agree(
            table.sampled_softmax(
                queries, targets, torch.arange(N), similarity, temperature=0.5, reduction="sum"
            ),
            nn.functional.cross_entropy(scores / 0.5, targets, ignore_index=N, reduction="sum"),
            leaves,
        )
        if similarity == "cosine" and table.coordinates == "original":
            continue  # has its own tests
        gradients_agree(
            table.cross_entropy(queries, targets, similarity, temperature=0.5, reduction="sum"),
            nn.functional.cross_entropy(scores / 0.5, targets, ignore_index=N, reduction="sum"),
            leaves,
        )


def exact_rows(space, rows, dim):
    """Semantic rows by their definition, float64."""
    coordinates = (space.scale * rows - space.mean) @ space.basis[:, :dim]
    coordinates[~rows.any(axis=1)] = 0.0
    return torch.tensor(coordinates)


# --- the two tables


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("given", ["both", "semantic_rows", "id_embeddings"])
def test_every_method_is_its_definition(rng, given, fusion, sparse):
    semantic_rows = torch.randn(N, 8) if given != "id_embeddings" else None
    id_embeddings = torch.randn(N, 3) if given != "semantic_rows" else None
    table = ItemTable(semantic_rows, id_embeddings, fusion, sparse)
    leaf = None if id_embeddings is None else id_embeddings.double().requires_grad_()
    weight = fuse(None if semantic_rows is None else semantic_rows.double(), leaf, fusion)
    assert_table_is(table, weight, leaf)
    assert table.null_dim == (0 if id_embeddings is None else 3)
    assert table.coordinates == "singular"


@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_gradients_hold_the_touched_rows_only(rng, sparse):
    table = ItemTable(torch.randn(N, 4), torch.randn(N, 2), sparse=sparse)
    table(torch.tensor([5, N, 2, 5])).sum().backward()
    gradient = table.id_embeddings.grad
    assert gradient.is_sparse == sparse
    if sparse:
        assert gradient.coalesce().indices().tolist() == [[2, 5]]
        gradient = gradient.to_dense()
    expected = torch.zeros(N, 2)
    expected[2], expected[5] = 1.0, 2.0
    assert torch.equal(gradient, expected)


def test_a_sparse_table_is_one_module_with_one_parameter(rng):
    """What says to DistributedDataParallel that its gradients are sparse is seen nowhere else."""
    model = torch.nn.Sequential(ItemTable(torch.randn(N, 4), torch.randn(N, 2), sparse=True))
    assert [name for name, _ in model.named_parameters()] == ["0.id_embeddings"]
    assert sorted(model.state_dict()) == ["0._extra_state", "0.id_embeddings", "0.semantic_rows"]
    assert not any(isinstance(module, torch.nn.Embedding) for module in model.modules())
    assert model.get_submodule("0") is model[0]
    model.load_state_dict(copy.deepcopy(model).state_dict())


def test_dense_gradients_of_a_sparse_table_are_warned_of(rng):
    """Once in each place; and not where there is no gradient, or none was asked to be sparse."""
    table = ItemTable(torch.randn(N, 4), torch.randn(N, 2), sparse=True)
    queries, targets = torch.randn(2, 6), torch.tensor([1, 2])
    for call in (
        lambda table: table.cross_entropy(queries, targets),
        lambda table: table.score_all(queries),
    ):
        with pytest.warns(UserWarning, match=r"sparse: got True; the gradient of .* is dense") as w:
            call(table)
        assert w[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(ItemTable(torch.randn(N, 4), torch.randn(N, 2)))
            with torch.no_grad():
                call(table)


def test_semantic_rows_are_never_trained(rng):
    rows, weight = torch.randn(N, 4, requires_grad=True), nn.Parameter(torch.randn(N, 2))
    table = ItemTable(rows, weight)
    assert [name for name, _ in table.named_parameters()] == ["id_embeddings"]
    assert table.id_embeddings is weight
    table.weight.sum().backward()
    assert rows.grad is None
    assert weight.grad is not None
    assert list(ItemTable(rows, None).parameters()) == []


def test_a_table_stands_in_for_an_embedding(rng):
    """A model that knows `nn.Embedding` only, trained for a step with either."""
    table = ItemTable.id_only(N, 6)
    embedding = nn.Embedding(N + 1, 6, padding_idx=N)
    with torch.no_grad():
        embedding.weight[:N] = table.weight

    def step(items):
        model = nn.Sequential(items, nn.Flatten(), nn.Linear(24, 1, bias=False))
        nn.init.ones_(model[2].weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(ids_like_a_batch()).square().sum().backward()
        optimizer.step()
        return items.weight.detach()[:N]

    torch.testing.assert_close(step(table), step(embedding))
    assert table.embedding_dim == embedding.embedding_dim
    assert table.padding_idx == embedding.padding_idx


@pytest.mark.parametrize("padding", [None, 0, 3, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_embedding_as_a_table(rng, padding, dtype):
    """Of an embedding with rows of another padding, too, which implementations often initialize."""
    embedding = nn.Embedding(N, 6, padding_idx=padding, sparse=True, dtype=dtype).eval()
    nn.init.normal_(embedding.weight)
    table = ItemTable.from_embedding(embedding)
    items = [row for row in range(N) if row != embedding.padding_idx]
    assert (table.num_embeddings, table.null_dim, table.sparse) == (len(items), 6, True)
    assert not table.training
    assert torch.equal(table(torch.arange(len(items))), embedding(torch.tensor(items)))
    assert not table(torch.tensor([table.padding_idx])).any()

    before = embedding.weight.detach().clone()
    table(torch.tensor([1, 2])).sum().backward()
    torch.optim.SGD(table.parameters(), lr=0.1).step()
    assert torch.equal(embedding.weight, before)
    assert embedding.weight.grad is None


def test_a_frozen_embedding_is_a_frozen_table(rng):
    table = ItemTable.from_embedding(nn.Embedding.from_pretrained(torch.ones(3, 2)))
    assert not table.id_embeddings.requires_grad
    assert table.training
    assert not table.sparse


@pytest.mark.parametrize(
    ("embedding", "error", "message"),
    [
        (torch.ones(3, 2), TypeError, "embedding: got Tensor; expected an nn.Embedding"),
        (nn.Embedding(3, 2).double(), TypeError, "embedding: got torch.float64"),
        (nn.Embedding(3, 2, max_norm=1.0), ValueError, r"embedding: got max_norm=1\.0"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), ValueError, "got scale_grad_by_freq=True"),
        (nn.Embedding(1, 2, padding_idx=0), ValueError, "expected one with at least one item"),
        (
            nn.Embedding.from_pretrained(torch.tensor([[0.0], [torch.nan]])),
            ValueError,
            "id_embeddings: got nan in row 1",
        ),
    ],
)
def test_embeddings_that_are_no_table(embedding, error, message):
    with pytest.raises(error, match=message):
        ItemTable.from_embedding(embedding)


# --- from a space


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("dim", "null_dim"), [(8, 3), (12, 11), (2, 1)])
@pytest.mark.parametrize("coordinates", ["singular", "original", "projected"])
def test_coordinates_are_their_definition(rng, fusion, dim, null_dim, coordinates):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows, scale=3.0)
    table = ItemTable.from_space(
        space,
        rows,
        dim=dim,
        null_dim=null_dim,
        fusion=fusion,
        coordinates=coordinates,
        init="normal",
        **PLAIN,
    )
    assert table.null_dim == null_dim
    assert table.coordinates == coordinates
    assert table.fusion == fusion

    basis = torch.tensor(space.basis)
    null_basis = basis[:, dim - null_dim : dim]
    semantic_rows = exact_rows(space, rows, dim if fusion == "add" else dim - null_dim)
    leaf = table.id_embeddings.detach().double().requires_grad_()
    if coordinates == "projected":
        assert leaf.shape == (N, WIDTH)
        weight = fuse(semantic_rows, leaf @ null_basis, fusion)
        assert_table_is(table, weight, leaf, ["dot"])
        return
    assert leaf.shape == (N, null_dim)
    weight = fuse(semantic_rows, leaf, fusion)
    if coordinates == "original":
        # Written out: the row space's part and the ID's part, each carried back by its directions.
        row_basis = basis[:, : semantic_rows.shape[1]]
        weight = semantic_rows @ row_basis.T + leaf @ null_basis.T
    assert_table_is(table, weight, leaf)


@pytest.mark.parametrize("split", ["soft", "learned"])
@pytest.mark.parametrize(("dim", "null_dim"), [(8, 3), (12, 1), (6, 6)])
@pytest.mark.parametrize("power", [0.0, 0.5, 3.0])
def test_a_split_with_gains_is_its_definition(rng, split, dim, null_dim, power):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows, scale=3.0)
    table = ItemTable.from_space(
        space,
        rows,
        dim=dim,
        null_dim=null_dim,
        fusion="add",
        init="normal",
        space_split=split,
        space_split_power=power,
        standardize=False,
        semantic_rms=0.2,
    )
    eigenvalues = space.eigenvalues[:dim]
    gains = np.minimum(1, (eigenvalues[dim - null_dim] / eigenvalues) ** (power / 2))
    np.testing.assert_allclose(table.gains.detach().numpy(), gains, rtol=1e-5)
    assert (table.coordinates, table.null_dim, table.embedding_dim) == (split, dim, dim)
    semantic_rows = exact_rows(space, rows, dim)
    semantic_rows *= 0.2 / semantic_rows[semantic_rows.any(1)].square().mean().sqrt()
    leaf = table.id_embeddings.detach().double().requires_grad_()
    gains = torch.tensor(gains)
    assert_table_is(table, semantic_rows + leaf * gains, leaf, ["dot"])
    semantic, own = table.parts()
    torch.testing.assert_close(semantic.double(), semantic_rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.double(), leaf.detach() * gains, rtol=1e-4, atol=1e-5)


def test_learned_gains_have_a_gradient(rng):
    table = tables(rng)["learned"]
    queries, targets = torch.randn(B, 8), torch.randint(N, (B,))
    log_gains = table.coordinates_map.detach().double().requires_grad_()
    semantic, own = (tensor.detach().double() for tensor in table._tables)
    weight = semantic + own * log_gains.exp()
    loss = table.cross_entropy(queries, targets) + table(targets).square().sum()
    wanted = nn.functional.cross_entropy(queries.double() @ weight.T, targets)
    wanted = wanted + weight[targets].square().sum()
    (found,) = torch.autograd.grad(loss, table.coordinates_map)
    torch.testing.assert_close(
        found.double(), torch.autograd.grad(wanted, log_gains)[0], rtol=1e-4, atol=1e-4
    )


def test_an_ignored_query_is_nothing_to_learned_gains(rng):
    table = tables(rng)["learned"]
    queries, targets = torch.randn(B, 8), torch.randint(N, (B,))
    targets[::2] = N
    grads = []
    for held in (0.0, torch.nan):
        queries[::2] = held
        loss = table.cross_entropy(queries, targets)
        grads.append(torch.autograd.grad(loss, table.coordinates_map)[0])
    assert grads[0].any()
    assert torch.equal(*grads)
    with pytest.raises(ValueError, match="targets: got shape"):
        table.cross_entropy(queries, targets[1:])


@pytest.mark.parametrize("split", ["hard", "learned"])
def test_another_ignored_target_and_weights(rng, split):
    """An ignored query may hold anything, also where all queries have a part in the gains."""
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    table = ItemTable.from_space(space, rows, dim=8, fusion="add", space_split=split)
    queries, targets = torch.randn(B, 8), torch.randint(N, (B,))
    targets[0], weight = N, torch.rand(N)
    results = []
    for held, ignored, given in ((0.0, N, {}), (torch.nan, -100, {"ignore_index": -100})):
        queries[0], targets[0] = held, ignored
        q = queries.clone().requires_grad_()
        table.zero_grad()
        loss = table.cross_entropy(q, targets, weight=weight, **given)
        loss.backward()
        grads = [parameter.grad.clone() for parameter in table.parameters()]
        results.append([loss.detach(), q.grad, *grads])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_directions_that_carry_nothing_have_gain_one(rng):
    rows = embeddings(rng)
    rows[:, 8:] = rows[:, :4]  # eight directions are all there is
    space = SemanticSpace.from_embeddings(rows)
    gains = space.gains(12, 1, 2.0)
    assert (gains[7:] == 1).all()
    np.testing.assert_allclose(gains[:7], space.eigenvalues[7] / space.eigenvalues[:7])
    assert (SemanticSpace.from_embeddings(np.ones((4, 3))).gains(3, 1, 1.0) == 1).all()


@pytest.mark.parametrize(("split", "rate"), [("soft", "gain"), ("hard", "one")])
def test_under_adam_a_gain_is_a_learning_rate(rng, split, rate):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    null_dim = 8 if split == "hard" else 1
    table = ItemTable.from_space(
        space,
        rows,
        dim=8,
        null_dim=null_dim,
        fusion="add",
        space_split=split,
        space_split_power=1.0,
    )
    before = table.weight.detach().clone()
    optimizer = torch.optim.Adam(table.parameters(), lr=1e-2)
    (table.weight * torch.randn(N, 8)).sum().backward()
    optimizer.step()
    moved = (table.weight.detach() - before).abs().mean(0)
    gains = torch.tensor(space.gains(8, 1, 1.0)).float() if rate == "gain" else torch.ones(8)
    torch.testing.assert_close(moved, 1e-2 * gains, rtol=1e-3, atol=1e-6)


def test_all_directions_trained(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    table = ItemTable.from_space(space, rows, dim=6, null_dim=6, init="normal", **PLAIN)
    leaf = table.id_embeddings.detach().double().requires_grad_()
    assert_table_is(table, exact_rows(space, rows, 6) + leaf, leaf)


def test_cosine_cross_entropy_in_original_coordinates(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    table = ItemTable.from_space(
        space, rows, dim=WIDTH, null_dim=4, coordinates="original", init="normal"
    )
    queries, targets = torch.randn(B, WIDTH), torch.randint(N, (B,))
    expected = score(queries.double(), table.weight.detach().double(), "cosine")
    torch.testing.assert_close(
        table.cross_entropy(queries, targets, "cosine", temperature=0.1).double(),
        nn.functional.cross_entropy(expected / 0.1, targets),
        rtol=1e-4,
        atol=1e-5,
    )
    truncated = ItemTable.from_space(space, rows, dim=8, null_dim=4, coordinates="original")
    with pytest.raises(NotImplementedError, match=r"similarity: .*original.*dim=8"):
        truncated.cross_entropy(queries, targets, "cosine")


@pytest.mark.parametrize("kind", ["projected", "soft", "learned"])
def test_cosine_where_stored_rows_differ_in_norm_is_refused(rng, kind):
    table = tables(rng)[kind]
    queries, ids = torch.randn(B, 8), torch.zeros(B, dtype=torch.int64)
    for call in (
        lambda: table.score_all(queries, "cosine"),
        lambda: table.score_candidates(queries, ids, "cosine"),
        lambda: table.cross_entropy(queries, ids, "cosine"),
        lambda: table.sampled_softmax(queries, ids, ids, "cosine"),
        lambda: table.topk(queries, 2, "cosine"),
        lambda: table.target_ranks(queries, ids, "cosine"),
    ):
        with pytest.raises(NotImplementedError, match="similarity: got 'cosine' with coord"):
            call()


@pytest.mark.parametrize("coordinates", ["original", "projected"])
def test_mapped_tables_keep_the_dtypes(rng, coordinates):
    rows = embeddings(rng)
    table = ItemTable.from_space(
        SemanticSpace.from_embeddings(rows),
        rows,
        dim=8,
        null_dim=4,
        coordinates=coordinates,
        init="normal",
    )
    queries = torch.randn(B, table.embedding_dim).bfloat16()
    weight = table.weight.detach().double()
    exact = queries.double() @ weight.T
    norms = queries.double().norm(dim=1, keepdim=True) * weight.norm(dim=1)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores = table.score_all(queries)
            assert table(torch.arange(3)).dtype == torch.float32
            assert scores.dtype == torch.bfloat16
            assert table.topk(queries, 3)[0].dtype == torch.float32
            # float32 products, rounded once to bfloat16; under autocast of rounded factors
            bound = exact.abs() + 2 * norms if autocast else exact.abs()
            assert ((scores.double() - exact).abs() <= 2**-8 * bound + 1e-5).all()


@pytest.mark.parametrize("num_items", [2, 40, N])
@pytest.mark.parametrize("width", [20, 160])
@pytest.mark.parametrize("split", ["hard", "soft"])
def test_defaults_are_those_of_training(num_items, width, split):
    rows = np.random.default_rng(num_items).normal(size=(num_items, width))
    config = af.Config(space_split=split).resolve(width, num_items)
    torch.manual_seed(3)
    trained, space = build_table(config, num_items, rows)
    torch.manual_seed(3)
    dim = {} if width >= 128 else {"dim": width}
    table = ItemTable.from_space(space, rows, space_split=split, **dim)
    assert table.fusion == trained.fusion
    assert table.null_dim == trained.null_dim
    assert torch.equal(table.weight, trained.weight)
    for method in ("llm_init", "frozen"):
        config = af.Config(item_embedding=method.replace("_", "")).resolve(width, num_items)
        made = getattr(ItemTable, method)(space, rows, **dim)
        assert torch.equal(made.weight, build_table(config, num_items, rows)[0].weight)


def test_semantic_rows_are_the_projection(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    concat = ItemTable.from_space(
        *(space, rows),
        **{"dim": 8, "null_dim": 3, "fusion": "concat", "init": "zeros", "chunk_rows": 10},
        **{**PLAIN, "standardize": True},
    )
    assert torch.equal(concat.semantic_rows, space.transform(rows, 8, whiten=True)[:, :5])
    assert (concat.id_embeddings == 0).all()
    add = ItemTable.from_space(space, rows, dim=None, null_dim=3, **PLAIN)
    assert torch.equal(add.semantic_rows, space.transform(rows))
    threshold = float(space.eigenvalues[7])
    by_threshold = ItemTable.from_space(
        space, rows, dim=10, null_threshold=threshold, fusion="concat"
    )
    assert by_threshold.semantic_rows.shape == (N, 7)
    assert by_threshold.null_dim == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_semantic_rms_over_items_with_text(rng, dtype, fusion):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    arguments = {"dim": 8, "null_dim": 3, "fusion": fusion, "semantic_dtype": dtype}
    table = ItemTable.from_space(space, rows, semantic_rms=0.1, **arguments)
    assert table.semantic_rows.dtype == dtype
    with_text = table.semantic_rows.double()[rows.any(axis=1)]
    assert abs(with_text.square().mean().sqrt() - 0.1) < 1e-3
    assert (table.semantic_rows[3] == 0).all()
    unscaled = ItemTable.from_space(space, rows, semantic_rms=None, **arguments)
    unscaled = unscaled.semantic_rows.double()
    factor = 0.1 / unscaled[rows.any(axis=1)].square().mean().sqrt()
    torch.testing.assert_close(
        table.semantic_rows.double(), factor * unscaled, rtol=0.02, atol=1e-5
    )


def test_inits_are_reproducible_and_scaled(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)

    def make(**arguments):
        generator = torch.Generator().manual_seed(11)
        table = ItemTable.from_space(
            space, rows, dim=8, null_dim=3, init="normal", generator=generator, **arguments
        )
        return table.id_embeddings.detach()

    assert torch.equal(make(), make())
    assert torch.equal(make(init_scale=0.5), 0.5 * make())


def test_id_only(rng):
    table = ItemTable.id_only(N, 6, generator=torch.Generator().manual_seed(1), sparse=True)
    again = ItemTable.id_only(N, 6, generator=torch.Generator().manual_seed(1))
    assert table.semantic_rows is None
    assert torch.equal(table.id_embeddings, again.id_embeddings)
    assert (table.null_dim, table.embedding_dim, table.sparse) == (6, 6, True)


@pytest.mark.parametrize("standardize", [False, True])
def test_llm_init_and_frozen_start_at_the_same_rows(rng, standardize):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    trained = ItemTable.llm_init(space, rows, 8, standardize=standardize, semantic_rms=0.1)
    frozen = ItemTable.frozen(space, rows, 8, standardize=standardize, semantic_rms=0.1)
    assert trained.semantic_rows is None
    assert trained.null_dim == 8
    assert trained.id_embeddings.requires_grad
    assert frozen.id_embeddings is None
    assert frozen.null_dim == 0
    assert torch.equal(trained.weight, frozen.weight)
    projected = space.transform(rows, 8, standardize)
    with_text = projected[rows.any(axis=1)]
    factor = 0.1 / with_text.double().square().mean().sqrt()
    torch.testing.assert_close(frozen.weight.double(), projected.double() * factor)


# --- as a module


def tables(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    arguments = {"dim": 8, "null_dim": 3, "init": "normal"}
    return {
        "concat": ItemTable.from_space(space, rows, fusion="concat", **arguments),
        "add": ItemTable.from_space(space, rows, sparse=True, **arguments),
        "half": ItemTable.from_space(space, rows, semantic_dtype=torch.bfloat16, **arguments),
        "original": ItemTable.from_space(space, rows, coordinates="original", **arguments),
        "projected": ItemTable.from_space(space, rows, coordinates="projected", **arguments),
        "soft": ItemTable.from_space(space, rows, space_split="soft", **arguments),
        "learned": ItemTable.from_space(space, rows, space_split="learned", **arguments),
        "id_only": ItemTable.id_only(N, 4),
        "frozen": ItemTable.frozen(space, rows, 8),
    }


KINDS = ("concat", "add", "half", "original", "projected", "soft", "learned", "id_only", "frozen")


def assert_same_table(left, right):
    for name in ("semantic_rows", "id_embeddings", "coordinates_map"):
        first, second = getattr(left, name), getattr(right, name)
        assert (first is None) == (second is None)
        if first is not None:
            assert first.dtype == second.dtype
            assert torch.equal(first, second)
    for name in ("fusion", "sparse", "coordinates", "null_dim", "embedding_dim"):
        assert getattr(left, name) == getattr(right, name)
    assert torch.equal(left.weight, right.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_copies(rng, kind, tmp_path):
    table = tables(rng)[kind]
    copied = copy.deepcopy(table)
    assert_same_table(copied, table)
    assert_same_table(pickle.loads(pickle.dumps(table)), table)
    table.save(tmp_path / "run" / "table")
    assert sorted(os.listdir(tmp_path / "run")) == ["table.safetensors"]
    assert_same_table(ItemTable.load(tmp_path / "run" / "table"), table)
    rebuilt = ItemTable(
        table.semantic_rows,
        table.id_embeddings,
        table.fusion,
        table.sparse,
        table.coordinates,
        table.coordinates_map,
    )
    assert_same_table(rebuilt, table)
    if copied.id_embeddings is not None:
        with torch.no_grad():
            copied.id_embeddings += 1.0
        assert not torch.equal(copied.weight, table.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(rng, kind):
    table, other = tables(rng)[kind], tables(rng)[kind]
    assert not torch.equal(table.weight, other.weight)
    other.load_state_dict(table.state_dict())
    assert_same_table(other, table)


def test_a_state_with_nan_is_refused_and_nothing_is_loaded(rng):
    table = ItemTable(torch.randn(N, 4), torch.randn(N, 2))
    model = nn.ModuleDict({"table": table})
    before = table.weight.detach().clone()
    state = {**model.state_dict(), "table.id_embeddings": torch.zeros(N, 2)}
    state["table.id_embeddings"][4, 1] = torch.nan
    with pytest.raises(RuntimeError, match=r"table\.id_embeddings: nan in row 4, column 1"):
        model.load_state_dict(state)
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_modules_work(rng, kind, dtype):
    table = tables(rng)[kind].to(dtype)
    weight = table.weight.detach()
    assert weight.dtype == dtype
    queries = torch.randn(B, table.embedding_dim)
    close = {"rtol": 0.05, "atol": 0.05}
    scores = table.score_all(queries)
    torch.testing.assert_close(scores, queries @ weight.float().T, **close)
    assert scores.dtype == torch.float32
    targets = torch.randint(N, (B,))
    assert torch.isfinite(table.cross_entropy(queries, targets))
    if table.id_embeddings is not None:
        table(targets).float().sum().backward()
        assert table.id_embeddings.grad.dtype == dtype


@pytest.mark.parametrize("kind", ["concat", "original", "projected"])
def test_compiles_as_one_graph(rng, kind):
    table = tables(rng)[kind]
    queries, ids = torch.randn(B, table.embedding_dim), torch.randint(N + 1, (B,))

    def loss(queries, ids):
        scores = table.score_candidates(queries + table(ids), torch.arange(5))
        return scores.sum() + table.cross_entropy(queries, ids)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, ids), loss(queries, ids))


def test_repr_says_what_it_is(rng):
    text = repr(tables(rng)["add"])
    for part in (f"{N}, 8", "null_dim=3", "fusion='add'", "sparse=True", "'singular'"):
        assert part in text


# --- bad input


def nan_at(row, column, columns=4):
    table = torch.zeros(N, columns)
    table[row, column] = torch.nan
    return table


OK = torch.zeros(N, 4)
MAPPED = (OK, OK, "concat", False, "original")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, None), ValueError, "semantic_rows, id_embeddings"),
        ((OK, [[1.0]]), TypeError, "id_embeddings: got list"),
        ((np.zeros((N, 4)), None), TypeError, "semantic_rows: got ndarray"),
        ((OK.double(), OK), TypeError, "semantic_rows: got torch.float64"),
        ((OK, OK.long()), TypeError, "id_embeddings: got torch.int64"),
        ((OK[0], OK), ValueError, r"semantic_rows: got shape \(4,\)"),
        ((OK, OK[:, :0]), ValueError, r"id_embeddings: got shape \(57, 0\)"),
        ((OK[:0], None), ValueError, r"semantic_rows: got shape \(0, 4\)"),
        ((OK, OK[:-1]), ValueError, "id_embeddings: got 56"),
        ((OK, OK, "cover"), ValueError, "fusion: got 'cover'"),
        ((OK[:, :3], OK, "add"), ValueError, "id_embeddings: got 4 columns"),
        ((nan_at(7, 2), OK), ValueError, "semantic_rows: got nan in row 7, column 2"),
        ((OK, nan_at(0, 3)), ValueError, "id_embeddings: got nan in row 0, column 3"),
        ((OK, OK / 0 + 1 / torch.zeros(1)), ValueError, "id_embeddings: got nan"),
        ((OK.bfloat16(), OK.half() - torch.inf), ValueError, "id_embeddings: got -inf in row 0"),
        ((OK, OK.to("meta")), ValueError, "device"),
        ((OK, OK, "concat", False, "polar"), ValueError, "coordinates: got 'polar'"),
        ((*MAPPED, torch.eye(7)), ValueError, r"coordinates_map: got shape \(7, 7\)"),
        ((*MAPPED, torch.zeros(8)), ValueError, r"coordinates_map: got shape \(8,\)"),
        ((*MAPPED, np.eye(8)), TypeError, "coordinates_map: got ndarray"),
        ((*MAPPED, torch.eye(8).long()), TypeError, "coordinates_map: got torch"),
        ((*MAPPED, torch.eye(8) / 0), ValueError, "coordinates_map: got "),
        ((*MAPPED, torch.eye(8, device="meta")), ValueError, "coordinates_map: .*meta"),
        (MAPPED, ValueError, "coordinates_map: got None; expected the map of .*'original'"),
        ((*MAPPED, torch.ones(8, 6)), ValueError, "'original'; expected no more rows"),
        ((*MAPPED[:4], "projected", torch.ones(8, 8)), ValueError, "'projected'; expected more"),
        ((*MAPPED[:4], "singular", torch.eye(8)), ValueError, "coordinates_map: got a map"),
        ((OK, OK, "add", False, "soft"), ValueError, "coordinates_map: got None"),
        ((OK, OK, "add", False, "soft", torch.ones(5)), ValueError, "map: got .*the 4 columns"),
        ((OK, OK, "add", False, "soft", torch.eye(4)), ValueError, r"map: got .*shape \(dim,\)"),
        ((OK, OK, "add", False, "soft", torch.zeros(4)), ValueError, "gain that is not positive"),
        ((OK, OK, "add", False, "learned", torch.ones(8)), ValueError, "the 8 columns"),
        (
            (OK, OK, "add", False, "learned", torch.full((4,), torch.nan)),
            ValueError,
            "coordinates_map: got nan in column 0",
        ),
    ],
)
def test_bad_tables(arguments, error, message):
    with pytest.raises(error, match=message):
        ItemTable(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"null_dim": 8, "fusion": "concat"},
            ValueError,
            "null_dim: got 8; expected 1 <= null_dim <= 7",
        ),
        ({"null_dim": 9}, ValueError, "null_dim: got 9"),
        ({"null_dim": 3, "null_threshold": 1.0}, ValueError, "exactly one"),
        ({"null_threshold": 0.0}, ValueError, "no null space"),
        ({"dim": 13, "null_dim": 3}, ValueError, "dim: got 13; expected 1 <= dim <= 12"),
        ({"null_dim": 3, "coordinates": "polar"}, ValueError, "coordinates: got 'polar'"),
        ({"null_dim": 3, "init": "ones"}, ValueError, "init: got 'ones'"),
        ({"null_dim": 3, "space_split": "half"}, ValueError, "space_split: got 'half'"),
        (
            {"null_dim": 3, "space_split": "soft", "fusion": "concat"},
            ValueError,
            "fusion: got 'concat'; expected 'add' with",
        ),
        (
            {"null_dim": 3, "space_split": "soft", "fusion": "add", "space_split_power": -1.0},
            ValueError,
            "space_split_power: got -1.0",
        ),
        (
            {"null_dim": 3, "space_split": "learned", "fusion": "add", "coordinates": "original"},
            ValueError,
            "coordinates: got 'original'; expected 'singular' with space_split=learned",
        ),
        ({"null_dim": 3, "semantic_rms": 0.0}, ValueError, "semantic_rms: got 0.0"),
        ({"null_dim": 3, "semantic_rms": np.nan}, ValueError, "semantic_rms: got nan"),
        (
            {"null_dim": 3, "semantic_dtype": torch.int8},
            TypeError,
            "semantic_dtype: got torch.int8",
        ),
        ({"null_dim": 3, "semantic_dtype": torch.float64}, TypeError, "semantic_dtype"),
    ],
)
def test_bad_arguments_from_space(rng, arguments, error, message):
    rows = embeddings(rng)
    with pytest.raises(error, match=message):
        ItemTable.from_space(SemanticSpace.from_embeddings(rows), rows, **{"dim": 8, **arguments})


def test_bad_embeddings_from_space(rng):
    rows = embeddings(rng)
    space = SemanticSpace.from_embeddings(rows)
    with pytest.raises(ValueError, match=r"shape \(57, 5\); expected shape \(N, 12\)"):
        ItemTable.from_space(space, rows[:, :5], dim=8, null_dim=3)
    with pytest.raises(ValueError, match="language_embeddings: got rows that are all alike"):
        ItemTable.frozen(space, np.zeros((4, WIDTH)), dim=8, semantic_rms=0.1)
    with pytest.raises(ValueError, match=r"semantic_rows: got -?inf"):
        ItemTable.from_space(space, rows * 1e6, 8, 3, semantic_dtype=torch.float16, **PLAIN)
    rows[30, 2] = np.inf
    with pytest.raises(ValueError, match="language_embeddings: got inf in row 30, column 2"):
        ItemTable.from_space(space, rows, dim=8, null_dim=3)


@pytest.mark.parametrize("kind", ["concat", "original", "projected"])
def test_queries_of_another_width(rng, kind):
    table = tables(rng)[kind]
    queries = torch.randn(B, table.embedding_dim + 1)
    with pytest.raises(ValueError, match=r"queries: got shape \(5, "):
        table.score_all(queries)


@pytest.mark.parametrize("keep", [0, 30, -8])
def test_truncated_file(tmp_path, keep):
    ItemTable.id_only(N, 4).save(tmp_path / "table")
    path = tmp_path / "table.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableFileError, match=r"table\.safetensors"):
        ItemTable.load(tmp_path / "table")


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("ItemTable", {"fusion": "cover", "sparse": False}),
        ("ItemTable", {"fusion": "concat", "dense": False}),
        ("SemanticSpace", {"fusion": "concat", "sparse": False}),
    ],
)
def test_a_description_that_makes_no_sense(tmp_path, kind, facts):
    save_tensors(tmp_path / "table", kind, {"id_embeddings": torch.ones(N, 4)}, facts)
    with pytest.raises(UnreadableFileError, match="table"):
        ItemTable.load(tmp_path / "table")
