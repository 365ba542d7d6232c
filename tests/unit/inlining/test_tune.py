"""The search for decisions: it finds what is planted, keeps its promise, stops, and goes on from a checkpoint."""

import numpy as np
import pytest

from services.inlining.batch import tune_module
from services.inlining.engine import compile_module, inspect_module
from services.inlining.schemas import TuneConfig
from services.inlining.source import to_bitcode
from services.inlining.tune import Search, tune
from shared.bundles import Bundle
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.problems import Unprocessable
from tests.unit.inlining.making import CHECKSUMS, PARSER, QUEUE, policy_bundle

# The cost model does not see that a loop over one element goes away when it is inlined, and stock leaves the calls.
PLANTED = """
int sink(int, int, int);
static int squares(const int *p, int n) {
  int s = 0;
  for (int i = 0; i < n; i++) s += p[i] * p[i] + (s >> 3);
  return s;
}
static int largest(const int *p, int n) {
  int m = p[0];
  for (int i = 1; i < n; i++) m = p[i] > m ? p[i] : m;
  return m;
}
int all(const int *p, int n) { return squares(p, n) + largest(p, n); }
int f(const int *p) { return sink(squares(p, 1), largest(p + 1, 1), squares(p + 2, 1)); }
int g(const int *p) { return sink(largest(p, 1), squares(p + 5, 1), largest(p + 9, 1)); }
"""


@pytest.fixture(scope="module")
def planted():
    return inspect_module(to_bitcode(PLANTED, name="planted.c"))


def test_it_finds_what_is_planted_and_keeps_its_promise(planted):
    seen = []

    def after(search):
        seen.append((search.spent, search.best_text))
        return True

    found = tune(planted, None, evaluations=40, after=after)
    assert found.stock_text == compile_module(planted.code).text
    assert compile_module(planted.code, replay=found.replay).text == found.text
    assert found.text < found.stock_text
    assert [text for _, text in seen] == sorted((text for _, text in seen), reverse=True)
    assert found.compiles <= 42
    again = tune(planted, None, evaluations=40)
    assert (again.text, again.decisions) == (found.text, found.decisions)


@pytest.mark.parametrize("source", [QUEUE, PARSER, CHECKSUMS])
def test_it_is_never_worse_than_stock(source):
    module = inspect_module(to_bitcode(source))
    found = tune(module, None, evaluations=30)
    assert found.text <= found.stock_text
    assert compile_module(module.code, replay=found.replay).text == found.text


def test_a_search_goes_on_from_its_checkpoint(planted):
    states = []

    def stop(search):
        states.append({name: array.copy() for name, array in search.as_arrays().items()})
        return search.spent < 12

    tune(planted, None, evaluations=40, after=stop)
    search = Search.from_arrays(states[-1])
    assert {name: array.tobytes() for name, array in search.as_arrays().items()} == {
        name: array.tobytes() for name, array in states[-1].items()
    }
    resumed = tune(planted, None, evaluations=40, resume=search)
    assert resumed.text <= states[-1]["numbers"][0]
    assert compile_module(planted.code, replay=resumed.replay).text == resumed.text


@pytest.fixture
def bundle(tmp_path):
    return Bundle.open(policy_bundle(tmp_path / "bundle"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "planted.c").write_text(PLANTED.replace("int sink(int, int, int);\n", '#include "sink.h"\n'))
    (folder / "sink.h").write_text("int sink(int, int, int);\n")
    return folder


def test_the_job_leaves_a_replay_file_and_reports_as_it_goes(data, bundle, tmp_path, planted):
    context = LocalContext(tmp_path / "job")
    path, summary = tune_module(TuneConfig(evaluations=40), data, bundle, context)
    assert summary["module"] == "planted.c"
    assert summary["text_tuned"] < summary["text_stock"]
    module = inspect_module(
        to_bitcode((data / "planted.c").read_text(), name="planted.c", files={"sink.h": (data / "sink.h").read_text()})
    )
    assert compile_module(module.code, replay=path.read_text()).text == summary["text_tuned"]
    assert context.points[-1]["text"] == summary["text_tuned"]
    assert context.points[-1]["saved_percent"] > 0
    assert context.restore() is not None


def test_the_job_stops_when_it_is_told_and_keeps_where_it_was(data, bundle, tmp_path):
    class Cancelled(LocalContext):
        def should_stop(self):
            return StopReason.SHUTDOWN if len(self.points) >= 3 else None

    context = Cancelled(tmp_path / "job")
    with pytest.raises(JobStopped):
        tune_module(TuneConfig(evaluations=10_000), data, bundle, context)
    kept = context.restore()
    assert kept is not None
    assert np.array_equal(Search.from_arrays(kept).as_arrays()["numbers"], kept["numbers"])


def test_which_module_has_to_be_said_where_there_are_several(data, bundle, tmp_path):
    context = LocalContext(tmp_path / "job")
    (data / "second.c").write_text(QUEUE)
    with pytest.raises(Unprocessable, match=r"planted\.c, second\.c"):
        tune_module(TuneConfig(), data, bundle, context)
    with pytest.raises(Unprocessable, match=r"no module 'third\.c'"):
        tune_module(TuneConfig(module="third.c"), data, bundle, context)
