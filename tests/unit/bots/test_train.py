"""The recipe: what comes out, resuming, parity of the three ways to score, and explanations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from services.bots.batch import load_network, score_arrays, score_graph
from services.bots.benchmark import accounts, mgtab, scale, synthetic, twibot
from services.bots.calibration import views_of
from services.bots.datasets import BadGraph, load_graph
from services.bots.explain import explain
from services.bots.features import PROPERTIES
from services.bots.graphs import Edges
from services.bots.model import relations_of
from services.bots.predict import Answer, load
from services.bots.schemas import GraphConfig, TrainConfig
from services.bots.train import TrainingDiverged, compare, fit, prepare, train, train_graph
from shared.bundles import Bundle, BundleRejected
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.settings import ServiceSettings
from tests.unit.bots.making import write_graph, write_mgtab

QUICK = TrainConfig(epochs=30, hidden=16, floors=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("graph"), accounts=300, edges="kind")


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    made = train(QUICK.model_copy(update={"floors": True}), folder, LocalContext(tmp_path_factory.mktemp("run")))
    return Bundle.open(made)


class Stopping(LocalContext):
    left = 15

    def should_stop(self):
        self.left -= 1
        return StopReason.SHUTDOWN if self.left < 0 else None


def test_the_bundle_is_whole(bundle):
    manifest = bundle.manifest
    assert manifest.constants["views"] == ["profile", "x-v2", "full", "graph"]
    assert manifest.constants["relations"] == ["follow", "friend"]
    assert manifest.metrics["bot_graph_auc"].value > 0.9
    assert manifest.metrics["bot_graph_auc"].value >= manifest.metrics["bot_profile_auc"].value - 0.1
    for name in ("floor_bot_random_forest_accuracy", "floor_stance_gradient_boosting_macro_f1", "stance_accuracy"):
        assert 0 <= manifest.metrics[name].value <= 1
    calibration = load(bundle, ServiceSettings()).calibration
    assert calibration.prior == pytest.approx(1 / 3, abs=0.05)
    assert calibration.coverage["graph"]["bot"][0]["coverage"] == 1


def test_a_resumed_training_ends_with_the_same_weights(folder, tmp_path):
    prepared = prepare(QUICK, load_graph(folder))
    whole = fit(QUICK, prepared, LocalContext(tmp_path / "whole"))
    stopping = Stopping(tmp_path / "stopped")
    with pytest.raises(JobStopped):
        fit(QUICK, prepared, stopping)
    resumed = fit(QUICK, prepared, LocalContext(tmp_path / "stopped"))
    other = fit(QUICK.model_copy(update={"seed": 1}), prepared, LocalContext(tmp_path / "other"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(whole.bot.weight, other.bot.weight)


def test_a_loss_that_is_no_number_names_the_step(folder, tmp_path):
    prepared = prepare(QUICK, load_graph(folder))
    prepared.values_NP[0, 3] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 0"):
        fit(QUICK, prepared, LocalContext(tmp_path))


@pytest.mark.parametrize("encoder", ["mlp", "rgcn", "botrgcn", "rgt", "ggcn"])
def test_torch_onnx_and_compressed_rows_agree(encoder, tmp_path):
    graph = synthetic(300, 3000)
    config = TrainConfig(encoder=encoder, epochs=12, hidden=16, floors=False, learning_rate=0.05, direction="both")
    made = Bundle.open(train_graph(config, graph, LocalContext(tmp_path)))
    predictor = load(made, ServiceSettings())
    near = predictor.neighbourhood(graph)
    everything = (10_000, 10_000, 10_000)  # the third hop for the degrees of the second, which ggcn looks at
    answers = predictor.predict([predictor.query(graph, near, root, everything, 0) for root in range(40)])
    served = [answer.probabilities("bot")[1] for answer in answers if isinstance(answer, Answer)]
    whole = score_arrays(load_network(made, predictor.calibration), predictor.calibration, graph)
    assert np.allclose(served, whole["probability"][:40], atol=2e-5)
    if encoder != "mlp":  # the edges matter, so that a graph that loses them would be noticed
        without = score_arrays(
            load_network(made, predictor.calibration), predictor.calibration, replace(graph, edges=Edges.none())
        )
        assert np.abs(without["probability"] - whole["probability"]).max() > 1e-3
    for root in range(5):
        [alone] = predictor.predict([predictor.query(graph, near, root, everything, 0)])
        assert isinstance(alone, Answer)
        assert alone.probabilities("bot")[1] == pytest.approx(served[root], abs=1e-5)


def test_the_served_graph_is_exact_above_a_million_edges(tmp_path):
    """ONNX Runtime's scatter-add races with more than one thread, which small graphs do not show."""
    small = synthetic(300, 3000)
    made = Bundle.open(
        train_graph(TrainConfig(epochs=2, hidden=16, floors=False, direction="as-given"), small, LocalContext(tmp_path))
    )
    predictor = load(made, ServiceSettings())
    graph = synthetic(20_000, 1_200_000)
    assert len(graph.edges) > 1_000_000
    ends = np.stack([graph.edges.source_E, graph.edges.target_E])
    known = np.ones_like(graph.values_NP)
    feeds = {"edges": ends, "relations": graph.edges.relation_E, "values": graph.values_NP, "known": known}
    logits = predictor.session.infer({**feeds, "roots": np.arange(20_000)})["bot_logits"]
    model = load_network(made, predictor.calibration)
    with torch.inference_mode():
        relations = relations_of(torch.from_numpy(ends), torch.from_numpy(graph.edges.relation_E), 7)
        expected, _ = model(torch.from_numpy(graph.values_NP), torch.from_numpy(known), None, relations)
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    whole = score_arrays(model, predictor.calibration, graph)
    by_view = expected.numpy()[:, -1] / predictor.calibration.views[-1].temperatures["bot"]
    assert np.allclose(whole["probability"], 1 / (1 + np.exp(by_view[:, 0] - by_view[:, 1])), atol=1e-4)


def test_explanations_add_up_and_find_what_matters(bundle, folder):
    predictor = load(bundle, ServiceSettings())
    graph = load_graph(folder)
    query = predictor.query(graph, predictor.neighbourhood(graph), 0, (25, 10), 0)
    found = explain(predictor, query, 8, 0)
    again = explain(predictor, query, 8, 0)
    assert found == again

    def logit(share):
        return np.log(share / (1 - share))

    total = sum(value for value, _ in found.contributions.values())
    assert total == pytest.approx(logit(found.probability) - logit(found.baseline), abs=1e-3)
    assert found.edges
    assert set(found.contributions) <= set(PROPERTIES)
    assert found.without_top >= 0


def test_a_whole_graph_is_scored_to_parquet(bundle, folder, tmp_path):
    from pyarrow import parquet

    context = LocalContext(tmp_path)
    path, summary = score_graph(GraphConfig(prior=0.1, min_confidence=0.8), folder, bundle, context)
    rows = parquet.read_table(path).to_pylist()
    assert (len(rows), summary["rows"], rows[0]["id"]) == (300, 300, "a0")
    assert sum(summary["labels"].values()) == 300
    assert all(row["adjusted_probability"] < row["probability"] for row in rows)
    assert {row["label"] for row in rows} <= {"bot", "human", "abstain"}
    assert {row["view"] for row in rows} == {"graph"}
    predictor = load(bundle, ServiceSettings())
    assert rows[0]["distance"] == pytest.approx(
        predictor.calibration.distance(load_graph(folder).values_NP[0], predictor.calibration.views[-1])
    )


def test_edges_of_relations_that_the_model_does_not_know_are_left_out_and_told(bundle, folder, tmp_path):
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "accounts.csv").write_bytes((folder / "accounts.csv").read_bytes())
    (changed / "edges.csv").write_text((folder / "edges.csv").read_text() + "a1,poke,a2\na2,poke,a1\na1,poke,a1\n")
    _, summary = score_graph(GraphConfig(), changed, bundle, LocalContext(tmp_path))
    assert summary["repairs"]["edges_of_unknown_relations"] == 2
    assert summary["repairs"]["self_loops"] == 1


def test_a_version_is_compared_with_the_champion(bundle, folder, tmp_path):
    found = compare(bundle.folder, bundle.folder, folder, LocalContext(tmp_path))
    assert (found.metric, found.difference.value, found.difference.low) == ("bot_accuracy", 0, 0)


def test_views_are_what_the_data_tell():
    known = np.ones((10, 20), bool)
    assert list(views_of(known, True)) == ["profile", "x-v2", "full", "graph"]
    known[:, PROPERTIES.index("listed_count")] = False
    assert "listed_count" not in views_of(known, False)["full"]
    assert views_of(np.zeros((10, 20), bool), True) == {}


def test_too_few_labels_are_told(tmp_path):
    write_graph(tmp_path, accounts=60)
    with pytest.raises(BadGraph, match="'validation' has 12 accounts with a label for bot"):
        train(QUICK, tmp_path, LocalContext(tmp_path / "run"))


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"encoder": "gat"})


def test_a_calibration_that_is_no_calibration_is_refused(bundle, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "calibration.json").write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    from shared.bundles import file_digest

    manifest["files"]["calibration.json"] = {"sha256": file_digest(folder / "calibration.json"), "size": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleRejected, match="calibration"):
        load(Bundle.open(folder), ServiceSettings())


def test_the_other_measurements_run_on_small_data(tmp_path):
    graph = load_graph(write_graph(tmp_path, accounts=220))
    text = accounts(graph, ("mlp",), None, seeds=(0,), epochs=2)
    assert "| mlp, view profile |" in text
    assert "| floor: gradient boosting |" in text
    values = torch.rand(30, 20)
    torch.save(values, tmp_path / "num_properties_tensor_10k.pt")
    torch.save(torch.arange(30) % 2, tmp_path / "label_10k.pt")
    sample = twibot(tmp_path)
    assert sample.bot_N.tolist() == [0, 1] * 15
    assert (np.argsort(sample.values_NP[:, 3]) == np.argsort(values[:, 3].numpy())).all()
    text = scale([(500, 5_000), (1_000, 20_000), (2_000, 40_000)], "rgcn", rounds=1)
    assert "| 2,000 | 39,9" in text
    assert "One account, fan-out 25 × 10" in text
    assert 'x-axis "million edges" [0.0, 0.0]' in text


def test_mgtabs_protocol_runs_on_synthetic_files(tmp_path):
    write_mgtab(tmp_path, accounts=250, edges=1500)
    text = mgtab(tmp_path, ("rgcn",), tmp_path / "out.json", epochs=2, seeds=(0, 1))
    assert "bot: rgcn" in text
    assert "stance: floor random forest" in text
    assert len(json.loads((tmp_path / "out.json").read_text())["bot: rgcn"]) == 2
