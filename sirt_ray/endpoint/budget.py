"""What may be spent at an endpoint, and what has been: over all starts of all jobs of one folder.

    <folder>/spent.jsonl      one line for each reply that was paid for

A request is sent only if its longest possible answer still fits beside what is spent and what is
under way. So requests that run at the same time never overrun the budget together, and near its end
fewer of them do. What the endpoint bills for replies that never arrived is not known here.
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
from sirt_ray.endpoint.replies import Use
from sirt_ray.errors import BudgetSpentError

SPENT = "spent.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")

    prompt_tokens: int
    completion_tokens: int
    cost: float


class Budget:
    """The bounds of one endpoint's config, and the record of what was paid for."""

    def __init__(self, config: EndpointConfig, folder: Path) -> None:
        self._config = config
        self._path = folder / SPENT
        self._changed = asyncio.Condition()
        self._reserved_tokens, self._reserved_cost = 0, 0.0
        self.spent_tokens, self.spent_cost = 0, 0.0
        self._read()

    def cost(self, use: Use) -> float:
        """In the currency of the job's prices; 0 for what has no price."""
        config = self._config
        prompt = use.prompt_tokens * (config.price_per_million_prompt_tokens or 0.0)
        completion = use.completion_tokens * (config.price_per_million_completion_tokens or 0.0)
        return (prompt + completion) / 1e6

    @asynccontextmanager
    async def reserved(self, most: Use) -> AsyncGenerator[None]:
        """Keep `most` free for one request; waits for those under way where it does not fit beside
        them. Raises BudgetSpentError where it does not fit at all."""
        cost = self.cost(most)
        async with self._changed:
            while (problem := self._problem(most.tokens, cost)) is not None:
                if not self._reserved_tokens:
                    raise BudgetSpentError(problem)
                await self._changed.wait()
            self._reserved_tokens += most.tokens
            self._reserved_cost += cost
        try:
            yield
        finally:
            self._reserved_tokens -= most.tokens
            self._reserved_cost -= cost
            async with self._changed:
                self._changed.notify_all()

    def pay(self, key: str, use: Use) -> float:
        """Note what one request took; its cost."""
        cost = self.cost(use)
        line = {"request": key, **asdict(use), "cost": cost, "time": round(time.time())}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.spent_tokens += use.tokens
        self.spent_cost += cost
        return cost

    def _problem(self, tokens: int, cost: float) -> str | None:
        """Why a request of so much cannot be sent now; None where it can."""
        config = self._config
        most_tokens, most_cost = config.max_tokens_total, config.max_cost
        if most_tokens is not None and (
            self.spent_tokens + self._reserved_tokens + tokens > most_tokens
        ):
            what = f"{self.spent_tokens:,} of {most_tokens:,} tokens (max_tokens_total)"
            needed, setting = f"{tokens:,} tokens", "max_tokens_total"
        elif most_cost is not None and self.spent_cost + self._reserved_cost + cost > most_cost:
            what = f"{self.spent_cost:.4g} of {most_cost:g} (max_cost)"
            needed, setting = f"{cost:.2g}", "max_cost"
        else:
            return None
        return (
            f"the budget of teacher.endpoint is spent: {what} are used, and the next request may"
            f" take {needed} more. Everything finished is kept, and paid answers are not asked for"
            f" again. Raise the budget with --set teacher.endpoint.{setting}=... and the same"
            f" command continues where it stopped. What was paid for stands in {self._path}"
        )

    def _read(self) -> None:
        """Add up the lines of earlier starts; what a lost machine left half written is skipped."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = self._path.read_text(errors="replace") if self._path.exists() else ""
        if text and not text.endswith("\n"):
            with self._path.open("a") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                paid = _Line.model_validate_json(line)
            except ValidationError:
                continue
            self.spent_tokens += paid.prompt_tokens + paid.completion_tokens
            self.spent_cost += paid.cost
