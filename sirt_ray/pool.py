"""What the cells of a study share, where several of them run at once."""

from collections.abc import Mapping

from sirt_ray.artifacts.locks import in_turn
from sirt_ray.artifacts.store import Artifact, Build, Store


class SharedStore(Store):
    """A store whose artifacts are each built by the first driver that comes to them. The others
    wait for it, and build what it could not."""

    def once(self, name: str, inputs: Mapping[str, object], build: Build) -> Artifact:
        found = self.look(name, inputs)
        if found.record is not None and not found.changed:
            return super().once(name, inputs, build)
        found.home.parent.mkdir(parents=True, exist_ok=True)
        lock = found.home.with_name(f".{found.home.name}.lock")
        with in_turn(lock, lambda: self._tell("awaited", name)):
            return super().once(name, inputs, build)
