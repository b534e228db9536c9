"""Metrics against brute force and against other people's libraries; intervals, tuning, text and judges."""
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import sparse

from genre_nb import evaluation as ev

METRICS = ("precision", "recall", "ndcg", "mrr", "map", "hit_rate")


def random_case(seed, n_users=12, n_items=9, width=6, density=0.3):
    "Lists without repetition, padded at random lengths (0 to width), and what each user likes."
    rng = np.random.default_rng(seed)
    lists = np.argsort(rng.random((n_users, n_items)), 1)[:, :width]
    lists[np.arange(width) >= rng.integers(0, width + 1, (n_users, 1))] = -1
    return torch.from_numpy(lists), sparse.csr_matrix(rng.random((n_users, n_items)) < density)


def slow_metrics(items, liked, k):
    "The definitions, one user and one item at a time."
    ranks = [r for r, i in enumerate(items[:k], 1) if i in liked]
    dcg = sum(1 / math.log2(r + 1) for r in ranks)
    ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(liked)) + 1))
    ap = sum(sum(q <= r for q in ranks) / r for r in ranks) / len(liked)
    return dict(zip(METRICS, (len(ranks) / k, len(ranks) / len(liked), dcg / ideal,
                              1 / ranks[0] if ranks else 0, ap, float(bool(ranks)))))


def slow_beyond(lists, k, popularity, vectors, cold):
    "Diversity by pairs, novelty and cold share item by item, Gini by mean absolute difference."
    p = (popularity + 1) / (popularity + 1).sum()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    counts, users = np.zeros(len(popularity)), []
    for row in lists:
        items = [int(i) for i in row[:k] if i >= 0]
        for i in items: counts[i] += 1
        pairs = [1 - unit[i] @ unit[j] for i in items for j in items if i != j]
        mean = lambda values: np.mean(values) if len(values) else np.nan
        users.append((mean([-math.log2(p[i]) for i in items]), mean([cold[i] for i in items]), mean(pairs)))
    gini = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean()) if counts.sum() else np.nan
    return np.array(users, float), (counts > 0).mean(), gini


# ---- ranking metrics -------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), density=st.sampled_from([0.05, 0.3, 1.0]))
def test_ranking_metrics_are_their_definitions(seed, k, density):
    lists, liked = random_case(seed, density=density)
    fast = ev.ranking_metrics(lists, liked, ks=(k,))
    for b in range(len(lists)):
        items, wants = [int(i) for i in lists[b] if i >= 0], set(liked[b].indices)
        slow = slow_metrics(items, wants, k) if wants else dict.fromkeys(METRICS, math.nan)
        for m in METRICS:
            assert fast[f"{m}@{k}"][b].item() == pytest.approx(slow[m], abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6))
def test_beyond_accuracy_is_its_definition(seed, k):
    lists, _ = random_case(seed)
    rng = np.random.default_rng(seed)
    popularity, cold = rng.integers(0, 5, 9), rng.random(9) < 0.3
    vectors = rng.normal(size=(9, 3)) * (rng.random((9, 1)) < 0.8)          # some items have no text: zero vectors
    per_user, overall = ev.beyond_accuracy(lists, n_items=9, ks=(k,), popularity=popularity, item_vectors=vectors, cold=cold)
    users, coverage, gini = slow_beyond(lists.numpy(), k, popularity, vectors, cold)
    for column, name in enumerate(("novelty", "cold_share", "diversity")):
        if name == "diversity" and k == 1: assert "diversity@1" not in per_user; continue
        np.testing.assert_allclose(per_user[f"{name}@{k}"], users[:, column], atol=1e-9)
    assert overall[f"coverage@{k}"] == pytest.approx(coverage)
    assert overall[f"gini@{k}"] == pytest.approx(gini, nan_ok=True)
    assert ev.exposure(lists[:, :k], 9).sum() == (lists[:, :k] >= 0).sum()


def full_rankings(seed=0, n_users=40, n_items=30):
    "A score for every item, the ranking by it, and at least one liked item for everybody."
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_users, n_items))
    liked = rng.random((n_users, n_items)) < 0.15
    liked[:, 3] |= ~liked.any(1)
    return scores, torch.from_numpy((-scores).argsort(1)), liked


def test_ranking_metrics_equal_torchmetrics():
    from torchmetrics.functional import retrieval as tm
    scores, lists, liked = full_rankings()
    ours = ev.ranking_metrics(lists, sparse.csr_matrix(liked), ks=(3, 10, None))
    theirs = {"precision": tm.retrieval_precision, "recall": tm.retrieval_recall, "ndcg": tm.retrieval_normalized_dcg,
              "hit_rate": tm.retrieval_hit_rate}
    scores, liked = torch.from_numpy(scores).sigmoid(), torch.from_numpy(liked)   # it takes scores ≤ 0 as not retrieved
    for b in range(len(lists)):
        for k in (3, 10):
            for name, metric in theirs.items():
                assert ours[f"{name}@{k}"][b].item() == pytest.approx(metric(scores[b], liked[b], top_k=k).item(), abs=1e-6)
        assert ours["map"][b].item() == pytest.approx(tm.retrieval_average_precision(scores[b], liked[b]).item(), abs=1e-6)
        assert ours["mrr"][b].item() == pytest.approx(tm.retrieval_reciprocal_rank(scores[b], liked[b]).item(), abs=1e-6)


def test_ranking_metrics_equal_ranx():
    ranx = pytest.importorskip("ranx")
    scores, lists, liked = full_rankings(seed=1)
    qrels = ranx.Qrels({str(b): {str(i): 1 for i in np.flatnonzero(liked[b])} for b in range(len(liked))})
    run = ranx.Run({str(b): {str(i): float(scores[b, i]) for i in range(liked.shape[1])} for b in range(len(liked))})
    names = [f"{m}@{k}" for m in ("ndcg", "map") for k in (3, 10)] + ["map"]   # each name takes seconds to compile
    theirs = ranx.evaluate(qrels, run, names, return_mean=False)
    ours = ev.ranking_metrics(lists, sparse.csr_matrix(liked), ks=(3, 10, None))
    order = [int(q) for q in qrels.keys()]
    for name in names: np.testing.assert_allclose(ours[name].numpy()[order], theirs[name], atol=1e-9, err_msg=name)


def test_stored_zeros_negatives_and_repeated_entries_of_relevant():
    lists = torch.tensor([[0, 1, 2]])
    relevant = sparse.coo_matrix(([0.0, -1.0, 1.0, 1.0], ([0, 0, 0, 0], [0, 1, 2, 2])), shape=(1, 4))
    hits, n_relevant = ev.list_hits(lists, relevant)
    assert hits.tolist() == [[False, False, True]] and n_relevant.tolist() == [1]


def test_padding_of_one_user_is_not_the_last_item_of_the_user_before():
    relevant = sparse.csr_matrix(np.array([[0, 0, 1], [1, 0, 0]]))   # the key before user 1's first item is user 0's item 2
    hits, _ = ev.list_hits(torch.tensor([[0, -1], [-1, 1]]), relevant)
    assert not hits.any()


def test_users_may_come_in_any_order():
    lists, liked = random_case(5)
    order = np.random.default_rng(0).permutation(len(lists))
    one, two = ev.ranking_metrics(lists, liked, (3,)), ev.ranking_metrics(lists[order], liked[order], (3,))
    for m in one: np.testing.assert_array_equal(one[m].numpy()[order], two[m].numpy())


def test_twenty_thousand_users_without_a_dense_matrix(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("relevance was made dense")
    for name in ("toarray", "todense"): monkeypatch.setattr(sparse.csr_matrix, name, refuse)
    n_users, n_items = 21_000, 17_000
    rng = np.random.default_rng(0)
    lists = torch.from_numpy(rng.integers(0, n_items // 10, (n_users, 1)) + np.arange(10) * (n_items // 10))
    liked = sparse.csr_matrix((np.ones(n_users * 20), (np.repeat(np.arange(n_users), 20), rng.integers(0, n_items, n_users * 20))),
                              shape=(n_users, n_items))
    result = ev.evaluate_lists(lists, liked, n_items=n_items, popularity=np.arange(n_items), item_vectors=rng.normal(size=(n_items, 16)))
    some = rng.integers(0, n_users, 30)
    for b in some:
        slow = slow_metrics(lists[b].tolist(), set(liked[b].indices), 10)
        assert all(result.per_user[f"{m}@10"][b] == pytest.approx(slow[m], abs=1e-12) for m in METRICS)
    assert len(result.summary(n_boot=20)) == len(result.metrics)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lists_on_a_gpu_give_the_same():
    lists, liked = random_case(3)
    for a, b in ((lists, lists.cuda()),):
        one, two = (ev.evaluate_lists(x, liked, n_items=9, ks=(1, 5), popularity=np.arange(9), item_vectors=np.eye(9)) for x in (a, b))
        pd.testing.assert_frame_equal(one.per_user, two.per_user)
        assert one.overall == pytest.approx(two.overall)


@pytest.mark.parametrize("lists, message", [
    ([[0, 0]], "row 0 recommends item 0 twice"), ([[0, 9]], "row 0, column 1 holds item 9"), ([[-2, 0]], "holds item -2"),
    ([[0.5, 1.0]], "whole numbers"), ([0, 1], "one row of item codes per user")])
def test_lists_that_cannot_be_judged(lists, message):
    with pytest.raises(ValueError, match=message):
        ev.ranking_metrics(torch.tensor(lists), sparse.csr_matrix(np.eye(9)[:1]), (1,))


def test_other_errors_say_what_to_do():
    lists, liked = random_case(0)
    with pytest.raises(ValueError, match="retrieve k=20"): ev.ranking_metrics(lists, liked, (1, 20))
    with pytest.raises(ValueError, match="12 lists but 11 rows"): ev.ranking_metrics(lists, liked[:11], (1,))
    with pytest.raises(ValueError, match="n_items is 8"): ev.evaluate_lists(lists, liked, n_items=8, ks=(1,))
    with pytest.raises(ValueError, match="no user has a relevant item"): ev.evaluate_lists(lists, liked * 0, n_items=9, ks=(1,))
    with pytest.raises(ValueError, match="popularity is negative at item 2"):
        ev.beyond_accuracy(lists, n_items=9, ks=(1,), popularity=[1, 1, -1] + [0] * 6)
    with pytest.raises(ValueError, match="item_vectors holds NaN or infinity at item 1"):
        ev.beyond_accuracy(lists, n_items=9, ks=(2,), item_vectors=np.where(np.arange(9)[:, None] == 1, np.nan, np.eye(9)))


def test_catalogue_limits_coverage_and_gini():
    lists = torch.tensor([[0, 1], [1, 0]])
    half = np.arange(8) < 4
    _, every = ev.beyond_accuracy(lists, n_items=8, ks=(2,))
    _, some = ev.beyond_accuracy(lists, n_items=8, ks=(2,), catalogue=half)
    assert every["coverage@2"] == 0.25 and some["coverage@2"] == 0.5 and some["gini@2"] == 0.5 < every["gini@2"]


# ---- intervals and comparisons -----------------------------------------------------------------------------------------

def evaluation(values, name="ndcg@10", **overall):
    return ev.Evaluation(pd.DataFrame({name: values}), {"coverage@10": 0.5, **overall})


def test_bootstrap_is_a_mean_over_drawn_users():
    rng = np.random.default_rng(0)
    values = rng.random((50, 3))
    values[rng.random((50, 3)) < 0.2] = np.nan
    fast = ev.bootstrap_means(values, n_boot=40, seed=9, chunk=170)
    draws = np.random.default_rng(9)
    slow = np.array([np.nanmean(values[draws.integers(0, 50, 50)], 0) for _ in range(40)])
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    np.testing.assert_allclose(fast, ev.bootstrap_means(values, n_boot=40, seed=9), atol=1e-12)   # chunks change nothing


def test_bootstrap_interval_contains_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for trial in range(150):
        interval = ev.bootstrap_mean(rng.exponential(size=120), n_boot=300, seed=trial)
        inside += interval["low"] <= 1 <= interval["high"]
    assert 0.86 <= inside / 150 <= 0.99


def test_pairing_keeps_users_together():
    rng = np.random.default_rng(2)
    luck = rng.random(400)
    a, b = evaluation(luck + 0.02 + 0.01 * rng.normal(size=400)), evaluation(luck)
    difference, lift = ev.paired_difference(a, b), ev.paired_lift(a, b)
    assert 0.015 < difference["low"] < difference["mean"] < difference["high"] < 0.025       # unpaired it would be ±0.04
    assert lift["mean"] == pytest.approx(a.mean("ndcg@10") / b.mean("ndcg@10") - 1) and lift["low"] > 0
    for value in (ev.paired_difference(b, b), ev.paired_lift(b, b)):
        assert max(map(abs, value.values())) < 1e-12


def test_users_without_a_value_are_left_out_of_the_pair():
    a, b = evaluation([1.0, np.nan, 0.0, 1.0]), evaluation([0.0, 1.0, np.nan, 1.0])
    assert ev.paired_difference(a, b)["mean"] == 0.5
    with pytest.raises(ValueError, match="different users"): ev.paired_difference(a, evaluation([1.0]))
    with pytest.raises(ValueError, match="did you mean 'ndcg@10'"): ev.paired_lift(a, b, "NDCG@10")


def test_overall_metrics_have_no_interval_and_everything_is_json():
    a, b = evaluation([0.1, 0.4], **{"gini@10": 0.8}), evaluation([0.0, 0.0], **{"gini@10": 0.4})
    assert a.summary()["coverage@10"] == {"mean": 0.5, "low": None, "high": None}
    assert ev.paired_lift(a, b, "gini@10") == {"mean": 1.0, "low": None, "high": None}
    assert ev.paired_lift(a, b) == {"mean": None, "low": None, "high": None}                   # nothing is a multiple of zero
    nobody = evaluation([np.nan, np.nan])
    assert nobody.summary()["ndcg@10"] == {"mean": None, "low": None, "high": None}
    json.dumps([a.summary(), nobody.summary(), ev.paired_lift(a, b)], allow_nan=False)


def test_pool_puts_users_of_several_runs_side_by_side():
    pooled = ev.Evaluation.pool([evaluation([0.0, 1.0]), evaluation([1.0, 1.0], **{"coverage@10": 0.7})])
    assert len(pooled.per_user) == 4 and pooled.mean("ndcg@10") == 0.75 and pooled.mean("coverage@10") == pytest.approx(0.6)
    assert ev.paired_difference(pooled, pooled)["mean"] == 0


def test_lift_by_group():
    a, b = evaluation([1.0, 1.0, 0.0, 0.0]), evaluation([0.0, 0.0, 0.0, 0.5])
    table = ev.lift_by_group(a, b, ["new", "new", "old", "old"])
    assert table["mean"].to_dict() == {"new": 1.0, "old": -0.25, "all": 0.375} and table.loc["all", "users"] == 4
    with pytest.raises(ValueError, match="groups names 3 users, but 4"): ev.lift_by_group(a, b, ["new"] * 3)


# ---- table and plots -----------------------------------------------------------------------------------------------------

@pytest.fixture
def systems():
    rng = np.random.default_rng(0)
    return {name: evaluation(rng.random(50) * top) for name, top in (("popularity", 0.5), ("genre", 0.8), ("oracle", 1.0))}


def test_comparison_table(systems):
    table = ev.comparison_table(systems, ("ndcg@10", "coverage@10"), reference="popularity")
    assert list(table.index) == list(systems) and list(table.columns) == ["ndcg@10", "coverage@10", "lift over popularity"]
    assert table.loc["genre", "coverage@10"] == "0.500" and "[" in table.loc["genre", "ndcg@10"]
    assert table.loc["popularity", "lift over popularity"] == "+0.0% [+0.0%, +0.0%]"
    raw = ev.comparison_table(systems, ("ndcg@10", "coverage@10"), raw=True)
    saved = json.loads(json.dumps({name: s.summary() for name, s in systems.items()}))          # as in metrics.json
    pd.testing.assert_frame_equal(raw, ev.comparison_table(saved, ("ndcg@10", "coverage@10"), raw=True))
    assert raw.loc["genre", ("ndcg@10", "mean")] == pytest.approx(systems["genre"].mean("ndcg@10"))
    with pytest.raises(ValueError, match="no system has the metric 'clicks'"): ev.comparison_table(systems, ("clicks",))


def test_plot_comparison_uses_the_colours_everywhere(systems):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib.colors import to_hex
    fig = ev.plot_comparison(systems, ("ndcg@10", "coverage@10"))
    ax = fig.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(systems)
    points = [line for line in ax.lines if line.get_marker() in ("o", "D", "*")]
    assert [to_hex(line.get_color()).upper() for line in points] == [ev.GREY, ev.ORANGE, ev.BLACK]
    assert [line.get_linestyle() for line in ax.lines if line.get_marker() == "None"] == ["--"]   # the oracle's line
    assert fig.axes[1].get_xlabel() == "coverage@10"


def test_plot_exposure_shares_sum_to_one():
    import matplotlib
    matplotlib.use("Agg")
    lists, _ = random_case(0, n_users=30)
    popularity = np.arange(9)
    shares = ev.exposure_by_popularity(lists, popularity, 3)
    assert shares.sum() == pytest.approx(1) and len(shares) == 3
    fig = ev.plot_exposure(lists, lists.flip(0), popularity, n_groups=3)
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert heights[:3] == pytest.approx(list(shares)) and heights[3:] == pytest.approx(list(shares))
    first_is_best = ev.exposure_by_popularity(torch.tensor([[8], [8]]), popularity, 3)
    assert list(first_is_best) == [0, 0, 1]                                       # the last group is the most popular


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_frontier_is_what_nothing_beats(points):
    beaten = [any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points) for p in points]
    assert list(ev.frontier(points)) == [not b for b in beaten]


def test_frontier_refuses_nonsense_and_plot_fills_what_nothing_beats():
    import matplotlib
    matplotlib.use("Agg")
    for bad in ([1.0, 2.0], [[1.0, np.nan]], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="one row per setting"): ev.frontier(bad)
    curves = {"a": pd.DataFrame({"diversity@10": [0.1, 0.5], "ndcg@10": [0.3, 0.2]}, index=pd.Index([0.0, 0.5], name="t")),
              "b": pd.DataFrame({"diversity@10": [0.4], "ndcg@10": [0.1]}, index=["x"])}
    ax = ev.plot_frontier(curves).axes[0]
    filled = [line.get_markerfacecolor() != "white" for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() != "None"]
    assert filled == [True, True, False] and [t.get_text() for t in ax.texts] == ["0", "0.5", "x"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a (t)", "b"]


def test_other_plots_draw(systems):
    import matplotlib
    matplotlib.use("Agg")
    assert ev.plot_lift(systems["genre"], systems["popularity"], ["a"] * 25 + ["b"] * 25).axes[0].get_xlabel()
    assert len(ev.plot_reliability({"D": (np.ones(5), -np.ones(5))}).axes) == 2
    curve = pd.DataFrame({"bleu": [1.0, 2], "self_bleu": [3.0, 4], "temperature": [1.0, 2]})
    assert len(ev.plot_quality_diversity({"likelihood": curve, "GAN": curve[["bleu", "self_bleu"]]}).axes[0].texts) == 2


# ---- tuning ----------------------------------------------------------------------------------------------------------------

def test_tune_searches_the_whole_grid_when_it_fits():
    found = ev.tune(lambda s: -(s["a"] - 2) ** 2 + s["b"], {"a": [1, 2, 3], "b": [0, 1]}, budget=6)
    assert found.best == {"a": 2, "b": 1} and found.value == 1 and len(found.trials) == 6
    assert list(found.trials.columns) == ["a", "b", "value", "seconds"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), budget=st.integers(1, 30))
def test_tune_draws_different_points_and_repeats_with_the_seed(seed, budget):
    space = {"a": list(range(9)), "b": "x y z".split(), "c": [True, False]}
    points = ev.trial_settings(space, budget, seed)
    assert len(points) == budget == len({tuple(p.values()) for p in points})
    assert points == ev.trial_settings(space, budget, seed)
    assert all(p[name] in values for p in points for name, values in space.items())


def test_tune_ignores_nan_and_refuses_nonsense():
    assert ev.tune(lambda s: math.nan if s["a"] else 0.0, {"a": [1, 0, 2]}).best == {"a": 0}
    with pytest.raises(ValueError, match="NaN in all 2 trials"): ev.tune(lambda s: math.nan, {"a": [1, 2]})
    with pytest.raises(ValueError, match="must be a list"): ev.tune(lambda s: 0.0, {"a": "abc"})
    with pytest.raises(ValueError, match="at least one value"): ev.tune(lambda s: 0.0, {"a": []})
    with pytest.raises(ValueError, match="budget"): ev.tune(lambda s: 0.0, {"a": [1]}, budget=0)
    assert len(ev.trial_settings({c: list(range(1000)) for c in "abcdef"}, 5, 0)) == 5           # 10^18 points


# ---- text ------------------------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("这款跑鞋轻便ab ,。", min_size=1, max_size=25), min_size=2, max_size=8), st.sampled_from(["zh", "en"]))
def test_self_bleu_is_sacrebleu_against_all_others(texts, language):
    from sacrebleu.metrics import BLEU
    metric = BLEU(tokenize="zh" if language == "zh" else "13a", effective_order=True)
    naive = np.mean([metric.sentence_score(t, texts[:i] + texts[i + 1:]).score for i, t in enumerate(texts)])
    assert ev.self_bleu(texts, language) == pytest.approx(naive, abs=1e-9)


def test_self_bleu_knows_collapse_from_variety_and_samples_with_a_seed():
    rng = np.random.default_rng(0)
    varied = ["".join(rng.choice(list("跑鞋轻便透气雨伞旅行书包春夏秋冬"), 12)) for _ in range(60)]
    assert ev.self_bleu(["这款跑鞋很轻便。"] * 5) == pytest.approx(100) and ev.self_bleu(varied) < 50
    assert ev.self_bleu(varied, sample=20, seed=1) == ev.self_bleu(varied, sample=20, seed=1)
    with pytest.raises(ValueError, match="at least two"): ev.self_bleu(["一"])
    with pytest.raises(ValueError, match="language must be"): ev.self_bleu(["a", "b"], "chinese")


def test_bleu_is_sacrebleu_and_cuts_chinese_into_characters():
    import sacrebleu
    hypotheses, references = ["这款跑鞋轻便", "旅行背包"], [["这款跑鞋很轻便", "轻便的跑鞋"], ["旅行用背包"]]
    expected = sacrebleu.corpus_bleu(hypotheses, [["这款跑鞋很轻便", "旅行用背包"], ["轻便的跑鞋", None]], tokenize="zh").score
    assert ev.bleu(hypotheses, references) == pytest.approx(expected) and expected > 10
    english = ["a light running shoe for the summer"]
    assert ev.bleu(english, english) == pytest.approx(100)
    with pytest.raises(ValueError, match="1 hypotheses and 0 references"): ev.bleu(["a"], [])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=6), st.integers(1, 3))
def test_distinct_n_counts(texts, n):
    grams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
    assert ev.distinct_n(texts, n) == (len(set(grams)) / len(grams) if grams else 0)


def test_held_out_likelihood_weighs_tokens_not_texts():
    result = ev.held_out_likelihood(torch.tensor([-1.0, -9.0]), torch.tensor([1, 4]), torch.tensor([2, 8]))
    assert result["nll"] == pytest.approx(2) and result["perplexity"] == pytest.approx(math.e**2)
    assert result["bits_per_character"] == pytest.approx(1 / math.log(2))


def test_attribute_match():
    wanted = [{"category": "shoe", "season": {"summer", "spring"}}, {"place": "beach"}, {}, {"place": "beach"}]
    found = [{"category": "shoe", "season": "spring"}, {"place": ["city", "beach"]}, {"a": "b"}, None]
    np.testing.assert_array_equal(ev.attribute_match(found, wanted), [1, 1, np.nan, 0])
    with pytest.raises(ValueError, match="1 texts but 4 interests"): ev.attribute_match([{}], wanted)


# ---- judges ----------------------------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_auc_and_accuracy_are_their_definitions(real, other):
    result = ev.judge_metrics(torch.tensor(real), torch.tensor(other))
    assert result["auc"] == pytest.approx(np.mean([(r > o) + 0.5 * (r == o) for r in real for o in other]))
    assert result["accuracy_real"] == pytest.approx(np.mean([(r > 0) + 0.5 * (r == 0) for r in real]))
    assert result["accuracy_other"] == pytest.approx(np.mean([(o < 0) + 0.5 * (o == 0) for o in other]))
    assert 0 <= result["calibration_error"] <= 1


def test_judge_metrics_equal_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc, binary_calibration_error
    torch.manual_seed(0)
    real, other = 2 * torch.randn(400) + 1, 2 * torch.randn(400) - 1
    p, y = torch.cat([real, other]).sigmoid(), torch.cat([torch.ones(400), torch.zeros(400)]).long()
    ours = ev.judge_metrics(real, other)
    assert ours["auc"] == pytest.approx(binary_auroc(p, y).item(), abs=1e-5)
    assert ours["calibration_error"] == pytest.approx(binary_calibration_error(p, y, n_bins=10).item(), abs=1e-4)


def test_unequal_numbers_weigh_the_two_kinds_alike():
    torch.manual_seed(1)
    real, other = torch.randn(300) + 0.5, torch.randn(300) - 0.5
    once, often = ev.judge_metrics(real, other), ev.judge_metrics(real, other.repeat(5))
    assert once == pytest.approx(often)
    curve = ev.reliability_curve(real, other.repeat(5))
    assert curve["weight"].sum() == pytest.approx(1) and curve["observed"].between(0, 1).all()


def test_extreme_scores_and_bad_scores():
    assert ev.judge_metrics([1e4, math.inf], [-1e4, -math.inf])["auc"] == 1
    for real, other in (([], [1.0]), ([1.0], [math.nan])):
        with pytest.raises(ValueError, match="empty or holds NaN"): ev.judge_metrics(real, other)


# ---- living users

def click_by_item(chance):
    "People who click each shown item with its own chance and come back if they clicked."
    def respond(users, lists, rng):
        clicks = (rng.random(lists.shape) < np.append(chance, 0)[lists]) & (lists >= 0)
        return clicks, clicks.any(1)
    return respond


def test_live_metrics_count_by_hand():
    pages = np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    respond = lambda users, lists, rng: (np.isin(lists, [1, 2, 3]), np.arange(len(users)) < 3)      # back in the first round only
    table = ev.live_metrics(respond, [7, 8, 9], pages, np.random.default_rng(0), rounds=2).per_user
    assert list(table.index) == [7, 8, 9] and list(table) == list(ev.LIVE_METRICS)
    np.testing.assert_allclose(table.loc[7], [2 / 3, 1, 2, .5])
    np.testing.assert_allclose(table.loc[8], [1, 1, 1, .5])
    assert np.isnan(table.loc[9, "precision"]) and table.loc[9, "engagement"] == 0
    again = ev.live_metrics(respond, [7, 8, 9], torch.from_numpy(pages), np.random.default_rng(0), rounds=2).per_user
    pd.testing.assert_frame_equal(table, again)


def test_ab_test_finds_the_truth_about_as_often_as_it_says():
    chance, inside, paired_inside, widths = np.array([.2, .3]), [], [], []
    a, b = np.zeros((200, 1), int), np.ones((200, 1), int)
    for seed in range(120):
        for paired, box in ((False, inside), (True, paired_inside)):
            row = ev.ab_test(click_by_item(chance), a, b, np.arange(200), np.random.default_rng(seed), paired=paired, raw=True, n_boot=300).loc["engagement"]
            box.append(row["difference", "low"] <= .1 <= row["difference", "high"])
            assert row["lift", "mean"] == pytest.approx(row["b", "mean"] / row["a", "mean"] - 1)
    assert .88 <= np.mean(inside) <= .99 and .88 <= np.mean(paired_inside) <= .99


def test_ab_test_splits_users_in_halves_and_pairs_the_same_users():
    asked = []
    def respond(users, lists, rng):
        asked.append(set(users.tolist()))
        return np.ones(lists.shape, bool), np.ones(len(users), bool)
    pages = np.zeros((7, 1), int)
    ev.ab_test(respond, pages, pages, np.arange(7), np.random.default_rng(0))
    assert asked[0] | asked[1] == set(range(7)) and not asked[0] & asked[1] and abs(len(asked[0]) - len(asked[1])) == 1
    table = ev.ab_test(respond, pages, pages, np.arange(7), np.random.default_rng(0), paired=True, raw=True)
    assert asked[2] == asked[3] == set(range(7)) and (table["difference"] == 0).all(axis=None)
    text = ev.ab_test(respond, pages, pages, np.arange(7), np.random.default_rng(0))
    assert text.loc["precision", "lift"] == "+0.0% [+0.0%, +0.0%]" and list(text) == ["a", "b", "difference", "lift"]


def test_paired_ab_test_leaves_out_users_without_a_list():
    a, b = np.array([[0], [-1], [0]]), np.array([[1], [1], [1]])
    table = ev.ab_test(click_by_item(np.array([0., 1.])), a, b, np.arange(3), np.random.default_rng(0), paired=True, raw=True)
    assert table.loc["precision", ("difference", "mean")] == 1 and table.loc["engagement", ("a", "mean")] == 0


@pytest.mark.parametrize("correlation", [0., .6])
def test_power_is_what_experiments_find(correlation):
    rng, n, mean, sd, lift = np.random.default_rng(0), 80, 2., 1., .2
    cov = sd**2 * np.array([[1, correlation], [correlation, 1]])
    x = rng.multivariate_normal([mean, mean * (1 + lift)], cov, (4000, n))
    d = x[..., 1] - x[..., 0]
    se = d.std(1, ddof=1) / np.sqrt(n) if correlation else np.sqrt(x.var(1, ddof=1).sum(1) / n)
    found = (np.abs(d.mean(1)) > 1.96 * se).mean()
    assert abs(found - ev.ab_power(n, mean, sd, lift, correlation=correlation)) < .03


@given(st.floats(.1, 5), st.floats(.1, 5), st.floats(.02, .5), st.floats(.5, .99), st.floats(0, .9))
def test_sample_size_is_the_smallest_that_has_the_power(mean, sd, lift, power, correlation):
    n = ev.ab_sample_size(mean, sd, lift, power, correlation=correlation)
    assert ev.ab_power(n, mean, sd, lift, correlation=correlation) >= power - 1e-9
    assert n <= 3 or ev.ab_power(n - 1, mean, sd, lift, correlation=correlation) < power + 1e-3
    assert ev.ab_sample_size(mean, sd, -lift, power, correlation=correlation) == n


def slow_team_draft(a, b, coin):
    "Algorithm 2 of Radlinski et al. 2008, one user, one place at a time."
    page, teams, k = [], [], len(a)
    left = lambda ranking: [i for i in ranking if i >= 0 and i not in page]
    for place in range(k):
        if not left(a) or not left(b): break
        n = [teams.count(0), teams.count(1)]
        team = coin[place] if n[0] == n[1] else int(n[1] < n[0])
        page.append(left((a, b)[team])[0])
        teams.append(team)
    return page + [-1] * (k - len(page)), teams + [-1] * (k - len(teams))


@pytest.mark.parametrize("seed", range(4))
def test_team_draft_is_the_algorithm(seed):
    a, b = (random_case(seed + 10 * side, n_users=60)[0].numpy() for side in (0, 1))
    pages, teams = ev.team_draft(a, b, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    coins = np.stack([rng.integers(0, 2, 60) for _ in range(a.shape[1])], 1)
    for u in range(60):
        assert (pages[u].tolist(), teams[u].tolist()) == slow_team_draft(a[u].tolist(), b[u].tolist(), coins[u])


def test_interleaving_is_fair_and_finds_the_better():
    a, b = np.tile([0, 1, 2, 3], (500, 1)), np.tile([4, 5, 2, 3], (500, 1))
    good = click_by_item(np.array([.1, .1, .2, .2, .4, .4]))
    same = ev.interleaving_test(good, a, a, np.arange(500), np.random.default_rng(0), rounds=10)
    assert abs(same["mean"]) < 4 * .5 / np.sqrt(5000)
    forth, back = (ev.interleaving_test(good, x, y, np.arange(500), np.random.default_rng(1), rounds=4) for x, y in ((a, b), (b, a)))
    assert forth["low"] > 0 > back["high"] and abs(forth["mean"] + back["mean"]) < .06
    assert forth["wins_a"] + forth["wins_b"] + forth["ties"] == pytest.approx(1)
    assert forth["mean"] == pytest.approx((forth["wins_b"] - forth["wins_a"]) / 2)


def test_ips_is_unbiased_by_enumeration():
    "The expectation over everything the log could have shown is the value of the other policy, exactly."
    logged, target, reward = np.array([.5, .3, .2]), np.array([.1, .2, .7]), np.array([.3, .5, .9])
    shown = [ev.off_policy_value([reward[i]], [logged[i]], [target[i]], n_boot=2)["mean"] for i in range(3)]
    assert logged @ shown == pytest.approx(target @ reward)
    weights = ev.importance_weights(logged, target)
    assert logged @ weights == pytest.approx(1)                                     # why (20) may divide by Σw
    clipped = [ev.off_policy_value([reward[i]], [logged[i]], [target[i]], clip=1., n_boot=2)["mean"] for i in range(3)]
    assert logged @ clipped < target @ reward


def test_off_policy_interval_and_groups():
    rng = np.random.default_rng(0)
    logged, target, chance = np.array([.6, .4]), np.array([.2, .8]), np.array([.3, .6])
    inside = {False: [], True: []}
    for trial in range(150):
        action = (rng.random(300) > logged[0]).astype(int)
        y = rng.random(300) < chance[action]
        for normalise in inside:
            v = ev.off_policy_value(y, logged[action], target[action], normalise=normalise, n_boot=300, seed=trial)
            inside[normalise].append(v["low"] <= target @ chance <= v["high"])
    assert all(.88 <= np.mean(v) <= .99 for v in inside.values())
    one, many = (ev.off_policy_value(np.repeat(y[:60], 5), np.full(300, .5), groups=g) for g in (None, np.repeat(np.arange(60), 5)))
    assert one["mean"] == many["mean"] and many["high"] - many["low"] > 1.5 * (one["high"] - one["low"])


def test_examination_is_recovered_from_shuffled_pages():
    e = np.array([1, .6, .3])
    chance = np.array([.9, .5, .2])
    respond = lambda users, lists, rng: (rng.random(lists.shape) < e * chance[lists], np.zeros(len(users), bool))
    seen = ev.estimate_examination(respond, np.tile([0, 1, 2], (3000, 1)), np.arange(3000), np.random.default_rng(0), rounds=3)
    assert list(seen.index) == [1, 2, 3] and (np.abs(seen["mean"] - e) < .05).all() and (seen["low"] <= seen["mean"]).all()
    rng = np.random.default_rng(1)
    item = rng.integers(0, 3, 60_000)
    place = np.where(item == 0, 2, rng.integers(0, 3, 60_000))                      # the best item always stands last
    click = rng.random(60_000) < e[place] * chance[item]
    plain = np.bincount(item, click) / np.bincount(item)
    assert plain[0] < plain[1]
    for normalise in (True, False):
        rate = ev.corrected_click_rate(item, click, e[place], 4, normalise)
        np.testing.assert_allclose(rate[:3], chance, atol=.03)
        assert np.isnan(rate[3])


@pytest.mark.parametrize("call,message", [
    (lambda: ev.live_metrics(None, [0], [[1], [2]], None), "one list for each"),
    (lambda: ev.live_metrics(None, [], np.zeros((0, 2), int), None), "at least one user"),
    (lambda: ev.live_metrics(None, [0], [[1]], None, rounds=0), "at least once"),
    (lambda: ev.live_metrics(None, [0], [[1, 1]], None), "twice"),
    (lambda: ev.ab_test(None, [[1]], [[2]], [0], np.random.default_rng(0)), "at least two users"),
    (lambda: ev.ab_power(1, 1., 1., .1), "at least two users"),
    (lambda: ev.ab_power(10, 0., 1., .1), "must be positive"),
    (lambda: ev.ab_sample_size(1., 1., .1, correlation=1.), "correlation=1.0"),
    (lambda: ev.ab_sample_size(1., 1., .1, power=1.), "power=1.0"),
    (lambda: ev.team_draft([[1, 2]], [[1]], None), "the same length"),
    (lambda: ev.off_policy_value([1, 1], [.5, np.nan]), "row 1: propensity nan"),
    (lambda: ev.off_policy_value([1, 1], [.5, .5], [.5, -1]), "row 1"),
    (lambda: ev.off_policy_value([1, 1], [.5, .5], [.5]), "one for each row"),
    (lambda: ev.off_policy_value([1], [.5, .5]), r"\(1,\) rewards for \(2,\) propensities"),
    (lambda: ev.off_policy_value([1], [.5], clip=0), "clip=0"),
    (lambda: ev.corrected_click_rate([0], [1, 0], [.5, .5], 2), "1 items, 2 clicks"),
    (lambda: ev.estimate_examination(click_by_item(np.zeros(2)), [[0, 1]], [0], np.random.default_rng(0)), "nobody clicked the first place"),
])
def test_live_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_shorten_counts_chinese_twice():
    assert ev.shorten("abc", 3) == "abc" and ev.shorten("abcd", 3) == "ab…" and ev.shorten("跑步鞋", 6) == "跑步鞋" and ev.shorten("跑步鞋x", 6) == "跑步…"
    assert ev.shorten("", 3) == ""
