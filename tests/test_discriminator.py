"""The judge: one score for ids and one-hot rows, no influence of padding, gradients where they belong, varied fakes."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F
from torch.testing import assert_close

from genre_nb.discriminator import CORRUPTIONS, DISCRIMINATORS, PAD, UNK, DiscriminatorConfig, build_discriminator, corrupt
from genre_nb.losses import discriminator_loss, gradient_penalty

V, H, T = 40, 6, 14
torch.set_num_threads(1)


def judge(kind, **options):
    torch.manual_seed(0)
    return build_discriminator(DiscriminatorConfig(kind=kind, **{"embed": 8, "hidden": 16, "n_layers": 2, **options}), V, H).eval()


def descriptions(n=9, seed=0, least=1):
    g = torch.Generator().manual_seed(seed)
    length, place = torch.randint(least, T - 1, (n, 1), generator=g), torch.arange(T)
    ids = torch.randint(4, V, (n, T), generator=g).masked_fill(place > length, PAD)
    return ids.masked_fill(place == 0, 1).masked_fill(place == length + 1, 2)


def conditions(n=9): return torch.randn(n, H, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("kind", DISCRIMINATORS)
class TestEveryKind:
    def test_ids_and_one_hot_rows_score_alike(self, kind, bounded):
        model, u, x = judge(kind, spectral_norm=bounded), conditions(), descriptions()
        assert model(u, x).shape == (9,)
        assert_close(model(u, F.one_hot(x, V).float()), model(u, x), atol=1e-6, rtol=0)

    def test_padding_and_batch_mates_do_not_matter(self, kind, bounded):
        model, u, x = judge(kind, spectral_norm=bounded), conditions(), descriptions()
        scores = model(u, x)
        assert_close(model(u, F.pad(x, (0, 11))), scores, atol=1e-6, rtol=1e-5)
        assert_close(model(u, F.one_hot(F.pad(x, (0, 11)), V).float()), scores, atol=1e-6, rtol=1e-5)
        assert_close(torch.cat([model(u[i : i + 1], x[i : i + 1]) for i in range(9)]), scores, atol=1e-5, rtol=1e-4)
        assert model(u, torch.zeros_like(x)).isfinite().all()                       # a text of nothing

    def test_matrix_contains_the_pairs(self, kind, bounded):
        model, u, x = judge(kind, spectral_norm=bounded), conditions(5), descriptions()
        h = model.encode_text(x)
        matrix = model.score_matrix(u, h)
        assert matrix.shape == (5, 9)
        pairs = [[model.score(u[i : i + 1], h[j : j + 1])[0] for j in range(9)] for i in range(5)]
        assert_close(matrix, torch.stack([torch.stack(row) for row in pairs]), atol=1e-5, rtol=1e-4)

    def test_gradient_reaches_relaxed_text_twice(self, kind, bounded):
        model, u, x = judge(kind, spectral_norm=bounded), conditions(), F.one_hot(descriptions(), V).float().requires_grad_()
        slope, = torch.autograd.grad(model(u, x).sum(), x, create_graph=True)
        assert (slope.abs().sum((1, 2)) > 0).all()
        slope.square().sum().backward()
        assert model.tokens.weight.grad.abs().sum() > 0

    def test_both_arguments_matter(self, kind, bounded):
        model, u, x = judge(kind, spectral_norm=bounded), conditions(), descriptions(least=5)
        assert not torch.allclose(model(u, x), model(u.flip(0), x), atol=1e-6)
        assert not torch.allclose(model(u, x), model(u, x.flip(0)), atol=1e-6)

    def test_order_of_words_matters(self, kind, bounded):
        model, x = judge(kind, spectral_norm=bounded), descriptions(least=8)
        mixed = corrupt(x, "shuffle", torch.Generator().manual_seed(0))
        assert not torch.allclose(model.encode_text(x), model.encode_text(mixed), atol=1e-5)

    def test_learns_to_tell_two_texts_apart(self, kind, bounded):
        model, u, x = judge(kind, spectral_norm=bounded).train(), conditions(2), descriptions(2, least=6)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(80):
            scores = model(u, x)
            loss = discriminator_loss(scores[:1], scores[1:]); optimizer.zero_grad(); loss.backward(); optimizer.step()
        assert scores[0] > scores[1]


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_gradient_penalty_runs(kind):
    model, u, x = judge(kind).train(), conditions(), F.one_hot(descriptions(), V).float()
    value = gradient_penalty(lambda y: model(u, y), x, x.flip(0))
    value.backward()
    assert value >= 0 and any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_spectral_norm_bounds_the_layers():
    model = judge("cnn", spectral_norm=True)
    with torch.no_grad(): model.match.parametrizations.weight.original.mul_(100)
    model.train()
    for _ in range(40): model(conditions(), descriptions())
    for layer in (model.match, model.real, model.describe[0], *model.filters):
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2) < 1.1


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(CORRUPTIONS)), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_corruptions_keep_the_frame(kind, seed, share):
    x = descriptions(12, seed, least=2 if kind == "splice" else 1)
    before = x.clone()
    y = corrupt(x, kind, torch.Generator().manual_seed(seed), share)
    assert x.equal(before) and y.shape == x.shape                                   # the input is left alone
    assert (y[:, 0] == 1).all() and ((y == 2).sum(1) == 1).all() and ((y != PAD).long().diff(dim=1) <= 0).all()
    assert (y >= UNK).any(1).all()
    words, new = ([row[row >= UNK].tolist() for row in z] for z in (x, y))
    if kind == "shuffle": assert [sorted(w) for w in words] == [sorted(w) for w in new]
    if kind == "stuff": assert all(len(w) == len(n) and set(n) <= set(w) and len(set(n)) <= 3 for w, n in zip(words, new))
    if kind == "replace":
        assert set(y[y >= UNK].tolist()) <= set(x[x >= UNK].tolist()) and (y == PAD).equal(x == PAD)
    if kind == "splice":
        for i, n in enumerate(new):
            assert n[0] == words[i][0] and any(n[-1] == w[-1] for j, w in enumerate(words) if j != i)
    assert y.equal(corrupt(x, kind, torch.Generator().manual_seed(seed), share))    # same seed, same fakes


def test_corruptions_change_most_texts():
    x = descriptions(200, least=8)
    for kind in CORRUPTIONS:
        assert (corrupt(x, kind, torch.Generator().manual_seed(0)) != x).any(1).float().mean() > 0.95


def test_bad_input_is_named():
    x = descriptions(1)
    with pytest.raises(ValueError, match="at least 2 descriptions"): corrupt(x, "splice")
    with pytest.raises(ValueError, match="'shuffle', 'replace', 'splice', 'stuff'"): corrupt(x, "typos")
    with pytest.raises(ValueError, match="same tokenizer"): judge("cnn")(conditions(1), torch.zeros(1, T, V - 1))
    with pytest.raises(ValidationError, match="'cnn', 'lstm', 'transformer'"): DiscriminatorConfig(kind="bert")
    with pytest.raises(ValidationError, match="at least one width"): DiscriminatorConfig(widths=())
    with pytest.raises(ValueError, match="vocabulary, embed"): judge("cnn").set_token_embeddings(torch.zeros(V, 3))


def test_pretrained_embeddings_saving_and_seeds():
    model, twin = judge("lstm"), judge("lstm")
    assert all(a.equal(b) for a, b in zip(model.parameters(), twin.parameters()))
    model.set_token_embeddings(torch.randn(V, 8), freeze=True)
    assert not model.tokens.weight.requires_grad
    twin.load_state_dict(model.state_dict())
    assert_close(twin(conditions(), descriptions()), model(conditions(), descriptions()))


def test_varied_fakes_catch_kinds_never_shown():
    "Trained on replaced and spliced text only, the judge puts real text above shuffled and stuffed text."
    g = torch.Generator().manual_seed(0)
    step = torch.randint(1, 4, (400, 10), generator=g).cumsum(1)                    # a language: rising token ids
    x = F.pad(torch.cat([torch.ones(400, 1, dtype=torch.int64), 4 + step, torch.full((400, 1), 2)], 1), (0, 2))
    model, u = judge("cnn", hidden=32, embed=16).train(), torch.zeros(400, H)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for i in range(60):
        rows = torch.randint(300, (48,), generator=g)
        fake = corrupt(x[rows], ("replace", "splice")[i % 2], g)
        loss = discriminator_loss(model(u[:48], x[rows]), model(u[:48], fake))
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    model.eval()
    real = model(u[:100], x[300:])
    for kind in ("shuffle", "stuff"):
        assert (real[:, None] > model(u[:100], corrupt(x[300:], kind, g))[None]).float().mean() > 0.8
