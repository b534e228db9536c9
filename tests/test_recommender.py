"The whole path on a tiny world: what is asked, what is answered, what is refused, what is on disk."

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from genre_nb.adversarial import GanConfig
from genre_nb.collaborative_filtering import EASE, PureSVD, TextEASE
from genre_nb.datasets import DataError, RecDataset
from genre_nb.encoder import ENCODERS, EncoderConfig
from genre_nb.evaluation import evaluate_lists
from genre_nb.generator import LSTMGenerator
from genre_nb.recommender import (DAMPINGS, FIRST_STAGES, PROTOCOLS, TUNED, GenreConfig, GenreRecommender, Nearest, Remembering, RememberingBehaviour, ShuffledJudge, Towers, blend, item_folds,
                                  register, single_stages, stage_names, whole_ranking, with_splits, deals_of)
from genre_nb.reranking import RerankConfig, Weights
from genre_nb.retrieval import RETRIEVERS, Dense, Popularity
from genre_nb.simulation import World

TINY = dict(min_frequency=2, vocab_size=400, l2_grid=(100.0,))


def config(**more) -> GenreConfig:
    "Small networks, few steps."
    gan = GanConfig(pretrain_g_steps=4, pretrain_d_steps=3, play_steps=2, batch_size=16, batch_size_g=8, health_size=16, health_every=100)
    rerank = RerankConfig(candidates=40, folds=2, seeds=1, steps=20, tune_users=80)
    return GenreConfig(**{**TINY, "gan": gan, "rerank": rerank, **more})


def small_world(n: int = 150) -> RecDataset:
    "n × n, with two users that never did anything and three items without text."
    world = World("ecommerce", "zh", n, n, seed=0)
    items = world.items.copy()
    items.loc[items.index[:3], [c for c in ("title", "category", "description") if c in items]] = ""
    users = pd.concat([world.users, pd.DataFrame({"user_id": ["quiet", "shy"], "profile": ["跑步鞋", ""]})], ignore_index=True)
    return RecDataset(world.interactions, items, users, name="tiny")


@pytest.fixture(scope="module")
def data() -> RecDataset:
    return small_world()


@pytest.fixture(scope="module")
def fitted(data) -> GenreRecommender:
    return GenreRecommender(config()).fit(data)


@pytest.fixture(scope="module")
def folder(fitted, tmp_path_factory):
    return fitted.save(tmp_path_factory.mktemp("saved") / "model")


# asking

def test_users_and_texts_mixed(fitted, data):
    user = data.users["user_id"].iloc[5]
    requests, closed, names = fitted.requests([user, "运动鞋"])
    assert names == [user, "运动鞋"] and requests.users.tolist() == [5, -1]
    assert requests.texts == ["", "运动鞋"] and requests.history[1].nnz == 0 and (requests.recent[1] == -1).all()
    assert requests.history[0].nnz == data.matrix()[5].nnz and closed[1].nnz == 0
    table = fitted.recommend([user, "运动鞋"], k=4)
    assert table["asked"].tolist() == [user] * 4 + ["运动鞋"] * 4 and table["rank"].tolist() == [1, 2, 3, 4] * 2
    assert table.columns.tolist() == ["asked", "rank", "item_id", "title", "score"]


def test_history_is_not_recommended_again(fitted, data):
    users = data.users["user_id"].iloc[:20].tolist()
    table = fitted.recommend(users, k=150)
    liked = {(data.users["user_id"].iloc[u], data.items["item_id"].iloc[i]) for u, i in zip(*data.matrix()[:20].nonzero())}
    assert liked and not liked & set(zip(table["asked"], table["item_id"]))
    assert (table.groupby("asked")["score"].diff().dropna() <= 0).all()


def test_nothing_to_go_by_gets_what_is_popular(fitted, data):
    popular = fitted.stages["popularity"].retrieve(data.requests([data.n_users - 1], ()), 10)[0][0].tolist()
    expected = data.items["item_id"].iloc[popular].tolist()
    for who in ("quiet", "shy", "qqqqzzzz"):
        assert fitted.recommend(who, 10, rerank=False)["item_id"].tolist() == expected, who
        assert len(fitted.recommend(who, 10)) == 10


def test_list_may_be_longer_than_the_candidates_and_the_catalogue(fitted, data):
    assert len(fitted.recommend("运动鞋", k=100)) == 100
    assert len(fitted.recommend("运动鞋", k=10_000)) == data.n_items
    assert fitted.recommend("运动鞋", k=10_000)["item_id"].is_unique


def test_allowed_cannot_be_overridden(fitted, data):
    ids, user = data.items["item_id"].iloc[[3, 50, 149]].tolist(), data.users["user_id"].iloc[5]
    mask = data.items["item_id"].isin(ids).to_numpy()
    by_id = fitted.recommend([user, "运动鞋"], 10, allowed=ids)
    assert set(by_id["item_id"]) <= set(ids) and (by_id["asked"] == "运动鞋").sum() == 3
    assert by_id.equals(fitted.recommend([user, "运动鞋"], 10, allowed=mask))
    assert by_id.equals(fitted.recommend([user, "运动鞋"], 10, allowed=set(ids)))
    assert fitted.recommend("运动鞋", 10, allowed=ids[0])["item_id"].tolist() == ids[:1]
    assert len(fitted.recommend("运动鞋", 10, allowed=[])) == 0
    assert set(fitted.recommend("运动鞋", 10, allowed=ids, diversity=0.5)["item_id"]) == set(ids)
    with pytest.raises(ValueError, match=r"a mask needs \(150,\)"): fitted.recommend("运动鞋", allowed=mask[:9])
    with pytest.raises(DataError, match="there is no item nope"): fitted.recommend("运动鞋", allowed=["nope"])


@pytest.mark.parametrize("call, error, message", [
    (lambda r: r.recommend([]), ValueError, "nobody asks"),
    (lambda r: r.recommend(" "), ValueError, "interest text is empty"),
    (lambda r: r.recommend(987654), DataError, "there is no user 987654"),
    (lambda r: r.recommend("nobody", kind="users"), DataError, "there is no user nobody"),
    (lambda r: r.recommend("运动鞋", kind="people"), ValueError, "kind must be"),
    (lambda r: r.recommend("运动鞋", 0), ValueError, "k must be at least 1"),
    (lambda r: r.recommend("运动鞋", diversity=1.5), ValueError, "between 0 and 1"),
    (lambda r: r.generate("运动鞋", 0), ValueError, "n must be at least 1"),
    (lambda r: r.explain(["运动鞋", "鼠标"]), ValueError, "one request"),
    (lambda r: r.rerank("运动鞋", ["nope"]), DataError, "there is no item nope"),
    (lambda r: r.rerank(["运动鞋", "鼠标"], [["nope"]]), ValueError, "2 ask, but there are 1"),
    (lambda r: r.rerank("运动鞋", [[]]), ValueError, "is empty"),
])
def test_bad_questions(fitted, call, error, message):
    with pytest.raises(error, match=message): call(fitted)


def test_not_fitted():
    with pytest.raises(RuntimeError, match="not fitted"): GenreRecommender(config()).recommend("运动鞋")


def test_a_failed_fit_is_not_fitted(data):
    recommender = GenreRecommender(config())
    with pytest.raises(DataError, match="the splits are"): recommender.fit(data.split_random(valid=0.2, test=0.0))
    with pytest.raises(RuntimeError, match="not fitted"): recommender.recommend("运动鞋")


def test_rerank_keeps_the_candidates(fitted, data):
    ids = data.items["item_id"].iloc[[7, 90, 20, 33]].tolist()
    table = fitted.rerank(["运动鞋", data.users["user_id"].iloc[3]], ids)
    assert all(set(part["item_id"]) == set(ids) for _, part in table.groupby("asked"))
    assert len(fitted.rerank("运动鞋", [ids], [[1.0, 2.0, 3.0, 4.0]])) == 4
    with pytest.raises(ValueError, match="as many numbers"): fitted.rerank("运动鞋", [ids], [[1.0]])


def test_generate_is_grounded(fitted, data):
    table = fitted.generate(["运动鞋", data.users["user_id"].iloc[3]], n=2)
    assert len(table) == 4 and table["judge"].between(0, 1).all()
    assert set(table["nearest_id"].dropna()) <= set(data.items["item_id"])


def test_parts_of_the_explanation_add_up(fitted, data):
    table = fitted.explain(data.users["user_id"].iloc[5], 5)
    np.testing.assert_allclose(table[["prior", "behaviour", "judge", "match"]].sum(axis=1), table["score"], atol=5e-3)


def test_report(fitted):
    report = fitted.evaluate(ks=(1, 10), limit=60)
    assert {"genre", "genre_gan_off", "genre_features_only", "genre_text_only", "popularity", "generated"} <= set(report.systems)
    saved = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert saved["best_baseline"] == max(report.valid_ndcg, key=report.valid_ndcg.get) and not saved["best_baseline"].startswith("genre")
    assert saved["users"] == {"valid": len(fitted.question("valid", fitted.config.rerank.tune_users)), "test": 60}
    assert saved["systems"]["genre"]["coverage@10"]["low"] is None and {"mean", "low", "high"} == set(saved["lift_vs_gan_off"]["ndcg@10"])


# again and again

def test_same_seed_same_answers(fitted, data):
    twin, who = GenreRecommender(config()).fit(data), [*data.users["user_id"].iloc[:30], "运动鞋"]
    pd.testing.assert_frame_equal(fitted.recommend(who), twin.recommend(who))
    pd.testing.assert_frame_equal(fitted.generate("运动鞋"), twin.generate("运动鞋"))


def test_loaded_gives_identical_answers(fitted, folder, data):
    loaded, who = GenreRecommender.load(folder), [*data.users["user_id"].iloc[:30], "运动鞋", "quiet"]
    pd.testing.assert_frame_equal(fitted.recommend(who), loaded.recommend(who))
    pd.testing.assert_frame_equal(fitted.generate("运动鞋"), loaded.generate("运动鞋"))
    pd.testing.assert_frame_equal(fitted.explain("运动鞋"), loaded.explain("运动鞋"))
    assert loaded.config == fitted.config and loaded.data.protocol == fitted.data.protocol


def test_a_loaded_one_can_be_evaluated_and_saved_again(fitted, folder, tmp_path):
    loaded = GenreRecommender.load(folder)
    ours, theirs = (r.evaluate(ks=(10,), limit=40).systems for r in (fitted, loaded))
    for name in ("genre", "genre_gan_off"): pd.testing.assert_frame_equal(ours[name].per_user, theirs[name].per_user)
    again = loaded.save(tmp_path / "again")
    assert (again / "gan.safetensors").read_bytes() == (folder / "gan.safetensors").read_bytes()


def test_folder_holds_no_code(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"genre.json", "tokenizer.json", "stages.safetensors", "gan.safetensors", "scorer.safetensors",
                     "data/interactions.csv.gz", "data/items.csv.gz", "data/users.csv.gz"}
    assert not folder.with_name("model.writing").exists()


def test_save_over_an_old_folder_keeps_what_is_not_ours(fitted, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fitted.save(tmp_path), fitted.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and GenreRecommender.load(tmp_path).data.n_items == 150


def test_incomplete_folders(fitted, tmp_path):
    with pytest.raises(ValueError, match="genre.json is missing"): GenreRecommender.load(tmp_path / "nothing")
    saved = fitted.save(tmp_path / "m")
    meta = json.loads((saved / "genre.json").read_text())
    (saved / "genre.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(ValueError, match="has format 99"): GenreRecommender.load(saved)
    (saved / "genre.json").write_text(json.dumps(meta))
    (saved / "gan.safetensors").unlink()
    with pytest.raises(ValueError, match="gan.safetensors is missing"): GenreRecommender.load(saved)


@pytest.mark.parametrize("kind", [int, str])
def test_ids_keep_their_type(kind, tmp_path):
    data = small_world(80)
    tables = {n: getattr(data, n).drop(columns=["user", "item", "positive", "text"], errors="ignore") for n in ("interactions", "items", "users")}
    numbers = {"user_id": dict(zip(data.users["user_id"], map(kind, range(1000, 2000)))), "item_id": dict(zip(data.items["item_id"], map(kind, range(80))))}
    for table in tables.values():
        for column, names in numbers.items():
            if column in table: table[column] = table[column].map(names)
    fitted = GenreRecommender(config()).fit(RecDataset(*tables.values()))
    loaded = GenreRecommender.load(fitted.save(tmp_path / "m"))
    who = [kind(1005), "运动鞋"]
    assert fitted.requests(["1005", 1006])[0].users.tolist() == [5, 6]
    assert isinstance(loaded.recommend(who)["item_id"].tolist()[0], kind)
    pd.testing.assert_frame_equal(fitted.recommend(who), loaded.recommend(who))


# own parts

class Plain(LSTMGenerator):
    "An own generator."


class Stock(Popularity):
    "An own first stage."
    kind = "test_stock"


def two_numbers(texts):
    "A poor text encoder."
    return np.array([[len(t), 1.0] for t in texts], dtype=np.float32)


def test_own_objects(data, tmp_path):
    settings = config()
    mine = Plain(settings.gan.generator, 400, settings.gan.encoder.hidden)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    parts = {"generator": mine, "stock": Stock(), "lengths": Dense(two_numbers)}
    try: fitted = GenreRecommender(settings, parts=parts).fit(data)
    except RuntimeError as error: pytest.fail(f"vocabulary is not 400? {error}")
    assert isinstance(fitted.trained.gan.generator, Plain) and fitted.trained.gan.generator is not mine
    assert all(torch.equal(v, mine.state_dict()[k]) for k, v in before.items()), "copies are trained, so the twin starts alike"
    assert {"stock", "lengths"} <= set(fitted.stages) and parts["stock"].n_items is None
    saved = fitted.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"own part 'generator' \(Plain\).*give it again"): GenreRecommender.load(saved)
    with pytest.raises(ValueError, match="give the same class"): GenreRecommender.load(saved, parts={**parts, "stock": Popularity()})
    with pytest.raises(ValueError, match="without an own part 'more'"): GenreRecommender.load(saved, parts={**parts, "more": Popularity()})
    loaded = GenreRecommender.load(saved, parts=parts)
    pd.testing.assert_frame_equal(fitted.recommend(["运动鞋", data.users["user_id"].iloc[4]]), loaded.recommend(["运动鞋", data.users["user_id"].iloc[4]]))
    wrong = Plain(settings.gan.generator.model_copy(update={"hidden": 32}), 400, settings.gan.encoder.hidden)
    with pytest.raises(ValueError, match="does not fit these networks"): GenreRecommender.load(saved, parts={**parts, "generator": wrong})


@pytest.mark.parametrize("parts, message", [
    ({"generator": 3}, "must be an nn.Module"), ({"writer": nn.Linear(1, 1)}, "must be a Retriever"), ({"ease": Popularity()}, "already")])
def test_bad_parts(parts, message):
    with pytest.raises(ValueError, match=message): GenreRecommender(parts=parts)


def test_a_fusion_is_offered_where_its_members_are():
    names = {"zsum(ease+rp3beta)", "zsum(ease+rp3beta+dense/3)"}
    assert names <= set(stage_names({"ease": None, "rp3beta": None, "dense": None})) and not names & set(stage_names({"ease": None, "dense": None}))


@pytest.mark.parametrize("values, tried, chosen", [
    ({10: 0.1, 30: 0.2, 100: 0.3}, 3, 100),                        # still rising at the end
    ({10: 0.3, 30: 0.2, 100: 0.3, 300: 0.9}, 3, 10),               # an equal value is no better
    ({10: 0.3, 30: 0.2, 100: 0.4, 300: 0.3, 1000: 0.2, 3000: 0.9}, 5, 100)])   # one value behind ends nothing
def test_lambda_is_sought_upward_until_two_are_no_better(monkeypatch, values, tried, chosen):
    asked = []
    fitted = GenreRecommender(config(l2_grid=(*reversed(values), 10)))        # in any order, one twice
    fitted.view = None
    monkeypatch.setattr(EASE, "fit", lambda stage, view: asked.append(stage.l2) or stage)
    monkeypatch.setattr(fitted, "_ndcg", lambda stage, valid: values[stage.l2])
    assert fitted._choose_ease(None).l2 == chosen and asked == sorted(values)[:tried]


def test_ease_with_weights_is_chosen_on_validation(data):
    fitted = GenreRecommender(config(user_power_grid=(0.5,), discount_grid=(0.0, 0.3)))
    fitted.take(data)
    fitted._fit_stages(lambda message: None)
    chosen, stage = fitted.linear["weighted"], fitted.stages["ease_weighted"]
    assert chosen["l2"] == fitted.linear["l2"] and chosen["user_power"] in (0, 0.5) and chosen["discount"] in (0, 0.3)
    assert {name: getattr(stage, name) for name in chosen} == chosen
    assert fitted.valid_ndcg["ease_weighted"] >= fitted.valid_ndcg["ease"], "θ = δ = 0 is one of the settings"
    assert "zsum(ease_weighted+dense/3)" in fitted.valid_ndcg
    without = GenreRecommender(config(user_power_grid=()))
    without.take(data)
    without._fit_stages(lambda message: None)
    assert without.linear["weighted"] is None and "ease_weighted" not in without.stages and without.valid_ndcg["ease"] == fitted.valid_ndcg["ease"]
    with pytest.raises(ValueError, match="3 is above 2"): GenreConfig(user_power_grid=(3,))


def test_pure_svd_is_chosen_on_validation_damped_and_not(data):
    fitted = GenreRecommender(config(svd_factors_grid=(2, 8), svd_power_grid=(0.0, 0.5)))
    fitted.take(data)
    fitted._fit_stages(lambda message: None)
    valid = fitted.question("valid", fitted.config.rerank.tune_users)
    for name, damping in DAMPINGS.items():
        chosen, tried = fitted.linear["svd"][name], {}
        for factors in (2, 8):
            for power in (0.0, 0.5): tried[factors, power] = fitted._ndcg(PureSVD(factors, power, damping=damping).fit(fitted.view), valid)
        assert np.isclose(fitted.valid_ndcg[name], max(tried.values())) and np.isclose(tried[chosen["factors"], chosen["user_power"]], max(tried.values()))
        assert {option: getattr(fitted.stages[name], option) for option in chosen} == chosen and chosen["damping"] == damping
    assert list(fitted._single(fitted.view, {})) == list(fitted.stages), "folds fit the same stages in the same order"
    without = GenreRecommender(config(svd_factors_grid=()))
    without.take(data)
    without._fit_stages(lambda message: None)
    assert without.linear["svd"] == {} and not set(DAMPINGS) & set(without.stages) and set(DAMPINGS) & set(fitted.choices()) and not set(DAMPINGS) & set(without.choices())
    with pytest.raises(ValueError, match="there is no first stage 'pure_svd'"): GenreRecommender(config(first_stage="pure_svd", svd_factors_grid=()))
    with pytest.raises(ValueError, match="svd_factors_grid"): GenreConfig(svd_factors_grid=(0,))


@pytest.mark.parametrize("protocol", ["warm", "item-cold"])
def test_many_users_choose_the_weights_of_the_tuned_fusion(data, protocol, monkeypatch):
    import genre_nb.recommender as module
    seen, tune = [], module.tune_fusion
    monkeypatch.setattr(module, "tune_fusion", lambda opinions, start, *args, **kw: seen.append((opinions, start, tune(opinions, start, *args, **kw))) or seen[-1][2])
    settings = config(protocol=protocol, fusion_users=40)
    fitted = GenreRecommender(settings.model_copy(update={"rerank": settings.rerank.model_copy(update={"tune_users": 20})}))
    fitted.take(data)
    fitted._fit_stages(lambda message: None)
    (opinions, start, (weights, honest)), = seen
    assert opinions.liked.shape[0] == (40 if protocol == "warm" else 20), "new items are not made by asking more users"
    name = next(n for n in fitted.valid_ndcg if getattr(FIRST_STAGES.get(n), "weights", {n: 1.0}) == start)
    gain = honest / opinions.ndcg(torch.tensor([start.get(n, 0.0) for n in opinions.names]))
    assert fitted.fusion == weights and np.isclose(fitted.valid_ndcg[TUNED], fitted.valid_ndcg[name] * gain)


def test_a_discount_alone_needs_no_second_matrix(data):
    data = with_splits(data)
    weighted = {"l2": 50.0, "user_power": 0.0, "item_power": 0.0, "discount": 0.3}
    stages = single_stages(data, 50.0, weighted=weighted)
    asked = data.requests(np.arange(20))
    assert stages["ease_weighted"].weights is stages["ease"].weights
    assert torch.equal(stages["ease_weighted"].scores(asked), EASE(**weighted).fit(data).scores(asked))
    other = single_stages(data, 50.0, weighted=weighted | {"user_power": 0.5})
    assert torch.equal(other["ease_weighted"].scores(asked), EASE(**weighted | {"user_power": 0.5}).fit(data).scores(asked))


def test_stages_that_share_a_matrix_are_saved_apart(data, fitted, tmp_path):
    shared = copy.copy(fitted)
    shared.linear = {"l2": 100.0, "weighted": {"l2": 100.0, "user_power": 0.0, "item_power": 0.0, "discount": 0.2}}
    shared.stages = fitted.stages | {"ease_weighted": fitted.stages["ease"].discounted(0.2)}
    asked = data.requests(np.arange(10), ())
    loaded = GenreRecommender.load(shared.save(tmp_path / "m"))
    assert loaded.linear == shared.linear
    for name in ("ease", "ease_weighted"): assert torch.equal(loaded.stages[name].scores(asked), shared.stages[name].scores(asked))


def test_the_tuned_fusion(data, tmp_path):
    fitted = GenreRecommender(config(first_stage=TUNED)).fit(data)
    assert fitted.first_name == TUNED and set(fitted.fusion) <= set(fitted.stages) and fitted.first.weights == list(fitted.fusion.values())
    assert fitted.first.members == [fitted.stages[name] for name in fitted.fusion]
    assert TUNED in fitted.names() and TUNED in fitted.valid_ndcg
    name, weight = next(iter(fitted.fusion.items()))
    assert fitted.first_label.startswith(f"{TUNED} = {weight:g} {name}")
    loaded = GenreRecommender.load(fitted.save(tmp_path / "m"))
    assert loaded.fusion == fitted.fusion and loaded.first.weights == fitted.first.weights
    users = data.users["user_id"].iloc[:5].tolist()
    pd.testing.assert_frame_equal(fitted.recommend(users), loaded.recommend(users))
    report = loaded.evaluate(limit=20)
    assert TUNED in report.systems and report.weights[TUNED] == fitted.fusion


class Closing(Popularity):
    "Knows what is sold out, and says so by −inf."
    kind = "test_closing"

    def scores(self, requests):
        return super().scores(requests).masked_fill(torch.arange(self.n_items) % 2 == 0, -torch.inf)


def test_a_stage_that_closes_items_is_no_part_of_the_tuned_fusion(data):
    fitted = GenreRecommender(config(), parts={"test_closing": Closing()}).fit(data)
    assert "test_closing" in fitted.valid_ndcg and "test_closing" not in fitted.fusion and fitted.fusion
    assert len(fitted.recommend(data.users["user_id"].iloc[4], k=5)) == 5


def test_no_grid_no_tuned_fusion(data):
    with pytest.raises(ValueError, match="there is no first stage 'zsum.tuned.' with these options"): GenreRecommender(config(first_stage=TUNED, fusion_grid=()))
    with pytest.raises(ValueError): config(fusion_grid=(-1.0,))
    assert TUNED not in GenreRecommender(config(fusion_grid=())).fit(data).valid_ndcg


def test_what_is_left_without_a_part(fitted):
    report, trials = fitted.evaluate(limit=30), fitted.trained.trials
    told = report.to_dict()
    for part in ("gan_off", "features_only", "text_only", "g_off", "d_shuffled"):
        lift = report.systems["genre"].mean("ndcg@10") / report.systems[f"genre_{part}"].mean("ndcg@10") - 1
        assert told[f"lift_vs_{part}"]["ndcg@10"]["mean"] == pytest.approx(lift, abs=1e-6)
    assert {"genre_g_off", "genre_d_shuffled"} <= set(report.systems)
    assert fitted._without("match").match == 0 and fitted._without("judge", "match").judge == fitted._without("judge", "match").match == 0
    trials = trials[trials["generated"] == 0]
    best = trials.loc[trials["match"] == 0, "value"].max()
    mine = fitted._without("match")
    assert trials.query("judge == @mine.judge and behaviour == @mine.behaviour and match == 0")["value"].item() == best


@pytest.fixture
def longer(fitted):
    "The fitted recommender with seven candidates from G's texts for everybody who has a history, and four for words alone."
    kept = fitted.trained.extra, fitted.trained.text_extra
    fitted.trained.extra, fitted.trained.text_extra = 7, 4
    yield fitted
    fitted.trained.extra, fitted.trained.text_extra = kept


def test_g_brings_candidates_of_its_own(longer, data, tmp_path):
    known, size = np.flatnonzero(np.diff(longer.data.matrix("train").indptr))[:5], longer.config.rerank.candidates
    ids = data.users["user_id"].iloc[known].tolist()
    assert size + 7 <= data.n_items
    asked, closed, _ = longer.requests([*ids, "running shoes", ids[0]])
    items, scores = longer.candidates(asked, closed)
    assert items.shape == scores.shape == (7, size + 7)
    longer.trained.extra = longer.trained.text_extra = 0
    before, old = longer.candidates(asked, closed)
    longer.trained.extra, longer.trained.text_extra = 7, 4
    assert torch.equal(items[:, :size], before) and torch.equal(scores[:, :size], old)       # below the others, in the same order
    added = (items[:, size:] >= 0).sum(1).tolist()
    assert added == [7] * 5 + [4, 7] and (scores[:, size - 1 :].diff(dim=1)[:5] < 0).all()
    for row, known in zip(items, closed.toarray() + asked.history.toarray()):
        mine = row[row >= 0]
        assert len(set(mine.tolist())) == len(mine) and not known[mine].any()
    near = longer.trained.match.stage.scores(asked[np.array([0, 1, 2, 3, 4, 6])])             # who has a history is asked for together
    assert all(near[row, items[row, size:]].min() >= near[row].sort(descending=True).values[size + 7 + int(asked.history[row].sum() + closed[row].sum())] for row in range(5))
    only = np.zeros(data.n_items, dtype=bool)
    only[:20] = True
    assert set(longer.recommend(ids, 9, allowed=only)["item_id"]) <= set(data.items["item_id"].iloc[:20])
    longer.save(tmp_path / "m")
    loaded = GenreRecommender.load(tmp_path / "m")
    assert (loaded.trained.extra, loaded.trained.text_extra) == (7, 4) and loaded.recommend(ids, 5).equals(longer.recommend(ids, 5))


def test_extra_candidates_are_evaluated_as_they_are_served(longer, data):
    longer.evaluate(limit=2)                                     # the twin exists
    question = longer.question("test", 20)
    named = dict(longer.systems(question, 10))
    users = data.users["user_id"].iloc[question.requests.users].tolist()
    stage, scores = question.lists(longer.first, longer.config.rerank.candidates)
    long = longer.lengthen(longer.trained, question, stage, scores, 7)
    assert torch.equal(named["genre"][:, :10], longer.reranker().rerank(question.requests, *long).items[:, :10])
    assert set(longer._without("match").model_dump()) == {"behaviour", "judge", "match"}
    whole = longer._reranked(question, *question.lists(longer.first, data.n_items))
    for name, lists in whole:
        rows = [row[row >= 0].tolist() for row in lists]
        assert all(len(row) == len(set(row)) for row in rows) and (name != "genre" or all((lists[i] >= 0).sum() == (lists[i] >= 0).nonzero().max() + 1 for i in range(20)))


def test_g_writes_once_for_match_and_candidates(longer, data):
    question, writer = longer.question("valid", 40), longer.trained.writer
    writer.said.clear()
    items, scores = question.lists(longer.first, longer.config.rerank.candidates)
    items, scores = longer.lengthen(longer.trained, question, items, scores, 7)
    assert len(writer.said) == 1
    longer.trained.match(question.requests, items)
    assert len(writer.said) == 1


def test_more_candidates_must_be_clearly_better(fitted, monkeypatch):
    question = fitted.question("valid", 60)
    for verdict, extra in ((False, 0), (True, 30)):
        monkeypatch.setattr("genre_nb.recommender.clearly_better", lambda new, old: verdict)
        _, found, trials = fitted._tune(fitted.trained, fitted.reranker(), fitted.first, question)
        assert found == extra and set(trials["generated"]) == {0, 30}


def test_hard_negatives_train_and_are_reproducible(data):
    games = []
    for n in (3, 3, 0):
        shop = GenreRecommender(config(hard_negatives=n)).fit(data)
        games.append(shop.trained.gan)
    first, again, without = ({k: v for k, v in gan.state_dict().items()} for gan in games)
    assert all(torch.equal(first[k], again[k]) for k in first) and any(not torch.equal(first[k], without[k]) for k in first)
    assert games[0].grounded[1].shape == (data.n_users, 3) and games[2].grounded is None


def test_hard_negatives_are_no_likes(fitted, data):
    fitted.config = fitted.config.model_copy(update={"hard_negatives": 4})
    try: options = fitted._hard_negatives(users=30)
    finally: fitted.config = fitted.config.model_copy(update={"hard_negatives": 0})
    hard, near = options["hard_negatives"], options["ground"](fitted.trained.gan)
    likes = fitted.view.matrix("train").toarray() > 0
    for table in (hard, near):
        assert table.shape == (data.n_users, 4) and ((table >= 0).all(1).sum(), (table < 0).all(1).sum()) == (30, data.n_users - 30)
        assert not likes[np.repeat(np.arange(data.n_users), 4)[table.ravel() >= 0], table[table >= 0]].any()


def test_a_shuffled_judge_says_the_same_to_others():
    values, items = torch.rand(6, 40), torch.arange(40).expand(6, -1).clone()
    items[2, 30:] = -1
    dealt = ShuffledJudge(lambda requests, items: values, seed=0)(None, items)
    for row, size in enumerate([40, 40, 30, 40, 40, 40]):
        assert sorted(dealt[row, :size].tolist()) == sorted(values[row, :size].tolist()) and dealt[row].tolist() != values[row].tolist()
    assert dealt[2, 30:].tolist() == values[2, 30:].tolist()
    going_on = ShuffledJudge(lambda requests, items: values, deals_of(0))
    first, second = (going_on(None, items) for _ in range(2))
    assert torch.equal(first, dealt) and not torch.equal(second, dealt), "a second batch is dealt apart"


def test_batches_are_dealt_apart_when_they_share_the_deals(fitted):
    shop = copy.copy(fitted)
    shop.trained = shop.gan_off = copy.copy(fitted.trained)
    shop.trained.weights, shop.trained.extra = Weights(behaviour=0.0, judge=4.0, match=0.0), 0
    question = shop.question("test")[:60]
    of = lambda deals: dict(shop.systems(question, 10, deals=deals))
    deals = deals_of(shop.config.seed)
    alone, again, first, second = of(None), of(None), of(deals), of(deals)
    assert torch.equal(alone["genre_d_shuffled"], again["genre_d_shuffled"]) and torch.equal(alone["genre_d_shuffled"], first["genre_d_shuffled"])
    assert not torch.equal(second["genre_d_shuffled"], first["genre_d_shuffled"]) and not torch.equal(first["genre_d_shuffled"], first["genre"])
    assert all(torch.equal(first[name], second[name]) for name in first if name != "genre_d_shuffled")
    rows = np.r_[np.arange(1024) % 60, np.arange(56)]                               # two batches, and the same users at the same places of both
    shop.question = lambda *_: question[rows]
    values = {name: found.per_user["ndcg@10"].to_numpy() for name, found in shop.read_test((10,), None, lambda _: None, None).items()}
    assert np.array_equal(values["genre"][:56], values["genre"][1024:]) and not np.array_equal(values["genre_d_shuffled"][:56], values["genre_d_shuffled"][1024:])


def test_remembering_changes_nothing_but_how_often_is_asked(fitted, data):
    class Counting(Popularity):
        asked = 0
        def scores(self, requests):
            Counting.asked += 1
            return super().scores(requests)

    stage, requests = Counting().fit(fitted.view), fitted.question("valid").requests[:20]
    kept = Remembering(stage)
    before = kept.scores(requests).clone()
    kept.retrieve(requests, 5), kept.retrieve(requests, 10)
    assert torch.equal(kept.scores(requests), before) and Counting.asked == 1 and kept.name == stage.name
    kept.scores(requests[:7]), kept.scores(requests[7:])
    assert Counting.asked == 3, "other requests are other questions"
    with pytest.raises(TypeError, match="popularity is fitted already"): kept.fit(data)
    lists, scores = fitted.question("valid").lists(fitted.first, 10)
    again = fitted.question("valid").lists(fitted.stage(fitted.first_name, {n: Remembering(s) for n, s in fitted.stages.items()}), 10)
    assert torch.equal(lists, again[0]) and torch.equal(scores, again[1])
    Counting.asked, mask = 0, torch.from_numpy(requests.history.toarray() > 0)
    kept, plain = Remembering(stage), stage.standardised(requests, mask)
    for _ in range(3): assert torch.equal(kept.standardised(requests, mask), plain)
    assert Counting.asked == 2 and torch.equal(kept.scores(requests), before)      # once for the plain ones, once for those remembered


def test_features_and_texts_are_made_once_for_both_players(fitted, monkeypatch):
    asked, written, behaviour = [], [], fitted.behaviour
    question = fitted.question("valid")[slice(0, 300)]
    items, scores = question.lists(fitted.first, 20)
    kept = RememberingBehaviour(behaviour)
    monkeypatch.setattr(type(behaviour), "__call__", lambda self, requests, items, plain=type(behaviour).__call__: asked.append(len(items)) or plain(self, requests, items))
    assert torch.equal(kept(question.requests, items), kept(question.requests, items)) and len(asked) == 1 and kept.names == behaviour.names
    kept(question.requests, items.flip(1))
    assert len(asked) == 2, "other candidates are another question"
    assert copy.copy(kept).known is kept.known
    asked.clear()
    ours = copy.copy(fitted.trained)
    ours.weights = Weights(behaviour=1.0, judge=0.5, match=0.5)
    monkeypatch.setattr(fitted, "trained", ours)
    monkeypatch.setattr(fitted, "gan_off", copy.copy(ours))
    writer = ours.writer
    monkeypatch.setattr(writer, "said", {})
    monkeypatch.setattr(type(writer), "ids", lambda self, requests, n=None, plain=type(writer).ids: written.append(len(requests)) or plain(self, requests, n))
    lists = dict(fitted.systems(question, 10))
    assert asked == [len(question)] and {"genre", "genre_gan_off", "generated"} <= set(lists)
    assert sum(written) == len(question), "what finds the generated candidates is what is matched"


def test_register(data):
    class Other(nn.Module): pass
    with pytest.raises(ValueError, match="unknown part 'writer'"): register("writer", "mine", Other)
    with pytest.raises(ValueError, match="exists already"): register("generator", "lstm", Other)
    with pytest.raises(ValueError, match="kind = 'mine'"): register("retriever", "mine", Popularity)
    assert register("retriever", "test_stock")(Stock) is Stock and RETRIEVERS["test_stock"] is Stock
    assert register("encoder", "test_mean", ENCODERS["mean"]) and EncoderConfig(kind="test_mean").kind == "test_mean"
    del ENCODERS["test_mean"]
    with pytest.raises(ValueError, match="unknown retriever 'nope'"): GenreRecommender(config(retrievers=("nope",)))


def test_a_fusion_with_an_own_stage(data):
    FIRST_STAGES["test_blend"] = blend("rrf", test_stock=1.0, ease=1.0)
    try:
        assert "test_blend" not in stage_names({"ease": Popularity()}), "others cannot have it"
        fitted = GenreRecommender(config(retrievers=("test_stock",), first_stage="test_blend")).fit(data)
        assert fitted.first_name == "test_blend" and {"test_blend", "test_stock"} <= set(fitted.valid_ndcg)
        assert fitted.first.name == "rrf(test_stock+ease)"
    finally: del FIRST_STAGES["test_blend"]


# configuration

@pytest.mark.parametrize("text, words", [
    ("vocab_sise: 100", ["option vocab_sise", "did you mean 'vocab_size'"]),
    ("gan:\n  generator:\n    hiden: 5", ["option gan.generator.hiden", "did you mean 'hidden'"]),
    ("gan: {loss: magic}", ["option gan.loss", "unknown loss 'magic'"]),
    ("gan: {lr_g: -1}", ["option gan.lr_g", "greater than 0", "got -1"]),
    ("gan: {generator: {kind: nope}}", ["option gan.generator.kind", "nope"]),
    ("rerank: {judge_grid: [0.5]}", ["judge_grid must hold 0"]),
    ("- 1\n- 2", ["(top level)"]), ("a: [", ["not YAML or JSON"])])
def test_from_file_names_file_and_option(tmp_path, text, words):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught: GenreConfig.from_file(path)
    assert all(word in str(caught.value) for word in ["own.yaml", *words]), caught.value


def test_files_round_trip(tmp_path):
    settings = config(seed=4, retrievers=("tfidf",))
    for name in ("a.yaml", "a.json"): assert GenreConfig.from_file(settings.to_file(tmp_path / name)) == settings
    with pytest.raises(ValueError, match="gone.yaml: cannot be read"): GenreConfig.from_file(tmp_path / "gone.yaml")
    assert settings.seeded(7).gan.seed == settings.seeded(7).rerank.seed == settings.seeded(7).seed == 7


def test_unknown_first_stage_is_refused_before_fitting():
    with pytest.raises(ValueError, match="option first_stage: there is no first stage 'magic'.*choose one of popularity, "): GenreRecommender(config(first_stage="magic"))
    for name in ("ease_weighted", "zsum(ease_weighted+dense)"):
        with pytest.raises(ValueError, match="option first_stage: there is no first stage '.*ease_weighted"): GenreRecommender(config(first_stage=name, user_power_grid=()))
        GenreRecommender(config(first_stage=name))
    with pytest.raises(ValueError, match="there is no first stage 'rrf.ease_weighted.softmax_mf.'"): GenreRecommender(config(first_stage="rrf(ease_weighted+softmax_mf)"))
    GenreRecommender(config(first_stage="rrf(ease_weighted+softmax_mf)", retrievers=("softmax_mf",)))
    with pytest.raises(ValueError, match="with these options .protocol item-cold.: choose one of .*towers"): GenreRecommender(config(first_stage="zsum(ease+dense)", protocol="item-cold"))
    with pytest.raises(ValueError, match="vocab_sise"): GenreConfig(vocab_sise=5)


def test_nobody_qualifies():
    items = pd.DataFrame({"item_id": range(6), "title": list("abcdef")})
    rows = pd.DataFrame({"user_id": range(6), "item_id": range(6), "split": ["train"] * 2 + ["valid"] * 2 + ["test"] * 2})
    with pytest.raises(DataError, match="no user has likes in both 'train' and 'valid'"):
        GenreRecommender(config()).fit(RecDataset(rows, items))


# weight

def test_import_is_light():
    code = ("import torch, sys; before = set(sys.modules); import genre_nb; new = sorted(set(sys.modules) - before)\n"
            "heavy = [m for m in ('pytorch_lightning', 'transformers', 'faiss', 'jieba') if m in sys.modules]\n"
            "assert len(new) < 20 and not heavy, (new, heavy)\n"
            "assert 'GenreRecommender' in dir(genre_nb)\nimport genre_nb.datasets, genre_nb.losses, genre_nb.preprocessing\n"
            "assert not [m for m in ('pytorch_lightning', 'transformers', 'faiss', 'jieba') if m in sys.modules]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# protocols

def small_table(**more) -> RecDataset:
    "Four users, six items, every row written out."
    rows = [("a", 0, 5, "train"), ("a", 1, 2, "train"), ("a", 2, 4, "valid"), ("a", 3, 5, "test"),
            ("b", 0, 4, "train"), ("b", 2, 5, "train"), ("b", 3, 1, "valid"), ("b", 4, 4, "test"),
            ("c", 1, 5, "train"), ("c", 4, 5, "valid"), ("c", 5, 4, "test"),
            ("d", 5, 4, "train"), ("d", 3, 4, "train"), ("d", 0, 4, "valid"), ("d", 1, 3, "test")]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "split"])
    items = pd.DataFrame({"item_id": range(6), "title": ["red shoe", "blue shoe", "red hat", "blue hat", "tent", "red tent"]})
    return RecDataset(table, items, name="small", **more)


def asked(question) -> dict:
    "User → (history, candidates, what counts as found), from a stage that likes high codes."
    class ByCode(Popularity):
        kind = ""
        def scores(self, requests): return torch.arange(requests.n_items).float().repeat(len(requests), 1)
    stage = ByCode()
    stage.n_items = question.requests.n_items
    lists = question.lists(stage, stage.n_items)[0]
    rows = {}
    for i, user in enumerate(question.requests.users):
        rows["abcd"[user]] = (set(question.requests.history[i].indices.tolist()), {c for c in lists[i].tolist() if c >= 0},
                              set(question.relevant[i].indices.tolist()))
    return rows


def test_warm_asks_for_what_was_neither_liked_nor_rated_low():
    protocol, settings = PROTOCOLS["warm"], config()
    data = protocol.prepare(small_table(), 0)
    assert protocol.view(data) is data
    assert asked(protocol.question(data, "valid", settings)) == {
        "a": ({0}, {2, 3, 4, 5}, {2}), "c": ({1}, {0, 2, 3, 4, 5}, {4}), "d": ({3, 5}, {0, 1, 2, 4}, {0})}
    assert asked(protocol.question(data, "test", settings)) == {
        "a": ({0, 2}, {3, 4, 5}, {3}), "b": ({0, 2}, {1, 4, 5}, {4}), "c": ({1, 4}, {0, 2, 3, 5}, {5})}


def test_item_cold_knows_nothing_of_the_part_but_its_text():
    part = pd.DataFrame({"item_id": [0, 3, 5], "part": ["test", "valid", "test"]})
    protocol, settings = PROTOCOLS["item-cold"], config()
    data = protocol.prepare(small_table(item_part=part), 0)
    fitted_on = protocol.view(data).matrix("train")
    assert not fitted_on[:, [0, 3, 5]].nnz and fitted_on.nnz == 5      # likes of 1, 2 and 4, whatever their split was
    valid, test = (asked(protocol.question(data, split, settings)) for split in ("valid", "test"))
    assert valid == {"a": ({2}, {3}, {3})}, "d likes item 3, too, but has no history outside the parts"
    assert test == {"a": ({2, 3}, {0, 5}, {0}), "b": ({2, 4}, {0, 5}, {0}), "c": ({1, 4}, {0, 5}, {5}), "d": ({3}, {0, 5}, {0, 5})}


def test_item_cold_cross_fitting_hides_whole_items():
    data = PROTOCOLS["item-cold"].prepare(small_world(), 0)
    hidden = []
    for fold in item_folds(data, 3, 0):
        known, asked_for = (set(np.unique(fold.interactions["item"][fold.rows(split)])) for split in ("train", "valid"))
        assert known and asked_for and not known & asked_for
        assert set(np.flatnonzero(data.item_part == "train")) >= known | asked_for, "no cold item is touched"
        fold, first = PROTOCOLS["item-cold"].lists(fold, Popularity().fit(fold))
        items = first.retrieve(fold.requests(np.arange(20)), 40)[0]
        assert set(items[items >= 0].tolist()) <= asked_for, "candidates are hidden items only"
        hidden.append(asked_for)
    assert not set.intersection(*hidden) and len(set.union(*hidden)) > len(hidden[0]) * 2


def test_user_cold_models_never_meet_the_user():
    protocol, settings = PROTOCOLS["user-cold"], config()
    data = protocol.prepare(small_world(), 0)
    shares = data.user_part.value_counts(normalize=True)
    assert abs(shares["test"] - 0.2) < 0.01 and abs(shares["valid"] - 0.1) < 0.01
    view, cold = protocol.view(data), np.flatnonzero(data.user_part != "train")
    assert not np.isin(view.interactions["user"], cold).any()
    warm = np.flatnonzero(data.user_part == "train")
    assert (view.matrix("train")[warm] != data.matrix("train")[warm]).nnz == 0
    for split in ("valid", "test"):
        question = protocol.question(data, split, settings)
        users = question.requests.users
        assert (data.user_part.to_numpy()[users] == split).all()
        assert (question.requests.history != data.matrix("train")[users]).nnz == 0
        assert (question.relevant != data.matrix("valid", "test")[users]).nnz == 0


def test_irgan_leaves_low_ratings_in_as_sure_misses():
    table = small_table()
    table.interactions["split"] = table.interactions["split"].replace({"valid": "train"}).cat.set_categories(["train", "valid", "test"])
    protocol, settings = PROTOCOLS["irgan"], config()
    data = protocol.prepare(table, 0)
    held = (data.interactions["split"] == "valid").to_numpy()
    assert held.sum() == 11 // 5 and (table.interactions["split"][held] == "train").all(), "a fifth of train"
    assert (data.interactions["split"] == protocol.prepare(table, 0).interactions["split"]).all()
    assert (data.interactions["split"][~held].to_numpy() == table.interactions["split"][~held].to_numpy()).all()
    assert asked(protocol.question(data, "test", settings)) == {
        "a": ({0, 2}, {1, 3, 4, 5}, {3}), "b": ({0, 2}, {1, 3, 4, 5}, {4}), "c": ({1, 4}, {0, 2, 3, 5}, {5})}
    assert protocol.lists(data, None)[0].interactions["positive"].all(), "nothing is barred in training lists either"


@pytest.mark.parametrize("timed", [True, False])
def test_a_missing_valid_part_comes_from_train(timed):
    rows = pd.DataFrame({"user_id": np.repeat(range(4), 12), "item_id": np.tile(range(12), 4), "split": (["train"] * 10 + ["test"] * 2) * 4})
    if timed: rows["timestamp"] = np.tile(range(12), 4)
    data = PROTOCOLS["warm"].prepare(RecDataset(rows, pd.DataFrame({"item_id": range(12), "title": list("abcdefghijkl")})), 0)
    counts = data.interactions.groupby(["user", "split"], observed=True).size().unstack()
    assert (counts == pd.Series({"train": 9, "valid": 1, "test": 2})).all().all()
    valid = data.interactions[data.interactions["split"] == "valid"]
    assert (rows["split"][valid.index] == "train").all() and (not timed or (valid["item"] == 9).all()), "the newest of train"


@pytest.mark.parametrize("name, change, message", [
    ("irgan", dict(drop="rating"), "protocol 'irgan', column 'rating': there is no such column"),
    ("irgan", dict(positive_rating=3), "liked from 3 here, under 'irgan' from 4"),
    ("item-cold", dict(item_part=pd.DataFrame({"item_id": [0], "part": ["test"]})), "item_cold.csv, column 'part': no item is in the part 'valid'"),
    ("warm", dict(split={"test": "valid"}), "the splits are train, valid"),
])
def test_protocols_say_what_is_missing(name, change, message):
    drop, split = change.pop("drop", None), change.pop("split", None)
    data = small_table(**change)
    if drop: data.interactions = data.interactions.drop(columns=drop)
    if split: data.interactions["split"] = data.interactions["split"].replace(split)
    with pytest.raises(DataError) as caught: PROTOCOLS[name].prepare(data, 0)
    assert message in str(caught.value)


def test_views_of_text_are_checked(tmp_path):
    for grid, said in (([["words", "letters"]], "unknown view 'letters'; choose from 'words', 'phrases', 'title pieces'"), ([["words", "words"]], "views names one twice"), ([[]], "views must be a list")):
        (tmp_path / "c.yaml").write_text(json.dumps({"views_grid": grid}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"c\.yaml: option views_grid: " + said) as error: GenreConfig.from_file(tmp_path / "c.yaml")
        assert "Tuple" not in str(error.value)
    assert GenreConfig.from_file(GenreConfig(views_grid=[["title pieces"]]).to_file(tmp_path / "d.yaml")).views_grid == (("title pieces",),)


def test_item_cold_chooses_among_the_views_that_it_is_given():
    fitted = GenreRecommender(config(protocol="item-cold", views_grid=(("words",), ("phrases", "title pieces")), text_l2_grid=(10.0, 100.0), ridge_grid=(2.0,)))
    fitted.take(small_world(120))
    valid = fitted.question("valid", fitted.config.rerank.tune_users)
    chosen = fitted._choose_text_ease(valid)
    tried = {(l2, views): fitted._ndcg(TextEASE(l2, ridge=2.0, views=views).fit(fitted.view), valid) for l2 in (10.0, 100.0) for views in fitted.config.views_grid}
    assert chosen["ridge"] == 2.0 and tried[chosen["l2"], chosen["views"]] == pytest.approx(max(tried.values())) and len(set(tried.values())) > 1


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="'warm', 'item-cold', 'user-cold' or 'irgan'"): GenreConfig(protocol="cold")


@pytest.mark.parametrize("name", ["item-cold", "user-cold", "irgan"])
def test_every_system_runs_under_every_protocol(name, tmp_path):
    data = small_world(120)
    if name == "irgan": data.interactions["rating"] = np.where(data.interactions["positive"], 5.0, 2.0)
    fitted = GenreRecommender(config(protocol=name)).fit(data)
    report = fitted.evaluate()
    assert report.protocol == name == report.to_dict()["protocol"]
    assert {"genre", "genre_gan_off", "genre_features_only", "genre_text_only", "popularity", "bm25", "dense", "generated"} <= set(report.systems)
    assert set(report.valid_ndcg) <= set(report.systems) and report.best_baseline in report.systems
    if name == "item-cold":
        assert {"tfidf", "nearest", "towers", "text_ease"} <= set(report.systems) and not {"ease", "item_knn"} & set(report.systems)
        likes = fitted.behaviour.log_popularity[torch.from_numpy((fitted.data.item_part == "test").to_numpy(copy=True))]
        assert (likes == 0).all() and report.systems["genre"].mean("cold_share@10") == 1.0
    else: assert {"ease", "item_knn"} <= set(report.systems)
    if name == "irgan": assert {"precision@3", "ndcg@5", "map", "mrr"} <= set(report.systems["genre"].metrics)
    loaded = GenreRecommender.load(fitted.save(tmp_path / "m"))
    ours, theirs = (r.question("test") for r in (fitted, loaded))
    assert ours.requests.users.tolist() == theirs.requests.users.tolist() and (ours.relevant != theirs.relevant).nnz == 0
    assert loaded.config.protocol == name and (fitted.view.matrix("train") != loaded.view.matrix("train")).nnz == 0
    who = data.users["user_id"].iloc[:8].tolist()
    pd.testing.assert_frame_equal(fitted.recommend(who), loaded.recommend(who))
    items, _ = ours.lists(fitted.first, 20)
    seen = fitted.behaviour(ours.requests, items)
    assert torch.allclose(seen, loaded.behaviour(theirs.requests, items), atol=1e-5) and ("dislike.own" in loaded.behaviour.names) == (name == "irgan")
    if name == "irgan":
        low = fitted.view.negatives("train")[ours.requests.users].toarray() > 0
        assert (seen[..., -1].numpy() > 0).tolist() == np.take_along_axis(low, items.clamp(min=0).numpy(), 1).tolist() and seen[..., -1].any()


def test_the_whole_ranking_ends_with_every_item(data):
    fitted = GenreRecommender(config(protocol="irgan"))
    table = small_world(120)
    table.interactions["rating"] = np.where(table.interactions["positive"], 5.0, 2.0)
    fitted.fit(table)
    fitted.gan_off = fitted.trained
    question = fitted.question("test")[slice(0, 9)]
    open_ = table.n_items - np.diff(question.requests.history.indptr)
    for name, lists in fitted.systems(question, table.n_items):
        assert [len(set(row[row >= 0].tolist())) for row in lists] == open_.tolist(), name
        found = whole_ranking(lists, question.relevant)
        for row, values in enumerate(found.itertuples()):   # trec_eval's definitions, item by item
            good = set(question.relevant[row].indices)
            places = [rank for rank, item in enumerate(lists[row].tolist(), 1) if item in good]
            assert np.isclose(values.map, sum((n + 1) / place for n, place in enumerate(places)) / len(good))
            assert np.isclose(values.mrr, 1 / places[0])


def test_towers_understand_texts_of_items_without_likes():
    rng = np.random.default_rng(0)
    words = ["red scarlet crimson ruby", "blue azure navy cobalt", "green jade olive lime", "pink rose coral blush"]
    partner = np.array([1, 0, 3, 2])   # who likes one red thing likes one blue thing: cosine cannot know
    colour = np.arange(240) % 4
    items = pd.DataFrame({"item_id": range(240), "title": [" ".join(rng.choice(words[c].split(), 2, replace=False)) for c in colour]})
    pick = lambda c: rng.choice(np.flatnonzero((colour == c) & (np.arange(240) < 200)))
    rows = [(user, pick(c)) for user in range(600) for c in (user % 4, partner[user % 4])]
    data = RecDataset(pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(split="train"), items)
    towers = Towers(size=12, epochs=60, max_steps=300, members=1).fit(data)
    history = np.zeros((4, 240), np.float32)
    for own in range(4): history[own, np.flatnonzero(colour == own)[0]] = 1
    from scipy import sparse
    from genre_nb.datasets import Requests
    asked = Requests(sparse.csr_matrix(history), np.full((4, 0), -1), [""] * 4, np.zeros((4, 0), np.float32), np.arange(4))
    cold = torch.arange(240) >= 200
    for stage, share in ((towers, True), (Dense().fit(data), False)):
        lists = stage.retrieve(asked, 5, allowed=cold)[0].numpy()
        right = np.mean([[colour[i] == partner[own] for i in row] for own, row in enumerate(lists)])
        assert (right > 0.8) == share, (stage.kind, right)
    again, other = (Towers(size=8, epochs=3, members=1, seed=s).fit(data).nets for s in (0, 1))
    np.testing.assert_array_equal(again, Towers(size=8, epochs=3, members=1).fit(data).nets)
    assert (again != other).any()
    arrays, meta = towers.state()
    torch.testing.assert_close(Towers.from_state(arrays, json.loads(json.dumps(meta))).scores(asked), towers.scores(asked))
    nobody = Requests(sparse.csr_matrix((1, 240), dtype=np.float32), np.full((1, 0), -1), [""], np.zeros((1, 0), np.float32), np.array([-1]))
    assert (towers.scores(nobody) == 0).all(), "who tells nothing gets no opinion"


def test_nearest_is_a_power_mean():
    data = PROTOCOLS["warm"].prepare(small_world(), 0)
    stage = Nearest(neighbours=1000, power=3.0).fit(data)
    requests = data.requests(np.arange(5), with_profile=False)
    near = np.clip(stage.vectors @ stage.vectors.T, 0, None).astype(np.float64)
    np.fill_diagonal(near, 0)
    expected = [(near[row.indices] ** 3).sum(0) ** (1 / 3) for row in requests.history]
    np.testing.assert_allclose(stage.scores(requests).numpy(), np.array(expected), atol=1e-4)
    assert Nearest(neighbours=2).fit(data).weights.getnnz(axis=0).max() >= 2
    for wrong in (dict(neighbours=0), dict(power=0)):
        with pytest.raises(ValueError): Nearest(**wrong)


def test_irgan_pins_the_evaluator():
    folder = Path(os.environ.get("GENRE_DATA", "")) / "movielens-100k-irgan"
    if not os.environ.get("GENRE_DATA") or not folder.is_dir(): pytest.skip("needs GENRE_DATA with movielens-100k-irgan")
    protocol = PROTOCOLS["irgan"]
    data = protocol.prepare(RecDataset.from_folder(folder), 0)
    question = protocol.question(data, "test", config())
    popular = Popularity().fit(data, ("train", "valid"))
    found = evaluate_lists(question.lists(popular, 10)[0], question.relevant, n_items=data.n_items, ks=protocol.cuts)
    assert len(question) == 456 and round(found.mean("precision@5"), 4) == 0.2338 and round(found.mean("ndcg@10"), 4) == 0.2403


# context and constraints

@pytest.fixture(scope="module")
def moments() -> World:
    return World("assistant", "zh", 150, 150, seed=0)


@pytest.fixture(scope="module")
def aware(moments) -> GenreRecommender:
    return GenreRecommender(config(context=moments.context_fields, profiles=True)).fit(moments.dataset())


def test_context_enters_u_and_nothing_else(aware, moments):
    fields = list(moments.context_fields)
    requests, _, _ = aware.requests(["u00003", "u00009"])
    assert np.allclose(requests.context, moments.users[fields].iloc[[3, 9]]) and aware.trained.gan.config.encoder.n_context == len(fields)
    other = {name: 1.0 - moments.users[name].iloc[3] for name in fields}
    moved, _, _ = aware.requests("u00003", context=other)
    assert np.allclose(moved.context, [list(other.values())])
    items, scores = aware.candidates(*aware.requests("u00003")[:2])
    there, here = (aware.reranker().parts(asks, items, scores) for asks in (moved, requests[:1]))
    assert not torch.allclose(there["judge"], here["judge"]) and torch.equal(there["behaviour"], here["behaviour"])
    assert aware.generate("u00003", 2, context=other)["judge"].tolist() != aware.generate("u00003", 2)["judge"].tolist()


def test_the_unit_of_a_context_field_does_not_matter(moments):
    fields = moments.context_fields
    data = moments.dataset()
    data.users = data.users.assign(**{name: 1000 * data.users[name] + 7 for name in fields})
    near, far = (GenreRecommender(config(context=fields)).fit(d) for d in (moments.dataset(), data))
    one, two = (r.trained.judge(r.requests(["u00001", "u00002"])[0], torch.arange(20).expand(2, -1)) for r in (near, far))
    assert torch.allclose(one, two, atol=2e-2)


def test_strangers_bring_all_fields_or_none(aware, moments):
    fields = moments.context_fields
    nothing, _, _ = aware.requests("开会")
    assert np.allclose(nothing.context, moments.users[list(fields)].mean(), atol=1e-5)
    given, _, _ = aware.requests(["开会", "起床"], context=dict.fromkeys(fields, 0.0) | {fields[0]: [0.25, 0.75]})
    assert given.context[:, 0].tolist() == [0.25, 0.75] and not given.context[:, 1:].any()
    assert aware.recommend("开会", 3, context=dict.fromkeys(fields, 0.0)).shape == (3, 5)
    assert aware.rerank("开会", ["i00001", "i00002"], context=dict.fromkeys(fields, 0.0)).shape == (2, 5)
    assert len(aware.explain("开会", 3, context=dict.fromkeys(fields, 0.0))) == 3


@pytest.mark.parametrize("who, context, words", [
    ("开会", {"hour_sin": 0.5}, ("'hour_cos' is missing", "开会", "give all of")),
    ("u00003", {"hour_sinus": 0.5}, ("'hour_sinus' is unknown", "hour_sin, hour_cos")),
    ("u00003", {"hour_sin": float("nan")}, ("'hour_sin' is nan", "u00003", "finite number")),
    ("u00003", {"hour_sin": "noon"}, ("'hour_sin' is 'noon'", "give a number")),
    ("u00003", {"hour_sin": [0.1, 0.2]}, ("'hour_sin' has shape (2,)", "one number")),
])
def test_a_wrong_context_is_named(aware, who, context, words):
    for call in (aware.recommend, aware.generate, aware.explain):
        with pytest.raises(ValueError) as error: call(who, 2, context=context)
        assert all(word in str(error.value) for word in words), error.value
    with pytest.raises(ValueError, match="context"): aware.rerank(who, ["i00001"], context=context)


def test_context_without_fields_is_refused(fitted):
    with pytest.raises(ValueError, match="fitted without context"): fitted.recommend("运动鞋", context={"hour_sin": 1})


def test_bad_fields_are_refused_before_anything_is_fitted(moments):
    data = moments.dataset()
    with pytest.raises(DataError, match="did you mean 'hour_sin'"): GenreRecommender(config(context=["hour_sinn"])).fit(data)
    data.users = data.users.assign(hour_sin=data.users["hour_sin"].mask(data.users.index == 7))
    with pytest.raises(DataError, match=r"'hour_sin' is not a finite number 1 times, first in row 7"): GenreRecommender(config(context=["hour_sin"])).fit(data)
    with pytest.raises(ValueError, match="names 'a' twice"): config(context=["a", "b", "a"])
    with pytest.raises(ValueError, match="n_context is 3, but context names 1"):
        GenreConfig.model_validate({"context": ["a"], "gan": {"encoder": {"n_context": 3}}})


def test_context_is_saved_and_loaded(aware, moments, tmp_path):
    again = GenreRecommender.load(aware.save(tmp_path / "model"))
    assert again.config.context == moments.context_fields
    for context in (None, dict.fromkeys(moments.context_fields, 1.0)):
        assert again.recommend(["u00003", "开会"], 5, context=context).equals(aware.recommend(["u00003", "开会"], 5, context=context))
        assert again.generate("开会", 2, context=context).equals(aware.generate("开会", 2, context=context))


def test_the_moment_of_each_interaction_is_trained_on(moments):
    data = moments.dataset()
    rng = np.random.default_rng(0)
    data.interactions = data.interactions.assign(rain=rng.random(len(data.interactions)))
    r = GenreRecommender(config(context=("rain", "at_home"))).fit(data)
    train = data.interactions[data.rows("train")]
    usual = train.groupby("user")["rain"].mean().reindex(range(data.n_users)).fillna(train["rain"].mean())
    assert np.allclose(r.data.users["rain"], usual)                                    # asked for without a moment
    from genre_nb.adversarial import Triples
    triples = Triples(r.view, r.tokenizer, r.config.players, context=r.config.context)
    likes = r.view.interactions.iloc[triples.likes.row]
    assert (likes["user"].to_numpy() == triples.likes.user).all() and (likes["item"].to_numpy() == triples.likes.item).all()
    assert np.allclose(triples.moments[:, 0], likes["rain"]) and np.allclose(triples.moments[:, 1], data.users["at_home"].iloc[triples.likes.user])
    batch = triples.batch(0)
    assert set(batch.cond.context[:, 0].tolist()) <= set(triples.moments[:, 0].tolist()) and torch.equal(batch.cond.context, batch.full.context)


def test_a_row_of_the_mask_for_each_who_asks(fitted, data):
    users = [*data.users["user_id"].iloc[[5, 8, 9]], "运动鞋", "qqqqzzzz"]
    rng = np.random.default_rng(0)
    mask = rng.random((len(users), data.n_items)) < 0.1
    mask[1] = False                                                                    # nothing at all
    mask[4] = False
    ids = data.items["item_id"].to_numpy()
    for options in ({}, {"diversity": 0.7}, {"rerank": False}):
        table = fitted.recommend(users, 20, allowed=mask, **options)
        for row, who in enumerate(users): assert set(table.query("asked == @who")["item_id"]) <= set(ids[mask[row]]), (who, options)
        assert users[1] not in set(table["asked"]) and "qqqqzzzz" not in set(table["asked"]) and len(table) > 20
    table = fitted.rerank(users, [list(ids[:60])] * len(users), allowed=mask, diversity=0.3)
    for row, who in enumerate(users): assert set(table.query("asked == @who")["item_id"]) == set(ids[:60][mask[row, :60]])
    assert fitted.recommend(users, 5, allowed=mask[0]).equals(fitted.recommend(users, 5, allowed=np.tile(mask[0], (len(users), 1))))
    assert len(fitted.recommend(users[:1], 5, allowed=np.zeros(data.n_items, bool))) == 0
    assert len(fitted.recommend(users[:1], 5, allowed=np.zeros(data.n_items, bool)).columns) == 5
    with pytest.raises(ValueError, match=r"or \(5, 150\), a row for each who asks"): fitted.recommend(users, allowed=mask[:3])


def test_no_weight_brings_back_what_is_closed(fitted, data):
    from hypothesis import given, settings, strategies as st
    users, ids = data.users["user_id"].iloc[:6].tolist() + ["运动鞋"], data.items["item_id"].to_numpy()
    kept = fitted.trained.weights, fitted.trained.text_weights
    heavy = st.floats(0, 1e6)

    @settings(max_examples=25, deadline=None)
    @given(heavy, heavy, heavy, st.floats(0, 1), st.integers(0, 2**32 - 1), st.floats(0, 1))
    def holds(beta, lam, gamma, diversity, seed, share):
        fitted.trained.weights = fitted.trained.text_weights = kept[0].model_copy(update={"behaviour": beta, "judge": lam, "match": gamma})
        mask = np.random.default_rng(seed).random((len(users), data.n_items)) < share
        table = fitted.recommend(users, 10, allowed=mask, diversity=diversity)
        code = pd.Index(ids).get_indexer(table["item_id"])
        assert mask[[users.index(who) for who in table["asked"]], code].all()

    try: holds()
    finally: fitted.trained.weights, fitted.trained.text_weights = kept


def test_constraints_hold_for_every_system(fitted, data):
    mask = np.random.default_rng(1).random((data.n_users, data.n_items)) < 0.2
    question = fitted.question("test").only(torch.from_numpy(mask))
    fitted.gan_off = fitted.gan_off or fitted.trained
    for name, lists in fitted.systems(question, 10, lambda users: np.random.default_rng(0).random((len(users), data.n_items))):
        shown = lists.numpy()
        row, place = np.nonzero(shown >= 0)
        assert mask[question.requests.users[row], shown[row, place]].all() and len(row), name
    free, bound = fitted.evaluate(limit=30), fitted.evaluate(limit=30, allowed=mask)
    assert bound.systems["popularity"].mean("recall@10") != free.systems["popularity"].mean("recall@10")
    with pytest.raises(ValueError, match="a row for each who asks"): fitted.evaluate(allowed=mask[:5], limit=30)
