"""Losses against their definitions, written out on a materialised table in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alphafuse_ext import ItemTable
from alphafuse_ext.config.loss import LOSSES as KINDS
from alphafuse_ext.models import SASRec, losses
from alphafuse_ext.models.losses import next_item_loss
from alphafuse_ext.models.negatives import NegativeSampler

LOSSES = [loss for loss in KINDS if loss is not None]
NEGATIVES_PER = ("position", "sequence", "batch")
NUM_ITEMS, DIM, NULL_DIM = 23, 12, 5


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(3)
    table = ItemTable(
        torch.randn(NUM_ITEMS, DIM - NULL_DIM, generator=generator),
        torch.randn(NUM_ITEMS, NULL_DIM, generator=generator),
    )
    hidden = torch.randn(4, 6, DIM, generator=generator, requires_grad=True)
    targets = torch.randint(NUM_ITEMS, (4, 6), generator=generator)
    targets[1, 3:] = NUM_ITEMS
    targets[2, 1:] = NUM_ITEMS
    return table, hidden, targets


def negatives_of(loss, count, negatives_per):
    """Settings of negatives, for a loss that has them."""
    if loss == "cross_entropy":
        return {}
    return {"negatives": count, "negatives_per": negatives_per}


def expected(table, hidden, targets, loss, drawn, temperature):
    """The sum over rows, one row at a time."""
    weight = table.weight.double()
    total = torch.zeros((), dtype=torch.float64)
    row = 0
    for b in range(len(hidden)):
        for t in range(hidden.shape[1]):
            target = int(targets[b, t])
            if target == table.padding_idx:
                continue
            query, items = hidden[b, t].double(), weight
            if loss == "infonce":
                query, items = F.normalize(query, dim=0), F.normalize(weight, dim=1)
            scores = items @ query / temperature
            if loss == "cross_entropy":
                total = total + torch.logsumexp(scores, 0) - scores[target]
                continue
            negatives = {1: drawn, 2: None}.get(drawn.ndim)
            if negatives is None:
                negatives = drawn[b] if len(drawn) == len(hidden) else drawn[row]
            negatives = negatives[negatives != target]
            if loss == "bce":
                total = total - F.logsigmoid(scores[target])
                total = total - F.logsigmoid(-scores[negatives]).sum()
            else:
                candidates = torch.cat([scores[target][None], scores[negatives]])
                total = total + torch.logsumexp(candidates, 0) - scores[target]
            row += 1
    return total


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("negatives_per", NEGATIVES_PER)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_value_and_gradients(setting, loss, negatives_per, temperature):
    table, hidden, targets = setting
    # More negatives than items: some equal their row's target and must be masked.
    count = 40
    rows = int((targets != NUM_ITEMS).sum())
    shape = {"batch": (count,), "sequence": (4, count), "position": (rows, count)}[negatives_per]
    torch.manual_seed(11)
    drawn = torch.randint(NUM_ITEMS, shape)
    torch.manual_seed(11)
    options = {"temperature": temperature, **negatives_of(loss, count, negatives_per)}
    value = next_item_loss(table, hidden, targets, loss, **options)
    wanted = expected(table, hidden, targets, loss, drawn, temperature)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wanted, rtol=2e-5, atol=1e-4)
    inputs = (hidden, table.id_embeddings)
    found = torch.autograd.grad(value, inputs)
    for gradient, reference in zip(found, torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=2e-4, atol=2e-4)


def test_padded_positions_get_no_gradient(setting):
    table, hidden, targets = setting
    for loss in LOSSES:
        (gradient,) = torch.autograd.grad(next_item_loss(table, hidden, targets, loss), hidden)
        assert torch.all(gradient[targets == NUM_ITEMS] == 0), loss
        assert torch.all(gradient[targets != NUM_ITEMS].abs().sum(1) > 0), loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("negatives_per", NEGATIVES_PER)
def test_padded_positions_may_hold_anything(setting, loss, negatives_per, smoothing):
    table, hidden, targets = setting
    if smoothing and loss != "cross_entropy":
        pytest.skip("a smoothing of cross_entropy")
    results = []
    for held in (0.0, torch.nan):
        hidden = hidden.detach().clone()
        hidden[targets == NUM_ITEMS] = held
        hidden.requires_grad_()
        torch.manual_seed(11)
        options = {"label_smoothing": smoothing} if loss == "cross_entropy" else {}
        options |= negatives_of(loss, 9, negatives_per)
        value = next_item_loss(table, hidden, targets, loss, **options)
        results.append((value, *torch.autograd.grad(value, (hidden, table.id_embeddings))))
    for wanted, found in zip(*results, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_label_smoothing_is_torch_s(setting, fusion, temperature):
    table, hidden, targets = setting
    if fusion == "add":
        semantic_rows = torch.randn(NUM_ITEMS, DIM, generator=torch.Generator().manual_seed(5))
        table = ItemTable(semantic_rows, table.id_embeddings, fusion="add")
    value = next_item_loss(table, hidden, targets, temperature=temperature, label_smoothing=0.2)
    has_target = targets != NUM_ITEMS
    wanted = F.cross_entropy(
        hidden[has_target].double() @ table.weight.double().T / temperature,
        targets[has_target],
        reduction="sum",
        label_smoothing=0.2,
    )
    torch.testing.assert_close(value.double(), wanted, rtol=2e-5, atol=1e-4)
    inputs = (hidden, table.id_embeddings)
    found = torch.autograd.grad(value, inputs)
    for gradient, reference in zip(found, torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=2e-4, atol=2e-4)


COUNTS = torch.tensor([0, 5, 0, 1, *[0] * 6, *range(10), 40, 0, 0])


@pytest.mark.parametrize("sampling", ["popularity", "mixed"])
def test_negatives_are_drawn_by_their_probability(sampling):
    sampler = NegativeSampler(COUNTS, sampling)
    torch.manual_seed(1)
    drawn = torch.bincount(
        sampler.draw((40, 5000), torch.device("cpu")).flatten(), minlength=NUM_ITEMS
    )
    share = COUNTS / COUNTS.sum()
    if sampling == "mixed":
        share = (share + 1 / NUM_ITEMS) / 2
    assert torch.all(drawn[share == 0] == 0)
    # Five standard deviations of a count of 200,000 draws.
    assert torch.all((drawn / 200_000 - share).abs() <= 5 * (share / 200_000).sqrt())
    torch.testing.assert_close(sampler.log_probability(torch.arange(NUM_ITEMS)), share.log())


def test_the_first_and_last_places_are_of_items_that_are_drawn(monkeypatch):
    sampler = NegativeSampler(COUNTS, "popularity")
    for place, item in ((0.0, 1), (1 - 2**-53, 20)):
        monkeypatch.setattr(
            torch,
            "rand",
            lambda shape, place=place, **_: torch.full(shape, place, dtype=torch.float64),
        )
        assert sampler.draw((1,), torch.device("cpu")).tolist() == [item]


@pytest.mark.parametrize("loss", ["sampled_softmax", "infonce"])
@pytest.mark.parametrize("negatives_per", NEGATIVES_PER)
def test_logq_subtracts_what_an_item_is_drawn_with(setting, loss, negatives_per):
    table, hidden, targets = setting
    sampler = NegativeSampler(COUNTS, "mixed")
    shape = {"batch": (8,), "sequence": (4, 8), "position": (int((targets != NUM_ITEMS).sum()), 8)}
    torch.manual_seed(2)
    drawn = sampler.draw(shape[negatives_per], hidden.device)
    torch.manual_seed(2)
    options = {"negatives": 8, "negatives_per": negatives_per, "temperature": 0.5}
    value = next_item_loss(table, hidden, targets, loss, sampler=sampler, **options)
    torch.manual_seed(2)
    plain = next_item_loss(table, hidden, targets, loss, sampler=sampler, logq=False, **options)
    weight, wanted, row = table.weight.double(), {True: 0.0, False: 0.0}, 0
    if loss == "infonce":
        weight = F.normalize(weight, dim=1)
    log_share = ((COUNTS / COUNTS.sum() + 1 / NUM_ITEMS) / 2).double().log()
    for b in range(len(hidden)):
        for t in range(hidden.shape[1]):
            target = int(targets[b, t])
            if target == NUM_ITEMS:
                continue
            own = {
                "batch": drawn,
                "sequence": drawn[b % len(drawn)],
                "position": drawn[row % len(drawn)],
            }
            query = hidden[b, t].double()
            scores = weight @ (F.normalize(query, dim=0) if loss == "infonce" else query) / 0.5
            ids = own[negatives_per]
            ids = torch.cat([torch.tensor([target]), ids[ids != target]])
            for logq in wanted:
                corrected = scores - log_share if logq else scores
                wanted[logq] += torch.logsumexp(corrected[ids], 0) - corrected[target]
            row += 1
    torch.testing.assert_close(value.double(), wanted[True], rtol=2e-5, atol=1e-4)
    torch.testing.assert_close(plain.double(), wanted[False], rtol=2e-5, atol=1e-4)


def test_in_batch_negatives_are_targets(setting, monkeypatch):
    """All of the batch's, each once; or some, or for each sequence or position its own draw."""
    table, hidden, targets = setting
    counts = COUNTS + 1
    sampler = NegativeSampler(counts, "in-batch")
    wanted = targets[targets != NUM_ITEMS]
    drawn = []
    draw = sampler.draw
    monkeypatch.setattr(sampler, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    options = {"negatives": 40, "negatives_per": "batch", "temperature": 0.5}
    value = next_item_loss(table, hidden, targets, "sampled_softmax", sampler=sampler, **options)
    assert drawn[0].sort().values.tolist() == wanted.sort().values.tolist()
    scores = hidden[targets != NUM_ITEMS].double() @ table.weight.double().T / 0.5
    scores = scores - (counts / counts.sum()).double().log()
    others = scores[:, wanted].masked_fill(wanted == wanted[:, None], -torch.inf)
    own = scores.gather(1, wanted[:, None])
    total = (torch.cat([own, others], 1).logsumexp(1) - own[:, 0]).sum()
    torch.testing.assert_close(value.double(), total, rtol=2e-5, atol=1e-4)
    for negatives_per, shape in (
        ("batch", (5,)),
        ("sequence", (4, 5)),
        ("position", (len(wanted), 5)),
    ):
        options |= {"negatives": 5, "negatives_per": negatives_per}
        for loss in ("bce", "infonce"):
            next_item_loss(table, hidden, targets, loss, sampler=sampler, **options)
            assert drawn[-1].shape == shape
            assert set(drawn[-1].flatten().tolist()) <= set(wanted.tolist())
    with pytest.raises(ValueError, match=r"^targets: got None; expected those of the batch"):
        sampler.draw((3,), torch.device("cpu"))


def test_a_model_that_trains_by_counts_asks_for_them(setting):
    table, _, targets = setting
    model = SASRec(table, 6, loss="sampled_softmax", negative_sampling="popularity")
    with pytest.raises(ValueError, match=r"^item_counts: got None; expected counts w"):
        model.loss(targets, targets)
    counts = torch.ones(NUM_ITEMS)
    model = SASRec(table, 6, negatives=3, loss="bce", negative_sampling="mixed", item_counts=counts)
    assert torch.isfinite(model.loss(targets, targets))


@pytest.mark.parametrize("counts", [torch.zeros(3), torch.tensor([1, -1]), torch.ones(2, 2)])
def test_counts_that_leave_nothing_to_draw(counts):
    with pytest.raises(ValueError, match=r"^item_counts: got shape"):
        NegativeSampler(counts, "popularity")
    with pytest.raises(ValueError, match=r"^sampling: got 'uniform'"):
        NegativeSampler(counts, "uniform")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("loss", "hinge"), ("negatives", 0), ("negatives_per", "user"), ("temperature", 0.0)),
        *(("logq", True), ("label_smoothing", 0.1), ("label_smoothing", 1.0)),
        ("language_smoothing", 0.1),
    ],
)
def test_bad_arguments_are_named(setting, argument, value):
    table, hidden, targets = setting
    options = {"loss": "bce", argument: value}
    with pytest.raises(ValueError, match=f"^{argument}: got"):
        next_item_loss(table, hidden, targets, **options)


def test_a_model_checks_its_settings_once(monkeypatch):
    """When it is made, and not at each step."""
    model = SASRec(ItemTable(None, torch.randn(7, 4)), blocks=1, heads=1, loss="bce", negatives=3)
    ids = torch.tensor([[0, 1, 2]])

    def again(*_):
        raise AssertionError("checked again")

    monkeypatch.setattr(losses, "loss_settings", again)
    assert model.loss(ids, torch.tensor([[1, 2, 3]])).isfinite()
