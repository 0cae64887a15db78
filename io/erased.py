"""Who was erased, as the jobs ask: an ErasedPeople of transforms.suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from itel_cabinet.io.delta import SuppressionList, Suppressions, get_suppressions
from itel_cabinet.io.objects import Objects, ObjectStoreError, ObjectStoreSettings, get_objects
from itel_cabinet.io.worker import OutageError, once_per_process
from itel_cabinet.transforms.photos import Album, album_folder

__all__ = ["Erased", "get_erased"]

_MAX_AGE_SECONDS = 5.0  # of what is known; a commit never misses an entry, however young


@dataclass(frozen=True)
class Erased:
    """See transforms.suppression.ErasedPeople. Thread-safe.

    A process that was killed may have left photos that no row names. Its records are read again, and are found to be
    of one who was erased: then the album goes too.
    """

    suppressions: Suppressions
    outage_seconds: float
    store: Objects | None

    def find(self, events: Sequence[Any]) -> set[int]:
        people = self.suppressions
        people.refresh_patiently(max_age=_MAX_AGE_SECONDS, seconds=self.outage_seconds)
        if not people:
            return set()
        found = {kind: people.find(kind, (getattr(e, name) for e in events)) for kind, name in people.place.ids}
        listed = {
            index
            for index, event in enumerate(events)
            if any(getattr(event, name) in found[kind] for kind, name in people.place.ids)
        }
        if self.store is not None:
            for index in listed:
                self._remove_album(self.store, events[index])
        return listed

    def _remove_album(self, store: Objects, event: Any) -> None:
        folder = album_folder(Album(event.project_id, event.task_id, event.assignment_id, ()))
        try:
            store.delete([f"{folder}/{name}" for name in store.names(folder)])
        except ObjectStoreError as error:
            raise OutageError(str(error)) from None


@once_per_process
def get_erased(place: SuppressionList, outage_seconds: float, store: ObjectStoreSettings | None) -> Erased:
    """This process's one list, as the steps ask it; ``store`` is that of the photos, if there are any."""
    people = get_suppressions(place.uri, place.storage_options, place.ids)
    return Erased(people, outage_seconds, None if store is None else get_objects(store))
