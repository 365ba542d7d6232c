"""A Subject in memory: it answers what it is told to, and lacks what it is told to lack."""

from dataclasses import replace

import numpy as np

from shared.auditing import Assessment, Examples, NotAssessed, Perturbation


class Telling:
    """Numbers 0–1 to be told from above and below a half; `error_N` of an example is decided by `wrong(example)`."""

    kind = "classification"
    classes = ("low", "high")
    error_name = "share of wrong answers"
    error_unit = ""
    likely = 0.5
    split = "told"
    revision = None

    def __init__(self, count=400, *, wrong=lambda x: x < 0, groups=None, seen=None, confidence=0.95):
        random = np.random.default_rng(0)
        values = random.random(count)
        targets = (values > 0.5).astype(np.int64)
        names = [str(number) for number in range(count)]
        self.held_out = Examples(values, targets, names, groups or {}, {"value": values})
        self._wrong, self._seen, self._confidence = wrong, seen or wrong, confidence
        self._train = replace(self.held_out, inputs=values + 10)

    @property
    def train(self):
        return self._train

    def assess(self, examples):
        seen = examples.inputs >= 10
        x = np.where(seen, examples.inputs - 10, examples.inputs)
        wrong = np.where(seen, [self._seen(value) for value in x], [self._wrong(value) for value in x])
        said = np.where(wrong, 1 - examples.targets_N, examples.targets_N)
        probability = np.full((len(x), 2), 1 - self._confidence)
        probability[np.arange(len(x)), said] = self._confidence
        return Assessment(wrong.astype(float), probability, np.stack([x, x**2], axis=1).astype(np.float32))

    def perturbations(self):
        return [Perturbation("moved", "units", (0.01, 0.1), 0.01, lambda examples, strength, seed: examples)]

    def unfamiliar(self, seed):
        return replace(self.held_out, inputs=self.held_out.inputs - 5)

    def uncertainty(self, examples):
        return np.where(examples.inputs < 0, 1.0, 0.0) + 0.01 * examples.inputs

    def module(self):
        raise NotAssessed("The version carries no weights.")

    def fit(self, examples, seed, context):
        self.module()

    batches = loss = outputs = features = lambda self, *_: self.module()

    def continuous(self, examples):
        self.module()
