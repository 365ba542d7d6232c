"""A regression as the classification of its quarters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.audits.bands import in_bands
from shared.auditing import Continuous, Kind, NotAssessed
from tests.unit.audits.telling import Telling


class Valued(Telling):
    """Its values are told, and its network answers with what it is given."""

    def __init__(self, value_N):
        super().__init__(len(value_N))
        self.kind: Kind = "regression"
        self.classes: tuple[str, ...] = ()
        self._train = replace(self._train, targets_N=np.array(value_N, np.float64))
        self.held_out = replace(self.held_out, targets_N=np.array(value_N, np.float64))

    def continuous(self, examples):  # pyright: ignore[reportIncompatibleMethodOverride]
        return Continuous(torch.zeros(len(examples), 1), 0.0, 1.0, (1,), lambda module, values: values[:, 0])


def test_a_value_belongs_to_its_quarter():
    subject = in_bands(Valued(np.arange(100)))
    assert subject.kind == "classification"
    assert subject.classes == ("below 24.4", "24.4 to 49.2", "49.2 to 74.1", "74.1 or more")
    assert np.bincount(subject.train.targets_N).tolist() == [25, 25, 25, 25]
    assert subject.held_out.targets_N[[0, 24, 25, 99]].tolist() == [0, 0, 1, 3]
    assert subject.error_name == "share of wrong answers"  # what is not changed is the subject's own


def test_the_network_answers_with_the_quarter_of_its_value():
    subject = in_bands(Valued(np.arange(100)))
    given = torch.tensor([[-50.0], [10.0], [30.0], [60.0], [74.0], [75.0], [500.0]])
    logits_NC = subject.continuous(subject.train).logits(None, given)
    assert logits_NC.shape == (7, 4)
    assert logits_NC.argmax(1).tolist() == [0, 0, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("value_N", "counts"), [([1] * 30 + [2] * 70, [30, 70]), ([1] * 60 + [2] * 20 + [3] * 20, [60, 40])]
)
def test_where_many_values_are_equal_bands_are_fewer(value_N, counts):
    assert np.bincount(in_bands(Valued(value_N)).train.targets_N).tolist() == counts


def test_a_largest_value_that_many_share_can_be_answered():
    subject = in_bands(Valued([10.0] * 30 + [64.0] * 30 + [100.0] * 40))
    assert subject.classes == ("below 37", "37 to 82", "82 or more")
    logits_NC = subject.continuous(subject.train).logits(None, torch.tensor([[95.0]]))
    assert logits_NC.argmax(1).tolist() == [2]


def test_values_all_alike_make_no_bands():
    with pytest.raises(NotAssessed, match="all alike"):
        in_bands(Valued([0.0] * 50))


def test_inputs_that_take_no_patch_have_no_bands():
    with pytest.raises(NotAssessed):
        in_bands(Telling(100))
