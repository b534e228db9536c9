"""Guards of `genre_nb.datasets`: views against brute force, splits, round trips, and the promised messages."""
import dataclasses
import csv
import gzip
import json
import os
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_nb.datasets import (PUBLIC, SPLITS, DataError, RecDataset, Requests, fetch_public, k_core, load_amazon, load_goodbooks,
                               load_mind, load_movielens, load_public, public_sets)

ITEMS = "item_id,title,category,description\n1,运动鞋,鞋靴,轻\n2,cup,,hot\n3,,,\n"
USERS = "user_id,profile,age\n10,likes 运动鞋,30\n11,,40\n12,,50\n"
ROWS = ("user_id,item_id,rating,timestamp,split\n10,1,5,1,train\n10,2,4,2,train\n11,1,2,3,train\n"
        "11,2,5,4,valid\n13,2,5,5,test\n13,3,4,6,test\n")
GOOD = {"interactions": ROWS, "items": ITEMS, "users": USERS}


def write(folder: Path, tables: dict, suffix: str = ".csv") -> Path:
    for name, text in tables.items():
        raw = text if isinstance(text, bytes) else text.encode()
        if suffix == ".csv.gz": raw = gzip.compress(raw)
        (folder / f"{name}{suffix}").write_bytes(raw)
    return folder


def change(table: str, old: str, new: str) -> dict:
    assert old in GOOD[table]
    return GOOD | {table: GOOD[table].replace(old, new, 1)}


def test_reads_the_contract(tmp_path):
    data = RecDataset.from_folder(write(tmp_path, GOOD))
    assert (data.n_users, data.n_items, data.splits, data.protocol) == (4, 3, SPLITS, "as given")
    assert data.users["user_id"].tolist() == [10, 11, 12, 13]                    # 13 acts and is not listed
    assert data.items["text"].tolist() == ["运动鞋 · 鞋靴 · 轻", "cup · hot", ""]   # an item without text is legal
    assert data.interactions["positive"].tolist() == [True, True, False, True, True, True]
    facts = data.describe()["value"]
    assert facts["users without history"] == 1 and facts["items without text"] == 1
    assert facts["users not in the users table"] == 1 and facts["test: cold users"] == 1
    assert facts["density"] == round(5 / 12, 5)
    assert data.matrix("train").toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert data.negatives("train").nnz == 1 and data.negatives("train")[1, 0] == 1


FAULTS = {   # name: (tables, pieces of the message)
    "missing file": ({k: v for k, v in GOOD.items() if k != "items"}, ["no items table", "items.csv"]),
    "missing column": (change("interactions", "user_id", "UserID"), ["interactions.csv", "'user_id'", "rename 'UserID'"]),
    "no text column": (change("items", "title,category,description", "name,category,words"), ["items.csv", "'title' nor 'description'"]),
    "semicolons": (GOOD | {"items": ITEMS.replace(",", ";")}, ["items.csv", "commas"]),
    "unknown item": (change("interactions", "13,3,", "13,9,"), ["interactions.csv", "'item_id'", "line 7", "not in the items"]),
    "empty user id": (change("interactions", "11,2,", ",2,"), ["interactions.csv", "'user_id'", "line 5", "empty"]),
    "empty item id": (change("items", "2,cup", ",cup"), ["items.csv", "'item_id'", "line 3", "empty"]),
    "blank id": (change("items", "2,cup", "  ,cup"), ["items.csv", "'item_id'", "line 3", "empty"]),
    "float id": (change("interactions", "11,2,", "11,2.0,"), ["interactions.csv", "'item_id'", "line 5", "mixed id types"]),
    "float ids everywhere": (GOOD | {"items": "item_id,title\n1.0,a\n2.0,b\n3.0,c\n"}, ["items.csv", "lines 2, 3, 4", "12.0"]),
    "rating word": (change("interactions", "10,2,4", "10,2,four"), ["'rating'", "line 3", "not a number"]),
    "rating NaN": (change("interactions", "10,2,4", "10,2,NaN"), ["'rating'", "line 3"]),
    "rating empty": (change("interactions", "10,2,4", "10,2,"), ["'rating'", "line 3", "empty"]),
    "rating infinite": (change("interactions", "10,2,4", "10,2,inf"), ["'rating'", "line 3", "infinite"]),
    "ratings too low": (GOOD | {"interactions": "user_id,item_id,rating\n10,1,1\n"}, ["'rating'", "positive_rating"]),
    "bad time": (change("interactions", ",3,train", ",noon,train"), ["'timestamp'", "line 4", "not a number"]),
    "bad date": (GOOD | {"interactions": "user_id,item_id,timestamp\n10,1,2026-01-01\n10,2,2026-02-30\n"},
                 ["'timestamp'", "line 3", "nor a date"]),
    "empty time": (change("interactions", ",3,train", ",,train"), ["'timestamp'", "line 4", "empty"]),
    "bad split": (change("interactions", "valid", "dev"), ["'split'", "line 5", "train, valid, test"]),
    "empty split cell": (change("interactions", "valid", ""), ["'split'", "line 5", "empty"]),
    "no train": (GOOD | {"interactions": ROWS.replace("train", "valid")}, ["'split'", "'train' is empty"]),
    "same row twice": (change("interactions", "11,1,2,3,train\n", "10,2,4,2,train\n11,1,2,3,train\n"),
                       ["'item_id'", "lines 3, 4", "duplicates='drop'"]),
    "same item twice": (change("items", "2,cup", "1,cup"), ["items.csv", "'item_id'", "lines 2, 3"]),
    "same user twice": (change("users", "12,", "11,"), ["users.csv", "'user_id'", "lines 3, 4"]),
    "no text": (GOOD | {"items": "item_id,title\n1,\n2,\n3,\n"}, ["items.csv", "no item has any text"]),
    "no rows": (GOOD | {"interactions": "user_id,item_id\n"}, ["interactions.csv", "no rows"]),
    "empty file": (GOOD | {"items": ""}, ["items.csv", "empty"]),
    "not UTF-8": (GOOD | {"items": ITEMS.encode("gb18030")}, ["items.csv", "line 2", "UTF-8", "GB18030"]),
    "UTF-16": (GOOD | {"items": ITEMS.encode("utf-16")}, ["items.csv", "line 1", "UTF-16"]),
    "Latin 1": (GOOD | {"items": "item_id,title\n1,a\n2,caf\u00e9 x\n3,\n".encode("latin-1")}, ["line 3", "WINDOWS-1252"]),
    "extra field": (change("items", "2,cup,,hot", "2,cup,,hot,very"), ["items.csv", "line 3", "5 fields", "header has 4"]),
    "extra field in the first row": (change("items", "鞋靴,轻", "鞋靴,轻,x"), ["items.csv", "line 2", "5 fields"]),
    "open quote": (change("items", "2,cup", '2,"cup'), ["items.csv", "line 3", "never closed"]),
    "column twice": (change("items", "category", "title"), ["items.csv", "line 1", "'title'"]),
    "bad shown": (GOOD | {"interactions": "user_id,item_id,shown\n10,1,0\n10,2,maybe\n"}, ["'shown'", "line 3"]),
    "nothing clicked": (GOOD | {"interactions": "user_id,item_id,shown\n10,1,1\n"}, ["'shown'", "counts as liked"]),
    "bad propensity": (GOOD | {"interactions": "user_id,item_id,propensity\n10,1,0.5\n10,2,1.5\n"}, ["'propensity'", "line 3"]),
    "bad position": (GOOD | {"interactions": "user_id,item_id,position\n10,1,-1\n"}, ["'position'", "line 2"]),
    "bad part": (GOOD | {"item_cold": "item_id,part\n1,cold\n"}, ["item_cold.csv", "'part'", "line 2"]),
    "number among dates": (GOOD | {"interactions": "user_id,item_id,timestamp\n10,1,2024-01-01\n10,2,1700000000\n11,1,2024-01-03\n"}, ["'timestamp'", "line 3", "a number among dates"]),
    "after a line of blanks": (GOOD | {"items": "item_id,title\n1,a\n \t \n2,b\n2,c\n3,d\n"}, ["items.csv", "lines 4, 5", "more than once"]),
    "lost zeros": (GOOD | {"items": "item_id,title\n001,a\n002,b\n003,c\n"}, ["interactions.csv", "'item_id'", "leading zeros are all that differs"]),
    "own column positive": (GOOD | {"interactions": "user_id,item_id,positive\n10,1,1\n10,2,0\n"}, ["interactions.csv", "'positive'", "rename it to rating"]),
    "own column text": (GOOD | {"items": "item_id,title,text\n1,a,b\n2,a,b\n3,a,b\n"}, ["items.csv", "'text'", "rename it to description"]),
    "own column user": (GOOD | {"interactions": "user_id,item_id,user\n10,1,Ann\n10,2,Ann\n"}, ["interactions.csv", "'user'", "name is taken", "rename it, to user_id if"]),
    "own column item": (GOOD | {"interactions": "user_id,item,rating\n10,1,5\n10,2,5\n"}, ["interactions.csv", "'item'", "name is taken", "rename it, to item_id if"]),
    "unknown cold item": (GOOD | {"item_cold": "item_id,part\n1,test\n9,test\n"}, ["item_cold.csv", "'item_id'", "line 3"]),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_faults_name_file_column_line_and_remedy(tmp_path, name, suffix):
    tables, pieces = FAULTS[name]
    with pytest.raises(DataError) as error: RecDataset.from_folder(write(tmp_path, tables, suffix))
    message = str(error.value)
    assert "To mend it" in message
    for piece in pieces: assert piece.replace(".csv", suffix) in message or piece in message, message


def test_lines_are_those_of_a_text_editor(tmp_path):
    items = 'item_id,title,description\n\n1,shoes,"light\nand\nsoft"\n\n2,cup,hot\n2,cup,hot\n'
    with pytest.raises(DataError) as error: RecDataset.from_folder(write(tmp_path, {"interactions": ROWS, "items": items}))
    assert error.value.rows == [7, 8] and error.value.unit == "line" and error.value.column == "item_id"
    assert items.splitlines()[6] == "2,cup,hot"


@pytest.mark.parametrize("at", [1, 5])
def test_an_open_quote_in_a_large_file_is_found(tmp_path, at):
    items = "item_id,title\n" + "".join(f'{i},{chr(34) * (i == at)}item number {i}\n' for i in range(1, 12_000))
    before = csv.field_size_limit()
    with pytest.raises(DataError, match=f"items.csv, line {at + 1}: a double quote is opened and never closed"): RecDataset.from_folder(write(tmp_path, GOOD | {"items": items}))
    assert len(items) > 2**17 and csv.field_size_limit() == before, "what other code relies on stays"


def test_a_very_long_text_is_a_text(tmp_path):
    data = RecDataset.from_folder(write(tmp_path, GOOD | {"items": f"item_id,title\n1,{'x' * 140_000}\n2,b\n3,c\n"}))
    assert len(data.items["text"][0]) == 140_000


@pytest.mark.parametrize("encoding, text, first, line", [("latin-1", "1,Crème brûlée\n2,Müller\n3,x\n", "WINDOWS-1252", 2), ("gb18030", "1,shoe\n2,男士旅行背包\n3,运动鞋\n", "GB18030", 3),
                                                         ("gb18030", "1,男士旅行背包 轻便\n2,运动鞋\n3,x\n", "GB18030", 2), ("euc-kr", "1,운동화\n2,남성용 여행 배낭\n3,x\n", "EUC-KR", 2),
                                                         ("cp1251", "1,Кроссовки мужские\n2,a\n3,b\n", "WINDOWS-1251", 2), ("shift_jis", "1,スニーカー\n2,a\n3,b\n", "SHIFT_JIS", 2),
                                                         ("utf-16-le", "1,a\n2,b\n3,c\n", "UTF-16LE", 0), ("utf-16", "1,a\n2,b\n3,c\n", "UTF-16", 1)])
def test_other_encodings_are_recognised_and_the_remedy_works(tmp_path, encoding, text, first, line):
    raw = ("item_id,title\n" + text).encode(encoding)
    with pytest.raises(DataError, match=f"items.csv{f', line {line}' if line else ''}: the text is not UTF-8.*it looks like {first}") as error:
        RecDataset.from_folder(write(tmp_path, GOOD | {"items": raw}))
    assert f"iconv -f {first} -t UTF-8" in str(error.value)
    data = RecDataset.from_folder(write(tmp_path, GOOD | {"items": raw.decode(first).encode()}))      # what iconv does
    assert data.items["text"][1] == text.splitlines()[1][2:]


def test_traditional_chinese_is_among_the_guesses(tmp_path):
    with pytest.raises(DataError, match="BIG5.*and look at the result"): RecDataset.from_folder(write(tmp_path, GOOD | {"items": "item_id,title\n1,運動鞋\n2,背包\n3,x\n".encode("big5")}))


@pytest.mark.parametrize("raw, says", [(gzip.compress(ITEMS.encode(), mtime=0), "a gzip file.*csv.gz"), (b"PK\x03\x04\x14\x00\x06\x00\xe9", "a zip or Excel file.*save the table"), (b"PAR1\x15\x04\xff", "a parquet file")],
                         ids=["gzip", "zip", "parquet"])
def test_files_of_another_kind_are_told_apart(tmp_path, raw, says):
    with pytest.raises(DataError, match=f"items.csv: this is {says}"): RecDataset.from_folder(write(tmp_path, GOOD | {"items": raw}))


def test_dates_that_stand_for_never_are_dates(tmp_path):
    rows = "user_id,item_id,timestamp\n10,1,2024-01-01 00:00:00.5\n10,2,9999-12-31\n11,1,0001-01-01\n"
    times = RecDataset.from_folder(write(tmp_path, GOOD | {"interactions": rows})).interactions["timestamp"].tolist()
    assert times == [1704067200.5, 253402214400.0, -62135596800.0]


def test_numbers_of_more_than_64_bits_are_no_ids():
    rows, items = (pd.DataFrame({"item_id": np.array([1, 2**63 + 5], dtype=np.uint64)} | more) for more in ({"user_id": [1, 2]}, {"title": ["a", "b"]}))
    with pytest.raises(DataError, match=r"'item_id', row 1 .*make all ids text"): RecDataset(rows, items)


def test_folder_faults(tmp_path):
    with pytest.raises(DataError, match="no such folder"): RecDataset.from_folder(tmp_path / "nowhere")
    write(tmp_path, GOOD)
    write(tmp_path, GOOD, ".csv.gz")
    with pytest.raises(DataError, match="keep one of them"): RecDataset.from_folder(tmp_path)


def test_truncated_and_fake_files(tmp_path):
    write(tmp_path, GOOD, ".csv.gz")
    raw = gzip.compress(ITEMS.encode() * 50)
    (tmp_path / "items.csv.gz").write_bytes(raw[:len(raw) // 2])
    with pytest.raises(DataError, match="items.csv.gz.*cannot be read"): RecDataset.from_folder(tmp_path)
    (tmp_path / "items.csv.gz").write_bytes(ITEMS.encode())
    with pytest.raises(DataError, match="items.csv.gz.*cannot be read"): RecDataset.from_folder(tmp_path)
    (tmp_path / "items.csv.gz").unlink()
    (tmp_path / "items.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="items.parquet"): RecDataset.from_folder(tmp_path)


@pytest.mark.parametrize("ids, text", [([1, "x", 2], "mixed id types"), ([1.0, 2.0, 3.0], "not float"), ([1, None, 2], "empty"),
                                       ([True, False, True], "not bool"), ([(1,), (2,), (3,)], "must be whole numbers or text"),
                                       (["1", "2", "3"], "whole numbers in interactions")])
def test_faults_in_frames(ids, text):
    rows = pd.DataFrame({"user_id": ["a"], "item_id": [1]})
    with pytest.raises(DataError, match=text): RecDataset(rows, pd.DataFrame({"item_id": ids, "title": list("abc")}))


def test_faults_in_text_cells_of_frames():
    items = pd.DataFrame({"item_id": [1, 2], "title": ["a", "b"], "category": [None, ["x", "y"]]})
    with pytest.raises(DataError, match=r"column 'category', row 1 \(counted from 0\): this is not text"):
        RecDataset(pd.DataFrame({"user_id": [1], "item_id": [1]}), items)


def test_words_like_none_are_titles(tmp_path):
    data = RecDataset.from_folder(write(tmp_path, GOOD | {"items": "item_id,title\n1,None\n2,NA\n3,1984\n"}))
    assert data.items["text"].tolist() == ["None", "NA", "1984"]


def test_ids_stay_text_if_one_is_no_number(tmp_path):
    rows, items = "user_id,item_id\n01,7\n2,8\n", "item_id,title\n7,a\n8,b\n"
    data = RecDataset.from_folder(write(tmp_path, {"interactions": rows, "items": items}))
    assert data.users["user_id"].tolist() == ["01", "2"] and data.items["item_id"].tolist() == [7, 8]
    assert data.user_codes(["2", "01"]).tolist() == [1, 0] and data.item_codes("8").tolist() == [1]
    assert data.item_codes([8, "7"]).tolist() == [1, 0]
    with pytest.raises(DataError, match="no item 9"): data.item_codes([9])


def test_byte_order_mark_and_missing_users(tmp_path):
    data = RecDataset.from_folder(write(tmp_path, {"interactions": b"\xef\xbb\xbf" + ROWS.encode(), "items": b"\xef\xbb\xbf" + ITEMS.encode()}))
    assert data.users["user_id"].tolist() == [10, 11, 13] and (data.users["profile"] == "").all()


def test_an_empty_users_table_is_legal():
    rows, items = pd.DataFrame({"user_id": [7, 5], "item_id": ["x", "x"]}), pd.DataFrame({"item_id": ["x"], "title": ["a"]})
    data = RecDataset(rows, items, pd.DataFrame({"user_id": [], "profile": []}, dtype=object))
    assert data.users["user_id"].tolist() == [5, 7]


def test_duplicates():
    rows = pd.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [1, 1, 2, 1], "shown": [0, 1, 1, 1]})
    items = pd.DataFrame({"item_id": [1, 2], "title": ["a", "b"]})
    with pytest.raises(DataError, match=r"rows 0, 1 \(counted from 0\)"): RecDataset(rows, items)
    data = RecDataset(rows, items, duplicates="drop")
    assert data.n_duplicates == 1 and data.matrix().toarray().tolist() == [[1, 0], [0, 0]]   # the click stays
    assert RecDataset(rows.assign(timestamp=[1, 2, 3, 4]), items).n_duplicates == 0          # two events
    with pytest.raises(ValueError, match="duplicates='merge'"): RecDataset(rows, items, duplicates="merge")


def test_impressions_may_lack_a_rating():
    rows = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "shown": [False, True], "rating": [5, None]})
    items = pd.DataFrame({"item_id": [1, 2], "title": ["a", "b"]})
    assert RecDataset(rows, items).interactions["positive"].tolist() == [True, False]
    with pytest.raises(DataError, match="'rating', row 0"): RecDataset(rows.assign(rating=[None, 5.0]), items)


logs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(1, 5), st.integers(0, 9)), min_size=12, max_size=60,
                unique_by=lambda r: (r[0], r[1], r[3])).filter(lambda rows: sum(r[2] >= 4 for r in rows) >= 6)


def dataset(rows: list[tuple], shift: int = 0) -> RecDataset:
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    items = pd.DataFrame({"item_id": range(7), "title": list("abcdefg")})
    return RecDataset(log, items, pd.DataFrame({"user_id": range(5), "age": np.arange(5.0)}))


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(1, 6))
def test_views_equal_brute_force(rows, length):
    data = dataset(rows)
    liked = {(u, i) for u, i, r, _ in rows if r >= 4}
    disliked = {(u, i) for u, i, r, _ in rows if r < 4} - liked
    assert set(zip(*data.matrix().nonzero())) == liked and set(data.matrix().data) <= {1.0}
    assert set(zip(*data.negatives().nonzero())) == disliked
    assert data.matrix().dtype == data.negatives().dtype == np.float32
    for u, sequence in enumerate(data.sequences(max_length=length)):
        wanted = [i for v, i, r, _ in sorted(rows, key=lambda row: row[3]) if v == u and r >= 4][-length:]
        assert sequence.tolist() == [-1] * (length - len(wanted)) + wanted


@settings(max_examples=60, deadline=None)
@given(logs, st.sampled_from(["time", "time by user", "random", "random by user", "item", "user"]), st.integers(0, 3))
def test_splits(rows, kind, seed):
    data = dataset(rows)
    make = {"time": lambda: data.split_by_time(0.2, 0.2), "time by user": lambda: data.split_by_time(0.2, 0.2, by="user"),
            "random": lambda: data.split_random(0.2, 0.2, seed=seed), "item": lambda: data.split_item_cold(0.3, 0.2, seed=seed),
            "random by user": lambda: data.split_random(0.2, 0.2, seed=seed, by="user"),
            "user": lambda: data.split_user_cold(0.3, 0.2, seed=seed)}[kind]
    try: new = make()
    except DataError as error:
        assert "would hold no positive" in str(error)
        return
    table = new.interactions
    pd.testing.assert_frame_equal(table, make().interactions)                                 # the same seed, the same split
    assert table["split"].notna().all() and len(table) == len(rows) and "split" not in data.interactions
    parts = {s: table[table["split"] == s] for s in SPLITS}
    if kind == "time": assert parts["train"]["timestamp"].max() < parts["valid"]["timestamp"].min() <= parts["valid"]["timestamp"].max() < parts["test"]["timestamp"].min()
    if kind == "time by user":
        for _, own in table.groupby("user"):
            order = own.sort_values("timestamp", kind="stable")["split"].map({"train": 0, "valid": 1, "test": 2}).astype(int)
            assert order.is_monotonic_increasing
            assert (order > 0).sum() == (0 if len(own) < 3 else 2 * max(1, int(0.2 * len(own))))
    if kind.startswith("random"): assert table.groupby(["user", "item"])["split"].nunique().max() == 1
    if kind in ("item", "user"):
        assert table.groupby(kind, observed=True)["split"].nunique().max() == 1
        part = new.item_part if kind == "item" else new.user_part
        assert (part.to_numpy()[table[kind]] == table["split"].astype(str)).all()
        assert len(part) == (new.n_items if kind == "item" else new.n_users)


def test_split_shares_and_options():
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"user_id": rng.integers(200, size=9000), "item_id": rng.integers(300, size=9000)}).drop_duplicates()
    log["timestamp"] = rng.permutation(len(log))
    data = RecDataset(log, pd.DataFrame({"item_id": range(300), "title": "x"}))
    for new in (data.split_random(0.1, 0.2), data.split_by_time(0.1, 0.2), data.split_item_cold(0.2, 0.1), data.split_user_cold(0.2, 0.1)):
        shares = new.interactions["split"].value_counts(normalize=True)
        assert abs(shares["test"] - 0.2) < 0.05 and abs(shares["valid"] - 0.1) < 0.05
    assert data.split_random(0, 0.1).splits == ("train", "test")
    assert not data.split_random(seed=1).interactions["split"].equals(data.split_random(seed=2).interactions["split"])
    for bad in (lambda: data.split_random(0.5, 0.5), lambda: data.split_by_time(-0.1), lambda: data.split_by_time(by="week"),
                lambda: data.split_random(by="week"), lambda: data.matrix("dev")):
        with pytest.raises(ValueError): bad()


def test_asking_for_an_empty_split():
    data = dataset([(u, i, 5, i) for u in range(5) for i in range(7)])
    with pytest.raises(DataError, match="no split yet"): data.matrix("train")
    split = data.split_random(0, 0.2)
    with pytest.raises(DataError, match="'valid'|valid is empty"): split.matrix("valid")
    assert split.matrix("train", "valid").nnz == split.matrix("train").nnz
    with pytest.raises(DataError, match="no timestamp"):
        RecDataset(data.interactions[["user_id", "item_id"]], data.items[["item_id", "title"]]).split_by_time()


def test_published_item_parts(tmp_path):
    folder = write(tmp_path, GOOD | {"item_cold": "item_id,part\n2,test\n1,valid\n3,train\n"})
    data = RecDataset.from_folder(folder, positive_rating=1)
    with pytest.raises(DataError, match="'train' would hold no positive"):
        RecDataset.from_folder(write(tmp_path, {"item_cold": "item_id,part\n2,test\n1,valid\n3,test\n"})).split_item_cold()
    cold = data.split_item_cold()
    assert cold.item_part.tolist() == ["valid", "test", "train"] and cold.protocol == "item cold"
    assert data.protocol == "as given"
    asks = cold.requests(splits=("train", "valid"))
    assert asks.history[:, 1].nnz == 0                     # nothing but the text of a cold item is known


def test_requests():
    data = dataset([(u, i, 5, i) for u in range(4) for i in range(u + 1)])
    asks = data.requests(splits=(), max_history=3, context=["age"])
    assert len(asks) == 5 and asks.n_items == 7 and asks.context.tolist() == [[0], [1], [2], [3], [4]]
    assert asks.recent.tolist() == [[-1, -1, 0], [-1, 0, 1], [0, 1, 2], [1, 2, 3], [-1, -1, -1]]
    assert asks.history[4].nnz == 0 and asks.texts == [""] * 5
    some = asks[[3, 0]]
    assert some.users.tolist() == [3, 0] and some.history.toarray().sum(axis=1).tolist() == [4, 1] and len(some.texts) == 2
    assert asks[2].users.tolist() == [2] and len(asks[1:3]) == 2 and asks[asks.users > 2].users.tolist() == [3, 4]
    assert data.requests([], splits=()).recent.shape == (0, 50)
    with pytest.raises(ValueError, match="user codes"): data.requests([5], splits=())
    with pytest.raises(DataError, match="no such column"): data.requests(splits=(), context=["height"])
    with pytest.raises(ValueError, match="same length"): Requests(asks.history, asks.recent, ["a"], asks.context, asks.users)
    one = Requests.from_texts("travel", 7, context=[[1, 2]])
    assert one.texts == ["travel"] and one.context.shape == (1, 2) and one.history.shape == (1, 7)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12), min_size=3, max_size=3)
       .filter(lambda t: any(x.strip() for x in t)), st.booleans())
def test_round_trip(tmp_path_factory, titles, numbers):
    ids = [3, 1, 2] if numbers else ["c", "007", "b,\"x"]
    items = pd.DataFrame({"item_id": ids, "title": titles, "extra": [0.5, 1.5, 2.5]})
    rows = pd.DataFrame({"user_id": ["u", "v", "u"], "item_id": ids, "rating": [5, 4, 1], "timestamp": [1, 2, 3]})
    data = RecDataset(rows, items, item_part=pd.DataFrame({"item_id": ids[:1], "part": ["test"]}))
    folder = tmp_path_factory.mktemp("round")
    again = RecDataset.from_folder(data.to_folder(folder))
    parquet = tmp_path_factory.mktemp("parquet")
    rows.to_parquet(parquet / "interactions.parquet"); items.to_parquet(parquet / "items.parquet")
    for other in (again, RecDataset.from_folder(parquet)):
        for table in ("interactions", "items", "users"):
            pd.testing.assert_frame_equal(getattr(data, table), getattr(other, table), check_dtype=False)
    assert again.item_part.tolist() == data.item_part.tolist()
    written = (folder / "items.csv.gz").read_bytes()
    assert (data.to_folder(folder) / "items.csv.gz").read_bytes() == written      # the same data, the same file


@pytest.mark.parametrize("texts, language", [(["轻便运动鞋", "旅行箱 Samsonite"], "zh"), (["running shoes", "a cup"], "en"),
                                             (["running shoes 运动鞋", "cup 杯子"], "mixed"), ([""], "en")])
def test_language(texts, language):
    from genre_nb.datasets import guess_language
    assert guess_language(texts) == language


def test_a_million_interactions():
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"user_id": rng.integers(100_000, size=1_050_000), "item_id": rng.integers(10_000, size=1_050_000),
                        "timestamp": rng.integers(10**9, size=1_050_000)}).drop_duplicates(["user_id", "item_id"])
    data = RecDataset(log, pd.DataFrame({"item_id": range(10_000), "title": "x"})).split_by_time()
    asks = data.requests(np.arange(1000))
    assert len(data.interactions) > 1_000_000 and data.matrix("train").nnz > 700_000 and len(asks) == 1000


REAL = {"ecommerce-amazon-cn": (4125, 96, 24410, "zh"), "local-yelp": (13256, 2473, 115933, "en"),
        "movies-agent4rec": (1000, 3292, 185249, "en"), "books-goodreads": (21260, 15402, 175637, "en"),
        "games-amazon": (18995, 16805, 260722, "en"), "movielens-100k-irgan": (943, 1682, 100000, "en")}


@pytest.mark.parametrize("name", REAL)
def test_real_folders_load_unchanged(name):
    folder = Path(os.environ.get("GENRE_DATA", "")) / name
    if not os.environ.get("GENRE_DATA") or not folder.is_dir(): pytest.skip("set GENRE_DATA to the folder of the data sets")
    data = RecDataset.from_folder(folder)
    assert (data.n_users, data.n_items, len(data.interactions), data.language) == REAL[name]
    raw = pd.read_csv(folder / "interactions.csv.gz")
    for column in raw: assert (data.interactions[column].astype(raw[column].dtype) == raw[column]).all()
    cold = data.split_item_cold()
    assert abs((cold.item_part == "test").mean() - 0.2) < 0.02 and cold.splits == SPLITS


# Public data: the download path against a local file server, the loaders on authored files in the real layouts.

class Server:
    "A file server on this machine that can break off, forget ranges, change its files or refuse."

    def __init__(self):
        self.files, self.asked, self.cut, self.ranges, self.tag, self.headers, self.refuse = {}, [], None, True, '"v1"', {}, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body, have = outer.files.get(self.path), 0
                outer.asked.append((self.path, self.headers.get("Range")))
                if body is None or outer.refuse: return self.send_error(outer.refuse or 404)
                asked = self.headers.get("Range") if outer.ranges and self.headers.get("If-Range") == outer.tag else None
                if asked: have = int(asked[len("bytes="):-1])
                if asked and have >= len(body): return self.send_error(416)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body) - have))
                if outer.tag: self.send_header("ETag", outer.tag)
                for name, value in outer.headers.items(): self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[have:] if outer.cut is None else body[have:outer.cut])

            def log_message(self, *_): pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/data"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


BODY = np.random.default_rng(0).bytes(300_000)
CLOSED = "http://127.0.0.1:9"   # nobody listens there


def fetch(server, cache, name="goodbooks-10k", file="goodbooks-10k.zip", **options):
    return fetch_public(name, file, cache=cache, mirror=server if isinstance(server, str) else server.address, progress=False, **options)


@pytest.fixture
def known(monkeypatch):
    "Goodbooks with the checksum of BODY."
    import hashlib
    url = PUBLIC["goodbooks-10k"].files["goodbooks-10k.zip"][0]
    monkeypatch.setitem(PUBLIC, "goodbooks-10k", dataclasses.replace(
        PUBLIC["goodbooks-10k"], files={"goodbooks-10k.zip": (url, "sha256:" + hashlib.sha256(BODY).hexdigest())}))


def left(cache):
    return sorted(p.name for p in (cache / "goodbooks-10k").iterdir())


def test_a_file_is_fetched_once_and_its_terms_are_shown_once(server, known, tmp_path, capsys):
    server.files["/data/goodbooks-10k.zip"] = BODY
    path = fetch(server, tmp_path)
    assert path == tmp_path / "goodbooks-10k" / "goodbooks-10k.zip" and path.read_bytes() == BODY
    out = capsys.readouterr().out
    assert out.count("CC BY-SA 4.0") == 1 and PUBLIC["goodbooks-10k"].home in out
    assert fetch(server, tmp_path) == path and len(server.asked) == 1 and capsys.readouterr().out == ""
    assert left(tmp_path) == ["LICENCE.txt", "goodbooks-10k.zip"] and "CC BY-SA" in (path.parent / "LICENCE.txt").read_text()


def test_another_checksum_leaves_no_file(server, known, tmp_path):
    server.files["/data/goodbooks-10k.zip"] = BODY[::-1]
    with pytest.raises(DataError, match="another checksum") as error: fetch(server, tmp_path)
    assert all(part in str(error.value) for part in ("goodbooks-10k.zip", server.address, "sha256:", "checksum=False"))
    assert left(tmp_path) == ["LICENCE.txt"]
    assert fetch(server, tmp_path, checksum=False).read_bytes() == BODY[::-1]
    server.files["/data/goodbooks-10k.zip"] = BODY                              # a wrong file that is there is replaced
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_an_interrupted_download_goes_on(server, known, tmp_path):
    server.files["/data/goodbooks-10k.zip"], server.cut = BODY, 200_000
    with pytest.raises(DataError, match="broke off; what has arrived is kept") as error: fetch(server, tmp_path)
    assert "goodbooks-10k.zip" in str(error.value) and server.address in str(error.value)
    assert "goodbooks-10k.zip" not in left(tmp_path)                           # never half-written
    have = (tmp_path / "goodbooks-10k" / "goodbooks-10k.zip.part").stat().st_size
    assert 100_000 < have <= 200_000
    server.cut = None
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.asked[-1][1] == f"bytes={have}-" and left(tmp_path) == ["LICENCE.txt", "goodbooks-10k.zip"]


@pytest.mark.parametrize("change", ["file", "no ranges", "no tag", "weak tag", "longer part"])
def test_a_rest_that_does_not_fit_is_not_glued_on(server, known, tmp_path, change):
    server.files["/data/goodbooks-10k.zip"], server.cut = BODY[::-1] if change == "file" else BODY, 200_000
    if change == "no tag": server.tag = ""
    if change == "weak tag": server.tag = 'W/"v1"'
    with pytest.raises(DataError): fetch(server, tmp_path)
    server.cut = None
    if change == "file": server.files["/data/goodbooks-10k.zip"], server.tag = BODY, '"v2"'
    if change == "no ranges": server.ranges = False
    part = tmp_path / "goodbooks-10k" / "goodbooks-10k.zip.part"
    if change == "longer part": part.write_bytes(BODY + b"more")
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert (server.asked[1][1] is None) == ("tag" in change)


def test_bytes_are_stored_as_they_are(server, tmp_path):
    server.files["/data/goodbooks-10k.zip"] = packed = gzip.compress(b"text")
    server.headers = {"Content-Encoding": "gzip"}                                # some hosts call a .gz file an encoding
    assert fetch(server, tmp_path).read_bytes() == packed


def test_no_network_says_what_to_do_by_hand(known, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(DataError) as error: fetch(CLOSED, tmp_path)
    path = tmp_path / "goodbooks-10k" / "goodbooks-10k.zip"
    for part in ("no connection to 127.0.0.1", f"download {CLOSED}/goodbooks-10k.zip by hand", f"put it at {path}", "mirror=", "GENRE_CACHE"):
        assert part in str(error.value)
    path.write_bytes(b"another file")
    with pytest.raises(DataError, match="is there with another checksum, and cannot be downloaded"): fetch(CLOSED, tmp_path)
    path.write_bytes(BODY)
    assert fetch(CLOSED, tmp_path) == path                                       # put there by hand: no network needed


def test_an_address_that_has_gone(server, tmp_path):
    with pytest.raises(DataError, match="the server answered 404") as error: fetch(server, tmp_path)
    assert f"{server.address}/goodbooks-10k.zip" in str(error.value) and left(tmp_path) == ["LICENCE.txt"]


def test_a_server_that_refuses_everything_is_asked_once(server, tmp_path):
    server.files["/data/goodbooks-10k.zip"], server.refuse = BODY, 416
    with pytest.raises(DataError, match="the server answered 416"): fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_where_the_files_lie(server, tmp_path, monkeypatch):
    server.files["/data/goodbooks-10k.zip"] = BODY
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "env"))
    assert fetch(server, None).parent == tmp_path / "env" / "goodbooks-10k"
    assert fetch(server, tmp_path / "option").parent == tmp_path / "option" / "goodbooks-10k"
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot be stored") as error: fetch(server, tmp_path / "file")
    assert "cache= or GENRE_CACHE" in str(error.value)


def test_public_sets_are_described():
    table = public_sets()
    assert set(table.index) == {"movielens-100k", "movielens-1m", "movielens-latest-small", "mind-demo", "mind-small",
                                "amazon-reviews-2023", "goodbooks-10k"}
    for public in PUBLIC.values():
        for file, (url, known) in public.files.items():
            assert url.startswith("https://") and url.endswith("/" + file)
            assert known is None or len(known) == {"md5": 36, "sha256": 71}[known.partition(":")[0]]


def test_wrong_names_are_answered_with_right_ones(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'mind-small'"): fetch_public("mind_small", "x.zip", cache=tmp_path)
    with pytest.raises(ValueError, match="MINDdemo_train.zip, MINDdemo_dev.zip"): fetch_public("mind-demo", "x.zip", cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_stopping_a_download_by_hand_keeps_what_arrived(server, known, tmp_path, monkeypatch):
    import tqdm
    server.files["/data/goodbooks-10k.zip"] = BODY
    update = tqdm.tqdm.update
    def stop(bar, n=1):
        update(bar, n)
        raise KeyboardInterrupt
    monkeypatch.setattr(tqdm.tqdm, "update", stop)
    with pytest.raises(KeyboardInterrupt): fetch(server, tmp_path)
    assert left(tmp_path) == ["LICENCE.txt", "goodbooks-10k.zip.part", "goodbooks-10k.zip.part.tag"]
    monkeypatch.setattr(tqdm.tqdm, "update", update)
    assert fetch(server, tmp_path).read_bytes() == BODY and server.asked[-1][1] == "bytes=65536-"


def test_importing_datasets_asks_for_no_network_library():
    code = "import sys, genre_nb.datasets; print([m for m in ('pooch', 'requests', 'urllib3', 'tqdm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def pack(cache, name, file, members, encoding="utf-8"):
    (cache / name).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(cache / name / file, "w") as archive:
        for member, text in members.items(): archive.writestr(member, text.encode(encoding))
    return cache / name / file


def here(cache, **options):
    "Options that read authored files from `cache` and never reach for the network."
    return {"cache": cache, "mirror": CLOSED, "checksum": False, "progress": False} | options


ML100K = {"ml-100k/u.data": "7\t1\t5\t881250949\n7\t2\t3\t891717742\n9\t2\t4\t878887116\n9\t3\t4\t880606923\n",
          "ml-100k/u.item": "1|Café Noir (1995)|01-Jan-1995||http://x|0|1|0\n2|Say \"Hi\" (1996)|01-Jan-1996||http://x|0|1|1\n3|unknown||||1|0|0\n",
          "ml-100k/u.genre": "unknown|0\nDrama|1\nWar|2\n\n", "ml-100k/u.user": "7|24|M|technician|85711\n8|53|F|other|94043\n9|23|M|writer|32067\n",
          "ml-100k/u1.base": "7\t1\t5\t881250949\n9\t2\t4\t878887116\n9\t3\t4\t880606923\n", "ml-100k/u1.test": "7\t2\t3\t891717742\n"}


def test_movielens_100k(tmp_path):
    pack(tmp_path, "movielens-100k", "ml-100k.zip", ML100K, "latin-1")
    data = load_movielens("100k", **here(tmp_path))
    assert data.items["text"].tolist() == ["Café Noir (1995) · Drama", 'Say "Hi" (1996) · Drama, War', "unknown"]
    assert data.items["year"].tolist()[:2] == [1995, 1996] and data.items["year"].isna().tolist() == [False, False, True]
    assert data.users["user_id"].tolist() == [7, 8, 9] and data.users["occupation"].tolist() == ["technician", "other", "writer"]
    assert data.matrix().toarray().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]] and data.splits == ()
    assert data.interactions["timestamp"].tolist() == [881250949, 891717742, 878887116, 880606923]
    assert load_movielens("100k", positive_rating=3, **here(tmp_path)).matrix().nnz == 4
    fold = load_movielens("100k", fold="u1", **here(tmp_path))
    assert fold.splits == ("train", "test") and len(fold.interactions) == 4 and fold.rows("test").sum() == 1
    with pytest.raises(ValueError, match="u1, u2"): load_movielens("100k", fold="u9", **here(tmp_path))
    with pytest.raises(ValueError, match="only '100k'"): load_movielens("1m", fold="u1", **here(tmp_path))
    with pytest.raises(ValueError, match="latest-small"): load_movielens("25m", **here(tmp_path))


def test_movielens_1m_and_latest_small(tmp_path):
    pack(tmp_path, "movielens-1m", "ml-1m.zip", {"ml-1m/movies.dat": "5::Élan: A Film (1988)::Action|Drama\n6::None (1990)::Comedy\n",
         "ml-1m/users.dat": "1::F::1::10::48067\n", "ml-1m/ratings.dat": "1::5::5::978300760\n1::6::2::978302109\n"}, "latin-1")
    data = load_movielens("1m", **here(tmp_path))
    assert data.items["text"].tolist() == ["Élan: A Film (1988) · Action, Drama", "None (1990) · Comedy"] and data.negatives().nnz == 1
    assert data.users["zip_code"].astype(str).tolist() == ["48067"]
    pack(tmp_path, "movielens-latest-small", "ml-latest-small.zip", {
        "ml-latest-small/movies.csv": 'movieId,title,genres\n1,"Sea, The (2001)",Drama|War\n4,零 (2010),(no genres listed)\n',
        "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.5,964982703\n2,4,3.5,964981247\n2,1,4.0,964982224\n"})
    data = load_public("movielens-latest-small", **here(tmp_path))
    assert data.items["text"].tolist() == ["Sea, The (2001) · Drama, War", "零 (2010)"] and data.matrix().toarray().tolist() == [[1, 0], [1, 0]]


def test_broken_archives_are_named(tmp_path):
    file = pack(tmp_path, "movielens-100k", "ml-100k.zip", {k: v for k, v in ML100K.items() if "u.item" not in k}, "latin-1")
    with pytest.raises(DataError, match="ml-100k.zip: the archive holds no file u.item") as error: load_movielens("100k", **here(tmp_path))
    assert f"delete {file}" in str(error.value)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match="ml-100k.zip: this is no complete zip archive"): load_movielens("100k", **here(tmp_path))
    pack(tmp_path, "movielens-100k", "ml-100k.zip", ML100K | {"ml-100k/u.user": ""}, "latin-1")
    with pytest.raises(DataError, match="ml-100k.zip/u.user"): load_movielens("100k", **here(tmp_path))


NEWS = "".join(f"N{i}\t{topic}\tsub\t{title}\t{about}\thttps://x\t[]\t[]\n" for i, topic, title, about in
               [(1, "sports", 'A "quoted" title', "one"), (2, "food", "Soup", ""), (3, "travel", "Trains", "three"), (4, "travel", "NA", "four")])
TRAIN = ("1\tU1\t11/13/2019 8:36:57 AM\tN4\tN1-0 N2-1\n2\tU2\t11/14/2019 11:59:59 PM\t\tN3-1 N1-0 N2-0\n"
         "3\tU1\t11/14/2019 12:00:01 AM\tN4\tN1-0 N3-0\n")
DEV = "1\tU2\t11/15/2019 12:30:00 PM\tN3 N4 N4\tN1-1 N2-0\n"


def mind(cache, train=TRAIN, dev=DEV, folder=""):
    for part, log in (("train", train), ("dev", dev)):
        pack(cache, "mind-demo", f"MINDdemo_{part}.zip", {f"{folder}behaviors.tsv": log, f"{folder}news.tsv": NEWS})
    return cache


def test_mind_rows_are_what_was_shown(tmp_path):
    data = load_mind("demo", **here(mind(tmp_path, folder="MINDdemo/")))
    rows = data.interactions[["user_id", "item_id", "timestamp", "shown", "position", "split"]]
    assert data.items["text"].tolist() == ['A "quoted" title · sports, sub · one', "Soup · food, sub", "Trains · travel, sub · three", "NA · travel, sub · four"]
    day = 1573603200                                                       # 2019-11-13 00:00 UTC
    first = day + 8 * 3600 + 36 * 60 + 57
    past, log = rows[rows["position"].isna()], rows[rows["position"].notna()]
    assert [tuple(r) for r in past[["user_id", "item_id", "timestamp"]].to_numpy()] == [("U1", "N4", first - 1), ("U2", "N4", first - 2)]   # N3 is told by the log
    assert (past["split"] == "train").all() and not past["shown"].any()
    assert list(zip(log["item_id"], log["shown"].astype(int), log["position"].astype(int))) == [
        ("N1", 1, 0), ("N2", 0, 1), ("N3", 0, 0), ("N1", 1, 1), ("N2", 1, 2), ("N1", 1, 0), ("N3", 1, 1), ("N1", 0, 0), ("N2", 1, 1)]
    assert log["timestamp"].drop_duplicates().tolist() == [first, day + 2 * 86400 - 1, day + 86400 + 1, day + 2 * 86400 + 45000]
    assert log["split"].astype(str).tolist() == ["train"] * 2 + ["valid"] * 5 + ["test"] * 2
    assert data.negatives()[0, 0] == 1 and data.sequences(max_length=2)[0].tolist() == [3, 1]


def test_mind_options(tmp_path):
    mind(tmp_path)
    rows = load_mind("demo", history=False, valid_days=0, **here(tmp_path)).interactions
    assert len(rows) == 9 and set(rows["split"]) == {"train", "test"}
    clicks = load_mind("demo", history=False, max_shown=0, **here(tmp_path)).interactions
    assert len(clicks) == 3 and not clicks["shown"].any()
    draws = [load_mind("demo", history=False, max_shown=1, seed=s, **here(tmp_path)).interactions for s in (0, 0, 1, 2, 3, 4, 5)]
    assert all(len(d) == 7 and (d["shown"].sum(), (~d["shown"]).sum()) == (4, 3) for d in draws)
    pd.testing.assert_frame_equal(draws[0], draws[1])
    assert len({tuple(d["item_id"]) for d in draws}) > 1
    with pytest.raises(ValueError, match="'demo' or 'small'"): load_mind("large")


@pytest.mark.parametrize("line", ["2\tU2\t11/14/2019 9:05:58 AM\tN1\tN3", "2\tU2\t11/14/2019 9:05:58 AM\tN1\tN3-2", "2\tU2\tN3-1"])
def test_mind_faults_name_the_line(tmp_path, line):
    mind(tmp_path, train=TRAIN.splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"MINDdemo_train.zip/behaviors.tsv, line 2: this is not"): load_mind("demo", **here(tmp_path))


def brute_core(user, item, k):
    rows = list(range(len(user)))
    while True:
        u, i = Counter(user[r] for r in rows), Counter(item[r] for r in rows)
        kept = [r for r in rows if u[user[r]] >= k and i[item[r]] >= k]
        if kept == rows: return [r in set(rows) for r in range(len(user))]
        rows = kept


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40), st.integers(1, 4))
def test_k_core_is_the_largest_such_set(pairs, k):
    user, item = (np.array([p[c] for p in pairs], dtype=int) for c in (0, 1))
    assert k_core(user, item, k).tolist() == brute_core(user.tolist(), item.tolist(), k)


def amazon(cache, reviews, products, category="Video_Games"):
    folder = cache / "amazon-reviews-2023"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in ((category, reviews), (f"meta_{category}", products)):
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return folder


def review(user, item, rating=5.0, time=1_600_000_000_000, text="fine"):
    return {"rating": rating, "title": "t", "text": text, "images": [], "asin": item + "x", "parent_asin": item, "user_id": user,
            "timestamp": time, "helpful_vote": 0, "verified_purchase": True}


def product(item, **fields):
    return {"main_category": "Video Games", "title": f"Game {item}", "features": [], "description": [], "price": None, "store": "s",
            "categories": [], "details": {}, "parent_asin": item} | fields


def random_reviews(n=400, users=40, items=25, seed=0):
    rng = np.random.default_rng(seed)
    return [review(f"U{rng.zipf(1.5) % users}", f"P{rng.integers(items)}", float(rng.integers(1, 6)), 1_600_000_000_000 + 1_000_500 * n) for n in range(n)]


def test_amazon_streams_what_a_reader_would_do_in_memory(tmp_path):
    reviews = random_reviews()
    amazon(tmp_path, reviews, [product(f"P{i}") for i in range(40)])
    for k in (1, 3, 6):
        data = load_amazon("Video Games", k_core=k, **here(tmp_path))
        core = brute_core([r["user_id"] for r in reviews], [r["parent_asin"] for r in reviews], k)
        want = [(r["user_id"], r["parent_asin"], r["rating"], r["timestamp"] // 1000) for r, keep in zip(reviews, core) if keep]
        rows = data.interactions[["user_id", "item_id", "rating", "timestamp"]]
        assert 0 < len(want) and [tuple(r) for r in rows.to_numpy().tolist()] == [tuple(w) for w in want]
        assert set(data.items["item_id"]) == {w[1] for w in want} and data.n_users == len({w[0] for w in want})


def test_amazon_text_and_oddities(tmp_path):
    texts = [product("A", categories=["Games", "Chess"], features=["Wooden.", "Old."], description=["Two players sit down."]),
             product("B", title=None, features=None, description=None), product("unused")]
    reviews = [review("u", "A"), review("u", "A"), review("u", "B", 2.0), review("u", "C", time=1_600_000_000_999), review("v", "A", 4.0)]
    amazon(tmp_path, reviews, texts)
    data = load_public("amazon-reviews-2023", category="Video_Games", k_core=1, max_characters=20, **here(tmp_path))
    assert data.items[["item_id", "text"]].to_numpy().tolist() == [["A", "Game A · Games, Chess · Wooden. Old. Two"], ["B", "Video Games"], ["C", ""]]
    assert data.n_duplicates == 1 and data.matrix().toarray().tolist() == [[1, 0, 1], [1, 0, 0]]
    with pytest.raises(DataError, match="Video_Games.jsonl.gz: no review is left with k_core=9"): load_amazon("Video_Games", k_core=9, **here(tmp_path))
    with pytest.raises(ValueError, match="Video_Games"): load_amazon("Video_Game", **here(tmp_path))
    with pytest.raises(ValueError, match="user_share"): load_amazon("Video_Games", user_share=0, **here(tmp_path))
    with pytest.raises(ValueError, match="max_reviews=0"): load_amazon("Video_Games", max_reviews=0, **here(tmp_path))


def test_amazon_takes_part_of_the_users_whole(tmp_path):
    reviews = random_reviews(2000, users=300)
    amazon(tmp_path, reviews, [product(f"P{i}") for i in range(25)])
    full = Counter(r["user_id"] for r in reviews)
    draws = [load_amazon("Video_Games", k_core=1, user_share=0.3, seed=s, **here(tmp_path)) for s in (0, 0, 1)]
    for data in draws:
        part = data.interactions["user_id"].value_counts()
        assert all(full[u] == n for u, n in part.items()) and 0.1 < len(part) / len(full) < 0.5
    assert set(draws[0].users["user_id"]) == set(draws[1].users["user_id"]) != set(draws[2].users["user_id"])
    assert len(load_amazon("Video_Games", k_core=1, max_reviews=50, **here(tmp_path)).interactions) == 50


def test_amazon_needs_far_less_memory_than_the_file(tmp_path):
    amazon(tmp_path, (review(f"U{n % 500}", f"P{n % 90}", time=n * 1000, text="long " * 500) for n in range(12_000)), [product(f"P{n}") for n in range(90)])
    tracemalloc.start()
    try: data = load_amazon("Video_Games", k_core=2, **here(tmp_path)); peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert len(data.interactions) == 12_000 and peak < 12e6 < 12_000 * 2500 / 2   # the text alone has 30 MB


def test_amazon_faults_name_file_and_line(tmp_path):
    folder = amazon(tmp_path, random_reviews(), [product("P1")])
    file = folder / "Video_Games.jsonl.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match="Video_Games.jsonl.gz: the file cannot be read to its end") as error: load_amazon("Video_Games", **here(tmp_path))
    assert f"delete {file}" in str(error.value)
    file.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"{", b"", 2)))
    with pytest.raises(DataError, match="Video_Games.jsonl.gz, line 1: this line is not JSON"): load_amazon("Video_Games", **here(tmp_path))
    file.write_bytes(gzip.compress(b'{"user": 1}\n'))
    with pytest.raises(DataError, match="no user_id or no parent_asin"): load_amazon("Video_Games", **here(tmp_path))


@pytest.mark.parametrize("reviews, products, file", [([review("u", "A") | {"rating": None}], [], "Video_Games.jsonl.gz"), ([{"user_id": "u", "parent_asin": "A"}], [], "Video_Games.jsonl.gz"),
                                                     ([review(7, "A")], [], "Video_Games.jsonl.gz"), ([review("u", "A")], [product("A", features=["a", None])], "meta_Video_Games.jsonl.gz"),
                                                     ([review("u", "A")], [["A"]], "meta_Video_Games.jsonl.gz")])
def test_amazon_records_of_another_shape(tmp_path, reviews, products, file):
    amazon(tmp_path, reviews, products)
    with pytest.raises(DataError, match=f"^{file}: this is not the published layout.*delete"): load_amazon("Video_Games", k_core=1, user_share=0.99, **here(tmp_path))


GOODBOOKS = {"ratings.csv": "user_id,book_id,rating\n1,258,5\n", "books.csv": "book_id,goodreads_book_id,authors,original_publication_year,title\n258,70,A,2001,Tides\n",
             "tags.csv": "tag_id,tag_name\n1,sea\n", "book_tags.csv": "goodreads_book_id,tag_id,count\n70,1,9\n"}


@pytest.mark.parametrize("broken", [{"ratings.csv": ""}, {"ratings.csv": "user_id,book_id,rating\n1,258,5\n1,2,3,4,5,6\n"}, {"books.csv": "id,book_id,title\n1,258,Tides\n"},
                                    {"tags.csv": "tag_id\n1\n"}, {"books.csv": GOODBOOKS["books.csv"].encode("utf-16")}])
def test_goodbooks_of_another_layout(tmp_path, broken):
    (tmp_path / "goodbooks-10k").mkdir()
    def fill(members):
        with zipfile.ZipFile(tmp_path / "goodbooks-10k" / "goodbooks-10k.zip", "w") as archive:
            for member, text in members.items(): archive.writestr(member, text)
    fill(GOODBOOKS)
    assert load_goodbooks(**here(tmp_path)).items["text"].tolist() == ["Tides · sea · by A, 2001"]
    fill(GOODBOOKS | broken)
    with pytest.raises(DataError, match="goodbooks-10k.zip: this is not the published layout.*delete .*load again"): load_goodbooks(**here(tmp_path))


def test_other_odd_archives(tmp_path):
    pack(tmp_path, "movielens-latest-small", "ml-latest-small.zip", {"movies.csv": "movieId,title\n1,a\n", "ratings.csv": "userId,movieId,rating,timestamp\n1,1,5,1\n"})
    with pytest.raises(DataError, match="ml-latest-small.zip: this is not the published layout.*category"): load_movielens("latest-small", **here(tmp_path))
    mind(tmp_path, train="")
    with pytest.raises(DataError, match="MINDdemo_train.zip/behaviors.tsv: there is no impression"): load_mind("demo", **here(tmp_path))
    mind(tmp_path, dev=DEV.replace("11/15/2019", "15.11.2019"))
    with pytest.raises(DataError, match="MINDdemo_dev.zip.*: this is not"): load_mind("demo", **here(tmp_path))


@pytest.mark.parametrize("mirror", ["/tmp", "ftp://example.org", "http://"])
def test_a_mirror_that_is_no_address(tmp_path, mirror):
    with pytest.raises(DataError, match="this is no address on the web"): load_goodbooks(**here(tmp_path, mirror=mirror))


def test_goodbooks(tmp_path):
    pack(tmp_path, "goodbooks-10k", "goodbooks-10k.zip", {
        "goodbooks-10k/ratings.csv": "user_id,book_id,rating\n1,258,5\n2,258,2\n2,9,4\n",
        "__MACOSX/goodbooks-10k/._ratings.csv": "junk",
        "goodbooks-10k/books.csv": 'book_id,goodreads_book_id,authors,original_publication_year,title\n258,70,"A. Moon, B. Sun",2001.0,"Tides, #1"\n9,80,鲁迅,1921.0,呐喊\n10,90,C. Day,,Nobody\n',
        "goodbooks-10k/tags.csv": "tag_id,tag_name\n1,to-read\n2,sea-stories\n3,fantasy\n4,currently-reading\n5,owned-books\n6,classics\n",
        "goodbooks-10k/book_tags.csv": "goodreads_book_id,tag_id,count\n70,1,999\n70,3,20\n70,2,30\n70,6,10\n70,4,300\n80,5,50\n80,6,9\n"})
    data = load_goodbooks(n_tags=2, **here(tmp_path))
    assert data.items["text"].tolist() == ["Tides, #1 · sea-stories, fantasy · by A. Moon, B. Sun, 2001", "呐喊 · classics · by 鲁迅, 1921", "Nobody · by C. Day"]
    assert data.matrix().toarray().tolist() == [[1, 0, 0], [0, 1, 0]] and "timestamp" not in data.interactions


def test_one_door_downloads_and_reads(server, tmp_path):
    mind(tmp_path / "made"), amazon(tmp_path / "made", random_reviews(), [product("P1")])
    for file in (tmp_path / "made").rglob("*.*z*"): server.files[f"/data/{file.name}"] = file.read_bytes()
    options = {"cache": tmp_path / "cache", "mirror": server.address + "/", "checksum": False, "progress": True}
    assert load_public("mind-demo", **options).n_items == 4
    assert load_public("amazon-reviews-2023", category="Video_Games", **options).n_users > 3
    assert sorted(path for path, _ in server.asked) == ["/data/MINDdemo_dev.zip", "/data/MINDdemo_train.zip", "/data/Video_Games.jsonl.gz", "/data/meta_Video_Games.jsonl.gz"]
    with pytest.raises(ValueError, match="did you mean 'movielens-100k'"): load_public("movielens100k")
    with pytest.raises(TypeError, match="colour"): load_public("goodbooks-10k", colour="red", **here(tmp_path))


def test_ids_of_categories_are_cleaned_once_each():
    log = pd.DataFrame({"user_id": pd.Categorical([" a", "b", " a"]), "item_id": pd.Categorical([1, 2, 2])})
    items = pd.DataFrame({"item_id": [1, 2], "title": ["x", "y"]})
    data = RecDataset(log, items)
    assert data.users["user_id"].tolist() == ["a", "b"] and data.interactions["user"].tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"'user_id', rows 0, 2 .*empty"):
        RecDataset(log.assign(user_id=pd.Categorical(["  ", "b", "  "])), items)
