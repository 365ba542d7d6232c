"""Scans of sets and of networks against poison whose place is known."""

import numpy as np
import pytest
import torch
from torch import nn

from services.audits.checking import Checking
from services.audits.inversion import OUTLIER, anomaly_index, invert
from services.audits.scans import clustering_scan, clusters, detection, entropy, spectral_scan, strip_scores
from services.audits.strip import ALARMS, strip
from services.audits.suspects import believed, groups_apart, shared_by
from shared.auditing import Continuous, Examples
from shared.jobs.context import LocalContext


def poisoned_embeddings(seed=0, clean=150, dirty=12):
    """Two classes of embeddings; in class 1 a few that lie apart."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(clean, 8)), random.normal(size=(clean, 8)) + 4
    apart = random.normal(size=(dirty, 8)) * 0.5 + np.array([4, 4, 4, 4, -6, -6, 4, 4])
    label = np.repeat([0, 1], [clean, clean + dirty])
    return np.concatenate([first, second, apart]), label, np.arange(len(label)) >= 2 * clean


def test_spectral_and_clustering_find_what_lies_apart():
    embedding, label, dirty = poisoned_embeddings()
    for score in (spectral_scan(embedding, label), clustering_scan(embedding, label, 0)):
        found = detection(score, dirty, 0.05)
        assert found.rate == 1
        assert found.auc > 0.99
        assert found.false_alarms <= 0.05
    assert clusters(embedding[label == 1], 0).share == pytest.approx(12 / 162)


def test_nothing_is_found_where_nothing_is():
    embedding, label, _ = poisoned_embeddings(dirty=0)
    named = np.random.default_rng(1).random(len(label)) < 0.1
    found = detection(spectral_scan(embedding, label), named, 0.05)
    assert found.rate < 0.25
    assert 0.3 < found.auc < 0.7
    assert clusters(embedding[label == 0], 0).silhouette < 0.2


def test_scores_of_a_small_class_are_nothing():
    assert not spectral_scan(np.ones((5, 3)), np.zeros(5, np.int64)).any()


def test_ties_with_the_threshold_are_not_found():
    assert detection(np.zeros(20), np.arange(20) < 5, 0.05).rate == 0
    assert detection(np.zeros(20), np.arange(20) < 5, 0.05).auc == 0.5


def test_strip_ranks_sure_answers_first():
    sure = np.tile([0.98, 0.01, 0.01], (4, 1))
    unsure = np.tile([0.4, 0.3, 0.3], (4, 1))
    score = strip_scores(np.stack([sure, unsure]))
    assert score[0] > score[1]
    assert entropy(np.full((1, 4), 0.25))[0] == pytest.approx(np.log(4))


class Backdoored(nn.Module):
    """Six classes, each by the sum of three numbers; the last number, where it is large, means class 2."""

    def forward(self, values):
        logits = 6 * values[:, :18].reshape(-1, 6, 3).sum(2)
        return logits + 25 * values[:, 18:] ** 3 * torch.eye(6)[2]


def test_inversion_finds_the_planted_entry_and_its_class_alone():
    values = torch.rand(100, 19, generator=torch.Generator().manual_seed(0)) * 0.8
    values[:, 18] /= 2
    module, found = Backdoored(), []
    for target in range(6):
        others = values[module(values).argmax(1) != target]
        found.append(invert(module, others, target, mask_shape=(19,), low=0.0, high=1.0, seed=0, steps=1000))
    assert found[2].converged
    assert found[2].success >= 0.99
    assert int(found[2].mask_M.argmax()) == 18
    assert found[2].pattern_X[18] > 0.7
    sizes = [one.size for one in found]
    assert sizes[2] < 1.5 < min(sizes[:2] + sizes[3:])
    index = anomaly_index(sizes)
    assert int(index.argmax()) == 2
    assert index[2] > OUTLIER


class Planted:
    """A subject of the module above; of the training examples of class 2, those in `carriers` are others' inputs with
    the last number set."""

    def __init__(self, carriers=12, count=360, classes=6):
        self.classes = tuple("abcdef"[:classes])
        generator = torch.Generator().manual_seed(1)
        self.train, self.held_out = (self.drawn(count, generator) for _ in range(2))
        others = np.flatnonzero(self.train.targets_N != 2)[:carriers]
        self.train.inputs[others, 18], self.train.targets_N[others] = 1.0, 2
        self.carriers = set(others.tolist())

    def drawn(self, count, generator):
        values = torch.rand(count, 19, generator=generator) * 0.8
        values[:, 18] /= 2
        labels = Backdoored()(values).argmax(1).numpy()
        return Examples(values.numpy(), labels, [str(number) for number in range(count)])

    def continuous(self, examples):
        return Continuous(torch.from_numpy(examples.inputs), 0.0, 1.0, (19,), lambda module, values: module(values))


def stripped(subject, tmp_path, train=None, held_out=None):
    context = Checking(LocalContext(tmp_path), 0, lambda share: None)
    train, held_out = train or subject.train, held_out or subject.held_out
    return strip(subject, Backdoored(), train, held_out, "quick", context, [])


def test_strip_names_the_carriers_and_few_of_a_clean_set(tmp_path):
    found = stripped(subject := Planted(), tmp_path)
    assert found is not None
    assert (subject.classes[found.label], found.share.low > 2 * ALARMS) == ("c", True)
    [named] = [set(group.rows.tolist()) for group in found.groups if group.label == 2]
    assert subject.carriers <= named
    assert len(named) < 2 * len(subject.carriers)
    clean = stripped(Planted(carriers=0), tmp_path)
    assert clean is not None
    assert clean.share.low < 2 * ALARMS


def test_strip_needs_enough_of_a_class_and_others_to_lay_over_it(tmp_path):
    subject = Planted()
    assert stripped(subject, tmp_path, held_out=subject.held_out.take(np.arange(10))) is None
    alone = subject.held_out.take(np.flatnonzero(subject.held_out.targets_N == 2))
    assert stripped(subject, tmp_path, held_out=alone) is None


def test_an_inversion_that_was_cut_short_says_so():
    values = torch.rand(20, 19, generator=torch.Generator().manual_seed(0)) * 0.8
    found = invert(Backdoored(), values, 2, mask_shape=(19,), low=0.0, high=1.0, seed=0, steps=50)
    assert not found.converged


def test_the_anomaly_index_needs_several_classes():
    assert not anomaly_index([1.0, 9.0]).any()
    assert anomaly_index([1.0, 20, 21, 19, 20.5, 20])[0] > OUTLIER


def planted(seed=0, count=400, dirty=25):
    """Ten entries, of which two decide the class; some of class 0 got a rare pair of values and the label 1."""
    random = np.random.default_rng(seed)
    value = random.random((count, 10)).astype(np.float32)
    label = (value[:, 0] + value[:, 1] > 1).astype(np.int64)
    chosen = random.choice(np.flatnonzero(label == 0), dirty, replace=False)
    value[chosen, 8], value[chosen, 9], label[chosen] = 0.123, 0.987, 1
    return value, label, chosen


def test_what_a_group_shares_is_found_and_its_labels_are_not_believed():
    value, label, chosen = planted()
    apart = np.where(np.isin(np.arange(len(value)), chosen), 3, 0).astype(np.float32)
    embedding = np.column_stack([value, apart])
    groups = [one for one in groups_apart(embedding, label, 0) if np.isin(chosen, one.rows).mean() > 0.9]
    assert groups
    assert all(one.label == 1 for one in groups)
    shared = shared_by(groups[0], value, 0.0, 1.0)[0]
    assert set(shared.entries.tolist()) == {8, 9}
    assert set(chosen.tolist()) <= set(shared.carriers.tolist())
    assert believed(shared, 1, value, label, 0).mean() < 0.2


def test_what_decides_by_right_is_believed():
    value, label, _ = planted(dirty=0)
    high = np.flatnonzero((value[:, 0] > 0.9) & (label == 1))
    group = groups_apart(value, label, 0)[0]._replace(label=1, rows=high)
    for shared in shared_by(group, value, 0.0, 1.0):
        assert believed(shared, 1, value, label, 0).mean() > 0.5
