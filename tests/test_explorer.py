"The explorer: by program, in JupyterLab and in voila (the browser tests need Chromium and are skipped without it)."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import nbformat
import numpy as np
import pytest

from genre_nb.adversarial import GanConfig
from genre_nb.explorer import Panel, open_request, rows_html, written_html
from genre_nb.recommender import GenreConfig, GenreRecommender
from genre_nb.reranking import RerankConfig, Weights
from genre_nb.simulation import World

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def shop():
    gan = GanConfig(pretrain_g_steps=6, pretrain_d_steps=6, play_steps=2, batch_size=16, batch_size_g=8, health_size=16, health_every=100)
    rerank = RerankConfig(candidates=40, folds=2, seeds=1, steps=20, tune_users=80)
    return GenreRecommender(GenreConfig(gan=gan, rerank=rerank)).fit(World("ecommerce", "zh", 150, 120, 0).dataset())


def test_zero_weights_give_the_first_stage_back(shop):
    for who in ("运动鞋", shop.data.users["user_id"].iloc[3]):
        opened = open_request(shop, who)
        nothing = opened.table(Weights(behaviour=0.0, judge=0.0, match=0.0), k=10)
        assert nothing["item_id"].tolist() == shop.recommend(who, 10, rerank=False)["item_id"].tolist()
        assert opened.table(k=10)["item_id"].tolist() == shop.recommend(who, 10)["item_id"].tolist()
        assert opened.known == (who != "运动鞋")


@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
def test_parts_add_up_and_nothing_is_lost(shop, diversity):
    opened = open_request(shop, shop.data.users["user_id"].iloc[5])
    table = opened.table(Weights(behaviour=0.5, judge=1.5, match=0.25), diversity)
    np.testing.assert_allclose(table[["prior", "behaviour", "judge", "match"]].sum(axis=1), table["score"], atol=5e-3)
    candidates = [int(code) for code in opened.items[0] if code >= 0]
    assert sorted(table["item_id"]) == sorted(shop.data.items["item_id"].iloc[candidates]), "the same candidates, in another order"
    assert sorted(table["rank before"]) == list(range(1, len(candidates) + 1))


def test_the_panel_follows_its_sliders_and_survives_errors(shop):
    panel = Panel(shop, shop.data.users["user_id"].iloc[5], k=8)
    chosen = panel.list.value
    panel.sliders["diversity"].value = 1.0
    assert panel.list.value != chosen
    panel.back.click()
    assert panel.list.value == chosen
    panel.interest.value = "   "
    assert "empty" in panel.status.value and panel.list.value == chosen
    panel.interest.value = "旅行"
    assert panel.sliders["behaviour"].disabled and panel.opened.asked == "旅行" and len(panel.opened.written) == 3


def test_catalogue_text_is_escaped(shop):
    opened = open_request(shop, "运动鞋", 1)
    assert "<img" not in rows_html(opened.table(k=2).assign(title="<img src=x onerror=alert(1)>"))
    assert "<img" not in written_html(opened.written.assign(description="<img src=x>", nearest_title="<img src=y>"))


def test_without_ipywidgets_the_way_is_told(monkeypatch, shop):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install 'genre_nb\[widgets\]'"): Panel(shop, "运动鞋")


def answers(port: int) -> bool:
    "Does a server listen there?"
    with socket.socket() as s: return s.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def server(arguments: list[str], folder, log):
    "A local server in a folder of its own; yields its port."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = folder / "config" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    places = {name: str(folder / "config") for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    with open(log, "w") as out:
        process = subprocess.Popen([sys.executable, "-m", *arguments, f"--port={port}"], cwd=folder, env={**os.environ, **places}, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            if process.poll() is not None: raise RuntimeError(f"the server stopped: {log.read_text()[-2000:]}")
            if time.monotonic() > deadline: raise RuntimeError(f"no answer on port {port} within two minutes: {log.read_text()[-2000:]}")
            time.sleep(0.25)
        yield port
    finally:
        process.terminate()
        try: process.wait(20)
        except subprocess.TimeoutExpired: process.kill()


@pytest.fixture
def page():
    "A page of headless Chromium."
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM: pytest.skip("needs Chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser.new_page(viewport={"width": 1300, "height": 1100})
        browser.close()


@pytest.fixture
def notebook(shop, tmp_path):
    "A notebook that loads a saved model and shows the explorer."
    shop.save(tmp_path / "model")
    cells = ["from genre_nb import GenreRecommender\nfrom genre_nb.explorer import explorer\nshop = GenreRecommender.load('model')", "explorer(shop, '运动鞋', k=8)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells],
                                    metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(book, tmp_path / "explorer.ipynb")
    return tmp_path


def move_and_see(page) -> tuple[str, str]:
    "Waits for the list, pushes the slider of D by its keys, and waits until the list is another one."
    table = page.locator("table.genre-list")
    table.wait_for(timeout=120_000)
    before = table.inner_text()
    handle = page.locator(".widget-slider", has_text="judge").locator(".noUi-handle")
    handle.focus()
    for _ in range(16): handle.press("ArrowRight")
    page.wait_for_function("text => document.querySelector('table.genre-list').innerText !== text", arg=before, timeout=60_000)
    return before, table.inner_text()


def test_in_jupyterlab_the_list_moves_with_the_slider(page, notebook):
    arguments = ["jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password=",
                 "--ServerApp.disable_check_xsrf=True", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with server(arguments, notebook, notebook / "lab.log") as port:
        page.goto(f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
        page.wait_for_timeout(3000)    # the kernel may still be connecting although it says idle
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        before, after = move_and_see(page)
        errors = page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]').count()
    assert before != after and errors == 0 and "title" in before and len(after.splitlines()) >= 8


def test_in_voila_the_list_moves_with_the_slider(page, notebook):
    pytest.importorskip("voila")
    with server(["voila", "explorer.ipynb", "--no-browser", "--Voila.ip=127.0.0.1"], notebook, notebook / "voila.log") as port:
        page.goto(f"http://127.0.0.1:{port}/", timeout=180_000)
        before, after = move_and_see(page)
    assert before != after and len(after.splitlines()) >= 8
