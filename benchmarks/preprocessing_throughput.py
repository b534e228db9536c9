"""Texts per second of both views, beside the plain tools they are built on, in the same run.

    python benchmarks/preprocessing_throughput.py                     # simulated shop, Chinese and English
    python benchmarks/preprocessing_throughput.py --data FOLDER       # the items of own data
"""
import argparse
import time
from collections.abc import Callable

import pandas as pd

from genre_nb.preprocessing import Analyzer, SubwordTokenizer, chinese_segmenter


def seconds(run: Callable[[], object], repeats: int) -> float:
    "The best time of some runs."
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(texts: list[str], language: str, repeats: int, vocab_size: int) -> pd.DataFrame:
    "Texts per second of each part, and its speed as a share of the plain tool's."
    segmenter, _ = chinese_segmenter()                                # load the dictionary before the clock starts
    plain, name = (segmenter.lcut, "jieba.lcut") if language == "zh" else (str.split, "str.split")
    analyzer, tokenizer = Analyzer(), SubwordTokenizer.train(texts, vocab_size=vocab_size)
    ids = tokenizer.encode(texts)
    runs = {name: lambda: [plain(t) for t in texts], "Analyzer": lambda: [analyzer(t) for t in texts],
            "SubwordTokenizer.train": lambda: SubwordTokenizer.train(texts, vocab_size=vocab_size),
            "SubwordTokenizer.encode": lambda: tokenizer.encode(texts), "SubwordTokenizer.decode": lambda: tokenizer.decode(ids)}
    speed = {run: len(texts) / seconds(call, repeats) for run, call in runs.items()}
    return pd.DataFrame({"texts/s": speed, f"ratio to {name}": {run: s / speed[name] for run, s in speed.items()}})


def corpora(folder: str | None, n: int) -> dict[str, tuple[list[str], str]]:   # name → texts, language
    "The item texts of a folder, or of the simulated shop in both languages."
    if folder:
        from genre_nb.datasets import RecDataset
        data = RecDataset.from_folder(folder)
        return {data.name: (data.items["text"].tolist()[:n], data.language)}
    from genre_nb.simulation import World
    return {f"simulated shop, {x}": (World("ecommerce", x, n_users=50, n_items=n).dataset().items["text"].tolist(), x) for x in ("zh", "en")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with items.csv and interactions.csv")
    parser.add_argument("--texts", type=int, default=2000, help="at most this many texts")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the best counts")
    parser.add_argument("--vocab-size", type=int, default=4000)
    args = parser.parse_args()
    for name, (texts, language) in corpora(args.data, args.texts).items():
        length = sum(map(len, texts)) / len(texts)
        print(f"\n{name}: {len(texts)} texts of {length:.0f} characters on average")
        print(measure(texts, language, args.repeats, args.vocab_size).to_string(float_format=lambda x: f"{x:,.2f}" if x < 100 else f"{x:,.0f}"))


if __name__ == "__main__": main()
