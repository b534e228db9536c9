"""The losses are finite, equal their closed forms, and `w = 0` is the article's loss to the last bit."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from genre_nb.losses import (DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, discriminator_loss, generator_loss,
                             gradient_penalty, optimal_score, total_loss, zero_centred_penalty)

KINDS = ["non_saturating", "saturating", "least_squares", "hinge", "wasserstein", "relativistic"]
SMOOTH = ["non_saturating", "saturating", "least_squares", "relativistic"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
scores = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6)
moderate = st.lists(st.floats(-30, 30), min_size=1, max_size=6)
shares = st.floats(0, 1)
quick = settings(max_examples=60, deadline=None)


def leaf(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_both_tables_offer_the_same_kinds():
    assert sorted(DISCRIMINATOR_LOSSES) == sorted(KINDS) == sorted(GENERATOR_LOSSES)


# ---------------------------------------------------------------- finite, in every precision
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@quick
@given(real=scores, fake=scores, other=scores, w=shares, smooth=st.sampled_from([0.0, 0.1]))
def test_losses_and_gradients_are_finite(kind, dtype, real, fake, other, w, smooth):
    if kind not in SMOOTH: smooth = 0.0
    real, fake, other = (leaf(x, dtype) for x in (real, fake, other))
    l_d = discriminator_loss(real, fake, other, w=w, kind=kind, label_smoothing=smooth)
    l_g = generator_loss(fake, kind, real=real)
    assert l_d.dtype == l_g.dtype == torch.float32 and l_d.shape == l_g.shape == ()
    assert torch.isfinite(l_d) and torch.isfinite(l_g)
    (l_d + l_g).backward()
    for x in (real, fake, other):
        assert x.grad is None or (x.grad.dtype == dtype and torch.isfinite(x.grad).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_the_ends_of_the_range(kind, dtype, size):
    real, fake = leaf([size], dtype), leaf([-size], dtype)
    loss = discriminator_loss(real, fake, fake, w=0.5, kind=kind) + generator_loss(fake, kind, real=real)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(real.grad).all() and torch.isfinite(fake.grad).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_gives_the_same_loss(dtype):
    real, fake = torch.tensor([3.0, -2.0]), torch.tensor([-1.0, 4.0])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        inside = discriminator_loss(real, fake, kind="least_squares")
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, discriminator_loss(real, fake, kind="least_squares"))


# ---------------------------------------------------------------- the article's losses
@pytest.mark.parametrize("probability, loss", [(0.8, 0.223), (0.9, 0.105)])
def test_the_worked_numbers_of_the_article(probability, loss):
    score = torch.tensor([probability], dtype=torch.float64).logit()
    assert round(generator_loss(score).item(), 3) == loss


@quick
@given(real=moderate, fake=moderate)
def test_losses_equal_the_written_formulas(real, fake):
    a, b = leaf(real), leaf(fake)
    D = torch.sigmoid
    torch.testing.assert_close(discriminator_loss(a, b), -(D(a).log().mean() + D(-b).log().mean()), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(generator_loss(b), -D(b).log().mean(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(generator_loss(b, "saturating"), D(-b).log().mean(), rtol=1e-6, atol=1e-8)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(discriminator_loss(a, b), bce(a, torch.ones_like(a)) + bce(b, torch.zeros_like(b)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@quick
@given(real=scores, fake=scores, other=scores)
def test_w_zero_is_the_article_exactly(dtype, real, fake, other):
    a, b, c = (leaf(x, dtype) for x in (real, fake, other))
    article = F.softplus(-a.float()).mean() + F.softplus(b.float()).mean()
    for loss in (discriminator_loss(a, b), discriminator_loss(a, b, c, w=0.0), discriminator_loss(a, b, c * math.nan)):
        assert torch.equal(loss, article)


@quick
@given(real=moderate, fake=moderate, other=moderate, w=shares)
def test_matching_aware_loss_is_the_weighted_sum(real, fake, other, w):
    a, b, c = leaf(real), leaf(fake), leaf(other)
    expected = F.softplus(-a).mean() + (1 - w) * F.softplus(b).mean() + w * F.softplus(c).mean()
    torch.testing.assert_close(discriminator_loss(a, b, c, w=w), expected)


def test_w_one_needs_no_generator():
    a, c = torch.tensor([1.0, 2.0]), torch.tensor([0.5])
    assert torch.equal(discriminator_loss(a, None, c, w=1.0), F.softplus(-a).mean() + F.softplus(c).mean())


# ---------------------------------------------------------------- gradients
SIGMOID = torch.sigmoid
G_SLOPES = {"non_saturating": lambda a: SIGMOID(a) - 1, "saturating": lambda a: -SIGMOID(a),
            "least_squares": lambda a: a - 1, "hinge": lambda a: -torch.ones_like(a), "wasserstein": lambda a: -torch.ones_like(a)}
D_SLOPES = {"non_saturating": lambda m: SIGMOID(m) - 1, "saturating": lambda m: SIGMOID(m) - 1,
            "least_squares": lambda m: m - 1, "hinge": lambda m: -(m < 1).to(m), "wasserstein": lambda m: -torch.ones_like(m)}


@pytest.mark.parametrize("kind", G_SLOPES)
@quick
@given(real=moderate, fake=moderate, other=moderate, w=shares)
def test_gradients_equal_the_closed_forms(kind, real, fake, other, w):
    a, b, c = leaf(real), leaf(fake), leaf(other)
    generator_loss(b, kind).backward()
    torch.testing.assert_close(b.grad * len(b), G_SLOPES[kind](b.detach()), rtol=1e-6, atol=1e-8)
    b.grad = None
    discriminator_loss(a, b, c, w=w, kind=kind).backward()
    slope = D_SLOPES[kind]
    for x, share, sign in ((a, 1, 1), (b, 1 - w, -1), (c, w, -1)):
        grad = torch.zeros_like(x) if x.grad is None else x.grad
        torch.testing.assert_close(grad * len(x), share * sign * slope(sign * x.detach()), rtol=1e-6, atol=1e-8)


@quick
@given(real=moderate, fake=moderate, other=moderate, w=shares, shift=st.floats(-5, 5))
def test_relativistic_equals_its_formula_and_ignores_a_shift(real, fake, other, w, shift):
    a, b, c = (torch.tensor(x, dtype=torch.float64) for x in (real, fake, other))
    negative = (1 - w) * b.mean() + w * c.mean()
    expected = (F.softplus(negative - a).mean() + (1 - w) * F.softplus(b - a.mean()).mean()
                + w * F.softplus(c - a.mean()).mean())
    torch.testing.assert_close(discriminator_loss(a, b, c, w=w, kind="relativistic"), expected)
    torch.testing.assert_close(discriminator_loss(a + shift, b + shift, c + shift, w=w, kind="relativistic"), expected)
    l_g = F.softplus(a.mean() - b).mean() + F.softplus(a - b.mean()).mean()
    torch.testing.assert_close(generator_loss(b, "relativistic", real=a), l_g)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    a, b, c = leaf([0.3, -1.7]), leaf([0.4, 1.9, -0.2]), leaf([-0.6])
    assert torch.autograd.gradcheck(lambda *x: discriminator_loss(*x, w=0.3, kind=kind), (a, b, c))
    assert torch.autograd.gradcheck(lambda x, y: generator_loss(x, kind, real=y), (b, a))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_pushes_the_right_way(kind):
    real, fake = leaf([0.1]), leaf([-0.1])
    discriminator_loss(real, fake, kind=kind).backward()
    assert real.grad < 0 < fake.grad                     # descent raises real and lowers generated
    fake.grad = None
    generator_loss(fake, kind, real=real.detach()).backward()
    assert fake.grad < 0                                 # descent raises generated


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_each_description_average_to_the_loss(kind):
    real, fake = torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.arange(4.0)
    each = generator_loss(fake, kind, real=real, reduction="none")
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), generator_loss(fake, kind, real=real))
    assert (each.diff() < 0).all() or kind == "least_squares"  # a higher score is a lower loss; squares turn at 1


def test_a_loss_of_your_own_can_be_added(monkeypatch):
    monkeypatch.setitem(DISCRIMINATOR_LOSSES, "exponential", lambda margin: torch.exp(-margin))
    a, b = torch.tensor([1.0]), torch.tensor([-2.0])
    torch.testing.assert_close(discriminator_loss(a, b, kind="exponential"), torch.exp(-a[0]) + torch.exp(b[0]))


# ---------------------------------------------------------------- what D learns
def fitted_scores(p, q, pbar, **options):
    """Free scores of each outcome, fitted to the exact expected loss: rows repeated by their probability."""
    counts = [torch.repeat_interleave(torch.arange(len(p)), (x * 400).round().long()) for x in (p, q, pbar)]
    score = torch.zeros(len(p), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([score], max_iter=200, tolerance_grad=1e-11, tolerance_change=1e-13, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = discriminator_loss(*(score[index] for index in counts), **options)
        loss.backward()
        return loss

    optimizer.step(closure)
    return score.detach()


P, Q, PBAR = (torch.tensor(x, dtype=torch.float64) for x in ([.6, .3, .1], [.2, .3, .5], [.1, .2, .7]))


@pytest.mark.parametrize("w", [0.0, 0.3, 0.8, 1.0])
def test_training_finds_the_optimal_score(w):
    torch.testing.assert_close(fitted_scores(P, Q, PBAR, w=w), optimal_score(P.log(), Q.log(), PBAR.log(), w), atol=1e-5, rtol=1e-5)


def test_label_smoothing_bounds_the_optimal_score():
    found = fitted_scores(P, Q, PBAR, label_smoothing=0.1)
    torch.testing.assert_close(found, (0.9 * P / (Q + 0.1 * P)).log(), atol=1e-5, rtol=1e-5)
    assert found.max() < math.log(0.9 / 0.1)


def test_least_squares_finds_the_posterior_mean_of_the_label():
    torch.testing.assert_close(fitted_scores(P, Q, PBAR, kind="least_squares"), (P - Q) / (P + Q), atol=1e-6, rtol=1e-6)


@quick
@given(p=moderate, w=shares)
def test_optimal_score_of_a_perfect_generator(p, w):
    p = torch.tensor(p, dtype=torch.float64).log_softmax(0)
    pbar = p.flip(0)
    assert torch.equal(optimal_score(p, p), torch.zeros_like(p))                        # w = 0: nothing is known
    torch.testing.assert_close(optimal_score(p, p, pbar, 1.0), p - pbar)                # w = 1: relevance
    score = optimal_score(p, p, pbar, w)
    assert torch.isfinite(score).all()
    if w < 1: assert (score <= -math.log1p(-w) + 1e-9).all()                            # the ceiling in between


def test_optimal_score_at_impossible_outcomes():
    log_p, log_q = torch.tensor([0.0, -math.inf, -math.inf]), torch.tensor([-math.inf, 0.0, -math.inf])
    score = optimal_score(log_p, log_q)
    assert score[0] == math.inf and score[1] == -math.inf and score[2].isnan()


# ---------------------------------------------------------------- the report and the penalties
def test_total_loss_reports_and_cannot_be_minimised():
    real, fake = leaf([0.5, 1.0]), leaf([-0.5])
    report = total_loss(real, fake)
    torch.testing.assert_close(report.total, report.generator + report.discriminator)
    torch.testing.assert_close(report.discriminator, discriminator_loss(real, fake).detach())
    with pytest.raises(RuntimeError): report.total.backward()


def test_penalties_of_a_linear_critic():
    weight = leaf([3.0, 4.0])
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    penalty = gradient_penalty(lambda z: z @ weight, x, y)
    torch.testing.assert_close(penalty, torch.tensor((5.0 - 1) ** 2, dtype=torch.float64))
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * (5.0 - 1) * weight.detach() / 5)
    weight.grad = None
    x.requires_grad_()
    penalty = zero_centred_penalty(x @ weight, x)
    torch.testing.assert_close(penalty, torch.tensor(0.5 * 25, dtype=torch.float64))
    penalty.backward()
    torch.testing.assert_close(weight.grad, weight.detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_penalties_compute_in_float32(dtype):
    x = torch.ones(2, 4, dtype=dtype)
    penalty = gradient_penalty(lambda z: 300 * z.sum(1), x, x)          # 600² overflows float16
    assert penalty.dtype == torch.float32 and penalty.item() == pytest.approx((600 - 1) ** 2)
    x.requires_grad_()
    assert zero_centred_penalty(300 * x.sum(1), x).item() == pytest.approx(0.5 * 600 ** 2)


def test_gradient_penalty_at_a_flat_critic_has_a_finite_gradient():
    weight = leaf([0.0, 0.0])
    gradient_penalty(lambda z: z @ weight, torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)).backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_gradient_penalty_through_a_recurrent_discriminator(cell, device):
    torch.manual_seed(0)
    rnn = cell(5, 4, batch_first=True).to(device)
    real, fake = (torch.randn(3, 7, 5, device=device) for _ in range(2))
    gradient_penalty(lambda x: rnn(x)[0][:, -1].sum(1), real, fake).backward()
    assert all(torch.isfinite(p.grad).all() for p in rnn.parameters())
    assert sum(p.grad.abs().sum() for p in rnn.parameters()) > 0


def test_gradient_penalty_is_seeded_and_leaves_its_inputs_alone():
    real, fake = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    first, second = (gradient_penalty(lambda x: x.square().sum(1), real, fake, generator=torch.Generator().manual_seed(1))
                     for _ in range(2))
    assert torch.equal(first, second) and real.grad is None and fake.grad is None


# ---------------------------------------------------------------- bad input
A = torch.tensor([0.0])


@pytest.mark.parametrize("call, message", [
    (lambda: discriminator_loss(A, A, kind="least_square"), "unknown kind of loss 'least_square'.*'least_squares'"),
    (lambda: generator_loss(A, "gan"), "unknown kind of loss 'gan'.*'non_saturating'"),
    (lambda: generator_loss(A, reduction="sum"), "unknown reduction 'sum'"),
    (lambda: generator_loss(A, "relativistic"), "`real` is NoneType.*kind='relativistic'"),
    (lambda: discriminator_loss(A, A, w=0.5), "`mismatched` is NoneType, but w = 0.5 needs"),
    (lambda: discriminator_loss(A, None), "`fake` is NoneType, but w = 0 needs"),
    (lambda: discriminator_loss(A, A, A, w=1.5), "`w` is 1.5.*from 0 to 1"),
    (lambda: discriminator_loss(A, A, A, w=math.nan), "`w` is nan"),
    (lambda: discriminator_loss(A, A, label_smoothing=0.9), "`label_smoothing` is 0.9.*from 0 to 0.5"),
    (lambda: discriminator_loss(A, A, kind="hinge", label_smoothing=0.1), "'hinge' has no labels to smooth"),
    (lambda: discriminator_loss(A, A, kind="wasserstein", label_smoothing=0.1), "'wasserstein' has no labels to smooth"),
    (lambda: discriminator_loss(A[:0], A), r"`real` is empty \(shape \(0,\)\)"),
    (lambda: generator_loss([0.1]), "`fake` is list.*needs a tensor"),
    (lambda: optimal_score(A, A, w=0.5), "w = 0.5 needs `log_pbar`"),
    (lambda: gradient_penalty(lambda x: x.sum(1), torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 3\).*\(2, 4\).*same length"),
    (lambda: gradient_penalty(lambda x: x.sum(1), torch.zeros(2, 3).long(), torch.zeros(2, 3).long()), "not token ids"),
    (lambda: zero_centred_penalty(A, A), "requires_grad_"),
    (lambda: zero_centred_penalty(A.clone().requires_grad_(), A.clone().requires_grad_()), "do not depend on"),
    (lambda: zero_centred_penalty(A, A.clone().requires_grad_()), "`scores` have no gradient"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()
