"""Says how the features of an evaluation were stored."""

from __future__ import annotations

from pydantic import JsonValue

from speechft_ray.superb.feature_store import FeatureStore


def describe_storage(store: FeatureStore) -> dict[str, JsonValue]:
    """Returns facts about the storage: nothing where all features are exact and encoded once.

    ``features``: the form, its directions if it has a basis, the bytes of a frame, and how many
    utterances are stored and how many are encoded for every batch. ``notes``: sentences.
    """
    form, cache = store.form, store.storage.cache
    is_full = cache is not None and cache.is_disk_full
    if not form.identity and not store.recomputed_count and not is_full:
        return {}
    notes: list[JsonValue] = []
    size_gb = sum(map(store.count_bytes, store.utterances)) / 1e9
    if is_full:
        notes.append(
            "the disk of the feature cache was full before its budget was used up: from there on "
            "features were not stored. Free some of the disk, or lower --cache-gb."
        )
    elif store.recomputed_count:
        notes.append(
            f"{store.recomputed_count} of {store.count} utterances were encoded for every batch: "
            f"their features take {size_gb:.3g} GB, and --cache-gb is "
            f"{(cache.budget_bytes if cache else 0) / 1e9:g}. Raise it, or take a smaller form "
            "(`features: int8` or `compact`)."
        )
    return {
        "features": {
            "form": form.identity.get("form", "exact"),
            "rank": len(form.basis.vectors) if form.basis else None,
            "bytes_per_frame": form.width * form.dtype.itemsize,
            "utterances": store.count,
            "recomputed": store.recomputed_count,
        },
        **({"notes": notes} if notes else {}),
    }
