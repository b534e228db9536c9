"""The command line as a person meets it: wrong calls, own data with a broken row, fit → recommend → evaluate on a tiny folder."""
import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from genre_nb.cli import app
from genre_nb.simulation import World

runner = CliRunner()
TINY = """
gan: {pretrain_g_steps: 6, pretrain_d_steps: 6, play_steps: 3, batch_size: 16, health_size: 32, health_every: 5}
rerank: {steps: 40, seeds: 1, candidates: 40, folds: 1, tune_users: 60}
vocab_size: 600
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shop")
    World("ecommerce", "zh", 150, 150, 0).dataset().to_folder(path / "data")
    (path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(folder):
    result = runner.invoke(app, ["fit", "--data", str(folder / "data"), "--out", str(folder / "model"), "--config", str(folder / "tiny.yaml")])
    assert result.exit_code == 0, result.output
    return folder / "model"


def test_fit_leaves_a_model_and_no_checkpoint(model):
    assert (model / "genre.json").exists() and not (model / "checkpoint").exists()


def test_recommend_by_interest_and_by_user(model):
    result = runner.invoke(app, ["recommend", "--model", str(model), "--interest", "运动鞋", "-k", "3", "--json"])
    rows = json.loads(result.stdout)
    assert result.exit_code == 0 and [r["rank"] for r in rows] == [1, 2, 3] and all(r["title"] for r in rows)
    user = World("ecommerce", "zh", 150, 150, 0).dataset().users["user_id"].iloc[0]
    assert len(json.loads(runner.invoke(app, ["recommend", "--model", str(model), "--user", str(user), "--json"]).stdout)) == 10


def test_rerank_keeps_the_items_and_only_them(model):
    ids = [r["item_id"] for r in json.loads(runner.invoke(app, ["recommend", "--model", str(model), "--interest", "帐篷", "--json"]).stdout)][:4]
    rows = json.loads(runner.invoke(app, ["rerank", "--model", str(model), "--interest", "运动鞋", "--items", ",".join(map(str, ids)), "--json"]).stdout)
    assert {r["item_id"] for r in rows} == set(ids)


def test_generate(model):
    rows = json.loads(runner.invoke(app, ["generate", "--model", str(model), "--interest", "运动鞋", "-n", "2", "--json"]).stdout)
    assert len(rows) == 2 and all(0 <= r["judge"] <= 1 for r in rows)


def test_evaluate_writes_the_promised_metrics(model, folder):
    result = runner.invoke(app, ["evaluate", "--model", str(model), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    metrics = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert {"dataset", "protocol", "systems", "lift_vs_best_baseline", "lift_vs_gan_off", "lift_vs_features_only", "best_baseline", "seconds", "config"} <= set(metrics)
    assert {"genre", "genre_gan_off", "genre_features_only", "popularity", "ease", "item_knn", "bm25", "dense", "generated"} <= set(metrics["systems"])
    for system in metrics["systems"].values():
        assert {"precision@10", "recall@10", "ndcg@10", "hit_rate@1", "coverage@10"} <= set(system)
        assert system["coverage@10"]["low"] is None and system["ndcg@10"]["low"] <= system["ndcg@10"]["mean"] <= system["ndcg@10"]["high"]
    assert metrics["best_baseline"] in metrics["systems"] and not metrics["best_baseline"].startswith("genre")


def test_a_broken_row_is_named(folder, tmp_path):
    World("ecommerce", "zh", 120, 120, 0).dataset().to_folder(tmp_path / "data")
    table = pd.read_csv(tmp_path / "data" / "interactions.csv.gz", dtype=str)
    table.loc[4, "item_id"] = "no-such-item"
    table.to_csv(tmp_path / "data" / "interactions.csv.gz", index=False)
    result = runner.invoke(app, ["fit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "m")])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert all(word in result.output for word in ("interactions.csv.gz", "item_id", "line 6")) and not (tmp_path / "m").exists()


@pytest.mark.parametrize("config, word", [("rerank: {candidats: 5}", "candidats"), ("gan: {w: 2}", "w"), ("{", "YAML")])
def test_a_wrong_configuration_is_named(folder, tmp_path, config, word):
    (tmp_path / "c.yaml").write_text(config, encoding="utf-8")
    result = runner.invoke(app, ["fit", "--data", str(folder / "data"), "--out", str(tmp_path / "m"), "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 1 and word in result.output and "c.yaml" in result.output.replace("\n", "")


def test_unknown_user(model):
    result = runner.invoke(app, ["recommend", "--model", str(model), "--user", "nobody-at-all"])
    assert result.exit_code == 1 and "nobody-at-all" in result.output


def test_the_package_imports_lightly():
    code = "import sys, torch; before = set(sys.modules); import genre_nb; new = sorted(set(sys.modules) - before); " \
           "bad = [m for m in ('pytorch_lightning', 'transformers', 'faiss', 'jieba') if m in sys.modules]; assert not bad and len(new) < 20, (bad, new)"
    subprocess.run([sys.executable, "-c", code], check=True)


# protocols

def test_protocols_are_named_in_help_and_refused_when_wrong(folder, tmp_path):
    wrong = runner.invoke(app, ["evaluate", "--data", str(folder / "data"), "--out", str(tmp_path / "o"), "--protocol", "cold"])
    assert wrong.exit_code == 2 and all(name in wrong.output for name in ("warm", "item-cold", "user-cold", "irgan"))
    assert not (tmp_path / "o").exists()


def test_a_model_is_not_asked_under_another_protocol(model, tmp_path):
    result = runner.invoke(app, ["evaluate", "--model", str(model), "--out", str(tmp_path / "o"), "--protocol", "user-cold"])
    assert result.exit_code == 1 and "fitted under the protocol 'warm'" in result.output.replace("\n", " ").replace("  ", " ") and (model / "genre.json").exists()


def test_irgan_without_ratings_is_answered(tmp_path):
    World("ecommerce", "zh", 120, 120, 0).dataset().to_folder(tmp_path / "data")
    table = pd.read_csv(tmp_path / "data" / "interactions.csv.gz", dtype=str)
    table.drop(columns="rating", errors="ignore").to_csv(tmp_path / "data" / "interactions.csv.gz", index=False)
    result = runner.invoke(app, ["fit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "m"), "--protocol", "irgan"])
    assert result.exit_code == 1 and "column 'rating'" in result.output and "protocol 'irgan'" in result.output


def test_cold_items_are_drawn_written_and_found_again(folder, tmp_path, monkeypatch):
    from genre_nb.cli import cold_items
    from genre_nb.datasets import RecDataset
    from genre_nb.recommender import GenreConfig
    settings, heard = GenreConfig(protocol="item-cold"), []
    World("ecommerce", "zh", 150, 150, 0).dataset().to_folder(tmp_path / "data")
    drawn = cold_items(RecDataset.from_folder(tmp_path / "data"), tmp_path / "data", tmp_path / "out", settings, heard.append)
    again = RecDataset.from_folder(tmp_path / "data")
    assert (again.item_part == drawn.item_part).all() and again.item_part.value_counts().to_dict() == {"train": 105, "test": 30, "valid": 15}
    assert "30 items drawn for test, 15 for valid" in heard[0] and not (tmp_path / "out").exists()
    assert cold_items(again, tmp_path / "data", tmp_path / "out", settings, heard.append) is again and len(heard) == 1
    (tmp_path / "data" / "item_cold.csv").unlink()
    write = pd.DataFrame.to_csv
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda self, path, **more: write(self, path, **more) if path.parent.name == "out" else (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    other = cold_items(RecDataset.from_folder(tmp_path / "data"), tmp_path / "data", tmp_path / "out", settings, heard.append)
    assert (other.item_part == drawn.item_part).all() and "cannot be written (Permission denied)" in heard[1] and str(tmp_path / "out") in heard[2]


def test_an_interrupted_evaluation_goes_on_with_its_model(folder, tmp_path, monkeypatch):
    from genre_nb.recommender import GenreRecommender
    (tmp_path / "data").mkdir()
    for path in (folder / "data").iterdir(): (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    call = ["evaluate", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "o"), "--config", str(folder / "tiny.yaml"), "--protocol", "user-cold"]
    fits, fit, read = [], GenreRecommender.fit, GenreRecommender.read_test
    monkeypatch.setattr(GenreRecommender, "fit", lambda self, *a, **k: fits.append(1) or fit(self, *a, **k))
    monkeypatch.setattr(GenreRecommender, "read_test", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    stopped = runner.invoke(app, call)
    assert stopped.exit_code == 130 and "goes on" in stopped.output and (tmp_path / "o" / "running.json").exists() and len(fits) == 1
    monkeypatch.setattr(GenreRecommender, "read_test", read)
    done = runner.invoke(app, call)
    assert done.exit_code == 0 and "going on" in done.output and len(fits) == 1, done.output
    assert json.loads((tmp_path / "o" / "metrics.json").read_text(encoding="utf-8"))["protocol"] == "user-cold"
    assert not (tmp_path / "o" / "running.json").exists() and not (tmp_path / "o" / "checkpoint_gan_off").exists()
    monkeypatch.setattr(GenreRecommender, "read_test", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert runner.invoke(app, call).exit_code == 130 and len(fits) == 2, "a finished run is not reused"
    monkeypatch.setattr(GenreRecommender, "read_test", read)
    changed = runner.invoke(app, call + ["--seed", "1"])
    assert changed.exit_code == 0 and "starting anew" in changed.output and len(fits) == 3


def test_a_polite_kill_is_ctrl_c_by_another_name(folder, tmp_path):
    (tmp_path / "slow.yaml").write_text(TINY.replace("pretrain_g_steps: 6", "pretrain_g_steps: 150"), encoding="utf-8")
    call = [sys.executable, "-c", "from genre_nb.cli import main; main()", "evaluate", "--data", str(folder / "data"), "--out", str(tmp_path / "o"), "--config", str(tmp_path / "slow.yaml")]
    with subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if "generator reads" in line: break
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143 and "Stopped. The same command goes on" in said, said
    assert (tmp_path / "o" / "running.json").exists() and (tmp_path / "o" / "model" / "checkpoint" / "last.ckpt").exists()
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 0 and "going on with the run" in again.stderr and (tmp_path / "o" / "metrics.json").exists(), again.stderr


@pytest.mark.parametrize("sent, code, ctrl_c", [(signal.SIGTERM, 143, signal.default_int_handler), (signal.SIGTERM, 143, signal.SIG_IGN), (signal.SIGINT, 130, signal.default_int_handler)])
def test_signals_outside_the_game(sent, code, ctrl_c, capsys):
    import typer
    from genre_nb.cli import plain_errors
    before, of_runner = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, ctrl_c)     # in the background of a script it is ignored
    try:
        with pytest.raises(typer.Exit) as stopped:
            with plain_errors("Come back."): signal.raise_signal(sent)
    finally: signal.signal(signal.SIGINT, of_runner)
    assert stopped.value.exit_code == code and "Stopped. Come back." in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_fails_leaves_the_model_of_the_last_one(folder, tmp_path):
    call = ["evaluate", "--data", str(folder / "data"), "--out", str(tmp_path / "o"), "--config", str(folder / "tiny.yaml")]
    assert runner.invoke(app, call).exit_code == 0
    kept = (tmp_path / "o" / "model" / "genre.json").read_bytes()
    failed = runner.invoke(app, [*call, "--protocol", "irgan"])
    assert failed.exit_code == 1 and "rating" in failed.output
    assert (tmp_path / "o" / "model" / "genre.json").read_bytes() == kept
    assert runner.invoke(app, ["recommend", "--model", str(tmp_path / "o" / "model"), "--interest", "运动鞋"]).exit_code == 0


def test_a_damaged_marker_starts_anew_and_takes_no_strange_model(folder, model, tmp_path):
    import shutil
    from genre_nb.cli import Run
    shutil.copytree(model, tmp_path / "o" / "model")
    for damage in ("", "[]", '{"fingerprint"'):
        (tmp_path / "o" / "running.json").write_text(damage)
        heard = []
        assert not Run(tmp_path / "o", "key", heard.append).has_model and "starting anew" in heard[0], "a model of another run is not this run's"
    run = Run(tmp_path / "o", "key", heard.append)
    assert "going on" in heard[-1] and not run.has_model and run.fitted("model") == "model" and run.has_model and Run(tmp_path / "o", "key", heard.append).has_model


@pytest.mark.parametrize("option", [["--config", "none.yaml"], ["--seed", "9"], ["--positive-rating", "2"], ["--profiles"], ["--drop-duplicates"]])
def test_options_for_fitting_are_refused_beside_a_model(model, tmp_path, option):
    result = runner.invoke(app, ["evaluate", "--model", str(model), "--out", str(tmp_path), *option])
    assert result.exit_code == 2 and "is for fitting" in result.output and option[0] in result.output


@pytest.mark.parametrize("command", [["fit", "--data", "DATA"], ["evaluate", "--data", "DATA"], ["evaluate", "--model", "DATA"], ["demo"]])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_out_that_cannot_be_a_folder_is_known_at_once(folder, tmp_path, monkeypatch, command, place):
    (tmp_path / "file").write_text("mine")
    began = []
    monkeypatch.setattr("genre_nb.cli.read_data", lambda *_, **__: began.append(1))
    monkeypatch.setattr("genre_nb.cli.fit_world", lambda *_: began.append(1))
    monkeypatch.setattr("genre_nb.cli.load_model", lambda *_: began.append(1))
    result = runner.invoke(app, [*(str(folder / "data") if word == "DATA" else word for word in command), "--out", str(tmp_path / place)])
    assert result.exit_code == 1 and "is a file, not a folder; choose another place" in " ".join(result.output.split()) and not began
    assert (tmp_path / "file").read_text() == "mine"


def test_wrong_numbers(folder, tmp_path):
    call = ["fit", "--data", str(folder / "data"), "--out", str(tmp_path / "o")]
    negative = runner.invoke(app, [*call, "--seed", "-1"])
    assert negative.exit_code == 2 and "--seed" in negative.output
    nothing = runner.invoke(app, [*call, "--positive-rating", "nan"])
    assert nothing.exit_code == 1 and "--positive-rating nan" in nothing.output and not (tmp_path / "o").exists()


def write_shop(place, users: str | None = None, top: int = 5):
    place.mkdir()
    (place / "items.csv").write_text("item_id,title\n" + "".join(f"{i},thing {i}\n" for i in range(6)), encoding="utf-8")
    (place / "interactions.csv").write_text("user_id,item_id,rating\n" + "".join(f"{u},{i},{top - (u + i) % 3}\n" for u in range(4) for i in range(6)), encoding="utf-8")
    if users: (place / "users.csv").write_text(users, encoding="utf-8")
    return place


def test_what_counts_as_a_like_is_said(tmp_path):
    from genre_nb.cli import liking, read_data
    heard = []
    data = read_data(write_shop(tmp_path / "stars"), 4.0, heard.append)
    assert heard == ["stars: 4 users, 6 items, 24 interactions; a rating of 4 or more is a like"]
    ten = read_data(write_shop(tmp_path / "ten", top=10), 4.0, heard.append)
    assert heard[-1].endswith("a rating of 4 or more is a like (ratings go up to 10; --positive-rating sets another line)")
    assert liking(read_data(tmp_path / "ten", 8.0, heard.append)) == "a rating of 8 or more is a like"
    assert data.interactions["positive"].sum() == 16 and ten.interactions["positive"].all()
    plain = write_shop(tmp_path / "plain")
    pd.read_csv(plain / "interactions.csv").drop(columns="rating").to_csv(plain / "interactions.csv", index=False)
    assert liking(read_data(plain, 4.0, heard.append)) == "" and heard[-1].endswith("24 interactions")
    with pytest.raises(ValueError, match="--positive-rating 3: the interactions of .*plain have no column rating"): read_data(plain, 3.0, heard.append)


def test_copies_stop_or_are_left_out(tmp_path):
    from genre_nb.cli import read_data
    place, heard = write_shop(tmp_path / "twice"), []
    file = place / "interactions.csv"
    file.write_text(file.read_text() + "0,0,5\n0,0,5\n", encoding="utf-8")
    stopped = runner.invoke(app, ["fit", "--data", str(place), "--out", str(tmp_path / "o")])
    assert stopped.exit_code == 1 and "--drop-duplicates" in stopped.output and not (tmp_path / "o").exists()
    assert len(read_data(place, 4.0, heard.append, drop=True).interactions) == 24 and "2 copies of rows left out" in heard[-1]
    dropped = runner.invoke(app, ["evaluate", "--data", str(place), "--out", str(tmp_path / "o"), "--drop-duplicates", "--contaminate", "0.1"])
    assert "--drop-duplicates" not in dropped.output and "item-cold" in dropped.output, "the option is known; the run stops for another reason"


def test_users_who_are_not_in_the_table_are_counted(tmp_path):
    from genre_nb.cli import read_data
    heard = []
    read_data(write_shop(tmp_path / "zeros", "user_id,profile\n000,a\n001,b\n002,c\n003,d\n"), 4.0, heard.append)
    assert "4 of the 4 users who act are not in the table of users" in heard[-1]
    read_data(write_shop(tmp_path / "all", "user_id,profile\n0,a\n1,b\n2,c\n3,d\n"), 4.0, heard.append)
    assert "table of users" not in heard[-1] and len(heard) == 3


def test_the_report_says_what_counted_as_a_like(tmp_path):
    import numpy as np
    rng, data = np.random.default_rng(0), tmp_path / "data"
    data.mkdir()
    rows = pd.DataFrame({"user_id": np.repeat(np.arange(80), 12), "item_id": np.concatenate([rng.choice(60, 12, replace=False) for _ in range(80)]), "rating": rng.integers(3, 6, 960)})
    rows.to_csv(data / "interactions.csv", index=False)
    pd.DataFrame({"item_id": range(60), "title": [f"red thing number {i}" for i in range(60)]}).to_csv(data / "items.csv", index=False)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    done = runner.invoke(app, ["evaluate", "--data", str(data), "--out", str(tmp_path / "o"), "--config", str(tmp_path / "tiny.yaml")])
    assert done.exit_code == 0 and done.stdout.count("a rating of 4 or more is a like") == 1, done.output
    assert json.loads((tmp_path / "o" / "metrics.json").read_text(encoding="utf-8"))["likes"] == "a rating of 4 or more is a like"


def test_files_of_ids_may_have_a_mark_and_ids_a_comma(tmp_path, monkeypatch):
    from genre_nb.cli import read_ids
    (tmp_path / "ids.txt").write_bytes("\ufeffA1\nB2\n".encode())
    assert read_ids(tmp_path / "ids.txt") == ["A1", "B2"]
    class Fake:
        def rerank(self, who, ids, **_): raise ValueError(f"asked for {ids}")
    monkeypatch.setattr("genre_nb.cli.load_model", lambda _: Fake())
    result = runner.invoke(app, ["rerank", "--model", "m", "--interest", "x", "--items", 'i7, "a, b",i3'])
    assert "asked for ['i7', 'a, b', 'i3']" in result.output


# worlds with context and with rules

def test_the_demo_knows_every_world():
    from genre_nb.cli import DomainName
    from genre_nb.simulation import DOMAINS
    assert tuple(d.value for d in DomainName) == DOMAINS
    wrong = runner.invoke(app, ["demo", "--domain", "cooking"])
    assert wrong.exit_code == 2 and "health" in wrong.output


@pytest.mark.parametrize("domain", ["assistant", "education", "health"])
def test_a_demo_keeps_the_rules_of_its_world(domain, tmp_path, monkeypatch):
    import yaml
    import genre_nb.cli as cli
    from genre_nb.recommender import GenreConfig, GenreRecommender
    monkeypatch.setattr(cli, "demo_config", lambda: GenreConfig.model_validate(yaml.safe_load(TINY) | {"profiles": True}))
    result = runner.invoke(app, ["demo", "--domain", domain, "--users", "150", "--items", "150", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    world, model = World(domain, "zh", 150, 150, 0), GenreRecommender.load(tmp_path / "model")
    assert model.config.context == world.context_fields and (tmp_path / "report.html").exists()
    open_to_all = cli.for_strangers(world)
    assert open_to_all.any() and (open_to_all.all() == (domain == "assistant"))
    _, before, after = cli.answers(model, world.default_interest, open_to_all)
    for table in (before, after):
        assert len(table) and open_to_all[model.data.item_codes(table["item_id"])].all()
    if domain == "education": assert not set(after["item_id"]) & set(world.prerequisites["item_id"])


def test_context_and_allowed_on_the_command_line(tmp_path):
    world = World("assistant", "zh", 150, 150, 0)
    world.dataset().to_folder(tmp_path / "data")
    (tmp_path / "c.yaml").write_text(TINY + f"context: [{', '.join(world.context_fields)}]\n", encoding="utf-8")
    result = runner.invoke(app, ["fit", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "m"), "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.output
    (tmp_path / "open.txt").write_text("i00001\ni00002\n\ni00007\n", encoding="utf-8")
    ask = ["recommend", "--model", str(tmp_path / "m"), "--interest", "开会", "--json"]
    rows = json.loads(runner.invoke(app, [*ask, "--allowed", str(tmp_path / "open.txt")]).stdout)
    assert {r["item_id"] for r in rows} == {"i00001", "i00002", "i00007"}
    fields = [word for name in world.context_fields for word in ("--context", f"{name}=0.5")]
    assert len(json.loads(runner.invoke(app, [*ask, *fields]).stdout)) == 10
    partly = runner.invoke(app, [*ask, "--context", "hour_sin=0.5"])
    assert partly.exit_code == 1 and "'hour_cos' is missing" in partly.output
    assert runner.invoke(app, [*ask, "--context", "hour_sin"]).exit_code == 2
    absent = runner.invoke(app, [*ask, "--allowed", str(tmp_path / "none.txt")])
    assert absent.exit_code == 1 and "none.txt" in absent.output.replace("\n", "")
