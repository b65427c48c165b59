"""Ports that other programs may use, and the connection to the Hugging Face hub."""

from collections.abc import Sequence

from sirt_ray.doctor.findings import Finding
from sirt_ray.on_ray.serve.address import HttpAddress

_HUB_SECONDS = 5.0
_REFUSED = (401, 403)


def check_ports(ports: Sequence[tuple[int, str, str]]) -> list[Finding]:
    """Check that nothing listens on `ports`: (number, what will use it, what to do if taken)."""
    findings: list[Finding] = []
    for port, use, cure in ports:
        if HttpAddress("127.0.0.1", port).bind_error() is not None:
            findings.append(Finding("ports", "warning", f"{port} is taken ({use})", cure))
    if findings:
        return findings
    return [Finding("ports", "ok", f"{', '.join(str(port) for port, *_ in ports)} are free")]


def check_hub() -> list[Finding]:
    """Check that the hub answers and accepts the token, if one is set. The token is not shown, and
    sent only to the hub."""
    from huggingface_hub import constants, get_session, get_token
    from huggingface_hub.utils import build_hf_headers

    endpoint, token = constants.ENDPOINT, get_token()
    status = "a token is set" if token else "no token is set, which gated models need (HF_TOKEN)"
    if constants.is_offline_mode():
        cached = f"only what is in {constants.HF_HUB_CACHE} is available"
        return [Finding("hub", "ok", f"HF_HUB_OFFLINE is set: {cached}; {status}")]
    try:
        # A cheap request that the hub also answers without a token (status 401).
        reply = get_session().get(
            f"{endpoint}/api/whoami-v2",
            headers=build_hf_headers(token=token or False),
            timeout=_HUB_SECONDS,
        )
    except Exception as error:  # A network library may raise anything.
        return [
            Finding(
                "hub",
                "warning",
                f"{endpoint} does not answer: {str(error).splitlines()[0]}; {status}",
                "Check the network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); set"
                " HF_HUB_OFFLINE=1 if everything is in folders or in the cache",
            )
        ]
    if token and reply.status_code in _REFUSED:
        cure = "Create a new token on the hub, and set it with `hf auth login` or in HF_TOKEN"
        return [Finding("hub", "warning", f"{endpoint} refuses the token that is set", cure)]
    return [Finding("hub", "ok", f"{endpoint} answers; {status}")]
