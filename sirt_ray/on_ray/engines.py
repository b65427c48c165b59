"""Which engines are up: started when first needed, given new weights while they run, stopped when
the trainer needs their place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ray

from sirt_ray.config import JobConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray import belongings, needs
from sirt_ray.on_ray.endpoint_engine import endpoint_engine, endpoint_resources
from sirt_ray.on_ray.placement import on_gpu
from sirt_ray.on_ray.serving import ModelServer
from sirt_ray.quickstart import assets
from sirt_ray.resources import EngineConfig
from sirt_ray.training import quantization

Role = Literal["teacher", "student"]


class Engines:
    """The teacher's and the student's server of one run."""

    def __init__(self, job: JobConfig, run_dir: Path, say: Callable[[str], None]) -> None:
        self._job = job
        self._run_dir = run_dir
        self._say = say
        self._up: dict[Role, ModelServer] = {}

    def check_cluster(self) -> None:
        """Raise one ResourceError for everything that the cluster can never give."""
        roles: list[Role] = ["teacher", "student"] if self._job.teacher.answers else ["student"]
        needs.check_resources(
            *(needs.of_engine(role, self._resources(role)) for role in roles),
            needs.of_trainer(self._job.resources.trainer),
        )
        if self._job.quantizes:
            quantization.check(needs.gpus_per_worker(self._job.resources.trainer) > 0)

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
        if server.policy != policy:
            server.load(policy)
        return server

    def make_room_for_training(self) -> None:
        """Stop the engines if the trainer does not fit beside them, or if they shall go when idle;
        a later stage starts them."""
        self.stop("teacher")
        wanted = needs.of_trainer(self._job.resources.trainer)
        free = ray.available_resources()
        fits = all(
            free.get(name, 0.0) >= sum(bundle.get(name, 0.0) for bundle in wanted.bundles)
            for name in ("CPU", "GPU")
        )
        if not fits or self._job.resources.student.min_replicas == 0:
            self.stop("student")

    def hand_over(self, following: "Engines") -> "Engines":
        """Those of a job that follows on the same cluster. A student's engine that it would start
        in the same way goes on running and gets its weights when they are needed; all others are
        stopped."""
        jobs = (self._job, following._job)
        trained = [c for job in jobs for c in (job.tune, job.refine, job.refine.of_round(2))]
        student = following._resources("student")
        same = (
            self._job.student == following._job.student
            and self._resources("student") == student
            # How many calls are worth another replica depends on the samples in each.
            and (
                student.max_replicas == 1
                or self._samples_per_question("student")
                == following._samples_per_question("student")
            )
            # An adapter goes by its round's name in a running engine, and rounds have the same.
            and not any(config.lora for config in trained)
        )
        if same and "student" in self._up:
            following._up["student"] = self._up.pop("student")
        self.close()
        return following

    def stop(self, role: Role) -> None:
        server = self._up.pop(role, None)
        if server is not None:
            server.stop()

    def close(self) -> None:
        for role in list(self._up):
            self.stop(role)

    def _deploy(self, role: Role, policy: Policy) -> ModelServer:
        endpoint = endpoint_engine(self._job, self._run_dir) if role == "teacher" else None
        return ModelServer.deploy(
            role,
            replace(policy, path=str(assets.resolve(policy.path))),
            self._resources(role),
            run=belongings.run_id(f"{self._job.output}/{self._job.name}"),
            pointers=self._run_dir / "serving",
            samples_per_question=self._samples_per_question(role),
            serving=endpoint,
        )

    def _samples_per_question(self, role: Role) -> int:
        if role == "teacher":
            return self._job.demonstrations.samples_per_question
        refined = [self._job.refine.of_round(round) for round in (1, 2)]
        return max(refine.num_cot + refine.num_plain for refine in refined)

    def _resources(self, role: Role) -> EngineConfig:
        """What each engine of the role gets of the cluster."""
        endpoint = self._job.teacher.endpoint
        if role == "student":
            return self._job.resources.student
        if endpoint is None:
            return self._job.resources.teacher
        return endpoint_resources(endpoint, self._samples_per_question(role))

    def _fits(self, role: Role) -> bool:
        """Whether the role's engines and, after them, the first training find free resources."""
        engine = self._resources(role)
        free = ray.available_resources()
        return free.get("CPU", 0) >= engine.num_cpus * engine.max_replicas + 1 and (
            not on_gpu(engine) or free.get("GPU", 0) > engine.tensor_parallel_size
        )
