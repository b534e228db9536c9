"""Fakes, the reader with a concordance, and what they do to the lists: brute force, no leaks, no repeated fold, plain errors."""
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from genre_nb.adversarial import GanConfig
from genre_nb.cli import app
from genre_nb.discriminator import Concordance, ListingJudge, fit_listing_judge, off_the_path
from genre_nb.evaluation import auc
from genre_nb.recommender import (FAKE_KINDS, SUSPICIOUS, Contaminated, GenreConfig, GenreRecommender, ListingFold, ListingReport, auc_interval, check_contaminate,
                                  forge_stock, genuine_items, judge_listings)
from genre_nb.reranking import RerankConfig
from genre_nb.retrieval import Forger, LanguageModel, NGram, join_words, spliced_listings, stuffed_listings, surface_words
from genre_nb.simulation import World

runner = CliRunner()
rows = st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=6), min_size=2, max_size=6)


def padded(texts: list[list[int]]) -> torch.Tensor:
    out = torch.zeros(len(texts), max(map(len, texts)) + 2, dtype=torch.long)
    for row, text in zip(out, texts): row[: len(text) + 2] = torch.tensor([1, *text, 2])
    return out


# the concordance

@given(rows, rows)
@settings(max_examples=25, deadline=None)
def test_shares_of_unknown_sequences_are_those_counted_by_hand(listings, texts):
    index = Concordance(padded(listings), longest=3)
    read = index.read(padded(texts))
    for n in (1, 2, 3):
        grams = lambda text: [tuple([1, *text, 2][i : i + n]) for i in range(len(text) + 3 - n)]
        held = {g for text in listings for g in grams(text)}
        wanted = [np.mean([g not in held for g in grams(text)]) for text in texts]
        np.testing.assert_allclose(read[:, index.names.index(f"{n} tokens: share unknown")], wanted, atol=1e-6)


@given(rows)
@settings(max_examples=25, deadline=None)
def test_left_out_is_as_if_never_known(listings):
    ids = padded(listings)
    index, without = Concordance(ids, longest=4), Concordance(ids[1:], longest=4)
    torch.testing.assert_close(index.read(ids[:1], own=torch.tensor([[0, -1]])), without.read(ids[:1]), atol=1e-5, rtol=1e-5)


@given(rows, rows)
@settings(max_examples=25, deadline=None)
def test_bonds_are_those_counted_by_hand(listings, texts):
    index, ids = Concordance(padded(listings), longest=4), padded(texts).numpy()
    held = [[1, *row, 2] for row in listings]
    count = lambda gram: sum(any(tuple(row[i : i + len(gram)]) == gram for i in range(len(row))) for row in held)
    tokens = sum(map(len, held))
    expected = index.expect(index.count(ids, np.full((len(ids), 1), -1)), np.full((len(ids), 1), tokens))
    for row, text in enumerate(texts):
        for n, values in zip((2, 3, 4), expected):
            for end in range(n - 1, len(text) + 2):
                gram = tuple([1, *text, 2][end - n + 1 : end + 1])
                wanted = count(gram[:-1]) * count(gram[1:]) / max(count(gram[1:-1]) if n > 2 else tokens, 1)
                assert values[row, end] == pytest.approx(wanted)


@given(rows, rows)
@settings(max_examples=25, deadline=None)
def test_runs_and_repeats_are_those_found_by_hand(listings, texts):
    index = Concordance(padded(listings), longest=3)
    fact = dict(zip(index.names, index.read(padded(texts)).T.tolist()))
    grams = lambda row, n: {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
    held = {gram for row in listings for n in (1, 2, 3) for gram in grams([1, *row, 2], n)}
    for row, text in enumerate(texts):
        assert fact["shared runs: longest"][row] == max((n for n in (1, 2, 3) if grams([1, *text, 2], n) & held), default=0)
        twice = [n for n in range(1, len(text)) if len(grams(text, n)) < len(text) - n + 1]
        assert fact["longest repeat"][row] == max(twice, default=0)


def test_texts_are_read_alike_in_batches_of_any_size():
    index, texts = Concordance(padded([[4, 5, 6], [5, 6, 7], [4, 4, 8]])), padded([[4, 5], [6, 6, 6], [9], [5, 6, 7]])
    own = torch.tensor([[0, 1], [-1, -1], [2, 2], [1, -1]])
    torch.testing.assert_close(index.read(texts, own, batch_size=1), index.read(texts, own))
    assert index.read(texts[:0]).shape == (0, len(index.names)) and len(set(index.names)) == len(index.names)


def test_words_of_no_listing_are_unknown_and_do_no_harm():
    read = Concordance(padded([[4, 5], [5, 6]]), longest=2).read(padded([[4, 900], [7, 8]]))
    assert read.isfinite().all()


@pytest.mark.parametrize("make, message", [
    (lambda ids: Concordance(ids, longest=0), "longest=0 must be at least 1"),
    (lambda ids: Concordance(ids[:0]), "at least one listing"),
    (lambda ids: Concordance(ids).read(ids, own=torch.zeros(1, 1, dtype=torch.long)), "own has 1 rows for 2 texts"),
    (lambda ids: fit_listing_judge(Concordance(ids).read(ids), {"a": torch.zeros(0, 3)}), "at least one kind of fake")])
def test_wrong_calls_of_the_reader(make, message):
    with pytest.raises(ValueError, match=message): make(padded([[4, 5], [5, 6]]))


def test_the_judge_is_seeded_saved_and_leaves_the_callers_noise_alone():
    genuine, fake = torch.randn(80, 5), torch.randn(80, 5) + 3
    torch.manual_seed(3); wanted = torch.rand(2)
    torch.manual_seed(3); one = fit_listing_judge(genuine, {"x": fake}, steps=60); assert torch.equal(torch.rand(2), wanted)
    two = fit_listing_judge(genuine, {"x": fake}, steps=60)
    again = ListingJudge(5).eval(); again.load_state_dict(two.state_dict())
    with torch.no_grad():
        for first, second, asked in ((one, two, genuine), (again, two, fake)):                 # sums may round by where a tensor lies in memory
            torch.testing.assert_close(first(asked), second(asked), rtol=0, atol=1e-4)
        assert all(torch.equal(kept, two.state_dict()[name]) for name, kept in again.state_dict().items())
        assert auc(one(torch.randn(200, 5)), one(torch.randn(200, 5) + 3)) > 0.95


def test_off_the_path_is_suspicious_where_no_known_fake_went():
    torch.manual_seed(0)
    genuine, fake = torch.randn(300, 6), torch.randn(300, 6)
    fake[:, 0] -= 4                                                        # all known fakes are low in the first number
    other = torch.randn(200, 6); other[:, 0] += 4                          # the new kind is high in it
    areas = []
    for surprises in (0, 2000):
        judge = fit_listing_judge(genuine, {"low": fake}, surprises=surprises)
        with torch.no_grad(): areas.append(auc(judge(torch.randn(200, 6)), judge(other)))
    assert areas[0] < 0.3 and areas[1] > 0.7, areas


def test_what_ties_the_numbers_together_is_part_of_the_path():
    torch.manual_seed(0)
    both = torch.randn(400, 1)
    genuine = torch.cat([both + 0.2 * torch.randn(400, 2), torch.randn(400, 4)], 1)
    fake = genuine.clone(); fake[:, 5] -= 4                                # the known fakes keep the first two numbers in step
    other = genuine.clone(); other[:, 1] = genuine[torch.randperm(400), 1]   # the new kind is usual in every number
    other = other[(other[:, 0] - other[:, 1]).abs() > 1]                      # but its first two disagree
    judge = fit_listing_judge(genuine[:200], {"low": fake[:200]})
    with torch.no_grad(): assert auc(judge(genuine[200:]), judge(other)) > 0.85


def test_along_its_axes_the_path_is_round():
    genuine = torch.randn(300, 4) @ torch.randn(4, 4)
    judge = ListingJudge(4).learn_path(genuine, ridge=0.0)
    torch.testing.assert_close(judge.along(genuine).T @ judge.along(genuine) / 300, torch.eye(4), atol=1e-3, rtol=1e-3)
    moved = off_the_path(judge, genuine, 500)
    assert moved.shape == (500, 4) and (judge.along(moved) ** 2).mean() > 1.5
    assert torch.isfinite(ListingJudge(4).learn_path(genuine[:1]).prepare(genuine)).all(), "a single listing has no spread"


# the forger

TEXTS = ["红色 跑鞋 · 运动鞋 · 轻便透气，适合晨跑。", "Blue tent · a tent for two, light and dry.", "蓝牙耳机 · 耳机 · 音质好，适合通勤。", "Red mug · don't drop it; 3.5 dl"] * 6


def test_surface_words_lose_nothing():
    for text in TEXTS: assert "".join(surface_words(text)) == text
    assert join_words([" 跑", " 鞋", " a", " b"]) == "跑鞋 a b"


def test_stuffing_uses_only_words_of_what_a_user_likes():
    likes = sp.csr_matrix(([1.0, 1.0], ([0, 1], [1, 1])), (3, len(TEXTS)))
    liked = {w.strip() for w in surface_words(TEXTS[1])}
    for text in stuffed_listings(TEXTS, likes, 5, np.random.default_rng(0)):
        words = [w.strip() for w in surface_words(text)]
        assert set(words) <= liked and len(words) > len(set(words)) / 2
    with pytest.raises(ValueError, match="there is no like"): stuffed_listings(TEXTS, sp.csr_matrix((3, len(TEXTS))), 1, np.random.default_rng(0))


def test_splices_name_their_sources():
    texts, sources = spliced_listings(TEXTS, 20, np.random.default_rng(0))
    for text, (a, b) in zip(texts, sources):
        pool = {w.strip() for i in (a, b) for w in surface_words(TEXTS[i])}
        assert {c for w in surface_words(text) for c in w.strip()} <= {c for w in pool for c in w}
    assert (sources[:10, 0] == sources[:10, 1]).all()


def test_every_step_of_an_ngram_was_seen():
    seen = {tuple(ws[i : i + 3]) for t in TEXTS for ws in [surface_words(t)] for i in range(len(ws) - 2)}
    for text in NGram(TEXTS).write(10, np.random.default_rng(0)):
        words = surface_words(text)
        assert all(tuple(words[i : i + 3]) in seen for i in range(len(words) - 2))
    with pytest.raises(ValueError, match="order=1"): NGram(TEXTS, order=1)


def test_the_forger_is_seeded_and_says_what_is_wrong():
    likes = sp.csr_matrix(np.eye(3, len(TEXTS), dtype=np.float32))
    one, two = (Forger(TEXTS, likes, steps=3) for _ in range(2))
    for kind in FAKE_KINDS:
        texts, copied = one.write(kind, 4)
        assert texts == two.write(kind, 4)[0] != one.write(kind, 4, draw=1)[0] and copied.shape == (4, 2)
        assert (copied >= 0).all() == (kind == "spliced")
    with pytest.raises(ValueError, match="unknown kind of fake 'nice'"): one.write("nice", 1)
    with pytest.raises(ValueError, match="likes has 2 columns for 24 texts"): Forger(TEXTS, likes[:, :2])
    with pytest.raises(ValueError, match="at least 20 texts, got 4"): LanguageModel(TEXTS[:4])


# the evaluation

@pytest.fixture(scope="module")
def cold() -> GenreRecommender:
    gan = GanConfig(pretrain_g_steps=4, pretrain_d_steps=3, play_steps=2, batch_size=16, batch_size_g=8, health_size=16, health_every=100)
    rerank = RerankConfig(candidates=40, folds=1, seeds=1, steps=20, tune_users=60, judge_grid=(0.0, 1.0), match_grid=(0.0, 1.0))
    fitted = GenreRecommender(GenreConfig(protocol="item-cold", vocab_size=600, min_frequency=2, gan=gan, rerank=rerank))
    fitted.fit(World("ecommerce", "zh", 150, 200, seed=0).dataset()).evaluate()
    return fitted


@pytest.fixture(scope="module")
def stock(cold):
    return forge_stock(cold, per_kind=60, steps=8)


def test_no_fake_copies_what_it_must_not(cold, stock):
    texts = cold.data.items["text"].to_numpy()
    own = {part: set(texts[genuine_items(cold.data, part)]) for part in ("train", "valid", "test")}
    assert {*stock.train} == {*FAKE_KINDS, "generated"} and set(stock.test) == set(stock.valid) == set(FAKE_KINDS)
    copied = stock.train["spliced"][1]
    assert set(texts[copied.ravel()]) <= own["train"]
    assert len(stock.test["ngram"]) == len(genuine_items(cold.data, "test"))
    letters = lambda values: {c for text in values for c in text}
    assert letters(stock.test["spliced"]) <= letters(own["test"]), "splices of a part are cut from its own listings"


def test_a_fold_opens_its_own_fakes_only(cold, stock):
    shop = Contaminated(cold, stock, 0.1)
    for part, kinds in (("test", ["ngram"]), ("valid", ["stuffed", "spliced", "language_model"])):
        opened = shop.opened(part, kinds).nonzero()[:, 0].numpy()
        fakes = shop.place.loc[opened[opened >= shop.n_genuine]]
        genuine = opened[opened < shop.n_genuine]
        assert set(cold.data.item_part[genuine]) == {part} and len(fakes) == round(0.1 * len(genuine)) and set(fakes["kind"]) <= set(kinds) and set(fakes["part"]) == {part}
    asked = shop.question("test", ["ngram"])
    assert asked.relevant.shape[1] == len(shop.shop.data.items) and not asked.relevant[:, shop.n_genuine :].nnz
    assert cold.data.n_items == shop.n_genuine and len(cold.trained.gan.item_tokens) == shop.n_genuine, "the recommender itself is as it was"


def test_the_odds_are_even_where_one_genuine_listing_in_twenty_is_more_suspicious(cold, stock):
    fold = ListingFold(Contaminated(cold, stock, 0.1), stock, "ngram")
    raw, known = fold._raw(fold.concordance.read(fold.tokens)), fold._raw(fold.seen)
    even = raw - fold.odds
    assert torch.allclose(even, even[0], atol=1e-4) and len(raw) == len(fold.shop.shop.data.items)
    assert abs((known < even[0]).float().mean() - SUSPICIOUS) <= 1.5 / len(known)
    other = ListingFold(Contaminated(cold, stock, 0.3), stock, "ngram")
    assert torch.allclose(other.odds[: fold.shop.n_genuine], fold.odds[: fold.shop.n_genuine], atol=1e-4), "nobody has to guess the share of fakes"


def test_folds_are_kept_and_not_repeated(cold, stock, tmp_path, monkeypatch):
    import genre_nb.recommender as module
    monkeypatch.setattr(module, "forge_stock", lambda *_: stock)
    read, done = module.read_fold, []
    def stops(fold, *more):
        if len(done) == 2: raise KeyboardInterrupt
        done.append(fold.left_out)
        return read(fold, *more)
    monkeypatch.setattr(module, "read_fold", stops)
    with pytest.raises(KeyboardInterrupt): judge_listings(cold, 0.1, checkpoint_dir=tmp_path)
    monkeypatch.setattr(module, "read_fold", lambda fold, *more: done.append(fold.left_out) or read(fold, *more))
    monkeypatch.setattr(module, "forge_stock", lambda *_: pytest.fail("the fakes were kept"))
    report = judge_listings(cold, 0.1, checkpoint_dir=tmp_path)
    assert done == list(FAKE_KINDS) == list(report.kinds)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(values) == {"share", "kinds", "systems"} and set(values["systems"]) == {"bm25", "dense", "first_stage", "genre_gan_off", "genre"}
    for kind in FAKE_KINDS:
        assert 0 <= values["kinds"][kind]["auc"]["low"] <= values["kinds"][kind]["auc"]["mean"] <= values["kinds"][kind]["auc"]["high"] <= 1
        assert values["kinds"][kind]["weights"]["genre_gan_off"]["genuine"] == 0
        for system in values["kinds"][kind]["systems"].values(): assert 0 <= system["fakes@10"]["mean"] <= 1
    assert isinstance(report, ListingReport) and list(report.table()) == [*FAKE_KINDS, "all kinds"]


def test_an_area_lies_in_its_interval():
    found = auc_interval(torch.randn(60) + 1, torch.randn(40), n_boot=200)
    assert found["low"] <= found["mean"] <= found["high"]


@pytest.mark.parametrize("share, protocol, message", [(0.0, "item-cold", "option contaminate: 0 is not above 0"), (0.6, "item-cold", "0.6 is not above 0 and at most 0.5"),
                                                     (float("nan"), "item-cold", "nan is not"), (0.1, "warm", "needs the protocol 'item-cold', not 'warm'")])
def test_what_contaminate_refuses(share, protocol, message):
    with pytest.raises(ValueError, match=message): check_contaminate(share, protocol)


def test_the_twin_must_be_there(cold):
    import copy
    alone = copy.copy(cold); alone.gan_off = None
    with pytest.raises(ValueError, match=r"call evaluate\(\) first"): judge_listings(alone)


@pytest.mark.parametrize("more, message", [(["--contaminate", "0.1"], "needs the protocol 'item-cold'"), (["--contaminate", "0.7", "--protocol", "item-cold"], "at most 0.5")])
def test_the_command_refuses_before_it_reads_anything(tmp_path, more, message):
    result = runner.invoke(app, ["evaluate", "--data", "nowhere", "--out", str(tmp_path / "o"), *more])
    assert result.exit_code == 1 and message in " ".join(result.output.split()) and not (tmp_path / "o").exists()
