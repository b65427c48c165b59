"""The `resources` of a job file: where and how fast it runs. Changing them never makes a finished
artifact stale."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sirt_ray.config.base import Section


class EngineConfig(Section):
    """One vLLM engine, i.e. one Serve replica."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on CPU, the checkpoint's dtype on GPU."""
    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt = 1
    num_cpus: PositiveFloat = 1
    tensor_parallel_size: PositiveInt = 1
    max_model_len: PositiveInt | None = None
    """Longest prompt plus completion, in tokens; None: what the model allows."""
    max_num_seqs: PositiveInt = 256
    """Sequences that the engine decodes in one batch."""
    kv_cache_gib: PositiveFloat | None = None
    """Memory for the KV cache, in GiB. None: vLLM's share of the GPU, 0.25 GiB on CPU."""
    max_lora_rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Highest rank of the LoRA adapters that the engine can load; None: no adapters, unless the
    engine is started with one, whose rank it then is."""
    custom_resources: dict[str, float] = Field(default={})
    """Ray resources that a replica requests, to place it on certain nodes."""
    labels: dict[str, str] = Field(default={})
    """Ray node labels that a replica's node must have, e.g. `ray.io/accelerator-type: H100`."""
    upscale_delay_s: NonNegativeFloat = 10.0
    """How long there must be too much work for the running replicas before one is added."""
    downscale_delay_s: NonNegativeFloat = 120.0
    """How long there must be too little work before a replica is removed. With `min_replicas: 0`
    the last one is removed, too; before a training it always is."""
    request_timeout_s: PositiveFloat = 600.0
    """Timeout of one request, which is then retried. A replica that answers no request for this
    long is replaced."""
    start_timeout_s: PositiveFloat = 6 * 3600.0
    """Timeout for the first engine to answer, including the wait for free resources."""

    @model_validator(mode="after")
    def _replica_range(self) -> "EngineConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})"
            )
        return self


class TrainerResources(Section):
    """The workers of a training."""

    num_workers: PositiveInt = 1
    cpus_per_worker: PositiveFloat = 1
    gpus_per_worker: NonNegativeFloat | None = None
    """None: 1 where the cluster has GPUs, else 0."""
    custom_resources: dict[str, float] = Field(default={})
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards over the workers: 1 optimizer states, 2 gradients too, 3 parameters
    too. 0: nothing."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept, and updated, in the machine's memory instead of the GPU's: the optimizer's
    states, or the parameters as well."""
    max_tokens_per_micro_batch: PositiveInt = 4096
    """Padded tokens in one forward pass of one worker; bounds its memory, not the result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    checkpoint_every_steps: PositiveInt = 50
    """Optimizer steps between checkpoints; a killed training resumes at the last one."""
    max_failures: NonNegativeInt = 3
    """Worker failures that a training survives; after each it resumes from a checkpoint."""
    start_timeout_s: PositiveFloat = 6 * 3600.0
    """Timeout for the workers to get the resources they need."""

    @model_validator(mode="after")
    def _stage_can_offload(self) -> "TrainerResources":
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload is '{self.offload}', and only what ZeRO shards can be offloaded: it needs"
                f" zero_stage {needed} or higher, but zero_stage is {self.zero_stage}. Raise it, or"
                " set offload to 'none'"
            )
        return self


class DriverResources(Section):
    """The driver of a run that was submitted to a cluster. If it needs nothing, Ray places it on
    the head node."""

    num_cpus: NonNegativeFloat = 1
    custom_resources: dict[str, float] = Field(default={})
    labels: dict[str, str] = Field(default={})
    """Ray node labels that the driver's node must have."""


class ResourcesConfig(Section):
    """Where and how fast a job runs; changing it never makes a finished artifact stale."""

    teacher: EngineConfig = EngineConfig()
    student: EngineConfig = EngineConfig()
    trainer: TrainerResources = TrainerResources()
    driver: DriverResources = DriverResources()
    block_size: PositiveInt = 32
    """Questions that are sampled, graded and written together; a killed run loses at most the
    blocks in progress, which are as many as fill the engines."""
    local_cpus: PositiveInt | None = None
    """Logical CPUs of the Ray that is started if there is no cluster; None: as many as the job
    needs, at least those of the machine."""
