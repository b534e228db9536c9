"The guards of the re-ranker: identity, what is closed stays closed, no label among the inputs."
import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from genre_nb.collaborative_filtering import ItemKNN
from genre_nb.datasets import RecDataset, Requests
from genre_nb.evaluation import ranking_metrics
from genre_nb.reranking import (FUSION_GRID, Behaviour, Lists, Opinions, Reranker, RerankConfig, Scorer, Weights, ascend, barred, candidates_of, centred, clearly_better,
                                cross_fit, diversify, fit_scorer, folds, followed_by, halves, just_below, last_item_only, lengthened, list_loss, log_prior, marks, mean_ndcg, simplest, thin,
                                moves, opinions_of, plot_moves, training_lists, tune_fusion, tune_weights, union_of_best, within_list, PARTS)
from genre_nb.retrieval import Fusion, Popularity

SMALL = RerankConfig(candidates=30, hidden=8, seeds=2, steps=30, batch_size=16, negatives=9, folds=2)


def make_data(timed: bool = True, n_users: int = 60, n_items: int = 50, seed: int = 0) -> RecDataset:
    "Rated data with two tastes; with a clock some pairs are repeated."
    rng = np.random.default_rng(seed)
    n = n_users * 14
    user = rng.integers(0, n_users, n)
    item = (rng.integers(0, n_items // 2, n) * 2 + (user + (rng.random(n) < 0.2)) % 2) % n_items
    table = pd.DataFrame({"user_id": user, "item_id": item, "rating": rng.choice([2.0, 5.0], n, p=[0.3, 0.7])})
    if timed: table["timestamp"] = rng.integers(1, 200, n)
    else: table = table.drop_duplicates(["user_id", "item_id"]).reset_index(drop=True)
    n = len(table)
    items = pd.DataFrame({"item_id": range(n_items), "title": [f"thing {i}" for i in range(n_items)]})
    table["split"] = rng.choice(["train", "valid", "test"], n, p=[0.7, 0.15, 0.15])
    return RecDataset(table, items)


@pytest.fixture(scope="module", params=[True, False], ids=["timestamps", "no clock"])
def data(request): return make_data(request.param)


def fit(fold):
    stages = {"popularity": Popularity().fit(fold), "item_knn": ItemKNN().fit(fold)}
    return Behaviour.fit(fold, stages), stages["item_knn"]


def strangers(n: int, n_items: int = 100) -> Requests: return Requests.from_texts([""] * n, n_items)


def candidates(B: int, C: int, seed: int, holes: bool = True):
    "Random candidates, best first, some places closed."
    g = torch.Generator().manual_seed(seed)
    items = torch.stack([torch.randperm(100, generator=g)[:C] for _ in range(B)])
    scores = torch.randn(B, C, generator=g).sort(1, descending=True).values
    if holes:
        closed = torch.rand(B, C, generator=g) < 0.3
        items, scores = items.masked_fill(closed, -1), scores.masked_fill(closed, -torch.inf)
    return items, scores


# prior

@pytest.mark.parametrize("kind", ["rank", "score"])
@given(seed=st.integers(0, 10**6), C=st.integers(1, 12), T=st.floats(0.2, 5))
@settings(max_examples=25, deadline=None)
def test_the_prior_is_a_distribution_that_keeps_the_order(kind, seed, C, T):
    _, scores = candidates(3, C, seed)
    log_q = log_prior(scores, kind, T)
    open_ = scores > -torch.inf
    assert torch.equal(log_q > -torch.inf, open_)
    total = log_q.exp().sum(1)
    torch.testing.assert_close(total, open_.any(1).float())
    for row, o in zip(log_q, open_): assert (row[o].diff() <= 1e-6).all()


def test_the_rank_prior_is_zipf_and_has_no_scale():
    scores = torch.tensor([[9.0, 5.0, 1.0]])
    torch.testing.assert_close(log_prior(scores, "rank", 2.0).exp(), F.normalize(torch.tensor([[1.0, 2**-0.5, 3**-0.5]]), p=1, dim=1))
    assert torch.equal(log_prior(scores), log_prior(scores * 1e6 - 3))
    with pytest.raises(ValueError, match="'rank' or 'score'"): log_prior(scores, "softmax")


# identity, allowed

@given(seed=st.integers(0, 10**6), C=st.integers(1, 15), kind=st.sampled_from(["rank", "score"]))
@settings(max_examples=40, deadline=None)
def test_zero_weights_return_the_first_stage(seed, C, kind):
    items, scores = candidates(4, C, seed, holes=False)
    scores[:, C // 2 :] = scores[:, C // 2 : C // 2 + 1]                       # ties keep their order, too
    reranker = Reranker(RerankConfig(prior=kind), judge=lambda r, i: 1e6 * torch.randn(i.shape), match=lambda r, i: torch.randn(i.shape))
    zero = Weights(behaviour=0, judge=0, match=0)
    assert torch.equal(reranker.rerank(strangers(4), items, scores, weights=zero).items, items)


@given(seed=st.integers(0, 10**6), extreme=st.sampled_from([1e30, float("inf"), float("nan"), -1e30]))
@settings(max_examples=40, deadline=None)
def test_what_is_not_allowed_cannot_come_back(seed, extreme):
    items, scores = candidates(5, 12, seed)
    allowed = torch.rand(items.shape, generator=torch.Generator().manual_seed(seed + 1)) > 0.5
    def love(requests, i): return torch.where(allowed & (scores > -torch.inf), torch.randn(i.shape), extreme)
    heavy = Weights(behaviour=0, judge=1e6, match=1e6)
    got = Reranker(judge=love, match=love).rerank(strangers(5), items, scores, allowed=allowed, weights=heavy)
    for row, old, ok in zip(got.items, items, allowed):
        assert sorted(row[row >= 0].tolist()) == sorted(old[ok & (old >= 0)].tolist())
    assert not got.scores.isnan().any() and torch.equal(got.items >= 0, got.scores > -torch.inf)
    assert (got.items.diff(dim=1)[got.items[:, 1:] == -1] <= 0).all()          # the −1 stand at the end


def test_parts_add_up_and_are_centred():
    items, scores = candidates(6, 10, 0)
    reranker = Reranker(judge=lambda r, i: torch.randn(i.shape) + 50, match=lambda r, i: torch.rand(i.shape))
    parts, open_ = reranker.parts(strangers(6), items, scores), items >= 0
    assert parts["judge"].sum(1).abs().max() < 1e-3 and (parts["judge"][~open_] == 0).all()
    got = reranker.rerank(strangers(6), items, scores, weights=Weights(judge=0.7, match=0.3), parts=parts)
    torch.testing.assert_close(torch.stack(list(got.parts.values())).sum(0), got.scores)
    assert (got.scores[:, :-1] >= got.scores[:, 1:]).all() and torch.equal(got[2:4].items, got.items[2:4])


def test_weights_go_by_the_kind_of_request():
    history = sp.csr_matrix(([1.0], ([0], [3])), (2, 100), dtype=np.float32)
    requests = Requests(history, np.array([[3], [-1]]), ["", "shoes"], np.zeros((2, 0), np.float32), np.array([0, -1]))
    reranker = Reranker(weights=Weights(judge=0.25), text_weights=Weights(behaviour=0, judge=2))
    assert reranker.row_weights(requests, None)["judge"].tolist() == [[0.25], [2.0]]
    assert reranker.row_weights(requests, Weights(judge=1))["judge"].tolist() == [[1.0], [1.0]]


def test_bad_candidates_and_opinions_are_named():
    items, scores = candidates(2, 4, 0, holes=False)
    ask, reranker = strangers(2), Reranker()
    with pytest.raises(ValueError, match=r"2 requests need .* shape \(2, C\)"): reranker.rerank(ask, items[:1], scores[:1])
    with pytest.raises(ValueError, match="shape"): reranker.rerank(ask, items, scores[:, :2])
    with pytest.raises(ValueError, match="item code .* is not in the catalogue of 100"): reranker.rerank(ask, items + 100, scores)
    with pytest.raises(ValueError, match="allowed must be a bool"): reranker.rerank(ask, items, scores, allowed=torch.ones(2, 4))
    with pytest.raises(ValueError, match="allowed must be a bool"): reranker.rerank(ask, items, scores, allowed=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="match returned nan for item code"): Reranker(match=lambda r, i: torch.full(i.shape, torch.nan)).rerank(ask, items, scores)
    with pytest.raises(ValueError, match="judge must return one score per candidate"): Reranker(judge=lambda r, i: torch.zeros(2)).rerank(ask, items, scores)
    for bad in (lambda: Weights(judge=-1), lambda: Weights(gamma=1), lambda: RerankConfig(temperature=0), lambda: RerankConfig(candidate=5)):
        with pytest.raises(ValidationError): bad()


# labels and inputs

def test_folds_are_disjoint_and_know_no_label(data):
    before, pairs, likes = data.interactions.copy(), data.interactions[["user", "item"]].to_numpy(), data.interactions["positive"].to_numpy()
    timed, used = "timestamp" in before, np.zeros(len(before), dtype=bool)
    for fold in folds(data, 3):
        train, label = fold.rows("train"), fold.rows("valid")
        assert not (train & label).any() and data.rows("train")[train | label].all() and likes[label].all()
        assert not (used & label).any()
        used |= label
        if not timed:
            assert not {tuple(p) for p in pairs[train & likes]} & {tuple(p) for p in pairs[label]}
            continue
        time, user = before["timestamp"].to_numpy(), before["user"].to_numpy()
        assert np.bincount(user[label]).max() == 1
        at = dict(zip(user[label], time[label]))
        rows = np.flatnonzero(train & np.isin(user, user[label]))
        for r in rows: assert time[r] <= at[user[r]] if likes[r] else time[r] < at[user[r]]
    pd.testing.assert_frame_equal(data.interactions, before)                     # the data set itself is not touched
    again = [f.rows("valid") for f in folds(data, 3, seed=0)]
    assert all((a == f.rows("valid")).all() for a, f in zip(again, folds(data, 3, seed=0)))


def test_changing_labels_changes_no_input(data):
    "Whatever the held-out likes are, features and candidates of the fold are the same."
    fold = next(folds(data, 3))
    other, rows = copy.copy(fold), fold.rows("valid")
    other.interactions = fold.interactions.copy()
    other.interactions.loc[rows, "item"] = (other.interactions.loc[rows, "item"] + 7) % data.n_items
    users = np.arange(20)
    for a, b in zip(*([(behaviour := fit(d)[0])(d.requests(users), torch.arange(30).expand(20, 30)), fit(d)[1].scores(d.requests(users))] for d in (fold, other))):
        assert torch.equal(a, b)


def test_later_dislikes_are_no_input():
    rows = pd.DataFrame({"user_id": 0, "item_id": range(6), "timestamp": [1, 2, 3, 4, 5, 6], "rating": [5, 2, 5, 2, 5, 2], "split": "train"})
    data = RecDataset(rows, pd.DataFrame({"item_id": range(6), "title": list("abcdef")}))
    seen = [(f.interactions.loc[f.rows("train"), "timestamp"].tolist(), f.interactions.loc[f.rows("valid"), "timestamp"].tolist()) for f in folds(data, 2)]
    assert seen == [([1, 2, 3, 4], [5]), ([1, 2], [3])]


def test_barred_are_low_ratings_but_not_impressions():
    rows = pd.DataFrame({"user_id": [0, 0, 1], "item_id": [0, 1, 1], "rating": [1.0, 5.0, 2.0], "split": "train"})
    items = pd.DataFrame({"item_id": range(3), "title": list("abc")})
    data = RecDataset(rows, items)
    closed = barred(data, np.array([1, 0]), ["train"])
    assert closed.toarray().tolist() == [[0, 1, 0], [1, 0, 0]]
    got, _ = candidates_of(Popularity().fit(data), data.requests([1, 0]), 3, closed)
    assert 1 not in got[0].tolist() and 0 not in got[1].tolist() and 1 not in got[1].tolist()
    only, _ = candidates_of(Popularity().fit(data), data.requests([1, 0]), 3, closed, torch.tensor([False, True, True]))
    assert set(only[0].tolist()) == {2, -1} and set(only[1].tolist()) == {2, -1}
    shown = RecDataset(rows.drop(columns="rating").assign(shown=[1, 0, 1]), items)
    assert barred(shown, np.array([0, 1]), ["train"]).nnz == 0


def test_marks():
    relevant = sp.csr_matrix(np.array([[1.0, 0, 1], [0, 0, 0]]))
    assert marks(torch.tensor([[2, 1, -1], [0, 1, 2]]), relevant).tolist() == [[True, False, False], [False] * 3]


@given(seed=st.integers(0, 10**6), size=st.integers(4, 20))
@settings(max_examples=25, deadline=None)
def test_thin_keeps_all_likes_in_order(seed, size):
    rng = np.random.default_rng(seed)
    _, scores = candidates(5, 16, seed)
    log_q = log_prior(scores)
    liked = torch.from_numpy(rng.random((5, 16)) < 0.2) & (log_q > -torch.inf)
    liked &= liked.cumsum(1) <= 3
    place = torch.arange(16.0).expand(5, 16)[..., None]
    got = thin(Lists(log_q, place, liked), size, rng)
    assert got.liked.shape == (5, min(size, 16)) and torch.equal(got.liked.sum(1), liked.sum(1))
    kept = got.features[..., 0].long()
    assert (kept.diff(dim=1) > 0).all() and torch.equal(got.log_q, log_q.gather(1, kept)) and torch.equal(got.liked, liked.gather(1, kept))
    n_open = (log_q > -torch.inf).sum(1)
    assert ((got.log_q > -torch.inf).sum(1) == n_open.clamp(max=size)).all()      # closed places go first


def test_requests_are_asked_as_told(data):
    asked = []
    def ask(fold, users):
        asked.append(len(users))
        return fold.requests(users, with_profile=False)
    lists = cross_fit(data, fit, SMALL, ask=ask)
    assert asked and lists.liked.any(1).all() and lists.features.shape == (*lists.liked.shape, len(fit(data)[0].names))
    one = training_lists(next(folds(data, 2)), fit, SMALL, 5, np.random.default_rng(0))
    assert len(one.liked) <= 5


def test_no_like_among_the_candidates_is_an_error():
    rows = pd.DataFrame({"user_id": [0, 0], "item_id": [0, 0], "rating": 5.0, "timestamp": [1, 2], "split": "train"})
    data = RecDataset(rows, pd.DataFrame({"item_id": range(4), "title": list("abcd")}))
    with pytest.raises(ValueError, match="raise `candidates`"): cross_fit(data, fit, SMALL)


# features and scorer

def test_features(data):
    behaviour, first = fit(data)
    requests = data.requests(np.arange(8))
    items, _ = first.retrieve(requests, 12)
    items[0, 8:] = -1
    x = behaviour(requests, items)
    assert x.shape == (8, 12, len(behaviour.names)) and x.dtype == torch.float32 and x.isfinite().all()
    assert len(set(behaviour.names)) == len(behaviour.names) == 2 * 3 * (2 if "timestamp" in data.interactions else 1) + 5
    column = {name: x[..., j] for j, name in enumerate(behaviour.names)}
    likes = np.asarray(data.matrix("train").sum(0)).ravel()
    np.testing.assert_allclose(column["popularity.log likes"][1], np.log1p(likes[items[1]]), rtol=1e-6)
    np.testing.assert_allclose(column["history.log length"][1], np.log1p(requests.history[1].sum()), rtol=1e-6)
    order = first.scores(requests)[1, items[1]]
    assert torch.equal(column["item_knn.log rank"][1].argsort(stable=True), order.argsort(descending=True, stable=True))
    assert torch.equal(x[2:5], behaviour(requests[2:5], items[2:5]))             # no request sees another
    empty = behaviour(Requests.from_texts(["x"], data.n_items), items[:1])
    assert empty.isfinite().all()


def test_the_newest_item_alone():
    history = sp.csr_matrix(np.array([[1.0, 1, 0], [0, 0, 0]], dtype=np.float32))
    requests = Requests(history, np.array([[0, 1], [-1, -1]]), ["a", "b"], np.zeros((2, 0), np.float32), np.array([0, 1]))
    got = last_item_only(requests)
    assert got.history.toarray().tolist() == [[0, 1, 0], [0, 0, 0]] and got.recent.tolist() == [[1], [-1]] and got.texts == ["", ""]
    assert last_item_only(Requests.from_texts(["a"], 3)).history.nnz == 0


@given(seed=st.integers(0, 10**6), bad=st.sampled_from([0.0, 1e30, float("inf"), float("nan")]))
@settings(max_examples=25, deadline=None)
def test_closed_candidates_are_not_felt(seed, bad):
    g = torch.Generator().manual_seed(seed)
    values, open_ = torch.randn(3, 8, generator=g), torch.rand(3, 8, generator=g) > 0.4
    for f in (centred, within_list):
        got = f(values.masked_fill(~open_, bad), open_)
        torch.testing.assert_close(got, f(values, open_))
        assert (got[~open_] == 0).all() and got.isfinite().all() and got.sum(1).abs().max() < 1e-3


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_list_loss_is_the_formula(seed):
    g = torch.Generator().manual_seed(seed)
    scores, liked = 3 * torch.randn(4, 7, generator=g), torch.rand(4, 7, generator=g) > 0.6
    liked[:, 2] = True
    scores[:, 6] = -torch.inf
    liked[:, 6] = False
    direct = [np.mean([-np.log(np.exp(s[i]) / np.exp(s).sum()) for i in np.flatnonzero(l)]) for s, l in zip(scores.double().numpy(), liked.numpy())]
    scores.requires_grad_()
    loss = list_loss(scores, liked)
    assert abs(loss.item() - np.mean(direct)) < 1e-4
    loss.backward()
    assert not scores.grad.isnan().any() and scores.grad.sum(1).abs().max() < 1e-5


def planted(n: int = 300, C: int = 10, seed: int = 0) -> Lists:
    "Lists in which the likes follow the first of three features, the second is heavy-tailed noise, the third constant."
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, C, 3, generator=g)
    x[..., 1] = torch.exp(4 * x[..., 1])
    x[..., 2] = 1.0
    liked = F.one_hot((2.5 * x[..., 0] + torch.randn(n, C, generator=g)).argmax(1), C).bool()
    return Lists(log_prior(torch.zeros(n, C)), x, liked)


def test_the_scorer_starts_as_the_first_stage_and_learns():
    lists, config = planted(), RerankConfig(hidden=16, seeds=2, steps=150, batch_size=32, lr=0.01)
    fresh = Scorer(3)
    fresh.fit_scale(lists.features)
    assert torch.equal(fresh(lists.features, lists.log_q), torch.zeros_like(lists.log_q))
    state = torch.get_rng_state()
    scorer = fit_scorer(lists, config)
    assert torch.equal(torch.get_rng_state(), state) and not scorer.training                  # nobody else's random numbers change
    new = planted(seed=1)
    with torch.no_grad(): after = new.log_q + scorer(new.features, new.log_q)
    assert list_loss(after, new.liked) < 0.6 * list_loss(new.log_q, new.liked)
    again, other = fit_scorer(lists, config), fit_scorer(lists, config.model_copy(update={"seed": 1}))
    assert all(torch.equal(a, b) for a, b in zip(scorer.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(scorer.nets[0][0].weight, other.nets[0][0].weight)
    assert not torch.equal(scorer.nets[0][0].weight, scorer.nets[1][0].weight)
    with torch.no_grad(): single = torch.stack([scorer.one(i, scorer.normalise(new.features), new.log_q) for i in range(2)])
    torch.testing.assert_close(single.mean(0), after - new.log_q, atol=1e-5, rtol=1e-5)       # an average


def test_noise_leaves_the_first_stage_alone():
    g = torch.Generator().manual_seed(0)
    scores = torch.zeros(200, 10)
    liked = F.one_hot(torch.multinomial(log_prior(scores).exp(), 1, generator=g)[:, 0], 10).bool()
    lists = Lists(log_prior(scores), torch.randn(200, 10, 3, generator=g), liked)
    scorer = fit_scorer(lists, RerankConfig(hidden=8, seeds=2, steps=60, batch_size=32))
    fresh = Lists(lists.log_q, torch.randn(200, 10, 3, generator=g), F.one_hot(torch.multinomial(lists.log_q.exp(), 1, generator=g)[:, 0], 10).bool())
    with torch.no_grad(): loss = list_loss(fresh.log_q + scorer(fresh.features, fresh.log_q), fresh.liked)
    assert loss < list_loss(fresh.log_q, fresh.liked) + 0.25


# weights

def test_equals_go_to_the_smaller_weights():
    items, scores = candidates(30, 10, 0, holes=False)
    relevant = sp.csr_matrix((np.ones(30), (range(30), items[:, 3].numpy())), (30, 100))
    config = RerankConfig(judge_grid=(2.0, 0.5, 0.0), match_grid=(1.0, 0.0))
    same = Reranker(config, judge=lambda r, i: torch.full(i.shape, 7.0), match=lambda r, i: torch.zeros(i.shape))
    weights, trials = tune_weights(same, strangers(30), items, scores, relevant)
    assert weights == Weights(behaviour=0, judge=0, match=0) and len(trials) == 6 and trials["value"].nunique() == 1
    oracle = Reranker(config, judge=lambda r, i: 10.0 * marks(i, relevant))
    weights, trials = tune_weights(oracle, strangers(30), items, scores, relevant)
    assert weights.judge == 0.5 and weights.match == weights.behaviour == 0 and trials["value"].max() == 1.0


def test_tuning_measures_what_is_served():
    "The value of a trial is the nDCG@10 of the lists that rerank gives with these weights."
    items, scores = candidates(20, 15, 1)
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(20, 100, generator=g)
    relevant = sp.csr_matrix((torch.rand(20, 100, generator=g) < 0.1).float().numpy())
    reranker = Reranker(judge=lambda r, i: noise.gather(1, i.clamp(min=0)))
    _, trials = tune_weights(reranker, strangers(20), items, scores, relevant)
    for _, trial in trials.iterrows():
        lists = reranker.rerank(strangers(20), items, scores, weights=Weights(behaviour=0, judge=trial["judge"])).items
        ours = ranking_metrics(lists[:, :10], relevant, ks=(10,))["ndcg@10"]
        assert abs(float(ours.nanmean()) - trial["value"]) < 1e-5


def test_mean_ndcg_by_hand():
    hits = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    expected = np.mean([(1 + 1 / 2) / (1 + 1 / np.log2(3) + 1 / 2), (1 / np.log2(3)) / 1])
    assert abs(mean_ndcg(hits, torch.tensor([5, 0, 1]), 3) - expected) < 1e-12


# diversity

def brute_force(items, scores, vectors, t, k):
    "Maximal marginal relevance of one list, written out."
    open_ = [c for c in range(len(items)) if items[c] >= 0 and scores[c] > -np.inf]
    s = {c: scores[c] for c in open_}
    low, high = min(s.values(), default=0), max(s.values(), default=0)
    chosen = []
    while len(chosen) < k and len(chosen) < len(open_):
        def value(c):
            nearest = max([0.0, *(float(vectors[items[c]] @ vectors[items[d]]) for d in chosen)])
            return (1 - t) * (s[c] - low) / max(high - low, 1e-9) - t * nearest
        chosen.append(max((c for c in open_ if c not in chosen), key=value))
    return [int(items[c]) for c in chosen] + [-1] * (k - len(chosen))


@given(seed=st.integers(0, 10**6), t=st.floats(0, 1), k=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_diversify_is_mmr(seed, t, k):
    items, scores = candidates(3, 9, seed)
    vectors = F.normalize(torch.randn(100, 4, generator=torch.Generator().manual_seed(seed)), dim=1).double()
    got, got_scores = diversify(items, scores.double(), vectors, t, k)
    for row, i, s in zip(got, items, scores.double()): assert row.tolist() == brute_force(i.numpy(), s.numpy(), vectors.numpy(), t, k)
    for row in got: assert len(set(row[row >= 0].tolist())) == (row >= 0).sum()               # nothing twice
    assert torch.equal(got >= 0, got_scores > -torch.inf)


def test_diversify_at_its_ends():
    items, scores = candidates(5, 10, 0, holes=False)
    vectors = F.one_hot(torch.arange(100) % 3, 3).float()
    assert torch.equal(diversify(items, scores, vectors, 0.0)[0], items)
    first_three = diversify(items, scores, vectors, 1.0, k=3)[0]
    assert torch.equal(first_three[:, 0], items[:, 0])
    for row, old in zip(first_three, items): assert len(set((row % 3).tolist())) == len(set((old % 3).tolist()))
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"): diversify(items, scores, vectors, bad)


# ---- what moved, and why ----------------------------------------------------------------------------------------------------

def explained_list(n: int, seed: int) -> pd.DataFrame:
    "A made-up explained list in its new order; the last two may not be shown."
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(n, 3))
    score = -np.log(np.arange(1, n + 1)) + parts.sum(1)
    table = pd.DataFrame({"item_id": [f"i{j}" for j in range(n)], "title": [f"跑步鞋 {j}" for j in range(n)], "rank before": np.arange(1, n + 1),
                          **dict(zip(PARTS, parts.T)), "score": score})
    table.loc[[1, 3], "score"] = -np.inf
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


@given(st.integers(4, 20), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_moves_are_their_definition(n, seed):
    table = explained_list(n, seed)
    found = moves(table)
    order = [i for i, s in zip(table["item_id"], table["score"]) if np.isfinite(s)]
    by_id = table.set_index("item_id")
    for row in found.itertuples():
        if not np.isfinite(by_id.loc[row.item_id, "score"]):
            assert (row.after, row.moved, row.why) == (0, 0, "not allowed")
            continue
        a, b = order.index(row.item_id), by_id.loc[row.item_id, "rank before"]
        assert (row.after, row.before, row.moved) == (a + 1, b, b - a - 1)
        passed = [i for i in order[a + 1:] if by_id.loc[i, "rank before"] < b]
        passed_by = [i for i in order[:a] if by_id.loc[i, "rank before"] > b]
        others, sign = (passed, 1) if len(passed) >= len(passed_by) else (passed_by, -1)
        if not others: assert row.why == ""
        else:
            lead = {p: sign * np.mean([by_id.loc[row.item_id, p] - by_id.loc[i, p] for i in others]) for p in PARTS}
            assert row.why == max(lead, key=lead.get)
            assert lead[row.why] > 0 or len(passed) == len(passed_by)      # some part must speak for the new order


def test_moves_without_parts_and_plot_of_a_short_list():
    import matplotlib
    matplotlib.use("Agg")
    table = explained_list(5, 0)
    assert set(moves(table[["item_id", "title", "rank before", "score"]])["why"]) <= {"", "not allowed"}
    items = pd.DataFrame({"item_id": table["item_id"], "category": "鞋", "price": range(5)})
    fig = plot_moves(table, items, k=4, relevant=["i0"], labels=("first stage", "re-ranked"))
    texts = [t.get_text() for t in fig.axes[0].texts]
    assert "first stage" in texts and "re-ranked" in texts and any("not allowed" in t for t in texts)
    assert sum(t.startswith("★") for t in texts) == 2 and any("鞋 · 0" in t for t in texts)          # once in each column
    assert len(fig.axes[0].patches) == 4 + 3                                                       # two of the five are closed


# ---------- what a user has rated low

def test_the_scorer_can_be_told_what_was_rated_low(data):
    stages = {"item_knn": ItemKNN().fit(data)}
    plain, told = Behaviour.fit(data, stages), Behaviour.fit(data, stages, own_ratings=True)
    requests, items = data.requests(np.arange(20)), torch.arange(data.n_items).expand(20, -1).clone()
    items[:, -3:] = -1
    seen = told(requests, items)
    assert torch.equal(seen[..., :-1], plain(requests, items)) and told.names[:-1] == plain.names
    low = data.negatives("train")[:20].toarray() > 0
    assert low.any() and (seen[:, :-3, -1].numpy() > 0).tolist() == low[:, :-3].tolist() and not seen[:, -3:, -1].any()
    strangers = Requests(requests.history, requests.recent, requests.texts, requests.context, np.full(20, -1))
    assert not told(strangers, items)[..., -1].any()


# the weights of a fusion
@pytest.mark.parametrize("barring", [False, True])
def test_a_pool_of_everything_measures_what_a_fusion_does(data, barring):
    stages = {"popularity": Popularity().fit(data), "item_knn": ItemKNN().fit(data)}
    likes, users = data.matrix("valid"), np.arange(40)
    requests, relevant = data.requests(users, ("train",)), likes[users]
    closed = barred(data, users, ("train",)) if barring else None
    allowed = torch.arange(data.n_items) % 7 != 3 if barring else None
    opinions = opinions_of(stages, requests, relevant, closed, allowed, depth=data.n_items)
    assert opinions.names == ("popularity", "item_knn") and opinions.codes.shape == opinions.liked.shape
    rng = np.random.default_rng(0)
    for weights in [(1.0, 0.0), (0.0, 1.0), *rng.random((5, 2)).tolist()]:
        lists, _ = candidates_of(Fusion(list(stages.values()), how="zsum", weights=weights), requests, 10, closed, allowed)
        expected = mean_ndcg(marks(lists, relevant), torch.from_numpy(np.diff(relevant.indptr)).long(), 10)
        assert opinions.ndcg(torch.tensor(weights, dtype=torch.float32)) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_union_of_the_best_is_the_union(seed, depth):
    g = torch.Generator().manual_seed(seed)
    z, closed = torch.randn(5, 12, 3, generator=g), torch.rand(5, 12, generator=g) < 0.3
    closed[4] = True                                            # nothing is open to the last one
    codes = union_of_best(z, closed, depth)
    for row in range(5):
        free = [i for i in range(12) if not closed[row, i]]
        expected = {i for m in range(3) for i in sorted(free, key=lambda i: -z[row, i, m])[:depth]}
        assert [i for i in codes[row].tolist() if i >= 0] == sorted(expected)


def made_opinions(B: int = 60, P: int = 30, seed: int = 0) -> Opinions:
    "One stage that knows, one that half knows, one that is noise."
    g = torch.Generator().manual_seed(seed)
    liked = torch.rand(B, P, generator=g) < 0.15
    z = torch.stack([liked.float() * s + torch.randn(B, P, generator=g) for s in (2.0, 1.0, 0.0)], -1)
    return Opinions(("good", "fair", "noise"), torch.arange(P).expand(B, -1), z, sp.csr_matrix(liked.numpy().astype(np.float32)), liked)


@pytest.mark.parametrize("seed", range(4))
def test_the_ascent_ends_at_a_top(seed):
    opinions = made_opinions(seed=seed)
    start = torch.tensor([0.0, 0.0, 1.0])
    weights, value = ascend(opinions, start)
    assert value == opinions.ndcg(weights) > opinions.ndcg(start) and set(weights.tolist()) <= {float(np.float32(v)) for v in FUSION_GRID}
    for m in range(3):
        for other in FUSION_GRID:
            trial = weights.clone()
            trial[m] = other
            assert not trial.any() or opinions.ndcg(trial) <= value


@pytest.mark.parametrize("by", ["users", "items"])
def test_luck_is_no_merit(by):
    "On noise alone the tuned mixture beats its start on what it was tuned on; its cross-validated value does not say so."
    gains, honest = [], []
    for seed in range(8):
        opinions = made_opinions(seed=seed)
        blind = replace(opinions, z=torch.randn(opinions.z.shape, generator=torch.Generator().manual_seed(99 + seed)))
        weights, value = tune_fusion(blind, {"good": 1.0}, by=by, seed=seed)
        start = blind.ndcg(torch.tensor([1.0, 0.0, 0.0]))
        gains.append(blind.ndcg(torch.tensor([weights.get(n, 0.0) for n in blind.names])) - start)
        honest.append(value - start)
    assert min(gains) > 0 and np.mean(honest) < np.mean(gains) / 3
    assert tune_fusion(made_opinions(), {"good": 1.0}) == tune_fusion(made_opinions(), {"good": 1.0}), "the same seed, the same halves"
    with pytest.raises(ValueError, match="start names 'better', which is none of good, fair, noise"): tune_fusion(made_opinions(), {"better": 1.0})


@pytest.mark.parametrize("by", ["users", "items"])
def test_halves_share_nothing(by):
    with pytest.raises(ValueError, match="by must be 'users' or 'items', got 'days'"): halves(made_opinions(), "days", np.random.default_rng(0))
    opinions = made_opinions(B=31, P=17)
    one, other = halves(opinions, by, np.random.default_rng(0))
    some = np.diff(opinions.likes.indptr) > 0
    if by == "users":
        who = [{row.tobytes() for row in half.z.numpy()} for half in (one, other)]          # noise: no two users have the same
        assert not who[0] & who[1] and len(who[0] | who[1]) == some.sum() and abs(len(who[0]) - len(who[1])) <= 1
    else:
        seen = [set(half.codes[half.codes >= 0].tolist()) for half in (one, other)]
        assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(17)) and one.likes.nnz + other.likes.nnz == opinions.likes.nnz
        for half, items in zip((one, other), seen): assert set(half.likes.indices.tolist()) <= items and not half.liked[half.codes < 0].any()
    for half in (one, other):
        weights = torch.tensor([1.0, 0.5, 0.1])
        order = (half.z @ weights).masked_fill(half.codes < 0, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :10]
        lists = half.codes.gather(1, order)
        assert half.ndcg(weights) == pytest.approx(mean_ndcg(marks(lists, half.likes), torch.from_numpy(np.diff(half.likes.indptr)).long(), 10))


# ---- a second source of candidates, and hard negatives

@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_lengthened_lists_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    n, C, width, k = int(rng.integers(3, 30)), int(rng.integers(1, 12)), int(rng.integers(1, 15)), int(rng.integers(1, 8))
    items = np.full((4, C), -1)
    further = np.full((4, width), -1)
    for row in range(4):
        have, other = rng.permutation(n)[: rng.integers(0, C + 1)], rng.permutation(n)[: rng.integers(0, width + 1)]
        items[row, : len(have)], further[row, : len(other)] = have, other
    scores = torch.from_numpy(-np.sort(-rng.normal(size=(4, C)))).float().masked_fill(torch.from_numpy(items) < 0, -torch.inf)
    longer, values = lengthened(torch.from_numpy(items), scores, torch.from_numpy(further), k)
    assert longer.shape == values.shape == (4, C + k) and torch.equal(longer[:, :C], torch.from_numpy(items)) and torch.equal(values[:, :C], scores)
    for row in range(4):
        wanted = [i for i in further[row] if i >= 0 and i not in items[row]][:k] if (items[row] >= 0).all() else []
        assert longer[row, C:].tolist() == wanted + [-1] * (k - len(wanted))
        finite = values[row][values[row] > -torch.inf]
        assert (finite.diff() < 0).all() or C > len(finite) and (finite.diff() <= 0).all()
        assert ((values[row] == -torch.inf) == (longer[row] < 0)).all()
    joined = followed_by(torch.from_numpy(items), torch.from_numpy(further))
    for row in range(4):
        mine = [i for i in items[row] if i >= 0]
        mine += [i for i in further[row] if i >= 0 and i not in mine]
        assert joined[row].tolist() == mine + [-1] * (C + width - len(mine))


def test_clearly_better_is_a_matter_of_users_and_size():
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=400))
    assert not clearly_better(0.02 + noise, 0 * noise) and clearly_better(0.2 + noise, 0 * noise) and clearly_better(0.02 + noise, noise)
    assert not clearly_better(noise, noise) and not clearly_better(torch.tensor([1.0]), torch.tensor([0.0]))   # one user proves nothing


def test_just_below_leaves_the_top_out(data):
    first = ItemKNN().fit(data)
    requests = data.requests(np.arange(12))
    lists, _ = first.retrieve(requests, 30)
    hard = just_below(first, requests, 6, np.random.default_rng(0), skip=5, depth=30)
    places = [[lists[row].tolist().index(code) for code in codes] for row, codes in enumerate(hard)]
    assert hard.shape == (12, 6) and min(map(min, places)) >= 5 and all(len(set(row)) == 6 for row in places)
    assert len({tuple(row) for row in places}) > 1                                       # other places for other users
    few = just_below(first, requests, 6, np.random.default_rng(0), skip=5, depth=8)
    assert few.shape == (12, 6) and ((few >= 0).sum(1) == 3).all()


def test_caution_takes_the_simplest_that_is_not_clearly_worse():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=500))
    values = {(0.0, 0.0): noise, (0.0, 1.0): noise + 0.01 + 0.2 * torch.from_numpy(rng.normal(size=500)), (1.0, 0.0): noise + 0.5, (1.0, 1.0): noise + 0.5 + torch.tensor([0.02, -0.019] * 250)}
    best = max(values, key=lambda weights: values[weights].mean())
    assert best == (1.0, 1.0) and simplest(values, best, 0.0) == best and simplest(values, best, 1.0) == (1.0, 0.0)      # half a unit is more than luck; 0.0005 is half a standard error
    assert simplest({k: v[:1] for k, v in values.items()}, best, 100.0) in values
    flat = {(0.0, 0.0): noise, (0.0, 1.0): noise + torch.tensor([0.3, -0.28] * 250)}
    assert simplest(flat, (0.0, 1.0), 3.0) == (0.0, 0.0)


def test_caution_of_tune_weights_never_takes_more_parts(data):
    first, rng = ItemKNN().fit(data), np.random.default_rng(1)
    requests = data.requests(np.arange(data.n_users))
    items, scores = candidates_of(first, requests, 30)
    noise = torch.from_numpy(rng.normal(size=(data.n_users, data.n_items))).float()
    used = []
    for caution in (0.0, 1.0, 50.0):
        reranker = Reranker(RerankConfig(caution=caution), judge=lambda requests, items: noise[torch.from_numpy(requests.users)[:, None], items.clamp(min=0)])
        weights, trials = tune_weights(reranker, requests, items, scores, data.matrix("valid"))
        used.append(weights.judge)
        assert len(trials) == len(RerankConfig().judge_grid)
    assert used[0] >= used[1] >= used[2] == 0
    with pytest.raises(ValidationError, match="caution"): RerankConfig(caution=-1)
