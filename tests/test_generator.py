"""The writer: likelihood, cache, sampling, relaxed samples and gradient estimators."""
import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F
from torch.testing import assert_close

from genre_nb.generator import (hide_words, BOS, EOS, GENERATORS, PAD, UNK, GeneratorConfig, advantages, build_generator, draw, filter_logits,
                                gumbel_softmax, one_hot_argmax, reinforce_loss, token_log_probs)

V, H, T = 30, 6, 12
torch.set_num_threads(1)


def writer(kind, seed=0, **options):
    torch.manual_seed(seed)
    return build_generator(GeneratorConfig(kind=kind, **{"embed": 8, "hidden": 16, "n_layers": 2, "max_length": T, **options}), V, H)


def descriptions(n=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    length, place = torch.randint(1, T - 1, (n, 1), generator=g), torch.arange(T)
    ids = torch.randint(4, V, (n, T), generator=g).masked_fill(place > length, PAD)
    return ids.masked_fill(place == 0, BOS).masked_fill(place == length + 1, EOS)


def conditions(n=7, seed=0): return torch.randn(n, H, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", GENERATORS)
class TestEveryKind:
    def test_step_by_step_equals_all_at_once(self, kind):
        model, u, ids = writer(kind), conditions(), descriptions()
        memory, rows = model.start(model.facts(u)), []
        for t in range(T):
            state, memory = model.step(model.tokens(ids[:, t]), memory)
            rows.append(model.logits(state))
        assert_close(torch.stack(rows, 1), model(u, ids), atol=1e-5, rtol=1e-4)

    def test_no_peeking(self, kind):
        model, u, ids = writer(kind), conditions(), descriptions()
        later = ids.clone(); later[:, 5:] = 9
        assert_close(model(u, later)[:, :5], model(u, ids)[:, :5])

    def test_likelihood_is_the_sum_over_tokens(self, kind):
        model, u, ids = writer(kind), conditions(), descriptions()
        by_hand = model(u, ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * (ids[:, 1:] != PAD)
        assert_close(model.log_prob(u, ids), by_hand.sum(1), atol=1e-4, rtol=1e-5)
        assert_close(model.nll(u, ids), -by_hand.sum() / (ids[:, 1:] != PAD).sum(), atol=1e-5, rtol=1e-5)
        assert_close(token_log_probs(model, u, ids, rows=3)[0], by_hand, atol=1e-4, rtol=1e-4)       # any slice size
        assert_close(model.log_prob(u, ids[:, :11]), model.log_prob(u, F.pad(ids[:, :11], (0, 1))))  # padding

    def test_unknown_words_are_not_judged(self, kind):
        model, u, ids = writer(kind), conditions(), descriptions()
        ids[:, 1] = UNK
        found, judged = token_log_probs(model, u, ids)
        assert not judged[:, 0].any() and (found[:, 0] == 0).all() and model.nll(u, ids).isfinite()
        assert model.nll(u, torch.full_like(ids, PAD)) == 0

    @pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"greedy": True}, {"max_length": 5}], ids=str)
    def test_sample_agrees_with_likelihood(self, kind, options):
        model, u, g = writer(kind), conditions(40), torch.Generator().manual_seed(1)
        z = model.noise(40, g)
        found = model.sample(u, generator=g, z=z, **options)
        assert found.ids.shape == found.log_probs.shape == found.mask.shape == (40, options.get("max_length", T))
        assert_close(found.log_probs.sum(1), model.log_prob(u, found.ids, z), atol=1e-4, rtol=1e-4)
        assert (found.ids[:, 0] == BOS).all() and (found.ids[:, 1:] != PAD).equal(found.mask[:, 1:])
        assert not torch.isin(found.ids[found.mask], torch.tensor([PAD, BOS, UNK])).any()
        ended = (found.ids == EOS).cumsum(1).roll(1, 1)[:, 1:] > 0
        assert (found.ids[:, 1:][ended] == PAD).all()

    def test_seeds_and_noise(self, kind):
        model, u = writer(kind), conditions(20)
        same = [model.sample(u, generator=torch.Generator().manual_seed(3)).ids for _ in range(2)]
        assert same[0].equal(same[1]) and not same[0].equal(model.sample(u, generator=torch.Generator().manual_seed(4)).ids)
        assert model.sample(u, greedy=True).ids.equal(model.sample(u, greedy=True).ids)
        assert not torch.allclose(model.log_prob(u, same[0]), model.log_prob(u, same[0], model.noise(20)))

    @pytest.mark.parametrize("options", [{}, {"hard": False, "tau": 0.5}, {"kind": "soft"}], ids=str)
    def test_relaxed_rows_are_texts_with_a_gradient(self, kind, options):
        model, u = writer(kind), conditions(20).requires_grad_()
        x = model.relaxed(u, generator=torch.Generator().manual_seed(0), **options)
        assert x.shape == (20, T, V) and (x >= 0).all() and (x[:, 0, BOS] == 1).all() and (x[..., UNK] == 0).all()
        assert_close(x.sum(-1), torch.ones(20, T))
        after = (x.argmax(-1) == EOS).cumsum(1).roll(1, 1)[:, 1:] > 0
        assert (x[:, 1:, PAD][after] == 1).all() and (x[:, 1:, PAD][~after] == 0).all()
        if not options: assert set(x.detach().unique().tolist()) == {0.0, 1.0}
        slope, = torch.autograd.grad((x * torch.randn(V)).sum(), u)
        assert (slope.abs().sum(1) > 0).all()

    def test_learns_two_users_apart(self, kind):
        model, u = writer(kind, n_layers=1), torch.eye(H)[:2]
        ids = torch.tensor([[BOS, 5, 6, 7, EOS], [BOS, 9, 8, 8, EOS]])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(60):
            loss = model.nll(u, ids); optimizer.zero_grad(); loss.backward(); optimizer.step()
        assert loss < 0.1 and model.sample(u, greedy=True, max_length=5).ids.equal(ids)

    def test_untrained_writer_is_nearly_uniform(self, kind):
        assert abs(writer(kind).nll(conditions(), descriptions()) - math.log(V - 3)) < 0.6

    def test_pretrained_embeddings_and_saving(self, kind):
        model, twin = writer(kind), writer(kind, seed=1)
        model.set_token_embeddings(torch.randn(V, 8))
        twin.load_state_dict(model.state_dict())
        assert_close(twin(conditions(), descriptions()), model(conditions(), descriptions()))
        with pytest.raises(ValueError, match="vocabulary, embed"): model.set_token_embeddings(torch.randn(V, 9))


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=8), k=st.integers(1, 8), p=st.floats(0.05, 1))
@example(weights=[0.010000000000000002, 0.010000000000000002, 0.01], k=1, p=1.0)
def test_filters_against_brute_force(weights, k, p):
    probs = torch.tensor(weights, dtype=torch.float64); probs = probs / probs.sum()
    logits = probs.log()                                                            # ties are ties of these: weights one bit apart may have one logarithm
    kept = (filter_logits(logits[None], top_k=k)[0] > -torch.inf)
    assert kept.equal(logits >= sorted(logits.tolist(), reverse=True)[min(k, len(weights)) - 1])
    nucleus = probs[filter_logits(probs.log()[None], top_p=p)[0] > -torch.inf]
    assert nucleus.sum() >= p - 1e-9                                                # enough
    assert nucleus.sum() - nucleus.min() < p + 1e-9                                 # and no token too many
    assert filter_logits(probs.log()[None], top_k=k, top_p=p, temperature=2.0).max() > -torch.inf


def test_draw_follows_the_weights_and_never_picks_zero():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    share = draw(weights.expand(40_000, -1), torch.Generator().manual_seed(0)).bincount(minlength=5) / 40_000
    assert (share[weights == 0] == 0).all() and abs(share[1] - 0.75) < 0.01


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 999))
def test_advantages(K, seed):
    r = torch.randn(3, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loo = advantages(r)
    for b, k in itertools.product(range(3), range(K)):
        others = [r[b, j] for j in range(K) if j != k]
        assert_close(loo[b, k], r[b, k] - sum(others) / (K - 1))
    assert_close(advantages(r, "mean"), loo * (K - 1) / K)
    assert advantages(r, "none").equal(r)
    assert_close(advantages(r + 7), loo)                                            # where zero lies does not matter


def test_policy_gradient_is_unbiased_by_enumeration():
    "All outcomes of a small softmax, all pairs of samples: leave-one-out gives the gradient, the self-inclusive mean half of it."
    logits = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([2.0, 5.0, 3.0, -1.0], dtype=torch.float64)
    exact, = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)
    for baseline, factor in (("none", 1.0), ("leave_one_out", 1.0), ("mean", 0.5)):
        total = torch.zeros(4, dtype=torch.float64)
        for i, j in itertools.product(range(4), repeat=2):
            log_p = logits.log_softmax(0)
            chance = (log_p[i] + log_p[j]).exp().detach()
            loss = reinforce_loss(log_p[torch.tensor([[i, j]])], reward[torch.tensor([[i, j]])], baseline)
            total -= chance * torch.autograd.grad(loss, logits)[0]
        assert_close(total, factor * exact)


def test_reward_carries_no_gradient():
    log_p, reward = torch.zeros(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    reinforce_loss(log_p, reward).backward()
    assert reward.grad is None and log_p.grad.abs().sum() > 0


def test_gumbel_softmax_is_exact_in_its_argmax():
    p, n = torch.tensor([0.6, 0.3, 0.1]), 20_000
    for tau in (0.1, 1.0, 5.0):
        y = gumbel_softmax(p.log().expand(n, 3), tau, hard=False, generator=torch.Generator().manual_seed(0))
        assert_close(y.sum(1), torch.ones(n))
        assert (y.argmax(1).bincount(minlength=3) / n - p).abs().max() < 0.02


def test_straight_through_forwards_a_vertex_and_backwards_the_soft_row():
    logits = torch.randn(4, 5, requires_grad=True)
    soft, weight = logits.softmax(-1), torch.randn(4, 5)
    hard = one_hot_argmax(soft)
    assert set(hard.detach().unique().tolist()) == {0.0, 1.0} and (hard.sum(-1) == 1).all()
    assert_close(*(torch.autograd.grad((y * weight).sum(), logits, retain_graph=True)[0] for y in (hard, soft)))


def test_bad_options_are_named():
    model, u = writer("transformer"), conditions()
    with pytest.raises(ValueError, match="use greedy=True"): model.sample(u, temperature=0)
    with pytest.raises(ValueError, match="top_p=1.5"): model.sample(u, top_p=1.5)
    with pytest.raises(ValueError, match="'gumbel', 'soft'"): model.relaxed(u, kind="hard")
    with pytest.raises(ValueError, match="tau=0"): model.relaxed(u, tau=0)
    with pytest.raises(ValueError, match="max_length=12"): model(u, torch.full((7, 20), 5))
    with pytest.raises(ValueError, match="at least 2 samples"): advantages(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="'none', 'leave_one_out', 'mean'"): advantages(torch.zeros(2, 2), "best")
    with pytest.raises(ValueError, match=r"\(users, samples\)"): reinforce_loss(torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(ValidationError, match="'lstm', 'transformer'"): GeneratorConfig(kind="gpt")
    with pytest.raises(ValidationError): GeneratorConfig(max_length=1)


def test_works_in_bfloat16_autocast():
    model, u = writer("transformer"), conditions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.nll(u, descriptions()).isfinite() and model.sample(u).log_probs.isfinite().all()
        assert model.relaxed(u).sum().isfinite()


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_hidden_words_are_words_and_the_frame_stays(share, seed):
    ids = torch.tensor([[BOS, 7, 8, 9, 10, EOS, PAD], [BOS, 5, EOS, PAD, PAD, PAD, PAD]])
    seen = hide_words(ids, share, torch.Generator().manual_seed(seed))
    changed = seen != ids
    assert (seen[changed] == UNK).all() and not changed[ids <= UNK].any()
    if share == 0: assert not changed.any()
    if share == 1: assert changed[ids > UNK].all()


def test_what_is_read_may_differ_from_what_is_to_be_written():
    torch.manual_seed(0)
    model = build_generator(GeneratorConfig(max_length=8, noise_size=0), 40, 4).eval()
    u, ids = torch.randn(2, 4), torch.randint(4, 40, (2, 8))
    ids[:, 0] = BOS
    assert torch.equal(model.nll(u, ids), model.nll(u, ids, seen=ids))
    seen = ids.clone()
    seen[:, 3] = UNK
    one, two = (token_log_probs(model, u, ids, seen=s)[0] for s in (None, seen))
    assert torch.equal(one[:, :3], two[:, :3]) and not torch.equal(one[:, 3:], two[:, 3:])   # the target at 3 is still judged
