"""One attempt at one request, over HTTP with OpenAI's client: body -> bytes, or an error.

Errors are classified by what they mean for the run: this request will never be answered (400, 413,
422), a retry may succeed (408, 409, 425, 429, 5xx, no connection, timeout), or no request will
succeed (all others, and a 429 for lack of credit).
"""

import asyncio

import openai

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.endpoint.rate_limit import retry_after_seconds
from sirt_ray.endpoint.request import (
    Json,
    RefusedByEndpointError,
    RetryableError,
    settings_to_change,
)
from sirt_ray.errors import StageError

_RETRYABLE = {408, 409, 425, 429}
_REJECTED = {400, 413, 422}
_NO_CREDIT = "insufficient_quota"
_REASON_CHARACTERS = 500


class Transport:
    """The connections to one endpoint."""

    def __init__(self, config: EndpointConfig, key: str | None) -> None:
        self._config = config
        self._key = key
        # The client requires a key; without one, the header is removed again.
        self._headers = {"Authorization": openai.Omit()} if key is None else None
        self._openai = openai.AsyncOpenAI(
            base_url=config.url, api_key=key or "none", max_retries=0, timeout=config.timeout_s
        )

    async def post(self, body: Json) -> bytes:
        """Return the body of a successful response. Raises RefusedByEndpointError, RetryableError
        or StageError; no message contains the key."""
        try:
            # The client's own timeout restarts with every chunk of a response.
            async with asyncio.timeout(self._config.timeout_s):
                return await self._post(body)
        except (TimeoutError, openai.APITimeoutError):
            raise RetryableError(f"no reply within {self._config.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            reason = self.without_key(str(error.__cause__ or error))
            raise RetryableError(f"no connection: {reason}") from None
        except openai.APIStatusError as error:
            raise self._classified(error, body) from None

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

    def _classified(self, error: openai.APIStatusError, body: Json) -> Exception:
        """Return the exception for an HTTP status in reply to `body`."""
        config, status = self._config, error.status_code
        whole = self.without_key(" ".join(str(error.message).split()))
        reason = whole[:_REASON_CHARACTERS]
        if status in _REJECTED:
            advice = settings_to_change(whole, body, config)
            return RefusedByEndpointError(f"HTTP {status}: {reason}{advice and '.'}{advice}")
        if error.code != _NO_CREDIT and (status in _RETRYABLE or status >= 500):
            return RetryableError(
                f"HTTP {status}: {reason}", retry_after_seconds(error.response.headers)
            )
        key = f"the key in {config.api_key_env}" if self._key else "api_key_env, which is null"
        what_to_do = {
            401: f"Check {key}",
            403: f"Check {key}, and its permissions",
            404: f"Check url (it often ends in /v1), api ({config.api}) and model ({config.model})",
        }.get(status, "Fix that")
        return StageError(
            f"{config.url} refuses all requests, HTTP {status}: {reason}. {what_to_do} under"
            " teacher.endpoint; then the same command resumes"
        )

    def without_key(self, message: str) -> str:
        """Replace the key in a message."""
        return message.replace(self._key, "<key>") if self._key else message
