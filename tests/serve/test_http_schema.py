"""The OpenAPI document tells the truth: random requests made from it never break the server."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from live_server import live_server, random_model
from schemathesis.checks import not_a_server_error

MOST_TOKENS = 16


def bound(body: Any) -> Any:
    """Keep random budgets small: a valid request may ask for thousands of tokens."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_new_tokens", "n"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 2 if name == "n" else MOST_TOKENS)
        for value in body.values():
            bound(value)
    return body


def attack(examples: int) -> None:
    with live_server(random_model(), most_running=4) as live:
        document = httpx.get(f"{live.url}/openapi.json").json()
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=live.url)
        met = set()
        for made in schema.get_all_operations():
            operation = made.ok()  # pyright: ignore[reportAttributeAccessIssue]
            if operation.path == "/pause_generation":
                continue  # a paused server answers nobody, as it should
            met.add(operation.path)

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            )
            @given(case=operation.as_strategy())
            def send(case: Any) -> None:
                bound(case.body)
                case.call_and_validate(checks=[not_a_server_error], timeout=60)

            send()
        assert {"/v1/chat/completions", "/v1/completions", "/generate", "/metrics"} <= met
        live.wait_until_idle()


def test_random_requests_break_nothing() -> None:
    attack(8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_random_requests_break_nothing() -> None:
    attack(300)
