"The whole path on a tiny world: what is asked, what is answered, what is refused, what is on disk."

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from genre_nb.adversarial import GanConfig
from genre_nb.datasets import DataError, RecDataset
from genre_nb.encoder import ENCODERS, EncoderConfig
from genre_nb.generator import LSTMGenerator
from genre_nb.recommender import FIRST_STAGES, GenreConfig, GenreRecommender, blend, register, stage_names
from genre_nb.reranking import RerankConfig
from genre_nb.retrieval import RETRIEVERS, Dense, Popularity
from genre_nb.simulation import World

TINY = dict(vocab_size=400, l2_grid=(100.0,))


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
    with pytest.raises(ValueError, match="option first_stage: unknown first stage 'magic'"): GenreRecommender(config(first_stage="magic"))
    with pytest.raises(ValueError, match="vocab_sise"): GenreConfig(vocab_sise=5)


def test_nobody_qualifies():
    items = pd.DataFrame({"item_id": range(6), "title": list("abcdef")})
    rows = pd.DataFrame({"user_id": range(6), "item_id": range(6), "split": ["train"] * 2 + ["valid"] * 2 + ["test"] * 2})
    with pytest.raises(DataError, match="no user has likes in both 'train' and 'valid'"):
        GenreRecommender(config()).fit(RecDataset(rows, items))


# weight

def test_import_is_light():
    code = ("import torch, time, sys; t = time.perf_counter(); import genre_nb; s = time.perf_counter() - t\n"
            "heavy = [m for m in ('pytorch_lightning', 'transformers', 'faiss', 'jieba') if m in sys.modules]\n"
            "print(s); assert s < 1 and not heavy, (s, heavy)\n"
            "assert 'GenreRecommender' in dir(genre_nb)\nimport genre_nb.datasets, genre_nb.losses, genre_nb.preprocessing\n"
            "assert not [m for m in ('pytorch_lightning', 'transformers', 'faiss', 'jieba') if m in sys.modules]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
