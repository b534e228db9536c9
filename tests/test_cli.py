"""The command line as a person meets it: wrong calls, own data with a broken row, fit → recommend → evaluate on a tiny folder."""
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from genre_nb.cli import app
from genre_nb.simulation import World

runner = CliRunner()
TINY = """
gan: {pretrain_g_steps: 6, pretrain_d_steps: 6, play_steps: 3, batch_size: 16, health_size: 32, health_every: 5}
rerank: {steps: 40, seeds: 1, candidates: 40, folds: 1, tune_users: 60}
vocab_size: 600
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shop")
    World("ecommerce", "zh", 150, 150, 0).dataset().to_folder(path / "data")
    (path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(folder):
    result = runner.invoke(app, ["fit", "--data", str(folder / "data"), "--out", str(folder / "model"), "--config", str(folder / "tiny.yaml")])
    assert result.exit_code == 0, result.output
    return folder / "model"


def test_fit_leaves_a_model_and_no_checkpoint(model):
    assert (model / "genre.json").exists() and not (model / "checkpoint").exists()


def test_recommend_by_interest_and_by_user(model):
    result = runner.invoke(app, ["recommend", "--model", str(model), "--interest", "运动鞋", "-k", "3", "--json"])
    rows = json.loads(result.stdout)
    assert result.exit_code == 0 and [r["rank"] for r in rows] == [1, 2, 3] and all(r["title"] for r in rows)
    user = World("ecommerce", "zh", 150, 150, 0).dataset().users["user_id"].iloc[0]
    assert len(json.loads(runner.invoke(app, ["recommend", "--model", str(model), "--user", str(user), "--json"]).stdout)) == 10


def test_rerank_keeps_the_items_and_only_them(model):
    ids = [r["item_id"] for r in json.loads(runner.invoke(app, ["recommend", "--model", str(model), "--interest", "帐篷", "--json"]).stdout)][:4]
    rows = json.loads(runner.invoke(app, ["rerank", "--model", str(model), "--interest", "运动鞋", "--items", ",".join(map(str, ids)), "--json"]).stdout)
    assert {r["item_id"] for r in rows} == set(ids)


def test_generate(model):
    rows = json.loads(runner.invoke(app, ["generate", "--model", str(model), "--interest", "运动鞋", "-n", "2", "--json"]).stdout)
    assert len(rows) == 2 and all(0 <= r["judge"] <= 1 for r in rows)


def test_evaluate_writes_the_promised_metrics(model, folder):
    result = runner.invoke(app, ["evaluate", "--model", str(model), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert {"dataset", "protocol", "systems", "lift_vs_best_baseline", "lift_vs_gan_off", "lift_vs_features_only", "best_baseline", "seconds", "config"} <= set(metrics)
    assert {"genre", "genre_gan_off", "genre_features_only", "popularity", "ease", "item_knn", "bm25", "dense", "generated"} <= set(metrics["systems"])
    for system in metrics["systems"].values():
        assert {"precision@10", "recall@10", "ndcg@10", "hit_rate@1", "coverage@10"} <= set(system)
        assert system["coverage@10"]["low"] is None and system["ndcg@10"]["low"] <= system["ndcg@10"]["mean"] <= system["ndcg@10"]["high"]
    assert metrics["best_baseline"] in metrics["systems"] and not metrics["best_baseline"].startswith("genre")


def test_a_broken_row_is_named(folder, tmp_path):
    World("ecommerce", "zh", 120, 120, 0).dataset().to_folder(tmp_path / "data")
    import pandas as pd
    table = pd.read_csv(tmp_path / "data" / "interactions.csv.gz", dtype=str)
    table.loc[4, "item_id"] = "no-such-item"
    table.to_csv(tmp_path / "data" / "interactions.csv.gz", index=False)
    result = runner.invoke(app, ["fit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "m")])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert all(word in result.output for word in ("interactions.csv.gz", "item_id", "line 6")) and not (tmp_path / "m").exists()


@pytest.mark.parametrize("config, word", [("rerank: {candidats: 5}", "candidats"), ("gan: {w: 2}", "w"), ("{", "YAML")])
def test_a_wrong_configuration_is_named(folder, tmp_path, config, word):
    (tmp_path / "c.yaml").write_text(config, encoding="utf-8")
    result = runner.invoke(app, ["fit", "--data", str(folder / "data"), "--out", str(tmp_path / "m"), "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 1 and word in result.output and "c.yaml" in result.output.replace("\n", "")


def test_unknown_user(model):
    result = runner.invoke(app, ["recommend", "--model", str(model), "--user", "nobody-at-all"])
    assert result.exit_code == 1 and "nobody-at-all" in result.output


def test_the_package_imports_lightly():
    code = "import sys, torch, time; t = time.perf_counter(); import genre_nb; s = time.perf_counter() - t; " \
           "bad = [m for m in ('pytorch_lightning', 'transformers', 'faiss', 'jieba') if m in sys.modules]; assert not bad and s < 1, (bad, s)"
    subprocess.run([sys.executable, "-c", code], check=True)
