"""What the `finish_reason` of an endpoint means, in the words of the known providers and servers.

Names are compared without case, dress and prefix: `MAX_TOKENS`, `maxTokens`, `max-tokens` and
`FINISH_REASON_MAX_TOKENS` are one.
"""

import re
from typing import Literal

Meaning = Literal["stop", "length", "withheld", "broken_off"]
"""`stop`: the model ended its answer. `length`: it was truncated by a token limit. `withheld`: the
answer is final and its text must not be used, because a filter removed some of it, or because it is
a call of a tool. `broken_off`: the text is incomplete for a reason that may pass."""

_NAMES: dict[Meaning, str] = {
    "stop": """
        stop end_turn stop_sequence complete completed eos eos_token eos_found end_id endoftext
        end_of_text stop_string_found stop_words stop_criteria_met finish finished normal
    """,
    "length": """
        length max_tokens max_length max_len max_output_tokens max_new_tokens
        max_predicted_tokens_reached model_length token_limit limit max_context
        context_length_reached model_context_window_exceeded error_limit
    """,
    "withheld": """
        content_filter content_filtered refusal safety image_safety recitation image_recitation
        language blocklist prohibited_content image_prohibited_content spii model_armor
        guardrail_intervened sensitive error_toxic
        tool_calls tool_call tool_use function_call function pause_turn
        malformed_function_call unexpected_tool_call too_many_tool_calls
    """,
    "broken_off": """
        error failed internal_error network_error insufficient_system_resource overloaded
        abort aborted cancel cancelled canceled user_cancel user_stopped
        timeout time_limit interrupted not_finished incomplete load unload
        model_unloaded invalid other unspecified null none
    """,
}
_MEANINGS: dict[str, Meaning] = {
    name: meaning for meaning, names in _NAMES.items() for name in names.split()
}
_PREFIX = re.compile(r"^(finish_?reason_|reason_)")


def meaning_of(finish_reason: str) -> Meaning | None:
    """Return what a finish reason means; None for one that is not known. A reply without one is
    broken off."""
    if not finish_reason:
        return "broken_off"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", finish_reason)
    name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return _MEANINGS.get(_PREFIX.sub("", name))
