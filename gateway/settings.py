"""What the gateway can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from shared.settings import Settings


class GatewaySettings(Settings):
    """Variables are FOURFOLD_<NAME>; `services` is JSON, for example {"iqa": "http://iqa:8000"}."""

    services: dict[str, str] = Field(
        default_factory=dict[str, str],
        description="Service → http://host:port or unix:///path; `service/path` sends what lies below /v1/service/path "
        "elsewhere, so that slow requests do not wait on the same processes as fast ones.",
    )
    first_key: SecretStr | None = Field(
        default=None, min_length=40, description="A key with every scope that is to exist, where no file can be read."
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1024)
    rate_limit: str = Field(default="2000/second", description="Requests a key may make, in the words of `limits`.")
    rate_limit_storage: Literal["memory", "redis"] = Field(
        default="memory", description="redis shares the count between gateways, at about 0.1 ms a request."
    )
    max_concurrency: int = Field(default=256, ge=1, description="Requests of one key under way at once.")
    request_timeout_seconds: float = Field(default=300.0, gt=0)
    connect_timeout_seconds: float = Field(default=0.25, gt=0)
    key_cache_seconds: float = Field(default=5.0, ge=0, description="How late a revocation may take effect.")
    protect_metrics: bool = Field(default=False, description="Ask for an admin key at /metrics.")
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    oidc_jwks_url: str | None = None
    oidc_algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = (
        "RS256",
        "ES256",
    )
    oidc_scope_claim: str = "scope"

    def address(self, service: str) -> str:
        """Where `service` listens: as configured, or the socket that `fourfold up` gives it."""
        return self.services.get(service) or f"unix://{self.home / 'run' / f'{service}.sock'}"
