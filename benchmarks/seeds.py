"""Several trainings of GENRE on one set, its first stages and training lists fitted once: what is a finding, and what one draw?

usage: python benchmarks/seeds.py --data FOLDER [--protocol warm] [--seeds 5] [--users 1] [--draw 0] [--hard-negatives 16] [--w 0 0.5 1]
                                  --out RUNS [--summary nbs/results/seeds.json]
A seed changes the weights at the start, the batches, what G writes, and which users of validation choose the weights where it has more
than are asked. Rows, first stages and training lists stay, so that a seed costs two trainings (the game, and its twin without) and not
the whole fit. What G writes for some of the test users is counted, too, and what it is grounded to: numbers only, no text of the data is
kept. `--users 0.1` learns from the rows of a tenth of the users only (`--draw` says which), and asks the same users as ever, each with
the whole history: how hungry for data is it? `--hard-negatives 0` plays without them, beside the study that has them. `--w 0 0.5 1` turns
D's dial from realness (0) to relevance (1) instead: a study for each w, in which the game alone is trained, and D alone is asked, too
(the first stage + D with λ = 1, the weight of theory, and the same with D shuffled); the positions of a seed share its scorer and G's
first phase, which do not look at w. `validation` says what weights were chosen by; whoever wants to choose w looks there. RUNS holds a
folder for each study with one file for each finished seed, which is not trained again; a training that was interrupted goes on. Test is
read once by each training. The intervals of the summary: over users (paired bootstrap of each user's mean over seeds), and over seeds
(Student's t).
"""
import argparse
import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from genre_nb.adversarial import GenreGAN
from genre_nb.datasets import RecDataset, Requests
from genre_nb.evaluation import Evaluation, distinct_n, paired_lift, ranking_metrics, versions
from genre_nb.preprocessing import Analyzer
from genre_nb.recommender import GenreConfig, GenreRecommender, Question, RememberingBehaviour, ShuffledJudge, deals_of, relabelled
from genre_nb.reranking import Behaviour, Lists, Scorer, Weights, fit_scorer

PARTS = ("genre_gan_off", "genre_features_only", "genre_text_only", "genre_g_off", "genre_d_shuffled")
ALONE = {"d_alone": ("d_alone", "first_stage"), "d_alone_shuffled": ("d_alone", "d_alone_shuffled")}   # lift → what over what, where the dial is turned


def facts_of_texts(shop: GenreRecommender, question: Question, size: int = 500) -> dict[str, float]:
    """What G writes for some users, and the real items nearest to it.

    copied: share of texts that an item has word for word. words_real, words_random: share of a text's words that its nearest item has, and
    that some other item has. cosine: to the nearest item. liked: share of users who like a nearest item of theirs later; liked_first,
    liked_popular: the same of as many items from the top of the first stage, and of the most popular ones. distinct_2: of all texts.
    """
    some = question[np.sort(np.random.default_rng(31).permutation(len(question))[:size])]
    texts, rng, words = shop.trained.writer(some.requests), np.random.default_rng(32), Analyzer()
    flat, n = [text for row in texts for text in row], len(texts[0])
    stage, shelf = shop.stages["dense"], shop.data.items["text"].tolist()
    whole = {text.strip() for text in shop.tokenizer.decode(shop.item_tokens())}
    near = torch.cat([stage.retrieve(Requests.from_texts(flat[start : start + 512], shop.data.n_items), 1)[0] for start in range(0, len(flat), 512)])[:, 0].clamp(min=0)
    cosines = (torch.from_numpy(stage.encode(flat)) * torch.from_numpy(stage.vectors)[near]).sum(1)
    said = [set(words(text)) for text in flat]
    there = lambda items: float(np.mean([len(mine & set(words(shelf[item]))) / len(mine) for mine, item in zip(said, items) if mine]))
    grounded, _ = some.lists(shop.trained.match.stage, n)
    popular, _ = some.lists(shop.stages["popularity"], n)
    first, _ = some.lists(shop.first, n)
    liked = lambda items: float(ranking_metrics(items, some.relevant, (n,))[f"hit_rate@{n}"].mean())
    return {"users": len(some), "texts": n, "copied": float(np.mean([text.strip() in whole for text in flat])), "words_real": there(near.tolist()),
            "words_random": there(rng.integers(shop.data.n_items, size=len(flat))), "cosine": float(cosines.mean()), "liked": liked(grounded),
            "liked_popular": liked(popular), "liked_first": liked(first), "distinct_2": distinct_n([words(text) for text in flat], 2)}


def fewer_users(data: RecDataset, share: float, draw: int = 0) -> RecDataset:
    "The rows of some users only; users and items keep their codes. Of one draw smaller shares are parts of larger ones."
    users = np.random.default_rng([draw, 37]).permutation(data.n_users)[: max(1, round(share * data.n_users))]
    mine = np.isin(data.interactions["user"].to_numpy(), users)
    return relabelled(data, np.asarray(data.interactions["split"], dtype=object)[mine], mine)


def on_validation(trials: pd.DataFrame, extra: int) -> dict[str, float]:
    "nDCG@10 of the first stage's order, of the best weights without players, and of the chosen ones."
    own = trials[trials["generated"] == 0]
    alone = own[(own[["judge", "match"]] == 0).all(axis=1)]
    return {"first stage": float(alone.loc[alone["behaviour"] == 0, "value"].iloc[0]), "features only": float(alone["value"].max()), "genre": float(trials.loc[trials["generated"] == extra, "value"].max())}


class Told:
    "D, asked once about the same candidates."

    def __init__(self, judge): self.judge, self.asked = judge, (None, None)

    def __call__(self, requests: Requests, items: Tensor) -> Tensor:
        if requests is not self.asked[0] or not torch.equal(items, self.asked[1]): self.asked, self.scores = (requests, items), self.judge(requests, items)
        return self.scores


class Study:
    "One set under one protocol: what all seeds share, and what each finds."

    def __init__(self, options: argparse.Namespace):
        hard = options.hard_negatives
        self.name = f"{options.data.resolve().name}.{options.protocol}{'' if options.users == 1 else f'.{options.users:g}'}{f'.draw{options.draw}' if options.draw else ''}{'' if hard is None else f'.hard{hard}'}"
        self.folder, self.options, self.w = options.out / self.name, options, None
        self.fitted: dict = {}                                  # the scorer of the seed at hand, for all positions of the dial
        self.shop = GenreRecommender(GenreConfig(protocol=options.protocol, **({} if hard is None else {"hard_negatives": hard})).seeded(0))

    def at(self, w: float) -> "Study":
        "The same with D's dial at w: a study of its own that shares the first stages and training lists."
        study = copy.copy(self)
        study.w, study.name, study.folder = w, f"{self.name}.w{w:g}", self.options.out / f"{self.name}.w{w:g}"
        return study

    def missing(self) -> list[int]:
        "Seeds that are not finished."
        return [seed for seed in range(self.options.seeds) if not (self.folder / f"{seed}.json").exists()]

    def say(self, message: str) -> None: print(f"{time.strftime('%H:%M:%S')} {self.name}: {message}", flush=True)

    def share(self) -> None:
        "First stages, training lists, tokenizer and the candidates of test: what all seeds have in common."
        self.shop.take(RecDataset.from_folder(self.options.data))
        if self.options.users < 1: self.shop.view = fewer_users(self.shop.view, self.options.users, self.options.draw)
        self.say("first stages")
        self.shop._fit_stages(self.say)
        self.shop.behaviour = RememberingBehaviour(Behaviour.fit(self.shop.view, self.shop.stages))
        self.lists = self.shop.training_lists(self.say)
        self.shop._fit_tokenizer(self.say)
        self.batches = [(part, *part.lists(self.shop.first, min(self.shop.config.rerank.candidates, self.shop.data.n_items))) for part in self.parts(self.shop.question("test"))]

    def parts(self, question: Question) -> Iterator[Question]:
        "1,024 requests at a time."
        for start in range(0, len(question), 1024): yield question[slice(start, start + 1024)]

    def scorer(self, seed: int, config: GenreConfig) -> Scorer:
        "The networks of the features, of which D's dial is no part: fitted once for each seed."
        if self.fitted.get("seed") != seed: self.fitted.update(seed=seed, scorer=fit_scorer(self.lists, config.rerank))
        return self.fitted["scorer"]

    def train(self, seed: int, twin: GenreGAN | None = None) -> GenreGAN:
        "Both trainings of a seed (of a turned dial: the game alone), their weights, and one reading of test; the first phase is that of a twin, where there is one."
        file, start, shop = self.folder / f"{seed}.json", time.perf_counter(), copy.copy(self.shop)
        self.folder.mkdir(parents=True, exist_ok=True)
        shop.config = self.shop.config.seeded(seed)
        if self.w is not None: shop.config = shop.config.model_copy(update={"gan": shop.config.gan.model_copy(update={"w": self.w})})
        shop.scorer = self.scorer(seed, shop.config)
        saved = self.folder / f"training-{seed}"
        self.say(f"seed {seed}: the game")
        shop.trained = shop.train_players(True, twin=twin, checkpoint_dir=saved / "game")
        shop.choose_weights(shop.trained)
        if self.w is None:
            self.say(f"seed {seed}: its twin without the game")
            shop.gan_off = shop.train_players(False, twin=shop.trained.gan, checkpoint_dir=saved / "twin")
            shop.choose_weights(shop.gan_off)
        else: shop.gan_off = shop.trained                   # stands in, and is left out of what is kept
        self.say(f"seed {seed}: reading test")
        values = self.read(shop)
        last = pd.DataFrame(shop.trained.gan.rows).dropna(subset=["auc_match"]).iloc[-1]
        found = {"weights": shop.trained.weights.model_dump(), "extra": shop.trained.extra, "gan_off_weights": shop.gan_off.weights.model_dump(), "auc_match": float(last["auc_match"]),
                 "auc_real": float(last["auc_real"]), "validation": on_validation(shop.trained.trials, shop.trained.extra), "written": facts_of_texts(shop, shop.question("test")), "seconds": round(time.perf_counter() - start), "versions": versions(), "ndcg@10": {name: [round(float(v), 5) for v in users] for name, users in values.items()}}
        beside = file.with_suffix(".writing")
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(file)
        shutil.rmtree(saved, ignore_errors=True)
        self.say(f"seed {seed}: done after {found['seconds']} s, genre {np.mean(found['ndcg@10']['genre']):.4f}")
        return shop.trained.gan

    @torch.no_grad()
    def read(self, shop: GenreRecommender) -> dict[str, np.ndarray]:   # system → (test users,) nDCG@10
        "The first stage, GENRE, and what is left of it without each part."
        values: dict[str, list[np.ndarray]] = {}
        if self.w is not None: shop.trained.judge = Told(shop.trained.judge)
        deals, alone_deals = (deals_of(shop.config.seed) for _ in range(2))   # each goes on from batch to batch
        for part, items, scores in self.batches:
            alone = () if self.w is None else self.alone(shop, part, items, scores, alone_deals)
            for name, lists in (("first_stage", items), *alone, *shop._reranked(part, items, scores, deals)):
                if self.w is not None and name == "genre_gan_off": continue
                values.setdefault(name, []).append(ranking_metrics(lists[:, :10], part.relevant, (10,))["ndcg@10"].numpy())
        return {name: np.concatenate(batches) for name, batches in values.items()}

    def alone(self, shop: GenreRecommender, part: Question, items: Tensor, scores: Tensor, deals: np.random.Generator) -> Iterator[tuple[str, Tensor]]:   # name, (B, C) item codes
        "The first stage and D with the weight of theory, and the same with D shuffled."
        reranker, judge = shop.reranker(), shop.trained.judge
        reranker.scorer = reranker.match = None
        for name, judge in (("d_alone", judge), ("d_alone_shuffled", ShuffledJudge(judge, deals))):
            reranker.judge = judge
            yield name, reranker.rerank(part.requests, items, scores, weights=Weights(behaviour=0.0, judge=1.0, match=0.0)).items

    def summary(self) -> dict:
        "Means and lifts of `genre`, each with its intervals over users and over seeds."
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("[0-9]*.json"))]
        tables = {name: np.array([run["ndcg@10"][name] for run in runs]) for name in runs[0]["ndcg@10"]}   # (seeds, users)
        averaged = {name: Evaluation(pd.DataFrame({"ndcg@10": values.mean(0)}), {}) for name, values in tables.items()}
        lifts = {}
        pairs = {over: ("genre", over) for over in ("first_stage", *PARTS) if over in tables} | {lift: pair for lift, pair in ALONE.items() if pair[0] in tables}
        for lift, (name, over) in pairs.items():
            each = tables[name].mean(1) / tables[over].mean(1) - 1
            half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
            lifts[lift] = {"over_users": paired_lift(averaged[name], averaged[over]), "by_seed": [round(float(v), 5) for v in each],
                           "over_seeds": {"mean": float(each.mean()), "low": float(each.mean() - half), "high": float(each.mean() + half)} if len(each) > 1 else None}
        return {"seeds": len(runs), **({"w": self.w} if self.w is not None else {}), **({"validation": [run["validation"] for run in runs], "auc_real": [run["auc_real"] for run in runs]} if all("validation" in run for run in runs) else {}), "seconds": [run["seconds"] for run in runs], "versions": runs[-1].get("versions", {}), "users": tables["genre"].shape[1], "weights": [run["weights"] for run in runs], "auc_match": [run["auc_match"] for run in runs],
                "extra": [run["extra"] for run in runs], "written": {name: round(float(np.mean([run["written"][name] for run in runs])), 4) for name in runs[0]["written"]},
                "ndcg@10": {name: [round(float(v), 5) for v in values.mean(1)] for name, values in tables.items()}, "lifts": lifts}


def show(found: dict[str, dict]) -> None:
    "One line for each study."
    for name, study in found.items():
        for over, lift in study["lifts"].items():
            values = [f"{v['mean']:+.1%} [{v['low']:+.1%}, {v['high']:+.1%}]" for v in (lift["over_users"], lift["over_seeds"]) if v]
            print(f"{name}, {study['seeds']} seeds, {' over '.join(ALONE.get(over, ('genre', over)))}: users {values[0]}{', seeds ' + values[1] if len(values) > 1 else ''}")


def main() -> None:
    "Train what is missing, then summarise."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with interactions and items")
    parser.add_argument("--protocol", default="warm", choices=("warm", "item-cold"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--users", type=float, default=1.0, help="share of the users that is learned from; all are asked")
    parser.add_argument("--draw", type=int, default=0, help="which users a share below 1 holds")
    parser.add_argument("--hard-negatives", type=int, help="of each user, instead of the default; 0: none")
    parser.add_argument("--w", type=float, nargs="+", help="positions of D's dial, 0 realness … 1 relevance: a study for each, without twins")
    parser.add_argument("--out", type=Path, required=True, help="finished seeds are kept there")
    parser.add_argument("--summary", type=Path, help="write the results there; what it holds of other studies stays")
    options = parser.parse_args()
    if not options.data.is_dir(): sys.exit(f"--data {options.data}: there is no such folder")
    if options.seeds < 1: sys.exit(f"--seeds {options.seeds}: give at least 1")
    if not 0 < options.users <= 1: sys.exit(f"--users {options.users:g}: give a share above 0 and at most 1")
    if options.draw < 0 or options.draw and options.users == 1: sys.exit(f"--draw {options.draw}: give a number from 0 upward, with --users below 1")
    if options.hard_negatives is not None and options.hard_negatives < 0: sys.exit(f"--hard-negatives {options.hard_negatives}: give a number from 0 upward")
    if options.w and not all(0 <= w <= 1 for w in options.w): sys.exit(f"--w {' '.join(f'{w:g}' for w in options.w)}: give numbers from 0 to 1")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    study, positions = Study(options), options.w or [None]
    studies = lambda: [study if w is None else study.at(w) for w in positions]
    if any(one.missing() for one in studies()): study.share()
    for seed in range(options.seeds):
        players = None                                          # G's first phase does not look at w
        for one in studies():
            if seed in one.missing(): players = one.train(seed, players)
    found = {one.name: one.summary() for one in studies()}
    show(found)
    if options.summary:
        if options.summary.exists(): found = json.loads(options.summary.read_text(encoding="utf-8")) | found
        options.summary.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
