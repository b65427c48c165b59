"""Budget and spending at an endpoint, over all starts of all jobs that share one folder.

    <folder>/spent.jsonl      one line for each reply that was paid for

A request is sent only if its longest possible answer fits into the budget together with what is
spent and what is reserved for requests in flight. So concurrent requests never exceed the budget
together, and fewer of them run near its end. What the endpoint bills for replies that never arrived
is not known here.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sirt_ray.config.teacher import EndpointConfig
from sirt_ray.endpoint.replies import Usage
from sirt_ray.errors import BudgetSpentError
from sirt_ray.storage.writing import append

SPENT = "spent.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")

    prompt_tokens: int
    completion_tokens: int
    cost: float


class Budget:
    """The limits of one endpoint's config, and the record of what was paid for."""

    def __init__(self, config: EndpointConfig, folder: Path) -> None:
        self._config = config
        self._path = folder / SPENT
        self._changed = asyncio.Condition()
        self._reserved_tokens, self._reserved_cost = 0, 0.0
        self.spent_tokens, self.spent_cost = 0, 0.0
        self._read()

    def cost(self, usage: Usage) -> float:
        """Return the cost in the currency of the job's prices; a price that is not set is 0."""
        config = self._config
        prompt = usage.prompt_tokens * (config.price_per_million_prompt_tokens or 0.0)
        completion = usage.completion_tokens * (config.price_per_million_completion_tokens or 0.0)
        return (prompt + completion) / 1e6

    @asynccontextmanager
    async def reserved(self, limit: Usage) -> AsyncGenerator[None]:
        """Reserve `limit` for one request. Waits for requests in flight if the budget does not have
        room for it now; raises BudgetSpentError if it has none without them, either."""
        cost = self.cost(limit)
        async with self._changed:
            while (problem := self._problem(limit.tokens, cost)) is not None:
                if not self._reserved_tokens:
                    raise BudgetSpentError(problem)
                await self._changed.wait()
            self._reserved_tokens += limit.tokens
            self._reserved_cost += cost
        try:
            yield
        finally:
            self._reserved_tokens -= limit.tokens
            self._reserved_cost -= cost
            async with self._changed:
                self._changed.notify_all()

    def pay(self, key: str, usage: Usage) -> float:
        """Record the usage of one request, and return its cost."""
        cost = self.cost(usage)
        line = {"request": key, **asdict(usage), "cost": cost, "time": round(time.time())}
        append(self._path, json.dumps(line) + "\n")
        self.spent_tokens += usage.tokens
        self.spent_cost += cost
        return cost

    def _problem(self, tokens: int, cost: float) -> str | None:
        """Return why a request of this size cannot be sent now; None if it can."""
        config = self._config
        max_tokens, max_cost = config.max_tokens_total, config.max_cost
        if max_tokens is not None and (
            self.spent_tokens + self._reserved_tokens + tokens > max_tokens
        ):
            used = f"{self.spent_tokens:,} of {max_tokens:,} tokens (max_tokens_total)"
            needed, setting = f"{tokens:,} tokens", "max_tokens_total"
        elif max_cost is not None and self.spent_cost + self._reserved_cost + cost > max_cost:
            used = f"{self.spent_cost:.4g} of {max_cost:g} (max_cost)"
            needed, setting = f"{cost:.2g}", "max_cost"
        else:
            return None
        return (
            f"the budget of teacher.endpoint is spent: {used} are used, and the next request may"
            f" take {needed} more. Everything finished is kept, and no answer is paid for twice."
            f" Raise the budget with --set teacher.endpoint.{setting}=... and the same command"
            f" resumes where it stopped. All payments are listed in {self._path}"
        )

    def _read(self) -> None:
        """Add up the lines of earlier starts. A line that a crash left incomplete is skipped."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        if text and not text.endswith("\n"):
            append(self._path, "\n")
        for line in text.splitlines():
            try:
                paid = _Line.model_validate_json(line)
            except ValidationError:
                continue
            self.spent_tokens += paid.prompt_tokens + paid.completion_tokens
            self.spent_cost += paid.cost
