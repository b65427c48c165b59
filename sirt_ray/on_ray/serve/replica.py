"""The Serve replica of an endpoint: a vLLM engine behind vLLM's own OpenAI routes."""

import asyncio
import json
from typing import Any

from sirt_ray.core.encoding import missing_chat_template
from sirt_ray.core.interfaces import Policy
from sirt_ray.errors import StageError
from sirt_ray.on_ray import _compat
from sirt_ray.on_ray.engine.protocol import ReplicaFacts
from sirt_ray.on_ray.engine.replica import ENGINE_FAILED
from sirt_ray.on_ray.engine.vllm import LogMark, failure_reason, llm_config
from sirt_ray.on_ray.engine.weights import engine_path
from sirt_ray.on_ray.serve.auth import App, KeyCheck, RequireKey


class OpenAIReplica:
    """One engine that answers HTTP requests from Serve's proxy, through the routes of vLLM's own
    server: no part of the API is implemented here.

    On failure: a failed start raises with the engine's own reason; a dead engine fails the health
    check, and Serve starts a new replica.
    """

    async def __init__(
        self, name: str, path: str, settings: dict[str, Any], key: KeyCheck | None
    ) -> None:
        self._key = key
        logged = LogMark()
        try:
            await self._start(name, path, settings)
        except Exception as error:
            # The engine fails with errors of many types, also from other processes. Serve passes
            # only the status text on to the user, so the first reason has to be in it.
            reason = failure_reason(str(error), logged.text_since())
            raise StageError(f"{ENGINE_FAILED}{json.dumps(reason)}") from None

    async def _start(self, name: str, path: str, settings: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        path = await asyncio.to_thread(engine_path, Policy(name, path))
        config = llm_config(name, path, settings)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        template = missing_chat_template(tokenizer)
        if template is not None:
            config.engine_kwargs["chat_template"] = template
        self._server: Any = await _compat.start_llm_server(config)

    async def __serve_build_asgi_app__(self) -> App:
        """Return the ASGI application. Serve calls this once the engine runs."""
        return RequireKey(await self._server.__serve_build_asgi_app__(), self._key)

    async def check_health(self) -> None:
        """Raise if the engine is dead. Serve calls this regularly."""
        await self._server.check_health()

    async def facts(self) -> ReplicaFacts:
        """Return what `ModelServer` needs to know of the engine."""
        model = _compat.engine_client(self._server).model_config
        return ReplicaFacts("", model.max_model_len, ())
