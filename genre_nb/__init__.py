"""GENRE: generative adversarial networks for re-ranking of items. Names below are imported when first used."""

__version__ = "0.1.0"

_HOMES = {"DataError": "datasets", "RecDataset": "datasets", "Requests": "datasets", "load_public": "datasets", "World": "simulation",
          "GenreConfig": "recommender", "GenreRecommender": "recommender", "register": "recommender"}
__all__ = [*_HOMES]


def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f"module 'genre_nb' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
