"""Guards of `genre_nb.datasets`: views against brute force, splits, round trips, and the promised messages."""
import gzip
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_nb.datasets import SPLITS, DataError, RecDataset, Requests

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
    start = time.perf_counter()
    data = RecDataset(log, pd.DataFrame({"item_id": range(10_000), "title": "x"})).split_by_time()
    asks = data.requests(np.arange(1000))
    assert len(data.interactions) > 1_000_000 and data.matrix("train").nnz > 700_000 and len(asks) == 1000
    assert time.perf_counter() - start < 60


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
