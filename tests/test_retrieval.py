"""First stages: ties, masks, formulas against brute force, fusion, saving, the promised messages."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_nb.collaborative_filtering import EASE, ItemKNN
from genre_nb.datasets import DataError, RecDataset, Requests
from genre_nb.retrieval import (BM25, RETRIEVERS, TFIDF, Dense, Fusion, Generated, Popularity, Retriever, history_weights,
                                lsa_components, pack, ranks, seen, term_counts, top_k, unit_rows, unpack)

ITEMS = pd.DataFrame({"item_id": [f"i{i}" for i in range(8)],
                      "title": ["trail shoes", "road shoes", "hiking boots", "headphones", "跑步鞋 透气", "旅行 背包", "yoga mat", "tent"],
                      "description": ["light shoes for mud", "shoes for asphalt", "boots for mountains", "music for commutes",
                                      "适合长跑的运动鞋", "轻便的背包", "a light mat", "a light tent for two"]})


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(i)) for u, i in zip(rng.integers(0, 20, 90), rng.integers(0, 7, 90))})   # item 7 is cold
    table = pd.DataFrame([(f"u{u}", f"i{i}", t) for t, (u, i) in enumerate(pairs)], columns=["user_id", "item_id", "timestamp"])
    table["split"] = np.where(np.arange(len(table)) % 5 == 4, "test", "train")
    return RecDataset(table, ITEMS)


def generate(requests): return [["light tent", "trail shoes"] for _ in range(len(requests))]
def encode(texts): return np.array([[len(t), t.count("e") + 1, t.count("o")] for t in texts], dtype=float)


BUILDERS = {"popularity": Popularity, "decayed": lambda: Popularity(half_life=30), "recent": lambda: Popularity(window=30), "bm25": BM25, "titles": lambda: BM25(history_field="title"),
            "tfidf": TFIDF, "dense": lambda: Dense(size=4), "encoder": lambda: Dense(encode), "generated": lambda: Generated(generate),
            "hit": lambda: Generated(generate, TFIDF(), combine="max"), "item_knn": lambda: ItemKNN(3, 1.0), "ease": lambda: EASE(5.0),
            "rrf": lambda: Fusion([BM25(), EASE(5.0)]), "zsum": lambda: Fusion([Dense(size=3), Popularity(), ItemKNN()], how="zsum", weights=[1, 0.5, 2]),
            "nested": lambda: Fusion([Fusion([BM25(), EASE()]), Generated(generate)])}


@pytest.fixture(scope="module", params=BUILDERS)
def fitted(request, data): return BUILDERS[request.param]().fit(data)


# ---------- lists

scores_like = st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1.0, 2.0]), min_size=n, max_size=n), min_size=1, max_size=6))


@given(scores_like, st.integers(1, 15))
@settings(max_examples=200, deadline=None)
def test_top_k_is_a_stable_sort(rows, k):
    scores = torch.tensor(rows, dtype=torch.float32)
    items, best = top_k(scores, k)
    assert items.shape == best.shape == (len(rows), k)
    for row, got, values in zip(rows, items.tolist(), best.tolist()):
        wanted = sorted((i for i, s in enumerate(row) if s > -np.inf), key=lambda i: (-row[i], i))[:k]
        assert got == wanted + [-1] * (k - len(wanted))
        assert values == [row[i] for i in wanted] + [-np.inf] * (k - len(wanted))


@given(scores_like)
@settings(max_examples=100, deadline=None)
def test_ranks_count_who_is_better(rows):
    scores = torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(ranks(scores), 1 + (scores[:, None, :] > scores[:, :, None]).sum(2))


def test_short_lists_begin_long_ones(fitted, data):
    requests = data.requests()
    long, _ = fitted.retrieve(requests, 8)
    for k in (1, 3, 5): assert torch.equal(fitted.retrieve(requests, k)[0], long[:, :k])


# ---------- what every first stage promises

def test_scores_and_lists(fitted, data):
    requests = data.requests()
    scores = fitted.scores(requests)
    assert scores.shape == (len(requests), data.n_items) and scores.dtype == torch.float32 and scores.isfinite().all()
    items, best = fitted.retrieve(requests, data.n_items)
    assert items.dtype == torch.int64 and ((items == -1) == (best == -torch.inf)).all()
    history = seen(requests)
    for row, used in zip(items, history): assert set(row[row >= 0].tolist()) == set(torch.nonzero(~used)[:, 0].tolist())
    everything, _ = fitted.retrieve(requests, data.n_items, exclude_seen=False)
    assert (everything >= 0).all()


def test_batches_do_not_matter(fitted, data):
    requests = data.requests()
    whole, values = fitted.retrieve(requests, 5)
    fitted.batch_size = 3
    parts, again = fitted.retrieve(requests, 5)
    del fitted.batch_size
    assert torch.equal(whole, parts) and torch.allclose(values, again, atol=1e-5)
    assert fitted.retrieve(requests[:0], 5)[0].shape == (0, 5)


def test_allowed_cannot_be_overridden(fitted, data):
    requests = data.requests()
    shop = torch.tensor([True, False] * 4)
    items, _ = fitted.retrieve(requests, 8, allowed=shop)
    assert shop[items[items >= 0]].all()
    each = torch.rand(len(requests), 8, generator=torch.Generator().manual_seed(0)) < 0.5
    items, _ = fitted.retrieve(requests, 8, allowed=each.numpy())
    assert all(each[row, i] for row, listed in enumerate(items) for i in listed.tolist() if i >= 0)


def test_state_survives_json(fitted, data):
    arrays, meta = fitted.state()
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
    again = Retriever.from_state(arrays, json.loads(json.dumps(meta)), encoder=encode, generate=generate)
    for requests in (data.requests(), Requests.from_texts(["light shoes", "", "运动鞋"], 8)):
        assert torch.equal(again.scores(requests), fitted.scores(requests))
    assert again.name == fitted.name and again.state()[1] == meta


def test_unfitted_and_foreign_requests(data):
    for build in BUILDERS.values():
        with pytest.raises(RuntimeError, match="not fitted"): build().scores(data.requests())
        with pytest.raises(RuntimeError, match="not fitted"): build().state()
        with pytest.raises(ValueError, match="the requests know 3 items"): build().fit(data).retrieve(Requests.from_texts(["a"], 3))


def test_fit_reads_only_its_splits(data):
    for build in BUILDERS.values():
        one = data.requests()
        hidden = RecDataset(data.interactions[["user_id", "item_id", "timestamp", "split"]].query("split == 'train'"), ITEMS, data.users[["user_id"]])
        assert torch.allclose(build().fit(data).scores(one), build().fit(hidden).scores(one), atol=1e-5)
        if "popularity" in build().name: assert not torch.equal(build().fit(data, ("train", "test")).scores(one), build().fit(data).scores(one))


def test_bad_arguments(data):
    popularity = Popularity().fit(data)
    for wrong, message in ((torch.ones(8), "must be boolean"), (torch.ones(7, dtype=torch.bool), r"\(8,\) or \(19, 8\)")):
        with pytest.raises(ValueError, match=message): popularity.retrieve(data.requests(), allowed=wrong)
    for call, message in ((lambda: popularity.retrieve(data.requests(), 0), "at least 1"), (lambda: Popularity(half_life=0), "above 0"), (lambda: Popularity(window=-1), "window must be above 0"),
                          (lambda: BM25(half_life="soon"), "half_life"), (lambda: BM25(method="x"), "choose from"), (lambda: BM25(history_field="x"), "history_field"),
                          (lambda: Dense(size=0), "size"), (lambda: Fusion([]), "at least one"), (lambda: Fusion([BM25()], how="x"), "rrf"),
                          (lambda: Fusion([BM25()], weights=[1, 2]), "2 weights for 1"), (lambda: Generated(combine="x"), "combine")):
        with pytest.raises(ValueError, match=message): call()
    with pytest.raises(DataError, match="valid"): Popularity().fit(data, ("valid",))


def test_nan_is_reported(data):
    broken = Popularity().fit(data)
    broken.counts[2] = np.nan
    with pytest.raises(ValueError, match="NaN"): broken.retrieve(data.requests())


# ---------- formulas

def test_popularity_counts_each_user_once(data):
    table = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["i0", "i0", "i1"], "timestamp": [0, 10, 20], "split": "train"})
    twice = RecDataset(table, ITEMS)
    assert Popularity().fit(twice).counts.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert np.allclose(Popularity(half_life=10).fit(twice).counts[:2], [0.5, 1.0])
    assert Popularity(window=9).fit(twice).counts[:2].tolist() == [0, 1] and Popularity(window=10).fit(twice).counts[:2].tolist() == [1, 1]
    assert np.allclose(Popularity(half_life=10, window=10).fit(twice).counts[:2], [0.5, 1.0])
    with pytest.raises(ValueError, match="timestamp"): Popularity(half_life=1).fit(RecDataset(table.drop(columns="timestamp").drop(index=0), ITEMS))


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
def test_bm25_is_the_library(data, method):
    import bm25s
    ours = BM25(method=method, k1=1.2, b=0.6).fit(data)
    library = bm25s.BM25(method=method, k1=1.2, b=0.6)
    library.index(ours.tokens(data.items["text"]), show_progress=False)
    for text in ("light shoes", "shoes shoes shoes", "运动鞋 light"):
        assert np.allclose(ours.scores(Requests.from_texts(text, 8))[0], library.get_scores(ours.analyzer(text)), atol=1e-5)


def test_history_weights():
    history = sp.csr_matrix(np.array([[1, 1, 0, 1], [0, 0, 0, 0]], dtype=np.float32))
    requests = Requests(history, np.array([[-1, 1, 3, 0], [-1, -1, -1, -1]]), ["", ""], np.zeros((2, 0), np.float32), np.arange(2))
    assert np.allclose(history_weights(requests, None).toarray(), [[1/3, 1/3, 0, 1/3], [0] * 4])
    assert np.allclose(history_weights(requests, 1.0).toarray(), np.array([[4, 1, 0, 2], [0] * 4]) / 7)
    assert requests.history.nnz == 3                       # the caller's history is untouched


def test_text_stages_say_nothing_without_words_or_history(data):
    for build in (BM25, TFIDF, lambda: Dense(size=4)):
        assert not build().fit(data).scores(Requests.from_texts(["", "zzz 。。"], 8)).any()


def test_text_stages_see_cold_items(data):
    for build in (BM25, TFIDF, lambda: Dense(size=7)): assert build().fit(data).retrieve(Requests.from_texts("tent for two", 8), 1)[0].item() == 7


def test_words_and_history_share_the_query(data):
    index = BM25().fit(data)
    requests = data.requests()
    words = Requests(requests.history, requests.recent, ["light trail shoes"] * len(requests), requests.context, requests.users)
    query = index.query(words)
    assert np.allclose(query.sum(1), 6, atol=1e-4)         # three words of the text, as many of the history
    assert torch.allclose(BM25(history_weight=0).fit(data).scores(words)[0], index.scores(Requests.from_texts("light trail shoes", 8))[0])


def test_tfidf_agrees_with_scikit_learn(data):
    text = pytest.importorskip("sklearn.feature_extraction.text")
    ours = TFIDF().fit(data)
    theirs = text.TfidfVectorizer(analyzer=ours.analyzer, sublinear_tf=True).fit(data.items["text"])
    assert theirs.get_feature_names_out().tolist() == ours.vocabulary
    assert np.allclose(theirs.transform(data.items["text"]).toarray(), ours.vectors.toarray(), atol=1e-6)


def test_lsa_keeps_the_largest_directions():
    matrix = sp.random(40, 30, 0.3, "csr", dtype=np.float32, random_state=np.random.default_rng(0))
    right = lsa_components(matrix, 5)
    singular = np.linalg.svd(matrix.toarray(), compute_uv=False)
    assert np.allclose(right.T @ right, np.eye(5), atol=1e-4)
    assert np.allclose(np.linalg.norm(matrix @ right, axis=0), singular[:5], rtol=1e-3)
    assert np.array_equal(right, lsa_components(matrix, 5)) and lsa_components(matrix, 500).shape == (30, 29)
    assert lsa_components(matrix[:1], 5).shape == (30, 1)


def test_helpers():
    counts = term_counts([["a", "b", "a"], [], ["?"]], {"a": 0, "b": 1})
    assert counts.toarray().tolist() == [[2, 1], [0, 0], [0, 0]]
    assert np.allclose(unit_rows(counts).toarray()[0], np.array([2, 1]) / 5**0.5) and np.allclose(unit_rows(np.zeros((2, 3))), 0)
    back = unpack(pack({"m": counts, "v": np.arange(3)}))
    assert (back["m"] != counts).nnz == 0 and back["m"].shape == (3, 2) and (back["v"] == np.arange(3)).all()


def test_custom_encoders_are_checked(data):
    with pytest.raises(ValueError, match=r"must return \(8, D\)"): Dense(lambda texts: np.zeros(3)).fit(data)
    passages, queries = [], []
    two = Dense(lambda t: passages.extend(t) or encode(t), lambda t: queries.extend(t) or encode(t)).fit(data)
    two.scores(Requests.from_texts(["light tent", ""], 8))
    assert len(passages) == 8 and queries == ["light tent"]
    tensors = Dense(lambda t: torch.tensor(encode(t), requires_grad=True)).fit(data)
    assert torch.allclose(tensors.scores(data.requests()), Dense(encode).fit(data).scores(data.requests()))
    lost = Dense.from_state(*two.state())
    lost.scores(data.requests(with_profile=False))
    with pytest.raises(RuntimeError, match="encoder="): lost.scores(Requests.from_texts("x", 8))


def test_generated_combines(data):
    asked = Requests.from_texts(["a", "b"], 8)
    single = BM25().fit(data).scores(Requests.from_texts(["light tent", "trail shoes"], 8))
    assert torch.allclose(Generated(generate).fit(data).scores(asked), single.mean(0).expand(2, -1))
    assert torch.allclose(Generated(generate, combine="max").fit(data).scores(asked), single.amax(0).expand(2, -1))
    assert torch.allclose(Generated(lambda r: ["light tent"] * len(r)).fit(data).scores(asked), single[:1].expand(2, -1))
    assert not Generated(lambda r: [[]] * len(r)).fit(data).scores(asked).any()
    with pytest.raises(ValueError, match="answered 1 of 2"): Generated(lambda r: ["x"]).fit(data).scores(asked)
    with pytest.raises(RuntimeError, match="no generator"): Generated().fit(data).scores(asked)
    ready = Generated(generate, BM25().fit(data))          # a fitted text stage needs no second fit
    assert ready.scores(asked).shape == (2, 8)


def test_fusion_is_indifferent_to_ignorance(data):
    strangers = Requests.from_texts(["light shoes", "tent"], 8)
    alone = BM25().fit(data).retrieve(strangers, 8)[0]
    for how in ("rrf", "zsum"): assert torch.equal(Fusion([BM25(), EASE(), ItemKNN()], how=how).fit(data).retrieve(strangers, 8)[0], alone)


def test_fusion_arithmetic(data):
    requests = data.requests()
    one, two = BM25().fit(data), EASE(5.0).fit(data)
    mask = seen(requests)
    place = [1 + ((s.masked_fill(mask, -torch.inf)[:, None, :] > s.masked_fill(mask, -torch.inf)[:, :, None]).sum(2)) for s in (one.scores(requests), two.scores(requests))]
    assert torch.allclose(Fusion([one, two], weights=[1, 3]).scores(requests), 1 / (60 + place[0]) + 3 / (60 + place[1]))
    z = Fusion([one], how="zsum").scores(requests)
    for row, used in zip(z, mask):
        if (~used).sum() > 1 and row.any(): assert abs(float(row[~used].mean())) < 1e-4 and abs(float(row[~used].std(correction=0)) - 1) < 1e-3


# ---------- the registry

def test_registry_and_errors(data):
    assert {"popularity", "bm25", "tfidf", "dense", "generated", "fusion", "item_knn", "ease"} <= set(RETRIEVERS)
    with pytest.raises(ValueError, match="unknown retriever"): Retriever.from_state({}, {"kind": "os.system"})
    with pytest.raises(ValueError, match="not of BM25"): BM25.from_state(*Popularity().fit(data).state())

    class Shorter(BM25): pass                              # a subclass without a name of its own does not take its parent's place
    assert RETRIEVERS["bm25"] is BM25


def test_vocabulary_does_not_depend_on_the_hash_seed():
    code = ("import numpy as np, pandas as pd\nfrom genre_nb.datasets import RecDataset, Requests\nfrom genre_nb.retrieval import BM25, Dense\n"
            "d = RecDataset(pd.DataFrame({'user_id': ['a'], 'item_id': [0], 'split': ['train']}), pd.DataFrame({'item_id': range(5), 'title': ['red shoes', 'blue shoes', 'green tent', 'blue tent', 'red lamp']}))\n"
            "q = Requests.from_texts('red tent', 5)\nprint([m.fit(d).scores(q).numpy().tobytes().hex() for m in (BM25(), Dense(size=3))])")
    out = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for seed in ("1", "2")}
    assert len(out) == 1
