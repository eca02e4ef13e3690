"""Answers already given, so that a request sent twice starts its work once."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from sendense.db.base import Base, text

KEY_LENGTH_MAX = 255
HASH_LENGTH = 64


class IdempotencyRow(Base):
    """The answer to a request that carried an `Idempotency-Key`."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(text(KEY_LENGTH_MAX), primary_key=True)
    # SHA-256 of method, path and body: the same key with another request is refused.
    request_hash: Mapped[str] = mapped_column(text(HASH_LENGTH))
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)
