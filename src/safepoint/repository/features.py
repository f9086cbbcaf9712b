"""Whether this version may write into a repository: what later versions add stands in `features/`."""

from __future__ import annotations

from safepoint.errors import UnsupportedError
from safepoint.repository.schema import KNOWN_FEATURES
from safepoint.store import Store


def check_features(store: Store) -> None:
    """Whether this version may write here.

    Raises:
        UnsupportedError: it may only read.
    """
    unknown = sorted({name.removesuffix(".json") for name in store.list("features")} - KNOWN_FEATURES)
    if unknown:
        raise UnsupportedError(
            f"{store.location} uses features that this version does not know: {', '.join(unknown)}",
            hint="update safepoint; reading is still possible",
        )
