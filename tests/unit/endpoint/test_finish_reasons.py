"""What providers call the end of an answer."""

import pytest

from sirt_ray.endpoint.finish_reasons import Meaning, meaning_of

NAMES: dict[Meaning | None, str] = {
    "stop": "stop STOP end_turn stop_sequence STOP_SEQUENCE COMPLETE eos eos_token eosFound"
    " FINISH_REASON_STOP FinishReason.STOP REASON_STOP finish normal endoftext",
    "length": "length LENGTH max_tokens MAX_TOKENS max-tokens maxPredictedTokensReached"
    " model_length model_context_window_exceeded max_output_tokens token_limit",
    "withheld": "content_filter content-filter CONTENT_FILTERED SAFETY RECITATION refusal"
    " PROHIBITED_CONTENT guardrail_intervened sensitive tool_calls tool-calls TOOL_CALL tool_use"
    " function_call",
    "broken_off": "error ERROR abort aborted cancelled insufficient_system_resource network_error"
    " timeout TIMEOUT not_finished OTHER FINISH_REASON_UNSPECIFIED null",
    None: "dreamt stopped_by_moon 7 - unknown",
}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [(name, meaning) for meaning, names in NAMES.items() for name in names.split()],
)
def test_each_provider_is_understood(name: str, meaning: Meaning | None) -> None:
    assert meaning_of(name) == meaning


def test_no_name_is_no_end() -> None:
    assert meaning_of("") == "broken_off"
