"""One attempt at one request, over HTTP by the official client: body -> bytes, or what went wrong.

Statuses are sorted by what they mean for the run: this request is lost (400, 413, 422), the same
request may be answered later (408, 409, 425, 429, 5xx, no connection, no reply in time), or no
request ever will (all others, and a 429 for want of credit).
"""

import asyncio

import openai

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.endpoint.rate_limit import retry_after_seconds
from sirt_ray.endpoint.request import Json, MayPassError, RefusedByEndpointError
from sirt_ray.errors import StageError

_LATER = {408, 409, 425, 429}
_LOST = {400, 413, 422}
_NO_CREDIT = "insufficient_quota"
_REASON_CHARACTERS = 500


class Transport:
    """The connections to one endpoint."""

    def __init__(self, config: EndpointConfig, key: str | None) -> None:
        self._config = config
        self._key = key
        # The client insists on a key; where there is none, the header is taken out again.
        self._headers = {"Authorization": openai.Omit()} if key is None else None
        self._openai = openai.AsyncOpenAI(
            base_url=config.url, api_key=key or "none", max_retries=0, timeout=config.timeout_s
        )

    async def post(self, body: Json) -> bytes:
        """The body of a reply with a good status. Raises RefusedByEndpointError, MayPassError or
        StageError; no message has the key in it."""
        try:
            # The client's own timeout starts anew with every piece of a reply.
            async with asyncio.timeout(self._config.timeout_s):
                return await self._post(body)
        except (TimeoutError, openai.APITimeoutError):
            raise MayPassError(f"no reply within {self._config.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            reason = self.without_key(str(error.__cause__ or error))
            raise MayPassError(f"no connection: {reason}") from None
        except openai.APIStatusError as error:
            raise self._told(error) from None

    async def _post(self, body: Json) -> bytes:
        rest = {name: body[name] for name in body if name not in ("model", "messages", "prompt")}
        if self._config.api == "chat":
            response = await self._openai.chat.completions.with_raw_response.create(
                model=body["model"],
                messages=body["messages"],
                extra_body=rest,
                extra_headers=self._headers,
            )
        else:
            response = await self._openai.completions.with_raw_response.create(
                model=body["model"],
                prompt=body["prompt"],
                extra_body=rest,
                extra_headers=self._headers,
            )
        return response.content

    def _told(self, error: openai.APIStatusError) -> Exception:
        """What a status means for the request and the stage."""
        config, status = self._config, error.status_code
        reason = self.without_key(" ".join(str(error.message).split()))[:_REASON_CHARACTERS]
        if status in _LOST:
            return RefusedByEndpointError(f"HTTP {status}: {reason}")
        if error.code != _NO_CREDIT and (status in _LATER or status >= 500):
            return MayPassError(
                f"HTTP {status}: {reason}", retry_after_seconds(error.response.headers)
            )
        key = f"the key in {config.api_key_env}" if self._key else "api_key_env, which is null"
        what_to_do = {
            401: f"Check {key}",
            403: f"Check {key}, and what it may use",
            404: f"Check url (it often ends in /v1), api ({config.api}) and model ({config.model})",
        }.get(status, "Mend that")
        return StageError(
            f"{config.url} refuses to work for us, HTTP {status}: {reason}. {what_to_do} under"
            " teacher.endpoint; then the same command continues"
        )

    def without_key(self, message: str) -> str:
        return message.replace(self._key, "<key>") if self._key else message
