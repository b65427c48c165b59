"""What runs inside one replica of an endpoint: a vLLM engine behind its own OpenAI routes."""

import json
from typing import Any

from sirt_ray.core.encoding import missing_chat_template
from sirt_ray.errors import StageError
from sirt_ray.on_ray.api_key import App, KeyCheck, RequireKey
from sirt_ray.on_ray.replica import ENGINE_FAILED
from sirt_ray.on_ray.requests import ReplicaFacts
from sirt_ray.on_ray.vllm_engine import LogMark, engine_class, failure_reason, import_ray_llm


class OpenAIReplica:
    """One engine that answers HTTP. Serve's proxy hands it requests; it hands them to the routes
    of vLLM's own server, so that nothing of the API is built twice.

    On failure: a start fails with the engine's own reason; a dead engine fails the health check and
    Serve starts a new replica.
    """

    async def __init__(
        self, name: str, path: str, llm_config: dict[str, Any], key: KeyCheck | None
    ) -> None:
        self._key = key
        logged = LogMark()
        try:
            await self._start(name, path, llm_config)
        except Exception as error:
            # Untrusted edge: the engine fails in many ways, in other processes too. The first
            # reason has to reach the user through Serve's status text.
            reason = failure_reason(str(error), logged.text_since())
            raise StageError(f"{ENGINE_FAILED}{json.dumps(reason)}") from None

    async def _start(self, name: str, path: str, llm_config: dict[str, Any]) -> None:
        import_ray_llm()
        from ray.serve.llm import LLMConfig, LLMServer
        from transformers import AutoTokenizer

        loading = {"model_id": name, "model_source": path}
        config = LLMConfig(**llm_config, model_loading_config=loading)
        template = missing_chat_template(AutoTokenizer.from_pretrained(path))
        if template is not None:
            config.engine_kwargs["chat_template"] = template
        # vLLM fetches what it needs by itself; Ray's own step would cost a process on each node.
        callback = config.get_or_create_callback()
        assert callback is not None
        callback.ctx.run_init_node = False
        self._server: Any = LLMServer.sync_init(config, engine_cls=engine_class())
        # Not `self._server.start()`: that would also start an actor which reports usage.
        self._server.engine = engine_class()(config)
        await self._server.engine.start()

    async def __serve_build_asgi_app__(self) -> App:
        """What Serve answers HTTP with, asked for once the engine runs."""
        return RequireKey(await self._server.__serve_build_asgi_app__(), self._key)

    async def check_health(self) -> None:
        await self._server.check_health()

    async def facts(self) -> ReplicaFacts:
        model = self._server.engine._engine_client.model_config
        return ReplicaFacts("", model.max_model_len, ())
