"""Heads lose the filters that never win, and predictions stay."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from morphlightning import structure
from morphlightning.data import Digits
from morphlightning.errors import ConfigError, DataError
from morphlightning.layers import Dilation, Erosion, apply_update_heuristics
from morphlightning.models import MorphologicalClassifier


def integers(samples, inputs, seed=0):
    return torch.randint(-3, 4, (samples, inputs), generator=torch.Generator().manual_seed(seed)).double()


def wins_by_hand(head, x):
    """Counts (classes, filters), sample by sample; the lowest index wins a tie."""
    filters, dilation = head[0](x).tolist(), head[-1].weight.tolist()
    counts = [[0] * len(dilation[0]) for _ in dilation]
    for z in filters:
        scores = [[z_k + w_k for z_k, w_k in zip(z, row, strict=True)] for row in dilation]
        logits = [max(row) for row in scores]
        predicted = logits.index(max(logits))
        counts[predicted][scores[predicted].index(logits[predicted])] += 1
    return torch.tensor(counts)


# ---------------------------------------------------------------------------------------------------- exactness
@pytest.mark.parametrize("mask_weights", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_largest_logits_stay_and_others_fall(integer_head, seed, mask_weights):
    head, x = integer_head(seed=seed), integers(60, 4, seed)
    pruned, report = structure.prune_head(head, x, mask_weights=mask_weights)
    before, after = head(x), pruned(x)
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert torch.equal(after.amax(1), before.amax(1))
    assert (after <= before).all()
    assert len(report.kept) < 12
    assert torch.equal(report.wins, wins_by_hand(head, x))


def test_predictions_are_those_of_classes_that_tie(integer_head):
    """With all weights equal every class ties with every other, and the lowest is predicted."""
    head, x = integer_head(), integers(50, 4)
    head[-1].weight.data.zero_()
    pruned, report = structure.prune_head(head, x)
    assert report.wins[1:].sum() == 0
    assert report.rescued == (1, 2, 3, 4)
    assert not pruned(x).argmax(1).any()
    assert torch.equal(pruned(x).amax(1), head(x).amax(1))


def test_no_kept_filter_can_go():
    head, x = (
        nn.Sequential(nn.Linear(5, 20), Dilation(20, 3, initializer="sparse")).double(),
        torch.randn(200, 5).double(),
    )
    pruned, report = structure.prune_head(head, x)
    assert report.rescued == ()
    top = head(x).amax(1)
    for lost in range(len(report.kept)):
        fewer = structure.keep_filters(pruned, [k for k in range(len(report.kept)) if k != lost])
        assert (fewer(x).amax(1) < top).any()


def test_masked_weights_are_those_that_never_win(integer_head):
    head, x = integer_head(), integers(60, 4)
    pruned, report = structure.prune_head(head, x, mask_weights=True)
    won = report.wins[:, report.kept] > 0
    missing = ~pruned[-1].mask
    assert missing.any()
    assert not (won & missing).any()
    alone = [c for c in range(5) if c not in report.rescued]
    assert torch.equal(won[alone], ~missing[alone])
    plain, _ = structure.prune_head(head, x)
    assert structure.count_parameters(pruned) == structure.count_parameters(plain) - missing.sum()


# ---------------------------------------------------------------------------------------------------- threshold
def one_hot_head(weights):
    """Filters are the inputs."""
    filters = nn.Linear(len(weights[0]), len(weights[0]), bias=False)
    filters.weight.data = torch.eye(len(weights[0]))
    dilation = Dilation(len(weights[0]), len(weights), initializer="zeros")
    dilation.weight.data = torch.tensor(weights)
    return nn.Sequential(filters, dilation)


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, [0, 1, 2]), (0.09, [0, 1, 2]), (0.1, [0, 2]), (0.9, [0, 2])])
def test_a_filter_must_win_more_than_its_share_of_a_class(threshold, kept):
    head = one_hot_head([[0.0, 0.0, -9.0, -9.0], [-9.0, -9.0, 0.0, -9.0]])
    x = torch.eye(4)[[0] * 9 + [1] + [2] * 3] * 5  # of class 0 filter 0 wins nine times in ten, filter 1 once
    pruned, report = structure.prune_head(head, x, threshold)
    assert report.wins.tolist() == [[9, 1, 0, 0], [0, 0, 3, 0]]
    assert report.kept.tolist() == kept
    # no filter passes 0.9: each class keeps its best
    assert report.rescued == ((0,) if threshold == 0.9 else ())
    assert pruned[0].out_features == pruned[1].in_features == len(kept)


def test_a_class_that_is_never_predicted_keeps_what_wins_it_most_often():
    head = one_hot_head([[0.0, -9.0, -9.0], [-99.0, -99.0, -9.0]])
    x = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    pruned, report = structure.prune_head(head, x)
    assert report.kept.tolist() == [0, 2]
    assert report.rescued == (1,)
    assert torch.equal(pruned(x), head(x))


# ------------------------------------------------------------------------------------------- data and modules
def test_kinds_of_data_give_the_same_counts():
    data = Digits(batch_size=50)
    data.setup("fit")
    model = MorphologicalClassifier((1, 8, 8), channels=(), head="max_plus", head_units=30)
    images, labels = zip(*data.train_dataloader(), strict=True)
    images, labels = torch.cat(images), torch.cat(labels)
    loader = DataLoader(TensorDataset(images, labels), batch_size=70)
    expected = structure.prune_head(model, images)[1]
    for kind in (Digits(), loader, [images[:3], images[3:]], [(images, labels)], iter([[images]])):
        report = structure.prune_head(model, kind)[1]
        assert torch.equal(report.wins, expected.wins)
        assert torch.equal(report.kept, expected.kept)
    assert expected.wins.sum() == len(images)


def test_flattened_convolution_loses_channels():
    head = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), Dilation(8 * 36, 4, initializer="upper")
    )
    x = torch.rand(40, 1, 8, 8)
    head[-1].weight.data[:, : 4 * 36] -= 9  # the first four channels never win
    pruned, report = structure.prune_head(head, x)
    assert set(report.kept.tolist()) <= {4, 5, 6, 7}
    assert pruned[0].out_channels == len(report.kept)
    before, after = head.eval()(x), pruned.eval()(x)
    assert torch.equal(after.argmax(1), before.argmax(1))
    torch.testing.assert_close(after.amax(1), before.amax(1))


def test_counting_is_done_in_evaluation_mode_and_leaves_the_module_alone(integer_head):
    head = nn.Sequential(*integer_head(), nn.Dropout(0.9)).train()
    head = nn.Sequential(head[0], head[2], head[1]).train()
    state, x = copy.deepcopy(head.state_dict()), integers(60, 4)
    pruned, report = structure.prune_head(head, x)
    assert torch.equal(report.wins, structure.prune_head(head.eval(), x)[1].wins)
    assert pruned.training
    assert not head[-1]._forward_hooks
    assert not pruned[-1]._forward_hooks
    for name, value in head.state_dict().items():
        assert torch.equal(value, state[name])


class Wrapped(nn.Module):
    def __init__(self, head, after=None):
        super().__init__()
        self.head, self.after = head, after or nn.Identity()

    def forward(self, x):
        return self.after(self.head(x))


def test_a_head_inside_a_module_of_ones_own(integer_head):
    head, x = integer_head(), integers(60, 4)
    pruned, report = structure.prune_head(Wrapped(head), x)
    assert isinstance(pruned, Wrapped)
    assert torch.equal(report.kept, structure.prune_head(head, x)[1].kept)
    with pytest.raises(ConfigError, match="Wrapped does not return the output"):
        structure.prune_head(Wrapped(head, nn.Softmax(-1)), x)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    L.seed_everything(0, verbose=False)
    model = MorphologicalClassifier(
        (1, 8, 8), channels=(), head="max_plus", head_units=40, optimizer={"name": "adam", "lr": 0.01}
    )
    trainer = quiet_trainer(tmp_path_factory.mktemp("run"))
    trainer.fit(model, Digits())
    return model


def quiet_trainer(folder, epochs=4):
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=epochs, limit_val_batches=0, **off)


def test_pruned_classifier_is_tested_saved_loaded_and_trained(trained, tmp_path):
    pruned, report = structure.prune_head(trained, Digits(), mask_weights=True)
    filters = len(report.kept)
    assert 10 <= filters < 40
    assert pruned.hparams["head_units"] == filters
    assert trained.hparams["head_units"] == 40
    assert trained.head.filters.out_features == 40
    assert report.parameters[1] < 0.8 * report.parameters[0]

    train = Digits()
    train.setup("fit")
    images = torch.cat([batch[0] for batch in train.train_dataloader()])
    assert torch.equal(pruned(images).argmax(1), trained(images).argmax(1))

    trainer = quiet_trainer(tmp_path, 1)
    (metrics,) = trainer.test(pruned, Digits(), verbose=False)
    assert metrics["test/accuracy"] > 0.8
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    loaded = MorphologicalClassifier.load_from_checkpoint(tmp_path / "pruned.ckpt")
    assert torch.equal(loaded(images), pruned(images))
    assert torch.equal(loaded.head.dilation.mask, pruned.head.dilation.mask)
    trainer.fit(pruned, Digits())
    assert not torch.equal(pruned(images), loaded(images))


def test_pruned_head_counts_with_its_new_size(integer_head):
    filters = nn.Linear(4, 12)
    head = nn.Sequential(filters, Dilation(12, 5, heuristic="count_normalized"))
    pruned, _ = structure.prune_head(head, torch.randn(30, 4))
    pruned.train()(torch.randn(6, 4)).sum().backward()
    apply_update_heuristics(pruned)
    assert pruned[1].weight.grad.shape == pruned[1].weight.shape


# ------------------------------------------------------------------------------------------------ keep_filters
@pytest.mark.parametrize("reader", [lambda: nn.Linear(9, 3), lambda: Erosion(9, 3), lambda: Dilation(9, 3)])
@pytest.mark.parametrize("first", [lambda: nn.Linear(4, 9), lambda: Dilation(4, 9)])
def test_kept_filters_keep_their_weights(first, reader):
    chain = nn.Sequential(nn.Linear(4, 4), first(), nn.ReLU(), reader()).double()
    small = structure.keep_filters(chain, torch.tensor([7, 2, 2, 5]))
    assert small[1].out_features == small[3].in_features == 3
    assert torch.equal(small[1].weight, chain[1].weight[[2, 5, 7]])
    assert torch.equal(small[3].weight, chain[3].weight[:, [2, 5, 7]])
    x = torch.randn(6, 4).double()
    hidden = chain[1](chain[0](x)).relu()
    with torch.no_grad():
        if isinstance(chain[3], nn.Linear):
            expected = nn.functional.linear(hidden[:, [2, 5, 7]], chain[3].weight[:, [2, 5, 7]], chain[3].bias)
        else:
            sign = -1 if isinstance(chain[3], Erosion) else 1
            scores = sign * hidden[:, None, [2, 5, 7]] + chain[3].weight[:, [2, 5, 7]]
            expected = sign * scores.amax(-1)
    torch.testing.assert_close(small(x), expected)


def test_frozen_parameters_stay_frozen(integer_head):
    head = integer_head().requires_grad_(False)
    assert not any(p.requires_grad for p in structure.keep_filters(head, [0, 1]).parameters())


def test_parameters_are_counted_without_missing_weights():
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert structure.count_parameters(nn.Sequential(nn.Linear(4, 3), Dilation(3, 2, mask=mask))) == 15 + 5


# ------------------------------------------------------------------------------------------------------ errors
def test_modules_without_filters_are_refused(integer_head):
    shared = nn.Linear(4, 4)
    normalized = parametrizations.weight_norm(nn.Linear(4, 12))
    without = [
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), Dilation(6, 3)),  # what stays depends on what goes
        nn.Sequential(shared, Dilation(4, 4), shared, Dilation(4, 4)),
        nn.Sequential(normalized, integer_head()[1]),
        nn.Sequential(nn.Conv2d(1, 4, 3), Dilation(6, 3)),
        MorphologicalClassifier((1, 8, 8)),
    ]
    for module in without:
        with pytest.raises(ConfigError, match=r"no filters to keep.*head='max_plus'"):
            structure.keep_filters(module, [0])


def test_wrong_filters_are_refused(integer_head):
    for kept in ([], [12], [-1, 3], torch.arange(12) < 4, [0.0, 1.0]):
        with pytest.raises(ConfigError, match="expected indices, some of 0 to 11"):
            structure.keep_filters(integer_head(), kept)
    mask = torch.tensor([[True, False], [True, True]])
    with pytest.raises(ConfigError, match="output 0 would have no finite weight"):
        structure.keep_filters(nn.Sequential(nn.Linear(3, 2), Dilation(2, 2, mask=mask)), [1])


def test_wrong_requests_are_refused(integer_head):
    head, x = integer_head(), integers(5, 4)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="expected a share"):
            structure.prune_head(head, x, threshold)
    with pytest.raises(ConfigError, match="read by Linear"):
        structure.prune_head(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), x)
    with pytest.raises(DataError, match="no samples"):
        structure.prune_head(head, [])
    with pytest.raises(DataError, match="NaN among the logits"):
        structure.prune_head(head, x.masked_fill(x == x[0, 0], torch.nan))
    with pytest.raises(ConfigError, match="data is a int"):
        structure.prune_head(head, 3)
    with pytest.raises(ConfigError, match="a batch is a dict"):
        structure.prune_head(head, [{"image": x}])
