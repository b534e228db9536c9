"The scripts that make the tables of the studies, on a tiny world: what is shared, what is resumed, what is summed up."
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from genre_nb.adversarial import GanConfig
from genre_nb.datasets import RecDataset
from genre_nb.evaluation import ranking_metrics
from genre_nb.recommender import GenreConfig, GenreRecommender, ShuffledJudge
from genre_nb.reranking import Reranker, RerankConfig, Weights
from genre_nb.simulation import World


def script(name: str):
    "A file of benchmarks/ as a module."
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(**more) -> GenreConfig:
    "Small networks, few steps."
    gan = GanConfig(pretrain_g_steps=4, pretrain_d_steps=3, play_steps=2, batch_size=16, batch_size_g=8, health_size=16, health_every=100)
    return GenreConfig(min_frequency=2, vocab_size=400, l2_grid=(100.0,), gan=gan, rerank=RerankConfig(candidates=40, folds=2, seeds=1, steps=20, tune_users=80), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    shop = tmp_path_factory.mktemp("shops") / "shop"
    World("ecommerce", "en", 100, 100, seed=0).dataset().split_by_time(by="user").to_folder(shop)
    return shop


@pytest.fixture(scope="module")
def seeds():
    module = script("seeds")
    module.GenreConfig = tiny
    return module


def run(module, monkeypatch, *options) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, options)])
    module.main()


def test_seeds_share_their_stages_and_are_not_trained_twice(seeds, folder, tmp_path, monkeypatch, capsys):
    options = ["--data", folder, "--out", tmp_path, "--summary", tmp_path / "seeds.json"]
    run(seeds, monkeypatch, *options, "--seeds", 2)
    kept = {file.name: file.read_bytes() for file in (tmp_path / "shop.warm").glob("*.json")}
    assert set(kept) == {"0.json", "1.json"} and not list((tmp_path / "shop.warm").glob("training*"))
    found = json.loads((tmp_path / "seeds.json").read_text())["shop.warm"]
    runs = [json.loads(text) for text in kept.values()]
    assert found["seeds"] == 2 and found["versions"]["python"] and len(found["seconds"]) == 2 and found["users"] == len(runs[0]["ndcg@10"]["genre"])
    assert runs[0]["ndcg@10"]["first_stage"] == runs[1]["ndcg@10"]["first_stage"] and set(found["lifts"]) == {"first_stage", *seeds.PARTS}
    written = runs[0]["written"]
    assert all(0 <= written[name] <= 1 for name in written if name not in ("users", "texts")) and written["words_real"] >= written["words_random"] and written["users"] <= 500
    assert found["written"]["copied"] == pytest.approx(np.mean([run["written"]["copied"] for run in runs]), abs=1e-4) and found["extra"] == [run["extra"] for run in runs]
    for over, lift in found["lifts"].items():
        means = {name: np.mean([run["ndcg@10"][name] for run in runs]) for name in ("genre", over)}
        assert lift["over_users"]["mean"] == pytest.approx(means["genre"] / means[over] - 1, abs=1e-6) and len(lift["by_seed"]) == 2
        assert lift["over_seeds"]["low"] <= lift["over_seeds"]["mean"] <= lift["over_seeds"]["high"]
    (tmp_path / "seeds.json").write_text(json.dumps({"another.warm": {"lifts": {}, "seeds": 0}}))
    monkeypatch.setattr(seeds.Study, "share", lambda *_: pytest.fail("fitted again"))
    run(seeds, monkeypatch, *options, "--seeds", 2)                              # all is there
    assert {file.name: file.read_bytes() for file in (tmp_path / "shop.warm").glob("*.json")} == kept
    assert set(json.loads((tmp_path / "seeds.json").read_text())) == {"another.warm", "shop.warm"}
    assert "genre over genre_gan_off: users" in capsys.readouterr().out


def test_a_study_without_hard_negatives_stands_beside_the_other(seeds, folder, tmp_path, monkeypatch):
    options = ["--data", folder, "--out", tmp_path, "--seeds", 1]
    run(seeds, monkeypatch, *options)
    run(seeds, monkeypatch, *options, "--hard-negatives", 0)
    on, off = (json.loads((tmp_path / name / "0.json").read_text()) for name in ("shop.warm", "shop.warm.hard0"))
    assert on["ndcg@10"]["first_stage"] == off["ndcg@10"]["first_stage"] and on["auc_match"] != off["auc_match"]


def in_thirties(question):
    for start in range(0, len(question), 30): yield question[slice(start, start + 30)]


def the_whole_fit_says_the_same(folder, w: float, found: dict[str, float], weights: dict) -> None:
    "The recommender's own fit and order, in which nothing is shared and nothing is asked once only."
    config = tiny(protocol="warm").seeded(0)
    shop = GenreRecommender(config.model_copy(update={"gan": config.gan.model_copy(update={"w": float(w)})})).fit(RecDataset.from_folder(folder))
    question, orders = shop.question("test"), {name: [] for name in found}
    theory = {"d_alone": shop.trained.judge, "d_alone_shuffled": ShuffledJudge(shop.trained.judge, shop.config.seed)}
    for part in in_thirties(question):
        items, scores = part.lists(shop.first, min(shop.config.rerank.candidates, shop.data.n_items))
        orders["first_stage"].append(items)
        orders["genre"].append(shop.reranker().rerank(part.requests, *shop.lengthen(shop.trained, part, items, scores, shop.trained.extra)).items)
        for name, judge in theory.items():
            orders[name].append(Reranker(shop.config.rerank, judge=judge).rerank(part.requests, items, scores, weights=Weights(behaviour=0.0, judge=1.0, match=0.0)).items)
    assert shop.trained.weights.model_dump() == weights
    for name, order in orders.items(): assert float(ranking_metrics(torch.cat([lists[:, :10] for lists in order]), question.relevant, (10,))["ndcg@10"].mean()) == pytest.approx(found[name], abs=1e-4), (w, name)


def test_a_study_for_each_position_of_the_dial(seeds, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds.Study, "parts", lambda self, question: in_thirties(question))   # so that there is more than one batch
    options = ["--data", folder, "--out", tmp_path, "--seeds", 2, "--w", 0, 1, "--summary", tmp_path / "seeds.json"]
    run(seeds, monkeypatch, *options)
    assert "shop.warm.w1, 2 seeds, d_alone over d_alone_shuffled: users" in capsys.readouterr().out and {path.name for path in tmp_path.glob("shop*")} == {"shop.warm.w0", "shop.warm.w1"}
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert [found[f"shop.warm.w{w}"]["w"] for w in (0, 1)] == [0, 1] and found["shop.warm.w0"]["ndcg@10"]["d_alone"] != found["shop.warm.w1"]["ndcg@10"]["d_alone"]
    for study in found.values():
        assert set(study["lifts"]) == {"first_stage", *seeds.PARTS, *seeds.ALONE} - {"genre_gan_off"}, "no twin is trained"
        at = study["ndcg@10"]
        for lift, (name, over) in seeds.ALONE.items():
            assert study["lifts"][lift]["over_users"]["mean"] == pytest.approx(np.mean(at[name]) / np.mean(at[over]) - 1, abs=1e-3) and at[name] != at[over]
        assert all(v["first stage"] <= v["features only"] <= v["genre"] for v in study["validation"])
    for w in (0, 1): the_whole_fit_says_the_same(folder, w, {name: found[f"shop.warm.w{w}"]["ndcg@10"][name][0] for name in ("first_stage", "d_alone", "d_alone_shuffled", "genre")}, found[f"shop.warm.w{w}"]["weights"][0])
    monkeypatch.setattr(seeds.Study, "share", lambda *_: pytest.fail("fitted again"))
    run(seeds, monkeypatch, *options)                                            # all is there


def test_fewer_users_teach_and_all_are_asked(seeds, folder, tmp_path, monkeypatch):
    data = RecDataset.from_folder(folder)
    tenth, third = (seeds.fewer_users(data, share) for share in (0.1, 0.3))
    who = [set(part.interactions["user"]) for part in (tenth, third)]
    assert who[0] < who[1] and len(who[0]) <= 10 and tenth.n_users == tenth.matrix("train").shape[0] == 100
    assert (tenth.matrix("train")[sorted(who[0])] != data.matrix("train")[sorted(who[0])]).nnz == 0
    run(seeds, monkeypatch, "--data", folder, "--out", tmp_path, "--seeds", 1, "--users", 0.3)
    run(seeds, monkeypatch, "--data", folder, "--out", tmp_path, "--seeds", 1)
    asked = [len(json.loads((tmp_path / name / "0.json").read_text())["ndcg@10"]["genre"]) for name in ("shop.warm.0.3", "shop.warm")]
    assert asked[0] == asked[1]
    other = seeds.fewer_users(data, 0.1, draw=1)
    assert set(other.interactions["user"]) != who[0] and len(set(other.interactions["user"])) <= 10


@pytest.mark.parametrize("options, message", [(["--data", "nowhere"], "there is no such folder"), (["--users", "1.5"], "above 0 and at most 1"), (["--seeds", "0"], "at least 1"),
                                              (["--draw", "1"], "with --users below 1"), (["--hard-negatives", "-1"], "from 0 upward"), (["--w", "0", "1.5"], "--w 0 1.5: give numbers from 0 to 1")])
def test_wrong_options_of_seeds(seeds, folder, tmp_path, monkeypatch, options, message):
    with pytest.raises(SystemExit, match=message): run(seeds, monkeypatch, "--data", folder, "--out", tmp_path, *options)


def test_a_made_up_shop_has_the_size_that_was_asked_for(tmp_path):
    scale = script("scale")
    rows = scale.make_shop(tmp_path, users=300, items=90, likes=4000, seed=1)
    data = RecDataset.from_folder(tmp_path)
    assert data.n_items == 90 and data.n_users <= 300 and len(data.interactions) == rows <= 4000 and set(data.splits) == {"train", "valid", "test"}
    shares = data.interactions["split"].value_counts(normalize=True)
    assert abs(shares["train"] - 0.8) < 0.05 and not data.interactions.duplicated(["user", "item"]).any()
    likes = pd.Series(np.asarray(data.matrix("train").sum(0)).ravel()).sort_values(ascending=False)
    assert likes.iloc[:9].sum() > 0.15 * likes.sum(), "fame follows Zipf's law, so a tenth of the items has far more than a tenth of the likes"


def test_what_is_written_is_counted_and_not_kept(folder, tmp_path, monkeypatch, capsys):
    model, summary = tmp_path / "model", tmp_path / "written.json"
    shop = GenreRecommender(tiny()).fit(RecDataset.from_folder(folder))
    shop.save(model)
    summary.write_text(json.dumps({"another.warm": {}}))
    run(script("written"), monkeypatch, model, "--users", 30, "--summary", summary)
    found = json.loads(summary.read_text())
    assert set(found) == {"another.warm", f"{shop.data.name}.warm"} and found[f"{shop.data.name}.warm"]["users"] == 30
    assert all(isinstance(value, (int, float)) for value in found[f"{shop.data.name}.warm"].values()) and "words_real" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nowhere.*is missing"): run(script("written"), monkeypatch, tmp_path / "nowhere")


FAKE_EVALUATE = """
import json, sys
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
interval = {"mean": 0.1, "low": 0.0, "high": 0.2}
systems = {name: {"ndcg@10": interval, "unheard@10": interval} for name in ("ease", "genre")}
lifts = {f"lift_vs_{over}": {"ndcg@10": interval, "recall@10": interval} for over in ("best_baseline", "gan_off")}
found = {"best_baseline": "ease", "weights": {}, "config": {"hard_negatives": 16}, "seconds": {"total": 61.4}, "versions": {"python": "3"}, "users": {"test": 7}, "systems": systems, **lifts, "given": given}
open(given["--out"] + "/metrics.json", "w").write(json.dumps(found | ({"contaminated": {"share": 0.1}} if "--contaminate" in given else {})))
"""


def test_real_data_runs_what_is_missing_and_collects(folder, tmp_path, monkeypatch, capsys):
    real = script("real_data")
    monkeypatch.setattr(real, "COMMAND", [sys.executable, "-c", FAKE_EVALUATE])
    options = ["--data", folder.parent, "--sets", "shop", "--out", tmp_path, "--summary", tmp_path / "real.json", "--contaminate", 0.1]
    (tmp_path / "real.json").write_text(json.dumps({"another.warm.0": {"kept": True}}))
    run(real, monkeypatch, *options)
    given = {name: json.loads((tmp_path / f"shop.{name}.0" / "metrics.json").read_text())["given"] for name in ("warm", "item-cold")}
    assert {name: (g["--data"], g["--protocol"], g["--seed"], g.get("--contaminate")) for name, g in given.items()} == {
        "warm": (str(folder), "warm", "0", None), "item-cold": (str(folder), "item-cold", "0", "0.1")}
    found = json.loads((tmp_path / "real.json").read_text())
    assert list(found) == ["another.warm.0", "shop.warm.0", "shop.item-cold.0"] and found["another.warm.0"] == {"kept": True}
    assert set(found["shop.warm.0"]["systems"]["genre"]) == {"ndcg@10"} and found["shop.warm.0"]["seconds"] == {"total": 61} and found["shop.warm.0"]["hard_negatives"] == 16 and found["shop.warm.0"]["versions"] == {"python": "3"} and found["shop.warm.0"]["users"] == {"test": 7}
    assert "contaminated" in found["shop.item-cold.0"] and "contaminated" not in found["shop.warm.0"]
    assert "shop.item-cold.0: finished" in capsys.readouterr().out
    monkeypatch.setattr(real, "COMMAND", [sys.executable, "-c", "raise SystemExit(3)"])
    run(real, monkeypatch, *options)                                             # all is there: nothing is run
    run(real, monkeypatch, *options, "--seeds", 2)
    assert "shop.warm.1: exit code 3" in capsys.readouterr().out and set(json.loads((tmp_path / "real.json").read_text())) == set(found)
    monkeypatch.setattr(real, "COMMAND", [sys.executable, "-c", FAKE_EVALUATE])
    (tmp_path / "options.yaml").write_text("hard_negatives: 0")
    run(real, monkeypatch, *options, "--protocols", "item-cold", "--config", tmp_path / "options.yaml", "--label", "hard0")
    assert list(json.loads((tmp_path / "real.json").read_text())) == [*found, "shop.item-cold.0.hard0"]
    assert json.loads((tmp_path / "shop.item-cold.0.hard0" / "metrics.json").read_text())["given"]["--config"] == str(tmp_path / "options.yaml")
    with pytest.raises(SystemExit, match="has no folder 'nowhere'; it holds: shop"): run(real, monkeypatch, *options, "--sets", "nowhere")


def test_every_saved_result_and_every_script_is_listed():
    root = Path(__file__).parents[1]
    listed = (root / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert not [file.name for file in (root / "nbs" / "results").glob("*.json") if f"`{file.name}`" not in listed and f"/{file.name}`" not in listed]
    assert not [file.name for file in (root / "benchmarks").glob("*.py") if file.name not in listed]


def test_members_are_judged_by_those_who_did_not_choose(folder, tmp_path, monkeypatch, capsys):
    from genre_nb.reranking import opinions_of
    members = script("members")
    members.GenreConfig = tiny
    (tmp_path / "members.json").write_text(json.dumps({"another": {}}))
    run(members, monkeypatch, "--data", folder, "--extras", "user_knn", "text_ease", "--deals", 1, "--summary", tmp_path / "members.json")
    found = json.loads((tmp_path / "members.json").read_text())
    assert set(found) == {"another", "shop"} and "with text_ease" in capsys.readouterr().out
    found, own = found["shop"], found["shop"]["members"]
    assert set(found["lifts"]) == {*(f"without {name}" for name in own), "with user_knn", "with text_ease"} and {"ease", "pure_svd", "dense"} <= set(own)
    for name, lift in found["lifts"].items(): assert lift["mean"] == pytest.approx(found["ndcg@10"][name] / found["ndcg@10"]["all"] - 1, abs=1e-3)
    shop = members.GenreRecommender(tiny())
    shop.take(RecDataset.from_folder(folder))
    shop._fit_stages(lambda _: None)
    question = shop.question("valid")
    opinions = opinions_of(shop.stages, question.requests, question.relevant, question.closed, question.allowed, 50)
    weights = members.torch.ones(len(opinions.names))
    assert opinions.each(weights).shape == (len(question),) and float(opinions.each(weights).mean()) == opinions.ndcg(weights)
    some = members.some_members(opinions, ["dense", "ease"])
    assert some.names == ("dense", "ease") and some.each(weights[:2]).shape == (len(question),)
    lone = members.some_members(opinions, ["dense"])
    assert members.held_out(lone, "dense", 2) == pytest.approx(lone.each(weights[:1]).numpy()), "of one opinion there is only one order"


def test_gains_by_length_of_the_history(folder, tmp_path, monkeypatch, capsys):
    model, summary, by_length = tmp_path / "model", tmp_path / "by_length.json", script("by_length")
    shop = GenreRecommender(tiny()).fit(RecDataset.from_folder(folder))
    shop.save(model)
    summary.write_text(json.dumps({"another.warm": {}}))
    run(by_length, monkeypatch, model, "--deals", 1, "--summary", summary)
    found = json.loads(summary.read_text())
    assert set(found) == {"another.warm", f"{shop.data.name}.warm"} and "held out" in capsys.readouterr().out
    found, asked = found[f"{shop.data.name}.warm"], by_length.Asked(shop)
    rows = np.arange(len(asked.question))
    assert sum(q["users"] for q in found["quarters"]) == found["users"] == len(rows) and found["weights"] == shop.trained.weights.model_dump()
    assert [q["history"] for q in found["quarters"]] == sorted(q["history"] for q in found["quarters"])
    before = asked.ndcg(by_length.NOTHING, rows)
    assert before.mean() == pytest.approx(shop._ndcg(shop.first, asked.question)), "all weights at zero: the first stage"
    assert found["in sample"]["mean"] == pytest.approx(asked.ndcg(shop.trained.weights, rows).mean() / before.mean() - 1, abs=1e-6)
    best = asked.chosen_on(rows)
    assert asked.ndcg(best, rows).mean() >= asked.ndcg(shop.trained.weights, rows).mean() - 1e-9, "whoever chooses is pleased with it"
    short = rows[asked.lengths <= np.median(asked.lengths)]
    long = np.setdiff1d(rows, short)
    assert len(short) and len(long), "this world has both"
    apart = asked.held_out(rows, rows, apart=True)
    for mine in (short, long): assert apart[mine] == pytest.approx(asked.ndcg(asked.chosen_on(mine), mine)), "each kind by its own weights"
    assert asked.held_out(rows, rows, apart=False) == pytest.approx(asked.ndcg(best, rows)) and {"held out, apart", "apart over together"} <= set(found)
    with pytest.raises(SystemExit, match="nowhere.*is missing"): run(by_length, monkeypatch, tmp_path / "nowhere")


def test_the_sampled_sum_is_measured_beside_the_whole_one(folder, tmp_path, monkeypatch, capsys):
    tuned, summary, sampled = tmp_path / "baselines.json", tmp_path / "sampled.json", script("sampled_vae")
    settings = {"hidden": 8, "latent": 4, "epochs": 20, "learning_rate": 0.01, "users_per_step": 10}
    tuned.write_text(json.dumps({"shop.warm": {"baselines": {"mult_vae": {"settings": settings}}}}))
    summary.write_text(json.dumps({"another.warm": {}}))
    options = ["--data", folder, "--tuned", tuned, "--users", 50, "--summary", summary]
    run(sampled, monkeypatch, *options, "--negatives", 5, "--seeds", 2)
    found = json.loads(summary.read_text())
    assert set(found) == {"another.warm", "shop.warm"} and "sampled over exact: nDCG@10 ×" in capsys.readouterr().out
    found = found["shop.warm"]
    assert found["settings"] == settings and found["negatives"] == 5 and 0 < found["validation_requests"] <= 50
    assert all(len(found[kind][what]) == 2 for kind in ("sampled", "exact") for what in ("validation_ndcg@10", "seconds"))
    assert found["sampled"]["validation_ndcg@10"] != found["exact"]["validation_ndcg@10"]
    for option in ("--negatives", "--seeds", "--users"):
        with pytest.raises(SystemExit, match=f"{option} 0: give at least 1"): run(sampled, monkeypatch, *options, option, 0)
    tuned.write_text("{}")
    with pytest.raises(SystemExit, match="no mult_vae of shop.warm there; run baselines.py"): run(sampled, monkeypatch, *options)
