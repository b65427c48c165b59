"""Ports that others may hold, and whether the Hugging Face hub answers."""

from collections.abc import Sequence

from sirt_ray.doctor.findings import Finding
from sirt_ray.on_ray.serve.address import HttpAddress

_HUB_SECONDS = 5.0
_REFUSED = (401, 403)


def check_ports(ports: Sequence[tuple[int, str, str]]) -> list[Finding]:
    """`ports`: number, what listens there in the end, and what to do where another does."""
    findings: list[Finding] = []
    for port, use, cure in ports:
        problem = HttpAddress("127.0.0.1", port).problem()
        if problem is not None:
            findings.append(Finding("ports", "warning", f"{port} is taken ({use})", cure))
    if findings:
        return findings
    return [Finding("ports", "ok", f"{', '.join(str(port) for port, *_ in ports)} are free")]


def check_hub() -> list[Finding]:
    """The token itself is neither shown nor sent to anybody but the hub."""
    from huggingface_hub import constants, get_session, get_token
    from huggingface_hub.utils import build_hf_headers

    endpoint, token = constants.ENDPOINT, get_token()
    said = "a token is set" if token else "no token is set, which gated models need (HF_TOKEN)"
    if constants.is_offline_mode():
        found = f"HF_HUB_OFFLINE is set: only what is in {constants.HF_HUB_CACHE} is there; {said}"
        return [Finding("hub", "ok", found)]
    try:
        # Without a token it says so in the same way, and costs the hub little.
        reply = get_session().get(
            f"{endpoint}/api/whoami-v2",
            headers=build_hf_headers(token=token or False),
            timeout=_HUB_SECONDS,
        )
    except Exception as error:  # a network has no list of what it may raise
        return [
            Finding(
                "hub",
                "warning",
                f"{endpoint} does not answer: {str(error).splitlines()[0]}; {said}",
                "Check the network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); set"
                " HF_HUB_OFFLINE=1 where all is in folders or in the cache",
            )
        ]
    if token and reply.status_code in _REFUSED:
        cure = "Make a new token on the hub, and set it with `hf auth login` or in HF_TOKEN"
        return [Finding("hub", "warning", f"{endpoint} refuses the token that is set", cure)]
    return [Finding("hub", "ok", f"{endpoint} answers; {said}")]
