"""Guards of `genre_nb.preprocessing`: exact decoding, the keep-list, lazy imports, determinism."""
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_nb.preprocessing import (BYTES, KEEP, NEGATIONS, SHOP_WORDS, SPECIALS, Analyzer, SubwordTokenizer, normalise,
                                    segment, stop_list)

TEXTS = ["轻量跑步鞋，透气，适合晨跑和马拉松", "防滑登山鞋，不防水", "登机旅行箱 万向轮", "Light running shoes for men", "a carry-on suitcase",
         "running shoes without laces, size 42", "降噪蓝牙耳机 Noise-cancelling headphones"] * 3
unicode_text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
shop_text = st.lists(st.sampled_from(["运动鞋", "shoes", " ", "  ", "，", ", ", "ＮＩＫＥ", "42", "<eos>", "<0x41>", "🎉", "é", "\n", "don't"]),
                     max_size=12).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    return SubwordTokenizer.train(TEXTS, vocab_size=400)


def test_special_ids_come_first(tokenizer):
    assert tokenizer.vocabulary[:260] == [*SPECIALS, *BYTES] and len(set(tokenizer.vocabulary)) == len(tokenizer) <= 400
    assert (tokenizer.PAD, tokenizer.BOS, tokenizer.EOS, tokenizer.UNK) == (0, 1, 2, 3)


@settings(max_examples=200, deadline=None)
@given(st.lists(unicode_text | shop_text, max_size=4))
def test_decoding_is_exact(tokenizer, texts):
    ids = tokenizer.encode(texts)
    assert ids.dtype == torch.int64 and ids.shape[0] == len(texts)
    assert tokenizer.decode(ids) == texts
    assert tokenizer.decode(ids.tolist()) == texts
    for row, text in zip(ids.tolist(), texts):
        end = row.index(tokenizer.EOS)
        assert row[0] == tokenizer.BOS and all(i > 3 for i in row[1:end]) and set(row[end + 1:]) <= {tokenizer.PAD}
        assert len(tokenizer.tokens(text)) == end - 1


@settings(max_examples=200, deadline=None)
@given(unicode_text | shop_text, st.integers(2, 12))
def test_truncated_texts_are_prefixes_and_end(tokenizer, text, length):
    ids = tokenizer.encode(text, max_length=length)
    assert ids.shape[1] <= length and tokenizer.EOS in ids[0]
    cut = tokenizer.decode(ids)[0]
    assert text.startswith(cut) and (cut == text or len(tokenizer.tokens(text)) > length - 2)


def test_encode_shapes_and_options(tokenizer):
    assert tokenizer.encode([]).shape == (0, 2) and tokenizer.encode("").tolist() == [[1, 2]]
    assert tokenizer.encode(["a", ""], max_length=2).tolist() == [[1, 2], [1, 2]]
    with pytest.raises(ValueError, match="max_length"): tokenizer.encode("a", max_length=1)
    with pytest.raises(ValueError, match="vocab_size=260 must be above 260"): SubwordTokenizer.train(TEXTS, vocab_size=260)


def test_sampled_ids_decode_up_to_the_end(tokenizer):
    shoes = tokenizer.encode("shoes")[0, 1:-1].tolist()
    assert tokenizer.decode([[1, *shoes, 2, *shoes, 0], [*shoes, 3, 1, 0]]) == ["shoes", "shoes"]
    assert tokenizer.decode(torch.tensor([[4 + 0xE9, 2]])) == ["\ufffd"]      # half a character does not raise


def test_training_is_deterministic_and_saved_exactly(tokenizer):
    assert SubwordTokenizer.train(reversed(TEXTS), vocab_size=400).to_json() == tokenizer.to_json()
    code = ("from genre_nb.preprocessing import SubwordTokenizer as S; import sys, json;"
            "print(S.train(json.loads(sys.argv[1]), vocab_size=400).to_json())")
    import json
    for seed in ("1", "2"):                                               # another process, another hash seed
        out = subprocess.run([sys.executable, "-c", code, json.dumps(TEXTS)], capture_output=True, text=True, check=True,
                             cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONHASHSEED": seed})
        assert json.loads(out.stdout) == json.loads(tokenizer.to_json())
    for again in (SubwordTokenizer.from_json(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert torch.equal(again.encode(TEXTS), tokenizer.encode(TEXTS)) and again.vocabulary == tokenizer.vocabulary


def test_rare_characters_are_bytes_and_reserved_spellings_are_not_learned():
    tokenizer = SubwordTokenizer.train(["<eos>鞋<pad>鞋<0x41>"] * 50 + ["龘"], vocab_size=262)
    assert "龘" not in tokenizer.vocabulary and "鞋" in tokenizer.vocabulary
    assert set(tokenizer.tokens("龘")) <= set(BYTES)
    big = SubwordTokenizer.train(["<eos>鞋<pad>鞋<0x41>"] * 50, vocab_size=600)
    text = "<eos>鞋<pad><0x41>"
    assert not set(big.tokens(text)) & {"<eos>", "<pad>", "<0x41>"} and big.decode(big.encode(text)) == [text]


def test_merges_stay_inside_a_script(tokenizer):
    big = SubwordTokenizer.train(["T恤usb3数据线 and 跑鞋42码"] * 9, vocab_size=1000)
    assert big.tokens("T恤usb3数据线 and 跑鞋42码") == ["T", "恤", "usb", "3", "数据线", " and", " ", "跑鞋", "42", "码"]


@settings(max_examples=300, deadline=None)
@given(unicode_text)
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("text, wanted", [("ＮＩＫＥ　Ａｉｒ", "nike air"), ("MEN’S", "men's"), ("10㎏ ①", "10kg 1"), ("ﬁt\u200bness", "fitness")])
def test_normalise(text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize("word", "not no without computer home men 不 无 没有 never don't isn't mug tv run big small 大 小".split())
def test_negation_and_goods_are_kept(word):
    assert word in KEEP and word not in stop_list(("en", "zh"))
    assert Analyzer(stem=False)(word) == [word]


def test_the_keep_list_is_needed():
    import stopwordsiso
    deleted = stopwordsiso.stopwords(["en", "zh"])
    for word in "not no without computer home men 不 无".split(): assert word in deleted
    assert {"的", "the", "and", "of"} <= stop_list(("en", "zh"))
    assert len(set(NEGATIONS) & deleted) > 40 and len(set(SHOP_WORDS) & deleted) > 100


@pytest.mark.parametrize("text, terms", [
    ("运动鞋", ["运动鞋"]), ("不防水的登山鞋", ["不", "防水", "登山鞋"]), ("没有异味", ["没有", "异味"]),
    ("The running SHOES of my men’s team", ["run", "shoe", "men", "team"]), ("shoes without laces", ["shoe", "without", "lace"]),
    ("男士T恤 Men's USB3.0", ["男士", "t恤", "men", "usb3.0"]), ("U盘 128GB，3.5 cm", ["u盘", "128gb", "3.5", "cm"]),
    ("", []), ("，。!? \n", []), ("café naïve", ["café", "naïve"]), ("スニーカー 운동화 обувь", ["スニーカー", "운동화", "обувь"])])
def test_terms(text, terms):
    assert Analyzer()(text) == terms


def test_analyzer_options():
    assert Analyzer(fine=True)("运动鞋") == ["运动", "运动鞋"]
    assert Analyzer(words=["小米手环"])("小米手环") == ["小米手环"] != Analyzer()("小米手环")
    assert Analyzer(stop_words=False, stem=False)("the shoes") == ["the", "shoes"]
    assert Analyzer("zh")("the 鞋 的") == ["the", "鞋"] and Analyzer("en")("the 鞋 的") == ["鞋", "的"]
    assert Analyzer(keep=())("not a home") == []
    with pytest.raises(ValueError, match="choose from auto, mixed, en, zh"): Analyzer("fr")
    steps = Analyzer().steps("Ｔhe shoes")["result"]
    assert steps.tolist() == ["Ｔhe shoes", "the shoes", "the | shoes", "shoes", "shoe"]
    assert pickle.loads(pickle.dumps(Analyzer()))("运动鞋") == ["运动鞋"]


@settings(max_examples=200, deadline=None)
@given(shop_text | unicode_text)
def test_segments_are_in_the_text_and_in_order(text):
    clean, start = normalise(text), 0
    for word in segment(clean):
        found = clean.find(word, start)
        assert word and found >= start
        start = found + len(word)


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[1], env={**os.environ, **env})


def test_heavy_libraries_are_imported_when_needed():
    names = "('jieba', 'snowballstemmer', 'stopwordsiso', 'tokenizers')"
    code = ("import sys, genre_nb.preprocessing as p; "
            f"assert not [m for m in {names} if m in sys.modules]; p.Analyzer()('running shoes'); "
            "assert 'jieba' not in sys.modules and 'tokenizers' not in sys.modules")
    run(code)


def test_jieba_is_quiet_and_caches_where_told(tmp_path):
    out = run("from genre_nb.preprocessing import Analyzer; print(Analyzer()('运动鞋'))", GENRE_CACHE=str(tmp_path / "cache"),
              PYTHONIOENCODING="utf-8")
    assert out.stderr == "" and out.stdout.strip() == "['运动鞋']"
    assert [p.name.startswith("jieba") for p in (tmp_path / "cache").iterdir()] == [True]


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("")
    out = run("from genre_nb.preprocessing import Analyzer; print(len(Analyzer()('运动鞋')))", GENRE_CACHE=str(tmp_path / "file" / "no"))
    assert out.stdout.strip() == "1" and out.stderr == ""
