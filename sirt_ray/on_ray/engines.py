"""Which engines are up: started when first needed, given new weights while they run, stopped when
the trainer needs their place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ray

from sirt_ray.config import JobConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray.serving import ModelServer
from sirt_ray.quickstart import assets

Role = Literal["teacher", "student"]


class Engines:
    """The teacher's and the student's server of one run."""

    def __init__(self, job: JobConfig, pointers: Path, say: Callable[[str], None]) -> None:
        self._job = job
        self._pointers = pointers
        self._say = say
        self._up: dict[Role, ModelServer] = {}

    def expect(self, role: Role, policy: Policy) -> None:
        """Begin to start an engine that will be needed soon, where there is room for it."""
        if role not in self._up and self._fits(role):
            self._up[role] = self._deploy(role, policy)

    def serve(self, role: Role, policy: Policy) -> ModelServer:
        """The role's engine with the weights of `policy`, ready to answer.

        The first call for the student ends the teacher, which has no stage after it.
        """
        if role == "student":
            self.stop("teacher")
        policy = replace(policy, path=str(assets.resolve(policy.path)))
        if role not in self._up:
            self._up[role] = self._deploy(role, policy)
        server = self._up[role]
        server.wait_until_ready(self._say)
        if server.version != policy.version:
            server.load(policy)
        return server

    def make_room_for_training(self) -> None:
        """Stop the engines if the trainer does not fit beside them; a later stage starts them."""
        self.stop("teacher")
        trainer = self._job.resources.trainer
        gpus = trainer.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        free = ray.available_resources()
        fits = (
            free.get("CPU", 0) >= trainer.num_workers * trainer.cpus_per_worker
            and free.get("GPU", 0) >= trainer.num_workers * gpus
        )
        if not fits:
            self.stop("student")

    def stop(self, role: Role) -> None:
        server = self._up.pop(role, None)
        if server is not None:
            server.stop()

    def close(self) -> None:
        for role in list(self._up):
            self.stop(role)

    def _deploy(self, role: Role, policy: Policy) -> ModelServer:
        resources, refine = self._job.resources, self._job.refine
        return ModelServer.deploy(
            role,
            replace(policy, path=str(assets.resolve(policy.path))),
            resources.teacher if role == "teacher" else resources.student,
            run=self._job.name,
            pointers=self._pointers,
            samples_per_question=(
                self._job.demonstrations.samples_per_question
                if role == "teacher"
                else refine.num_cot + refine.num_plain
            ),
        )

    def _fits(self, role: Role) -> bool:
        """Whether the role's engines and, after them, the first training find free resources."""
        resources = self._job.resources
        engine = resources.teacher if role == "teacher" else resources.student
        free = ray.available_resources()
        return free.get("CPU", 0) >= engine.num_cpus * engine.max_replicas + 1 and (
            free.get("GPU", 0) == 0 or free["GPU"] > engine.tensor_parallel_size
        )
