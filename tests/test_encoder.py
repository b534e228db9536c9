"""The condition u: what must not change it (padding, holes, batch mates), what must (order, recency), and bad input."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F
from torch.testing import assert_close

from genre_nb.encoder import (ENCODERS, PAD, UNK, Condition, EncoderConfig, PseudoInterest, TransformerBlock, ages, build_encoder,
                              make_condition, masked_mean, modality_dropout, pack_left, pseudo_interest)
from genre_nb.preprocessing import SubwordTokenizer

V, I, F_CONTEXT = 60, 40, 2
torch.set_num_threads(1)


def texts(n, width, g, least=1):
    "n random texts <bos> … <eos>, right-padded."
    length = torch.randint(least, width - 1, (n, 1), generator=g)
    place = torch.arange(width)
    ids = torch.randint(4, V, (n, width), generator=g).masked_fill(place > length, PAD)
    return ids.masked_fill(place == 0, 1).masked_fill(place == length + 1, 2)


def condition(n=12, seed=0, context=F_CONTEXT):
    g = torch.Generator().manual_seed(seed)
    history = torch.randint(I, (n, 9), generator=g)
    history = history.masked_fill(torch.arange(9) < torch.randint(0, 9, (n, 1), generator=g), -1)
    text = texts(n, 10, g)
    text[:3], history[2:5] = PAD, -1                       # row 2 brings nothing at all
    return Condition(text, history, torch.randn(n, context, generator=g))


def encoder(kind, **options):
    torch.manual_seed(0)
    config = EncoderConfig(kind=kind, **{"hidden": 16, "embed": 8, "n_context": F_CONTEXT, "n_layers": 2, **options})
    return build_encoder(config, V, texts(I, 12, torch.Generator().manual_seed(1))).eval()


@pytest.mark.parametrize("kind", ENCODERS)
class TestEveryKind:
    def test_length_is_fixed_and_nothing_is_legal(self, kind):
        u = encoder(kind)(condition())
        assert u.shape == (12, 16) and u.isfinite().all()

    def test_one_source_may_be_missing_in_the_whole_batch(self, kind):
        model, cond = encoder(kind), condition()
        for empty in (cond._replace(text=torch.full_like(cond.text, PAD)), cond._replace(history=torch.full_like(cond.history, -1)),
                      cond._replace(text=cond.text[:, :0], history=cond.history[:, :0])):
            assert model(empty).isfinite().all()

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 1000), left=st.integers(0, 6), right=st.integers(0, 6))
    def test_padding_and_holes_do_not_matter(self, kind, seed, left, right):
        model, cond = encoder(kind), condition(seed=seed)
        wide = torch.full((12, 18), -1)
        wide[:, ::2] = cond.history
        other = cond._replace(text=F.pad(cond.text, (0, right)), history=F.pad(wide, (left, right), value=-1))
        assert_close(model(other), model(cond), atol=1e-5, rtol=1e-4)

    def test_batch_mates_do_not_matter(self, kind):
        model, cond = encoder(kind), condition()
        alone = torch.cat([model(cond.rows(slice(i, i + 1))) for i in range(12)])
        assert_close(alone, model(cond), atol=1e-5, rtol=1e-4)

    def test_order_and_recency_matter(self, kind):
        model, cond = encoder(kind), condition(context=F_CONTEXT)
        full = cond._replace(history=torch.arange(9).expand(12, -1))
        assert not torch.allclose(model(full), model(full._replace(history=full.history.flip(1))), atol=1e-4)

    def test_each_source_matters(self, kind):
        model, cond = encoder(kind), condition().rows(torch.arange(5, 12))
        u = model(cond._replace(history=torch.arange(7)[:, None]))
        assert not torch.allclose(u, model(cond._replace(history=torch.arange(7)[:, None] + 20)), atol=1e-4)
        assert not torch.allclose(u, model(cond._replace(history=torch.arange(7)[:, None], text=cond.text.flip(0))), atol=1e-4)
        assert not torch.allclose(u, model(cond._replace(history=torch.arange(7)[:, None], context=cond.context + 1)), atol=1e-4)

    def test_gradient_reaches_every_weight(self, kind):
        model = encoder(kind)
        (model(condition()) * torch.randn(16)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_weights_survive_saving_and_a_new_catalogue(self, kind):
        model, twin, cond = encoder(kind), encoder(kind), condition()
        for p in twin.parameters(): p.data += 1
        twin.load_state_dict(model.state_dict())
        assert_close(twin(cond), model(cond))
        twin.set_item_tokens(torch.cat([model.item_tokens, model.item_tokens]))
        assert_close(twin(cond._replace(history=torch.where(cond.history < 0, -1, cond.history + I))), model(cond))


def test_the_mean_without_half_life_ignores_order():
    model, cond = encoder("mean", recency=None), condition()
    assert_close(model(cond._replace(history=cond.history.flip(1))), model(cond), atol=1e-5, rtol=1e-4)


def test_half_life_halves():
    model = encoder("mean", recency=2.0)
    x, mask = torch.eye(5)[None, :, :].repeat(1, 1, 2)[:, :, :8], torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        model.read_history.project.weight.copy_(torch.eye(16, 8)); model.read_history.project.bias.zero_()
        weight = model.read_history(x, mask)[0, :5]
    assert_close(weight[2] / weight[4], torch.tensor(0.5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_pack_left_keeps_order(rows):
    values = torch.tensor(rows)
    packed, there = pack_left(values, values > 0)
    for row, kept, mask in zip(rows, packed.tolist(), there.tolist()):
        assert [v for v, m in zip(kept, mask) if m] == [v for v in row if v]
        assert mask == sorted(mask, reverse=True)
    assert ages(there)[there].min() == 0 if there.any() else True


def test_items_are_the_mean_of_their_words():
    model = encoder("mean")
    ids = model.item_tokens[7]
    assert_close(model.item_vectors(torch.tensor([7]))[0], model.tokens(ids[ids >= UNK]).mean(0))
    assert (masked_mean(torch.randn(1, 3, 2), torch.zeros(1, 3)) == 0).all()


def test_block_with_cache_equals_causal_pass():
    torch.manual_seed(0)
    block, x, cache, steps = TransformerBlock(12, 3).eval(), torch.randn(2, 5, 12), None, []
    for t in range(5):
        y, cache = block(x[:, t : t + 1], cache=cache)
        steps.append(y)
    assert_close(torch.cat(steps, 1), block(x, torch.ones(5, 5).tril().bool())[0], atol=1e-5, rtol=1e-4)


def test_make_condition():
    tokenizer = SubwordTokenizer.train(["运动鞋 旅行", "running shoes"] * 3, vocab_size=280)
    requests = SimpleNamespace(texts=["运动鞋", " ", "running shoes for a long trip"], recent=np.array([[-1, 3], [-1, -1], [4, 5]]),
                               context=np.zeros((3, 0), dtype=np.float32))
    cond = make_condition(requests, tokenizer, max_text=6, max_history=4)
    assert cond.text.shape == (3, 6) and (cond.text[1] == PAD).all() and cond.text[2, -1] == 2
    assert cond.history.tolist() == [[-1, -1, -1, 3], [-1] * 4, [-1, -1, 4, 5]]
    assert make_condition(requests, tokenizer, max_history=1).history.tolist() == [[3], [-1], [5]]
    requests.context = np.array([[1.0], [2.0], [np.inf]])
    with pytest.raises(ValueError, match="context row 2, field 0"): make_condition(requests, tokenizer)


@settings(max_examples=25, deadline=None)
@given(p_text=st.floats(0, 0.5), p_history=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_modality_dropout_never_takes_the_last_source(p_text, p_history, seed):
    cond = condition(n=40, seed=seed)
    out = modality_dropout(cond, p_text, p_history, torch.Generator().manual_seed(seed))
    before = (cond.text >= UNK).any(1) | (cond.history >= 0).any(1)
    assert ((out.text >= UNK).any(1) | (out.history >= 0).any(1)).equal(before)
    changed = (out.text != cond.text).any(1) & (out.history != cond.history).any(1)
    assert not changed.any() and out.context.equal(cond.context)
    if p_text == p_history == 0: assert out.text.equal(cond.text) and out.history.equal(cond.history)


def test_modality_dropout_shares_and_errors():
    cond = Condition(torch.full((4000, 3), 9), torch.ones(4000, 2, dtype=torch.int64), torch.zeros(4000, 0))
    out = modality_dropout(cond, 0.3, 0.1, torch.Generator().manual_seed(0))
    assert abs((out.text == PAD).all(1).float().mean() - 0.3) < 0.04 and abs((out.history < 0).all(1).float().mean() - 0.1) < 0.03
    with pytest.raises(ValueError, match="at most 1"): modality_dropout(cond, 0.6, 0.6)


def test_pseudo_interests():
    titles = ["red running shoes", "blue running shoes", "green tent", ""]
    invent = PseudoInterest(titles, str.split, max_words=2)
    history, rng = np.array([[-1, 0, 1], [-1, -1, 3], [-1, -1, -1], [2, 2, -1]]), np.random.default_rng(0)
    found = [invent(history, rng) for _ in range(200)]
    assert all(f[1] == f[2] == "" and set(f[3].split()) <= {"green", "tent"} for f in found)
    assert all(1 <= len(f[0].split()) <= 2 for f in found)
    words = [w for f in found for w in f[0].split()]
    assert words.count("running") > words.count("red")           # in both titles of the history
    assert invent(history, np.random.default_rng(1)) == invent(history, np.random.default_rng(1))
    assert pseudo_interest([titles[:2], []], str.split, np.random.default_rng(0))[1] == ""
    assert pseudo_interest([], str.split, rng) == []


def test_bad_input_is_named():
    model, cond = encoder("mean"), condition()
    with pytest.raises(ValueError, match="set n_context=0"): model(cond._replace(context=cond.context[:, :0]))
    with pytest.raises(ValueError, match="item 99.*set_item_tokens"): model(cond._replace(history=torch.full((12, 1), 99)))
    with pytest.raises(ValueError, match="vocabulary, embed"): model.set_token_embeddings(torch.zeros(V, 9))
    with pytest.raises(ValidationError, match="'mean', 'gru', 'lstm', 'transformer'"): EncoderConfig(kind="bert")
    with pytest.raises(ValidationError): EncoderConfig(hiden=3)
    with pytest.raises(ValueError, match="n_heads=3 does not divide"): encoder("transformer", n_heads=3)


def test_pretrained_token_embeddings():
    model, weight = encoder("gru"), torch.randn(V, 8)
    model.set_token_embeddings(weight, freeze=True)
    assert_close(model.tokens.weight[1:], weight[1:]) and (model.tokens.weight[PAD] == 0).all()
    assert not model.tokens.weight.requires_grad


def test_same_seed_same_weights_and_own_kind():
    assert all(a.equal(b) for a, b in zip(encoder("gru").parameters(), encoder("gru").parameters()))
    ENCODERS["mine"] = lambda config, vocab_size, item_tokens: torch.nn.Identity()
    try: assert isinstance(build_encoder(EncoderConfig(kind="mine"), V, None), torch.nn.Identity)
    finally: del ENCODERS["mine"]
