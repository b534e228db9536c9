"""The players on a device of their own. No test here needs a GPU; what needs one is marked and skipped without."""
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from genre_nb.adversarial import GanConfig, GenreGAN, TripleDataModule, batch_to, make_trainer, quiet_lightning
from genre_nb.preprocessing import SubwordTokenizer
from genre_nb.simulation import World
from pretend_gpu import GPU, PretendGPU, move, on_gpu, put

SMALL = dict(pretrain_g_steps=3, pretrain_d_steps=3, play_steps=3, batch_size=16, batch_size_g=12, health_every=2, health_size=30, holdout_items=0.1)


@pytest.fixture(scope="module")
def shop():
    data = World("ecommerce", "zh", n_users=60, n_items=80, seed=1).dataset()
    return data, SubwordTokenizer.train(data.items["text"].tolist(), vocab_size=700)


@pytest.fixture(autouse=True)
def no_cuda_noise(monkeypatch):
    "`fork_rng` asks the GPU for its state; there is one source of noise here."
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)


class OnGPU(pl.Callback):
    "Moves the players, and every batch, as Lightning does where there is a GPU."

    def on_fit_start(self, trainer, pl_module):
        move(pl_module)
        pl_module.transfer_batch_to_device = lambda batch, device, index: batch_to(batch, GPU)


def play(shop, hard: bool = False, **options) -> GenreGAN:
    data, tokenizer = shop
    wrong = np.arange(data.n_users * 2).reshape(-1, 2) % data.n_items if hard else None
    module = TripleDataModule(data, tokenizer, GanConfig(**{**SMALL, **options}), hard_negatives=wrong)
    gan = GenreGAN(module.triples.config, len(tokenizer), module.item_tokens)
    if hard: gan.ground = lambda pair: wrong if pair.generate(module.triples.batch(0).cond.rows(slice(0, 2))).device == GPU else None
    gan.watch(["运动鞋"], tokenizer)
    with quiet_lightning(): make_trainer(accelerator="cpu", callbacks=[OnGPU()]).fit(gan, datamodule=module)
    return gan


ENCODER, WRITER, READER = dict(hidden=16, embed=12), dict(hidden=24, embed=12, max_length=16), dict(hidden=16, embed=12)
PLAYERS = [dict(encoder={"kind": "mean", **ENCODER}, generator={"kind": "lstm", **WRITER}, discriminator={"kind": "cnn", **READER}),
           dict(encoder={"kind": "gru", **ENCODER}, generator={"kind": "transformer", **WRITER}, discriminator={"kind": "lstm", **READER}, estimator="gumbel"),
           dict(encoder={"kind": "transformer", **ENCODER}, generator={"kind": "lstm", **WRITER}, discriminator={"kind": "transformer", **READER}, estimator="soft")]


@pytest.mark.parametrize("players", PLAYERS, ids=["mean lstm cnn", "gru transformer lstm", "transformer lstm transformer"])
@pytest.mark.parametrize("adversarial", [True, False])
def test_the_game_stays_on_its_device(shop, players, adversarial):
    with PretendGPU(): gan = play(shop, **players, adversarial=adversarial)
    assert gan.clock.done
    assert [row["phase"] for row in gan.rows][-1] == "play" and np.isfinite(gan.rows[-1]["nll"]) and gan.samples_log


@pytest.mark.parametrize("option", [dict(loss="wasserstein"), dict(loss="saturating"), dict(loss="hinge"), dict(loss="least_squares"), dict(loss="relativistic")])
def test_every_loss_stays_on_its_device(shop, option):
    with PretendGPU(): assert play(shop, **PLAYERS[0], **option).clock.done


def test_hard_negatives_stay_on_their_device(shop):
    with PretendGPU(): gan = play(shop, hard=True, **PLAYERS[0])
    assert gan.clock.done and gan.grounded[1].shape[1] == 2 and gan.trainer.datamodule.triples.batch(gan.clock.step).hard.any()


def test_players_on_a_gpu_answer_from_the_host(shop):
    data, tokenizer = shop
    with PretendGPU():
        gan = move(play(shop, **PLAYERS[0]).eval())
        cond = TripleDataModule(data, tokenizer, gan.config).triples.batch(0).cond
        texts = gan.generate(cond, n=2)
        assert texts.device == gan.judge(cond, texts).device == gan.encode_items().device == gan.score_items(cond).device == GPU


def test_the_pretence_finds_what_cuda_would_find():
    with PretendGPU():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device == GPU and (there * 2).device == GPU and there.cpu().device.type == "cpu" and here.to(there).device == GPU
        for wrong in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there.long()], lambda: torch.where(there > 0, here, there)):
            with pytest.raises(RuntimeError, match="same device"): wrong()
        with pytest.raises(TypeError, match="cpu"): there.numpy()
        layer = move(torch.nn.Linear(3, 3))
        with pytest.raises(RuntimeError, match="same device"): layer(here)
        layer(there).sum().backward()
        assert on_gpu(layer.weight.grad) and (there + 1.0).device == GPU and (there + torch.tensor(1.0)).device == GPU
    assert not on_gpu(here) and put(here, True) is here
