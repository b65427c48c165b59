"""The engines that are up: started when first needed, given new weights while they run, and stopped
when the trainer needs their resources."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import ray

from sirt_ray.config.job import JobConfig
from sirt_ray.config.resources import EngineConfig
from sirt_ray.core.interfaces import Policy
from sirt_ray.on_ray import cluster, serve_apps
from sirt_ray.on_ray.cluster import on_gpu
from sirt_ray.on_ray.engine.api import endpoint_engine, endpoint_resources
from sirt_ray.on_ray.sampling.sampler import Sampler
from sirt_ray.planning.resources import ResourceRequest, can_colocate, can_prestart, fits, subtract
from sirt_ray.quickstart import assets
from sirt_ray.training.model_errors import check_quantization

Role = Literal["teacher", "student"]


class Engines:
    """The teacher's and the student's samplers of one run."""

    def __init__(self, job: JobConfig, run_dir: Path) -> None:
        self._job = job
        self._run_dir = run_dir
        self._up: dict[Role, Sampler] = {}

    def check_cluster(self) -> None:
        """Raise one ResourceError for everything that the cluster can never provide."""
        roles: list[Role] = ["teacher", "student"] if self._job.teacher.answers else ["student"]
        cluster.check_resources(
            *(cluster.of_engine(role, self._resources(role)) for role in roles),
            cluster.of_trainer(self._job.resources.trainer),
        )
        if self._job.quantizes:
            check_quantization(cluster.gpus_per_worker(self._job.resources.trainer) > 0)

    def start(self, teacher: Policy, student: Policy) -> None:
        """Start the teacher, which is sampled first, and at the same time, where both fit, the
        student, which will be needed soon: a start is mostly waiting for imports."""
        free = ray.available_resources()
        if "teacher" not in self._up:
            needed = self._free_resources_for_teacher()
            self._up["teacher"] = self._deploy("teacher", teacher)
            # Ray lists the resources as free until the replicas are placed.
            free = subtract(free, needed)
        engine = self._resources("student")
        if "student" not in self._up and can_prestart(engine, on_gpu(engine), free):
            self._up["student"] = self._deploy("student", student)

    def serve(self, role: Role, policy: Policy) -> Sampler:
        """Return the role's sampler, with engines that are ready and have the weights of `policy`.

        The first call for the student stops the teacher, which has no stage after it.
        """
        if role == "student":
            self.stop("teacher")
        policy = replace(policy, path=str(assets.resolve(policy.path)))
        if role not in self._up:
            if role == "teacher":
                self._free_resources_for_teacher()
            self._up[role] = self._deploy(role, policy)
        sampler = self._up[role]
        sampler.server.wait_until_ready()
        if sampler.server.policy != policy:
            sampler.server.load(policy)
        return sampler

    def free_resources_for_training(self) -> None:
        """Stop the engines if the trainer does not fit on the cluster with them, or if they are to
        be stopped when idle; a later stage starts them."""
        self.stop("teacher")
        resources = self._job.resources
        wanted = cluster.of_trainer(resources.trainer)
        if not can_colocate(resources.student, wanted, ray.available_resources()):
            self.stop("student")

    def _free_resources_for_teacher(self) -> ResourceRequest:
        """Stop a student's engine that an earlier job has left, if the teacher does not fit on the
        cluster with it; return the teacher's request."""
        needed = cluster.of_engine("teacher", self._resources("teacher"))
        if "student" in self._up and not fits(needed, ray.available_resources()):
            self.stop("student")
        return needed

    def hand_over(self, following: "Engines") -> "Engines":
        """Return the engines of a job that follows on the same cluster. A student's engine that it
        would start in the same way stays up and loads its weights when they are needed; all others
        are stopped."""
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
            # A running engine knows an adapter by its round's name, which both jobs have.
            and not any(config.lora for config in trained)
        )
        if same and "student" in self._up:
            following._up["student"] = self._up.pop("student")
        self.close()
        return following

    def stop(self, role: Role) -> None:
        """Stop the role's engines and actors, if they are up."""
        sampler = self._up.pop(role, None)
        if sampler is not None:
            sampler.stop()

    def close(self) -> None:
        """Stop all engines and actors."""
        for role in list(self._up):
            self.stop(role)

    def _deploy(self, role: Role, policy: Policy) -> Sampler:
        endpoint = endpoint_engine(self._job, self._run_dir) if role == "teacher" else None
        return Sampler.deploy(
            role,
            replace(policy, path=str(assets.resolve(policy.path))),
            self._resources(role),
            run=serve_apps.run_id(self._job.run_dir),
            pointers=self._run_dir / "serving",
            samples_per_question=self._samples_per_question(role),
            serving=endpoint,
        )

    def _samples_per_question(self, role: Role) -> int:
        if role == "teacher":
            return self._job.demonstrations.samples_per_question
        refined = [self._job.refine.of_round(number) for number in (1, 2)]
        return max(refine.num_cot + refine.num_plain for refine in refined)

    def _resources(self, role: Role) -> EngineConfig:
        """Return the settings of the role's engines."""
        endpoint = self._job.teacher.endpoint
        if role == "student":
            return self._job.resources.student
        if endpoint is None:
            return self._job.resources.teacher
        return endpoint_resources(endpoint, self._samples_per_question(role))
