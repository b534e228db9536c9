"""What would spoil a page about the simulated worlds: a text that cannot be read back, a log that breaks its own equations."""
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre_nb.simulation import (
    CONDITIONS, DAYS, DOMAINS, HOURS, LANGUAGES, START, Grammar, Parsed, Parser, World, count_descriptions, draw_facts,
    english_article, find_attributes, load_domain, realise, sigmoid, visible_taste)

PAIRS = list(product(DOMAINS, LANGUAGES))
GRAMMARS = {pair: Grammar(*pair) for pair in PAIRS}
PARSERS = {pair: Parser(grammar) for pair, grammar in GRAMMARS.items()}


@pytest.fixture(scope="module")
def world():
    return World("ecommerce", "zh", n_users=1500, n_items=1200, seed=3)


@pytest.fixture(scope="module")
def small():
    return {(d, l): World(d, l, n_users=60, n_items=150, seed=1) for d, l in PAIRS}


@st.composite
def item_facts(draw, domain):
    d = load_domain(domain)
    category = draw(st.sampled_from(list(d.values["category"])))
    facts = {"category": category, d.sub: draw(st.sampled_from(d.subs(category)))}
    return facts | {a: draw(st.sampled_from(fits)) for a, fits in d.allowed[category].items()}


# ---- words and grammar

@pytest.mark.parametrize("domain", DOMAINS)
def test_tables_are_complete(domain):
    d = load_domain(domain)
    assert len(d.values["category"]) >= 12
    assert all(len(d.subs(c)) >= 3 for c in d.values["category"])
    assert set(d.allowed) == set(d.values["category"])
    for category, fits in d.allowed.items():
        assert list(fits) == [a for a in d.attributes if a not in ("category", d.sub)]
        for attribute, values in fits.items():
            assert values and set(values) <= set(d.values[attribute]), (category, attribute)
    for values in d.values.values():
        for words in values.values(): assert words.zh and words.en
    assert all(v.measure for v in d.values[d.head].values())


@pytest.mark.parametrize("domain,language", PAIRS)
def test_no_word_has_two_meanings(domain, language):
    d = load_domain(domain)
    nouns = d.values["category"] | d.values[d.sub]
    for attribute, values in (d.values | {"noun": nouns}).items():
        seen = {}
        for value, words in values.items():
            for form in {*words.forms(language), *words.forms(language, own=True)}:
                assert seen.setdefault(form.lower(), value) == value, (attribute, form)


@pytest.mark.parametrize("domain,language", PAIRS)
def test_a_million_descriptions(domain, language):
    assert count_descriptions(GRAMMARS[domain, language]) >= 1_000_000


def test_count_is_exact_for_a_tiny_grammar():
    grammar = Grammar("ecommerce", "zh")
    grammar.plans = [[("这{m}{noun}{function}。",)], [], []]
    d = grammar.domain
    texts = set()
    for category in d.values["category"]:
        for attribute, noun in [("category", category), *((d.sub, s) for s in d.subs(category))]:
            for form in d.values[attribute][noun].zh:
                for function in d.allowed[category]["function"]:
                    texts |= {(category, form, word) for word in d.values["function"][function].zh}
    assert count_descriptions(grammar) == len(texts)


@pytest.mark.parametrize("domain,language", PAIRS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_round_trip(domain, language, data, seed):
    facts = data.draw(item_facts(domain))
    text, told = GRAMMARS[domain, language].describe(facts, np.random.default_rng(seed))
    assert told.items() <= facts.items() and "category" in told
    assert PARSERS[domain, language](text) == Parsed(told, True)


@pytest.mark.parametrize("domain,language", PAIRS)
def test_every_template_can_be_read_back(domain, language):
    rng, grammar, parser = np.random.default_rng(0), GRAMMARS[domain, language], PARSERS[domain, language]
    d = grammar.domain
    category = next(iter(d.values["category"]))
    facts = {"category": category, d.sub: d.subs(category)[0]} | {a: fits[0] for a, fits in d.allowed[category].items()}
    for kind in ("title", "opening"):
        for template in grammar.templates[kind]:
            text, told = grammar.say((template,), facts, rng)
            assert parser(text) == Parsed(told, True), text
    for kind in ("detail", "closing"):
        for template in grammar.templates[kind]:
            plan = next(p for p in grammar.plans[1] if p[1] == template)
            text, told = grammar.say(plan, facts, rng)
            assert parser(text) == Parsed(told, True), text


@pytest.mark.parametrize("domain,language", PAIRS)
@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=60))
def test_parser_survives_any_text(domain, language, text):
    parsed = PARSERS[domain, language](text)
    assert not parsed.grammatical and parsed.problem == "form"
    assert set(parsed.attributes) <= set(load_domain(domain).attributes)


@pytest.mark.parametrize("domain,language", PAIRS)
def test_damage_is_rejected(domain, language, small):
    rng, world = np.random.default_rng(0), small[domain, language]
    glue = "" if language == "zh" else " "
    pieces = [list(t) if language == "zh" else t.split(" ") for t in world.items["description"]]
    shuffled = [glue.join(p[j] for j in rng.permutation(len(p))) for p in pieces]
    truncated = [glue.join(p[:-1]) for p in pieces]
    spliced = [glue.join(a[: len(a) // 2] + b[len(b) // 2:]) for a, b in zip(pieces, pieces[1:])]
    originals = set(world.items["description"])
    rejected = [np.mean([not world.parse(t).grammatical for t in texts if t not in originals]) for texts in (shuffled, truncated, spliced)]
    assert rejected[0] > .98 and rejected[1] == 1 and rejected[2] > .9


@pytest.mark.parametrize("language,text,problem", [
    ("zh", "这双运动鞋透气，外观简约。", ""),
    ("zh", "这件运动鞋透气，外观简约。", "form"),                                             # measure word
    ("zh", "这双运动鞋降噪出色，外观简约。", "selection"),
    ("zh", "这双运动鞋透气，外观简约。它透气，春季用着也舒心。", "repetition"),
    ("en", "These running shoes have a bold look and are breathable.", ""),
    ("en", "These running shoes has a bold look and are breathable.", "form"),                # number
    ("en", "These running shoes have an bold look and are breathable.", "form"),              # article
    ("en", "these running shoes have a bold look and are breathable.", "form"),               # capital
    ("en", "This chair is made of walnut and is ideal for studying. They are adjustable and easy to live with.", "form"),
    ("en", "It is adjustable and easy to live with.", "form"),                                # a detail cannot open
    ("en", "", "form"),
])
def test_agreement(language, text, problem):
    parsed = PARSERS["ecommerce", language](text)
    assert (parsed.grammatical, parsed.problem) == (not problem, problem)


def test_articles():
    words = {"elegant": "an", "useful": "a", "hour": "an", "one-off": "a", "uplifting": "an", "honest": "an", "European": "a", "T-shirt": "a"}
    assert {w: english_article(w) for w in words} == words


def test_realise_agrees_with_the_head():
    shoes, chair = (load_domain("ecommerce").values["category"][c] for c in ("running_shoes", "chair"))
    assert realise("{it} {is} {function}.", {"function": "warm"}, shoes, "en") == "They are warm."
    assert realise("{it} {is} {function}.", {"function": "warm"}, chair, "en") == "It is warm."
    assert realise("一{m}{noun}。", {"noun": "椅子"}, chair, "zh") == "一把椅子。"


# ---- the users' words

@pytest.mark.parametrize("domain,text,expected", [
    ("ecommerce", "运动鞋", {"category": "running_shoes"}),
    ("ecommerce", "running shoes", {"category": "running_shoes"}),
    ("ecommerce", "想买一双透气的跑鞋", {"category": "running_shoes", "function": "breathable"}),
    ("ecommerce", "light shoes for my morning run", {"function": "lightweight", "category": "running_shoes", "place": "morning_run"}),
    ("ecommerce", "越野跑鞋", {"category": "running_shoes", "style": "trail_shoes"}),
    ("ecommerce", "backpacks without leather", {"category": "backpack"}),
    ("ecommerce", "不要真皮的背包", {"category": "backpack"}),
    ("ecommerce", "想买T恤，另外也想看看越野跑鞋", {"category": "t_shirt"}),
    ("social", "旅行", {"category": "travel"}),
    ("social", "travel", {"category": "travel"}),
    ("social", "stunned", {}),
    ("news", "科技", {"category": "technology"}),
    ("news", "chatbots", {"topic": "ai", "category": "technology"}),
    ("assistant", "提醒我下班后买菜", {"form": "reminder", "time": "evening", "category": "shopping", "topic": "groceries"}),
    ("assistant", "a reminder to take my pills in the time before bed", {"form": "reminder", "category": "medicine", "time": "night"}),
    ("education", "零基础学Python", {"level": "beginner", "category": "programming", "topic": "python"}),
    ("education", "an advanced course on statistics", {"level": "advanced", "category": "mathematics", "topic": "probability"}),
    ("health", "晚上能做的瑜伽，不要有跳跃动作", {"time": "evening", "category": "yoga"}),
    ("health", "pancakes without peanuts", {"category": "breakfasts", "topic": "pancakes"}),
])
def test_wanted(domain, text, expected):
    assert find_attributes(text, domain) == expected


@pytest.mark.parametrize("domain,language", PAIRS)
def test_profiles_name_what_is_liked(domain, language, small):
    world = small[domain, language]
    assert world.wanted(world.default_interest)["category"] in world.grammar.domain.values["category"]
    profiles = world.users["profile"]
    assert .75 < (profiles != "").mean() < 1
    for user, profile in enumerate(profiles):
        if profile: assert world.wanted(profile)["category"] == world.interest_of(user)["category"]


# ---- facts and worlds

@pytest.mark.parametrize("domain", DOMAINS)
def test_languages_share_the_facts(domain, small):
    zh, en = small[domain, "zh"], small[domain, "en"]
    pd.testing.assert_frame_equal(zh.attributes, en.attributes)
    pd.testing.assert_frame_equal(zh.interactions, en.interactions)
    assert np.array_equal(zh.true_relevance(), en.true_relevance())
    assert all(zh.interest_of(u) == en.interest_of(u) for u in range(zh.n_users))
    assert not (zh.items["title"] == en.items["title"]).any()
    assert zh.items["description"].str.contains("[一-鿿]").all() and not en.items["description"].str.contains("[一-鿿]").any()


def test_seeds():
    a, b, c = World(n_users=30, n_items=60, seed=5), World(n_users=30, n_items=60, seed=5), World(n_users=30, n_items=60, seed=6)
    pd.testing.assert_frame_equal(a.interactions, b.interactions)
    pd.testing.assert_frame_equal(a.items, b.items)
    pd.testing.assert_frame_equal(a.users, b.users)
    assert not a.attributes.equals(c.attributes)


@pytest.mark.parametrize("domain,language", PAIRS)
def test_texts_tell_the_truth(domain, language, small):
    world = small[domain, language]
    truth = world.attributes.to_dict("records")
    for i, (title, text, told) in enumerate(zip(world.items["title"], world.items["description"], world.mentioned)):
        assert world.parse(text) == Parsed(told, True)
        assert told.items() <= truth[i].items()
        assert world.parse(title).grammatical and world.parse(title).attributes.items() <= truth[i].items()
    other = world.describe_item(0, np.random.default_rng(0))
    assert world.parse(other).grammatical and world.parse(other).attributes.items() <= truth[0].items()


def test_taste_is_the_formula():
    domain = load_domain("news")
    facts = draw_facts(domain, 30, 40, np.random.default_rng(0))
    expected = np.zeros((30, 40))
    for u, i, m in product(range(30), range(40), range(4)):
        match, care = facts.codes[i] == facts.interests[u, m], facts.care[u, m]
        score = care[0] * match[0] + (1 if match[0] else .3) * (care[1:] * match[1:]).sum()
        expected[u, i] = max(expected[u, i], facts.strength[u, m] * score)
    np.testing.assert_allclose(visible_taste(facts, domain), expected, atol=1e-5)


def test_sigmoid_is_stable():
    with np.errstate(all="raise"): assert sigmoid(np.array([-1e4, 0., 1e4])).tolist() == [0., .5, 1.]


# ---- the log obeys its equations

def test_log_is_a_log(world):
    log = world.interactions
    day = (log["timestamp"] - START) // 86_400
    assert log["timestamp"].is_monotonic_increasing and day.between(0, DAYS - 1).all()
    assert (day >= world.facts.born[log["item"]]).all() and (day >= world.facts.joined[log["user"]]).all()
    assert not log.duplicated(["session", "item"]).any() and not log.duplicated(["session", "position"]).any()
    clicks = log[~log["shown"]]
    assert not clicks.duplicated(["user", "item"]).any()
    first = clicks.groupby(["user", "item"])["timestamp"].min()
    later = log.merge(first.rename("clicked").reset_index(), on=["user", "item"])
    assert (later["timestamp"] <= later["clicked"]).all()                     # never shown again after the click
    assert log["propensity"].between(0, 1, inclusive="right").all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_statistics_are_those_of_a_service(domain):
    world = World(domain, n_users=800, n_items=800)
    log = world.interactions
    clicks = (~log["shown"]).groupby(log["user"]).sum()
    per_item = np.sort(np.bincount(log["item"][~log["shown"]], minlength=800))[::-1]
    assert .05 < (~log["shown"]).mean() < .15 and 8 < clicks.mean() < 40
    assert .4 < per_item[:160].sum() / per_item.sum() < .85


def test_position_bias_and_calibration(world):
    log, c = world.interactions, world.model.choice
    day = ((log["timestamp"] - START) // 86_400).to_numpy()
    v = world.model.utility[log["user"], log["item"]] + world.model.recency(log["item"].to_numpy(), day)
    wanted, click = c.accident + (1 - c.accident) * sigmoid(v), ~log["shown"]
    by = pd.DataFrame({"wanted": wanted, "click": click}).groupby(log["position"]).sum()
    error = np.sqrt(by["click"]) / by["wanted"]
    assert (np.abs(by["click"] / by["wanted"] - world.model.examination(c.page)) < 4.5 * error).all()
    p = log["position"] ** -c.position * wanted
    bins = pd.DataFrame({"p": p, "click": click}).groupby(pd.qcut(p, 15, labels=False)).agg({"p": "mean", "click": ["mean", "size"]})
    assert (np.abs(bins["click", "mean"] - bins["p", "mean"]) < 4.5 * np.sqrt(bins["p", "mean"] / bins["click", "size"])).all()


def test_propensities_count_what_was_free(world):
    log = world.interactions
    first = log[log["position"] == 1]
    day = ((first["timestamp"] - START) // 86_400).to_numpy()
    exist = np.searchsorted(np.sort(world.facts.born), day, side="right")
    before = (log.assign(click=~log["shown"]).groupby("user")["click"].cumsum() - ~log["shown"])[first.index]
    inverse = 1 / first["propensity"]
    assert abs(inverse.mean() - (exist - before).mean()) < 4 * inverse.std() / np.sqrt(len(first))


def test_dataset(world):
    data = world.dataset()
    rows = data.interactions
    assert data.language == "zh" and data.n_users == 1500 and data.n_items == 1200
    assert {"shown", "position", "timestamp", "propensity"} <= set(rows)
    assert (rows["positive"] == ~rows["shown"]).all()
    assert rows.loc[rows["split"] == "train", "timestamp"].max() <= rows.loc[rows["split"] == "valid", "timestamp"].min()
    assert rows.loc[rows["split"] == "valid", "timestamp"].max() <= rows.loc[rows["split"] == "test", "timestamp"].min()
    train, test = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
    assert set(test["item"]) - set(train["item"]) and set(test["user"]) - set(train["user"])          # cold items and users
    latent = {"quality", "fame", "style", "function", "taste"}
    assert not latent & ({*data.items} | {*data.users} | {*rows})                                     # the truth stays out


# ---- live tests

def test_respond_follows_the_model(world):
    rng, users = np.random.default_rng(0), np.arange(world.n_users)
    best = np.argsort(-world.true_relevance(), axis=1)[:, :8]
    p = world.model.click_probability(world.model.attraction(users, best))
    draws = [world.respond(users, best, rng) for _ in range(20)]
    rate = np.mean([clicks.mean(0) for clicks, _ in draws], axis=0)
    np.testing.assert_allclose(rate, p.mean(0), atol=4.5 * .5 / np.sqrt(20 * len(users)))
    back, clicks = np.concatenate([b for _, b in draws]), np.concatenate([c.sum(1) for c, _ in draws])
    assert back[clicks >= 4].mean() > back[clicks <= 1].mean() + .1                                   # joy brings people back


def test_oracle_beats_taste_beats_chance(world):
    rng, users = np.random.default_rng(0), np.arange(world.n_users)
    relevance = world.true_relevance()
    assert relevance.shape == world.taste.shape == (1500, 1200)
    np.testing.assert_allclose(world.true_relevance(users[5:9]), relevance[5:9])
    scores = {"oracle": relevance, "taste": world.taste, "chance": rng.random(relevance.shape)}
    clicks = {n: world.respond(users, np.argsort(-s, axis=1)[:, :10], rng)[0].sum(1).mean() for n, s in scores.items()}
    assert clicks["oracle"] > 1.1 * clicks["taste"] and clicks["taste"] > 2 * clicks["chance"]


def test_respond_refuses_nonsense(world):
    rng = np.random.default_rng(0)
    clicks, back = world.respond(np.array([0, 1]), np.array([[-1, -1], [-1, 3]]), rng)
    assert clicks.shape == (2, 2) and back.shape == (2,) and not clicks[0].any() and not clicks[1, 0]
    empty, _ = world.respond(np.zeros(0, int), np.zeros((0, 5), int), rng)
    assert empty.shape == (0, 5)
    for users, lists, message in [([0], [[1200]], "0…1199"), ([0], [[-2]], "−1 for an empty place"), ([1500], [[0]], "0…1499"), ([0, 1], [[0]], "(B, K)")]:
        with pytest.raises(ValueError, match=re.escape(message)): world.respond(np.array(users), np.array(lists), rng)


@pytest.mark.parametrize("wrong,message", [
    ({"domain": "cooking"}, "choose one of ecommerce, social, news"), ({"language": "fr"}, "choose one of zh, en"), ({"n_items": 3}, "at least 2 users and 20 items")])
def test_wrong_worlds_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message): World(**wrong)


@pytest.mark.parametrize("domain", DOMAINS)
def test_tiny_worlds_work(domain):
    world = World(domain, "en", n_users=10, n_items=20)
    assert len(world.interactions) > 0 and world.dataset().n_items == 20


# ---- moments and constraints

def slow_allowed(world, user, done):
    "The rules, one item at a time."
    out, context, rows = [], world.users.iloc[user], world.attributes.to_dict("records")
    for row in rows:
        if world.domain == "health":
            out.append(not any(context[c] and row["caution"] in barred for c, barred in CONDITIONS.items()))
        elif world.domain == "education":
            levels = list(load_domain("education").values["level"])
            step = levels.index(row["level"]) - 1
            for scope in ("topic", "category"):
                opens = {j for j, other in enumerate(rows)
                         if step >= 0 and other["level"] == levels[step] and other[scope] == row[scope]}
                if opens: break
            out.append(not opens or bool(opens & done))
        else: out.append(True)
    return out


@pytest.mark.parametrize("domain", DOMAINS)
def test_allowed_is_the_rule(domain, small):
    world = small[domain, "zh"]
    mask = world.allowed()
    assert mask.shape == (60, 150) and mask.dtype == bool
    clicks = world.interactions[~world.interactions["shown"]]
    for u in range(0, 60, 20):
        assert mask[u].tolist() == slow_allowed(world, u, set(clicks.loc[clicks["user"] == u, "item"]))
    assert mask.all() == (domain not in ("education", "health"))
    np.testing.assert_array_equal(world.allowed([5, 3]), mask[[5, 3]])
    assert np.array_equal(small[domain, "en"].allowed(), mask)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_log_keeps_the_rules(domain, small):
    world = small[domain, "zh"]
    if domain == "education":
        done, opened = {}, World("education", n_users=60, n_items=150, seed=1).rules
        for row in world.interactions.sort_values("session", kind="stable").itertuples():
            needs = set(opened.needs[row.item].indices)
            earlier = {i for i, session in done.get(row.user, {}).items() if session < row.session}
            assert not needs or needs & earlier
            if not row.shown: done.setdefault(row.user, {})[row.item] = row.session
    else: assert world.allowed()[world.interactions["user"], world.interactions["item"]].all()


def test_doors_open_with_the_history(small):
    world = small["education", "en"]
    nothing = world.allowed(np.arange(3), np.zeros((3, 150)))
    assert (nothing == world.rules.free).all() and not nothing.all()
    item = int(np.flatnonzero(~world.rules.free)[0])
    history = np.zeros((1, 150))
    history[0, world.rules.needs[item].indices[-1]] = 1                       # one of them is enough
    assert world.allowed([0], history)[0, item]
    table = world.prerequisites
    assert list(table) == ["item_id", "needs"] and len(table) == world.rules.needs.nnz and set(table["item_id"]) == set(world.items["item_id"][~world.rules.free])
    order = world.learning_order(item)
    done = np.zeros((1, 150))
    for step in order:
        assert world.allowed([0], done)[0, step]
        done[0, step] = 1
    assert order[-1] == item
    assert small["news", "en"].prerequisites.empty and small["news", "en"].learning_order(7) == [7]


def test_conditions_and_moments_are_numeric_columns_of_users(small):
    clinic, assistant = small["health", "zh"], small["assistant", "zh"]
    assert clinic.context_fields == tuple(CONDITIONS) and small["social", "zh"].context_fields == ()
    assert set(clinic.users[list(CONDITIONS)].to_numpy().ravel()) == {0., 1.}
    assert all("caution" not in clinic.interest_of(u, m) for u in range(60) for m in range(4))
    asked = assistant.dataset().requests(np.array([4, 2]), context=assistant.context_fields)
    np.testing.assert_allclose(asked.context, assistant.users[list(assistant.context_fields)].to_numpy()[[4, 2]], atol=1e-6)
    for u in range(60):
        wish, row = assistant.interest_of(u), assistant.users.iloc[u]
        hour = np.arctan2(row["hour_sin"], row["hour_cos"]) * 12 / np.pi % 24
        low, high = HOURS[wish["time"]]
        assert low - 1e-6 <= hour < high + 1e-6 and row[f"at_{wish['place']}"] == 1 == row.filter(like="at_").sum()
    hours = assistant.interactions["timestamp"] % 86_400 / 3600
    assert np.abs(hours - assistant.facts.hour[assistant.interactions["user"]]).max() < .25


def test_what_fits_the_moment_is_clicked_more():
    world = World("assistant", "zh", n_users=600, n_items=600, seed=2)
    log = world.interactions
    fits = sum((world.attributes[a].to_numpy()[log["item"]] == np.array([world.interest_of(u)[a] for u in range(600)])[log["user"]]).astype(int) for a in ("time", "place"))
    rate = (~log["shown"]).groupby(fits).mean()
    assert rate[2] > rate[1] > rate[0]


def test_cautions_make_sense_for_their_category():
    clinic = load_domain("health")
    assert {c for barred in CONDITIONS.values() for c in barred} <= set(clinic.values["caution"])
    for category in clinic.values["category"]:
        assert "shellfish" not in clinic.allowed[category]["caution"] or category in ("mains", "salads")
        for barred in CONDITIONS.values():                                    # nobody is barred from a whole category
            assert set(clinic.allowed[category]["caution"]) - set(barred)


def test_allowed_refuses_nonsense(small):
    with pytest.raises(ValueError, match="pass the rows of these users"): small["health", "zh"].allowed([0, 1], np.zeros((1, 150)))
    with pytest.raises(ValueError, match="0…59"): small["health", "zh"].allowed([60])
    with pytest.raises(ValueError, match="0…149"): small["education", "zh"].learning_order(150)
